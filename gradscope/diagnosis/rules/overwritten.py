"""Overwritten: weights that something else than the optimizer writes between its steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.diagnosis.evidence import WINDOW, Evidence, Mask, column_medians
from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.rules.marks import moved_place, names_of
from gradscope.diagnosis.rules.remedies import of_size
from gradscope.diagnosis.rules.update_speed import falls, stands_still
from gradscope.diagnosis.signal_path import Floats
from gradscope.wording import number

MORE = 1.05
"""Change of a norm over the size of the step, which it cannot exceed."""

MOST = 0.5
"""Share of the steps at which it does."""

FEWEST = 6
"""Pairs of consecutive steps that were read."""

STANDS = 0.1
"""Change of a norm over what the step adds to it at least where it stands across the weights,
|dW|^2 / 2|W|; the steps of trainings add .7 times as much or more."""

MOVES = 1e-3
"""Size of a step over that of the weights, above which rounding hides no change of the norm."""


def overwritten(evidence: Evidence) -> Iterator[Finding]:
    """Find weights that change by more than their steps, and such as stay where they were.

    A norm changes by at most the size of the step, by the triangle inequality. Where it changes by
    more, something else has written the weights; where it does not change at all at steps that do
    move them, what they did was undone. Weights that are projected stand likewise, but with them
    the loss falls: where it does, or is not known, the latter is not said.
    """
    rows = evidence.rows[:: max(len(evidence.rows) // 256, 1)]
    after = rows[np.isin(rows + 1, evidence.rows)]
    number = evidence.steps["step"].to_numpy()
    after = after[number[np.minimum(after + 1, len(number) - 1)] == number[after] + 1]
    if len(after) < FEWEST:
        return
    weight, update = (evidence.at(c, after) for c in ("weight_norm", "update_norm"))
    with np.errstate(invalid="ignore"):
        changed = np.abs(evidence.at("weight_norm", after + 1) - weight)
    known = np.isfinite(changed) & (update > 0) & evidence.weights
    more = known & (changed > MORE * update + 1e-5 * weight)
    often = more.sum(axis=0) > np.maximum(MOST * known.sum(axis=0), FEWEST * MOST)
    if often.any():
        yield _written(evidence, often, changed, update)
        return
    known &= update > MOVES * weight
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(known, changed / (update**2 / (2 * weight)), np.nan)
    measured = known.sum(axis=0) >= FEWEST
    stands = measured & (np.nan_to_num(column_medians(share), nan=1) < STANDS)
    if len(evidence.rows) < WINDOW or not stands_still(evidence):
        return
    if stands.sum() > measured.sum() / 2:
        yield _undone(evidence, stands, update, weight)


def _written(evidence: Evidence, layers: Mask, changed: Floats, update: Floats) -> Finding:
    with np.errstate(divide="ignore", invalid="ignore"):
        times = float(np.nanmedian((changed / update)[:, layers]))
    return Finding(
        "not-updated",
        "warning" if evidence.loss is None or falls(evidence) else "critical",
        f"Between the optimizer's steps something else writes the weights of"
        f" {evidence.named(layers)}: from one step to the next they change {number(times)} times as"
        " much as the step itself did.",
        names_of(evidence, layers),
        evidence.whole,
        {"change_over_step": times},
        (
            "look for what writes parameters in the loop: an initialisation that runs again, a"
            " checkpoint that is loaded, an average that is copied over them",
        ),
        moved_place(evidence, layers, "weight_norm"),
    )


def _undone(evidence: Evidence, layers: Mask, update: Floats, weight: Floats) -> Finding:
    with np.errstate(divide="ignore", invalid="ignore"):
        speed = float(np.nanmedian((update / weight)[:, layers]))
    return Finding(
        "not-updated",
        "critical",
        f"The optimizer moves the weights of {evidence.named(layers)} by {of_size(speed)} at every"
        " step, and by the next one their norms are what they were, as if nothing had been done;"
        " nor does the loss change.",
        names_of(evidence, layers),
        evidence.whole,
        {"update_ratio": speed},
        (
            "look for what is copied over the trained weights after the step: their running"
            " average belongs into a copy, a checkpoint is loaded once; where weights are projected"
            " to a fixed norm, that is why they stand",
        ),
        moved_place(evidence, layers, "weight_norm"),
    )
