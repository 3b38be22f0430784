"""A recorded run as pandas frames, NumPy arrays and CSV."""

from __future__ import annotations

import html
import importlib
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gradscope import arithmetic, schema
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs import export, frames
from gradscope.runs.remote import Mirror
from gradscope.storage import parts
from gradscope.storage.lock import is_live
from gradscope.storage.reader import TableReader, read_rows
from gradscope.storage.run_json import META_NAME, last_lost, lost_words, read_meta

if TYPE_CHECKING:
    from gradscope_dashboard import Server

_LATEST = 10**12  # later than any step
_CSV_ROWS = 2**17  # rows of a piece of the CSV
_LAYER_METRICS = schema.names(schema.LAYER_METRICS)
_SHORTCUT_METRICS = schema.names(schema.SHORTCUT_METRICS)
_DERIVED = ("update_ratio", "relative_signal")


class Run:
    """One recorded run; `gradscope.load` makes it.

    The frames are built anew on each access, every layer at every recorded step in layer order,
    NaN where there was no reading: keep one in a variable, and change it as you like. The run
    shows the steps that were on disk when it was loaded or last refreshed. Threads may share it.

    Attributes
    ----------
    path : Path
        Folder of the run; a temporary copy of it where it was loaded from an URL.
    name : str
        Name of that folder.
    meta : dict
        What `run.json` holds: `model`, `created`, `every`, ...
    """

    def __init__(self, path: str | os.PathLike[str], mirror: Mirror | None = None) -> None:
        self.path = Path(path)
        self._mirror = mirror
        self.name = frames.clean(self.path.resolve().name)
        self._lock = threading.RLock()
        self._told: set[str] = set()
        self._steps = frames.no_steps()
        self._seen: tuple[int, ...] = ()  # what identifies the run.json that was read last
        self._read_meta()
        self._id = str(self.meta.get("id", ""))
        closed = self.status == "closed" and mirror is None
        self._layer_readings = TableReader(self.path / "layers", self._id, "layer", self._tell)
        self._shortcut_readings = TableReader(
            self.path / "shortcuts", self._id, "shortcut", self._tell
        )
        self._read()
        for table in schema.PARTS:
            for file in parts.foreign_files(self.path / table):
                self._tell(f"{file}: no part file of gradscope, left out")
        if closed and self.status == "closed":  # what was read in between is all there is
            self._tell_if_cut_off()

    def refresh(self) -> bool:
        """Take in what was written since; cheap where nothing was.

        Returns
        -------
        bool
            True if there are new steps, or the status, the layers or the notes changed.

        Raises
        ------
        GradscopeError
            If the run was removed or its `run.json` is broken.
        """
        with self._lock:
            if self._mirror is not None:
                self._mirror.update()
            return self._read()

    @property
    def status(self) -> str:
        """State of the run: "running", "closed", or "crashed" where it ended without a close.

        A run that was loaded from an URL and crashed is called "running": nobody can tell.
        """
        status = str(self.meta.get("status", "crashed"))
        if status == "running" and self._mirror is None and not is_live(self.path):
            return "crashed"
        return status

    @property
    def notes(self) -> list[str]:
        """What the recorder could not do, and why."""
        return [str(note) for note in self.meta["notes"]]

    @property
    def layers(self) -> pd.DataFrame:
        """One row a layer, the columns of `schema.LAYERS`."""
        return self._layers.copy()

    @property
    def functions(self) -> dict[int, str]:
        """Activations called on a layer's output without a module: layer -> name, as `ReLU`."""
        rows = self.meta["layers"]
        return {
            place: str(row[schema.FUNCTION])
            for place, row in enumerate(rows)
            if schema.FUNCTION in row
        }

    @property
    def shortcuts(self) -> pd.DataFrame:
        """One row a residual join, the columns of `schema.SHORTCUTS`."""
        return self._shortcuts.copy()

    @property
    def steps(self) -> pd.DataFrame:
        """One row a recorded step: the columns of `schema.STEPS`, then the logged scalars."""
        with self._lock:
            self._tell_if_empty()
            return self._steps.copy()

    @property
    def layer_readings(self) -> pd.DataFrame:
        """One row a step and layer, the columns of `schema.LAYER_READINGS`."""
        with self._lock:
            steps, width = self._recorded(), len(self._layers)
            values = self._layer_readings.matrices(_LAYER_METRICS, steps, width)
            return frames.readings(
                "layer", steps, width, dict(zip(_LAYER_METRICS, values, strict=True))
            )

    @property
    def shortcut_readings(self) -> pd.DataFrame:
        """One row a step and shortcut, the columns of `schema.SHORTCUT_READINGS`."""
        with self._lock:
            steps, width = self._recorded(), len(self._shortcuts)
            values = self._shortcut_readings.matrices(_SHORTCUT_METRICS, steps, width)
            metrics = dict(zip(_SHORTCUT_METRICS, values, strict=True))
            return frames.readings("shortcut", steps, width, metrics)

    def matrix(
        self,
        column: str,
        first: int | None = None,
        last: int | None = None,
        layers: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return one metric of all layers, without building a frame.

        Parameters
        ----------
        column : a metric of `schema.LAYER_METRICS`, "update_ratio" or "relative_signal"
        first, last : int, optional
            Steps to begin and end with; of the files no more is read than that takes.
        layers : sequence of int, optional
            Those to return, in this order; all by default.

        Returns
        -------
        steps : int64[S], the recorded steps
        values : float[S, n_layers], read-only, NaN where there was no reading

        Raises
        ------
        GradscopeError
            If there is no such metric.
        """
        if column == "update_ratio":
            steps, (update, weight) = self._matrices(
                ["update_norm", "weight_norm"], first, last, layers
            )
            return steps, arithmetic.ratio(update, weight)
        if column == "relative_signal":
            steps, (signal,) = self._matrices(["signal_norm"], first, last)
            values = arithmetic.relative(signal)
            return steps, values if layers is None else values[:, layers]
        if column not in _LAYER_METRICS:
            raise _no_metric(column, [*_LAYER_METRICS, *_DERIVED])
        steps, (values,) = self._matrices([column], first, last, layers)
        return steps, values

    def shortcut_matrix(
        self,
        column: str,
        first: int | None = None,
        last: int | None = None,
        shortcuts: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return one metric of all shortcuts, as `matrix` does for layers.

        Parameters
        ----------
        column : a metric of `schema.SHORTCUT_METRICS`
        first, last : int, optional
            Steps to begin and end with.
        shortcuts : sequence of int, optional
            Those to return, in this order; all by default.

        Returns
        -------
        steps : int64[S], the recorded steps
        values : float[S, n_shortcuts], read-only, NaN where there was no reading

        Raises
        ------
        GradscopeError
            If there is no such metric.
        """
        if column not in _SHORTCUT_METRICS:
            raise _no_metric(column, _SHORTCUT_METRICS)
        with self._lock:
            width = len(self._shortcuts)
            steps, (values,) = self._between(
                self._shortcut_readings, [column], width, first, last, shortcuts
            )
            return steps, values

    def was_read(self, column: str, layers: np.ndarray | None = None) -> np.ndarray:
        """Return which layers have a reading of a metric at any step.

        Parameters
        ----------
        column : a metric of `schema.LAYER_METRICS`
        layers : int[k], optional
            Those to look at, all by default.

        Returns
        -------
        array, shape (k,), bool
        """
        with self._lock:
            width = len(self._layers)
            among = np.arange(width) if layers is None else layers
            return self._layer_readings.was_read(column, self._recorded(), width, among)

    def shortcut_was_read(self, column: str) -> np.ndarray:
        """Return which shortcuts have a reading of a metric at any step, as `was_read`.

        Parameters
        ----------
        column : a metric of `schema.SHORTCUT_METRICS`

        Returns
        -------
        array, shape (n_shortcuts,), bool
        """
        with self._lock:
            width = len(self._shortcuts)
            return self._shortcut_readings.was_read(
                column, self._recorded(), width, np.arange(width)
            )

    def ledger(self, step: int | None = None) -> pd.DataFrame:
        """Return in which layers and residual blocks the gradient was lost, as `gradscope.ledger`.

        Parameters
        ----------
        step : int, optional
            A recorded step; by default the one whose loss of gradient is the run's median.

        Returns
        -------
        DataFrame, one row a layer or block in order of depth
            `layer`, `name`, `kind`, `group`, `gain` (decades), `on_path`.

        Raises
        ------
        GradscopeError
            If `step` was not recorded.
        """
        from gradscope.diagnosis.ledger import ledger  # which builds upon this module

        return ledger(self, step)

    def report(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write verdicts and figures of the run to one HTML file that opens offline.

        Parameters
        ----------
        path : of the file
        overwrite : bool
            Replace the file if it exists.

        Raises
        ------
        GradscopeError
            If the file exists or cannot be written, or plotly is not installed.
        """
        _optional("gradscope.report").write_report([self], path, overwrite=overwrite)

    def dashboard(self) -> Server:
        """Serve the dashboard for this run, from a thread of this process.

        Returns
        -------
        Server
            With `.url` and `.stop()`; a notebook shows it in place.

        Raises
        ------
        GradscopeError
            If dash is not installed.
        """
        server: Server = _optional("gradscope_dashboard").start(self.path)
        return server

    def frame(self) -> pd.DataFrame:
        """Return the layer readings with the layers' names and two derived columns.

        Returns
        -------
        DataFrame, one row a step and layer
            The columns of `schema.FRAME`: `update_ratio` is update_norm / weight_norm,
            `relative_signal` is signal_norm over that of the last layer with a signal at the step.
        """
        with self._lock:
            steps = self._recorded()
            values = self._layer_readings.matrices(_LAYER_METRICS, steps, len(self._layers))
            return frames.joined(
                self._layers, steps, dict(zip(_LAYER_METRICS, values, strict=True))
            )

    def csv_chunks(self) -> Iterator[bytes]:
        """Yield `frame()` as CSV piece by piece, in memory that does not grow with the run.

        UTF-8 with a header line. Numbers have all their digits, NaN is an empty cell, infinity is
        `inf`. A name that a spreadsheet would take for a formula gets a leading apostrophe.
        """
        with self._lock:
            steps, layers = self._recorded(), self._layers.copy()
        for column in ("name", "kind"):
            layers[column] = layers[column].map(export.defused)
        yield (",".join(schema.names(schema.FRAME)) + "\n").encode()
        height = max(1, _CSV_ROWS // max(1, len(layers)))
        for start in range(0, steps.size, height):
            piece = steps[start : start + height]
            after = int(steps[start - 1]) if start else -1
            values = self._layer_readings.read(_LAYER_METRICS, piece, len(layers), after=after)
            metrics = dict(zip(_LAYER_METRICS, values, strict=True))
            yield export.csv_lines(frames.joined(layers, piece, metrics))

    def to_csv(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write `frame()` to a CSV file, whole or not at all.

        Parameters
        ----------
        path : file to write
        overwrite : bool
            Replace the file if it exists.

        Raises
        ------
        GradscopeError
            If the file exists and `overwrite` is False, or it cannot be written.
        """
        export.write_whole(Path(path), self.csv_chunks(), overwrite=overwrite)

    def __repr__(self) -> str:
        """Return name, model, size and status in a line."""
        return (
            f"<Run {self.name!r}: {self.meta.get('model', '?')}, {len(self._layers)} layers,"
            f" {len(self._shortcuts)} shortcuts, {len(self._steps)} recorded steps, {self.status}>"
        )

    def _repr_html_(self) -> str:
        facts = {
            "model": self.meta.get("model", "?"),
            "status": self.status,
            "created": self.meta.get("created", "?"),
            "recorded steps": len(self._steps),
            "layers": len(self._layers),
            "shortcuts": len(self._shortcuts),
            "folder": self.path,
        }
        rows = "".join(
            f"<tr><th>{key}</th><td>{html.escape(frames.clean(str(value)))}</td></tr>"
            for key, value in facts.items()
        )
        return f"<table><caption>{html.escape(self.name)}</caption>{rows}</table>"

    def _matrices(
        self,
        columns: list[str],
        first: int | None,
        last: int | None,
        layers: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        with self._lock:
            width = len(self._layers)
            return self._between(self._layer_readings, columns, width, first, last, layers)

    def _between(
        self,
        readings: TableReader,
        columns: list[str],
        width: int,
        first: int | None,
        last: int | None,
        chosen: Sequence[int] | None,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the steps from `first` to `last`, and `columns` of the `chosen` at them."""
        steps = self._recorded()
        start = 0 if first is None else int(np.searchsorted(steps, first))
        stop = steps.size if last is None else int(np.searchsorted(steps, last, "right"))
        places = None if chosen is None else tuple(int(place) for place in chosen)
        if stop - start >= steps.size - 1:  # the last step may be left out as one without readings
            values = readings.matrices(columns, steps, width, places)
            return steps[start:stop], [value[start:stop] for value in values]
        values = readings.rows(columns, steps, width, start, max(stop, start))
        if places is not None:
            values = [value[:, places] for value in values]
        for value in values:
            value.flags.writeable = False
        return steps[start : max(stop, start)], values

    def _recorded(self) -> np.ndarray:
        self._tell_if_empty()
        return self._steps["step"].to_numpy()

    def _read(self) -> bool:
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
        self.meta = frames.cleaned(read_meta(self.path))
        self._layers = frames.listed(file, self.meta["layers"], schema.LAYERS)
        self._shortcuts = frames.listed(file, self.meta["shortcuts"], schema.SHORTCUTS)
        self._seen = seen
        if self.meta["lost"]:
            self._tell(f"{self.path}: {lost_words(self.meta['lost'])}")
        return True

    def _read_steps(self) -> bool:
        after = int(self._steps["step"].iloc[-1]) if len(self._steps) else -1
        pieces = read_rows(self.path / "steps", self._id, None, after, _LATEST, self._tell)
        new = [pd.DataFrame(rows) for *_, rows in pieces]
        if not new:
            return False
        known = [self._steps] if len(self._steps) else []
        joined = pd.concat([*known, *new], ignore_index=True)
        names = schema.names(schema.STEPS)
        extras = [name for name in joined.columns if name not in names]
        self._steps = joined.reindex(columns=names + extras).astype(
            {c.name: c.dtype for c in schema.STEPS}
        )
        return True

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, GradscopeWarning, stacklevel=3)

    def _tell_if_cut_off(self) -> None:
        """Say so where there are readings of later steps than the table `steps` has."""
        written = parts.list_parts(self.path / "layers")
        last = int(self._steps["step"].iloc[-1]) if len(self._steps) else -1
        if written and written[-1].last > max(last, last_lost(self.meta["lost"])):
            self._tell(
                f"{self.path / 'steps'}: ends at step {last}, but readings were taken up to step"
                f" {written[-1].last}; a part is missing"
            )

    def _tell_if_empty(self) -> None:
        if not len(self._steps):
            why = "; ".join(self.notes)
            if not why and self.status == "running":
                why = "the run is live, and nothing was flushed to disk yet"
            why = why or "no forward, backward and optimizer step was seen before it ended"
            self._tell(f"{self.path}: no step is recorded: {why}")


def _optional(module: str) -> Any:
    """Import what needs the packages of the extra `dashboard`, or say how to get them."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise GradscopeError(
            f"{error.name} is not installed: pip install 'gradscope-torch[dashboard]'"
        ) from error


def _no_metric(column: str, known: list[str]) -> GradscopeError:
    return GradscopeError(f"there is no metric {column!r}; there are {', '.join(known)}")
