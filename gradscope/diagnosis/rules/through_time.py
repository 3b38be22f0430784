"""Through time: what becomes of the gradient on its way back over the steps of a sequence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import Evidence, column_medians
from gradscope.diagnosis.findings import Finding, Place
from gradscope.diagnosis.signal_path import Floats, log10
from gradscope.kinds import canonical
from gradscope.wording import amount

VANISHING = -5.0
"""Decades from the last time step to the first at which nothing is learnt of the first."""

EXPLODING = 4.0

FEWEST = 4
"""Time steps to speak of."""


def through_time(evidence: Evidence) -> Iterator[Finding]:
    """Find recurrent layers whose gradient is lost, or grows, over the steps of a sequence.

    A cell hands its state on by a gate, which is a join at each time step: LSTM and GRU cells show
    them, a GRU too where torch computes it step by step. The weights are the same at all steps, so
    that no optimizer makes up for it.
    """
    for layer in np.flatnonzero(evidence.recurrent):
        decades, count = _decades(evidence, int(layer))
        if count < FEWEST or np.isnan(decades).all():
            continue
        middle = float(column_medians(decades[:, None])[0])
        if VANISHING < middle < EXPLODING:
            continue
        lost = middle < 0
        steps = (evidence.step(evidence.rows[0]), evidence.step(evidence.rows[-1]))
        times = "no part of it" if np.isinf(middle) else f"{amount(10 ** abs(middle))} times"
        yield Finding(
            "vanishing-through-time" if lost else "exploding-through-time",
            "critical",
            f"Over {count + 1} time steps of layer {evidence.labels[layer]} the gradient"
            f" {'loses' if lost else 'gains'} {abs(middle):.1f} decades: the first one gets {times}"
            f" {'less' if lost else 'more'} than the last one.",
            (evidence.names[layer],),
            steps,
            {"decades": middle, "time_steps": float(count + 1)},
            tuple(_remedies(canonical(str(evidence.layers["kind"].iloc[layer])), lost=lost)),
            Place(steps[0], int(layer), "signal_norm", "backward"),
        )


def _decades(evidence: Evidence, layer: int) -> tuple[Floats, int]:
    """Return log10 of the state's gradient, first over last join in time, (rows,); how many."""
    shortcuts = evidence.run.shortcuts
    name = evidence.names[layer]
    joins = np.flatnonzero((shortcuts["branch"] == name).to_numpy())
    if len(joins) < 2:
        return np.full(len(evidence.rows), np.nan), len(joins)
    ends = [int(joins[0]), int(joins[-1])]
    total = evidence.run.shortcut_matrix("total_norm", shortcuts=ends)[1][evidence.rows]
    first, last = total.astype(np.float64).T
    return log10(over_reference(first, last)), len(joins)


def _remedies(kind: str, *, lost: bool) -> Iterator[str]:
    if lost and kind.startswith("lstm"):
        yield "start the forget gate's bias at 1 or 2: what is remembered passes the gradient on"
    elif lost and kind.startswith("gru"):
        yield "start the update gate's bias at 1 or 2: what is remembered passes the gradient on"
    elif lost:
        yield "use an LSTM or a GRU, whose gates pass the gradient on"
    if not lost:
        yield "clip the gradient's norm, at 1 for a start"
    yield "start the recurrent weights orthogonal (torch.nn.init.orthogonal_)"
    yield "use shorter sequences, or truncate: detach the state every some ten steps"
