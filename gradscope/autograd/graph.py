"""The autograd graph of one forward pass, read from its outputs down to the model's inputs.

A *value* is one output of a node: `(node, slot)`. An *edge* is one input of a node:
`(consumer, position)`. PyTorch keeps only the edges, and points them from consumer to producer:
`node.next_functions[position] == (producer, slot)`. Nodes are named by their place in the walk,
because node objects live for one step only; two steps of one structure number them alike.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from gradscope.autograd import torch_internals

Value = tuple[int, int]
"""(walk index of the producer, output slot); (-1, 0) for a tensor that has no gradient."""

Edge = tuple[int, int]
"""(walk index of the consumer, position among its inputs)."""

_VIEW = re.compile(
    r"((Unsafe)?View|AsStrided|Reshape(Alias)?|Transpose|Permute|T|Alias|(Uns|S)queeze|Slice|Select"
    r"|Expand|Unbind|Split|Diagonal|Unfold)(As\w*|WithSizes)?Backward"
)
_OVERWRITTEN = "CopySlices"
"""The node that is put before what made a tensor, once a view of it is changed in place."""


class Call(NamedTuple):
    """One call of one module during a forward pass.

    `start` and `stop` are autograd's sequence number before and after the call: every node in
    between was made in it; -1 where this torch tells none. `inputs` and `outputs` are
    `(grad_fn, output_nr)` of each tensor that requires grad; for a leaf the node is its gradient
    accumulator. `owns_parameters` counts the module's own, trained or frozen; `owns_frozen` tells
    whether some of them get no gradient; `computed` are the nodes that made some of them, as those
    that functional_call puts in their place.
    """

    name: str
    kind: str
    owns_parameters: bool
    start: int
    stop: int
    inputs: tuple[tuple[Node, int], ...]
    outputs: tuple[tuple[Node, int], ...]
    owns_frozen: bool
    computed: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Structure:
    """What the graphs of some steps have in common: kind, its name and the inputs of each node.

    The first `roots` of the nodes made outputs of the model.
    """

    kinds: list[type[Node]]
    names: list[str]
    edges: list[tuple[Value, ...]]
    roots: int
    digest: int


@dataclass(frozen=True)
class Graph:
    """Nodes in breadth-first order from the outputs, with the kind and the inputs of each."""

    nodes: list[Node]
    names: list[str]
    edges: list[tuple[Value, ...]]
    inputs: frozenset[Node]
    structure: Structure

    @cached_property
    def index(self) -> dict[Node | None, int]:
        """The place of each node."""
        return {None: -1, **dict(zip(self.nodes, range(len(self.nodes)), strict=True))}

    @cached_property
    def overwritten(self) -> frozenset[Value]:
        """The values of which a view was changed in place."""
        both = zip(self.names, self.edges, strict=True)
        return frozenset(values[0] for name, values in both if name == _OVERWRITTEN)

    def consumers(self) -> dict[Value, list[Edge]]:
        """Return for each value the edges that read it."""
        found: dict[Value, list[Edge]] = {}
        for consumer, values in enumerate(self.edges):
            for position, value in enumerate(values):
                if value[0] >= 0:
                    found.setdefault(value, []).append((consumer, position))
        return found

    def order(self) -> list[int]:
        """Return the walk indices sorted so that producers come before their consumers."""
        order: list[int] = []
        unread = [iter(values) for values in self.edges]
        seen = [False] * len(self.nodes)
        for root in range(len(self.nodes)):
            stack = [] if seen[root] else [root]
            seen[root] = True
            while stack:
                for producer, _ in unread[stack[-1]]:
                    if producer >= 0 and not seen[producer]:
                        seen[producer] = True
                        stack.append(producer)
                        break
                else:
                    order.append(stack.pop())
        return order

    def shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of the tensor that `value` stands for."""
        node, slot = value
        return torch_internals.shape(self.nodes[node], slot)


def walk(
    roots: Iterable[tuple[Node, int]],
    inputs: Collection[Node] = (),
    expected: Structure | None = None,
) -> Graph:
    """Read the graph below `roots` once, stopping at the model's own `inputs`.

    Parameters
    ----------
    roots : iterable of (Node, int)
        `(grad_fn, output_nr)` of each output of the model.
    inputs : collection of Node
        Nodes of the tensors the model was called with; nothing below them is read.
    expected : Structure, optional
        One that the graph may well have: to find that it has takes less time and memory.

    Returns
    -------
    Graph
        It keeps the nodes, hence the saved activations, alive: drop it with the step.
    """
    given = frozenset(inputs)
    nodes = list(dict.fromkeys(node for node, _ in roots))
    if expected is not None and (graph := _follow(expected, nodes.copy(), given)) is not None:
        return graph
    starts = len(nodes)
    index: dict[Node | None, int] = {node: place for place, node in enumerate(nodes)}
    index[None] = -1
    edges = []
    for node in nodes:  # the list grows while it is read
        values = []
        for producer, slot in () if node in given else node.next_functions:
            place = index.setdefault(producer, len(nodes))
            if place == len(nodes) and producer is not None:
                nodes.append(producer)
            values.append((place, slot))
        edges.append(tuple(values))
    kinds = [type(node) for node in nodes]
    names = [torch_internals.kind_name(kind) for kind in kinds]
    structure = Structure(kinds, names, edges, starts, hash((tuple(names), tuple(edges))))
    return Graph(nodes, names, edges, given, structure)


