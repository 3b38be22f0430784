"""How data flows from layer to layer in one forward: its graph, collapsed to the layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from torch.autograd.graph import Node

from gradscope.autograd import torch_internals
from gradscope.autograd.data_flow import LOOKUP, top
from gradscope.autograd.graph import Call, Graph, Origins, Value, locate, walk

END = -1
"""Target of what the model returns, or a loss takes."""

SOURCES = 32
"""Of more direct sources of one layer than this, the ones farther back are left out that lead to
it by way of the others, too: the sums of a residual stream hold all that came before."""


class Port(NamedTuple):
    """Where data enter or leave a call: the outermost one, or one that is computed in a backward.

    `call` is its place among the calls, `position` that among its tensors with a gradient.
    """

    side: Literal["in", "out"]
    call: int
    position: int


End = int | Port
"""A layer's call, by its place, or a port; as a target `END`, too."""


class LayerFlow(NamedTuple):
    """Pairs (source, target) between which data flow with no other layer on the way.

    `left` are values of layers that the outputs do not depend on, and where those come from: if a
    gradient reaches one, a loss takes it.
    """

    pairs: set[tuple[End, End]]
    left: list[tuple[tuple[Node, int], set[tuple[End, End]]]]


def find_flow(graph: Graph, calls: Sequence[Call], are_layers: Sequence[bool]) -> LayerFlow:
    """Return how data flow from layer to layer.

    The flow is that of the gradient: what is detached, or needs none, does not count. A layer in
    which others are called, as one that owns a position embedding and holds all blocks, stands
    where its own parameters enter.

    Parameters
    ----------
    graph, calls
        Of one forward.
    are_layers : whether each of `calls` is of a layer

    Raises
    ------
    Unavailable
        If this torch does not tell which call made which node.
    """
    search = _Search(graph, calls, are_layers)
    return LayerFlow(search.pairs, search.left)


