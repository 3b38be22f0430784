"""The metrics of all layers, or of all shortcuts, of a run: as arrays and as a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from gradscope import schema
from gradscope.errors import GradscopeError
from gradscope.runs import frames
from gradscope.runs.folder import RunFolder
from gradscope.storage.reader import TableReader

_ROWS_AT_ONCE = 2**17


class MetricTable:
    """The readings of one table of a run, read on demand.

    Parameters
    ----------
    folder : RunFolder
    key : "layer" or "shortcut"
        What there is a row of, beside the step.
    metrics : the columns that are readings
    """

    def __init__(self, folder: RunFolder, key: str, metrics: schema.Table) -> None:
        self.metrics = schema.names(metrics)
        self._folder = folder
        self._key = key
        self._reader = TableReader(folder.path / f"{key}s", folder.id, key, folder.tell)

    @property
    def steps(self) -> np.ndarray:
        """The recorded steps, int64[S]; says so where there are none."""
        self._folder.tell_if_empty()
        return self._folder.steps["step"].to_numpy()

    @property
    def width(self) -> int:
        """How many layers, or shortcuts, there are."""
        return len(self._folder.layers if self._key == "layer" else self._folder.shortcuts)

    def check(self, column: str, others: Sequence[str] = ()) -> None:
        """Raise a GradscopeError where there is no metric `column`, nor among `others`."""
        known = [*self.metrics, *others]
        if column not in known:
            raise GradscopeError(f"there is no metric {column!r}; there are {', '.join(known)}")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every metric at every recorded step, steps x width."""
        values = self._reader.matrices(self.metrics, self.steps, self.width)
        return dict(zip(self.metrics, values, strict=True))

    def frame(self) -> pd.DataFrame:
        """Return every metric, one row a step and layer, or shortcut."""
        return frames.readings(self._key, self.steps, self.width, self.arrays())

    def pieces(self, width: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield steps with every metric at them, some at a time; nothing of it is kept.

        Parameters
        ----------
        width : int
            How many layers, or shortcuts, to read: those that there were at first.
        """
        steps = self.steps
        height = max(1, _ROWS_AT_ONCE // max(1, width))
        for start in range(0, steps.size, height):
            some = steps[start : start + height]
            after = int(steps[start - 1]) if start else -1
            values = self._reader.read(self.metrics, some, width, after=after)
            yield some, dict(zip(self.metrics, values, strict=True))

    def between(
        self,
        columns: Sequence[str],
        first: int | None,
        last: int | None,
        chosen: Sequence[int] | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the steps from `first` to `last`, and `columns` of the `chosen` at them."""
        steps, width = self.steps, self.width
        start = 0 if first is None else int(np.searchsorted(steps, first))
        stop = steps.size if last is None else int(np.searchsorted(steps, last, "right"))
        places = None if chosen is None else tuple(int(place) for place in chosen)
        if stop - start >= steps.size - 1:  # the last step may be left out as one without readings
            values = self._reader.matrices(columns, steps, width, places)
            return steps[start:stop], [value[start:stop] for value in values]
        values = self._reader.rows(columns, steps, width, start, max(stop, start))
        if places is not None:
            values = [value[:, places] for value in values]
        for value in values:
            value.flags.writeable = False
        return steps[start : max(stop, start)], values

    def was_read(self, column: str, among: np.ndarray | None) -> np.ndarray:
        """Return which of the layers, or shortcuts, `among` have a reading at any step."""
        among = np.arange(self.width) if among is None else among
        return self._reader.was_read(column, self.steps, self.width, among)
