"""Output: a last activation that does not fit the loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence, column_medians
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.signal_path import Floats
from gradscope.diagnosis.speed import some_rows
from gradscope.wording import number

TWICE = 1.3
"""The gradient at a probability over the loss: e at least where the loss takes its logarithm, and
1.2 at most where the loss takes it for a logit, and normalises once more."""

WIDTHS = {"tanh": 2.0, "softsign": 2.0, "hardtanh": 2.0, "sigmoid": 1.0, "hardsigmoid": 1.0}
"""Bounded activations, and how far apart their largest and smallest values are."""

OUT_OF_REACH = 1.5
"""Loss over gradient, in widths of the output: for squares half, for absolutes all of how far the
targets are away, so at most 1 where they can be reached."""

FROM_START = 0.75
"""Saturated share of an output at the first step that is no success of the training."""

ALL = 0.95
"""Saturated share of an output that lies at the end of its range."""

BY_DISTANCE = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
"""Losses that ask an output for a number, not for a chance."""

FELL = 0.1
"""Share by which the loss has to fall for an output to be on its way."""

GETS_THROUGH = 0.3
"""Gradient before a saturated output over the loss, for one element, from which on it gets through:
a loss that takes logarithms makes up for the slope, and where classes are rare 1 is usual."""

FEWEST = 5

MISFITS = {
    "cross_entropy": ("softmax", "sigmoid", "relu"),
    "binary_cross_entropy_with_logits": ("softmax", "sigmoid", "relu"),
    "nll_loss": ("softmax", "sigmoid"),
}
"""Losses, and functions that should not come before them."""


def output(evidence: Evidence) -> Iterator[Finding]:
    """Find a softmax or sigmoid that the loss applies again, and outputs out of reach or stuck.

    What tells them apart is the gradient at the output beside the loss, for one element or sample:
    no scale of the loss moves that.
    """
    seen = list(_twice_seen(evidence))
    yield from seen
    layer = _last_activation(evidence)
    if layer is None or seen:
        return
    kind = evidence.activations[layer]
    rows = some_rows(evidence)
    over_loss = _gradient_over_loss(evidence, layer, kind, rows)
    known = over_loss[np.isfinite(over_loss)]
    steps = evidence.whole
    place = Place(steps[0], layer, "signal_norm", "loss")
    label = evidence.labels[layer]
    names = (evidence.names[layer],)
    unseen = evidence.run.heads.empty
    if unseen and kind in ("softmax", "sigmoid") and len(known) and np.median(known) < TWICE:
        ratio = float(np.median(known))
        if kind == "softmax" or ratio > 0.2:
            fit = "cross_entropy" if kind == "softmax" else "binary_cross_entropy_with_logits"
            yield Finding(
                "output",
                "critical",
                f"The output passes {kind} twice: layer {label} gives probabilities, and the loss"
                f" takes them for logits. The gradient there is {number(ratio)} of the loss, where"
                " a logarithm makes it 2.7 or more.",
                names,
                steps,
                {"gradient_over_loss": ratio},
                (
                    f"remove the {kind} from the model: {fit} takes logits",
                    "or keep it, and use the loss that takes probabilities"
                    + (" (nll_loss of their logarithm)" if kind == "softmax" else " (BCELoss)"),
                ),
                place,
            )
            return
    yield from _out_of_reach(evidence, layer, kind, known, place)
    yield from _stuck(evidence, layer, kind, place)


def _twice_seen(evidence: Evidence) -> Iterator[Finding]:
    """Find losses that were given what they make themselves, as the graph has shown."""
    if len(evidence.rows) == 0:
        return
    steps = evidence.whole
    last = int(np.flatnonzero(evidence.weights)[-1]) if evidence.weights.any() else None
    for loss, after in evidence.run.heads[["loss", "after"]].itertuples(index=False):
        if after == "broadcast":
            yield _broadcast(evidence, last, steps)
        bare = loss == "nll_loss" and not after and is_negative(evidence)
        if not bare and after not in MISFITS.get(loss, ()):
            continue
        if bare:
            words = "nll_loss takes logarithms of probabilities, and makes no negative loss of them"
            advice = "use cross_entropy on the logits, or log_softmax before nll_loss"
        elif loss == "nll_loss":
            words = f"nll_loss takes logarithms, and is given what {after} makes"
            advice = "use cross_entropy on the logits, or log_softmax before nll_loss"
        elif after == "relu":
            words = f"{loss} takes logits, and relu cuts off all that are below 0"
            advice = "remove the relu from the last layer: logits may be negative"
        else:
            words = f"{loss} takes logits, and is given the probabilities that {after} makes"
            advice = f"remove the {after} before the loss: {loss} applies its own to the logits"
        yield Finding(
            "output",
            "critical",
            f"The output does not fit its loss: {words}.",
            () if last is None else (evidence.names[last],),
            steps,
            {},
            (advice,),
            Place(steps[0], last, "signal_norm", "loss"),
        )


def is_negative(evidence: Evidence) -> bool:
    """Whether the logged loss falls below 0, and is of one loss alone."""
    loss = evidence.loss
    if loss is None or len(evidence.run.heads) > 1:
        return False
    return bool((loss.raw < 0).any())


def _broadcast(evidence: Evidence, last: int | None, steps: tuple[int, int]) -> Finding:
    return Finding(
        "output",
        "critical",
        "The loss compares each prediction with the targets of all samples: predictions of shape"
        " (n, 1) and targets of shape (n,) are broadcast to (n, n), and the best answer is the same"
        " mean for all.",
        () if last is None else (evidence.names[last],),
        steps,
        {},
        (
            "give both the same shape: prediction.squeeze(1), or targets.unsqueeze(1)",
            "assert prediction.shape == target.shape before the loss",
        ),
        Place(steps[0], last, "signal_norm", "loss"),
    )


def _out_of_reach(
    evidence: Evidence, layer: int, kind: str, over_loss: Floats, place: Place
) -> Iterator[Finding]:
    if kind not in WIDTHS or len(over_loss) < FEWEST or _still_falls(evidence):
        return
    if _is_at_its_end(evidence, layer):
        yield Finding(
            "output",
            "critical",
            f"The output of layer {evidence.labels[layer]} cannot reach its targets: all of it has"
            f" come to the end of what {kind} can give, and the loss does not fall any more.",
            (evidence.names[layer],),
            (place.step, evidence.step(evidence.rows[-1])),
            {"saturated_fraction": float(evidence.median("saturated_fraction")[-1, layer])},
            _range_remedies(kind),
            place,
        )
        return
    away = 1 / np.maximum(over_loss, 1e-30) / WIDTHS[kind]
    if not (away > OUT_OF_REACH).all() or not _is_only_head(evidence, layer):
        return
    yield Finding(
        "output",
        "critical",
        f"The output of layer {evidence.labels[layer]} cannot reach its targets: they are"
        f" {number(np.median(away))} times the width of what {kind} can give away from it, and"
        " the loss does not fall any more.",
        (evidence.names[layer],),
        (place.step, evidence.step(evidence.rows[-1])),
        {"widths_away": float(np.median(away))},
        _range_remedies(kind),
        place,
    )


def _is_at_its_end(evidence: Evidence, layer: int) -> bool:
    """Whether an output was free at first, and lies at one end of its range for all samples now.

    A loss of squares or absolutes that is left then, and no logarithm, asks for more.
    """
    if not set(evidence.run.heads["loss"]) <= BY_DISTANCE or evidence.run.heads.empty:
        return False
    at_first = evidence.at("saturated_fraction", evidence.rows[:1])[0, layer]
    at_end = evidence.median("saturated_fraction")[-1, layer]
    spread, mean = (evidence.median(c)[-1, layer] for c in ("activation_std", "activation_mean"))
    return bool(at_first < FROM_START and at_end > ALL and spread < abs(mean) / 10)


def _range_remedies(kind: str) -> tuple[str, str]:
    return (
        f"remove the last activation, {kind}: a linear output has no range",
        f"or bring the targets into the range of {kind}: normalise them",
    )


def _stuck(evidence: Evidence, layer: int, kind: str, place: Place) -> Iterator[Finding]:
    if kind not in WIDTHS:
        return
    share = evidence.at("saturated_fraction", evidence.rows[:1])[0, layer]
    if not share > FROM_START or not evidence.median("saturated_fraction")[-1, layer] > FROM_START:
        return
    if _gets_through(evidence, layer):
        return
    yield Finding(
        "saturated",
        "warning",
        f"{share:.0%} of the output of layer {evidence.labels[layer]} is saturated from the first"
        " step on: whatever the loss says, next to nothing of it gets through.",
        (evidence.names[layer],),
        (place.step, evidence.step(evidence.rows[-1])),
        {"saturated_fraction": float(share)},
        (
            "start the last weight layer from smaller weights, and normalise what comes into it",
            "use the loss that takes logits (cross-entropy) in place of activation and squares",
        ),
        Place(place.step, layer, "saturated_fraction", "forward"),
    )


def _gets_through(evidence: Evidence, layer: int) -> bool:
    """Whether the gradient before an output's activation is as large as the loss has it."""
    heads = evidence.run.heads
    if ((heads["loss"] == "binary_cross_entropy") & (heads["after"] != "")).any():
        return True
    before = int(np.flatnonzero(evidence.weights[: layer + 1])[-1])
    over_loss = _gradient_over_loss(evidence, before, "", some_rows(evidence))
    known = over_loss[np.isfinite(over_loss)]
    return len(known) > 0 and bool(np.median(known) > GETS_THROUGH)


