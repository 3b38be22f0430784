"""Is the gradient healthy, if not why, and what would help: a run's frames to findings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from gradscope.diagnosis.evidence import WINDOW, Evidence
from gradscope.diagnosis.findings import CANNOT_TELL, Diagnosis, Finding
from gradscope.diagnosis.rules import blocks, clipping, layers, vanishing
from gradscope.diagnosis.signal_path import SignalPath, composites, is_weight_layer
from gradscope.diagnosis.tried import tried_first
from gradscope.errors import GradscopeError
from gradscope.runs.run import Run
from gradscope.schema import VERDICTS
from gradscope.wording import compared, listed

RULES = (
    vanishing.non_finite,
    vanishing.flow,
    layers.dead,
    layers.disconnected,
    layers.collapsed,
    layers.saturated,
    clipping.scaled_clipping,
    blocks.shortcut_dominated,
    blocks.reparameterised,
    layers.update_speed,
)

GRAVEST_FIRST = (
    "exploding",
    "dead",
    "disconnected",
    "vanishing",
    "collapsed",
    "saturated",
    "scaled-clipping",
)
"""Verdicts that a run can have as a whole, beside `healthy`."""

_SEVERITIES = ("critical", "warning", "information")


def diagnose(run: Run) -> Diagnosis:
    """Say whether the gradient flows well through a net, if not why, and what would help.

    Parameters
    ----------
    run : Run
        Recorded, or being recorded.

    Returns
    -------
    Diagnosis
        Its `verdict` is about the whole run, `start` and `end` about its ends. With fewer than
        20 recorded steps a note says how little is known; without readings of the signal the
        verdict is `cannot tell`.

    Raises
    ------
    GradscopeError
        If `run` is no `Run`.

    Notes
    -----
    =============== =====================================================================
    vanishing       early gradient <= 1/100 of the late one, by the running median
    exploding       early gradient >= 100 times the late one, or values that are not finite
    dead            an activation's outputs are 0 for 99 % or more of units and samples
    disconnected    a gradient of exactly 0 that is no underflow
    collapsed       a hidden layer's outputs are all nearly the same number
    saturated       over half of an activation's units with |phi'| < 0.1 of its maximum
    scaled-clipping gradients clipped before `unscale_`: the optimizer gets threshold / scale
    =============== =====================================================================

    These decide the verdict, in the order of their gravity. For information only:
    shortcut-dominated and reparameterised blocks, update speeds out of the usual band, and what
    was so at the first step alone.
    """
    if not isinstance(run, Run):
        raise GradscopeError(
            f"diagnose() takes a Run, got {type(run).__name__}; read one with gradscope.load(path)"
        )
    evidence = Evidence(run)
    found = list(itertools.chain.from_iterable(rule(evidence) for rule in RULES))
    found = [tried_first(finding, run) for finding in found]
    found.sort(key=lambda finding: (_SEVERITIES.index(finding.severity), _gravity(finding)))
    unknown = _unknown(evidence)
    verdict = _headline([f for f in found if f.severity != "information"], unknown)
    decades, early, late = _medians(evidence)
    return Diagnosis(
        run=run.name,
        verdict=verdict,
        summary=_summary(evidence, verdict, decades, found),
        # the first step's, also what passed with it, which is mere information for the whole
        start=_headline([f for f in found if _covers(f, evidence, 0)], unknown),
        end=_headline(
            [f for f in found if f.severity != "information" and _covers(f, evidence, -1)], unknown
        ),
        decades=decades,
        early_signal=early,
        late_signal=late,
        findings=tuple(found),
        notes=tuple(_notes(evidence)),
    )


def _gravity(finding: Finding) -> int:
    if finding.verdict in GRAVEST_FIRST:
        return GRAVEST_FIRST.index(finding.verdict)
    return len(GRAVEST_FIRST) + VERDICTS.index(finding.verdict)


def _headline(found: Sequence[Finding], unknown: str | None) -> str:
    """Return the gravest verdict among findings; without one `healthy`, if that can be told."""
    verdicts = {finding.verdict for finding in found}
    for verdict in GRAVEST_FIRST:
        if verdict in verdicts:
            return verdict
    return f"{CANNOT_TELL}: {unknown}" if unknown else "healthy"


def _covers(finding: Finding, evidence: Evidence, row: int) -> bool:
    if len(evidence.rows) == 0:
        return False
    step = int(evidence.steps["step"].iloc[evidence.rows[row]])
    return finding.steps[0] <= step <= finding.steps[1]


def _unknown(evidence: Evidence) -> str | None:
    """Return why nothing can be said of the gradient's flow, if so."""
    if len(evidence.steps) == 0:
        return "no step recorded"
    if len(evidence.rows) == 0:
        if evidence.steps["skipped"].all():
            return "the loss scaler skipped every recorded step"
        return "no step has a reading other than NaN"
    path = evidence.path
    if path is None:
        return "no signal recorded"
    if np.isnan(path.decades[evidence.rows]).all():
        signal = evidence.run.matrix("signal_norm")[1][evidence.rows][:, path.layers]
        if np.nanmax(signal, initial=0) == 0:
            return "the loss gave no gradient"
        return "no signal recorded at both ends of the net"
    unread = _unread(evidence, path)
    if unread and unread[0] < path.layers[0]:
        return f"no signal recorded at the first layers, such as {evidence.names[unread[0]]}"
    return None


