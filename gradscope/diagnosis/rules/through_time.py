"""Through time: what becomes of the gradient on its way back over the steps of a sequence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.evidence import WINDOW, Evidence, column_medians
from gradscope.diagnosis.findings import Finding, Place, Severity
from gradscope.diagnosis.rules.update_speed import falls
from gradscope.diagnosis.signal_path import Floats, log10
from gradscope.kinds import canonical
from gradscope.wording import amount

VANISHING = -7.2
"""Decades from the last time step to the first at which nothing is learnt of the first: 2^-24, what
rounding leaves of a sum in float32. An LSTM or GRU as it starts loses 5 over 28 steps, and learns
what the last ones tell."""

VANISHED = -12.0
"""Decades down to which it is for information where the loss falls: what the last time steps tell
may be enough."""

EXPLODING = 4.0

FEWEST = 4
"""Time steps to speak of."""


def through_time(evidence: Evidence) -> Iterator[Finding]:
    """Find layers whose gradient is lost, or grows, over the steps of a sequence.

    The weights are the same at all steps, so that no optimizer makes up for it; but the layer may
    not be the only way through time, or the last steps be all that counts. Where the steps of
    a recurrent layer were not read, its gates may show them: a state that is handed on by one is a
    join at each time step.
    """
    if not evidence.windows:
        return
    yield from _cut(evidence)
    read = evidence.median("time_decades")
    for layer in range(len(evidence.names)):
        known = read[:, layer]
        known = known[~np.isnan(known)]
        if len(known) == 0 and evidence.recurrent[layer]:
            known = _by_joins(evidence, layer)
        known = known[~np.isposinf(known)]  # the loss takes nothing of the last step
        if len(known) == 0:
            continue
        middle = float(column_medians(known[:, None])[0])
        if np.isnan(middle) or VANISHING < middle < EXPLODING:
            yield from _at_first(evidence, layer)
            continue
        harmless = VANISHED < middle < 0 and falls(evidence)
        harmless |= middle < 0 and len(evidence.rows) == 1 and not evidence.recurrent[layer]
        yield _finding(evidence, layer, middle, "information" if harmless else "critical")


def _cut(evidence: Evidence) -> Iterator[Finding]:
    """Find cells that are handed their state without its graph, all through a forward."""
    for name, calls in evidence.run.facts.get("cut_states", {}).items():
        if name not in evidence.names:
            continue
        layer = evidence.names.index(name)
        yield Finding(
            "vanishing-through-time",
            "critical",
            f"No gradient goes back through time in layer {evidence.labels[layer]}: at each of its"
            f" {calls} calls in a forward the state that it is handed has lost its graph, as by"
            " detach(), .data or no_grad(). It learns what it makes of one input, not of those"
            " before.",
            (name,),
            evidence.whole,
            {"calls": float(calls)},
            (
                "hand the state on as the cell returned it; detach it between batches, or every"
                " some ten time steps where sequences are long",
            ),
            Place(evidence.whole[0], layer, "signal_norm", "backward"),
        )


def _at_first(evidence: Evidence, layer: int) -> Iterator[Finding]:
    """Find an explosion over the first steps, which the training has come out of since."""
    rows = evidence.rows[: WINDOW // 2]
    values = evidence.at("time_decades", rows)[:, layer]
    if len(rows) == WINDOW // 2 and (values >= EXPLODING).all() and np.isfinite(values).all():
        steps = evidence.step(rows[0]), evidence.step(rows[-1])
        yield _finding(evidence, layer, float(np.median(values)), "warning", steps)


def _finding(
    evidence: Evidence,
    layer: int,
    decades: float,
    severity: Severity,
    passed: tuple[int, int] | None = None,
) -> Finding:
    lost, steps = decades < 0, passed or evidence.whole
    since = "" if passed is None else f", no longer so much after step {steps[1]}"
    what = "time step" if evidence.recurrent[layer] else "call"
    if np.isinf(decades):
        much = "nothing of it"
    else:
        much = f"{amount(10.0 ** min(abs(decades), 300))} times {'less' if lost else 'more'} of it"
    kind = canonical(str(evidence.layers["kind"].iloc[layer]))
    return Finding(
        "vanishing-through-time" if lost else "exploding-through-time",
        severity,
        f"The gradient {'vanishes' if lost else 'explodes'} on its way back through time in layer"
        f" {evidence.labels[layer]}: the first {what} gets {much} than the last one{since}.",
        (evidence.names[layer],),
        steps,
        {"time_decades": decades},
        tuple(_remedies(kind, lost=lost)),
        Place(steps[0], layer, "time_decades", "backward"),
    )


def _by_joins(evidence: Evidence, layer: int) -> Floats:
    """Return log10 of the state's gradient, first over last join in time, (rows,) or none."""
    joins = np.flatnonzero((evidence.run.shortcuts["branch"] == evidence.names[layer]).to_numpy())
    if len(joins) < FEWEST:
        return np.zeros(0)
    ends = [int(joins[0]), int(joins[-1])]
    total = evidence.run.shortcut_matrix("total_norm", shortcuts=ends)[1][evidence.rows]
    first, last = total.astype(np.float64).T
    decades = log10(over_reference(first, last))
    return np.asarray(decades[~np.isnan(decades)])


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
