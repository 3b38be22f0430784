"""Accumulated: gradients that still hold those of the steps before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.signal_path import Floats

LOOK = 24
"""First recorded steps, of consecutive ones, over which gradients pile up."""

FEWEST = 6

MOST = 1.0
"""What a gradient can be at most over its signal and input, by Cauchy and Schwarz."""

PILED = 0.4
"""Share of the number of steps that a gradient must have grown to, over what its signal makes."""


def accumulated(evidence: Evidence) -> Iterator[Finding]:
    """Find trainings without `zero_grad`: gradients that grow, but not what they are made of.

    The gradient of a weight layer is made of the signal at its output and of its input, and its
    size over theirs is about the same at every step. Where nothing is thrown away it grows with
    the number of steps.
    """
    rows = evidence.rows[:LOOK]
    if len(rows) < FEWEST or evidence.step(rows[0]) != 0:
        return
    steps = evidence.steps["step"].to_numpy()[rows]
    if (np.diff(steps) != 1).any():
        return
    piles = _piles(evidence, rows)
    stepped = evidence.weights & evidence.run.was_read("weight_norm")
    layers = np.flatnonzero(stepped & np.isfinite(piles).all(axis=0))
    if len(layers) < 2:
        return
    middle = np.median(piles[:, layers], axis=1)
    number = 1 + np.arange(len(rows))
    grown = middle / middle[0]
    piled = (grown / number >= PILED) & (grown / number <= 1 / PILED)
    # later steps are of weights that the pile has moved: what the first ones show counts
    seen = FEWEST // 2 + int(np.argmin(np.append(piled[FEWEST // 2 :], False)))
    enough = np.flatnonzero(middle[FEWEST - 1 : seen] >= MOST)
    if len(enough) == 0:
        return
    last = FEWEST - 1 + int(enough[-1])
    yield Finding(
        "accumulated",
        "critical",
        f"Gradients pile up from step to step: beside what one backward pass makes they have grown"
        f" {grown[last]:.0f} times in {last + 1} steps.",
        (),
        (int(steps[0]), evidence.step(evidence.rows[-1])),
        {"growth": float(grown[last]), "steps": float(last + 1)},
        ("call optimizer.zero_grad() in every step, before the backward pass",),
        Place(int(steps[0]), int(layers[0]), "grad_norm", "backward"),
    )


def _piles(evidence: Evidence, rows: np.ndarray) -> Floats:
    """Return each layer's gradient over its signal and its input, the output of the one before."""
    grad, signal, out = (
        evidence.at(column, rows) for column in ("grad_norm", "signal_norm", "activation_norm")
    )
    into = np.ones_like(out)
    into[:, 1:] = out[:, :-1]
    with np.errstate(invalid="ignore"):  # 0 * inf
        return over_reference(grad, signal * into)
