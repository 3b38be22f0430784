"""The structures that the graphs of a model have: each is analysed once, then looked up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import prod

from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d

from gradscope.autograd.attention import find_attention
from gradscope.autograd.graph import Call, Graph
from gradscope.autograd.joins import Join, find_joins
from gradscope.autograd.torch_internals import shape
from gradscope.capture.faults import Faults, guarded
from gradscope.capture.forwards.between import own_between
from gradscope.capture.forwards.edges import EdgeFinder
from gradscope.capture.forwards.forward import Forward
from gradscope.capture.forwards.plan import Plan, make_plan, position
from gradscope.capture.forwards.spread import find_spread
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.shortcut_list import ShortcutInfo, occurrences
from gradscope.capture.reading.dropouts import find_dropouts
from gradscope.capture.reading.functions import find_functions

_BATCH_NORM = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
"""Those that look at one process's batch alone."""

PLANS = 128
"""Structures that are remembered: a model of changing depth has some, not any number."""

ANALYSIS_SHARE = 0.02
"""Share of a training's time, after the first seconds, that the analysis of structures may take."""

_JOINS = "shortcuts"
_EDGES = "the flow of data from layer to layer"
_FUNCTIONS = "activations called as functions"
ATTENTION = "the logits of attention"
_DROPOUTS = "dropout called as a function"
_BATCH_NORMS = "the batches of BatchNorms"
_BETWEEN = "the modules between layers"
_STATES = "the states of recurrent cells"
_SPREAD = "which part of an output a process holds"


class Structures:
    """Plans for the graphs of one model, by their structure.

    Parameters
    ----------
    catalogue : Catalogue
        Numbers the shortcuts that are found, and keeps the names of functions.
    faults : Faults
    start : float
        When the training began, by `time.monotonic`.
    meet : called when a structure is new
        There may be new modules in it.
    """

    def __init__(
        self, catalogue: Catalogue, faults: Faults, start: float, meet: Callable[[], None]
    ) -> None:
        self.faults = faults
        self._catalogue = catalogue
        self._start = start
        self._meet = meet
        self._plans: dict[int, Plan] = {}
        self._edges = EdgeFinder(catalogue)
        self._analysis = 0.0  # seconds spent on looking for joins and edges

    def plan(self, graph: Graph, forward: Forward) -> Plan:
        """Return where to tap `graph`, which `forward` has left."""
        structure = forward.fingerprint(graph)
        plan = self._plans.pop(structure, None) or self._make(graph, forward)
        self._plans[structure] = plan  # the last one used stands last
        if len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]
        self._follow(forward.modules[0].number, forward.outermost())
        return plan

    def _make(self, graph: Graph, forward: Forward) -> Plan:
        """Analyse a structure that is met for the first time."""
        self._meet()
        calls, layers = forward.calls, forward.layers
        joins = self._joins(graph, forward)
        names = [(j.name, j.form, j.split, j.join, j.branch) for j in joins]
        is_part = forward.modules[0].number != 0
        numbers = self._catalogue.joins.meet(
            [
                ShortcutInfo(*name, occurrence, position(graph, calls, layers, join))
                for name, occurrence, join in zip(names, occurrences(names), joins, strict=True)
            ],
            {layer for layer in layers if layer is not None} if is_part else (),
        )
        plan = make_plan(graph, calls, layers, joins, numbers, forward.times)
        self._catalogue.outside.meet(graph.nodes[leaf] for leaf in plan.leaves)
        self._add_functions(plan, graph, forward)
        self._add_attention(plan, graph, forward)
        self._add_dropouts(graph, forward)
        self._add_states(forward)
        self._add_between(forward)
        self._add_edges(graph, forward)
        self._add_spread(graph, forward, dict(zip(numbers, joins, strict=True)))
        return plan

    @guarded(_SPREAD)
    def _add_spread(self, graph: Graph, forward: Forward, joins: Mapping[int, Join]) -> None:
        find_spread(self._catalogue, graph, forward, joins, self.faults.tell)

    def _joins(self, graph: Graph, forward: Forward) -> list[Join]:
        """Look for residual joins, within a share of the time that the training has taken.

        A search that fails costs the shortcuts, and nothing else.
        """
        begun = time.monotonic()
        if self.faults.is_off(_JOINS):
            return []
        if self._is_short_of_time(begun):
            self.faults.tell(
                "the structure of the model changes all the time: shortcuts and the flow of data"
                " between layers are looked for in some of the structures only, so that this takes"
                f" {ANALYSIS_SHARE:.0%} of the time"
            )
            return []
        try:
            return find_joins(graph, forward.calls)
        except Exception as error:
            self.faults.report(_JOINS, error)
            return []
        finally:
            self._analysis += time.monotonic() - begun

    def _is_short_of_time(self, now: float) -> bool:
        return self._analysis > 5 + ANALYSIS_SHARE * (now - self._start)

    @guarded(_EDGES)
    def _follow(self, module: int, call: Call) -> None:
        self._edges.follow(module, call)

    def _add_edges(self, graph: Graph, forward: Forward) -> None:
        """Look for the layers between which data flow, within the same share of the time."""
        begun = time.monotonic()
        if self.faults.is_off(_EDGES) or self._is_short_of_time(begun):
            return
        try:
            self._edges.add(graph, forward)
        except Exception as error:
            self.faults.report(_EDGES, error)
        finally:
            self._analysis += time.monotonic() - begun

    def _add_functions(self, plan: Plan, graph: Graph, forward: Forward) -> None:
        if self.faults.is_off(_FUNCTIONS):
            return
        try:
            plan.functions = find_functions(graph, forward.calls, forward.layers, plan.outputs)
        except Exception as error:
            self.faults.report(_FUNCTIONS, error)
        self._catalogue.function_of |= {f.layer: f.name for f in plan.functions}

    @guarded(_DROPOUTS)
    def _add_dropouts(self, graph: Graph, forward: Forward) -> None:
        self._catalogue.add_to_fact("dropout", find_dropouts(graph, forward.calls))

    @guarded(_STATES)
    def _add_states(self, forward: Forward) -> None:
        self._catalogue.add_to_fact("cut_states", forward.states.cut())

    @guarded(_BETWEEN)
    def _add_between(self, forward: Forward) -> None:
        returned = [(info, record[-1]) for info, record in forward.returned()]
        self._catalogue.add_to_fact("between", own_between(returned))

    @guarded(_BATCH_NORMS)
    def add_batch_norms(self, forward: Forward) -> None:
        """Keep over how many values each takes mean and variance: micro-batches do not add up.

        Sizes are no part of a structure, and are looked at now and then.
        """
        known = self._catalogue.facts.get("batchnorm_values", {})
        found = {
            info.name: max(prod(size) // size[1], known.get(info.name, 0))
            for info, (_, _, _, outputs, module) in forward.returned()
            if isinstance(module, _BATCH_NORM) and module.training and outputs
            for size in [shape(*outputs[0])]
        }
        self._catalogue.add_to_fact("batchnorm_values", found)

    @guarded(ATTENTION)
    def _add_attention(self, plan: Plan, graph: Graph, forward: Forward) -> None:
        plan.attention = find_attention(graph, forward.calls, forward.layers)
