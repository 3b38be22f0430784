"""Trainings of other makes again, on which no rule was chosen or mended."""
