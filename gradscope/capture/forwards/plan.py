"""Where to tap the graph of one forward: decided once for each structure, then looked up.

A plan speaks of nodes by their index in the walk, which is the same at every step of the same
structure; the nodes themselves are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Literal, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node

from gradscope.autograd.attention import Attention
from gradscope.autograd.graph import Call, Edge, Graph, Structure, Value, locate
from gradscope.autograd.joins import Join
from gradscope.autograd.torch_internals import Unavailable, is_derived, sequence_number, shape
from gradscope.capture.keys import Key, Keys, OfLayer, OfShortcut
from gradscope.capture.net.recurrence import FEWEST, OnTheWay, ends_of_time, layers_on_the_way
from gradscope.capture.reading.functions import Function
from gradscope.capture.reading.waiting import Trust
from gradscope.schema import SPLIT_FORMS

CUTS = ("shortcuts", "branches")
"""What can be cut: gradient through the shortcuts, or through the branches."""

STATES = 4
"""Outputs at most of what is called once for each time step."""

Place = tuple[int, str, int]
"""Where a tensor was seen: call, "in" or "out", position among the tensors with a gradient."""

SignedPlaces = tuple[tuple[Place, int], ...]

Sightings = dict[Value, list[tuple[Place, tuple[Node, int]]]]
"""Where a value was seen, and the node and slot that the gradient of what was seen arrives at."""


class Operand(NamedTuple):
    """How to get the norm of S(x) or F(x).

    It is the tensor seen at `place` or, where no module shows it, the product of the two factors
    that the node `product` has saved, and this times the constants of the nodes `times`.
    """

    place: Place | None
    product: int | None
    times: tuple[int, ...]


Way = Literal["shortcut", "branch", "other"]


@dataclass
class ValueTap:
    """A value whose whole gradient is read: as `keys`, and as the total of `joins`.

    `place` is that of the value, a node and its slot. `alone` is the place in `Plan.alone` of the
    one edge that reads the value in this graph. Its gradient, read as `edge_keys`, is the whole one
    unless something outside reads the value, too. `is_open`: the model was given the value or
    returns it, so that something outside may.
    """

    slot: int
    keys: Keys
    joins: list[int]
    place: tuple[int, int] | None = None
    is_open: bool = False
    alone: int | None = None
    edge_keys: Keys = ()
    all_keys: Keys = ()


@dataclass
class EdgeTap:
    """An edge, `position` among its consumer's, whose gradient goes into a sum of `sums`."""

    position: int
    sums: list[int]


@dataclass(frozen=True, slots=True)
class NodeTap:
    """What is read at one node: values that it made, edges, and those that are read `alone`.

    `alone` has the place of each in `Plan.alone`, and its position among the node's. `at_once`: one
    hook sees them all, after the node has run; torch's own nodes leave as it is what they are
    given, others may not.
    """

    index: int
    values: list[ValueTap]
    edges: list[EdgeTap]
    alone: list[tuple[int, int]]
    at_once: bool
    outlives_graph: bool


@dataclass
class EdgeSum:
    """Edges of one value through one module: summed, then read as `keys` when all have come.

    `time` is the dimension of time where it is a sequence, of which the first and the last step are
    read as `ends`.
    """

    edges: int
    keys: Keys = ()
    time: int | None = None
    ends: tuple[Keys, Keys] = ((), ())

    def steps_of(self, total: Tensor) -> list[tuple[Tensor, Keys]]:
        """Return the first and the last time step of the gradient `total`, and their keys."""
        if self.time is None or total.dim() != 3 or total.shape[self.time] < FEWEST:
            return []
        return [
            (total.select(self.time, i), keys) for i, keys in zip((0, -1), self.ends, strict=True)
        ]


@dataclass
class JoinTap:
    """A join to split: each part's sum of edges (None: no edge), and the readings' keys."""

    parts: dict[Way, int | None]
    keys: dict[str, Keys]


