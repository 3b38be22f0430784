"""Which layers lie on one path from the input to the loss, told by the flow of data between layers.

Only layers on one path can be compared in depth: the one that comes first gets its gradient through
the other. Parallel heads, towers and experts do not; nor does a side input, such as the embedding
of a diffusion's time, whose gradient is that of another, smaller thing.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SIDE = 0.25
"""Elements of a source over those of the largest one that joins its path, below which it is at the
side."""

SHORT = 0.5
"""Length of a path over that of the longest one, below which it is not looked at by itself."""


def main_paths(edges: Ints, points: Ints, carried: Floats, elements: Floats) -> list[Ints]:
    """Return paths of layers from an input to the loss, the longest first.

    Parameters
    ----------
    edges : int64 (E, 2)
        Layers, (source, target): the target reads what the source gives, past sums and functions.
    points : int64 (k,)
        Layers that stand for the depth.
    carried : float64 (n,)
        Gradient at each layer's input, through that layer alone; NaN where unread.
    elements : float64 (n,)
        Size of each layer's output, NaN where unknown.

    Returns
    -------
    list of int64 arrays
        One for each input that is none at the side: from its first point the way that most
        gradient takes tells the output, and the longest way there is the path, of several that
        with more gradient.
    """
    follow = _next_points(edges, points)
    reached = {after for later in follow.values() for after in later}
    paths = [_path(follow, int(start), carried) for start in points if start not in reached]
    kept: list[Ints] = []
    for group in _joined(paths):
        sizes = np.array([elements[path[0]] for path in group])
        largest = np.nanmax(sizes) if np.isfinite(sizes).any() else np.nan
        at_side = sizes < SIDE * largest
        kept.append(max((p for p, s in zip(group, at_side, strict=True) if not s), key=len))
    longest = max((len(path) for path in kept), default=0)
    kept = [path for path in kept if len(path) >= SHORT * longest]
    return sorted(kept, key=len, reverse=True)


def along(edges: Ints, path: Ints, points: Ints) -> Ints:
    """Return all layers on the ways from each layer of `path` to the next, past no other point."""
    after, before = _leads(edges), _leads(edges[:, ::-1])
    stops = set(points.tolist())
    found = set(path.tolist())
    for first, last in itertools.pairwise(path.tolist()):
        found |= (reached(after, first, stops) & reached(before, last, stops)) - stops
    return np.array(sorted(found), dtype=np.int64)


def depth(edges: Ints, path: Ints, points: Ints) -> int:
    """Return how many points lie on any way from the first to the last of `path`.

    Parallel branches between the two count, too: each adds to the gradient that arrives.
    """
    after, before = _leads(edges), _leads(edges[:, ::-1])
    start, end = int(path[0]), int(path[-1])
    inside = reached(after, start, {end}) & reached(before, end, {start})
    return len((inside | {start, end}) & set(points.tolist()))


def _next_points(edges: Ints, points: Ints) -> dict[int, set[int]]:
    """Return for each point those that come next on some way, over layers that are none.

    A layer on the way may be called again, as one ReLU often is, so that its place in the order of
    execution says nothing; a point that was first called before is no step in depth, as the state
    of a cell.
    """
    after, stops = _leads(edges), set(points.tolist())
    return {
        point: {layer for layer in reached(after, point, stops) & stops if layer > point}
        for point in stops
    }


def _leads(edges: Ints) -> dict[int, list[int]]:
    """Return the targets of each source; what the model returns is none."""
    lead: dict[int, list[int]] = {}
    for source, target in edges.tolist():
        if source >= 0 and target >= 0:
            lead.setdefault(source, []).append(target)
    return lead


def reached(lead: dict[int, list[int]], start: int, stops: set[int]) -> set[int]:
    """Return the layers that a way from `start` comes to, up to the first of `stops`, that too."""
    found: set[int] = set()
    stack = [start]
    while stack:
        for layer in lead.get(stack.pop(), ()):
            if layer not in found:
                found.add(layer)
                if layer not in stops:
                    stack.append(layer)
    return found


def _path(follow: dict[int, set[int]], start: int, carried: Floats) -> Ints:
    """Return the longest way from `start` to the output that most of its gradient comes from."""
    end = start
    while follow[end]:
        end = max(follow[end], key=lambda layer: (float(np.nan_to_num(carried[layer])), layer))
    longest: dict[int, list[int]] = {end: [end]}
    for layer in sorted((p for p in follow if start <= p < end), reverse=True):
        ways = [longest[after] for after in follow[layer] if after in longest]
        if ways:
            best = max(ways, key=lambda way: (len(way), float(np.nan_to_num(carried[way[0]]))))
            longest[layer] = [layer, *best]
    return np.array(longest[start], dtype=np.int64)


def _joined(paths: list[Ints]) -> list[list[Ints]]:
    """Return the paths in groups of those that share a layer."""
    groups: list[tuple[set[int], list[Ints]]] = []
    for path in paths:
        layers, together = set(path.tolist()), [path]
        apart = []
        for held, group in groups:
            if held & layers:
                layers, together = held | layers, group + together
            else:
                apart.append((held, group))
        groups = [*apart, (layers, together)]
    return [group for _, group in groups]
