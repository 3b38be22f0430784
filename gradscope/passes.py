"""One forward of a watched model: the calls of its modules, and what is read of their outputs.

Module hooks (taps.py) report calls to a `Forward`; when the outermost call has returned, its graph
is tapped (gradients.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from gradscope import measure
from gradscope.activations import activation_readings
from gradscope.graph import Call, Graph, saved_factors, sequence_number, walk
from gradscope.measure import Reading
from gradscope.modules import ModuleInfo
from gradscope.plan import Operand, Place, Plan, SignedPlaces
from gradscope.tape import Readings

Edge = tuple[Node, int]


class OpenCall(NamedTuple):
    """A call that has not returned yet."""

    module: ModuleInfo
    ordinal: int
    start: int
    inputs: tuple[Edge, ...]


class Forward:
    """The module calls of one outermost forward.

    Parameters
    ----------
    expected : Plan, optional
        Of the previous forward: where to find the tensors that joins add up. Without one, the
        inputs and outputs of every module are measured.
    """

    def __init__(self, expected: Plan | None) -> None:
        self.modules: list[ModuleInfo] = []
        self.readings = Readings()
        self._calls: list[Call | None] = []
        self._expected = expected
        self._open: list[OpenCall] = []
        self._norms: dict[Place, Reading] = {}
        self._terms: dict[Place, tuple[Tensor, int]] = {}
        self._sum_norms: dict[SignedPlaces, Reading] = {}

    @property
    def calls(self) -> list[Call]:
        """The calls that returned, in the order in which they began."""
        return [call for _, call in self.returned()]

    @property
    def layers(self) -> list[int | None]:
        """For each of `calls`, the number of the layer, None for other modules."""
        return [module.number if module.is_layer else None for module, _ in self.returned()]

    def enter(
        self, module: ModuleInfo, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Note that `module` is called; without gradients, as checkpointing does, only that."""
        tensors = [t for t in tensors_in((args, kwargs)) if t.requires_grad]
        if not torch.is_grad_enabled():
            tensors = []
        ordinal = len(self.modules)
        self.modules.append(module)
        self._calls.append(None)
        start = sequence_number()
        self._open.append(OpenCall(module, ordinal, start, tuple(map(gradient_edge, tensors))))
        self._measure_for_joins(ordinal, "in", tensors)

    def leave(
        self, number: int, module: nn.Module, args: tuple[object, ...], output: object
    ) -> bool:
        """Note that a module returned; return whether it was the outermost call."""
        call = self._open.pop()
        while call.module.number != number:  # a call within it never returned
            call = self._open.pop()
        info = call.module
        found = list(tensors_in(output))
        tensors = [t for t in found if t.requires_grad]
        self._calls[call.ordinal] = Call(
            info.name,
            info.kind,
            info.owns_parameters,
            call.start,
            sequence_number(),
            call.inputs,
            tuple(map(gradient_edge, tensors)),
            info.owns_parameters and _owns_frozen(module),
        )
        if not torch.is_grad_enabled():
            pass  # what is computed here is computed again, or not trained
        elif info.is_layer:
            self._measure_output(call, module, args, tensors or found)
        else:
            self._measure_for_joins(call.ordinal, "out", tensors)
        return not self._open

    def returned(self) -> Iterator[tuple[ModuleInfo, Call]]:
        """Yield the modules whose calls returned, with these, in the order in which they began."""
        for module, call in zip(self.modules, self._calls, strict=True):
            if call is not None:
                yield module, call

    def graph(self) -> Graph | None:
        """Walk the graph that the outermost call has left; None if it has left none."""
        call = self._calls[0]
        if call is None or not call.outputs:
            return None
        return walk(call.outputs, {node for node, _ in call.inputs})

    def supply(self, plan: Plan, graph: Graph) -> None:
        """Give the joins in `plan` the norms of what they add up, where these can be had."""
        for operand, keys in plan.forward.items():
            if (norm := self._norm(operand, graph)) is not None:
                self.readings.add(norm, *keys)
        for places, keys in plan.forward_sums.items():
            if (norm := self._sum_norms.get(places)) is not None:
                self.readings.add(norm, *keys)

    def _norm(self, operand: Operand, graph: Graph) -> Reading | None:
        """Return the norm of `operand`; None where it was not seen, or a factor is gone."""
        norm: Reading | None = None
        if operand.place is not None:
            norm = self._norms.get(operand.place)
        elif operand.product is not None:
            one, other = saved_factors(graph.nodes[operand.product])
            if one is not None and other is not None:
                norm = measure.norm(measure.dense(one * other))
        for node in operand.times:
            one, other = saved_factors(graph.nodes[node])
            factor = one if other is None else other
            if norm is None or factor is None or factor.numel() != 1:
                return None
            size = abs(factor.item()) if factor.is_cpu else measure.dense(factor).abs().view(())
            norm = norm / size if graph.names[node] == "DivBackward0" else norm * size
        return norm

    def _measure_output(
        self,
        call: OpenCall,
        module: nn.Module,
        args: tuple[object, ...],
        tensors: list[Tensor],
    ) -> None:
        number = call.module.number
        for position, tensor in enumerate(tensors):
            x = measure.dense(tensor)
            if not x.is_floating_point() or x.numel() == 0:
                continue
            n = tensor.numel()
            norm, mean, deviation = measure.moments(x)
            self._norms[call.ordinal, "out", position] = norm
            self._hold((call.ordinal, "out", position), x)
            self.readings.add(norm, ("layer", "activation_norm", number, n))
            self.readings.add(mean, ("layer", "activation_mean", number, n))
            self.readings.add(deviation, ("layer", "activation_std", number, n))
            if call.module.is_activation:
                self._measure_activation(number, module, args, tensor)

    def _measure_activation(
        self, number: int, module: nn.Module, args: tuple[object, ...], output: Tensor
    ) -> None:
        z = args[0] if args and isinstance(args[0], Tensor) else None
        if z is output:  # in place: z is lost
            z = None
        x = measure.dense(output)
        readings = activation_readings(module, z, x)
        for metric, reading in zip(readings._fields, readings, strict=True):
            value = reading.item() if reading.is_cpu else reading
            self.readings.add(value, ("layer", metric, number, output.numel()))

    def _measure_for_joins(self, ordinal: int, side: str, tensors: list[Tensor]) -> None:
        """Take the norms that a join will ask for, as far as the previous forward tells."""
        for position, tensor in enumerate(tensors):
            place = (ordinal, side, position)
            if self._expected is None or place in self._expected.places:
                self._norms[place] = measure.norm(measure.dense(tensor))
            self._hold(place, tensor)

    def _hold(self, place: Place, x: Tensor) -> None:
        """Keep a term of a branch's sum, as the previous forward tells, until all are there."""
        if self._expected is None or (places := self._expected.terms.get(place)) is None:
            return
        self._terms[place] = x.detach(), x._version
        if all(other in self._terms for other, _ in places):
            terms = [(*self._terms.pop(other), sign) for other, sign in places]
            if all(x._version == version for x, version, _ in terms):  # else F(x) is lost
                total = sum(sign * measure.dense(x) for x, _, sign in terms)
                self._sum_norms[places] = measure.norm(torch.as_tensor(total))


def _owns_frozen(module: nn.Module) -> bool:
    """Whether some of the module's own parameters get no gradient, as of now."""
    return any(p is not None and not p.requires_grad for p in module._parameters.values())


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dicts and dataclasses; pass over other types."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def gradient_edge(tensor: Tensor) -> Edge:
    """Return the node and slot in which the gradient of `tensor` arrives."""
    node = tensor.grad_fn
    if node is not None:
        return node, tensor.output_nr
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr
