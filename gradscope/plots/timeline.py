"""What happened when: marks, changes of the learning rate, clipping, skipped steps, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.findings import Diagnosis
from gradscope.runs.run import Run
from gradscope.wording import setting

Kind = Literal["mark", "rate", "clipped", "skipped", "verdict", "broken"]

RATES = ("learning_rate", "lr")
"""Columns of the steps that hold a learning rate, by preference."""
CHANGE = 0.2
"""Share by which a learning rate changes at once, to be told."""
MOST_CHANGES = 12
"""A learning rate that changes more often follows a schedule: its ends and its peak are told."""
CLIPPED = 0.99
MOST = 40


@dataclass(frozen=True)
class Event:
    """Something that happened at `step`, in words; `short` is for where there is little room."""

    step: int
    kind: Kind
    words: str
    short: str


class Group(NamedTuple):
    """Events that lie too near to each other to be told apart; `at` is the share of the first."""

    at: float
    events: list[Event]


def timeline_info(run: Run, diagnosis: Diagnosis | None = None) -> list[Event]:
    """Return what happened in a run, in the order of steps, at most `MOST` events.

    Parameters
    ----------
    run : Run
    diagnosis : Diagnosis, optional
        Whose findings begin and end somewhere.
    """
    steps = run.steps
    if not len(steps):
        return []
    at = steps["step"].to_numpy()
    found = [Event(step, "mark", text, text) for step, text in run.marks]
    for name in RATES:
        if name in steps.columns and steps[name].notna().any():
            found += _rates(at, steps[name].to_numpy(dtype=float))
            break
    skipped = at[steps["skipped"].to_numpy(dtype=bool)]
    found += _stretches(skipped, at, "skipped", "skipped by the loss scaler", "skipped")
    with np.errstate(invalid="ignore", divide="ignore"):
        left = steps["clipped_grad_norm"].to_numpy() / steps["grad_norm"].to_numpy()
    found += _stretches(at[left < CLIPPED], at, "clipped", "gradient clipped", "clipped")
    if diagnosis is not None:
        found += _verdicts(diagnosis, int(at[-1]))
    order = {"broken": 0, "verdict": 1, "mark": 2, "rate": 3, "skipped": 4, "clipped": 5}
    kept = sorted(found, key=lambda event: order[event.kind])[:MOST]
    return sorted(kept, key=lambda event: event.step)


def gathered(events: list[Event], last: int, room: Callable[[list[Event]], float]) -> list[Group]:
    """Return `events` in groups that do not overlap on a row from step 0 to `last`.

    Parameters
    ----------
    events : list of Event
        In the order of steps.
    last : int
    room : callable
        What share of the row a group takes at least.
    """
    groups: list[Group] = []
    for event in events:
        groups.append(Group(event.step / max(last, 1), [event]))
        while len(groups) > 1 and groups[-1].at < groups[-2].at + room(groups[-2].events):
            later = groups.pop()
            groups[-1].events.extend(later.events)
    return groups


def _rates(at: NDArray[Any], rates: NDArray[np.float64]) -> Iterator[Event]:
    known = np.flatnonzero(np.isfinite(rates))
    values = rates[known]
    if len(values) < 2:
        return
    before, after = values[:-1], values[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        changed = np.flatnonzero(np.abs(after - before) > CHANGE * np.maximum(before, after))
    if len(changed) <= MOST_CHANGES:
        for i in changed.tolist():
            words = f"learning rate {setting(before[i])} → {setting(after[i])}"
            yield Event(int(at[known[i + 1]]), "rate", words, f"lr → {setting(after[i])}")
        return
    peak = int(values.argmax())
    words = f"learning rate at its peak, {setting(values[peak])}"
    yield Event(int(at[known[peak]]), "rate", words, f"lr {setting(values[peak])}")


def _stretches(
    hit: NDArray[Any], at: NDArray[Any], kind: Kind, words: str, short: str
) -> Iterator[Event]:
    """Yield an event a stretch of neighbouring recorded steps, one for all if they are many."""
    if not len(hit):
        return
    places = np.searchsorted(at, hit)
    starts = np.flatnonzero(np.diff(places, prepend=-2) > 1)
    share = f"{len(hit) / len(at):.0%}"
    if len(starts) > MOST_CHANGES:
        yield Event(int(hit[0]), kind, f"{words}, first of {len(hit):,} steps ({share})", short)
        return
    for first, stop in zip(starts, [*starts[1:], len(hit)], strict=True):
        upto = f" to step {hit[stop - 1]:,}" if stop - first > 1 else ""
        yield Event(int(hit[first]), kind, f"{words}{upto}", short)


def _verdicts(diagnosis: Diagnosis, last: int) -> Iterator[Event]:
    for finding in diagnosis.findings:
        if finding.severity == "information":
            continue
        first, end = finding.steps
        if "first_step" in finding.evidence:
            where = f": {finding.layers[0]}" if finding.layers else ""
            first = int(finding.evidence["first_step"])
            words = f"{finding.verdict}, first value that is not finite{where}"
            yield Event(first, "broken", words, f"{finding.verdict}: NaN or inf")
            continue
        yield Event(first, "verdict", f"{finding.verdict} from here on", finding.verdict)
        if finding.severity == "warning" and end < last:  # others hold to the end
            yield Event(end, "verdict", f"{finding.verdict} ends", f"{finding.verdict} ends")
