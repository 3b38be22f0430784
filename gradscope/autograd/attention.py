"""Where a graph takes a softmax of products of queries and keys: attention."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gradscope.autograd.data_flow import MIXING, node_kinds, signed
from gradscope.autograd.graph import Call, Graph, Origins, Value, contains, locate
from gradscope.autograd.torch_internals import check_names, saved

FUSED = frozenset(kind for kind in MIXING if kind.startswith("ScaledDotProduct"))
"""Nodes of scaled_dot_product_attention where that is one kernel."""

SOFTMAX = node_kinds("Softmax SafeSoftmax")

PRODUCT = {"Bmm": ("self", "mat2"), "Baddbmm": ("batch1", "batch2")}
"""Kind of node -> what it saves the queries and the keys as."""

_SAME = node_kinds("View UnsafeView ReshapeAlias Squeeze Unsqueeze Clone Alias ToCopy")
"""Nodes that hand on elements in the order in which they are."""

_PLACED = _SAME | node_kinds("Permute T Transpose Expand Slice Select Split SplitWithSizes Unbind")

_NODES = 256
"""That are looked at on the way from a query to the layer that made it."""


class Attention(NamedTuple):
    """One call of attention.

    Attributes
    ----------
    node : int
        That of the softmax, or of the fused kernel.
    product : int or None
        That of the product of queries and keys; None where all is in one kernel.
    between : tuple of int
        Products and quotients with constants that come between, and permutations.
    layer : int
        Module that the queries are made by, or that is the attention.
    """

    node: int
    product: int | None
    between: tuple[int, ...]
    layer: int


def find_attention(
    graph: Graph, calls: Sequence[Call], layers: Sequence[int | None]
) -> list[Attention]:
    """Return the calls of attention in a graph.

    Of those that are not in one kernel, those whose logits are a product of two tensors that were
    both computed, scaled by constants, with masks and biases added.

    Parameters
    ----------
    graph, calls
        Of one forward.
    layers : for each call, the number of the module if that is a layer, None for other modules

    Raises
    ------
    Unavailable
        Where this torch does not tell what nodes are, or who made them.
    """
    found: list[tuple[int, int | None, tuple[int, ...], Value]] = []
    stems = [_stem(name) for name in graph.names]
    for node, stem in enumerate(stems):
        if not (edges := graph.edges[node]):  # made before the forward, which got it as an input
            continue
        if stem in FUSED:
            found.append((node, None, (), edges[0]))
        elif stem in SOFTMAX and (way := _product(graph, stems, edges[0])) is not None:
            product, between = way
            query, key = graph.edges[product][-2:]
            if _is_computed(graph, stems, query) and _is_computed(graph, stems, key):
                found.append((node, product, between, query))
    if not found:
        return []
    check_names(graph.names)
    makers = _Makers(graph, calls, layers)
    return [
        Attention(node, product, between, layer)
        for node, product, between, query in found
        if (layer := makers.layer(node, query)) is not None
    ]


def _product(graph: Graph, stems: list[str], value: Value) -> tuple[int, tuple[int, ...]] | None:
    """Return the product that logits come from, and what it was multiplied and permuted by."""
    found: dict[int, tuple[int, ...]] = {}
    waiting: list[tuple[Value, tuple[int, ...]]] = [(value, ())]
    seen = {value}
    for (node, _), between in waiting:  # the list grows while it is read
        edges, stem = graph.edges[node] if node >= 0 else (), stems[node]
        if edges and stem in PRODUCT:
            found[node] = between
            continue
        given = [edge for edge in dict.fromkeys(edges) if edge[0] >= 0]
        if stem == "Permute" or (
            stem in ("Mul", "Div") and len(given) == 1 and edges[0] == given[0]
        ):
            between += (node,)
        elif not (
            stem in ("Add", "Where")
            or (len(given) == 1 and edges[0] == given[0] and stem in _SAME | {"Sub", "MaskedFill"})
        ):
            continue
        waiting += [(edge, between) for edge in given if edge not in seen]
        seen.update(given)
    return next(iter(found.items())) if len(found) == 1 else None


def keeps_order(graph: Graph, node: int) -> bool:
    """Whether a permutation leaves elements in their order in this graph: it moves sizes of 1."""
    dims: Sequence[int] = saved(graph.nodes[node], "dims")
    shape = graph.shape((node, 0))
    moved = [signed(dim) % len(dims) for dim, size in zip(dims, shape, strict=True) if size > 1]
    return moved == sorted(moved)


def _is_computed(graph: Graph, stems: list[str], value: Value) -> bool:
    """Whether a factor is no parameter: with one, a product is a layer."""
    while value[0] >= 0 and (stems[value[0]] in _PLACED and graph.edges[value[0]]):
        value = graph.edges[value[0]][0]
    return value[0] >= 0 and stems[value[0]] != "AccumulateGrad"


class _Makers:
    """Tells which layer has made a query."""

    def __init__(self, graph: Graph, calls: Sequence[Call], layers: Sequence[int | None]) -> None:
        self._graph = graph
        self._calls = calls
        self._layers = layers
        self._origins = Origins(graph, calls)
        self._of: dict[Value, int] = {}  # value -> the innermost call of a layer that returned it
        for ordinal, (call, layer) in enumerate(zip(calls, layers, strict=True)):
            for edge in call.outputs if layer is not None else ():
                if (value := locate(graph, edge)) is not None:
                    self._of[value] = ordinal

    def layer(self, node: int, query: Value) -> int | None:
        """Return the layer that made `query`, or the one within which it and `node` were made."""
        around = self._around(node)
        made = self._nearest([query])
        inside = made is not None and (
            around is None or (made != around and contains(self._calls[around], self._calls[made]))
        )
        ordinal = made if inside else around
        return None if ordinal is None else self._layers[ordinal]

    def _around(self, node: int) -> int | None:
        """Return the innermost call of a layer that made `node`."""
        time, found = self._origins.time(node), None
        for ordinal, call in enumerate(self._calls):
            if self._layers[ordinal] is not None and call.start <= time < call.stop:
                found = ordinal
        return found

    def _nearest(self, values: Iterable[Value]) -> int | None:
        waiting = list(values)
        seen = set(waiting)
        for value in waiting:  # the list grows while it is read
            if value in self._of:
                return self._of[value]
            following = self._graph.edges[value[0]] if len(seen) < _NODES else ()
            for below in following:
                if below[0] >= 0 and below not in seen:
                    seen.add(below)
                    waiting.append(below)
        return None


def _stem(name: str) -> str:
    return re.sub(r"Backward\d*$", "", name).removeprefix("torch::autograd::")
