"""Unstable: a loss that rises or jumps, and the layer in which that began."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence, column_medians
from gradscope.diagnosis.findings import Finding, Place, Severity
from gradscope.diagnosis.rules import remedies
from gradscope.diagnosis.rules.output import falls_by_a_tenth
from gradscope.diagnosis.rules.update_speed import LONG, gets_nowhere
from gradscope.diagnosis.signal_path import Floats
from gradscope.diagnosis.speed import FAST, started
from gradscope.wording import amount, number

ROSE = 2.0
"""Factor of the loss at the end over the first that is no noise."""

STAYS = 0.5
"""Share of the highest loss above which it has not begun to come down again: with BatchNorm it
does, though first steps may change weights by many times their size."""

PEAK = 3.0
"""Factor of the highest loss over the first."""

OVERWRITTEN = 1.0
"""Change of a weight layer over its size by one step that leaves little of what it was."""

NOT_BETTER = 0.9
"""Loss at the end over the first from which on nothing came of what a step overwrote."""

JUMP = 5.0
"""Factor over the median of the steps before that is a jump of the loss; of the gradient, twice."""

EARLIER = 20
"""Recorded steps that a step is compared with, fewer than a third of them are too few."""


def unstable(evidence: Evidence) -> Iterator[Finding]:
    """Find a loss that rose under steps too large for the weights, and the first spike.

    A loss may rise in health, a generator's or a critic's: it is said where the steps that were
    made before the rise changed a weight layer by a tenth of its size or more; or of the one
    cross-entropy of a net, which climbs under small steps where these go the wrong way.
    """
    rise = _rise(evidence) or _climb(evidence)
    if rise is not None:
        yield rise
    else:
        yield from _spike(evidence)


def no_progress(evidence: Evidence) -> Iterator[Finding]:
    """Tell of a loss that stands still though gradients arrive and weights move."""
    loss = evidence.loss
    if loss is None or not gets_nowhere(evidence):
        return
    third = len(loss.raw) // 3
    first, last = (float(np.nanmedian(part)) for part in (loss.raw[:third], loss.raw[-third:]))
    yield Finding(
        "no-progress",
        "information",
        f"The loss stands still: {number(first, 3)} in the first third of {len(loss.raw)} steps,"
        f" {number(last, 3)} in the last. Nothing in the gradients says why: they arrive, and the"
        " weights move.",
        (),
        evidence.whole,
        {"first_loss": first, "last_loss": last},
        (
            "check what the net is asked: that inputs and targets are of the same sample after"
            " shuffling, that masks leave what counts, that no view() mixes axes for a transpose()",
            "train on one batch alone: where its loss falls to next to nothing, look at the data,"
            " else at the model and the learning rate (ten times more, ten times less)",
        ),
        Place(evidence.whole[0], None, "signal_norm", "loss"),
    )


def _rise(evidence: Evidence) -> Finding | None:
    loss = evidence.loss
    if loss is None or len(evidence.rows) < 3:
        return None
    raw, steps = loss.raw, loss.steps
    known = np.isfinite(raw)
    if known.sum() < 3:
        return None
    raw, steps = raw[known], steps[known]
    first, end = float(raw[0]), float(np.median(raw[-max(len(raw) // 5, 1) :]))
    peak = int(raw.argmax())
    worst = float(raw[peak])
    if not (raw.min() > 0 and worst > PEAK * first):  # below 0 it is no distance from a goal
        return None
    numbers = evidence.steps["step"].to_numpy()
    rows = evidence.rows[numbers[evidence.rows] < steps[peak]][:64]
    if len(rows) == 0:
        return None
    speed = over_reference(evidence.at("update_norm", rows), evidence.at("weight_norm", rows))
    speed[:, ~started(evidence)] = np.nan
    fast = np.nan_to_num(speed) > FAST
    if not fast.any():
        return None
    row = int(np.flatnonzero(fast.any(axis=1))[0])
    layer = int(np.nanargmax(speed[row]))
    rising = peak >= 0.75 * len(raw)
    most = float(speed[row, layer])
    stays = end > ROSE * first and (rising or end > STAYS * worst)
    still_falls = falls_by_a_tenth(raw[len(raw) // 2 :])
    nowhere = len(raw) >= LONG and end > NOT_BETTER * first and not still_falls
    stays |= nowhere and most > OVERWRITTEN
    stays &= len(evidence.rows) >= EARLIER or len(evidence.steps) > len(evidence.rows)
    severity: Severity = "critical" if stays else "information"
    words = f"rose from {number(first, 3)} to {number(worst, 3)} at step {steps[peak]}"
    words += f", and is {number(end, 3)} at the end" if steps[peak] != steps[-1] else ""
    return Finding(
        "unstable",
        severity,
        f"The loss {words}: step {numbers[rows[row]]} changed the weights of layer"
        f" {evidence.labels[layer]} by {remedies.of_size(most)}.",
        (evidence.names[layer],),
        (int(numbers[rows[row]]), int(steps[-1] if stays else steps[peak])),
        {"first_loss": first, "highest_loss": worst, "last_loss": end, "update_ratio": most},
        (remedies.lower_rate(evidence), remedies.clip(evidence, int(steps[peak]))),
        Place(int(numbers[rows[row]]), layer, "update_ratio", "update"),
    )


def _climb(evidence: Evidence) -> Finding | None:
    loss, heads = evidence.loss, evidence.run.heads
    if loss is None or list(heads["loss"]) != ["cross_entropy"]:
        return None
    raw = loss.raw[np.isfinite(loss.raw)]
    if len(raw) < EARLIER:
        return None
    quarters = np.array_split(raw, 4)
    middles = [float(np.median(some)) for some in quarters]
    climbs = bool((np.diff(middles) > 0).all()) and quarters[3].min() > quarters[0].max()
    first = float(np.median(raw[:3]))
    if not (climbs and middles[3] > PEAK * first):
        return None
    end = float(np.median(raw[-3:]))
    return Finding(
        "unstable",
        "critical",
        f"The loss climbs from {number(first, 3)} to {number(end, 3)}, quarter by quarter, though"
        " no step is large: the steps go up the slope, not down.",
        (),
        evidence.whole,
        {"first_loss": first, "last_loss": end},
        (
            "check the sign: of the loss, of maximize=True, of the update in an optimizer of your"
            " own, which has to subtract",
            "log the loss that is trained: another one may rise while it falls",
        ),
        Place(evidence.whole[0], None, loss.column, "loss"),
    )


def _spike(evidence: Evidence) -> Iterator[Finding]:
    """Find the highest jump of the gradient's norm beside one of the loss, and who went first."""
    rows = evidence.rows
    if len(rows) <= EARLIER // 3:
        return
    norms = evidence.steps["grad_norm"].to_numpy(dtype=np.float64)[rows]
    jump = _jumps(norms)
    if evidence.loss is not None:
        raw = evidence.steps[evidence.loss.column].to_numpy(dtype=np.float64)[rows]
        jump = np.where((_jumps(raw) > JUMP) & (raw > np.nanmax(raw[:1], initial=-np.inf)), jump, 0)
    jump[~np.isfinite(jump)] = 0
    at = int(jump.argmax())
    if jump[at] <= 2 * JUMP:
        return
    layer, column, words = _went_first(evidence, at)
    step = evidence.step(rows[at])
    after = norms[at + 1 : at + 4]
    passed = bool((after < norms[at] / JUMP).any())
    yield Finding(
        "unstable",
        "information" if passed or evidence.loss is None else "warning",
        f"The gradient's norm jumped to {number(norms[at])} at step {step}, {amount(jump[at])}"
        f" times its median{', for that step alone' if passed else ''}. {words}",
        () if layer is None else (evidence.names[layer],),
        (step, step),
        {"grad_norm": float(norms[at]), "over_median": float(jump[at])},
        (
            remedies.clip(evidence, step),
            "look at the batch of this step"
            if column == "activation_norm"
            else "warm the learning rate up, or lower it",
        ),
        Place(step, layer, column, "forward" if column == "activation_norm" else "backward"),
    )


