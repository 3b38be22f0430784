"""How far verdicts can be trusted: healthy and broken trainings, recorded once and judged often."""
