"""The tries, one after the other: the unchanged copy, what was found of it, and what may mend that.

Memory is that of one copy with its gradients and optimizer state, beside the user's own. A seed
changes the order of the batches, the random numbers of the training (dropout), and the weights
that a change draws.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.findings import CANNOT_TELL, Diagnosis
from gradscope.diagnosis.signal_path import is_weight_layer
from gradscope.diagnosis.verdict import diagnose
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.probes.changes.catalogue import CHANGES, Asked, against, named
from gradscope.probes.changes.change import MISTAKE, Change, Copy, DoesNotFit, Recorded
from gradscope.progress import tracked
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from gradscope.runs.tries import FOLDER, UNCHANGED, Tried, write_tried
from gradscope.whatif.copies import OutOfMemory, random_kept
from gradscope.whatif.result import WhatIf
from gradscope.whatif.trial import Record, Subject, Training, changed, check, train, train_recorded
from gradscope.wording import listed

SEEDS = 3
"""Trainings of each change."""

FURTHER = 1.5
"""How many times as far the loss must fall for a change to help that cures nothing."""

NEARLY = 0.9
"""Share of the best change's fall of the loss from which on a change counts as about as good."""

ENOUGH = 0.02
"""Share of the first loss by which it must be lower for a change to help at all."""

MOVES = 0.1
"""Share of the first loss by which it must fall, lest it is said not to move."""


class _Outcome(NamedTuple):
    """What a change came to: a training for each seed, and the run and diagnosis of the first."""

    trainings: list[Training]
    run: Run
    diagnosis: Diagnosis

    @property
    def loss(self) -> float:
        return _mean([training.loss for training in self.trainings])

    @property
    def first(self) -> float:
        return _mean([training.losses[0] for training in self.trainings])

    @property
    def seconds(self) -> float:
        """Of a step without a watch; NaN where all trainings were watched."""
        return min((training.seconds for training in self.trainings[1:]), default=math.nan)

    @property
    def spread(self) -> float:
        losses = [training.loss for training in self.trainings]
        return max(losses) - min(losses) if all(map(math.isfinite, losses)) else math.nan


def explore(
    subject: Subject,
    record: Record,
    run: Path,
    asked: Sequence[Asked] | None,
    seconds: float | None,
) -> WhatIf:
    """Try changes on copies of a model.

    Parameters
    ----------
    subject : Subject
    record : function of a model, a folder and an optimizer
        Watches a copy.
    run : folder of the run beside which the tries are written
        What is found of it decides, too, what is tried. Where there is none yet, it becomes that
        of the unchanged copy.
    asked : sequence, optional
        What to try; what fits the findings by default.
    seconds : float, optional
        After which no new try is begun.

    Returns
    -------
    WhatIf

    Raises
    ------
    GradscopeError
        Where nothing can be tried, or a change that was asked for fits nowhere.
    """
    began = time.monotonic()
    wanted = None if asked is None else named(asked)
    notes = list(subject.batches.notes)
    with random_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore", GradscopeWarning)  # of copies: their runs hold the notes
        check(subject)
        _tell_memory(subject)
        is_new = not run.exists() or (run.is_dir() and not any(run.iterdir()))
        found = frozenset() if is_new else diagnose(load(run)).verdicts
        base = run if is_new else free_folder(run / FOLDER / UNCHANGED)
        unchanged = _outcome(subject, record, base, None)
        tries = _Tries(subject, record, run / FOLDER, unchanged)
        if wanted is not None:
            for change in wanted.values():
                tries.check(change)
        changes = _fitting(unchanged, found) if wanted is None else wanted
        outcomes: list[tuple[Change, _Outcome]] = []
        for key, change in tracked(changes.items(), "trying", len(changes)):
            if seconds is not None and time.monotonic() - began > seconds:
                left = [other.name for other in list(changes.values())[list(changes).index(key) :]]
                notes.append(f"{seconds:g} s were over: not tried: {listed(left)}")
                break
            outcome = tries.make(key, change, notes)
            if outcome is not None:
                outcomes.append((change, outcome))
    first = _row(unchanged, unchanged, UNCHANGED, "" if base == run else base.name, frozenset())
    rows = [
        (change, _row(outcome, unchanged, change.name, outcome.run.name, change.against))
        for change, outcome in outcomes
    ]
    ranked = _ranked(rows)
    write_tried(run, [first, *ranked])
    return WhatIf(run, first, tuple(ranked), tuple(notes))


class _Tries:
    """Makes tries of changes, each in a folder of its own."""

    def __init__(self, subject: Subject, record: Record, folder: Path, unchanged: _Outcome) -> None:
        self._subject = subject
        self._record = record
        self._folder = folder
        self._unchanged = unchanged
        run = unchanged.run
        names = run.layers["name"].astype(str).tolist()
        self._recorded = Recorded(
            run.steps["grad_norm"].to_numpy(dtype=float).tolist(),
            _median(run.matrix("update_ratio")[1][:, is_weight_layer(run.layers)]),
            [names[b.first : b.after] for b in residual_blocks(run) if b.first < b.after],
        )

    def check(self, change: Change) -> None:
        """Refuse a change that fits nowhere, or fails."""
        try:
            self._changed(change, 0)
        except GradscopeError:
            raise
        except Exception as error:
            raise GradscopeError(f"what_if(): {change.name}: {_reason(error)}") from error

    def make(self, key: str, change: Change, notes: list[str]) -> _Outcome | None:
        """Try a change; None where it does not fit, or cannot be tried, which a note tells."""
        try:
            path = free_folder(self._folder / key)
            return _outcome(
                self._subject,
                self._record,
                path,
                lambda n: self._changed(change, n),
                self._unchanged,
            )
        except DoesNotFit:
            return None
        except OutOfMemory:
            notes.append(f"{change.name}: not tried, out of memory")
        except Exception as error:  # a net may not bear the change: its forward says so
            notes.append(f"{change.name}: could not be tried, {_reason(error)}")
        return None

    def _changed(self, change: Change, number: int) -> Copy:
        return changed(self._subject, change, number, self._recorded)


