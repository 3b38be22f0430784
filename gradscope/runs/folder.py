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
from gradscope.storage.lock import is_live
from gradscope.storage.reader import read_rows
from gradscope.storage.run_json import META_NAME, last_lost, lost_words, read_meta

_LATEST = 10**12  # later than any step


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
    layers, shortcuts, edges : DataFrame
        The columns of `schema.LAYERS`, `schema.SHORTCUTS` and `schema.EDGES`.
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

    def refresh(self) -> bool:
        """Take in what was written since; return whether there was anything."""
        if self.mirror is not None:
            self.mirror.update()
        return self._read()

    @property
    def status(self) -> str:
        """As `Run.status`."""
        status = str(self.meta.get("status", "crashed"))
        if status == "running" and self.mirror is None and not is_live(self.path):
            return "crashed"
        return status

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
        self.layers = frames.listed(file, self.meta["layers"], schema.LAYERS)
        self.shortcuts = frames.listed(file, self.meta["shortcuts"], schema.SHORTCUTS)
        self.edges = frames.listed(file, self.meta["edges"], schema.EDGES)
        self._seen = seen
        if self.meta["lost"]:
            self.tell(f"{self.path}: {lost_words(self.meta['lost'])}")
        return True

    def _read_steps(self) -> bool:
        after = int(self.steps["step"].iloc[-1]) if len(self.steps) else -1
        pieces = read_rows(self.path / "steps", self.id, None, after, _LATEST, self.tell)
        new = [pd.DataFrame(rows) for *_, rows in pieces]
        if not new:
            return False
        known = [self.steps] if len(self.steps) else []
        joined = pd.concat([*known, *new], ignore_index=True)
        names = schema.names(schema.STEPS)
        extras = [name for name in joined.columns if name not in names]
        self.steps = joined.reindex(columns=names + extras).astype(
            {c.name: c.dtype for c in schema.STEPS}
        )
        return True

    def _tell_if_cut_off(self) -> None:
        """Say so where there are readings of later steps than the table `steps` has."""
        written = parts.list_parts(self.path / "layers")
        last = int(self.steps["step"].iloc[-1]) if len(self.steps) else -1
        if written and written[-1].last > max(last, last_lost(self.meta["lost"])):
            self.tell(
                f"{self.path / 'steps'}: ends at step {last}, but readings were taken up to step"
                f" {written[-1].last}; a part is missing"
            )
