"""Update speeds of a run: which optimizer made them, and whether its steps are large."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.signal_path import Floats, log10

FAST = 0.1
"""Update speed of a weight layer, share of its size a step, that is too large for any training."""

SMALL = 0.1
"""Size of a layer's weights over those of others, below which it started at next to zero: whatever
it becomes is many times its size."""

ALIKE = 0.15
"""Decades between layers up to which updates are alike, where no gradient is known."""

LOOKED_AT = 64
"""Recorded steps that are looked at one by one, spread over the run."""


def some_rows(evidence: Evidence, most: int = LOOKED_AT) -> NDArray[np.int64]:
    """Return rows of `steps`, spread over those that were read, first and last included."""
    places = np.linspace(0, len(evidence.rows) - 1, min(len(evidence.rows), most))
    return np.asarray(evidence.rows[np.unique(places.round().astype(int))])


def is_adaptive(evidence: Evidence) -> bool:
    """Whether the optimizer scales the steps of each weight or layer by itself, as Adam does.

    Then updates are alike from layer to layer, for each weight or as a share of the weights; those
    of SGD, with momentum or without, are as different as the gradients, and alike over these.
    """
    rows = some_rows(evidence)
    if len(rows) == 0:
        return False
    update, grad, weight = (
        evidence.at(column, rows)[:, evidence.weights]
        for column in ("update_norm", "clipped_grad_norm", "weight_norm")
    )
    elements = evidence.layers["parameters"].to_numpy(dtype=np.float64)[evidence.weights]
    alike = min(_spread(update, np.sqrt(elements)[None]), _spread(update, weight))
    over_gradient = _spread(update, grad)
    return bool(alike < (ALIKE if np.isnan(over_gradient) else over_gradient / 2))


def _spread(above: Floats, below: Floats) -> float:
    """Return the decades between layers of a quotient, the middle over the steps; NaN unread."""
    quotient = log10(over_reference(above, np.broadcast_to(below, above.shape)))
    known = [row[np.isfinite(row)] for row in quotient]
    spreads = [float(np.std(row)) for row in known if len(row) > 1]
    return float(np.median(spreads)) if spreads else np.nan


def typical_speed(evidence: Evidence) -> Floats:
    """Return each weight layer's update speed, the median over the run, NaN where unread."""
    speed = evidence.speed[:, evidence.weights]
    if len(speed) == 0:
        return np.full(int(evidence.weights.sum()), np.nan)
    return np.array(
        [np.median(s[~np.isnan(s)]) if (~np.isnan(s)).any() else np.nan for s in speed.T]
    )


def is_fast(evidence: Evidence) -> bool:
    """Whether steps moved a weight layer by a tenth of its size or more, at any time of the run.

    Layers that start at zero, or next to it, are left out: see `started`.
    """
    if len(evidence.rows) == 0:
        return False
    update, weight = evidence.highest("update_norm"), evidence.median("weight_norm")
    speed = over_reference(update, weight)
    return bool((speed[:, started(evidence)] > FAST).any())


def started(evidence: Evidence) -> Mask:
    """Return which weight layers did not start at zero or at next to nothing beside the others."""
    norm = evidence.at("weight_norm", evidence.rows[:1])[0]
    size = over_reference(norm, np.sqrt(evidence.layers["parameters"].to_numpy(dtype=np.float64)))
    known = size[evidence.weights & (norm > 0)]
    usual = float(np.median(known)) if len(known) else 0.0
    return np.asarray(evidence.weights & (np.nan_to_num(size) > SMALL * usual))
