"""The runs of a folder: listed cheaply, read when they are selected, refreshed under a lock."""

from __future__ import annotations

import json
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.diagnosis.comparison import Comparison, compare
from gradscope.diagnosis.findings import Diagnosis
from gradscope.diagnosis.kept import summary_of
from gradscope.diagnosis.summary import Summary, summarise
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.plots import METRICS
from gradscope.plots.drawn import as_runs
from gradscope.plots.heatmap import heatmap_info
from gradscope.plots.speed import speed_info
from gradscope.runs.loading import discover, load
from gradscope.runs.run import Run
from gradscope.storage.run_json import read_meta, status_of
from gradscope.wording import number
from gradscope_dashboard.background import Background
from gradscope_dashboard.starting import Starter
from gradscope_dashboard.state import SHOWN_AT_FIRST, State

SILENCE_SECONDS = 30
"""A live run that has written nothing for so long may be paused."""


class Library:
    """Runs by name; a name from a browser is only ever looked up here.

    Parameters
    ----------
    source : Run, sequence of Run, or path
        A path is that of a folder of runs, or of a run.

    Attributes
    ----------
    lock : RLock
        Held while a run is read or refreshed: what is drawn comes from one moment.
    starter : Starter or None
        What may be started from the page, if anything.

    Raises
    ------
    GradscopeError
        If there is no such folder, no run, or something else than a run is among them.
    """

    def __init__(self, source: Run | Sequence[Run] | str | os.PathLike[str]) -> None:
        self._top: Path | None = None
        self._given: dict[Path, Run] = {}
        if isinstance(source, (str, os.PathLike)):
            self._top = Path(source)
            if not self._top.is_dir():
                raise GradscopeError(f"{self._top} is no folder; give a folder of runs, or a run")
        else:
            self._given = {run.path.resolve(): run for run in as_runs(source)}
            if not self._given:
                raise GradscopeError("there is no run to show; give one, several, or a folder")
        self.lock = threading.RLock()
        self.starter: Starter | None = None
        self._paths: dict[str, Path] = {}
        self._runs: dict[str, Run] = {}
        self._problems: dict[str, str] = {}
        self._notes: dict[str, list[str]] = {}
        self._background = Background()
        self._listing = Background()
        self._metas: dict[str, tuple[object, dict[str, Any]]] = {}
        self.rescan()

    @property
    def folder(self) -> Path | None:
        """Folder in which runs are looked for; None where they were given."""
        return self._top

    @property
    def names(self) -> list[str]:
        """Names of all runs, in the order in which they were made."""
        return list(self._paths)

    def rescan(self) -> list[str]:
        """Look for new and removed runs, reading none; return `names`."""
        with self.lock:
            found = list(self._given)
            if self._top is not None:  # a folder that is deleted meanwhile has no runs
                found = discover(self._top) if self._top.is_dir() else []
            if set(found) != set(self._paths.values()):
                made = sorted(found, key=lambda path: (_made(path), path.name))
                self._paths = {self._name(path): path for path in made}
                self._runs = {name: run for name, run in self._runs.items() if name in self._paths}
            if len(self._paths) > SHOWN_AT_FIRST:
                self._list_ahead()
            return self.names

    def _list_ahead(self) -> None:
        """Work out the summaries of all runs, which say which is the worst off."""
        for name, path in reversed(self._paths.items()):
            if self._listing.newest(name) is None:
                self._listing.get(name, _file_marks(path), _summary_of(path), patient=False)

    def get(self, names: Sequence[str]) -> list[Run]:
        """Return the runs called `names`, as far as they exist and can be read."""
        with self.lock:
            runs = [self._open(name) for name in names if name in self._paths]
        return [run for run in runs if run is not None]

    def refresh(self, names: Sequence[str]) -> dict[str, list[object]]:
        """Read what is new in the runs called `names`; return a mark of each that then differs.

        Returns
        -------
        dict
            Name of a readable run -> [recorded steps, last step or None, status, for how long it
            has been silent]; the status of a live run that has written nothing for a while is
            "stalled".
        """
        marks: dict[str, list[object]] = {}
        with self.lock:
            for name in names:
                for run in self.get([name]):
                    with self._notes_of(name):
                        try:
                            run.refresh()
                        except GradscopeError as error:
                            self._runs.pop(name)
                            self._problems[name] = str(error)
                            continue
                        steps = run.steps["step"]
                    last = int(steps.iloc[-1]) if len(steps) else None
                    state = state_of(run)
                    silent = silence(run) if state == "stalled" else ""
                    marks[name] = [len(steps), last, state, silent]
        return marks

    def mark(self, runs: Sequence[Run]) -> list[object]:
        """Return what differs once there is more to say of `runs`, or of others beside them."""
        return [*_marks(runs), self.worked_out]

    def summary(self, name: str, *, patient: bool = True) -> Summary | None:
        """Return the newest summary of the run called `name`, None before the first.

        Parameters
        ----------
        name : str
        patient : bool
            Wait a moment for the first one.
        """
        runs = self.get([name])
        if not runs:
            return None
        marks = _marks(runs)
        listed: Summary | None = self._listing.newest(name)
        finished = runs[0].status != "running"
        if listed is not None and listed.steps == len(runs[0].steps) and finished:
            return listed
        found: Summary | None = self._background.get(
            name, marks, lambda: summarise(runs[0]), patient=patient
        )
        if found is not None and runs[0].status != "running" and len(self._paths) <= SHOWN_AT_FIRST:
            self._background.get(
                ("pictures", name), marks, lambda: _draw_ahead(runs[0]), patient=False
            )
        return found

    def shown(self, wanted: State) -> list[str]:
        """Return the names of the runs to show."""
        return wanted.selected(self.names, self.worst)

    @property
    def worst(self) -> str | None:
        """The run that is worst off, None until every run's summary is known."""
        known = {name: self._listing.newest(name) for name in self.names}
        if not all(known.values()):
            return None
        return max(known, key=lambda name: _badness(known[name]), default=None)

    def badness(self, name: str) -> tuple[float, ...]:
        """Return what is the larger the worse off the run called `name` is, as far as is known."""
        return _badness(self.summary(name, patient=False))

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of the table of runs for each; what takes long is None until it is known."""
        rows = []
        for name, path in list(self._paths.items()):
            row: dict[str, Any] = {
                "name": name,
                "config": {},
                "created": "",
                "status": "unreadable",
            }
            mark = _file_marks(path)
            try:
                meta = self._metas.get(name)
                if meta is None or meta[0] != mark:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", GradscopeWarning)
                        meta = self._metas[name] = (mark, read_meta(path))
                held = meta[1]
                row |= {
                    "config": held.get("config") or {},
                    "created": str(held.get("created", "")),
                    "model": str(held.get("model", "")),
                    "status": status_of(path, held),
                }
            except GradscopeError as error:
                row["problem"] = str(error)
            else:
                row |= _listed(self._listing.get(name, mark, _summary_of(path), patient=False))
            rows.append(row)
        return rows

    def comparison(self, names: Sequence[str]) -> Comparison | None:
        """Return the newest comparison of the runs called `names`, None before the first."""
        runs = self.get(names)
        summaries = [self.summary(name, patient=False) for name in names]
        known = [summary.diagnosis for summary in summaries if summary is not None]
        if not runs or len(known) < len(runs):
            return None
        found: Comparison | None = self._background.get(
            tuple(names), _marks(runs), lambda: compare(runs, known), patient=False
        )
        return found

    def opening(self, names: Sequence[str]) -> int | None:
        """Return the step to open the page at, None for the latest.

        That is where the first of the runs broke, if none of them trains and half of them end in
        values that are not finite: at their last step there is nothing to see.
        """
        firsts = []
        for name in names:
            summary = self.summary(name, patient=False)
            if summary is None:
                continue
            for run in self.get([name]):
                if run.status == "running":
                    return None
                broke = breaking(summary.diagnosis)
                if broke is not None:
                    firsts.append(last_readable(run, broke))
        return min(firsts) if firsts and 2 * len(firsts) >= len(names) else None

    @property
    def worked_out(self) -> int:
        """How many diagnoses and comparisons there have been."""
        return self._background.finished + (self.worst is not None)

    def problem(self, name: str) -> str | None:
        """Return why the run called `name` cannot be read, None if it can."""
        return self._problems.get(name)

    def notes(self, name: str) -> list[str]:
        """Return what reading the run called `name` warned about: lost steps, damaged files."""
        return list(self._notes.get(name, []))

    def close(self) -> None:
        """End the background work."""
        if self.starter is not None:
            self.starter.stop()
        self._listing.close()
        self._background.close()

    @property
    def opened(self) -> set[str]:
        """Names of the runs that have been read."""
        return set(self._runs)

    def slot(self, name: str) -> int:
        """Return the place of the run called `name` among all, from 0."""
        return list(self._paths).index(name)

    def _name(self, path: Path) -> str:
        if self._top is None:
            names = [run.name for run in self._given.values()]
            name = self._given[path].name
            number = names[: list(self._given).index(path) + 1].count(name)
            return name if number == 1 else f"{name} ({number})"
        return path.relative_to(self._top).as_posix() if path != self._top else path.name

    def _open(self, name: str) -> Run | None:
        if name not in self._runs:
            with self._notes_of(name):
                try:
                    path = self._paths[name]
                    given = self._given.get(path)
                    # a given run stays its owner's: it shows what it did when it was refreshed last
                    self._runs[name] = load(path) if given is None else given.reopened()
                except GradscopeError as error:
                    self._problems[name] = str(error)
                    return None
            self._problems.pop(name, None)
        return self._runs[name]

    @contextmanager
    def _notes_of(self, name: str) -> Iterator[None]:
        """Keep the warnings about a run for its card instead of the terminal."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", GradscopeWarning)
            yield
        said = [str(warning.message) for warning in caught]
        self._notes.setdefault(name, []).extend(said)


