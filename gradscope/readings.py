"""The reading side of part files: the rows of a table, and its metrics as steps x width arrays.

Other processes may write and merge parts meanwhile. A part that vanished between listing and
opening was merged, so the folder is listed again. A damaged part is left out with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from gradscope import parts

_LISTINGS = 100  # more merges than this while reading one part: the file is damaged, not merged
_CACHE_LIMIT = 2**30  # bytes of matrices that a table keeps

Rows = dict[str, np.ndarray]
Warn = Callable[[str], None]


def read_rows(
    folder: Path,
    run_id: str,
    columns: Sequence[str] | None,
    after: int,
    until: int,
    warn: Warn,
) -> Iterator[tuple[parts.Part, Rows]]:
    """Yield the rows of the steps `after` < step <= `until`, piece by piece, each row once.

    Parameters
    ----------
    folder : of one table
    run_id : what `run.json` calls the run; parts of another run are left out
    columns : names of columns to read, None for all; "step" has to be among them
    after, until : steps
    warn : called with a message for each part that had to be left out
    """
    for listing in range(_LISTINGS):
        try:
            for part in parts.list_parts(folder):
                if part.last <= after or part.first > until:
                    continue
                try:
                    for rows in parts.read_part(part, run_id, columns, after, until):
                        yield part, rows
                except parts.DamagedPart as error:
                    warn(left_out(part, str(error)))
                except FileNotFoundError:
                    if listing < _LISTINGS - 1:
                        raise
                    warn(left_out(part, "it is listed but cannot be opened"))
                after = part.last
            return
        except FileNotFoundError:
            continue
        except OSError as error:
            warn(f"{folder}: cannot be read, {error.strerror or error}; it is left out")
            return


def left_out(part: parts.Part, why: str) -> str:
    """Return the sentence that tells of a damaged part."""
    return f"{part.path}: damaged, steps {part.first}-{part.last} of it are left out ({why})"


class Readings:
    """The metrics of one table as arrays of shape (steps, layers or shortcuts), kept once read.

    Parameters
    ----------
    folder : of the table
    run_id : what `run.json` calls the run
    key : "layer" or "shortcut", the column that numbers the columns of the arrays
    warn : called with a message for each part that had to be left out
    """

    def __init__(self, folder: Path, run_id: str, key: str, warn: Warn) -> None:
        self._folder = folder
        self._run_id = run_id
        self._key = key
        self._warn = warn
        self._kept: dict[str, np.ndarray] = {}

    def matrices(self, columns: Sequence[str], steps: np.ndarray, width: int) -> list[np.ndarray]:
        """Return a read-only array for each of `columns`, NaN where there was no reading.

        Parameters
        ----------
        columns : metrics
        steps : int64[S]
            The steps that count, ascending. Between two calls it may grow at its end.
        width : how many layers or shortcuts the run has; it may grow too

        Returns
        -------
        list of arrays, shape (S, width), float32, or float64 where a part holds float64
        """
        stale: dict[int, list[str]] = {}
        for column in columns:
            kept = self._kept.pop(column, np.empty((0, width), np.float32))
            self._kept[column] = kept  # last: it was used last
            if kept.shape != (steps.size, width):
                stale.setdefault(kept.shape[0], []).append(column)
        for done, names in stale.items():
            for name, new in zip(names, self.read(names, steps[done:], width), strict=True):
                self._kept[name] = _below(self._kept[name], new)
                self._kept[name].flags.writeable = False
        result = [self._kept[column] for column in columns]
        while len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > _CACHE_LIMIT:
            del self._kept[next(iter(self._kept))]
        return result

    def read(self, columns: Sequence[str], steps: np.ndarray, width: int) -> list[np.ndarray]:
        """Return what `matrices` returns, read from the disk and not kept."""
        result = [np.full((steps.size, width), np.nan, np.float32) for _ in columns]
        if not steps.size:
            return result
        wanted = ["step", self._key, *columns]
        first, last = int(steps[0]), int(steps[-1])
        missing = np.ones(steps.size, bool)
        told: list[str] = []

        def warn(message: str) -> None:
            told.append(message)
            self._warn(message)

        for part, rows in read_rows(self._folder, self._run_id, wanted, first - 1, last, warn):
            step, index = rows["step"], rows[self._key]
            if index.size and not 0 <= int(index.min()) <= int(index.max()) < width:
                warn(left_out(part, f"run.json lists {width} {self._key}s, it holds more"))
                continue
            grid = _grid(step, index, width)
            named = step if grid is None else grid
            at = np.searchsorted(steps, named)
            counts = steps[at] == named  # others are written, but not in `steps`: they do not count
            at = at[counts]
            missing[at] = False
            for i, column in enumerate(columns):
                if column not in rows:
                    continue
                values = rows[column]
                result[i] = result[i].astype(np.result_type(result[i], values), copy=False)
                if grid is None:
                    result[i][at, index[counts]] = values[counts]
                else:
                    result[i][at] = values.reshape(-1, width)[counts]
        if width and missing.any() and not told:
            gone = steps[missing]
            self._warn(
                f"{self._folder}: no rows of {gone.size} recorded steps, {gone[0]} to {gone[-1]};"
                " a part is missing"
            )
        return result


def _grid(step: np.ndarray, index: np.ndarray, width: int) -> np.ndarray | None:
    """Return the steps of rows that hold 0..width-1 for each step in turn, None for others."""
    if not step.size or step.size % width:
        return None
    steps = step.reshape(-1, width)
    regular = (steps == steps[:, :1]).all() and (
        index.reshape(-1, width) == np.arange(width, dtype=index.dtype)
    ).all()
    return steps[:, 0] if regular else None


def _below(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Stack two arrays, filling what the upper one lacks in width with NaN."""
    if not upper.shape[0]:
        return lower
    missing = lower.shape[1] - upper.shape[1]
    return np.concatenate([np.pad(upper, ((0, 0), (0, missing)), constant_values=np.nan), lower])
