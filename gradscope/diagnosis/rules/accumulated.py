"""Accumulated: gradients that still hold those of the steps before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.signal_path import Floats, composites
from gradscope.wording import layers_named

LOOK = 8
"""First recorded steps, of consecutive ones, over which gradients pile up: later ones are of
weights that the pile has moved."""

FROM = 4
"""Step from which on they have."""

PILES = 1.0
"""Growth over the root of the number of steps: n gradients of any directions add up to as much, and
to n times one where they agree. What nothing is added to grows by .6 of it at most."""

ONE_MORE = 2.0
"""Change of a gradient's norm over the size of one step's gradient, which it cannot exceed where
that is added; how large one is, is known from the first step, to a factor."""

LAYERS = 0.25
"""Share of the layers that may grow less."""


_REMEDIES = ("call optimizer.zero_grad() in every step, before the backward pass",)


def accumulated(evidence: Evidence) -> Iterator[Finding]:
    """Find trainings without `zero_grad`: it was seen that nobody threw gradients away.

    Or, where that was not looked for, gradients grow, but not what they are made of. The gradient
    of a weight layer is made of the signal at its output and of its input, and its size over theirs
    is about the same at every step. Where nothing is thrown away it grows with the number of steps.
    """
    kept = [name for name in evidence.run.facts.get("kept_gradients", ()) if name in evidence.names]
    if kept:
        yield _seen(evidence, kept)
        return
    rows = evidence.rows[:LOOK]
    if len(rows) < LOOK or evidence.step(rows[0]) != 0:
        return
    steps = evidence.steps["step"].to_numpy()[rows]
    if (np.diff(steps) != 1).any():
        return
    piles = _piles(evidence, rows)
    stepped = evidence.weights & evidence.run.was_read("weight_norm")
    stepped &= ~composites(evidence.layers, evidence.weights)
    stepped[list(evidence.partly("no optimizer"))] = False  # zero_grad leaves those as they are
    layers = np.flatnonzero(stepped & (np.nan_to_num(piles) > 0).all(axis=0))
    if len(layers) < 2:
        return
    grown = np.quantile(piles[:, layers] / piles[0, layers], LAYERS, axis=1)
    norms = evidence.at("grad_norm", rows)[:, layers]
    each = norms / piles[:, layers] * piles[0, layers]
    more = np.abs(np.diff(norms, axis=0)) / each[1:]
    if np.quantile(more, 1 - LAYERS) > ONE_MORE:
        return
    number = 1 + np.arange(LOOK)
    if not (grown / np.sqrt(number) >= PILES)[FROM - 1 :].all():
        return
    yield Finding(
        "accumulated",
        "critical",
        "Gradients pile up from step to step: beside what one backward pass makes they have grown"
        f" {grown[-1]:.0f} times in {LOOK} steps.",
        (),
        (int(steps[0]), evidence.step(evidence.rows[-1])),
        {"growth": float(grown[-1]), "steps": float(LOOK)},
        _REMEDIES,
        Place(int(steps[0]), int(layers[0]), "grad_norm", "backward"),
    )


def _seen(evidence: Evidence, kept: list[str]) -> Finding:
    owners = [name for name, owns in zip(evidence.names, evidence.owners, strict=True) if owns]
    some = set(kept) < set(owners)
    of = f" of {layers_named(kept)}" if some else ""
    return Finding(
        "accumulated",
        "critical",
        f"Gradients{of} pile up from step to step: the optimizer gets those of its last step again,"
        " with the new ones on top, as no zero_grad() comes between.",
        tuple(kept) if some else (),
        evidence.whole,
        {},
        _REMEDIES,
        Place(evidence.whole[0], evidence.names.index(kept[0]), "grad_norm", "backward"),
    )


def _piles(evidence: Evidence, rows: np.ndarray) -> Floats:
    """Return each layer's gradient over its signal and its input, (rows, layers).

    The input is what the layers before give; that of the first ones is taken as of one size.
    """
    grad, signal, out = (
        evidence.at(column, rows) for column in ("grad_norm", "signal_norm", "activation_norm")
    )
    into = np.ones_like(out)
    for layer in range(out.shape[1]):
        read = evidence.sources.get(layer, []) if evidence.sources else [layer - 1][layer == 0 :]
        if read:
            into[:, layer] = np.sqrt((out[:, read] ** 2).sum(axis=1))
    with np.errstate(invalid="ignore"):  # 0 * inf
        return over_reference(grad, signal * into)
