"""The writing side of a run: its folder, its `run.json`, its rows on their way to part files.

Rows are kept in memory until `RunWriter.flush`; a step counts once its row of the table `steps`
is on disk, which is written last. A crash loses what was not flushed and nothing else. While the
disk refuses, rows wait in bounded memory; what had to be dropped is counted in `run.json`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from gradscope import schema
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.storage import parts
from gradscope.storage.lock import LOCK_NAME, Lock
from gradscope.storage.run_json import (
    LISTS,
    META_NAME,
    Meta,
    free_room,
    last_lost,
    lost_words,
    read_meta,
    reason,
    write_meta,
)

MEMORY_LIMIT = 64 * 2**20
"""Bytes of rows that wait in memory for the disk; beyond it the oldest steps are dropped."""

Rows = dict[str, np.ndarray]


class RunWriter:
    """Write one run: `add_rows`, `flush` them to disk, `close`.

    Nothing but the construction raises when the disk fails: a `GradscopeWarning` tells of it
    once, and the rows wait for the next `flush`.

    Parameters
    ----------
    path : folder of the run
        Created with its parents. It may exist if it is empty.
    meta : what `run.json` holds from the start
        `name`, `model`, `every`, ...; the format, the time and the status are added.
    resume : bool
        Go on with the run in `path` if there is one. `meta` is merged into its `run.json`.

    Attributes
    ----------
    next_step : int
        The step after the last one on disk or known to be lost; 0 in a new run.
    elapsed : float
        The `time` of the last step on disk; 0 in a new run.
    meta : dict
        What `run.json` holds.
    is_new : bool
        Whether there was no run before.

    Raises
    ------
    GradscopeError
        If there is a run already, the folder holds other files or cannot be written, or another
        process writes this run.
    """

    def __init__(self, path: str | os.PathLike[str], meta: Meta, *, resume: bool = False) -> None:
        self.path = Path(path)
        self._rows: dict[str, list[Rows]] = {table: [] for table in schema.TABLES}
        self._merge_from = dict.fromkeys(schema.TABLES, 0)  # step; a part before it is damaged
        self._trouble = ""  # why the last flush failed, empty when it did not
        self.is_new = False
        try:
            if not (self.path / META_NAME).exists():
                self.path.mkdir(parents=True, exist_ok=True)
                if any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                    raise GradscopeError(
                        f"{self.path}: the folder is not empty; choose a new one for the run"
                    )
            self._lock = Lock(self.path)
            try:
                self._start(meta, resume)
            except BaseException:
                self._lock.release()
                if self.is_new:
                    remove_run(self.path)
                raise
        except OSError as error:
            raise GradscopeError(
                f"{self.path}: the run cannot be written, {reason(error)};"
                " choose a folder that can be written"
            ) from error

    def _start(self, meta: Meta, resume: bool) -> None:
        exists = (self.path / META_NAME).exists()
        if exists and not resume:
            raise GradscopeError(
                f"{self.path}: there is a run already; choose another folder, delete this one,"
                " or go on with it with resume=True"
            )
        self.is_new = not exists
        old = read_meta(self.path) if exists else {}
        self.meta: Meta = {
            "format": schema.FORMAT_VERSION,
            "id": uuid.uuid4().hex,
            "name": self.path.resolve().name,
            "created": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            **{key: [] for key in LISTS},
            **old,
            **meta,
            "status": "running",
        }
        steps = parts.list_parts(self.path / "steps")
        committed = _last_step(steps)
        self._committed = committed  # the last step on disk
        self.next_step = max(committed, last_lost(self.meta["lost"])) + 1
        self.elapsed = self._last_time(steps)
        for table in schema.TABLES:
            if (self.path / table).is_symlink():
                raise GradscopeError(
                    f"{self.path / table}: a link to another folder, which is not written to;"
                    " put the folder itself here"
                )
            parts.remove_leftovers(self.path / table, committed)
        write_meta(self.path, self.meta)
        self._meta_written = True

    def _last_time(self, steps: list[parts.Part]) -> float:
        """Return the time of the last step that can be read."""
        for part in reversed(steps):
            with suppress(parts.DamagedPart):
                pieces = parts.read_part(
                    part, self.meta["id"], ["step", "time"], part.first - 1, part.last
                )
                times = np.concatenate([rows["time"] for _, rows in pieces])
                times = times[np.isfinite(times)]
                if times.size:
                    return float(times[-1])
        return 0.0

    def update(self, **fields: Any) -> None:
        """Set `fields` of `run.json`, such as `layers`, `shortcuts` or `notes`."""
        if not self._lock.held:
            return
        self.meta.update(json.loads(json.dumps(fields)))  # the caller's lists may go on growing
        self._meta_written = False
        try:
            self._check_place()
            self._flush_meta()
        except OSError as error:
            self._warn(error)

    def add_rows(self, table: str, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows of whole steps, in order of steps; rows of `steps` come last for their steps.

        Parameters
        ----------
        table : "layers", "shortcuts" or "steps"
        columns : arrays of one length
            The columns of the table in `schema.TABLES`. A metric that is left out is NaN; metrics
            stay float32 or float64 as they are. `steps` may carry further scalars, by name.
        """
        if not self._lock.held:  # closed, or a forked worker: it shares neither rows nor files
            return
        if len(columns["step"]):
            self._rows[table].append(_contract_rows(table, columns))
        if table == "steps" and self._bytes() > MEMORY_LIMIT:
            self.flush()
            while self._rows["steps"] and self._bytes() > MEMORY_LIMIT:
                waiting = joined(self._rows["steps"])["step"]
                self._drop(int(waiting[waiting.size // 8]))

    def flush(self) -> None:
        """Write the rows of all finished steps to part files, and merge parts where due."""
        if not self._lock.held:
            return
        try:
            self._check_place()
            self._flush_meta()  # before the rows: it lists every layer that they name
            self._rows = {t: [joined(held)] if held else [] for t, held in self._rows.items()}
            if self._rows["steps"]:
                last = int(self._rows["steps"][-1]["step"][-1])
                for table in schema.TABLES:  # `steps` comes last: it makes the others count
                    self._flush_table(table, last)
        except OSError as error:
            self._warn(error)
            return
        self._trouble = ""
        self._merge()

    def close(self, status: str = "closed") -> None:
        """Flush, set the status, and let go of the run; a second call does nothing."""
        if not self._lock.held:
            return
        self.flush()
        if self._rows["steps"]:
            self._drop(int(self._rows["steps"][-1]["step"][-1]))
            _warn(f"{self.path}: {lost_words(self.meta['lost'])}")
        self.update(status=status)
        with suppress(OSError):
            if self._lock.is_in(self.path):
                free_room(self.path)
        self._lock.release()

    def take_back(self) -> None:
        """Close a run that nothing is recorded in, and take it away again if it is new."""
        self.close()
        if self.is_new:
            remove_run(self.path)

    def _flush_table(self, table: str, last: int) -> None:
        if not self._rows[table]:
            return
        (rows,) = self._rows[table]
        due = int(np.searchsorted(rows["step"], last, side="right"))
        if due:
            folder = self.path / table
            if not folder.is_dir():
                folder.mkdir()  # not its parents: a run whose folder was removed stays removed
                parts.sync_folder(self.path)
            written = parts.arrow_table({name: values[:due] for name, values in rows.items()})
            steps = (int(rows["step"][0]), int(rows["step"][due - 1]))
            if table == "steps":
                self._committed = steps[1]  # before: if it fails, it may be there nevertheless
            parts.write_part(folder, self.meta["id"], [written], written.schema, steps, level=0)
            rest = {name: values[due:] for name, values in rows.items()}
            self._rows[table] = [rest] if rest["step"].size else []

    def _check_place(self) -> None:
        """Raise an OSError where the folder was replaced, lest two runs are written into one."""
        if self._lock.is_in(self.path):
            return
        there = None
        with suppress(ValueError):
            there = json.loads((self.path / META_NAME).read_bytes())
        if not isinstance(there, dict) or there.get("id") != self.meta["id"]:
            raise OSError(errno.ESTALE, "another run is in its folder now")
        try:
            lock = Lock(self.path)  # a copy of the run, or only the file `.lock` was removed
        except GradscopeError as error:
            raise OSError(errno.ESTALE, "another process writes it now") from error
        if _last_step(parts.list_parts(self.path / "steps")) > self._committed:
            lock.release()
            raise OSError(errno.ESTALE, "another process has gone on with it")
        self._lock.release()
        self._lock = lock

    def _flush_meta(self) -> None:
        if not self._meta_written:
            write_meta(self.path, self.meta)
            self._meta_written = True

    def _merge(self) -> None:
        for table, first in self._merge_from.items():
            folder = self.path / table
            try:
                parts.merge_parts(folder, self.meta["id"], first)
            except OSError:
                pass  # the small parts are still there, and the next flush tries again
            except parts.DamagedPart:
                self._merge_from[table] = _last_step(parts.list_parts(folder)) + 1

    def _bytes(self) -> int:
        return sum(
            values.nbytes
            for table in self._rows.values()
            for rows in table
            for values in rows.values()
        )

    def _drop(self, last: int) -> None:
        """Give up the rows up to the step `last`, and count them."""
        first = int(self._rows["steps"][0]["step"][0])
        for table, held in self._rows.items():
            if held:
                rows = joined(held)
                cut = int(np.searchsorted(rows["step"], last, side="right"))
                # copies, as a view would keep what is given up
                rest = {name: values[cut:].copy() for name, values in rows.items()}
                self._rows[table] = [rest] if rest["step"].size else []
        lost = self.meta["lost"]
        if lost and lost[-1]["why"] == self._trouble and lost[-1]["last"] < first:
            lost[-1]["last"] = last
        else:
            lost.append({"first": first, "last": last, "why": self._trouble})
        self._meta_written = False

    def _warn(self, error: OSError) -> None:
        trouble = reason(error)
        if trouble != self._trouble:
            self._trouble = trouble
            _warn(
                f"{self.path}: rows cannot be written, {trouble}; they wait in memory"
                f" ({MEMORY_LIMIT >> 20} MiB at most) until the disk takes them"
            )


def remove_run(path: Path) -> None:
    """Take a new run away again, once it is closed; the folder stays if it holds other files."""
    for entry in (META_NAME, *schema.TABLES):
        with suppress(OSError):
            file = path / entry
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    with suppress(OSError):
        (path / LOCK_NAME).unlink()
    free_room(path)
    with suppress(OSError):
        path.rmdir()


def _last_step(steps: list[parts.Part]) -> int:
    return steps[-1].last if steps else -1


def _contract_rows(table: str, columns: Mapping[str, np.ndarray]) -> Rows:
    contract = schema.TABLES[table]
    count = len(columns["step"])
    rows: Rows = {}
    for column in contract:
        given = columns.get(column.name)
        if given is None:
            assert column.dtype.startswith("float"), f"{table} without its {column.name}"
            rows[column.name] = np.full(count, np.nan, column.dtype)
        else:
            # float64 readings of a float64 model stay so; every other dtype is the contract's
            wide = column.dtype == "float32" and np.asarray(given).dtype == np.float64
            rows[column.name] = np.array(given, np.float64 if wide else column.dtype)
    extras = [name for name in columns if name not in rows]
    assert table == "steps" or not extras, f"{table} has no columns {extras}"
    rows.update({name: np.array(columns[name], np.float64) for name in extras})
    assert all(values.shape == (count,) for values in rows.values()), "columns differ in length"
    apart = np.diff(rows["step"])
    assert np.all(apart > 0 if table == "steps" else apart >= 0), "steps are out of order"
    return rows


def joined(held: Sequence[Rows]) -> Rows:
    """Return the rows one after the other; a scalar that some of them lack is NaN there."""
    if len(held) == 1:
        return held[0]
    names = dict.fromkeys(name for rows in held for name in rows)
    return {
        name: np.concatenate(
            [rows[name] if name in rows else np.full(rows["step"].size, np.nan) for rows in held]
        )
        for name in names
    }


def _warn(message: str) -> None:
    with suppress(Exception):  # where warnings are errors, or cannot be shown: training goes on
        warnings.warn(message, GradscopeWarning, stacklevel=3)
