"""Layers that are called one time step after the other: whose first and last call to compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import nn

from gradscope.autograd.graph import Call, Graph, locate
from gradscope.autograd.torch_internals import Unavailable, sequence_number

FEWEST = 4
"""Calls, or time steps, of which it is said how the gradient changes along them."""


def time_dimension(module: nn.Module) -> int | None:
    """Return along which dimension of its input a recurrent layer goes through time.

    None for other modules and for bidirectional ones, which have both ends near the loss.
    """
    if not isinstance(module, nn.RNNBase) or module.bidirectional:
        return None
    return 1 if module.batch_first else 0


def ends_of_time(
    graph: Graph, calls: Sequence[Call], layers: Sequence[int | None]
) -> dict[int, Literal["first", "last"]]:
    """Return the first and the last call of each layer with parameters that is called repeatedly.

    Only where the last one depends on the first: not those of a head that is called at every step,
    nor of an encoder of several inputs.

    Parameters
    ----------
    graph, calls
        Of one forward.
    layers : for each call, the number of the module if that is a layer, None for other modules
    """
    of: dict[int, list[int]] = defaultdict(list)
    for ordinal, (call, layer) in enumerate(zip(calls, layers, strict=True)):
        if layer is not None and call.owns_parameters and call.outputs:
            of[layer].append(ordinal)
    ends: dict[int, Literal["first", "last"]] = {}
    for some in of.values():
        first, last = some[0], some[-1]
        if len(some) >= FEWEST and _depends(graph, calls[last], calls[first]):
            ends |= {first: "first", last: "last"}
    return ends


class OnTheWay(NamedTuple):
    """Layers with parameters on the way through an outermost call.

    `after` has those that depend on it for each of the call's inputs, `behind` those that it
    depends on for each of its outputs.
    """

    after: tuple[frozenset[int], ...] = ()
    behind: tuple[frozenset[int], ...] = ()


def layers_on_the_way(
    graph: Graph, calls: Sequence[Call], layers: Sequence[int | None]
) -> OnTheWay:
    """Return which layers lie behind the inputs, and before the outputs, of the outermost call.

    Parameters
    ----------
    graph, calls, layers : as for `ends_of_time`
    """
    of: dict[int, set[int]] = defaultdict(set)
    for call, layer in zip(calls, layers, strict=True):
        if layer is not None and call.owns_parameters:
            for edge in call.outputs:
                if (value := locate(graph, edge)) is not None:
                    of[value[0]].add(layer)
    given = [graph.index.get(node, -1) for node, _ in calls[0].inputs]
    reached = [0] * len(graph.nodes)  # a bit for each input
    for i, node in enumerate(given):
        if node >= 0:
            reached[node] |= 1 << i
    for node in graph.order():
        for producer, _ in graph.edges[node]:
            if producer >= 0:
                reached[node] |= reached[producer]
    after = [
        frozenset(layer for node, some in of.items() if reached[node] >> i & 1 for layer in some)
        for i in range(len(given))
    ]
    behind = []
    for edge in calls[0].outputs:
        value = locate(graph, edge)
        stack = [] if value is None else [value[0]]
        seen = set(stack)
        for node in stack:  # the list grows while it is read
            following = {producer for producer, _ in graph.edges[node] if producer >= 0} - seen
            seen |= following
            stack += following
        behind.append(frozenset(layer for node in seen for layer in of.get(node, ())))
    return OnTheWay(tuple(after), tuple(behind))


def _depends(graph: Graph, later: Call, earlier: Call) -> bool:
    """Whether the outputs of one call depend on those of another."""
    wanted = {value[0] for edge in earlier.outputs if (value := locate(graph, edge)) is not None}
    stack = [value[0] for edge in later.outputs if (value := locate(graph, edge)) is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node in wanted:
            return True
        try:
            if sequence_number(graph.nodes[node]) < earlier.start:
                continue
        except Unavailable:
            pass
        following = {producer for producer, _ in graph.edges[node] if producer >= 0} - seen
        seen |= following
        stack += following
    return False