def _summary_of(path: Path) -> Callable[[], Summary]:
    def work() -> Summary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradscopeWarning)
            return summary_of(path)

    return work


def _file_marks(path: Path) -> tuple[int, ...]:
    """Return what differs once a run's folder holds something new."""
    marks = []
    for file in (path / "run.json", path / "steps"):
        with suppress(OSError):
            marks.append(file.stat().st_mtime_ns)
    return tuple(marks)


def _listed(summary: Summary | None) -> dict[str, Any]:
    """Return what the table of runs shows of a summary, in what JSON can hold."""
    if summary is None:
        return {"verdict": None}

    def finite(value: float) -> float | str:
        return value if math.isfinite(value) else number(value)

    return {
        "verdict": summary.diagnosis.verdict.partition(":")[0],
        "tone": summary.tone,
        "decades": finite(round(summary.diagnosis.decades, 2)),
        "loss": finite(summary.last_loss),
        "said": summary.loss.words if summary.loss else "",
        "spark": [
            float(f"{value:.4g}") if math.isfinite(value) else None
            for value in summary.spark.tolist()
        ],
        "steps": summary.steps,
    }


def _badness(summary: Summary | None) -> tuple[float, ...]:
    """Return what orders runs from well to badly off: what is of one kind by how far off."""
    if summary is None:
        return (0.0, 0.0, 0.0, 0.0)
    tones = {"good": 0, "unsure": 1, "bad": 2}
    decades = abs(summary.diagnosis.decades)
    loss = summary.last_loss
    lost = decades if math.isfinite(decades) else math.inf
    return (
        sum(tones[part.tone] for part in summary.parts) + 2 * tones[summary.flow.tone],
        0.0 if summary.flow.tone == "good" else lost,
        max(part.size for part in summary.parts),
        loss if math.isfinite(loss) else math.inf,
    )


