"""What was logged of the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import handmade
from gradscope.plots.scalars import scalars_figure, scalars_info
from gradscope.plots.training import (
    training_caption,
    training_events,
    training_figure,
    training_info,
)
from gradscope.runs.run import Run


def test_training_shows_the_logged_losses(plain: Run) -> None:
    curves = training_info(plain)
    assert {(curve.part, curve.measure) for curve in curves} == {("train", "loss"), ("val", "loss")}
    train = next(curve for curve in curves if curve.part == "train")
    assert train.steps.tolist() == list(range(60))
    assert train.values[-1] < train.values[0]


def test_a_loss_that_is_nan_for_good_is_shaded_to_the_last_step(tmp_path: Path) -> None:
    losses = np.r_[np.linspace(2, 1, 30), np.full(20, np.nan)]
    run = handmade.make_run(
        tmp_path / "nan",
        handmade.chain(3),
        {"signal_norm": 1.0},
        n_steps=50,
        steps={"train_loss": losses},
    )
    curves = training_info(run)
    (shape,) = [s for s in training_figure(curves)["layout"]["shapes"] if s["type"] == "rect"]
    assert (shape["x0"], shape["x1"]) == (30, 49)
    assert "NaN from step 30 on, shaded" in training_caption(curves)


def test_a_loss_that_was_logged_seldom_is_not_taken_for_nan(tmp_path: Path) -> None:
    losses = np.where(np.arange(50) % 10 == 0, 1.0, np.nan)
    run = handmade.make_run(
        tmp_path / "seldom",
        handmade.chain(3),
        {"signal_norm": 1.0},
        n_steps=50,
        steps={"train_loss": losses},
    )
    assert [curve.gap for curve in training_info(run)] == [None]


def test_changes_of_the_learning_rate_are_lines_in_the_chart(tmp_path: Path) -> None:
    step = np.arange(50)
    rates = np.select([step < 20, step < 21], [0.1, 0.01], 1e-4)
    run = handmade.make_run(
        tmp_path / "rates",
        handmade.chain(3),
        {"signal_norm": 1.0},
        n_steps=50,
        steps={"train_loss": np.linspace(2, 1, 50), "lr": rates},
    )
    layout = training_figure(training_info(run), events=training_events(run))["layout"]
    lines = [shape["x0"] for shape in layout["shapes"] if shape["type"] == "line"]
    assert lines == [20, 21]
    assert "lr → 0.01<br>lr → 1e-4" in [note["text"] for note in layout["annotations"]]


def test_a_run_that_explodes_leaves_the_others_their_room(tmp_path: Path) -> None:
    fine, explodes = np.linspace(2, 1, 50), np.r_[2, np.geomspace(3, 1e9, 20), np.full(29, np.nan)]
    runs = [
        handmade.make_run(
            tmp_path / name,
            handmade.chain(3),
            {"signal_norm": 1.0},
            n_steps=50,
            steps={"train_loss": losses},
        )
        for name, losses in (("fine", fine), ("explodes", explodes))
    ]
    curves = training_info(runs)
    figure = training_figure(curves)
    assert figure["layout"]["yaxis"]["range"] == [0, 4]
    assert not [shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect"]
    (cross,) = [trace for trace in figure["data"] if trace["mode"] == "markers"]
    assert cross["x"] == [20]
    caption = training_caption(curves)
    assert "explodes: train_loss is NaN from step 21 on, ×, and was 1.0e+9 before." in caption
    assert "The axis ends before explodes, whose loss rises to " in caption
    assert "range" not in training_figure(training_info(runs[1:]))["layout"]["yaxis"]


def test_a_rate_that_never_changes_can_be_read_off_its_axis(tmp_path: Path) -> None:
    run = handmade.make_run(
        tmp_path / "run",
        handmade.chain(3),
        {"signal_norm": 1.0},
        n_steps=50,
        steps={"lr": np.full(50, 0.05)},
    )
    curves = [curve for curve in scalars_info(run) if curve.name == "lr"]
    assert scalars_figure(curves)["layout"]["yaxis"]["range"] == [0, 0.1]


def test_the_caption_tells_of_the_lines_that_are_there(plain: Run, residual: Run) -> None:
    train, validation, *others = training_info([plain, residual])
    assert "validation" not in training_caption([train])
    assert "overfits" in training_caption([train, validation])
    assert "deeper net" not in training_caption([train, validation])
    assert "deeper net" in training_caption([train, validation, *others])
