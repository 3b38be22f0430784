"""What is wrong with single layers: dead, disconnected, collapsed, saturated, too fast or slow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.evidence import WINDOW, Evidence, Mask, column_medians
from gradscope.diagnosis.findings import Finding, Severity
from gradscope.diagnosis.rules.vanishing import DECADES
from gradscope.diagnosis.signal_path import Floats, composites, is_weight_layer
from gradscope.kinds import BOTH_SIDES
from gradscope.wording import layers_named

OFF = 0.99
"""Share of an activation's outputs that are 0 from which on the layer counts as switched off."""

SATURATED = 0.5
"""Share of an activation's elements with |phi'| below a tenth of its maximum."""

COLLAPSED = 1e-3
"""Standard deviation of an output over its root mean square."""

SPEED = (1e-4, 1e-2)
"""Usual update speeds ||dW|| / ||W|| a step; Stanford CS231n notes, 'Ratio of weights:updates'."""


def dead(evidence: Evidence) -> Iterator[Finding]:
    """Find activations that are off for (almost) all inputs over whole windows of steps."""
    off = _off(evidence)
    if not off.any():
        return
    zero = evidence.median("zero_fraction")
    layers: Mask = np.any(off, axis=0)
    names = _names(evidence, layers)
    yield Finding(
        "dead",
        _severity(off),
        f"The output of {layers_named(names)} is 0 for all but {1 - np.nanmax(zero[off]):.1%} of"
        " units and samples, so that almost no gradient passes; layers before it stop learning.",
        names,
        evidence.span(np.any(off, axis=1)),
        {"zero_fraction": float(np.nanmedian(zero[off]))},
        (
            "lower the learning rate or warm it up: a large step can push all units below zero",
            "use LeakyReLU, GELU or ELU, whose units come back",
            "start biases at zero or slightly above",
        ),
    )


def disconnected(evidence: Evidence) -> Iterator[Finding]:
    """Find layers that a gradient never reaches, though one leaves the output.

    A zero that follows from a gradient too small for its number format is vanishing, one behind
    a switched-off layer belongs to that layer, and one behind weights that are all zero, as a
    branch may start, passes with the first step.
    """
    path = evidence.path
    if path is None or not evidence.windows:
        return
    signal = evidence.highest("signal_norm")
    output = signal[:, path.layers[-1]]
    cut = (signal == 0) & (output > 0)[:, None] & ~_underflowed(evidence, signal)
    cut &= ~_any_behind(_off(evidence)) & ~_any_behind(_zero_weights(evidence))
    parameters = evidence.layers["parameters"].to_numpy() > 0
    layers: Mask = np.any(cut, axis=0) & parameters
    if layers.any():
        names = _names(evidence, layers)
        yield Finding(
            "disconnected",
            _severity(cut[:, layers]),
            f"No gradient at all reaches {layers_named(names)}: not a small one, exactly 0.",
            names,
            evidence.span(np.any(cut[:, layers], axis=1)),
            {"layers": float(layers.sum())},
            (
                "look for detach(), no_grad() or an argmax between these layers and the loss",
                "check that the loss uses the output of these layers",
                "if functional ReLUs follow on a sum, check that their units are not all off",
            ),
        )


def collapsed(evidence: Evidence) -> Iterator[Finding]:
    """Find hidden layers whose outputs are all but one and the same number.

    The readings hold the spread over all of an output's elements, units and samples together, so
    that an output which differs between units but not between samples is not found. Within a
    residual block a constant does no harm: a gate may start as one.
    """
    path = evidence.path
    if path is None or not evidence.windows:
        return
    spread, mean = evidence.median("activation_std"), evidence.median("activation_mean")
    share = over_reference(spread, np.hypot(spread, mean))
    flat = share < COLLAPSED
    hidden = np.arange(len(evidence.layers)) < path.layers[-1]
    flat &= hidden & ~composites(evidence.layers, is_weight_layer(evidence.layers))
    for block in residual_blocks(evidence.run):
        flat[:, block.first : block.after] = False
    if flat.any():
        names = _names(evidence, np.any(flat, axis=0))
        yield Finding(
            "collapsed",
            _severity(flat),
            f"All outputs of {layers_named(names)} are nearly the same number, whatever the input"
            " is.",
            names,
            evidence.span(np.any(flat, axis=1)),
            {
                "spread_over_size": float(
                    np.nanmin(over_reference(spread, np.hypot(spread, mean))[flat])
                )
            },
            (
                "check that the input varies and is normalised",
                "start from larger weights, or put a normalisation before these layers",
            ),
        )