def _last_activation(evidence: Evidence) -> int | None:
    """Return the activation behind the last weight layer that ran, None if there is none."""
    called = np.flatnonzero(evidence.run.was_read("activation_norm"))
    weights = called[evidence.weights[called]]
    if len(called) == 0 or len(weights) == 0 or len(evidence.rows) == 0:
        return None
    last = int(called[-1])
    if last == int(weights[-1]):
        return last if last in evidence.run.functions else None
    return last if last == int(weights[-1]) + 1 or last > int(weights[-1]) else None


def _gradient_over_loss(evidence: Evidence, layer: int, kind: str, rows: np.ndarray) -> Floats:
    """Return the gradient at an element (softmax: at a sample's) over the loss, (rows,).

    The number of elements follows from the output's norm, mean and standard deviation; a softmax
    has 1 / mean of them for each sample.
    """
    if evidence.loss is None:
        return np.full(len(rows), np.nan)
    if layer in evidence.run.functions:  # what is read there is before the function
        return np.full(len(rows), np.nan)
    signal, norm, mean, std = (
        evidence.at(column, rows)[:, layer]
        for column in ("signal_norm", "activation_norm", "activation_mean", "activation_std")
    )
    loss = evidence.steps[evidence.loss.column].to_numpy(dtype=np.float64)[rows]
    each = mean if kind == "softmax" else np.ones_like(mean)
    count = over_reference(norm**2 * each, mean**2 + std**2)
    return over_reference(signal * np.sqrt(count), np.where(loss > 0, loss, np.nan))


