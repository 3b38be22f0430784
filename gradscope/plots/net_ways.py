"""The ways past layers that stand in a row, told by the flow of data: shortcuts, skips, branches.

A gap is a place between two layers, numbered as the layer behind it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.signal_path import edges_of
from gradscope.runs.run import Run
from gradscope.schema import SPLIT_FORMS

MANY = 32
"""Of so many sources of a layer, those farther back may have been left out of the edges."""


Value = tuple[int, int]
"""What a layer gives: the gap behind which it is there, and the layer."""


@dataclass(frozen=True)
class Arc:
    """A way around the layers `first` to `last`; `share` of the energy, NaN if it is not known.

    `form` is that of a residual join, "joined" where it ends in another join, "parallel" where
    layers behind read the same value, or "branch" where only a later layer reads what one gives.
    """

    name: str
    form: str
    first: int
    last: int
    share: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        share = None if np.isnan(self.share) else round(self.share, 4)
        return {**self.__dict__, "share": share}


class Ways(NamedTuple):
    """How data flow past and between the layers.

    `leaves` and `enters` say of each gap whether a layer before it gives what is read there, and
    whether one behind reads there.
    """

    arcs: list[Arc]
    leaves: list[bool]
    enters: list[bool]


def find_ways(run: Run, step: int) -> Ways:
    """Return the ways of `run`, shares as of the recorded `step`; of a run without edges a row."""
    count = len(run.layers)
    blocks = [*_split(run, step), *_listed(run)]
    edges = edges_of(run)
    if not len(edges):
        return Ways(blocks, [True] * (count + 1), [True] * (count + 1))
    flow = _Flow(edges, count)
    found = flow.streams()
    for block in blocks:
        ends = (block.first, block.last + 1)
        if ends not in found:
            # a projection is a way through layers of its own, which lie behind those it passes
            inside = [e for e in found if e[0] == ends[0] and e[1] <= ends[1]]
            if block.form == "projection" and inside:
                ends = max(inside)
        found[ends] = Arc(block.name, block.form, ends[0], ends[1] - 1, block.share)
    names = [str(name) for name in run.layers["name"]]
    arcs = [
        Arc(names[first], way, first, after - 1, np.nan) if isinstance(way, str) else way
        for (first, after), way in sorted(found.items())
    ]
    return flow.along(arcs, names)


class _Flow:
    """Edges between layers in a row; what returns from the model is read behind the last."""

    def __init__(self, edges: NDArray[np.int64], count: int) -> None:
        self._count = count
        self._sources: dict[int, set[int]] = defaultdict(set)
        # a layer that is called again, as a ReLU may be, also stands behind what it reads then
        self._again: dict[int, set[int]] = defaultdict(set)
        for source, end in edges.tolist():
            target = count if end < 0 else end
            self._sources[target].add(source)
            if source >= target:
                self._again[target].add(source + 1)

    def _reads_at(self, target: int) -> set[int]:
        return {target, *self._again.get(target, ())}

    def _gives_at(self, source: int) -> set[int]:
        return {source + 1, *self._again.get(source, ())}

    def streams(self) -> dict[tuple[int, int], Any]:
        """Return the ways from where a value is read to where it is read with others, or again.

        Each is a pair of gaps -> "joined" or "parallel".
        """
        known: dict[Value, list[tuple[set[Value], int]]] = defaultdict(list)
        found: dict[tuple[int, int], Any] = {}
        for target in sorted(self._sources, key=lambda end: max(self._reads_at(end))):
            gap = max(self._reads_at(target))
            read = {
                (max(g for g in self._gives_at(source) if g <= max(gap, source + 1)), source)
                for source in self._sources[target]
            }
            before = [
                (len(other & read), at, other)
                for value in read
                for other, at in known[value]
                if at < gap and (other <= read or _left_out(other, read))
            ]
            if before:
                _, at, other = max(before, key=lambda item: item[:2])
                found[at, gap] = "parallel" if other == read else "joined"
            known[max(read)].append((read, gap))
        return found

    def along(self, arcs: list[Arc], names: list[str]) -> Ways:
        """Return `arcs`, and one for each edge that neither they nor the row of layers show."""
        hops: dict[int, set[int]] = defaultdict(set)
        for arc in arcs:
            hops[arc.first].add(arc.last + 1)
        leaves, enters = [False] * (self._count + 1), [False] * (self._count + 1)
        reached: dict[int, set[int]] = {}
        for target, source in ((t, s) for t in sorted(self._sources) for s in self._sources[t]):
            shown = False
            for gap in self._gives_at(source):
                if gap not in reached:
                    reached[gap] = set(_reach(gap, hops))
                for end in reached[gap] & self._reads_at(target):
                    shown = leaves[gap] = enters[end] = True
            behind = [gap for gap in self._reads_at(target) if gap > source + 1]
            if not shown and behind:
                after = min(behind)
                arcs.append(Arc(names[source], "branch", source + 1, after - 1, np.nan))
                hops[source + 1].add(after)
                leaves[source + 1] = enters[after] = True
                reached.clear()
        return Ways(arcs, leaves, enters)


def _left_out(other: set[Value], read: set[Value]) -> bool:
    """Whether `other` is in `read` but for those so far back that they are not listed any more."""
    return len(read) >= MANY and len(other & read) > 1 and max(other - read) < min(read)


def _reach(gap: int, hops: dict[int, set[int]]) -> Iterator[int]:
    seen, stack = {gap}, [gap]
    while stack:
        at = stack.pop()
        yield at
        stack += hops.get(at, set()) - seen
        seen |= hops.get(at, set())


def _split(run: Run, step: int) -> Iterator[Arc]:
    """Yield the shortcuts whose share of the energy is read."""
    blocks = residual_blocks(run)
    share = run.shortcut_matrix("energy_share", step, step)[1][0] if blocks else np.empty(0)
    for block in blocks:
        last = block.after - 1
        yield Arc(block.name, block.form, block.first, last, float(share[block.shortcut]))


def _listed(run: Run) -> Iterator[Arc]:
    """Yield the joins that are listed, but not split, as concatenations are."""
    names = [str(name) for name in run.layers["name"]]
    for row in run.shortcuts.to_dict("records"):
        if row["form"] in SPLIT_FORMS:
            continue
        module, place = str(row["split"]), float(row["position"])
        under = [i for i, n in enumerate(names) if n == module or n.startswith(f"{module}.")]
        after = 0 if np.isnan(place) else min(round(place * len(names)), len(names))
        if under and after > under[-1] + 1:
            yield Arc(str(row["name"]), str(row["form"]), under[-1] + 1, after - 1, np.nan)
