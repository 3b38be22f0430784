"""Dead: activations that are off for (almost) all inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.evidence import Evidence, Mask
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.rules import remedies
from gradscope.diagnosis.rules.marks import first_place, names_of, severity_of
from gradscope.diagnosis.rules.update_speed import falls
from gradscope.diagnosis.signal_path import Floats, before_gates, edges_of
from gradscope.wording import capitalised

OFF = 0.99
"""Share of an activation's outputs that are 0 from which on the layer counts as switched off."""

START = 3
"""Recorded steps within which a branch that starts at zero has begun to move."""


UNITS = 0.75
"""Share of a layer's units that are never on from which on it counts as dead, though not whole."""

TURNS = 4
"""Units that are on at some time over those on at a time, from which on they take turns: a code
that is sparse on purpose."""

FEW = 8
"""Units of a layer of which most may be off by chance."""

SPARSE = 0.15
"""How often the other units are on, at least: where all are seldom on, none is dead."""


def dead(evidence: Evidence) -> Iterator[Finding]:
    """Find activations that are off over whole windows of steps, or of which most units are."""
    off = switched_off(evidence)
    yield from _units(evidence, ~np.any(off, axis=0))
    if not off.any():
        return
    zero = evidence.median("zero_fraction")
    layers: Mask = np.any(off, axis=0)
    begun = _first_step(evidence, off)
    most = float(np.nanmax(zero[off]))
    give = "gives" if layers.sum() == 1 else "give"
    much = "every unit and sample" if most == 1 else f"{most:.1%} of its units and samples"
    yield Finding(
        "dead",
        "information"
        if (not off[-1].any() and falls(evidence)) or _take_turns(evidence, layers)
        else severity_of(off),
        f"{capitalised(evidence.named(layers))} {give} 0 for {much}: next to no gradient passes,"
        " and the layers before stop learning.",
        names_of(evidence, layers),
        (begun, evidence.span(np.any(off, axis=1))[1]),
        {"zero_fraction": float(np.nanmedian(zero[off]))},
        tuple(_remedies(evidence, from_start=begun == evidence.step(evidence.rows[0]))),
        replace(first_place(evidence, off, "zero_fraction", "forward"), step=begun),
    )


def _units(evidence: Evidence, layers: Mask) -> Iterator[Finding]:
    """Find layers of which most units are never on, at the last look at single units."""
    looks = evidence.looks("dead_fraction")
    if len(looks) == 0:
        return
    share = looks[-1]
    zero = evidence.median("zero_fraction")[-1]
    often = over_reference(1 - np.nan_to_num(zero), 1 - share)
    found = layers & (share >= UNITS) & (often >= SPARSE) & ~_of_gates(evidence)
    found &= ~_of_few_units(evidence, looks) | (share == 1)
    if not found.any():
        return
    first, last = evidence.whole
    low, high = share[found].min(), share[found].max()
    much = f"{high:.0%}" if round(low, 2) == round(high, 2) else f"{low:.0%} to {high:.0%}"
    yield Finding(
        "dead",
        "critical",
        f"{much} of the units of {evidence.named(found)} are never on: they get no gradient and do"
        " not come back, and the rest does all the work.",
        names_of(evidence, found),
        (first, last),
        {"dead_fraction": float(high)},
        tuple(_remedies(evidence, from_start=bool((looks[0][found] >= UNITS).any()))),
        Place(last, int(np.flatnonzero(found)[0]), "zero_fraction", "forward"),
    )


def _of_few_units(evidence: Evidence, looks: Floats) -> Mask:
    """Return which layers have few units: all shares that were read are of so many.

    And what they give is small beside the largest number that divides all outputs, of which the
    number of samples is a part.
    """
    few = np.zeros(looks.shape[1], dtype=bool)
    for units in range(1, FEW + 1):
        counts = np.nan_to_num(looks) * units
        few |= (np.abs(counts - counts.round()) < 1e-4).all(axis=0)
    elements = np.nan_to_num(evidence.at("output_elements", evidence.rows[-1:])[0]).astype(np.int64)
    common = int(np.gcd.reduce(elements[elements > 0], initial=0))
    return np.asarray(few & (elements <= FEW / 2 * common))


