"""Saturated: sigmoids, tanhs and the like that work mostly where they are flat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope import schema
from gradscope.diagnosis.evidence import Evidence, Mask, column_medians
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.neighbours import before_weights
from gradscope.diagnosis.rules.marks import first_place, names_of, severity_of
from gradscope.diagnosis.rules.update_speed import falls
from gradscope.diagnosis.speed import is_fast
from gradscope.kinds import BOTH_SIDES, GATES, canonical
from gradscope.wording import number

SATURATED = 0.5
"""Share of an activation's elements with |phi'| below a tenth of its maximum."""

FLAT_STATES = 0.1
"""Mean slope of tanh over the states of a recurrent layer."""

NO_SLOPE = 2.0**-24
"""Mean slope below which nothing gets through: beside 1 it is lost in float32's rounding."""

FLAT = 0.9
"""Share from which on a zero behind the layer is its doing."""

_CELLS = frozenset({"lstmcell", "grucell", "lstm", "gru"})


def saturated(evidence: Evidence) -> Iterator[Finding]:
    """Find hidden activations that are flat for more than half of their units; gates may be."""
    yield from _states(evidence)
    if evidence.path is None or not evidence.windows:
        return
    yield from _without_slope(evidence)
    share = evidence.median("saturated_fraction")
    flat = (share > SATURATED) & _levels_off(evidence) & ~evidence.outputs
    flat &= ~(_are_hardtanh(evidence) & (evidence.median("zero_fraction") > SATURATED))
    flat &= ~without_slope(evidence)
    if not flat.any():
        return
    layers: Mask = np.any(flat, axis=0)
    at_first = evidence.at("saturated_fraction", evidence.rows[:1])[0, layers]
    from_start = bool((at_first > SATURATED).any())
    learnt = falls(evidence) and not from_start
    unknown = evidence.loss is None and _logs_several(evidence) and not from_start
    slope = column_medians(evidence.median("derivative_mean")[flat])
    yield Finding(
        "saturated",
        "information" if learnt or unknown else "warning",
        f"Up to {np.nanmax(share[flat]):.0%} of the units of {evidence.named(layers)} work where"
        " their activation function is flat, and pass on next to no gradient."
        + (" They were brought there by a training whose loss falls." if learnt else ""),
        names_of(evidence, layers),
        evidence.span(np.any(flat, axis=1)),
        {
            "saturated_fraction": float(np.nanmedian(share[flat])),
            "derivative_mean": float(slope),
        },
        tuple(_remedies(evidence, flat)),
        first_place(evidence, flat, "saturated_fraction", "forward"),
    )


def _are_hardtanh(evidence: Evidence) -> Mask:
    """Return which activations are clips, which from 0 on are rectifiers: half of them is off."""
    kinds = [canonical(kind) for kind in evidence.activations]
    return np.array([kind == "hardtanh" for kind in kinds], dtype=bool)


def _logs_several(evidence: Evidence) -> bool:
    """Whether several scalars are logged, of which none says how the training goes, as in games."""
    return len(set(evidence.run.steps.columns) - set(schema.names(schema.STEPS))) > 1


def _states(evidence: Evidence) -> Iterator[Finding]:
    """Find recurrent layers of tanh whose states are all but 1 or -1, as on unscaled input.

    The slope of tanh is 1 - h^2, so that its mean over all states follows from their mean square.
    """
    kinds = [canonical(str(kind)) for kind in evidence.layers["kind"]]
    plain = np.array([kind in ("rnn", "rnncell") for kind in kinds], dtype=bool)
    if not plain.any() or not evidence.windows:
        return
    mean, spread = (evidence.median(c)[-1] for c in ("activation_mean", "activation_std"))
    slope = 1 - mean**2 - spread**2
    flat = plain & (slope >= 0) & (slope < FLAT_STATES)
    if not flat.any():
        return
    yield Finding(
        "saturated",
        "warning",
        f"The states of {evidence.named(flat)} are all but 1 or -1, where tanh is flat: its slope"
        f" is {number(slope[flat].min(), 1)} on average, and next to nothing gets from"
        " step to step.",
        names_of(evidence, flat),
        evidence.whole,
        {"derivative_mean": float(slope[flat].min())},
        (
            "normalise the inputs, to mean 0 and deviation 1",
            "start from smaller input weights, or use a GRU or an LSTM",
        ),
        Place(
            evidence.step(evidence.rows[0]),
            int(np.flatnonzero(flat)[0]),
            "activation_std",
            "forward",
        ),
    )


