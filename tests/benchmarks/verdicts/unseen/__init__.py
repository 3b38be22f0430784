"""Set C: trainings written when the rules stood, judged before any was mended on them."""
