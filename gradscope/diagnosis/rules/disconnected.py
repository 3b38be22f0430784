"""Disconnected: layers that no gradient reaches, though one leaves the output."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.evidence import WINDOW, Evidence, Mask
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.neighbours import behind, beside_others
from gradscope.diagnosis.rules.dead import starts_at_zero, switched_off, zero_weights
from gradscope.diagnosis.rules.marks import any_behind, first_place, names_of, severity_of
from gradscope.diagnosis.rules.saturated import flat_behind
from gradscope.diagnosis.signal_path import Floats, composites
from gradscope.diagnosis.speed import some_rows
from gradscope.wording import capitalised, number

SURE = 17.0
"""Size of logits, ln 2^24, from which on the smallest share of a softmax or sigmoid is lost beside
1 in float32, and with it the gradient."""

MUCH = 0.3
"""Share of the parameters that train from which on it is no head left unused: heads are small."""

AGAIN = 2
"""Recorded steps at which a gradient must be 0: much starts at zero, and moves with one step."""

SAME = 1e-6
"""Change of a loss that is rounding."""

_LOOK = (
    "look in the loss for a multiplication by 0, a mask that leaves nothing, a clamp or a softmax"
    " over one class"
)

_HEAD = re.compile(
    r"head|aux|exit|pool|classif|logit|proj|pred|out|critic|value|reward|decod|expert|router|adapter"
    r"|lora|task|branch|embed|norm|(^|[._])(fc|lm|cls|heads?)\d*([._]|$)"
)
"""Names of parts that a net may have for other losses than the one that is trained."""

_COPY = re.compile(
    r"target|teacher|momentum|(^|[._])(ema|shadow|average|reference|ref|old)([._]|$)"
)
"""Names of copies of a net, from which others learn and which learn by no gradient."""


def disconnected(evidence: Evidence) -> Iterator[Finding]:
    """Find layers with a gradient of exactly 0, and such as have no path from the loss at all."""
    yield from _without_gradient(evidence)
    yield from _nothing(evidence)
    yield from _zero(evidence)
    yield from _without_path(evidence)


def _without_gradient(evidence: Evidence) -> Iterator[Finding]:
    """Find runs without a step, as no gradient ever came to the model."""
    count = int(evidence.run.facts.get("steps_without_gradient", 0))
    if count <= AGAIN or evidence.run.was_read("grad_norm").any():
        return
    yield Finding(
        "disconnected",
        "critical",
        f"The loss does not depend on the model: it ran, the optimizer stepped {count} times, and"
        " no parameter ever had a gradient.",
        (),
        (0, count - 1),
        {"steps": float(count)},
        (
            "look in the loss for argmax, a comparison, round(), detach(), .item() or numpy: they"
            " have no gradient; use a differentiable loss, such as cross_entropy on the logits",
            "check that loss.backward() is called, on a loss made of what the model returned",
        ),
    )


def _nothing(evidence: Evidence) -> Iterator[Finding]:
    """Find losses that give a gradient of exactly 0, as that of a softmax over one class."""
    path = evidence.path
    if path is None or len(evidence.rows) < AGAIN:
        return
    signal, mean, spread = (
        evidence.at(column, evidence.rows[:: max(len(evidence.rows) // 64, 1)])
        for column in ("signal_norm", "activation_mean", "activation_std")
    )
    known = evidence.weights & ~np.isnan(signal).all(axis=0)
    if not known.any() or np.nanmax(signal[:, known]) > 0:
        return
    last = int(path.layers[-1])
    softmax = [i for i, kind in enumerate(evidence.activations) if kind == "softmax"]
    one = bool(softmax) and bool(((mean == 1) & (spread == 0))[:, softmax[-1]].all())
    size = _size(evidence, last)
    raw = evidence.loss.raw if evidence.loss is not None else np.zeros(0)
    ended = len(raw) > 0 and bool((raw == 0).all())
    waits = ended and not one and not size > SURE and len(evidence.rows) < WINDOW
    if one:
        why = (
            f"layer {evidence.labels[softmax[-1]]} is a softmax over one class, which is 1 whatever"
            " it is given"
        )
        advice: tuple[str, ...] = (
            "use a sigmoid with binary_cross_entropy, or better none with"
            " binary_cross_entropy_with_logits; a softmax needs an output for each class",
        )
    elif size > SURE:
        why = (
            f"the outputs of layer {evidence.labels[last]} are {number(size)} on average, so that a"
            " softmax or sigmoid of them is 0 or 1 to rounding"
        )
        advice = (
            "start the last layer from smaller weights and a bias of 0, and normalise what comes"
            " into it; in reinforcement learning an entropy bonus holds a policy open",
            _LOOK,
        )
    elif ended:
        why = "the loss itself is 0: there is nothing to learn from, as before a first reward"
        advice = (_LOOK,)
    elif len(raw) > 1 and np.ptp(raw) > SAME * np.abs(raw).max():
        why = "the loss changes with the batch, and not with what the model gives"
        advice = (
            "if the model is in float16: gradients below 6e-8 are 0 there; scale the loss"
            " (torch.amp.GradScaler), or use bfloat16 or float32",
            _LOOK,
        )
    else:
        why, advice = "whatever the model gives, the loss stays as it is", (_LOOK,)
    yield Finding(
        "disconnected",
        "information" if waits else "critical",
        f"The gradient of the loss is exactly 0 at every weight layer and step: {why}.",
        (evidence.names[last],),
        evidence.whole,
        {"layers": float(known.sum())},
        advice,
        Place(evidence.step(evidence.rows[0]), last, "signal_norm", "loss"),
    )


def _size(evidence: Evidence, layer: int) -> float:
    """Return the root mean square of a layer's output at the steps that were read."""
    norm, elements = (evidence.median(c)[:, layer] for c in ("activation_norm", "output_elements"))
    return float(np.median(over_reference(norm, np.sqrt(elements))))


