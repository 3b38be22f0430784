"""The reading side of part files: the rows of a table, and its metrics as steps x width arrays.

Other processes may write and merge parts meanwhile. A part that vanished between listing and
opening was merged, so the folder is listed again. A damaged part is left out with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gradscope.storage import parts

_LISTINGS = 100  # more merges than this while reading one part: the file is damaged, not merged
_CACHE_LIMIT = 2**28  # bytes of arrays that a table keeps

_WORTH_KNOWING = 2**12  # rows; the order of fewer is found out anew
_WORTH_THREADS = 2**22  # readings from which on two threads unpack them
_UNREAD = np.full(1, np.nan, np.float32)

Rows = dict[str, np.ndarray]
Grids = dict[Path, dict[int, np.ndarray]]
Warn = Callable[[str], None]


def read_rows(
    folder: Path,
    run_id: str,
    columns: Sequence[str] | None,
    after: int,
    until: int,
    warn: Warn,
    grids: Grids | None = None,
) -> Iterator[tuple[parts.Part, int | None, Rows]]:
    """Yield the rows of the steps `after` < step <= `until`, piece by piece, each row once.

    A piece is the part it comes from, and what `parts.read_part` yields.

    Parameters
    ----------
    folder : of one table
    run_id : what `run.json` calls the run; parts of another run are left out
    columns : names of columns to read, None for all; "step" has to be among them
    after, until : steps
    warn : called with a message for each part that had to be left out
    grids : path of a part -> as for `parts.read_part`
    """
    for listing in range(_LISTINGS):
        try:
            for part in parts.list_parts(folder):
                if part.last <= after or part.first > until:
                    continue
                known = (grids or {}).get(part.path)
                try:
                    for group, rows in parts.read_part(part, run_id, columns, after, until, known):
                        yield part, group, rows
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


class TableReader:
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
        self._kept: dict[tuple[str, tuple[int, ...] | None], np.ndarray] = {}
        self._grids: Grids = {}  # of the row groups that were found in order: they never change
        self._width = 0
        self._looked: dict[str, np.ndarray] = {}

    def matrices(
        self,
        columns: Sequence[str],
        steps: np.ndarray,
        width: int,
        places: tuple[int, ...] | None = None,
    ) -> list[np.ndarray]:
        """Return a read-only array for each of `columns`, NaN where there was no reading.

        Parameters
        ----------
        columns : metrics
        steps : int64[S]
            The steps that count, ascending. Between two calls it may grow at its end.
        width : how many layers or shortcuts the run has; it may grow too
        places : the layers or shortcuts to return, all by default
            A few of them take as long to read as all, but little memory.

        Returns
        -------
        list of arrays, float32, or float64 where a part holds float64
            Shape (S, width), or (S, number of places).
        """
        if places is not None:
            whole = [self._kept.get((column, None)) for column in columns]
            if all(kept is not None and kept.shape == (steps.size, width) for kept in whole):
                return [kept[:, places] for kept in whole if kept is not None]
        wide = width if places is None else len(places)
        stale: dict[int, list[str]] = {}
        for column in columns:
            kept = self._kept.pop((column, places), np.empty((0, wide), np.float32))
            self._kept[column, places] = kept  # last: it was used last
            if kept.shape != (steps.size, wide):
                stale.setdefault(kept.shape[0], []).append(column)
        for done, names in stale.items():
            after = int(steps[done - 1]) if done else -1
            new = self.read(names, steps[done:], width, places, after)
            for name, lower in zip(names, new, strict=True):
                joined = _below(self._kept[name, places], lower)
                joined.flags.writeable = False
                self._kept[name, places] = joined
        result = [self._kept[column, places] for column in columns]
        self._forget(spared={(column, places) for column in columns})
        return result

    def _forget(self, spared: set[tuple[str, tuple[int, ...] | None]]) -> None:
        """Drop what was used longest ago, whole columns before single layers."""
        size = sum(array.nbytes for array in self._kept.values())
        for key in sorted(self._kept, key=lambda key: key[1] is not None):
            if size <= _CACHE_LIMIT:
                return
            if key not in spared:
                size -= self._kept.pop(key).nbytes

    def rows(
        self, columns: Sequence[str], steps: np.ndarray, width: int, first: int, stop: int
    ) -> list[np.ndarray]:
        """Return the rows `first` to `stop` of what `matrices` returns, reading no others.

        A part without them is not opened. What was read is not kept.
        """
        kept = [self._kept.get((column, None)) for column in columns]
        if all(k is not None and k.shape == (steps.size, width) for k in kept):
            return [k[first:stop] for k in kept if k is not None]
        return self.read(columns, steps[first:stop], width)

    def was_read(self, column: str, steps: np.ndarray, width: int, among: np.ndarray) -> np.ndarray:
        """Return which of the layers or shortcuts `among` have a reading of `column` at any step.

        Mostly the last step tells; the whole column is read for those that lack one there.

        Parameters
        ----------
        among : int[k], places

        Returns
        -------
        array, shape (k,), bool
        """
        # at how many steps each of them was looked for, -1 where it was found
        looked = np.zeros(width, np.int64)
        known = self._looked.get(column, looked[:0])
        looked[: known.size] = known
        self._looked[column] = looked
        for last_only in (True, False):
            missing = among[(looked[among] >= 0) & (looked[among] < steps.size)]
            if not missing.size:
                break
            if last_only:
                values = self.rows([column], steps, width, steps.size - 1, steps.size)[0]
            else:
                values = self.matrices([column], steps, width)[0][looked[missing].min() :]
                looked[missing] = steps.size
            missing = missing[[not np.isnan(values[:, place]).all() for place in missing]]
            looked[missing] = -1
        return np.asarray(looked[among] < 0)

    def read(
        self,
        columns: Sequence[str],
        steps: np.ndarray,
        width: int,
        places: tuple[int, ...] | None = None,
        after: int | None = None,
    ) -> list[np.ndarray]:
        """Return what `matrices` returns, read from the disk and not kept.

        With `after`, `steps` are all that count after this step, and rows of others are told of.
        """
        if width != self._width:
            self._width = width
            self._grids = {}
        if places is None or steps.size * width < _WORTH_THREADS:
            return self._read_from_disk(columns, steps, width, places, after)
        half = steps.size // 2  # unpacking is most of it, and leaves other threads alone
        middle = None if after is None else int(steps[half - 1])
        with ThreadPoolExecutor(2, "gradscope-readings") as pool:
            halves = pool.map(
                lambda some, after: self._read_from_disk(columns, some, width, places, after),
                (steps[:half], steps[half:]),
                (after, middle),
            )
            return [np.concatenate(pair) for pair in zip(*halves, strict=True)]

    def _read_from_disk(
        self,
        columns: Sequence[str],
        steps: np.ndarray,
        width: int,
        places: tuple[int, ...] | None,
        after: int | None,
    ) -> list[np.ndarray]:
        chosen = np.arange(width) if places is None else np.array(places, np.int64)
        target = np.full(width, -1)  # the column of the result for each layer or shortcut
        target[chosen] = np.arange(chosen.size)
        result = [np.empty((steps.size, chosen.size), np.float32) for _ in columns]
        if not steps.size:
            return result
        wanted = ["step", self._key, *columns]
        begin = int(steps[0]) - 1 if after is None else after
        missing = np.ones(steps.size, bool)
        uncounted: set[int] = set()
        told: list[str] = []

        def warn(message: str) -> None:
            told.append(message)
            self._warn(message)

        for part, group, rows in read_rows(
            self._folder, self._run_id, wanted, begin, int(steps[-1]), warn, self._grids
        ):
            grid: np.ndarray | None = rows["step"]
            index = rows.get(self._key)
            if index is not None:
                if index.size and not 0 <= int(index.min()) <= int(index.max()) < width:
                    warn(left_out(part, f"run.json lists {width} {self._key}s, it holds more"))
                    continue
                grid = _grid(rows["step"], index, width)
                if grid is not None and group is not None and index.size > _WORTH_KNOWING:
                    self._grids.setdefault(part.path, {})[group] = grid
            named = rows["step"] if grid is None else grid
            at = np.searchsorted(steps, named)
            counts = steps[at] == named  # others are written, but not in `steps`: they do not count
            if after is not None and not counts.all():
                uncounted.update(np.unique(named[~counts]).tolist())
            at = at[counts]
            together = 0 < at.size == named.size and int(at[-1]) - int(at[0]) + 1 == at.size
            where = slice(int(at[0]), int(at[-1]) + 1) if together else at
            unseen = at[missing[at]]
            missing[at] = False
            for i, column in enumerate(columns):
                values = rows.get(column, _UNREAD)
                with np.errstate(all="ignore"):  # what is not filled yet may be anything
                    result[i] = result[i].astype(np.result_type(result[i], values), copy=False)
                if grid is None or column not in rows:
                    result[i][unseen] = np.nan  # there may be no row for some of the layers
                if column in rows and grid is None and index is not None:
                    to = target[index[counts]]
                    result[i][at[to >= 0], to[to >= 0]] = values[counts][to >= 0]
                elif column in rows:
                    lines = values.reshape(-1, width)
                    lines = lines if places is None else lines[:, chosen]
                    result[i][where] = lines if together else lines[counts]
        for values in result:
            values[missing] = np.nan
        if uncounted:
            self._warn(
                f"{self._folder}: holds {len(uncounted)} steps, {min(uncounted)} to"
                f" {max(uncounted)}, that the table `steps` lacks; they are left out"
            )
        if width and missing.any() and not told:
            missing &= steps >= self._begins()
        gone = steps[missing]
        if width and gone.size and not told:
            self._warn(
                f"{self._folder}: no rows of {gone.size} recorded steps, {gone[0]} to {gone[-1]};"
                " a part is missing"
            )
        return result

    def _begins(self) -> int:
        """Return the first step that has rows: shortcuts may show only in later ones."""
        if self._key != "shortcut":
            return 0
        return next((part.first for part in parts.list_parts(self._folder)), 0)


def _grid(step: np.ndarray, index: np.ndarray, width: int) -> np.ndarray | None:
    """Return the steps of rows that hold 0..width-1 for each step in turn, None for others."""
    if not step.size or step.size % width:
        return None
    steps = step.reshape(-1, width)
    regular = (steps == steps[:, :1]).all() and (
        index.reshape(-1, width) == np.arange(width, dtype=index.dtype)
    ).all()
    return steps[:, 0].copy() if regular else None  # a view would keep all of them


def _below(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Stack two arrays, filling what the upper one lacks in width with NaN."""
    if not upper.shape[0]:
        return lower
    missing = lower.shape[1] - upper.shape[1]
    return np.concatenate([np.pad(upper, ((0, 0), (0, missing)), constant_values=np.nan), lower])
