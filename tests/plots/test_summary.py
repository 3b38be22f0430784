"""What is said of a run where there is little room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradscope.diagnosis.shortcut_story import shortcut_story
from gradscope.diagnosis.summary import summarise
from gradscope.plots.lettering import times
from gradscope.runs.run import Run
from handmade import chain, falling, make_run
from synthetic import write_with


def run_with_losses(path: Path, losses: np.ndarray, update: float = 1e-3) -> Run:
    layers = chain(4)
    readings = {"signal_norm": falling(len(layers), 0.1, len(losses)), "weight_norm": 1.0}
    return make_run(
        path,
        layers,
        readings | {"update_norm": update},
        n_steps=len(losses),
        steps={"train_loss": losses},
    )


@pytest.mark.parametrize(
    ("losses", "words", "tone"),
    [
        (np.linspace(2.4, 0.2, 40), "loss 2.4 → 0.28", "good"),
        (np.linspace(2.4, 10.7, 40), "loss 2.4 → 10, rose", "bad"),
        (
            np.r_[np.linspace(2, 1, 20), np.linspace(1, 3, 20), np.linspace(3, 0.1, 60)],
            "rose",
            "good",
        ),
        (np.full(40, 2.3), "loss 2.3 → 2.3, hardly falls", "bad"),
        (np.r_[np.linspace(2, 12, 20), np.linspace(12, 1, 40)], "rose between", "unsure"),
        (np.r_[np.linspace(2, 1, 30), np.full(10, np.nan)], "loss NaN from step 30 on", "bad"),
        (np.r_[np.linspace(2, 1, 30), np.full(10, np.inf)], "loss not finite at step 3", "bad"),
    ],
)
def test_the_loss_is_judged_beside_the_flow(
    tmp_path: Path, losses: np.ndarray, words: str, tone: str
) -> None:
    summary = summarise(run_with_losses(tmp_path / "run", losses))
    flow = "exploding" if np.isinf(losses).any() else "healthy"
    assert summary.flow.words == f"Gradient flow: {flow}"
    assert summary.loss is not None
    assert words in summary.loss.words
    assert summary.loss.tone == tone == summary.tone


def test_a_step_that_replaced_a_layers_weights_is_named(tmp_path: Path) -> None:
    update = np.full((30, 9), 1e-3)
    update[2, 4] = 16.0
    run = write_with(tmp_path / "run", 9, 30, update_norm=update, weight_norm=8.0)
    speed = summarise(run).speed
    assert speed is not None
    assert speed.words == "step 2 moved blocks.2.fc by 200%"
    assert (speed.layer, speed.size, speed.tone) == (4, pytest.approx(2.0), "unsure")


@pytest.mark.parametrize(("floor", "tone"), [(1.5, "unsure"), (1e-3, "good")])
def test_weights_that_hardly_move_are_no_alarm_once_the_loss_is_gone(
    tmp_path: Path, floor: float, tone: str
) -> None:
    run = run_with_losses(tmp_path / "run", floor + 2 * 0.8 ** np.arange(60), update=1e-6)
    speed = summarise(run).speed
    assert speed is not None
    assert speed.tone == tone


@pytest.mark.filterwarnings("ignore:.*no step is recorded")
def test_a_run_without_steps_has_a_summary(tmp_path: Path) -> None:
    summary = summarise(write_with(tmp_path / "run", 5, 0))
    assert summary.flow.tone == "unsure"
    assert summary.loss is None and summary.speed is None


def test_the_shortcuts_are_told_in_a_sentence(pair: Path, plain: Run, residual: Run) -> None:
    assert shortcut_story(plain) == ""
    assert shortcut_story(residual) == "Its 10 shortcuts carry 64% of the gradient's energy."


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1 / 634_000, "634 thousand × less"),
        (1e21, "10²¹ × more"),
        (0.21, "4.8 × less"),
        (0.0, "exactly 0"),
        (np.nan, "NaN"),
        (np.inf, "inf"),
    ],
)
def test_charts_say_factors_in_the_words_of_the_verdicts(value: float, words: str) -> None:
    assert times(value) == words


def test_a_verdict_about_something_else_stands_beside_a_healthy_flow(tmp_path: Path) -> None:
    layers = chain(5)
    readings = {"signal_norm": falling(len(layers), 0.1, 40), "saturated_fraction": 0.9}
    summary = summarise(make_run(tmp_path / "run", layers, readings))
    assert summary.diagnosis.verdict == "saturated"
    assert [part.words for part in summary.parts[:2]] == ["Saturated", "Gradient flow: healthy"]
    assert summary.tone == "bad"


def test_layers_that_do_not_move_are_counted(tmp_path: Path) -> None:
    layers = chain(6)
    speed = np.where([row["parameters"] > 0 for row in layers], 1e-3, np.nan)
    speed[:4] = np.where(np.isnan(speed[:4]), np.nan, 0)
    readings = {"signal_norm": 1.0, "weight_norm": 1.0, "update_norm": speed}
    summary = summarise(make_run(tmp_path / "run", layers, readings))
    assert summary.speed.words == "2 of 6 layers do not move"