def saturated(evidence: Evidence) -> Iterator[Finding]:
    """Find hidden sigmoids, tanhs and the like that work mostly where they are flat."""
    path = evidence.path
    if path is None or not evidence.windows:
        return
    share = evidence.median("saturated_fraction")
    both_sides = np.array([kind in BOTH_SIDES for kind in evidence.activations], dtype=bool)
    flat = (share > SATURATED) & both_sides & (np.arange(len(both_sides)) < path.layers[-1])
    if flat.any():
        names = _names(evidence, np.any(flat, axis=0))
        slope = column_medians(evidence.median("derivative_mean")[flat])
        yield Finding(
            "saturated",
            "warning",
            f"Up to {np.nanmax(share[flat]):.0%} of the units of {layers_named(names)} work where"
            " their activation function is flat, and pass on next to no gradient.",
            names,
            evidence.span(np.any(flat, axis=1)),
            {
                "saturated_fraction": float(np.nanmedian(share[flat])),
                "derivative_mean": float(slope),
            },
            (
                "start from smaller weights (Xavier), and normalise the inputs",
                "put a normalisation before these activations",
                "use ReLU or GELU instead",
            ),
        )


def update_speed(evidence: Evidence) -> Iterator[Finding]:
    """Find weight layers that change unusually fast or slowly; advice, not a fault.

    Source: Stanford CS231n, Neural Networks part 3: the ratio of updates to weights should be
    somewhere around 1e-3.
    """
    if len(evidence.rows) < WINDOW:
        return
    speed = over_reference(evidence.median("update_norm"), evidence.median("weight_norm"))
    weights = is_weight_layer(evidence.layers) & ~np.isnan(speed).all(axis=0)
    if not weights.any():
        return
    usual = np.nanmedian(speed[:, weights], axis=0)
    slow, fast = usual < SPEED[0], usual > SPEED[1]
    if _vanishes(evidence):
        slow[:] = False  # a consequence, against which no learning rate helps
    for out, word, advice in (
        (slow, "slowly", "raise the learning rate if the loss hardly moves"),
        (fast, "fast", "lower the learning rate if the loss is unsteady"),
    ):
        if out.any():
            names = tuple(np.array(evidence.names, dtype=object)[weights][out])
            yield Finding(
                "update-speed",
                "information",
                f"{len(names)} of {int(weights.sum())} weight layers change {word}: by"
                f" {np.median(usual[out]):.1e} of their size a step; 1e-4 to 1e-2 is usual.",
                names,
                evidence.span(np.ones(len(evidence.windows), dtype=bool)),
                {"update_ratio": float(np.median(usual[out]))},
                (advice,),
            )


def _vanishes(evidence: Evidence) -> bool:
    """Whether the gradient vanishes in the middle of the run."""
    decades = evidence.path.decades[evidence.rows] if evidence.path is not None else np.empty(0)
    decades = decades[~np.isnan(decades)]
    return len(decades) > 0 and bool(np.median(decades) <= -DECADES)


def _names(evidence: Evidence, layers: Mask) -> tuple[str, ...]:
    return tuple(evidence.names[i] for i in np.flatnonzero(layers))


def _severity(found: Mask) -> Severity:
    """Return how bad a fault is that was found in these windows: worse if in the last one."""
    return "critical" if found[-1].any() else "warning"


def _off(evidence: Evidence) -> Mask:
    """Return which activations are switched off, (windows, layers).

    Not those, such as tanh, that are at their steepest where they are 0.
    """
    steep = evidence.median("derivative_mean") > 0.5
    return np.asarray((evidence.median("zero_fraction") >= OFF) & ~steep)


def _zero_weights(evidence: Evidence) -> Mask:
    """Return which layers own parameters that are all zero, (windows, layers)."""
    owner = evidence.layers["parameters"].to_numpy() > 0
    return np.asarray((evidence.median("weight_norm") == 0) & owner)


def _any_behind(found: Mask) -> Mask:
    """Return for each layer whether one after it was found, (windows, layers)."""
    behind = np.zeros_like(found)
    behind[:, :-1] = np.logical_or.accumulate(found[:, ::-1], axis=1)[:, ::-1][:, 1:]
    return behind


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
