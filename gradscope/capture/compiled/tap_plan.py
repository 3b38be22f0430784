"""What taps within compiled graphs can read of a structure, and how: from the plan for its hooks.

Hooks on nodes see every edge of a graph; taps see what modules are called with, and return. A value
is read where a module shows it, or where a sum or a module that alone reads it has the same
gradient. What no module shows is listed in `unread`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from gradscope.autograd import torch_internals
from gradscope.autograd.graph import Call, Edge, Graph, Value, locate
from gradscope.capture.forwards.plan import Operand, Place, Plan, within
from gradscope.capture.keys import Key, OfLayer, OfShortcut
from gradscope.capture.net.modules import ModuleInfo
from gradscope.capture.net.taps import Slope
from gradscope.capture.reading.functions import module_of
from gradscope.measure import activations


class TapPlace(NamedTuple):
    """A tensor that a module is called with ("in"), or returns ("out")."""

    module: int
    side: str
    position: int


class Cosine(NamedTuple):
    """A cosine, by the places that show the whole gradient and its two parts."""

    key: Key
    total: TapPlace
    shortcut: TapPlace
    branch: TapPlace


@dataclass
class TapPlan:
    """Taps for the graphs of one structure.

    Attributes
    ----------
    gradients : place -> keys that its gradient is read as
    values : place -> keys that the norm of its values is read as
    outputs : place -> elements of that output of a layer, whose moments are read
    slopes : place -> the activation to read there
    cosines : of shortcuts
    zeros : keys that are 0: parts of joins that no edge belongs to
    unread : what cannot be read -> the names of what it is of
    """

    gradients: dict[TapPlace, list[Key]] = field(default_factory=lambda: defaultdict(list))
    values: dict[TapPlace, list[Key]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[TapPlace, int] = field(default_factory=dict)
    slopes: dict[TapPlace, Slope] = field(default_factory=dict)
    cosines: list[Cosine] = field(default_factory=list)
    zeros: list[Key] = field(default_factory=list)
    unread: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def places(self) -> list[TapPlace]:
        """Return every place to tap."""
        cosines = [place for cosine in self.cosines for place in cosine[1:]]
        return list(dict.fromkeys([*self.gradients, *self.values, *self.outputs, *cosines]))


class _Finder:
    """Finds where modules show what the hooks of a plan read."""

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        calls: Sequence[Call],
        modules: Sequence[ModuleInfo],
        unsafe: Collection[Place],
    ) -> None:
        self._graph = graph
        self._calls = calls
        self._modules = modules
        self._unsafe = unsafe
        self._consumers = graph.consumers()
        numbers = [module.number for module in modules]
        self._once = {n for n in numbers if numbers.count(n) == 1}
        self._open = {locate(graph, edge) for edge in calls[0].outputs}
        self._shown: dict[Value, TapPlace] = {}
        self._taken: dict[tuple[Value, frozenset[Edge]], TapPlace] = {}
        for ordinal, call in enumerate(calls):
            for position, edge in enumerate(call.outputs):
                value, place = locate(graph, edge), self.once(ordinal, "out", position)
                if value is not None and place is not None:
                    self._shown.setdefault(value, place)
            for position, edge in enumerate(call.inputs):
                value, place = locate(graph, edge), self.once(ordinal, "in", position)
                if value is not None and place is not None:
                    inside = frozenset(within(graph, call, self._consumers.get(value, [])))
                    self._taken.setdefault((value, inside), place)

    def place(self, ordinal: int, side: str, position: int) -> TapPlace | None:
        """Return the place that a call shows a gradient at; None where that is not as hooks see it.

        That of what a call returns is whole if the call has made it, and uses it no further; that
        of what a call takes is the call's own if it does not return it.
        """
        call = self._calls[ordinal]
        edge = (call.inputs if side == "in" else call.outputs)[position]
        value = locate(self._graph, edge)
        if (ordinal, side, position) in self._unsafe:
            return None
        if value is not None:
            inside = within(self._graph, call, self._consumers.get(value, []))
            if side == "out" and (inside or not within(self._graph, call, [(value[0], 0)])):
                return None
            returned = {locate(self._graph, edge) for edge in call.outputs}
            if side == "in" and (value in returned or not inside or call.inputs.count(edge) > 1):
                return None
        return TapPlace(self._modules[ordinal].number, side, position)

    def of_value(self, value: Value, seen: Collection[Value] = ()) -> TapPlace | None:
        """Return where the whole gradient of `value` is shown."""
        if value in seen:
            return None
        if (place := self._shown.get(value)) is not None:
            return place
        readers = self._consumers.get(value, [])
        if self.is_open(value):
            return None
        if (place := self._taken.get((value, frozenset(readers)))) is not None:
            return place
        if len(readers) == 1 and self._hands_on(readers[0]):
            place = self.of_value((readers[0][0], 0), (*seen, value))
        if place is None and self._graph.names[value[0]] == "AddBackward0":
            for position, term in enumerate(self._graph.edges[value[0]]):
                alone = self._consumers.get(term, []) == [(value[0], position)]
                if alone and not self.is_open(term) and self._hands_on((value[0], position)):
                    place = place or self.of_value(term, (*seen, value))
        return place

    def of_edges(self, value: Value, edges: Sequence[Edge]) -> TapPlace | None:
        """Return where the part of the gradient of `value` over `edges` is shown."""
        if (place := self._taken.get((value, frozenset(edges)))) is not None:
            return place
        if len(edges) == 1 and self._hands_on(edges[0]):
            return self.of_value((edges[0][0], 0))
        return None

    def of_operand(self, operand: Operand) -> TapPlace | None:
        """Return where the values of `operand` are shown."""
        if operand.place is None or operand.times:
            return None
        ordinal, side, position = operand.place
        call = self._calls[ordinal]
        value = locate(self._graph, (call.inputs if side == "in" else call.outputs)[position])
        if value is None or (place := self._shown.get(value)) is not None:
            return None if value is None else place
        return next((p for (of, _), p in self._taken.items() if of == value), None)

    def once(self, ordinal: int, side: str, position: int) -> TapPlace | None:
        """Return that place if it is shown by one call only."""
        place = self.place(ordinal, side, position)
        return place if place is not None and place.module in self._once else None

    def is_open(self, value: Value) -> bool:
        """Whether the model was given `value` or returns it: gradient may come from outside."""
        return value in self._open or self._graph.nodes[value[0]] in self._graph.inputs

    def _hands_on(self, edge: Edge) -> bool:
        """Whether a sum hands the gradient of its result on to `edge` as it is."""
        node, position = edge
        graph = self._graph
        if graph.names[node] != "AddBackward0":
            return False
        if position == 1 and torch_internals.saved(graph.nodes[node], "alpha") != 1:
            return False
        return graph.shape(graph.edges[node][position]) == graph.shape((node, 0))


def plan_taps(
    plan: Plan,
    graph: Graph,
    calls: Sequence[Call],
    modules: Sequence[ModuleInfo],
    live: Mapping[int, nn.Module],
    unsafe: Collection[Place],
) -> TapPlan:
    """Decide where to tap the modules of a structure whose graph was read once by hooks.

    Parameters
    ----------
    plan, graph, calls
        Of one forward, that ran eagerly; `modules` are those that were called.
    live : number -> module
    unsafe : places that must not be tapped
    """
    finder = _Finder(plan, graph, calls, modules, unsafe)
    taps = TapPlan()
    _plan_outputs(taps, finder, calls, modules)
    _plan_inputs(taps, finder, graph, calls, modules)
    _plan_slopes(taps, plan, graph, modules, live)
    _plan_joins(taps, finder, plan)
    return taps


def _plan_outputs(
    taps: TapPlan,
    finder: _Finder,
    calls: Sequence[Call],
    modules: Sequence[ModuleInfo],
) -> None:
    for ordinal, (call, module) in enumerate(zip(calls, modules, strict=True)):
        if not module.is_layer:
            continue
        number = module.number
        if not call.outputs:
            taps.unread["outputs of layers that no gradient reaches"].append(module.name)
        for position, edge in enumerate(call.outputs):
            place = finder.place(ordinal, "out", position)
            if place is None:
                taps.unread["outputs that are kept, watched or changed elsewhere"].append(
                    module.name
                )
                continue
            if elements := math.prod(torch_internals.shape(*edge)):
                taps.outputs[place] = taps.outputs.get(place, 0) + elements
            _add(taps.gradients, place, OfLayer("signal_norm", number))


def _plan_inputs(
    taps: TapPlan,
    finder: _Finder,
    graph: Graph,
    calls: Sequence[Call],
    modules: Sequence[ModuleInfo],
) -> None:
    """Plan to read gradients at inputs: what others show, by taps of their own, or else in whole.

    The whole gradient of a value is what comes through the layer that alone reads it, unless a loss
    uses the value, too. None can where the layer works in place, so that there is no other way.
    """
    consumers = graph.consumers()
    of_layer: dict[ModuleInfo, list[tuple[TapPlace | None, ...]]] = defaultdict(list)
    for ordinal, (call, module) in enumerate(zip(calls, modules, strict=True)):
        for edge in dict.fromkeys(call.inputs if module.is_layer else ()):
            value = locate(graph, edge)
            inside = within(graph, call, consumers.get(value, [])) if value is not None else []
            if value is None or not inside:
                continue
            through = all_of_it = finder.of_edges(value, inside)
            if through is None and inside == consumers[value] and not finder.is_open(value):
                all_of_it = finder.of_value(value)
            own = finder.place(ordinal, "in", call.inputs.index(edge))
            of_layer[module].append((through, own, all_of_it))
    for module, found in of_layer.items():
        chosen = next((set(places) for places in zip(*found, strict=True) if all(places)), None)
        if chosen is None:
            taps.unread["input_signal_norm"].append(module.name)
            continue
        for place in sorted(chosen):
            _add(taps.gradients, place, OfLayer("input_signal_norm", module.number))


def _plan_slopes(
    taps: TapPlan,
    plan: Plan,
    graph: Graph,
    modules: Sequence[ModuleInfo],
    live: Mapping[int, nn.Module],
) -> None:
    """Plan to read how steep activations are: modules, and functions on the output of a layer."""
    for module in modules:
        place = TapPlace(module.number, "out", 0)
        if module.is_activation and place in taps.outputs and module.number in live:
            activation = live[module.number]
            taps.slopes[place] = _slope(activation, None)
            if module.may_lose_input and getattr(activation, "inplace", False):
                what = "derivative_mean and saturated_fraction of activations in place"
                taps.unread[what].append(module.name)
    for function in plan.functions:
        place = TapPlace(function.layer, "out", 0)
        if place in taps.outputs and place not in taps.slopes:
            made = module_of(function, graph)
            taps.slopes[place] = _slope(made, made)


def _slope(activation: nn.Module, function: nn.Module | None) -> Slope:
    rule = activations.slope_rule(activation)
    if rule is None:
        return Slope(function, True, None, math.nan)
    source, derivative = rule
    return Slope(function, source == "output", derivative, activations.flat(activation))


def _plan_joins(taps: TapPlan, finder: _Finder, plan: Plan) -> None:
    """Plan to read the parts of joins, and the norms that their sums add up."""
    values = {
        join: ((node, tap.slot), tap.is_open)
        for node, some in plan.values.items()
        for tap in some
        for join in tap.joins
    }
    edges: dict[int, list[Edge]] = defaultdict(list)
    for node, some in plan.edges.items():
        for tap in some:
            for i in tap.sums:
                edges[i].append((node, tap.position))
    for i, join in enumerate(plan.joins):
        (value, is_open), number = values[i], _number(join.keys["cosine"])
        places: dict[str, TapPlace | None] = {
            part: None if some is None else finder.of_edges(value, edges[some])
            for part, some in join.parts.items()
        }
        places["total"] = finder.of_value(value)
        keys = {**join.keys, "total": (OfShortcut("total_norm", number),)}
        for part in ("total", "shortcut", "branch"):
            if (place := places[part]) is not None:
                _add(taps.gradients, place, keys[part][0])
            else:
                taps.unread[f"{part}_norm of shortcuts"].append(str(number))
        if join.parts["other"] is not None or is_open:
            taps.unread["other_norm and cosine of shortcuts"].append(str(number))
            continue
        taps.zeros.extend(join.keys["other"])
        total, shortcut, branch = (places[part] for part in ("total", "shortcut", "branch"))
        if total is None or shortcut is None or branch is None:
            taps.unread["cosine of shortcuts"].append(str(number))
        else:
            taps.cosines.append(Cosine(join.keys["cosine"][0], total, shortcut, branch))
    _plan_values(taps, finder, plan)


def _plan_values(taps: TapPlan, finder: _Finder, plan: Plan) -> None:
    """Plan to read the norms of what joins add up, where modules take or return that itself."""
    unread = {key for keys in plan.forward_sums.values() for key in keys}
    for operand, found in plan.forward.items():
        place = finder.of_operand(operand)
        for key in found:
            if place is None:
                unread.add(key)
            else:
                _add(taps.values, place, key)
    numbers = sorted({key.shortcut for key in unread if isinstance(key, OfShortcut)})
    if numbers:
        taps.unread["branch_ratio of shortcuts"] += map(str, numbers)


def _number(keys: Sequence[Key]) -> int:
    (key,) = keys
    assert isinstance(key, OfShortcut)
    return key.shortcut


def _add(where: dict[TapPlace, list[Key]], place: TapPlace, key: Key) -> None:
    if key not in where[place]:
        where[place].append(key)