@dataclass
class Plan:
    """Taps for the graphs of one structure.

    Attributes
    ----------
    values, edges : by index of the node that gets the hook
    alone : edges that are the only ones to read a value, which is read through layers
    nodes : the same, node by node
    direct : (call, output, keys)
        Outputs of layers that the model's outputs do not depend on, such as an auxiliary loss's.
    forward : operand -> keys
        What the forward ratio of a join needs the norm of.
    places : those of `forward`
    calls : those of `places` and `terms`
    forward_sums : places, each with a sign -> keys
        Sums of tensors whose norm it needs: those of branches with several terms.
    terms : place -> the one of `forward_sums` that it belongs to
    leaves : nodes that accumulate the gradient of a parameter
    cuts : way -> edges that a cut of this way lets no gradient pass
    outputs : (value, number) of each output of a layer
    functions : activations that were called on the output of a layer without a module
    attention : calls of attention whose queries and keys the graph may keep
    way : layers on the way through the outermost call
        None of them where some go through time within this forward.
    trust : which tensors may wait to be read together
    structure : that of the graphs
    """

    values: dict[int, list[ValueTap]] = field(default_factory=dict)
    edges: dict[int, list[EdgeTap]] = field(default_factory=dict)
    alone: list[Edge] = field(default_factory=list)
    nodes: list[NodeTap] = field(default_factory=list)
    sums: list[EdgeSum] = field(default_factory=list)
    joins: list[JoinTap] = field(default_factory=list)
    direct: list[tuple[int, int, Keys]] = field(default_factory=list)
    forward: dict[Operand, Keys] = field(default_factory=dict)
    places: set[Place] = field(default_factory=set)
    forward_sums: dict[SignedPlaces, Keys] = field(default_factory=dict)
    terms: dict[Place, SignedPlaces] = field(default_factory=dict)
    leaves: list[int] = field(default_factory=list)
    cuts: dict[str, list[Edge]] = field(default_factory=dict)
    outputs: list[tuple[Value, int]] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    way: OnTheWay = field(default_factory=OnTheWay)
    calls: set[int] = field(default_factory=set)
    trust: Trust = field(default_factory=Trust)
    structure: Structure | None = None


def make_plan(
    graph: Graph,
    calls: Sequence[Call],
    layers: Sequence[int | None],
    joins: Sequence[Join],
    numbers: Sequence[int],
    times: Mapping[int, int] | None = None,
) -> Plan:
    """Decide where to tap `graph`.

    Parameters
    ----------
    graph, calls
        Of one forward.
    layers : for each call, the number of the module if that is a layer, None for other modules
    joins, numbers
        The graph's residual joins and their numbers in the catalogue.
    times : calls of recurrent layers, and the dimension of time of their first input
    """
    times = times or {}
    ends = ends_of_time(graph, calls, layers)
    plan = Plan(structure=graph.structure)
    if not (ends or times) and len(calls[0].outputs) <= STATES:
        plan.way = layers_on_the_way(graph, calls, layers)
    consumers_of = graph.consumers()
    whole: dict[Value, list[Key]] = defaultdict(list)
    totals: dict[Value, list[int]] = defaultdict(list)
    alone: dict[Value, tuple[Edge, list[Key]]] = {}
    edges: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))

    def add_sum(value_edges: Sequence[Edge], keys: Keys = ()) -> int:
        for consumer, position in value_edges:
            edges[consumer][position].append(len(plan.sums))
        plan.sums.append(EdgeSum(len(value_edges), keys))
        return len(plan.sums) - 1

    outputs = {locate(graph, edge) for edge in calls[0].outputs}
    for ordinal, (call, layer) in enumerate(zip(calls, layers, strict=True)):
        if layer is None:
            continue
        for position, edge in enumerate(call.outputs):
            key: Key = OfLayer("signal_norm", layer)
            value = locate(graph, edge)
            if value is None:
                plan.direct.append((ordinal, position, (key,)))
            else:
                whole[value].append(key)
                if ordinal in ends and ordinal not in times:
                    metric = f"{ends[ordinal]}_signal_norm"
                    whole[value].append(OfLayer(metric, layer))
                plan.outputs.append((value, layer))
        key = OfLayer("input_signal_norm", layer)
        for edge in dict.fromkeys(call.inputs):  # self-attention is given one tensor three times
            value = locate(graph, edge)
            consumers = consumers_of.get(value, []) if value is not None else []
            inside = within(graph, call, consumers)
            if value is None or not inside:
                continue
            time = times.get(ordinal) if edge == call.inputs[0] else None
            if len(inside) == len(consumers) == 1 and time is None:
                alone.setdefault(value, (inside[0], []))[1].append(key)
            else:
                sequence = plan.sums[add_sum(inside, (key,))]
                first, last = (OfLayer(f"{end}_signal_norm", layer) for end in ("first", "last"))
                sequence.time, sequence.ends = time, ((first,), (last,))
    seen = _sightings(graph, calls) if joins else {}
    for join, number in zip(joins, numbers, strict=True):
        if join.form not in SPLIT_FORMS:
            continue
        parts: dict[Way, tuple[Edge, ...]] = {
            "shortcut": join.shortcut_edges,
            "branch": join.branch_edges,
            "other": join.other_edges,
        }
        whole[join.value].append(OfShortcut("total_norm", number))
        totals[join.value].append(len(plan.joins))
        sums = {part: add_sum(some) if some else None for part, some in parts.items()}
        named: dict[str, Keys] = {part: (OfShortcut(f"{part}_norm", number),) for part in parts}
        named["cosine"] = (OfShortcut("cosine", number),)
        plan.joins.append(JoinTap(sums, named))
        _plan_forward(graph, seen, join, number, plan)

    for value in sorted(whole.keys() | alone.keys()):
        is_open = value in outputs or graph.nodes[value[0]] in graph.inputs
        tap = ValueTap(value[1], tuple(whole[value]), totals.get(value, []), value, is_open)
        if value in alone:
            only, through = alone[value]
            tap.alone, tap.edge_keys = len(plan.alone), tuple(through)
            tap.all_keys = tap.keys + tap.edge_keys
            plan.alone.append(only)
        plan.values.setdefault(value[0], []).append(tap)
    plan.edges = {
        node: [EdgeTap(position, sums) for position, sums in positions.items()]
        for node, positions in edges.items()
    }
    plan.nodes = _by_node(graph, plan)
    plan.cuts = {
        "shortcuts": [edge for join in joins for edge in join.shortcut_cut],
        "branches": [edge for join in joins for edge in join.branch_cut],
    }
    plan.calls = {ordinal for ordinal, _, _ in (*plan.places, *plan.terms)}
    own = {node for node, _ in calls[0].inputs}
    plan.leaves = [
        i
        for i, name in enumerate(graph.names)
        if name == "AccumulateGrad" and graph.nodes[i] not in own
    ]
    return plan