def _zero(evidence: Evidence) -> Iterator[Finding]:
    """Find gradients that are exactly 0 where nothing small explains it.

    A zero that follows from a gradient too small for its number format is vanishing, one behind
    a switched-off or flat layer belongs to that layer, and one behind weights that are all zero,
    as a branch may start, passes with the first step.
    """
    path = evidence.path
    if path is None or len(evidence.rows) < AGAIN:
        return
    signal = evidence.highest("signal_norm")
    output = signal[:, path.layers[-1]]
    cut = (signal == 0) & (output > 0)[:, None] & ~_underflowed(evidence, signal)
    cut &= ~any_behind(switched_off(evidence)) & ~any_behind(zero_weights(evidence))
    cut &= ~any_behind(flat_behind(evidence)) & ~starts_at_zero(evidence)
    cut &= evidence.owners
    cut &= ~_dropped(evidence)
    unasked = cut & (_has_others(evidence, signal) | _leads_nowhere(evidence, signal))
    if unasked.any():
        layers: Mask = np.any(unasked, axis=0)
        yield Finding(
            "disconnected",
            "information",
            f"No gradient came to {evidence.named(layers)}, while others beside them get one: they"
            " were not chosen, or the loss did not use what comes out.",
            names_of(evidence, layers),
            evidence.span(np.any(unasked, axis=1)),
            {"layers": float(layers.sum())},
            (
                "if they are meant to be used: look for a multiplication by 0, a mask or detach()"
                " between them and the loss, and add their output to it",
                "if the model chooses among them: balance the choice, or add noise to it",
            ),
            first_place(evidence, unasked, "signal_norm", "backward"),
        )
    cut &= ~unasked
    if not cut.any():
        return
    layers = np.any(cut, axis=0)
    factors = layers & beside_others(evidence)
    yield Finding(
        "disconnected",
        severity_of(cut) if (layers & evidence.weights).any() else "information",
        f"No gradient at all reaches {evidence.named(layers)}: not a small one, exactly 0.",
        names_of(evidence, layers),
        evidence.span(np.any(cut, axis=1)),
        {"layers": float(layers.sum())},
        (
            *(
                (
                    "if they make the logits of an attention, look at the dim of its softmax: over"
                    " one key it is 1 whatever the logits are",
                )
                if factors.sum() > 1
                else ()
            ),
            "look for detach(), no_grad() or a multiplication by 0 between these layers and the"
            " loss",
            "if functional ReLUs follow on a sum, check that their units are not all off",
        ),
        first_place(evidence, cut, "signal_norm", "backward"),
    )


