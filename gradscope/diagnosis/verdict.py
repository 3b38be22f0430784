"""Is the gradient healthy, if not why, and what would help: a run's frames to findings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradscope.diagnosis.beside import beside, flow_in_words, settings
from gradscope.diagnosis.evidence import WINDOW, Evidence
from gradscope.diagnosis.findings import CANNOT_TELL, Diagnosis, Finding
from gradscope.diagnosis.rules import (
    accumulated,
    attention,
    batch_norm,
    blocks,
    clipping,
    collapsed,
    dead,
    disconnected,
    dropout,
    eps,
    experts,
    flow,
    games,
    loss,
    non_finite,
    not_updated,
    output,
    overwritten,
    rounding,
    saturated,
    targets,
    through_time,
    update_speed,
)
from gradscope.diagnosis.signal_path import SignalPath, composites
from gradscope.diagnosis.tried import tried_first
from gradscope.errors import GradscopeError
from gradscope.runs.run import Run
from gradscope.schema import VERDICTS

RULES = (
    non_finite.non_finite,
    not_updated.not_updated,
    overwritten.overwritten,
    accumulated.accumulated,
    flow.flow,
    games.starved_player,
    through_time.through_time,
    dead.dead,
    disconnected.disconnected,
    collapsed.collapsed,
    saturated.saturated,
    attention.large_logits,
    output.output,
    targets.targets,
    experts.unbalanced_experts,
    dropout.strong_dropout,
    batch_norm.tiny_batch,
    batch_norm.running_statistics,
    clipping.scaled_clipping,
    loss.unstable,
    loss.no_progress,
    update_speed.update_speed,
    rounding.lost_in_rounding,
    eps.large_eps,
    blocks.shortcut_dominated,
    blocks.reparameterised,
)

GRAVEST_FIRST = (
    "batchnorm-eval",
    "exploding",
    "dead",
    "disconnected",
    "vanishing",
    "exploding-through-time",
    "vanishing-through-time",
    "not-updated",
    "accumulated",
    "scaled-clipping",
    "output",
    "collapsed",
    "unstable",
    "saturated",
    "attention-logits",
    "experts",
    "tiny-batch",
    "dropout",
    "update-speed",
)
"""Verdicts that a run can have as a whole, beside `healthy`."""

_WHAT_IS_LEFT = frozenset({"collapsed", "dead", "disconnected", "saturated"})
"""Verdicts, beside those of flow, on what a step far too large leaves of a net."""

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
    - `vanishing`: early gradient <= 1/100 of the late one, by the running median, which neither an
      optimizer nor weights that are shared by many places make up for
    - `exploding`: early gradient >= 100 times the late one (deep nets: .065 decades a layer), while
      the loss does not fall, or values that are not finite
    - `vanishing-through-time`, `exploding-through-time`: likewise, over the steps of a sequence
    - `dead`: an activation's outputs are 0 for 99 % or more of units and samples
    - `disconnected`: a gradient of exactly 0 that is no underflow, or no path from the loss
    - `not-updated`: weights that get a gradient and never move, or are written by something else
    - `accumulated`: gradients that still hold those of earlier steps
    - `scaled-clipping`: gradients clipped before `unscale_`: the optimizer gets threshold / scale
    - `collapsed`: outputs that are one number, or the same for all samples or units
    - `unstable`: a loss that rose, or jumped, under steps too large for the weights
    - `output`: an activation before a loss that applies it itself, targets out of its reach, or of
      another shape
    - `experts`: experts that get nearly all tokens, or next to none, or no gradient
    - `tiny-batch`: a BatchNorm over fewer than four values a channel
    - `batchnorm-eval`: a BatchNorm in training that normalises by running statistics that do not
      fit
    - `dropout`: nine tenths of a layer or more left out in training
    - `saturated`: over half of an activation's units on less than 0.1 of its steepest slope, where
      it flattens out on both sides; all units without any, where on one
    - `attention-logits`: logits above 100: softmax gives all weight to one key
    - `update-speed`: steps of a tenth of the weights' size, or of next to nothing of it, or such as
      half precision loses in rounding

    These decide the verdict, in the order of their gravity. For information only:
    shortcut-dominated and reparameterised blocks, a loss of gradient that the optimizer makes up
    for, a loss that stands still for a reason that does not show in the net (`no-progress`), and
    what was so at the first step alone.
    """
    if not isinstance(run, Run):
        raise GradscopeError(
            f"diagnose() takes a Run, got {type(run).__name__}; read one with gradscope.load(path)"
        )
    return diagnosis_of(Evidence(run))