def falls_at_all(evidence: Evidence) -> bool:
    """Whether the logged loss, if there is one, falls by a tenth."""
    loss = evidence.loss
    return loss is None or falls_by_a_tenth(loss.raw[np.isfinite(loss.raw)])


def _still_falls(evidence: Evidence) -> bool:
    """Whether it does so after the first quarter, in which an output comes as near as it can."""
    loss = evidence.loss
    if loss is None:
        return True
    values = loss.raw[np.isfinite(loss.raw)]
    return falls_by_a_tenth(values[len(values) // 4 :])


def falls_by_a_tenth(values: Floats) -> bool:
    """Whether the last quarter of a loss lies a tenth below the first."""
    some = max(len(values) // 4, 1)
    return bool(np.median(values[-some:]) < (1 - FELL) * np.median(values[:some]))


def _is_only_head(evidence: Evidence, layer: int) -> bool:
    """Whether what comes before hands its output to nothing else: all gradient comes from here."""
    weights = np.flatnonzero(evidence.weights[: layer + 1])
    if len(weights) < 2:
        return True
    rows = some_rows(evidence)
    signal, into = (evidence.at(column, rows) for column in ("signal_norm", "input_signal_norm"))
    before = column_medians(
        over_reference(signal[:, weights[-1] - 1], into[:, weights[-1]])[:, None]
    )
    if weights[-1] - 1 in evidence.run.functions:  # read before the function, which takes some away
        return bool(before[0] < 1.02)
    return bool(np.isclose(before[0], 1, rtol=0.02))
