"""The rows that several processes have read of one step, put together as one.

A reading is combined as `schema.Column` says. What all processes should hold alike is compared
first: where it differs, no number is that of all, and it is NaN.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from gradscope import schema
from gradscope.arithmetic import share_of_process
from gradscope.capture.rows import Key, Keys, Layout, OfParameter, OfStep
from gradscope.session.derived import HostSegment
from gradscope.session.tape import HostRow

TOLERANCE = 1e-4
"""Relative difference of two readings of one thing, on different hardware at most."""

Unlike = frozenset[Key]

_NONE: Unlike = frozenset()
_Values = dict[Key, list[float]]


class Combiner:
    """Combines the rows of `size` processes.

    Parameters
    ----------
    size : int
    unfollowed : kinds of readings that cannot be put together: they are NaN

    Attributes
    ----------
    partial : list of int
        Steps that not every process has sent.
    apart : list of int
        Steps of one number in which processes did not do the same.
    unlike : dict of str to list
        Metric -> the owners of parameters, of which processes hold readings of their own.
    """

    def __init__(self, size: int, unfollowed: tuple[type[Key], ...]) -> None:
        self.partial: list[int] = []
        self.apart: list[int] = []
        self.unlike: dict[str, list[tuple[int, ...]]] = {}
        self._size = size
        self._unfollowed = unfollowed
        self._ever = _NONE
        self._known: dict[
            tuple[bool, bool, Unlike, Layout], list[tuple[Layout, list[int], float]]
        ] = {}

    def combined(self, rows: Mapping[int, HostRow]) -> HostRow:
        """Return the `rows` of one step, by process, as one; the step's own is rank 0's."""
        step, whole = rows[0].step, len(rows) == self._size
        if whole:
            unlike = self._compare(rows)
            self._ever |= unlike
        else:  # nothing to compare: what differed before is not believed
            unlike = self._ever
            self.partial.append(step)
        is_apart = whole and self._is_apart(unlike, rows[0])
        if is_apart:
            self.apart.append(step)
        elif whole:
            for metric in {key.metric for key in unlike if isinstance(key, OfParameter)}:
                self.unlike.setdefault(metric, _owners(unlike, metric))
        segments = [
            segment
            for rank, row in sorted(rows.items())
            if rank == 0 or (whole and not is_apart)
            for layout, values in row.segments
            for segment in self._shared(layout, values, rank == 0, whole, unlike)
        ]
        if is_apart:
            segments = [(keys, v if _of_step(keys) else v * math.nan) for keys, v in segments]
        return rows[0]._replace(segments=segments)

    def _compare(self, rows: Mapping[int, HostRow]) -> Unlike:
        """Return of what, that all processes should hold alike, they have read different things."""
        first, *others = (self._copies(row) for row in rows.values())
        unlike: set[Key] = set()
        for other in others:
            keys = first.keys() | other.keys()
            if keys and not _alike(first, other, keys):
                unlike |= {key for key in keys if not _alike(first, other, (key,))}
        return frozenset(unlike) if unlike else _NONE

    def _copies(self, row: HostRow) -> _Values:
        """Return the readings of what every process holds a copy of."""
        found: _Values = defaultdict(list)
        if OfParameter in self._unfollowed:
            return found
        for layout, values in row.segments:
            for keys, value in zip(layout, values.tolist(), strict=True):
                for key in keys:
                    if isinstance(key, OfParameter) and key.copies == self._size:
                        found[key].append(value)
        return found

    def _is_apart(self, unlike: Unlike, row: HostRow) -> bool:
        """Whether processes made steps of their own: most of what optimizers got differs."""
        if not unlike:
            return False
        copies = self._copies(row)
        for metric in ("clipped_grad_norm", "update_norm"):
            steps = [key for key in copies if key.metric == metric]  # type: ignore[union-attr]
            if steps:
                return 2 * len(unlike.intersection(steps)) > len(steps)
        return False

    def _shared(
        self,
        layout: Layout,
        values: NDArray[np.floating],
        own: bool,
        whole: bool,
        unlike: Unlike,
    ) -> Iterator[HostSegment]:
        """Yield what one process's values add to those of all, keys of one share at a time."""
        known = own, whole, unlike, layout
        if known not in self._known:
            if len(self._known) > 64:  # layouts repeat, but for a model that changes all the time
                self._known.clear()
            self._known[known] = list(self._by_share(layout, own, whole, unlike))
        for keys, places, share in self._known[known]:
            yield keys, values[places] * share

    def _by_share(
        self, layout: Layout, own: bool, whole: bool, unlike: Unlike
    ) -> Iterator[tuple[Layout, list[int], float]]:
        """Yield the keys of each share, with their places in `layout` and the share."""
        shares: dict[float, list[tuple[int, Keys]]] = defaultdict(list)
        for place, keys in enumerate(layout):
            by_share: dict[float, list[Key]] = defaultdict(list)
            for key in keys:
                if own or not isinstance(key, OfStep):
                    by_share[self._share(key, whole, unlike)].append(key)
            for share, some in by_share.items():
                shares[share].append((place, tuple(some)))
        for share, entries in shares.items():
            yield tuple(keys for _, keys in entries), [place for place, _ in entries], share

    def _share(self, key: Key, whole: bool, unlike: Unlike) -> float:
        """Return what a process's reading is multiplied by before it is combined with others'.

        NaN where it says nothing without the others'; what all of them hold alike does.
        """
        if isinstance(key, OfStep):
            return 1.0
        copies = key.copies if isinstance(key, OfParameter) else 1
        if (
            isinstance(key, self._unfollowed)
            or key in unlike
            or not (whole or copies == self._size)
        ):
            return math.nan
        if not whole:
            return 1.0
        return float(share_of_process(_COLUMNS[key.metric], self._size, copies))


def _alike(one: _Values, other: _Values, keys: Iterable[Key]) -> bool:
    """Whether two processes have read the same of `keys`."""
    pairs = [(one.get(key, []), other.get(key, [])) for key in keys]
    if any(len(mine) != len(theirs) for mine, theirs in pairs):
        return False
    mine, theirs = (np.array(list(chain.from_iterable(x))) for x in zip(*pairs, strict=True))
    return bool(np.isclose(mine, theirs, rtol=TOLERANCE, atol=0, equal_nan=True).all())


def _owners(unlike: Unlike, metric: str) -> list[tuple[int, ...]]:
    return sorted(k.owners for k in unlike if isinstance(k, OfParameter) and k.metric == metric)


def _of_step(layout: Layout) -> bool:
    return all(isinstance(key, OfStep) for keys in layout for key in keys)


_COLUMNS = schema.by_name(
    schema.LAYER_METRICS, schema.TIME_NORMS, schema.SHORTCUT_METRICS, schema.FORWARD_NORMS
)