def without_slope(evidence: Evidence) -> Mask:
    """Return which activations are flat to rounding for all units, (windows, layers); no gates.

    Not those that are off, whose outputs are 0; what the model gives, from the first step on.
    """
    slope, zero = evidence.median("derivative_mean"), evidence.median("zero_fraction")
    flat = (slope < NO_SLOPE) & ~(zero > FLAT) & ~gates(evidence)
    flat &= before_weights(evidence) | (flat.all(axis=0) & (slope[0] < NO_SLOPE))
    return np.asarray(flat)


def _without_slope(evidence: Evidence) -> Iterator[Finding]:
    """Find activations that are flat for every unit, on one side as on two."""
    flat = without_slope(evidence)
    if not flat.any():
        return
    layers: Mask = np.any(flat, axis=0)
    start = evidence.at("derivative_mean", evidence.rows[:1])[0]
    from_start = bool((start[layers] < NO_SLOPE).any())
    yield Finding(
        "saturated",
        severity_of(flat),
        f"All units of {evidence.named(layers)} work where their activation function is flat: no"
        " gradient gets through.",
        names_of(evidence, layers),
        evidence.span(np.any(flat, axis=1)),
        {"derivative_mean": float(np.nanmax(evidence.median("derivative_mean")[flat]))},
        (
            "start from a bias of 0 and smaller weights (Xavier), and normalise what comes into"
            " the activation: it is far out on the flat part from the first step"
            if from_start
            else "lower the learning rate: these units were not flat at the start",
            *(
                ("put a normalisation before these activations",)
                if not any("norm" in kind for kind in evidence.kinds)
                else ()
            ),
            "use one that is flat nowhere (LeakyReLU) or on one side only (GELU), at an output none"
            " or the loss that takes logits",
        ),
        first_place(evidence, flat, "derivative_mean", "forward"),
    )


def flat_behind(evidence: Evidence) -> Mask:
    """Return which activations are so flat that gradients underflow in them, (windows, layers)."""
    return np.asarray(evidence.highest("saturated_fraction") > FLAT)


def gates(evidence: Evidence) -> Mask:
    """Return which layers are gates, sigmoids that multiply, or parts of a cell that has gates.

    What a gate hands back is not what a later layer got. Where a cell has gates, its tanh is one of
    its parts, and may be flat: what is remembered, is.
    """
    found = np.array([kind in GATES for kind in evidence.activations], dtype=bool)
    found &= ~_handed_on(evidence)
    cells = {_parent(evidence.names[i]) for i in np.flatnonzero(found)} - {""}
    both = np.array([kind in BOTH_SIDES for kind in evidence.activations], dtype=bool)
    in_cell = np.array([_parent(name) in cells for name in evidence.names], dtype=bool)
    return np.asarray(found | (both & in_cell))


def _levels_off(evidence: Evidence) -> Mask:
    """Return which layers are activations that flatten out on both sides, and no gates."""
    kinds = [canonical(str(kind)) for kind in evidence.layers["kind"]]
    both = np.array([kind in BOTH_SIDES for kind in evidence.activations], dtype=bool)
    both &= np.array([kind not in _CELLS for kind in kinds], dtype=bool)
    return np.asarray(both & ~gates(evidence))


def _handed_on(evidence: Evidence) -> Mask:
    """Return which layers' output went unchanged into a later layer, as its gradient says."""
    out, into = evidence.median("signal_norm"), evidence.median("input_signal_norm")
    handed = np.zeros(out.shape[1], dtype=bool)
    for layer in range(out.shape[1]):
        same = np.isclose(into[:, layer + 1 :], out[:, layer, None], rtol=1e-3, atol=0)
        handed[layer] = (same & (out[:, layer, None] > 0)).any()
    functions = np.array([i in evidence.run.functions for i in range(len(handed))], dtype=bool)
    return np.asarray(handed | functions)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _remedies(evidence: Evidence, flat: Mask) -> Iterator[str]:
    if not flat[0].any() and is_fast(evidence):
        yield "lower the learning rate: these units were not flat at the start"
    elif flat[0].any():
        yield "start from smaller weights (Xavier), and normalise the inputs"
    if not any("norm" in kind for kind in evidence.kinds):
        yield "put a normalisation before these activations"
    yield "use ReLU or GELU instead"