def _jumps(values: Floats) -> Floats:
    """Return each value over the median of those before it, 0 where there are too few."""
    found = np.zeros(len(values))
    for i in range(EARLIER // 3, len(values)):
        before = values[max(i - EARLIER, 0) : i]
        before = before[np.isfinite(before)]
        if len(before) >= EARLIER // 3:
            middle = float(np.median(before))
            found[i] = values[i] / middle if middle > 0 else 0
    return found


def _went_first(evidence: Evidence, at: int) -> tuple[int | None, str, str]:
    """Return the layer in which a spike began, the metric that shows it, and that in words."""
    rows = evidence.rows[max(at - EARLIER, 0) : at + 1]
    for column, order, what in (
        ("activation_norm", 1, "output"),
        ("signal_norm", -1, "gradient signal"),
        ("grad_norm", -1, "weights' gradient"),
    ):
        values = evidence.at(column, rows)
        grown = over_reference(values[-1], column_medians(values[:-1]))
        layers = np.flatnonzero(np.nan_to_num(grown) > 3)
        if len(layers):
            layer = int(layers[::order][0])
            return (
                layer,
                column,
                f"It began in the {what} of layer {evidence.labels[layer]}, which grew"
                f" {amount(float(grown[layer]))} times.",
            )
    return None, "grad_norm", "No single layer stands out."
