"""What rules make of marked windows and layers: names, how grave it is, and where to look first."""

from __future__ import annotations

from typing import Literal

import numpy as np

from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.findings import Place, Severity


def names_of(evidence: Evidence, layers: Mask) -> tuple[str, ...]:
    """Return the names of the marked layers, (layers,)."""
    return tuple(evidence.names[i] for i in np.flatnonzero(layers))


def severity_of(found: Mask) -> Severity:
    """Return how bad a fault is, marked in (windows, layers): worse if in the last window."""
    return "critical" if found[-1].any() else "warning"


def first_place(
    evidence: Evidence,
    found: Mask,
    column: str,
    phase: Literal["forward", "backward", "update", "loss"],
) -> Place:
    """Return the first layer in the first window of those marked in (windows, layers)."""
    window = int(np.flatnonzero(found.any(axis=1))[0])
    layer = int(np.flatnonzero(found[window])[0])
    return Place(evidence.step(evidence.windows[window][0]), layer, column, phase)


def moved_place(evidence: Evidence, layers: Mask, column: str) -> Place:
    """Return the first of the marked layers, (layers,), in the first step that was read."""
    return Place(evidence.whole[0], int(np.flatnonzero(layers)[0]), column, "update")


def any_behind(found: Mask) -> Mask:
    """Return for each layer whether one after it was marked, (windows, layers)."""
    behind = np.zeros_like(found)
    behind[:, :-1] = np.logical_or.accumulate(found[:, ::-1], axis=1)[:, ::-1][:, 1:]
    return behind