def _follow(structure: Structure, nodes: list[Node], given: frozenset[Node]) -> Graph | None:
    """Return the graph below the roots `nodes` if it is of `structure`, else None."""
    count = len(nodes)
    if count != structure.roots:
        return None
    for node, kind, edges in zip(nodes, structure.kinds, structure.edges):  # noqa: B905 - it grows
        found = () if node in given else node.next_functions
        if type(node) is not kind or len(found) != len(edges):
            return None
        for (producer, slot), (place, expected) in zip(found, edges):  # noqa: B905 - saves time
            if slot != expected:
                return None
            if place == count and producer is not None:
                nodes.append(producer)
                count += 1
            elif place == count or producer is not (nodes[place] if place >= 0 else None):
                return None
    # a node that was met before where the structure has a new one stands there twice
    if len(set(nodes)) < count:
        return None
    return Graph(nodes, structure.names, structure.edges, given, structure)


Made = tuple[Hashable, int, int, Sequence[tuple[Node, int]]]
"""What tells which part of a graph a call made: its module, `start`, `stop` and `outputs`."""


def fingerprint(graph: Graph, made: Sequence[Made] = ()) -> int:
    """Return a number that is equal for two steps of the same structure, within one process.

    It covers the kinds of the nodes, their edges, which module made which part of the graph and
    where in it what each returned is, so that skipping block 3 differs from skipping its twin,
    block 5, and relu(a) + tanh(b) from relu(b) + tanh(a). Sizes do not enter.
    """
    base = made[0][1] if made else 0
    place = graph.index.get
    parts = [
        (module, start - base, stop - base, *[place(node) for node, _ in outputs])
        for module, start, stop, outputs in made
    ]  # both are -1 where this torch has no sequence numbers
    return hash((graph.structure.digest, tuple(parts)))


def locate(graph: Graph, edge: tuple[Node, int]) -> Value | None:
    """Return where the value of `edge` is in `graph`, None if it is not there.

    A view that was noted before it was changed in place has left the graph: then it is its base
    that is meant.
    """
    node, slot = edge
    if node in graph.index:
        return graph.index[node], slot
    while node not in graph.index:
        base, base_slot = node.next_functions[0] if _VIEW.match(node.name()) else (None, 0)
        if base is None:
            return None
        node, slot = base, base_slot
    value = graph.index[node], slot
    return value if value in graph.overwritten else None  # else the view leads to no output


def adds_after(time: int, roots: Iterable[Node]) -> bool:
    """Tell whether something of several inputs was made from `time` on, on the way to `roots`."""
    seen, stack = set(), list(roots)
    while stack:
        node = stack.pop()
        if node in seen or torch_internals.sequence_number(node) < time:
            continue
        seen.add(node)
        made_from = [producer for producer, _ in node.next_functions if producer is not None]
        if len(made_from) > 1:
            return True
        stack += made_from
    return False


def contains(outer: Call, inner: Call) -> bool:
    """Tell whether `inner` was made in `outer`, or is the same."""
    return outer.start <= inner.start and inner.stop <= outer.stop


def saved_factors(node: Node) -> tuple[Tensor | None, Tensor | None]:
    """Return the two factors of a product (or quotient), as far as its node keeps them.

    None stands for one that backward does not need, that was changed in place since, or that hooks
    keep elsewhere: checkpointing would compute it anew.
    """
    return torch_internals.saved_tensor(node, "self"), torch_internals.saved_tensor(node, "other")


class Origins:
    """Which module call made which node, told by the sequence numbers."""

    def __init__(self, graph: Graph, calls: Sequence[Call]) -> None:
        if calls and calls[0].stop < 0:
            raise torch_internals.Unavailable("torch._C._autograd._get_sequence_nr")
        self.graph = graph
        self.calls = calls
        self.first = min((call.start for call in calls), default=0)
        last = max((call.stop for call in calls), default=0)
        self.innermost = [-1] * (last - self.first)
        self.outer: list[int] = []
        self.silent: dict[int, Call] = {}
        for number, call in enumerate(calls):  # an inner call overwrites its part of the outer one
            start, stop = call.start - self.first, call.stop - self.first
            self.outer.append(self.innermost[start] if start < stop else -1)
            self.innermost[start:stop] = [number] * (stop - start)
            if start == stop and call.owns_parameters:
                self.silent.setdefault(call.start, call)

    def time(self, node: int) -> int:
        """Return the sequence number of a node: its place in the order of execution."""
        return torch_internals.sequence_number(self.graph.nodes[node])

    def maker(self, node: int) -> Call | None:
        """Return the innermost call that made `node`, None outside of every call."""
        number = self._innermost(self.time(node))
        return self.calls[number] if number >= 0 else None

    def hidden(self, node: int) -> Call | None:
        """Return the first call with parameters that ran, without a graph, inside of `node`.

        A custom Function gets its number before its forward, which runs without grad: what it
        calls starts and stops at the next number. Re-entrant checkpointing works so.
        """
        return self.silent.get(self.time(node) + 1)

    def holder(self, nodes: Iterable[int]) -> Call | None:
        """Return the innermost call that made all of `nodes`."""
        times = [self.time(node) for node in nodes]
        low, high = min(times), max(times)
        number = self._innermost(low)
        while number >= 0 and self.calls[number].stop <= high:
            number = self.outer[number]
        return self.calls[number] if number >= 0 else None

    def _innermost(self, time: int) -> int:
        place = time - self.first
        return self.innermost[place] if 0 <= place < len(self.innermost) else -1