def diagnosis_of(evidence: Evidence) -> Diagnosis:
    """Return what `diagnose` says of the run under diagnosis, for who asks `evidence` more."""
    run = evidence.run
    found = _agreeing(list(itertools.chain.from_iterable(rule(evidence) for rule in RULES)))
    causes, left = _causes_first(found)
    causes = [tried_first(finding, run) for finding in causes]
    found = causes + left
    found.sort(key=lambda finding: (_SEVERITIES.index(finding.severity), _gravity(finding)))
    unknown = _unknown(evidence)
    verdict = _headline([f for f in causes if f.severity != "information"], unknown)
    decades, early, late = _medians(evidence)
    return Diagnosis(
        run=run.name,
        verdict=verdict,
        summary=_summary(evidence, verdict, decades, found),
        beside=tuple(beside(evidence, found, verdict, decades)),
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
        settings=tuple(settings(evidence, found)),
    )


def _agreeing(found: list[Finding]) -> list[Finding]:
    """Return the findings without those that another one explains, and whose remedies differ."""
    verdicts = {finding.verdict for finding in found if finding.severity != "information"}
    explained = set()
    if verdicts or any(finding.verdict == "update-speed" for finding in found):
        explained.add("no-progress")
    if verdicts & {"scaled-clipping", "not-updated"}:
        explained.add("update-speed")  # steps are small as the gradient is gone
    if any(f.verdict == "saturated" and f.severity == "critical" for f in found):
        explained.add("not-updated")  # what comes through a flat activation moves nothing
    starved = {layer for f in found if f.verdict == "experts" for layer in f.layers}
    return [
        finding
        for finding in found
        if finding.verdict not in explained
        and not (finding.verdict == "disconnected" and _are_among(finding.layers, starved))
    ]


def _causes_first(found: list[Finding]) -> tuple[list[Finding], list[Finding]]:
    """Part findings from what a step has left of the net that changed a layer by all its size.

    Nets with BatchNorm come back from such a step. One that has not is where it has left them; that
    is no cause by itself, and has no remedy of its own.
    """
    steps = [
        finding
        for finding in found
        if finding.verdict == "unstable"
        and finding.evidence.get("update_ratio", 0) > loss.OVERWRITTEN
        and finding.evidence["last_loss"] > finding.evidence["first_loss"]
    ]
    left = [
        finding
        for finding in found
        if finding.severity != "information"
        and (finding.verdict in _WHAT_IS_LEFT or "decades" in finding.evidence)
        and any(finding.steps[0] > step.steps[0] for step in steps)
    ]
    causes = [
        replace(finding, severity="critical") if left and finding in steps else finding
        for finding in found
        if finding not in left
    ]
    return causes, [replace(finding, severity="warning", remedies=()) for finding in left]


def _are_among(layers: Sequence[str], starved: set[str]) -> bool:
    return bool(layers) and starved.issuperset(layers)


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
        return True
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
        return f"no signal recorded at the first layers, such as {evidence.labels[unread[0]]}"
    return None


def _unread(evidence: Evidence, path: SignalPath) -> list[int]:
    """Return the weight layers that learn, but whose signal was never recorded.

    Not those within a layer whose own signal was: the parts of an attention, for one.
    """
    learns, read = (
        np.asarray(~np.isnan(evidence.median(column)).all(axis=0), dtype=bool)
        for column in ("grad_norm", "signal_norm")
    )
    weights = evidence.weights
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
    return flow_in_words(evidence, decades)


def _notes(evidence: Evidence) -> list[str]:
    """Return what limits the diagnosis, and what the recorder noted."""
    notes = []
    if len(evidence.rows) > 0 and len(evidence.steps) < WINDOW:
        count = f"{len(evidence.rows)} recorded step{'s' * (len(evidence.rows) != 1)}"
        notes.append(f"Only {count}: this tells of the start of training, and little of that.")
    told = set(evidence.run.shortcuts["branch"])
    unseen = evidence.recurrent & ~evidence.run.was_read("time_decades")
    told |= set(evidence.run.facts.get("cut_states", ()))
    unseen &= np.array([name not in told for name in evidence.names], dtype=bool)
    if unseen.any():
        named = evidence.named(unseen)
        notes.append(
            f"What becomes of the gradient from time step to time step in {named} was not recorded."
            " It is in models that are not compiled, of several layers where these have neither two"
            " directions nor dropout between them."
        )
    skipped = int(evidence.steps["skipped"].sum())
    if skipped > len(evidence.rows):
        notes.append(f"The loss scaler skipped {skipped} of {len(evidence.steps)} recorded steps.")
    unread = _unread(evidence, evidence.path) if evidence.path is not None else []
    if unread:
        named = evidence.named(unread)
        notes.append(f"No signal was recorded at {named}: nothing is known of the gradient there.")
    return notes + list(evidence.run.notes)
