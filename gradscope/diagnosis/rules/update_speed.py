"""Update speeds at which a training gets nowhere: far too large, or next to none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import WINDOW, Evidence
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.rules import remedies
from gradscope.diagnosis.speed import FAST, is_adaptive, typical_speed
from gradscope.wording import amount, number, setting

SLOW = 1e-6
"""Update speed of the fastest weight layer at which nothing is learnt, whatever the loss does."""

SLUGGISH = 3e-5
"""Update speed of the fastest weight layer that is too slow where the loss does not move."""

USUAL = 1e-3
"""Update speed up to which a training that gets nowhere may be too slow, if something slows it."""

STILL = 0.01
"""Share by which a loss has to fall to have moved."""

SUPERVISED = {
    "cross_entropy",
    "nll_loss",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
}
"""Losses of which there is one, and which fall in a training that gets somewhere."""

LONG, MOVED = 60, 0.03
"""Recorded steps within which a training gets somewhere, and the share by which its loss does."""

FELL = 0.8
"""Share of the loss at first below which it fell, whatever the steps were."""

SHRUNK = 2 / 3
"""Share of the weights that is left after the first steps where decay, not the loss, moves them:
trainings keep .8 of it or more."""

TOWARDS_ZERO = 0.2
"""Share of the steps that goes straight towards 0 then: across many weights chance makes none."""

ENDED = 1e-2
"""Gradient that is left of the largest at first where a training has found what it can."""

OVERCLIPPED = 1e-2
"""Share of the gradient that clipping leaves where it, and not the rate, is what is too small."""


def update_speed(evidence: Evidence) -> Iterator[Finding]:
    """Find steps that are too large or too small for any training.

    Stanford CS231n, Neural Networks part 3, calls ratios of updates to weights around 1e-3 usual;
    trainings that go well range from 1e-5 to some 1e-2.
    """
    if len(evidence.rows) < WINDOW:
        return
    yield from _decayed(evidence)
    speed = typical_speed(evidence)
    known = np.isfinite(speed) & (speed > 0)
    if not known.any():
        return
    middle, most = float(np.median(speed[known])), float(speed[known].max())
    weights = np.flatnonzero(evidence.weights)
    steps = evidence.whole
    if middle > FAST and not (falls(evidence) or _fell_at_once(evidence)):
        layer = int(weights[known][speed[known].argmax()])
        yield Finding(
            "update-speed",
            "warning",
            f"A step changes half of the weight layers by {middle:.0%} of their size or more: what"
            " one step learns, the next one overwrites.",
            tuple(evidence.names[i] for i in weights[np.nan_to_num(speed) > FAST]),
            steps,
            {"update_ratio": middle},
            (remedies.lower_rate(evidence),),
            Place(steps[0], layer, "update_ratio", "update"),
        )
        return
    rises, idle = _warms_up(evidence), gets_nowhere(evidence)
    clipped = _left_by_clipping(evidence) < OVERCLIPPED and not is_adaptive(evidence)
    slow = most < SLOW or (most < SLUGGISH and (stands_still(evidence) or idle))
    slow |= most < USUAL and idle and (rises or clipped)
    if slow and not _is_meant(evidence) and (idle or not rises):
        layer = int(weights[known][speed[known].argmax()])
        cause, advice = _against_slow(evidence, most)
        if rises:
            count, rate = len(evidence.rows), float(evidence.steps["learning_rate"].iloc[-1])
            cause = (
                f"The learning rate still rises, and is {setting(rate, 2)} after {count} recorded"
                " steps."
            )
            advice = "let the warm-up be shorter: some percent of the training's steps"
        yield Finding(
            "update-speed",
            "information" if rises else "warning",
            f"A step changes even the fastest layer, {evidence.labels[layer]}, by {number(most)} of"
            f" its size only: at that speed nothing is learnt. {cause}".rstrip(),
            tuple(evidence.names[i] for i in weights[known]),
            steps,
            {"update_ratio": most},
            (advice,),
            Place(steps[0], layer, "update_ratio", "update"),
        )


def _is_meant(evidence: Evidence) -> bool:
    """Whether steps are small as the training is at its end."""
    norm = evidence.steps["grad_norm"].to_numpy(dtype=np.float64)[evidence.rows]
    ended = np.median(norm[-(WINDOW // 2) :]) < ENDED * np.max(norm[: WINDOW // 2])
    return bool(ended or falls(evidence))


def _warms_up(evidence: Evidence) -> bool:
    """Whether the learning rate is still on its way up."""
    rate = evidence.steps["learning_rate"].to_numpy(dtype=np.float64)[evidence.rows]
    return bool(rate[-1] == np.nanmax(rate, initial=-np.inf) and rate[-1] > 2 * rate[0])


def _decayed(evidence: Evidence) -> Iterator[Finding]:
    """Find weights of which the first steps take a third or more, by going towards zero."""
    if evidence.run.facts.get("weight_decay") == 0:  # then it is the loss that moves them there
        return
    rows = evidence.rows[: WINDOW + 1]
    weight, update = (
        evidence.at(c, rows)[:, evidence.weights] for c in ("weight_norm", "update_norm")
    )
    left = over_reference(weight[-1], weight[0])
    with np.errstate(invalid="ignore"):
        lost = np.maximum(-np.diff(weight, axis=0), 0).sum(axis=0)
    straight = over_reference(lost, np.nansum(update[:-1], axis=0))
    known = np.isfinite(left) & np.isfinite(straight)
    if not known.any():
        return
    share, towards = float(np.median(left[known])), float(np.median(straight[known]))
    if share > SHRUNK or towards < TOWARDS_ZERO:
        return
    each = 1 - share ** (1 / (len(rows) - 1))
    first, last = evidence.step(rows[0]), evidence.step(rows[-1])
    rate = float(evidence.steps["learning_rate"].iloc[rows[0]])
    number = f", {amount(each / rate)} or more by what they lose" if rate > 0 else ""
    yield Finding(
        "update-speed",
        "warning",
        f"The weights shrink to {share:.0%} of their size within {len(rows) - 1} steps, by"
        f" {each:.1%} a step: that is weight decay, not the loss.",
        tuple(evidence.names[i] for i in np.flatnonzero(evidence.weights)[known]),
        (first, last),
        {"weights_left": share, "towards_zero": towards},
        (f"lower the weight decay{number}: 0.01 to 0.1 is usual",),
        Place(first, int(np.flatnonzero(evidence.weights)[known][0]), "weight_norm", "update"),
    )


def falls(evidence: Evidence) -> bool:
    """Whether the logged loss ends well below its first third, and below its first steps."""
    loss = evidence.loss
    if loss is None or len(loss.raw) < WINDOW:
        return False
    third = len(loss.raw) // 3
    first, last = np.nanmedian(loss.raw[:third]), np.nanmedian(loss.raw[-third:])
    return bool(last < FELL * first and last < np.nanmedian(loss.raw[:3]))


def _fell_at_once(evidence: Evidence) -> bool:
    """Whether the logged loss is well below its first, as where a rate is large and right."""
    loss = evidence.loss
    values = np.zeros(0) if loss is None else loss.raw[np.isfinite(loss.raw)]
    if len(values) < WINDOW:
        return False
    return bool(0 < np.median(values[-(len(values) // 3) :]) < FELL * values[0])


def stands_still(evidence: Evidence) -> bool:
    """Whether the logged loss, smoothed, is at the end what it was at first."""
    return _has_moved_by(evidence) < STILL


def _has_moved_by(evidence: Evidence) -> float:
    """Return the share by which the logged loss has fallen, last third over first; NaN unknown."""
    loss = evidence.loss
    if loss is None or len(loss.raw) < WINDOW:
        return np.nan
    third = len(loss.raw) // 3
    first, last = np.nanmedian(loss.raw[:third]), np.nanmedian(loss.raw[-third:])
    return float(1 - last / first) if first > 0 else float(last < first)


def gets_nowhere(evidence: Evidence) -> bool:
    """Whether the logged loss has not moved over a time in which most trainings get somewhere.

    Of a net with one loss of the usual ones: those of agents and of two players need not fall.
    """
    losses = list(evidence.run.heads["loss"])
    usual = len(losses) == 1 and losses[0] in SUPERVISED
    return usual and len(evidence.rows) >= LONG and _has_moved_by(evidence) < MOVED


def _left_by_clipping(evidence: Evidence) -> float:
    """Return the share of the gradient that the optimizer gets, the median over steps."""
    steps = evidence.steps.iloc[evidence.rows]
    whole, left = (
        steps[column].to_numpy(dtype=np.float64) for column in ("grad_norm", "clipped_grad_norm")
    )
    kept = over_reference(left, whole)
    kept = kept[np.isfinite(kept)]
    return float(np.median(kept)) if len(kept) else np.nan


def _against_slow(evidence: Evidence, most: float) -> tuple[str, str]:
    steps = evidence.steps.iloc[evidence.rows]
    kept = _left_by_clipping(evidence)
    if kept == 0:
        return (
            "What the backward makes is gone before the optimizer's step: it gets gradients of"
            " exactly 0, and moves weights by their decay alone.",
            remedies.KEEP_GRADIENTS,
        )
    if kept < OVERCLIPPED:
        less = amount(1 / max(kept, 1e-300))
        left = steps["clipped_grad_norm"].to_numpy(dtype=np.float64)
        return (
            f"Clipping leaves {less} times less of the gradient than there is.",
            remedies.clip(evidence) + f", instead of {number(np.median(left[np.isfinite(left)]))}",
        )
    factor = 10.0 ** np.floor(np.log10(1e-3 / most))
    rate = steps["learning_rate"].to_numpy(dtype=np.float64)
    rate = rate[rate > 0]
    if len(rate):
        middle = float(np.median(rate))
        much = f"from {setting(middle, 2)} to as much as {setting(middle * factor, 2)}"
        return "", f"raise the learning rate, {much}"
    return "", f"raise the learning rate, by a factor of up to {amount(factor)}"
