"""What is said beside a verdict: the gradient's flow, the loss, update speeds, the shortcuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gradscope.diagnosis.evidence import WINDOW, Evidence
from gradscope.diagnosis.findings import CANNOT_TELL, FLOW, Finding
from gradscope.diagnosis.rules import remedies
from gradscope.diagnosis.shortcut_story import shortcut_story
from gradscope.diagnosis.signal_path import log10
from gradscope.diagnosis.speed import is_adaptive, typical_speed
from gradscope.wording import compared, number

MUCH = 2.0
"""Decades between early and late that ask for a word on why that is healthy."""

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
    broken = any(f.severity == "critical" and "first_step" in f.evidence for f in found)
    if "unstable" not in ill and not broken:  # of a loss that ends in NaN the numbers mislead
        yield from _loss(evidence)
    if not ill & {"update-speed", "not-updated"}:
        yield from _speed(evidence)
    story = shortcut_story(evidence.run)
    if story:
        yield story


def flow_in_words(evidence: Evidence, decades: float) -> str:
    """Return the sentence about a healthy flow of the gradient."""
    assert evidence.path is not None
    early, late = evidence.path.early_name, evidence.path.late_name
    if early == late:
        which = "only hidden layer" if len(evidence.path.layers) > 1 else "only layer"
        return f"Gradient flow healthy: {early} is the {which}, there is no depth to lose it in."
    sentence = f"Gradient flow healthy: {early} gets {compared(decades)} {late}"
    if abs(decades) >= MUCH:
        sentence += ", and the optimizer makes up for it" if is_adaptive(evidence) else ""
    return sentence + "."


def settings(evidence: Evidence, found: Sequence[Finding]) -> Iterator[str]:
    """Yield a clip norm, and learning rates by layer, where update speeds are uneven.

    Not of a training that goes wrong: its readings tell what to mend, not how to tune it.
    """
    if len(evidence.rows) < WINDOW or any(f.severity == "critical" for f in found):
        return
    norm = remedies.clip_norm(evidence)
    if np.isfinite(norm) and norm > 0:
        yield (
            f"Clip norm: {number(norm)} would clip one step in ten, the 90th percentile of the"
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
        rates = [f"{evidence.labels[weights[i]]} x {number(middle / speed[i])}" for i in off]
        yield (
            "Learning rate by layer: to move like the middle one,"
            f" {remedies.of_size(middle)} a step, {', '.join(rates)}."
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
    end = "so far" if evidence.run.status == "running" else "at the end"
    yield f"The loss {how}: {number(first, 3)} at first, {number(last, 3)} {end}."


def _speed(evidence: Evidence) -> Iterator[str]:
    speed = typical_speed(evidence)
    known = np.flatnonzero(np.isfinite(speed) & (speed > 0))
    if len(known) == 0:
        return
    weights = np.flatnonzero(evidence.weights)
    slow, fast = known[speed[known].argmin()], known[speed[known].argmax()]
    still = int((speed == 0).sum())
    sentence = f"A step changes weights by {remedies.of_size(float(np.median(speed[known])))}"
    if len(known) > 1:
        sentence += (
            f", from {remedies.share(speed[slow])} at layer {evidence.labels[weights[slow]]} to"
            f" {remedies.share(speed[fast])} at layer {evidence.labels[weights[fast]]}"
        )
    if still:
        sentence += f"; {still} of {len(weights)} weight layers do not move"
    yield sentence + "."