def _outcome(
    subject: Subject,
    record: Record,
    path: Path,
    make: Callable[[int], Copy] | None,
    unchanged: _Outcome | None = None,
) -> _Outcome:
    """Train copies, the first one watched; no more than that where its loss is no lower."""
    make = make or (lambda number: changed(subject, None, number))
    trainings = [train_recorded(subject, make(0), path, record, 0)]
    run = load(path)
    if (
        unchanged is None
        or trainings[0].loss < unchanged.trainings[0].loss
        or not (math.isfinite(unchanged.trainings[0].loss))
    ):
        for number in range(1, SEEDS):
            trainings.append(train(subject, make(number), number))
    return _Outcome(trainings, run, diagnose(run))


def _fitting(unchanged: _Outcome, found: Collection[str]) -> dict[str, Change]:
    """Return what is tried unasked: what is meant for the findings.

    Where nothing was found that a change is meant for, that is the optimizer's settings, or, where
    the loss does not move, everything.
    """
    meant = frozenset().union(*(change.against for change in CHANGES.values()))
    verdicts = {*unchanged.diagnosis.verdicts, *found} & meant
    if verdicts:
        return against(verdicts)
    moves = unchanged.first - unchanged.loss >= MOVES * abs(unchanged.first)
    return against({"none"}) if moves else dict(CHANGES)


def _row(
    outcome: _Outcome, unchanged: _Outcome, name: str, folder: str, verdicts: frozenset[str]
) -> Tried:
    ill = unchanged.diagnosis.verdict
    cures = outcome.diagnosis.verdict == "healthy" and not ill.startswith(("healthy", CANNOT_TELL))
    training = outcome.trainings[0]
    return Tried(
        change=name,
        folder=folder,
        against=tuple(sorted(verdicts)),
        helps=_helps(outcome, unchanged, cures),
        cures=cures,
        verdict=outcome.diagnosis.verdict,
        decades=float(outcome.diagnosis.decades),
        early_speed=_early_speed(outcome.run),
        first_loss=outcome.first,
        loss=outcome.loss,
        slope=_mean([each.slope for each in outcome.trainings]),
        spread=outcome.spread,
        cost=outcome.seconds / unchanged.seconds,
        parameters=training.parameters,
        steps=len(training.losses),
        seeds=len(outcome.trainings),
    )


def _helps(outcome: _Outcome, unchanged: _Outcome, cures: bool) -> bool:
    if not math.isfinite(outcome.loss):
        return False
    own, other = (x if math.isfinite(x) else 0.0 for x in (outcome.spread, unchanged.spread))
    before = unchanged.loss if math.isfinite(unchanged.loss) else math.inf
    start = min(x for x in (outcome.first, unchanged.first) if math.isfinite(x))
    fall, fall_before = start - outcome.loss, start - before
    if before - outcome.loss <= max(own, other, ENOUGH * abs(start)) or fall <= own:
        return False
    return cures or fall >= FURTHER * max(fall_before, 0.0)


def _ranked(rows: list[tuple[Change, Tried]]) -> list[Tried]:
    """Return the rows, the best first: mistakes that were mended, then those that do about as much
    as the best, of these what cures and takes least, then the others.
    """
    finite = [row for _, row in rows if math.isfinite(row.loss)]
    helping = [row for row in finite if row.helps]
    start = min((row.first_loss for row in finite if math.isfinite(row.first_loss)), default=0.0)
    best = min((row.loss for row in helping), default=math.nan)

    def place(entry: tuple[Change, Tried]) -> tuple[float, ...]:
        change, row = entry
        loss = row.loss if math.isfinite(row.loss) else math.inf
        nearly = row.helps and start - row.loss >= NEARLY * (start - best)
        mended = row.helps and change.takes == MISTAKE
        takes = change.takes if nearly else 0
        return (not row.helps, not mended, not nearly, nearly and not row.cures, takes, loss)

    return [row for _, row in sorted(rows, key=place)]


def _early_speed(run: Run) -> float:
    """Return the update speed of the first third of the weight layers, a median."""
    speeds = run.matrix("update_ratio")[1][:, is_weight_layer(run.layers)]
    return _median(speeds[:, : max(speeds.shape[1] // 3, 1)])


def _median(values: Any) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _tell_memory(subject: Subject) -> None:
    """Say beforehand what the tries take."""
    weights = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    state = sum(
        value.numel() * value.element_size()
        for values in subject.optimizer.state.values()
        for value in (values.values() if isinstance(values, dict) else ())
        if isinstance(value, Tensor)
    )
    size = (2 * weights + state) / 2**20
    print(
        f"what-if: {subject.steps} steps a try, one copy at a time: {size:.3g} MiB for its weights,"
        " gradients and optimizer state, beside activations and what a change adds",
        file=sys.stderr,
    )


def free_folder(path: Path) -> Path:
    """Return `path`, or with a number behind it where an earlier try is in the way."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