def _take_turns(evidence: Evidence, layers: Mask) -> bool:
    """Whether the few units that are on are others for other samples, as in a sparse code."""
    looks = evidence.looks("dead_fraction")
    if len(looks) == 0:
        return False
    at_a_time, at_some_time = 1 - evidence.median("zero_fraction")[-1], 1 - looks[-1]
    return bool(((at_a_time > 0) & (at_some_time >= TURNS * at_a_time))[layers].all())


def _of_gates(evidence: Evidence) -> Mask:
    """Return which layers lead to gates alone, as the few units of a squeeze and excitation.

    What they are given, means over places, hardly varies: half of them are off from the start.
    """
    edges = edges_of(evidence.run)
    found = np.zeros(len(evidence.names), dtype=bool)
    if len(edges):
        found[before_gates(evidence.run, edges)] = True
        for layer in range(len(found) - 1, -1, -1):
            readers = edges[edges[:, 0] == layer, 1]
            found[layer] |= len(readers) > 0 and bool((readers >= 0).all() and found[readers].all())
    return found


def _first_step(evidence: Evidence, off: Mask) -> int:
    """Return the step at which the first of the layers was off, within the first window."""
    window = evidence.windows[int(np.flatnonzero(off.any(axis=1))[0])]
    zero = evidence.at("zero_fraction", window)[:, off.any(axis=0)]
    return evidence.step(window[int(np.flatnonzero((zero >= OFF).any(axis=1))[0])])


def switched_off(evidence: Evidence) -> Mask:
    """Return which activations are switched off, (windows, layers).

    Not those, such as tanh, that are at their steepest where they are 0, nor those in a branch
    that starts at zero and has not been stepped yet, nor such as are given zeros.
    """
    steep = evidence.median("derivative_mean") > 0.5
    off = np.asarray((evidence.median("zero_fraction") >= OFF) & ~steep)
    return off & ~starts_at_zero(evidence) & ~_given_zeros(evidence)


def _given_zeros(evidence: Evidence) -> Mask:
    """Return which layers read others alone that give exactly 0 throughout, (windows, layers).

    Not by weights that are 0, but because they are given nothing else.
    """
    gives_zeros = (evidence.highest("activation_norm") == 0) & ~zero_weights(evidence)
    given: Mask = np.zeros_like(gives_zeros, dtype=bool)
    for layer, sources in evidence.sources.items():
        given[:, layer] = gives_zeros[:, sources].all(axis=1)
    return given


def zero_weights(evidence: Evidence) -> Mask:
    """Return which layers own parameters that are all zero, (windows, layers)."""
    return np.asarray((evidence.median("weight_norm") == 0) & evidence.owners, dtype=bool)


def starts_at_zero(evidence: Evidence) -> Mask:
    """Return which layers lie in a branch with weights that are still zero, (windows, layers)."""
    zero = zero_weights(evidence)
    inside = np.zeros_like(zero)
    if len(evidence.rows) <= START:
        for block in residual_blocks(evidence.run):
            here = slice(block.first, block.after)
            inside[:, here] = np.any(zero[:, here], axis=1, keepdims=True)
        zeros = np.logical_or.accumulate(zero, axis=1)
        inside |= zeros & ~np.all(zero, axis=1, keepdims=True) & _named_alike(evidence, zero)
    return inside


def _named_alike(evidence: Evidence, zero: Mask) -> Mask:
    """Return which layers share a module, but not the model itself, with one that is zero."""
    parents = [name.rpartition(".")[0] for name in evidence.names]
    alike = np.zeros_like(zero)
    for window, marked in enumerate(zero):
        held = {parents[i] for i in np.flatnonzero(marked)} - {""}
        alike[window] = [parent in held for parent in parents]
    return alike


def _remedies(evidence: Evidence, *, from_start: bool) -> Iterator[str]:
    if from_start:
        yield "start biases at zero or slightly above: these units were off from the first step"
    else:
        yield f"these units worked at first: {remedies.lower_rate(evidence)}"
    yield "use LeakyReLU, GELU or ELU, whose units come back"
