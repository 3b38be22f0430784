"""What is said beside a verdict: the gradient's flow, the loss, update speeds, the shortcuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gradscope.diagnosis.evidence import WINDOW, Evidence
from gradscope.diagnosis.findings import CANNOT_TELL, Finding
from gradscope.diagnosis.rules import remedies
from gradscope.diagnosis.signal_path import log10
from gradscope.diagnosis.speed import typical_speed
from gradscope.wording import compared

FLOW = frozenset({"vanishing", "exploding", "dead", "disconnected"})
"""Verdicts that are about the gradient's flow themselves."""

UNEVEN = 1.0
"""Decades between update speeds of layers from which on rates of their own are suggested."""


def beside(
    evidence: Evidence, found: Sequence[Finding], verdict: str, decades: float
) -> Iterator[str]:
    """Yield what the verdict leaves out, a sentence each."""
    ill = {finding.verdict for finding in found if finding.severity != "information"}
    told = verdict == "healthy" or verdict.startswith(CANNOT_TELL)
    if not told and not ill & FLOW and not np.isnan(decades):
        yield flow_in_words(evidence, decades)
    if "unstable" not in ill:
        yield from _loss(evidence)
    if not ill & {"update-speed", "not-updated"}:
        yield from _speed(evidence)
    yield from _shortcuts(evidence)


def flow_in_words(evidence: Evidence, decades: float) -> str:
    """Return the sentence about a healthy flow of the gradient."""
    assert evidence.path is not None
    early, late = evidence.path.early_name, evidence.path.late_name
    if early == late:
        which = "only hidden layer" if len(evidence.path.layers) > 1 else "only layer"
        return f"Gradient flow healthy: {early} is the {which}, there is no depth to lose it in."
    return f"Gradient flow healthy: {early} gets {compared(decades)} {late}."


def settings(evidence: Evidence) -> Iterator[str]:
    """Yield a clip norm, and learning rates by layer, where update speeds are uneven."""
    if len(evidence.rows) < WINDOW:
        return
    norm = remedies.clip_norm(evidence)
    if np.isfinite(norm) and norm > 0:
        yield (
            f"Clip norm: {norm:.2g} would clip one step in ten, the 90th percentile of the"
            " gradient's norm."
        )
    speed = typical_speed(evidence)
    weights = np.flatnonzero(evidence.weights)
    known = np.isfinite(speed) & (speed > 0)
    if known.sum() < 2:
        return
    middle = float(np.median(speed[known]))
    off = np.flatnonzero(known & (np.abs(log10(speed / middle)) > UNEVEN))
    if len(off):
        off = off[np.argsort(-np.abs(log10(speed[off] / middle)))][:3]
        rates = [f"{evidence.labels[weights[i]]} x {middle / speed[i]:.2g}" for i in off]
        yield (
            "Learning rate by layer: to move like the middle one,"
            f" {middle:.1e} of its size a step, {', '.join(rates)}."
        )


def _loss(evidence: Evidence) -> Iterator[str]:
    loss = evidence.loss
    if loss is None:
        return
    values = loss.raw[np.isfinite(loss.raw)]
    if len(values) < 2:
        return
    first, last = values[0], float(np.median(values[-max(len(values) // 10, 1) :]))
    moved = abs(last - first) > 0.02 * max(abs(first), abs(last))
    how = "hardly moved" if not moved else "fell" if last < first else "rose"
    yield f"The loss {how}: {first:.3g} at first, {last:.3g} at the end."


def _speed(evidence: Evidence) -> Iterator[str]:
    speed = typical_speed(evidence)
    known = np.flatnonzero(np.isfinite(speed) & (speed > 0))
    if len(known) == 0:
        return
    weights = np.flatnonzero(evidence.weights)
    slow, fast = known[speed[known].argmin()], known[speed[known].argmax()]
    middle = f"{np.median(speed[known]):.2g}"
    sentence = f"A step changes weights by {middle} of their size"
    if len(known) > 1:
        sentence += (
            f", from {speed[slow]:.2g} at layer {evidence.labels[weights[slow]]} to"
            f" {speed[fast]:.2g} at layer {evidence.labels[weights[fast]]}"
        )
    yield sentence + "."


def _shortcuts(evidence: Evidence) -> Iterator[str]:
    """Tell what the shortcuts carry, and what would arrive without them, if that was measured."""
    if evidence.run.shortcuts.empty or not evidence.windows:
        return
    share = evidence.shortcut_median("energy_share")[-1]
    share = share[np.isfinite(share)]
    if len(share) == 0:
        return
    low, high = f"{share.min():.0%}", f"{share.max():.0%}"
    between = low if low == high else f"{low} to {high}"
    one = len(share) == 1
    sentence = (
        f"{len(share)} shortcut{'' if one else 's'} carr{'ies' if one else 'y'} {between} of the"
        " energy of the gradient at their blocks"
    )
    without = _cut(evidence)
    if np.isfinite(without):
        sentence += (
            f"; with them cut, {_share(without)} of it would arrive at layer"
            f" {evidence.labels[int(evidence.path.layers[0])]}"  # type: ignore[union-attr]
        )
    yield sentence + "."


def _cut(evidence: Evidence) -> float:
    """Return the first layer's signal with the shortcuts cut over the one without, a median."""
    if evidence.path is None:
        return np.nan
    layer = [int(evidence.path.layers[0])]
    cut, whole = (
        evidence.run.matrix(column, layers=layer)[1][:, 0].astype(np.float64)
        for column in ("cut_signal_norm", "signal_norm")
    )
    known = np.isfinite(cut) & (whole > 0)
    return float(np.median(cut[known] / whole[known])) if known.any() else np.nan


def _share(value: float) -> str:
    if value == 0:
        return "none"
    return f"{value:.0%}" if value >= 0.01 else f"10^{round(float(np.log10(value)))}"
