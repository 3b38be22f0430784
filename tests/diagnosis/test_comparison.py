"""Degradation and fit, on handmade learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from gradscope.diagnosis.comparison import Comparison, compare
from gradscope.diagnosis.curves import logged_curves
from gradscope.errors import GradscopeError
from gradscope.runs.run import Run
from handmade import chain, falling, make_run

STEPS = 200
TIME = np.arange(STEPS)


def curve(last: float, first: float = 2.3, pace: float = 40.0) -> np.ndarray:
    return last + (first - last) * np.exp(-TIME / pace)


def net(path: Path, depth: int, logged: Mapping[str, np.ndarray], decades: float = 0.0) -> Run:
    layers = chain(depth)
    signal = falling(len(layers), decades, STEPS)
    return make_run(path, layers, {"signal_norm": signal}, n_steps=STEPS, steps=logged)


def kinds(comparison: Comparison) -> list[str]:
    return [observation.kind for observation in comparison.observations]


def test_a_deeper_net_with_the_higher_training_error_degrades(tmp_path: Path) -> None:
    shallow = net(tmp_path / "plain-8", 8, {"train_error": curve(0.0, 0.9)})
    deep = net(tmp_path / "plain-32", 32, {"train_error": curve(0.5, 0.9)})
    (observation,) = compare([deep, shallow]).observations
    assert observation.kind == "degradation"
    assert observation.runs == ("plain-8", "plain-32")
    assert "Vanishing is not the cause" in observation.sentence


def test_a_degraded_net_whose_gradient_vanishes_is_told_so(tmp_path: Path) -> None:
    shallow = net(tmp_path / "plain-8", 8, {"train_loss": curve(0.0)})
    deep = net(tmp_path / "plain-32", 32, {"train_loss": curve(2.0)}, decades=9.0)
    (observation,) = compare([shallow, deep]).observations
    assert observation.kind == "degradation"
    assert "Its gradient vanishes, which can be the cause" in observation.sentence


def test_a_deeper_net_that_trains_as_well_does_not_degrade(tmp_path: Path) -> None:
    shallow = net(tmp_path / "plain-8", 8, {"train_loss": curve(0.02)})
    deep = net(tmp_path / "plain-32", 32, {"train_loss": curve(0.01)})
    assert kinds(compare([shallow, deep])) == ["no degradation"]


def test_a_residual_net_is_no_deeper_version_of_a_plain_one(tmp_path: Path) -> None:
    plain = net(tmp_path / "plain-8", 8, {"train_loss": curve(0.02)})
    layers = chain(32)
    residual = make_run(
        tmp_path / "residual-32",
        layers,
        {"signal_norm": 1.0},
        n_steps=STEPS,
        steps={"train_loss": curve(1.5)},
        shortcuts=[
            {
                "shortcut": 0,
                "name": "block",
                "form": "identity",
                "split": "act0",
                "join": "block",
                "branch": "fc1",
                "position": 0.5,
            }
        ],
        shortcut_readings={"total_norm": 1.0},
    )
    assert kinds(compare([plain, residual])) == []


def test_runs_of_unequal_length_are_compared_at_the_same_step(tmp_path: Path) -> None:
    shallow = net(tmp_path / "plain-8", 8, {"train_loss": curve(0.0)})
    layers = chain(32)
    deep = make_run(
        tmp_path / "plain-32",
        layers,
        {"signal_norm": 1.0},
        n_steps=50,
        steps={"train_loss": curve(0.0)[:50]},
    )
    comparison = compare([shallow, deep])
    assert comparison.table["step"].tolist() == [49, 49]
    assert kinds(comparison) == ["no degradation"]


def test_a_rising_validation_loss_under_a_falling_training_loss_is_overfitting(
    tmp_path: Path,
) -> None:
    val = curve(0.5) + 0.004 * TIME
    run = net(tmp_path / "r", 8, {"train_loss": curve(0.0), "val_loss": val})
    (observation,) = compare([run]).observations
    assert observation.kind == "overfitting"
    lowest = observation.evidence["step_of_lowest_val_loss"]
    assert abs(lowest - np.argmin(val)) <= 10


def test_a_training_loss_that_stays_high_with_validation_close_is_underfitting(
    tmp_path: Path,
) -> None:
    run = net(tmp_path / "r", 8, {"train_loss": curve(2.0), "val_loss": curve(2.05)})
    assert kinds(compare([run])) == ["underfitting"]


def test_a_good_fit_is_neither(tmp_path: Path) -> None:
    run = net(tmp_path / "r", 8, {"train_loss": curve(0.05), "val_loss": curve(0.1)})
    assert kinds(compare([run])) == []


def test_validation_logged_now_and_then_is_enough(tmp_path: Path) -> None:
    val = np.where(TIME % 20 == 0, curve(0.5) + 0.004 * TIME, np.nan)
    run = net(tmp_path / "r", 8, {"train_loss": curve(0.0), "val_loss": val})
    assert kinds(compare([run])) == ["overfitting"]


@pytest.mark.parametrize(
    ("name", "part", "measure"),
    [
        ("train_loss", "train", "loss"),
        ("loss", "train", "loss"),
        ("loss/train", "train", "loss"),
        ("trainLoss", "train", "loss"),
        ("val_loss", "val", "loss"),
        ("validation.loss", "val", "loss"),
        ("test_loss", "val", "loss"),
        ("train_error", "train", "error"),
        ("training_err", "train", "error"),
        ("train_accuracy", "train", "error"),
        ("valid_acc", "val", "error"),
        ("Accuracy/test", "val", "error"),
    ],
)
def test_losses_and_errors_are_told_by_their_names(
    tmp_path: Path, name: str, part: str, measure: str
) -> None:
    run = net(tmp_path / "r", 3, {name: np.full(STEPS, 0.25)})
    assert list(logged_curves(run)) == [(part, measure)]


def test_accuracies_in_percent_become_errors_in_shares(tmp_path: Path) -> None:
    run = net(tmp_path / "r", 3, {"train_accuracy": np.full(STEPS, 75.0)})
    assert logged_curves(run)["train", "error"].values[-1] == pytest.approx(0.25)


def test_what_was_not_logged_is_noted(tmp_path: Path) -> None:
    comparison = compare([net(tmp_path / "r", 3, {})])
    assert "no training loss" in comparison.notes[0]
    assert comparison.to_frame().empty


def test_no_runs_and_things_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="at least one run"):
        compare([])
    with pytest.raises(GradscopeError, match=r"gradscope\.load"):
        compare([tmp_path])  # type: ignore[list-item]


def test_of_many_runs_the_best_of_each_depth_are_compared(tmp_path: Path) -> None:
    runs = [
        net(tmp_path / f"{depth}-{number}", depth, {"train_loss": curve(last)})
        for depth, losses in ((8, (2.0, 0.02, 1.0)), (32, (1.9, 0.03, np.nan)))
        for number, last in enumerate(losses)
    ]
    (observation,) = compare(runs).observations
    assert observation.kind == "no degradation"
    assert observation.runs == ("8-1", "32-1")


def test_runs_that_lack_a_loss_are_named_in_one_note(tmp_path: Path) -> None:
    runs = [net(tmp_path / f"run-{number}", 4, {}) for number in range(7)]
    (note,) = compare(runs).notes
    assert note.startswith("run-0, run-1 ... run-5, run-6 (7 in all): no training loss")
