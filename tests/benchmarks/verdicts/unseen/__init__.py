"""Half C: trainings that were written when the rules stood, and judged once before any of them."""
