"""Targets: such as the output does not reach, or is far from at the start, told by the loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import WINDOW, Evidence
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.rules.output import FEWEST, falls_at_all, is_negative
from gradscope.diagnosis.speed import some_rows
from gradscope.wording import amount, number

TOO_SURE = 20.0
"""Cross-entropy at the start that is no guess's: twice that over the largest vocabularies."""

OF_A_MEAN = 1.5
"""Gradient at all logits up to which a cross-entropy is a mean over samples, or of one: each has
sqrt(2) at most, over their number."""

LARGE = 2.0
"""Size of logits from which on they can make such a loss: a sum over a sequence needs none."""

MOST = 1.01
"""Gradient at a logit, times their number, from which on targets are no share of 1."""

FAR = 100.0
"""Error over output from which on targets are of another size: a start near 0 has some 10."""


def targets(evidence: Evidence) -> Iterator[Finding]:
    """Find losses that no output can bring down, or that start far above a guess."""
    if (
        len(evidence.rows) == 0
        or evidence.loss is None
        or len(set(evidence.run.heads["loss"])) != 1
    ):
        return
    yield from _below_zero(evidence)
    yield from _starts_too_sure(evidence)
    yield from _far_away(evidence)


def _below_zero(evidence: Evidence) -> Iterator[Finding]:
    """Find a binary cross-entropy that is negative: its targets do not lie between 0 and 1.

    It is not what is added to the loss then: at a logit the gradient is 1 at most, over their
    number, and is more.
    """
    loss, last = str(evidence.run.heads["loss"].iloc[0]), _head(evidence)
    if loss != "binary_cross_entropy_with_logits" or last is None or not is_negative(evidence):
        return
    assert evidence.loss is not None
    signal, count = (evidence.median(c)[:, last] for c in ("signal_norm", "output_elements"))
    if not (signal * np.sqrt(count) > MOST).all():
        return
    least = float(np.nanmin(evidence.loss.raw))
    yield Finding(
        "output",
        "critical",
        f"The targets do not fit the loss: {loss} is {number(least)}, and for targets between 0 and"
        " 1 it is never below 0.",
        (evidence.names[last],),
        evidence.whole,
        {"lowest_loss": least},
        ("bring the targets into the range 0 to 1: a mask of 0 and 255 over 255",),
        Place(evidence.whole[0], last, "signal_norm", "loss"),
    )


def _starts_too_sure(evidence: Evidence) -> Iterator[Finding]:
    """Find logits that are large at the start: the loss is far above that of guessing.

    For C classes guessing has ln C, under 11 for any vocabulary. The gradient tells a mean over
    samples from a sum: at each logit it is 1 at most, over the number of samples.
    """
    assert evidence.loss is not None
    raw, last = evidence.loss.raw, _head(evidence)
    if evidence.run.heads["loss"].iloc[0] != "cross_entropy" or last is None:
        return
    if evidence.loss.steps[0] != evidence.step(evidence.rows[0]):
        return
    first = float(raw[0])
    signal = evidence.at("signal_norm", evidence.rows[:1])[0, last]
    size = float(evidence.sizes(evidence.rows[:1])[0, last])
    if not (TOO_SURE < first < np.inf and signal <= OF_A_MEAN and size > LARGE):
        return
    end = float(np.nanmedian(raw[-max(len(raw) // 5, 1) :]))
    yield Finding(
        "output",
        "warning" if end > TOO_SURE and len(raw) >= WINDOW else "information",
        f"The loss starts at {number(first, 3)}, far above that of a guess (ln of the number of"
        f" classes): the outputs of layer {evidence.labels[last]} are {number(size)} in size at"
        " the start, and the net is sure of what is wrong.",
        (evidence.names[last],),
        evidence.whole,
        {"first_loss": first, "last_loss": end},
        (
            "start the last layer, or the embedding that it shares, from smaller weights (std 0.02)"
            ", or scale the logits: they should be 1 in size or less at the start",
        ),
        Place(evidence.whole[0], last, "activation_norm", "forward"),
    )


def _far_away(evidence: Evidence) -> Iterator[Finding]:
    """Find squared errors that are many times as large as what the net gives, and stay.

    That the logged loss is the mean square of the error at the last layer shows in the gradient
    there: 2 / sqrt(n) of the error's root mean square.
    """
    assert evidence.loss is not None
    last = _head(evidence)
    if evidence.run.heads["loss"].iloc[0] != "mse_loss" or last is None or falls_at_all(evidence):
        return
    rows = some_rows(evidence)
    loss = evidence.steps[evidence.loss.column].to_numpy(dtype=np.float64)[rows]
    signal, count = (evidence.at(c, rows)[:, last] for c in ("signal_norm", "output_elements"))
    error = np.sqrt(np.where(loss > 0, loss, np.nan))
    is_mean = np.isclose(signal, 2 * error / np.sqrt(count), rtol=0.02)
    away = over_reference(error, evidence.sizes(rows)[:, last])
    known = np.isfinite(away) & is_mean
    if known.sum() < FEWEST or not (away[known] > FAR).all():
        return
    far = float(away[known][-1])
    yield Finding(
        "output",
        "warning",
        f"The targets lie far from what the net gives: after {len(evidence.rows)} steps the error"
        f" is {number(error[known][-1])} on average, {amount(far)} times the size of the output of"
        f" layer {evidence.labels[last]}, and the loss has hardly moved.",
        (evidence.names[last],),
        evidence.whole,
        {"error_over_output": far},
        (
            "normalise the targets: mean 0 and standard deviation 1, by numbers of the training"
            " data, and undo it for predictions",
        ),
        Place(evidence.whole[0], last, "activation_norm", "loss"),
    )


def _head(evidence: Evidence) -> int | None:
    """Return the last weight layer that ran, if there is one."""
    called = np.flatnonzero(evidence.run.was_read("activation_norm") & evidence.weights)
    return int(called[-1]) if len(called) else None