def _by_node(graph: Graph, plan: Plan) -> list[NodeTap]:
    alone: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for place, (index, slot) in enumerate(plan.alone):
        alone[index].append((place, slot))
    found = []
    for index in {**plan.values, **plan.edges, **alone}:
        values, edges = plan.values.get(index, []), plan.edges.get(index, [])
        name, kept = graph.names[index], alone.get(index, [])
        at_once = bool(values) and bool(edges or kept) and is_derived(name)
        outlives = name.endswith("AccumulateGrad")
        found.append(NodeTap(index, values, edges, kept, at_once, outlives))
    return found


def within(graph: Graph, call: Call, edges: Sequence[Edge]) -> list[Edge]:
    """Return those of `edges` that `call` has made; none where that cannot be told."""
    with suppress(Unavailable):
        return [e for e in edges if call.start <= sequence_number(graph.nodes[e[0]]) < call.stop]
    return []


def position(
    graph: Graph, calls: Sequence[Call], layers: Sequence[int | None], join: Join
) -> float:
    """Return the share of the layers' calls that had returned before `join`."""
    stops = [call.stop for call, layer in zip(calls, layers, strict=True) if layer is not None]
    when = sequence_number(graph.nodes[join.node])
    return sum(stop <= when for stop in stops) / max(len(stops), 1)


def _plan_forward(graph: Graph, seen: Sightings, join: Join, number: int, plan: Plan) -> None:
    """Plan to read ||S(x)|| and ||F(x)|| where both can be had."""
    if join.shortcut_operand is None:
        return
    shortcut = _operand(graph, seen, join.shortcut_operand)
    branch = [(_operand(graph, seen, value), sign) for value, sign in join.branch_operands]
    places = tuple((term.place, sign) for term, sign in branch if term and term.place)
    keys: dict[str, Key] = {
        way: OfShortcut(f"{way}_forward_norm", number) for way in ("shortcut", "branch")
    }
    if shortcut is None:
        return
    if len(branch) == 1 and branch[0][0] is not None:
        wanted = {"shortcut": shortcut, "branch": branch[0][0]}
    elif len(places) == len(branch) and not any(term and term.times for term, _ in branch):
        wanted = {"shortcut": shortcut}
        plan.forward_sums[places] = (*plan.forward_sums.get(places, ()), keys["branch"])
        plan.terms.update((place, places) for place, _ in places)
    else:
        return
    for way, operand in wanted.items():
        plan.forward[operand] = (*plan.forward.get(operand, ()), keys[way])
        if operand.place is not None:
            plan.places.add(operand.place)


def _operand(graph: Graph, seen: Sightings, value: Value) -> Operand | None:
    """Return how to get the norm of `value`, None if there is no cheap way."""
    times: list[int] = []
    while True:
        place = _seen_at(graph, seen, value)
        if place is not None:
            return Operand(place, None, tuple(times))
        node = value[0]
        if graph.names[node] not in ("MulBackward0", "DivBackward0"):
            return None
        one, other = graph.edges[node]
        if one[0] >= 0 and other[0] >= 0:
            is_product = graph.names[node] == "MulBackward0"
            return Operand(None, node, tuple(times)) if is_product else None
        times.append(node)
        value = one if one[0] >= 0 else other


def _sightings(graph: Graph, calls: Sequence[Call]) -> Sightings:
    """Return where modules returned or received each value, what they returned first.

    Looked up once: in a loop over time steps there are as many values to ask for as calls.
    """
    found: Sightings = defaultdict(list)
    for side in ("out", "in"):
        for ordinal, call in enumerate(calls):
            for position, edge in enumerate(call.outputs if side == "out" else call.inputs):
                value = locate(graph, edge)
                if value is not None:
                    found[value].append(((ordinal, side, position), edge))
    return found


def _seen_at(graph: Graph, seen: Sightings, value: Value) -> Place | None:
    """Return a module call that returned or received `value` whole: there its norm can be taken."""
    size = prod(graph.shape(value))
    for place, (node, slot) in seen.get(value, ()):
        if prod(shape(node, slot)) == size:
            return place
    return None