def breaking(diagnosis: Diagnosis) -> int | None:
    """Return the first step with values that are not finite, where the run ends with such ones."""
    for finding in diagnosis.findings:
        if finding.severity == "critical" and "first_step" in finding.evidence:
            return int(finding.evidence["first_step"])
    return None


def last_readable(run: Run, step: int) -> int:
    """Return `step`, or the recorded one before if no signal is a number any more by then."""
    steps, signal = run.matrix("signal_norm", max(step - 1000, 0), step)
    known = np.flatnonzero((np.isfinite(signal) & (signal != 0)).any(axis=1))
    return int(steps[known[-1]]) if len(known) else step


def state_of(run: Run) -> str:
    """Return the status of a run; "stalled" if it lives, but has written nothing for a while."""
    if run.status != "running":
        return run.status
    times = run.steps["time"].to_numpy()
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return "stalled" if _silent_seconds(run) > max(SILENCE_SECONDS, 20 * usual) else "running"


def silence(run: Run) -> str:
    """Return since when nothing was written of a run, in words; empty within the last minute."""
    minutes = int(_silent_seconds(run) / 60)
    for count, unit in ((minutes // 1440, "day"), (minutes // 60, "hour"), (minutes, "minute")):
        if count:
            return f"{count} {unit}{'s' * (count != 1)}"
    return ""


def _silent_seconds(run: Run) -> float:
    try:
        return time.time() - (run.path / "steps").stat().st_mtime
    except OSError:
        return 0.0


def _made(path: Path) -> str:
    """Return when the run was made, as its own file says; empty if that cannot be read."""
    try:
        return str(json.loads((path / "run.json").read_text(encoding="utf-8"))["created"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _draw_ahead(run: Run) -> bool:
    """Work out what is kept with a run, so that a look at it later need not wait for its files."""
    for metric in METRICS:
        heatmap_info(run, metric=metric)
    speed_info(run)
    return True


def _marks(runs: Sequence[Run]) -> tuple[tuple[int, str], ...]:
    """Return what differs once there is more to work out of `runs`."""
    return tuple((len(run.steps), run.status) for run in runs)
