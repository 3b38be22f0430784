"""One forward of a watched model: the calls of its modules, and what is read of their outputs.

Module hooks report calls (hooks.py, calls.py) to a `Forward`; when the outermost call has returned,
its graph is tapped (gradients.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from gradscope import measure
from gradscope.autograd import torch_internals
from gradscope.autograd.graph import Call, Graph, fingerprint, saved_factors, walk
from gradscope.autograd.torch_internals import next_sequence_number
from gradscope.capture.forwards.plan import Operand, Place, Plan, SignedPlaces
from gradscope.capture.forwards.replays import EVERY, Replay, replay_of
from gradscope.capture.forwards.states import States
from gradscope.capture.net import layers
from gradscope.capture.net.modules import ModuleInfo
from gradscope.capture.net.recurrence import FEWEST
from gradscope.capture.reading.readings import Read, Readings
from gradscope.capture.reading.samples import copy_of_sample
from gradscope.capture.reading.units import Units
from gradscope.capture.under_way import UnderWay

NodeSlot = tuple[Node, int]
"""Where the gradient of a tensor arrives."""


Slots = tuple[NodeSlot, ...]

_OBJECTS = 3
"""How deep what the model returns is looked into: in a list of distributions of transforms, say."""

OpenCall = tuple[ModuleInfo, int, int, Slots]
"""A call that has not returned yet: its module, its number, when it began, its inputs."""

_Record = tuple[int, int, Slots, Slots, nn.Module]
"""Of one that has: when it began and ended, its inputs and outputs, the module itself."""


class Forward:
    """The module calls of one outermost forward.

    Parameters
    ----------
    expected : Plan, optional
        Of the previous forward: where to find the tensors that joins add up. Without one, the
        inputs and outputs of every module are measured.
    units : Units, optional
        Looks at outputs, where it is on.
    call : UnderWay, optional
        The outermost call.

    Attributes
    ----------
    with_graph : set of int
        Numbers of the modules whose calls had a graph.
    has_constants : bool
        Whether a layer has returned tensors that require grad and others, of real numbers.
    thread : int
        Where it runs, as far as that is asked.
    """

    def __init__(
        self, expected: Plan | None, units: Units | None = None, call: UnderWay | None = None
    ) -> None:
        self._call = call
        self.thread = -1 if call is None else call.thread
        self.modules: list[ModuleInfo] = []
        self.with_graph: set[int] = set()
        self.has_constants = False
        self.readings = Readings(None if expected is None else expected.trust)
        self._records: list[_Record | None] = []
        self._units = units if units is not None and units.is_on else None
        self.times: dict[int, int] = {}  # recurrent call -> dimension of time of its first input
        self._replays: dict[int, Replay] = {}
        self._named: set[int] = set()  # calls with arguments by name
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}  # to be overwritten, and their samples
        self._expected = expected
        self._open: list[OpenCall] = []
        self._norms: dict[Place, Read] = {}
        self._terms: dict[Place, tuple[Tensor, int]] = {}
        self._sum_norms: dict[SignedPlaces, Read] = {}
        self.distributed: dict[int, list[Tensor]] = {}  # call -> outputs that are spread on a mesh
        self.states = States()
        self._computed: dict[int, tuple[Node, ...]] = {}  # call -> what made weights of its module

    def goes_on(self) -> bool:
        """Whether it may still return; else an exception ended it that no hook tells of."""
        return self._call is not None and self._call.goes_on()

    @cached_property
    def calls(self) -> list[Call]:
        """The calls that returned, in the order in which they began; asked for when all have."""
        found = self.numbered().items()
        return [_described(*returned, self._computed.get(i, ())) for i, returned in found]

    def outermost(self) -> Call:
        """Return the first of `calls`."""
        both = zip(self.modules, self._records, strict=True)
        return next(_described(module, record) for module, record in both if record is not None)

    @property
    def layers(self) -> list[int | None]:
        """For each of `calls`, the number of its module if that is a layer, else None."""
        return [module.number if module.is_layer else None for module, _ in self.returned()]

    def enter(
        self,
        module: ModuleInfo,
        called: nn.Module,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> None:
        """Note that `module` is called; without gradients, as checkpointing does, only that."""
        ordinal = len(self.modules)
        self.modules.append(module)
        self._records.append(None)
        if len(args) == 1 and not kwargs:
            tensors, inputs = _slots(args[0])
        else:
            tensors, inputs = _slots((args, kwargs) if kwargs else args)
            if kwargs:
                self._named.add(ordinal)
        if module.time is not None and tensors and args and args[0] is tensors[0]:
            shape = tensors[0].shape
            if len(shape) == 3 and shape[module.time] >= FEWEST:
                self.times[ordinal] = module.time
        if module.may_lose_input and getattr(called, "inplace", False) and args:
            self._sample_input(ordinal, args[0])
        self._open.append((module, ordinal, next_sequence_number(), inputs))
        if tensors and (self._expected is None or ordinal in self._expected.calls):
            self._measure_for_joins(ordinal, "in", tensors)

    def leave(
        self, number: int, module: nn.Module, args: tuple[object, ...], output: object
    ) -> bool:
        """Note that a module returned; return whether it was the outermost call."""
        info, ordinal, start, inputs = self._open.pop()
        while info.number != number:  # a call within it never returned
            info, ordinal, start, inputs = self._open.pop()
        tensors, outputs = _slots(output, 0 if self._open else _OBJECTS)
        self._records[ordinal] = start, next_sequence_number(), inputs, outputs, module
        if outputs:
            self.with_graph.add(number)
        if info.owns_parameters and (computed := layers.computed_parameters(module)):
            self._computed[ordinal] = computed  # functional_call may end before the forward
        if info.is_layer:
            if torch.is_grad_enabled():  # else it will be computed again, or is not trained
                read = tensors
                if not tensors or type(output) is not Tensor:
                    read = self._with_constants(tensors, output)
                self._measure_output(info, ordinal, module, args, read)
                self._note_replay(info, ordinal, module, args)
                if self._expected is None and isinstance(module, nn.RNNCellBase):
                    self.states.note(info.name, tensors_in(args[1:]), tensors)
        elif tensors and (self._expected is None or ordinal in self._expected.calls):
            self._measure_for_joins(ordinal, "out", tensors)
        return not self._open

    def _with_constants(self, tensors: Sequence[Tensor], output: object) -> list[Tensor]:
        """Return all that a layer has returned, behind the `tensors` that require grad."""
        constants = [t for t in tensors_in(output) if not t.requires_grad]
        if tensors and any(t.is_floating_point() or t.is_complex() for t in constants):
            self.has_constants = True
        return [*tensors, *constants]

    def returned(self) -> list[tuple[ModuleInfo, _Record]]:
        """Return the modules whose calls returned, with these, in the order in which they began."""
        both = zip(self.modules, self._records, strict=True)
        return [(module, record) for module, record in both if record is not None]

    def numbered(self) -> dict[int, tuple[ModuleInfo, _Record]]:
        """Return the same by the numbers of the calls."""
        both = enumerate(zip(self.modules, self._records, strict=True))
        return {i: (module, record) for i, (module, record) in both if record is not None}

    def replays(self) -> Iterator[tuple[Replay, Slots]]:
        """Yield the calls that are to be run again, with where the gradients of these arrive."""
        for ordinal, replay in self._replays.items():
            record = self._records[ordinal]
            if record is not None and len(record[3]) == replay.outputs:
                yield replay, record[3]

    def fingerprint(self, graph: Graph) -> int:
        """Return what is equal for two steps of the same structure.

        Modules are told by their numbers, and whether they are layers, which they may become; one
        that took another's place has its name.
        """
        made = [
            (2 * module.number + module.is_layer, start, stop, outputs)
            for module, (start, stop, _, outputs, _) in self.returned()
        ]
        return fingerprint(graph, made)

    def graph(self) -> Graph | None:
        """Walk the graph that the outermost call has left; None if it has left none."""
        call = self._records[0]
        if call is None:
            return None
        _, _, inputs, outputs, _ = call
        expected = None if self._expected is None else self._expected.structure
        return walk(outputs, {node for node, _ in inputs}, expected) if outputs else None

    @torch.no_grad()
    def supply(self, plan: Plan, graph: Graph) -> None:
        """Give the joins in `plan` the norms of what they add up, NaN where there are none.

        A ratio of two that are not of the same forwards would be none.
        """
        for operand, keys in plan.forward.items():
            norm = self._norm(operand, graph)
            self.readings.add(math.nan if norm is None else norm, keys)
        for places, keys in plan.forward_sums.items():
            self.readings.add(self._sum_norms.get(places, math.nan), keys)

    def _norm(self, operand: Operand, graph: Graph) -> Read | None:
        """Return the norm of `operand`; None where it was not seen, or a factor is gone."""
        norm: Read | None = None
        if operand.place is not None:
            norm = self._norms.get(operand.place)
        elif operand.product is not None:
            one, other = saved_factors(graph.nodes[operand.product])
            if one is not None and other is not None:
                place = "product", operand.product
                norm = self.readings.norm_of_ours(one * other, place)
        for node in operand.times:
            one, other = saved_factors(graph.nodes[node])
            factor = one if other is None else other
            if norm is None or factor is None or factor.numel() != 1:
                return None
            if isinstance(norm, tuple):
                sheet, number = norm
                if sheet.rows is None:
                    self.readings.read_waiting()
                assert sheet.rows is not None
                norm = sheet.rows.norm(number)
            size = abs(factor.item()) if factor.is_cpu else measure.dense(factor).abs().view(())
            norm = norm / size if graph.names[node] == "DivBackward0" else norm * size
        return norm

    def _measure_output(
        self,
        info: ModuleInfo,
        ordinal: int,
        module: nn.Module,
        args: tuple[object, ...],
        tensors: Sequence[Tensor],
    ) -> None:
        activation = module if info.is_activation else None
        z = None if activation is None else self._input_of(ordinal, args, tensors)
        terms = None if self._expected is None else self._expected.terms
        if self._units is not None and tensors:
            self._units.take(info, tensors[0])
        for position, tensor in enumerate(tensors):
            place = ordinal, "out", position
            norm: Read | None = self.readings.again(place, info, tensor)
            if activation is not None or norm is None:
                if norm is not None:
                    self.readings.read_slopes(activation, z, tensor, info.number)
                else:
                    x = tensor if measure.is_dense(tensor) else measure.dense(tensor)
                    if hasattr(tensor, "device_mesh"):
                        self.distributed.setdefault(ordinal, []).append(tensor)
                    if x.numel() == 0 or not x.is_floating_point():
                        continue
                    norm = self.readings.read_output(x, info, activation, z, place)
            self._norms[place] = norm
            if terms is not None and place in terms:
                self._hold(place, tensor)

    def _sample_input(self, ordinal: int, z: object) -> None:
        """Keep of the input of an activation what its slope is read from, before it is lost."""
        if isinstance(z, Tensor) and z.is_floating_point() and torch.is_grad_enabled():
            self._inputs[ordinal] = z, copy_of_sample(measure.in_memory(z))

    def _input_of(
        self, ordinal: int, args: tuple[object, ...], outputs: Sequence[Tensor]
    ) -> Tensor | None:
        """Return the input of an activation, or a sample of it; None if it is lost."""
        z = args[0] if args else None
        if (before := self._inputs.pop(ordinal, None)) is not None and before[0] is z:
            return before[1]
        if not isinstance(z, Tensor) or any(z is output for output in outputs):  # in place
            return None
        return z

    def _note_replay(
        self, info: ModuleInfo, ordinal: int, module: nn.Module, args: tuple[object, ...]
    ) -> None:
        """Note that a recurrent layer is to be run again, at some of the looks at units."""
        looks = self._units is not None and self._units.look % EVERY == 0
        if looks and isinstance(module, nn.RNNBase) and ordinal not in self._named:
            replay = replay_of(info.number, module, args)
            if replay is not None:
                self._replays[ordinal] = replay

    def _measure_for_joins(self, ordinal: int, side: str, tensors: Sequence[Tensor]) -> None:
        """Take the norms that a join will ask for, as far as the previous forward tells."""
        for position, tensor in enumerate(tensors):
            place = (ordinal, side, position)
            if self._expected is None or place in self._expected.places:
                self._norms[place] = self.readings.norm(tensor, place)
            self._hold(place, tensor)

    def _hold(self, place: Place, x: Tensor) -> None:
        """Keep a term of a branch's sum, as the previous forward tells, until all are there."""
        if self._expected is None or (places := self._expected.terms.get(place)) is None:
            return
        self._terms[place] = x.detach(), torch_internals.version(x)
        if all(other in self._terms for other, _ in places):
            terms = [(*self._terms.pop(other), sign) for other, sign in places]
            if all(
                torch_internals.version(x) == before for x, before, _ in terms
            ):  # else F(x) is lost
                total = sum(sign * measure.dense(x) for x, _, sign in terms)
                self._sum_norms[places] = self.readings.norm(torch.as_tensor(total))