def _dropped(evidence: Evidence) -> Mask:
    """Return which layers lie in branches that may have been dropped by chance at all steps."""
    dropped = np.zeros(len(evidence.names), dtype=bool)
    signal = evidence.at("signal_norm", evidence.rows[:WINDOW])
    if len(evidence.rows) < WINDOW and ((signal == 0).any(0) & (signal > 0).any(0)).any():
        for block in residual_blocks(evidence.run):
            dropped[block.first : block.after] = True
    return dropped


def _has_others(evidence: Evidence, signal: Floats) -> Mask:
    """Return which layers have a sibling beside them that gets a gradient, as heads and experts.

    Siblings have names that differ in a number, and neither comes behind the other.
    """
    reached = np.nan_to_num(signal) > 0
    found = np.zeros(signal.shape, dtype=bool)
    if not evidence.readers:
        return found
    kinds, counts = (evidence.layers[column].tolist() for column in ("kind", "parameters"))
    alike: dict[tuple[object, ...], list[int]] = {}
    for layer, name in enumerate(evidence.names):
        for digits in re.finditer(r"(?<![^.])\d+(?![^.])", name):
            key = name[: digits.start()], name[digits.end() :], kinds[layer], counts[layer]
            alike.setdefault(key, []).append(layer)
    for layers in alike.values():
        for layer in layers if not reached[:, layers].all() else ():
            after = behind(evidence, layer)
            beside = [
                other
                for other in layers
                if other not in after and (other > layer or layer not in behind(evidence, other))
            ]
            found[:, layer] |= reached[:, beside].any(axis=1)
    return found & ~reached


def _leads_nowhere(evidence: Evidence, signal: Floats) -> Mask:
    """Return which layers lead to what the model returns, past no layer that got a gradient."""
    reached = np.nan_to_num(signal) > 0
    found = np.zeros(signal.shape, dtype=bool)
    for layer in np.flatnonzero(~reached.all(axis=0)):
        if layer in evidence.readers:
            found[:, layer] = ~reached[:, sorted(behind(evidence, int(layer)))].any(axis=1)
    return found & ~reached


