"""The losses and errors that a training logged, told by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.runs.run import Run

Floats = NDArray[np.float64]

_TRAINING = {"train", "training", "trn"}
_VALIDATION = {"val", "valid", "validation", "test", "eval", "dev", "holdout"}
_MEASURES = {
    "loss": "loss",
    "nll": "loss",
    "ce": "loss",
    "xent": "loss",
    "mse": "loss",
    "perplexity": "loss",
    "error": "error",
    "err": "error",
    "acc": "accuracy",
    "accuracy": "accuracy",
    "acc1": "accuracy",
    "top1": "accuracy",
}


@dataclass(frozen=True)
class Curve:
    """A logged scalar over the steps at which it was logged.

    Attributes
    ----------
    column : str
    steps : int64 (n,)
    values : float64 (n,)
        Smoothed by a running median.
    raw : float64 (n,)
        As it was logged.
    """

    column: str
    steps: NDArray[np.int64]
    values: Floats
    raw: Floats

    def at(self, step: int) -> float:
        """Return the value at the last logged step up to `step`, NaN before the first."""
        index = int(np.searchsorted(self.steps, step, side="right")) - 1
        return float(self.values[index]) if index >= 0 else np.nan


def logged_curves(run: Run) -> dict[tuple[str, str], Curve]:
    """Return the losses and errors among a run's logged scalars, told by their names.

    Returns
    -------
    dict of (`train` or `val`, `loss` or `error`) to Curve
        An accuracy is turned into an error; percentages into shares.
    """
    steps = run.steps
    curves: dict[tuple[str, str], Curve] = {}
    for column in steps.columns:
        meaning = _meaning(str(column))
        if meaning is None:
            continue
        part, measure = meaning
        logged = steps[column].to_numpy(dtype=np.float64)
        rows = np.flatnonzero(~np.isnan(logged))
        if len(rows) == 0:
            continue
        values = logged[rows]
        if measure != "loss":
            values = values / 100 if np.nanmax(values) > 1.5 else values
            values = 1 - values if measure == "accuracy" else values
            measure = "error"
        window = min(max(len(values) // 20, 1), 20)
        smooth = pd.Series(values).rolling(window, min_periods=1).median().to_numpy()
        if (part, measure) not in curves:
            number = steps["step"].to_numpy(dtype=np.int64)[rows]
            curves[part, measure] = Curve(str(column), number, smooth, values)
    return curves


def nan_to_the_end(
    recorded: NDArray[np.int64], logged: NDArray[np.int64]
) -> tuple[int, int] | None:
    """Return the first and last step of those at whose end a scalar is NaN for good, None if not.

    NaN that is logged reads as what was not logged.

    Parameters
    ----------
    recorded : array, shape (n,)
        All steps.
    logged : array, shape (m,)
        Those at which it was logged, and not NaN.
    """
    if not len(logged):
        return None
    after = recorded[recorded > logged[-1]]
    usual = int(np.diff(np.append(-1, np.searchsorted(recorded, logged))).max())
    return (int(after[0]), int(after[-1])) if len(after) > max(usual, 2) else None


def _meaning(column: str) -> tuple[str, str] | None:
    """Return what a logged scalar is, (`train` or `val`, measure), or None if neither."""
    if column in ("loss_scale", "grad_norm", "clipped_grad_norm"):
        return None
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    words = re.findall(r"[a-z]+\d*", spaced.lower())
    measures = [_MEASURES[word] for word in words if word in _MEASURES]
    if not measures:
        return None
    if any(word in _VALIDATION for word in words):
        return "val", measures[-1]
    if any(word in _TRAINING for word in words) or len(words) == 1:
        return "train", measures[-1]
    return None
