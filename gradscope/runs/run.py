"""A recorded run as pandas frames, NumPy arrays and CSV."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from gradscope import arithmetic, schema
from gradscope.errors import GradscopeError
from gradscope.runs import export, frames
from gradscope.runs.folder import RunFolder
from gradscope.runs.metrics import MetricTable
from gradscope.runs.remote import Mirror


class Run:
    """One recorded run; `gradscope.load` makes it.

    The frames are built anew on each access, every layer at every recorded step in layer order,
    NaN where there was no reading: keep one in a variable, and change it as you like. The run
    shows the steps that were on disk when it was loaded or last refreshed. Threads may share it.
    """

    headline: ClassVar[Callable[[Run], str] | None] = None
    """Tells the verdict where a notebook shows a run; put in by the room that judges runs."""

    def __init__(self, path: str | os.PathLike[str], mirror: Mirror | None = None) -> None:
        self._lock = threading.RLock()
        self._folder = RunFolder(path, mirror)
        self._of_layers = MetricTable(self._folder, "layer", schema.LAYER_METRICS)
        self._of_shortcuts = MetricTable(self._folder, "shortcut", schema.SHORTCUT_METRICS)

    @property
    def path(self) -> Path:
        """Folder of the run; a temporary copy of it where it was loaded from an URL."""
        return self._folder.path

    @property
    def name(self) -> str:
        """Name of that folder."""
        return self._folder.name

    @property
    def meta(self) -> dict[str, Any]:
        """What `run.json` holds: `model`, `created`, `every`, ..."""
        return self._folder.meta

    def reopened(self) -> Run:
        """Return the same run, read anew: to be refreshed without changing this one.

        Raises
        ------
        GradscopeError
            If it was removed or its `run.json` is broken.
        """
        return Run(self.path, self._folder.mirror)

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
            return self._folder.refresh()

    @property
    def status(self) -> str:
        """State of the run: "running", "closed", or "crashed" where it ended without a close.

        A run that was loaded from an URL and crashed is called "running": nobody can tell.
        """
        return self._folder.status

    @property
    def notes(self) -> list[str]:
        """What the recorder could not do, and why."""
        return self._folder.notes

    @property
    def config(self) -> dict[str, bool | int | float | str]:
        """What the training was told to tell it from others: `watch(model, config={...})`."""
        config = self.meta.get("config")
        return dict(config) if isinstance(config, dict) else {}

    @property
    def marks(self) -> list[tuple[int, str]]:
        """What was done while it trained, (step, text), in the order of `scope.mark(text)`."""
        found = []
        for mark in self.meta["marks"]:
            with suppress(LookupError, TypeError, ValueError):  # a damaged run.json
                found.append((int(mark["step"]), str(mark["text"])))
        return found

    @property
    def layers(self) -> pd.DataFrame:
        """One row a layer, the columns of `schema.LAYERS`."""
        return self._folder.layers.copy()

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
        return self._folder.shortcuts.copy()

    @property
    def edges(self) -> pd.DataFrame:
        """One row for each two layers between which data flow, the columns of `schema.EDGES`."""
        return self._folder.edges.copy()

    @property
    def heads(self) -> pd.DataFrame:
        """One row for each loss that was seen on a graph, the columns of `schema.HEADS`."""
        return self._folder.heads.copy()

    @property
    def facts(self) -> dict[str, Any]:
        """What was seen of the training beside readings, those of `schema.FACTS` that are known."""
        return dict(self._folder.meta.get("facts", {}))

    @property
    def steps(self) -> pd.DataFrame:
        """One row a recorded step: the columns of `schema.STEPS`, then the logged scalars."""
        with self._lock:
            self._folder.tell_if_empty()
            return self._folder.steps.copy()

    @property
    def layer_readings(self) -> pd.DataFrame:
        """One row a step and layer, the columns of `schema.LAYER_READINGS`."""
        with self._lock:
            return self._of_layers.frame()

    @property
    def shortcut_readings(self) -> pd.DataFrame:
        """One row a step and shortcut, the columns of `schema.SHORTCUT_READINGS`."""
        with self._lock:
            return self._of_shortcuts.frame()

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
        self._of_layers.check(column, schema.names(schema.DERIVED_METRICS))
        with self._lock:
            if column == "update_ratio":
                columns = ["update_norm", "weight_norm"]
                steps, (update, weight) = self._of_layers.between(columns, first, last, layers)
                return steps, arithmetic.ratio(update, weight)
            if column == "relative_signal":
                steps, (signal,) = self._of_layers.between(["signal_norm"], first, last)
                values = arithmetic.relative(signal)
                return steps, values if layers is None else values[:, layers]
            steps, (values,) = self._of_layers.between([column], first, last, layers)
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
        self._of_shortcuts.check(column)
        with self._lock:
            steps, (values,) = self._of_shortcuts.between([column], first, last, shortcuts)
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
            return self._of_layers.was_read(column, layers)

    def shortcut_was_read(self, column: str) -> np.ndarray:
        """Return which shortcuts have a reading of a metric at any step, as `was_read`.

        Parameters
        ----------
        column : a metric of `schema.SHORTCUT_METRICS`

        """
        with self._lock:
            return self._of_shortcuts.was_read(column, None)

    def frame(self) -> pd.DataFrame:
        """Return the layer readings with the layers' names and two derived columns.

        Returns
        -------
        DataFrame, one row a step and layer
            The columns of `schema.FRAME`: `update_ratio` is update_norm / weight_norm,
            `relative_signal` is signal_norm over that of the last layer with a signal at the step.
        """
        with self._lock:
            steps = self._of_layers.steps
            return frames.joined(self._folder.layers, steps, self._of_layers.arrays())

    def csv_chunks(self) -> Iterator[bytes]:
        """Yield `frame()` as CSV piece by piece, in memory that does not grow with the run.

        UTF-8 with a header line. Numbers have all their digits, NaN is an empty cell, infinity is
        `inf`. A name that a spreadsheet would take for a formula gets a leading apostrophe.
        """
        with self._lock:
            layers = self._folder.layers.copy()
        for column in ("name", "kind"):
            layers[column] = layers[column].map(export.defused)
        yield (",".join(schema.names(schema.FRAME)) + "\n").encode()
        for steps, metrics in self._of_layers.pieces(len(layers)):
            yield export.csv_lines(frames.joined(layers, steps, metrics))

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
        sizes = f"{len(self.layers)} layers, {len(self.shortcuts)} shortcuts"
        steps = f"{len(self._folder.steps)} recorded steps"
        model = self.meta.get("model", "?")
        return f"<Run {self.name!r}: {model}, {sizes}, {steps}, {self.status}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what is known of the run, and its verdict."""
        verdict: dict[str, object] = {}
        if Run.headline is not None:
            with suppress(GradscopeError):  # the run is broken, or gone
                verdict["verdict"] = Run.headline(self)
        facts = {
            **verdict,
            **{key: self.meta.get(key, "?") for key in ("model", "created")},
            "status": self.status,
            "recorded steps": len(self._folder.steps),
            "layers": len(self.layers),
            "shortcuts": len(self.shortcuts),
            "folder": self.path,
        }
        return export.html_table(self.name, facts)