def _unread(evidence: Evidence, path: SignalPath) -> list[int]:
    """Return the weight layers that learn, but whose signal was never recorded.

    Not those within a layer whose own signal was: the parts of an attention, for one.
    """
    learns, read = (
        np.asarray(~np.isnan(evidence.median(column)).all(axis=0), dtype=bool)
        for column in ("grad_norm", "signal_norm")
    )
    weights = is_weight_layer(evidence.layers)
    covered = [f"{name}." for name, known in zip(evidence.names, read, strict=True) if known]
    unread = weights & learns & ~read & ~composites(evidence.layers, weights & read)
    return [
        int(i) for i in np.flatnonzero(unread) if not evidence.names[i].startswith(tuple(covered))
    ]


def _medians(evidence: Evidence) -> tuple[float, float, float]:
    """Return the decades, the early and the late signal, medians over the run."""
    path = evidence.path
    if path is None:
        return np.nan, np.nan, np.nan
    rows = evidence.rows[~np.isnan(path.decades[evidence.rows])]
    if len(rows) == 0:
        return np.nan, np.nan, np.nan
    middle = rows[np.argsort(path.decades[rows])[len(rows) // 2]]
    return float(path.decades[middle]), float(path.early[middle]), float(path.late[middle])


def _summary(evidence: Evidence, verdict: str, decades: float, found: Sequence[Finding]) -> str:
    for finding in found:
        if finding.verdict == verdict:
            return finding.sentence
    if verdict.startswith(CANNOT_TELL):
        return f"{verdict[0].upper()}{verdict[1:]}."
    assert evidence.path is not None
    early, late = evidence.path.early_name, evidence.path.late_name
    if early == late:
        which = "only hidden layer" if len(evidence.path.layers) > 1 else "only layer"
        return f"Gradient flow healthy: {early} is the {which}, there is no depth to lose it in."
    return f"Gradient flow healthy: {early} gets {compared(decades)} {late}."


def _notes(evidence: Evidence) -> list[str]:
    """Return what limits the diagnosis, and what the recorder noted."""
    notes = []
    if 0 < len(evidence.rows) < WINDOW:
        count = f"{len(evidence.rows)} recorded step{'s' * (len(evidence.rows) != 1)}"
        notes.append(f"Only {count}: this tells of the start of training, and little of that.")
    skipped = int(evidence.steps["skipped"].sum())
    if skipped > len(evidence.rows):
        notes.append(f"The loss scaler skipped {skipped} of {len(evidence.steps)} recorded steps.")
    unread = _unread(evidence, evidence.path) if evidence.path is not None else []
    if unread:
        names = listed([evidence.names[i] for i in unread])
        notes.append(f"No signal was recorded at {names}: nothing is known of the gradient there.")
    return notes + list(evidence.run.notes)