class _Search:
    """Sets of sources are integers with one bit for each; the higher, the nearer to the outputs."""

    def __init__(self, graph: Graph, calls: Sequence[Call], are_layers: Sequence[bool]) -> None:
        loose = [
            edge
            for call, is_layer in zip(calls, are_layers, strict=True)
            if is_layer
            for edge in call.outputs
            if locate(graph, edge) is None
        ]
        if loose:  # the outputs do not depend on them: of an auxiliary loss, maybe
            graph = walk((*calls[0].outputs, *loose), graph.inputs)
        self.pairs: set[tuple[End, End]] = set()
        self.left: list[tuple[tuple[Node, int], set[tuple[End, End]]]] = []
        self._graph = graph
        self._calls = calls
        self._origins = Origins(graph, calls)
        self._leaves, self._containers = self._layers(are_layers)
        self._places = {id(call): number for number, call in enumerate(calls)}
        self._hidden = self._find_hidden()
        self._ends: list[End] = []  # what each bit stands for
        self._sources: list[int] = []
        self._before: list[int] = []  # all that lead to it
        self._bit: dict[Value, int] = {}
        self._passes: list[int] = [0] * len(graph.nodes)  # what reaches the inputs of each node
        self._find()
        for position, edge in enumerate(calls[0].outputs):
            value = locate(graph, edge)
            if value is not None:
                self.pairs |= self._pairs(self._from(value), Port("out", 0, position))
        consumers = graph.consumers()
        for edge in loose:
            value = locate(graph, edge)
            if value is not None and value not in consumers:
                self.left.append((edge, self._pairs(self._from(value), END)))

    def _layers(self, are_layers: Sequence[bool]) -> tuple[dict[Value, int], set[int]]:
        """Return the outputs of layers that call no other, and the calls of those that do."""
        leaves: dict[Value, int] = {}
        containers: set[int] = set()
        around: list[int] = []
        for number, (call, is_layer) in enumerate(zip(self._calls, are_layers, strict=True)):
            if not is_layer:
                continue
            while around and self._calls[around[-1]].stop < call.stop:
                around.pop()
            containers.update(around)
            if call.owns_parameters and call.start < call.stop:
                around.append(number)
        for number, (call, is_layer) in enumerate(zip(self._calls, are_layers, strict=True)):
            if not is_layer or number in containers:
                continue
            for edge in call.outputs:
                value = locate(self._graph, edge)
                if value is not None and self._made(value[0], call):
                    leaves.setdefault(value, number)
        return leaves, containers

    def _made(self, node: int, call: Call) -> bool:
        """Whether `call` made the node, and did not only hand on what it was given."""
        if self._graph.nodes[node] in self._graph.inputs:
            return False
        is_parameter = self._graph.names[node] == "AccumulateGrad"
        return is_parameter or call.start <= self._origins.time(node) < call.stop

    def _find_hidden(self) -> dict[int, int]:
        """Return the nodes in which modules ran without a graph, and the first call in each.

        So does re-entrant checkpointing, which computes them again in the backward.
        """
        first: dict[int, int] = {}
        for number, call in enumerate(self._calls):
            if call.start == call.stop:
                first.setdefault(call.start, number)
        return {
            node: first[time]
            for node, autograd_node in enumerate(self._graph.nodes)
            if torch_internals.is_custom(autograd_node)
            and (time := self._origins.time(node) + 1) in first
        }

    def _find(self) -> None:
        graph = self._graph
        for position, edge in enumerate(self._calls[0].inputs):
            value = locate(graph, edge)
            if value is not None and value not in self._bit:
                self._bit[value] = self._new(Port("in", 0, position), 0)
        slots: dict[int, set[int]] = {}
        for node, slot in (*graph.consumers(), *self._leaves):
            slots.setdefault(node, {0}).add(slot)
        for edge in self._calls[0].outputs:
            if (value := locate(graph, edge)) is not None:
                slots.setdefault(value[0], {0}).add(value[1])
        is_parameter = [False] * len(graph.nodes)
        for node in graph.order():
            if graph.nodes[node] in graph.inputs:
                continue
            values = [value for value in graph.edges[node] if value[0] >= 0]
            is_parameter[node] = self._is_parameter(node, is_parameter)
            if is_parameter[node] and not any(
                (node, s) in self._leaves for s in slots.get(node, ())
            ):
                continue
            sources = 0
            for value in values:
                sources |= self._from(value)
            self._passes[node] = sources
            if (call := self._hidden.get(node)) is not None:
                for position, value in enumerate(values):
                    self.pairs |= self._pairs(self._from(value), Port("in", call, position))
                for slot in slots.get(node, ()):
                    self._bit[node, slot] = self._new(Port("out", call, slot), sources)
                continue
            container = -1
            if any(is_parameter[producer] for producer, _ in values):
                container = self._container(node)
            for slot in slots.get(node, ()):
                layer = self._leaves.get((node, slot), container)
                if layer >= 0 and (node, slot) not in self._bit:
                    self._own((node, slot), layer, sources)

    def _is_parameter(self, node: int, is_parameter: Sequence[bool]) -> bool:
        """Whether a node is a parameter, or computed of nothing else."""
        name, values = self._graph.names[node], self._graph.edges[node]
        if name == "AccumulateGrad":
            return True
        if not values or node in self._hidden or re.sub(r"Backward\d*$", "", name) in LOOKUP:
            return False
        return all(producer >= 0 and is_parameter[producer] for producer, _ in values)

    def _container(self, node: int) -> int:
        """Return the call of a layer that made the node itself, though it calls others; or -1."""
        call = self._origins.maker(node)
        number = -1 if call is None else self._places[id(call)]
        return number if number in self._containers else -1

    def _own(self, value: Value, call: int, sources: int) -> None:
        """Note that a layer's call made `value`, of `sources` and of what it made itself before."""
        rest = sources
        for bit in _bits(sources):
            if self._ends[bit] == call:
                rest = rest & ~(1 << bit) | self._sources[bit]
        self._bit[value] = self._new(call, rest)
        self.pairs |= self._pairs(rest, call)

    def _new(self, end: End, sources: int) -> int:
        before = 0
        for bit in _bits(sources):
            if not before >> bit & 1:
                before |= 1 << bit | self._before[bit]
        self._ends.append(end)
        self._sources.append(sources)
        self._before.append(before)
        return len(self._ends) - 1

    def _from(self, value: Value) -> int:
        """Return the set of what `value` comes from directly."""
        bit = self._bit.get(value)
        return self._passes[value[0]] if bit is None else 1 << bit

    def _pairs(self, sources: int, target: End) -> set[tuple[End, End]]:
        """Return the pairs of `sources` and `target`, without those that too many others imply."""
        found = set()
        implied = 0
        for count, bit in enumerate(_bits(sources)):
            if count < SOURCES or not implied >> bit & 1:
                found.add((self._ends[bit], target))
            implied |= self._before[bit]
        return found


def _bits(numbers: int) -> Iterator[int]:
    """Return the members of a set, the highest first."""
    while numbers:
        number = top(numbers)
        numbers ^= 1 << number
        yield number