def _described(info: ModuleInfo, record: _Record, computed: tuple[Node, ...] = ()) -> Call:
    start, stop, inputs, outputs, module = record
    owns_frozen = info.owns_parameters and layers.owns_frozen(module)
    own = info.owns_parameters
    return Call(info.name, info.kind, own, start, stop, inputs, outputs, owns_frozen, computed)


def _slots(value: object, objects: int = 0) -> tuple[Sequence[Tensor], Slots]:
    """Return the tensors in `value` that require grad, and where the gradient of each arrives.

    None while gradients are off. `objects` as for `tensors_in`.
    """
    if not torch.is_grad_enabled():
        return (), ()
    if type(value) is Tensor and (node := value.grad_fn) is not None:  # as it is nearly always
        return (value,), ((node, value.output_nr),)
    tensors = [tensor for tensor in tensors_in(value, objects) if tensor.requires_grad]
    return tensors, tuple(map(gradient_edge, tensors))


def with_gradient(value: object) -> Sequence[Tensor]:
    """Return the tensors in `value` that require grad; none while gradients are off."""
    return _slots(value)[0]


def tensors_in(value: object, objects: int = 0) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, dicts and dataclasses.

    Other mappings, which may compute what they hold, and objects of other classes, such as
    distributions, are looked into where these are nested no deeper than `objects`; by default they
    are passed over.
    """
    if type(value) is Tensor:  # as it is nearly always; what follows takes longer
        return [value]
    if isinstance(value, (tuple, list)):
        items: Iterable[object] = value
    elif isinstance(value, dict) or (objects and isinstance(value, Mapping)):
        items = value.values()
    elif isinstance(value, Tensor):
        return [value]
    elif is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, field.name) for field in fields(value)]
    elif objects and not isinstance(value, (type, nn.Module)) and hasattr(value, "__dict__"):
        items, objects = list(vars(value).values()), objects - 1
    else:
        return []
    found = []
    for item in items:
        if type(item) is Tensor:
            found.append(item)
        else:
            found += tensors_in(item, objects)
    return found


def gradient_edge(tensor: Tensor) -> NodeSlot:
    """Return the node and slot in which the gradient of `tensor` arrives."""
    node = tensor.grad_fn
    if node is not None:
        return node, tensor.output_nr
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr
