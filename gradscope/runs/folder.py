"""The folder of a run, followed while it grows: `run.json`, the table of steps, what was told."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from gradscope import schema
from gradscope.errors import GradscopeWarning
from gradscope.runs import frames
from gradscope.runs.remote import Mirror
from gradscope.storage import parts
from gradscope.storage.reader import read_rows
from gradscope.storage.run_json import META_NAME, last_lost, lost_words, read_meta, status_of

_LATEST = 10**12  # later than any step
_LISTED = {
    "layers": schema.LAYERS,
    "shortcuts": schema.SHORTCUTS,
    "edges": schema.EDGES,
    "heads": schema.HEADS,
}


class RunFolder:
    """What a run's folder holds but for the readings of layers and shortcuts.

    Parameters
    ----------
    path : folder of the run
    mirror : Mirror, optional
        Of which `path` is the copy.

    Attributes
    ----------
    path : Path
    mirror : Mirror or None
    name : str
    meta : dict
        What `run.json` holds.
    id : str
        What it calls the run: parts of another one are left out.
    steps : DataFrame
        The columns of `schema.STEPS`, then the logged scalars.
    """

    def __init__(self, path: str | os.PathLike[str], mirror: Mirror | None) -> None:
        self.path = Path(path)
        self.name = frames.clean(self.path.resolve().name)
        self.steps = frames.no_steps()
        self.mirror = mirror
        self._told: set[str] = set()
        self._seen: tuple[int, ...] = ()  # what identifies the run.json that was read last
        self._read_meta()
        self.id = str(self.meta.get("id", ""))
        closed = self.status == "closed" and mirror is None
        self._read()
        for table in schema.TABLES:
            for file in parts.foreign_files(self.path / table):
                self.tell(f"{file}: no part file of gradscope, left out")
        if closed and self.status == "closed":  # what was read in between is all there is
            self._tell_if_cut_off()

    @property
    def layers(self) -> pd.DataFrame:
        """As `Run.layers`."""
        return self._listed["layers"].frame

    @property
    def shortcuts(self) -> pd.DataFrame:
        """As `Run.shortcuts`."""
        return self._listed["shortcuts"].frame

    @property
    def edges(self) -> pd.DataFrame:
        """As `Run.edges`."""
        return self._listed["edges"].frame

    @property
    def heads(self) -> pd.DataFrame:
        """As `Run.heads`."""
        return self._listed["heads"].frame

    def refresh(self) -> bool:
        """Take in what was written since; return whether there was anything."""
        if self.mirror is not None:
            self.mirror.update()
        return self._read()

    @property
    def status(self) -> str:
        """As `Run.status`."""
        if self.mirror is not None:
            return str(self.meta.get("status", "crashed"))
        return status_of(self.path, self.meta)

    @property
    def notes(self) -> list[str]:
        """What the recorder could not do, and why."""
        return [str(note) for note in self.meta["notes"]]

    def tell(self, message: str) -> None:
        """Warn, once for each message."""
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, GradscopeWarning, stacklevel=3)

    def tell_if_empty(self) -> None:
        """Say why there is no step, if there is none."""
        if not len(self.steps):
            why = "; ".join(self.notes)
            if not why and self._seemed_live:
                why = "the run is live, and nothing was flushed to disk yet"
            why = why or "no forward, backward and optimizer step was seen before it ended"
            self.tell(f"{self.path}: no step is recorded: {why}")

    def _read(self) -> bool:
        self._seemed_live = self.status == "running"  # before: it may end while its steps are read
        grown = self._read_steps()
        # run.json after the steps: it lists every layer that their rows name
        return self._read_meta() or grown

    def _read_meta(self) -> bool:
        file = self.path / META_NAME
        seen: tuple[int, ...] = ()
        with suppress(OSError):
            status = file.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return False
        self.meta: dict[str, Any] = frames.cleaned(read_meta(self.path))
        self._listed = {key: frames.Listed(file, self.meta[key], t) for key, t in _LISTED.items()}
        self._seen = seen
        if self.meta["lost"]:
            self.tell(f"{self.path}: {lost_words(self.meta['lost'])}")
        return True

    def _read_steps(self) -> bool:
        after = int(self.steps["step"].iloc[-1]) if len(self.steps) else -1
        pieces = read_rows(self.path / "steps", self.id, None, after, _LATEST, self.tell)
        new = [rows for *_, rows in pieces]
        if new:
            known = {str(name): self.steps[name].to_numpy() for name in self.steps}
            self.steps = frames.steps([known, *new] if len(self.steps) else new)
        return bool(new)

    def _tell_if_cut_off(self) -> None:
        """Say so where there are readings of later steps than the table `steps` has."""
        written = parts.list_parts(self.path / "layers")
        last = int(self.steps["step"].iloc[-1]) if len(self.steps) else -1
        if written and written[-1].last > max(last, last_lost(self.meta["lost"])):
            self.tell(
                f"{self.path / 'steps'}: ends at step {last}, but readings were taken up to step"
                f" {written[-1].last}; a part is missing"
            )
