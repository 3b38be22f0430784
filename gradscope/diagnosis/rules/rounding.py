"""Steps that half-precision weights are too coarse to hold: most of what is learnt is lost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.rules.marks import moved_place, names_of
from gradscope.diagnosis.rules.update_speed import falls
from gradscope.wording import number

LOOKS = 2
"""The latest ones, at all of which few weights have to move."""

FEW = 0.25
"""Share of the weights below which it is few that a step changes."""


def lost_in_rounding(evidence: Evidence) -> Iterator[Finding]:
    """Find half-precision weights of which a step changes few, though they have a gradient.

    For information where the loss falls all the same, or where it is a lesser part of the net.
    Weights that never move at all are `not-updated`.
    """
    read, rows = evidence.looks_and_rows("moved_fraction")
    steps = evidence.steps["learning_rate"].to_numpy(dtype=np.float64)[rows] != 0
    read, rows = read[steps], rows[steps]  # at a learning rate of 0 there is nothing to lose
    if len(rows) < LOOKS:
        return
    share = read[-LOOKS:].max(axis=0)
    few = (np.nan_to_num(read).max(axis=0) > 0) & (share < FEW)
    if not few.any():
        return
    sizes = evidence.layers["parameters"].to_numpy(dtype=np.float64)
    known = ~np.isnan(share)
    of_all = float(np.average(share[known], weights=sizes[known]))
    most = sizes[few].sum() > sizes.sum() / 2 or of_all < FEW
    left = float(np.average(share[few], weights=sizes[few]))
    yield Finding(
        "update-speed",
        "warning" if most and not falls(evidence) else "information",
        f"A step changes {number(100 * left)}% of the weights of {evidence.named(few)} that have a"
        " gradient. The steps of the others are lost in rounding: in bfloat16 those below 0.4% of a"
        " weight are, in float16 those below 0.05%.",
        names_of(evidence, few),
        (evidence.step(int(rows[0])), evidence.step(evidence.rows[-1])),
        {"moved_fraction": left},
        (
            "keep the weights in float32 and train under torch.autocast",
            "use an optimizer that keeps what is lost: by a copy of the weights in float32, Kahan"
            " summation, or stochastic rounding",
        ),
        moved_place(evidence, few, "moved_fraction"),
    )
