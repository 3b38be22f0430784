"""What was logged of the training."""

from __future__ import annotations

from gradscope.plots.training import training_info
from gradscope.runs.run import Run


def test_training_shows_the_logged_losses(plain: Run) -> None:
    curves = training_info(plain)
    assert {(curve.part, curve.measure) for curve in curves} == {("train", "loss"), ("val", "loss")}
    train = next(curve for curve in curves if curve.part == "train")
    assert train.steps.tolist() == list(range(60))
    assert train.values[-1] < train.values[0]