def _without_path(evidence: Evidence) -> Iterator[Finding]:
    """Find weights that an optimizer holds and that never had a gradient.

    Their steps are exactly 0: an optimizer leaves alone what has no gradient.
    """
    if not evidence.windows:
        return
    had, held = (evidence.run.was_read(column) for column in ("grad_norm", "weight_norm"))
    still = (np.nan_to_num(evidence.highest("update_norm"), nan=0) == 0).all(axis=0)
    still &= evidence.run.was_read("update_norm")
    without: Mask = evidence.owners & held & ~had & still
    if evidence.audited:
        without &= evidence.audit("no gradient") & ~evidence.audit("no optimizer")
    # parameters of the whole model, as a class token, may come in anywhere
    own = np.array([name == "(root)" for name in evidence.names]) & (len(had) > 1)
    reached = np.flatnonzero(evidence.owners & had & ~own)
    if not without.any() or len(reached) == 0:
        return
    ran = evidence.run.was_read("activation_norm")
    first = without & (np.arange(len(without)) < reached[0])
    meant = np.array([_COPY.search(name) is not None for name in evidence.names], dtype=bool)
    # of a module that holds layers with a gradient it is parameters of its own that are not used
    first &= ~meant & ~composites(evidence.layers, evidence.owners & had)
    first &= (
        ran | (len(evidence.rows) >= AGAIN) | without[np.flatnonzero(evidence.owners & ~own)[0]]
    )
    steps = evidence.whole
    if first.any():
        last = int(np.flatnonzero(first)[-1])
        end = "ends before" if ran[first].any() else "does not lead beyond"
        yield Finding(
            "disconnected",
            "critical",
            f"No gradient ever reached {evidence.named(first)}, the first of the net, though an"
            f" optimizer holds their weights: the path from the loss {end} layer"
            f" {evidence.labels[reached[0]]}"
            + (
                "."
                if ran[first].any()
                else ", and what comes before runs under no_grad(), if at all."
            ),
            names_of(evidence, first),
            steps,
            {"layers": float(first.sum())},
            (
                f"look between {evidence.labels[last]} and {evidence.labels[reached[0]]} for"
                " detach(), .data, no_grad(), argmax, .item() or numpy",
                "if these layers are meant to stay as they are, freeze them (requires_grad_(False))"
                " and leave them out of the optimizer",
            ),
            Place(steps[0], last, "signal_norm", "backward"),
        )
    rest = without & ~first
    if rest.any():
        share = _share(evidence, rest)
        alone = _are_alone(evidence, rest)
        dropped = (share > MUCH and ran[rest].any()) or _dropped_on_the_way(evidence, rest & ran)
        words = (
            "it did not run, or under no_grad()"
            if not ran[rest].any()
            else "the loss does not use what comes out, or a detach() or the like lies behind it"
        )
        much = f", {share:.0%} of all parameters that train," if share > MUCH else ""
        if alone:
            words += "; an optimizer of their own steps, and has nothing to step with"
        yield Finding(
            "disconnected",
            "critical" if alone else "warning" if dropped else "information",
            f"{capitalised(evidence.named(rest))}{much} never had a gradient: {words}.",
            names_of(evidence, rest),
            steps,
            {"layers": float(rest.sum()), "share_of_parameters": share},
            (
                "take out what is not used, or add its output to the loss",
                "if the loss should use it, look for detach(), .data, no_grad(), argmax, .item() or"
                " numpy where its output goes",
            ),
            Place(steps[0], int(np.flatnonzero(rest)[0]), "signal_norm", "backward"),
        )


def _dropped_on_the_way(evidence: Evidence, layers: Mask) -> bool:
    """Whether several weight layers amid others were computed for nothing, and are no head."""
    weights = np.flatnonzero(layers & evidence.weights)
    learns = np.flatnonzero(evidence.weights & evidence.run.was_read("grad_norm"))
    if len(weights) < 2 or not learns[0] < weights[0] <= weights[-1] < learns[-1]:
        return False
    return not any(_HEAD.search(evidence.names[i].lower()) for i in weights)


def _are_alone(evidence: Evidence, layers: Mask) -> bool:
    """Whether there are steps made by an optimizer that holds of the model `layers` alone."""
    held = np.isfinite(evidence.at("weight_norm", some_rows(evidence))) & evidence.owners
    return bool((held.any(axis=1) & ~held[:, ~layers].any(axis=1)).any())


def _share(evidence: Evidence, layers: Mask) -> float:
    """Return which part of the parameters in layers that an optimizer moves is in `layers`."""
    own = np.where(evidence.owners, evidence.layers["parameters"].to_numpy(np.float64), 0.0)
    held = evidence.run.was_read("weight_norm")
    return float(own[layers].sum() / max(own[held].sum(), 1.0))


def _underflowed(evidence: Evidence, signal: Floats) -> Mask:
    """Return which zeros lie before a layer that had lost two decades already."""
    assert evidence.path is not None
    chain = signal[:, evidence.path.layers]
    result = np.zeros(signal.shape, dtype=bool)
    for window, values in enumerate(chain):
        arrived = np.flatnonzero(values > 0)
        late = np.nanmax(evidence.path.late[evidence.windows[window]], initial=0)
        if len(arrived) and values[arrived[0]] <= 0.01 * late:
            result[window, : evidence.path.layers[arrived[0]]] = True
    return result
