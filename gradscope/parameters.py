"""Readings of the parameters of one step: gradients before and after clipping, weights, updates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from gradscope import layers, measure
from gradscope.tape import Key, Segment

_HALF = (torch.float16, torch.bfloat16)


class Parameters:
    """The trainable parameters of a model at one step, in order of definition, each once.

    `owners` holds, for each, the numbers of the modules that own it: more than one where weights
    are tied. They are looked up anew at each recorded step, since parameters get frozen, added,
    materialised and replaced while a model trains.
    """

    def __init__(self, modules: Iterable[tuple[int, nn.Module]]) -> None:
        self.tensors: list[Tensor] = []
        self.owners: list[tuple[int, ...]] = []
        self._place: dict[int, int] = {}
        for number, module in modules:
            for _, parameter in layers.own_parameters(module):
                if not parameter.requires_grad or layers.is_lazy(parameter):
                    continue
                place = self._place.get(id(parameter))
                if place is None:
                    self._place[id(parameter)] = len(self.tensors)
                    self.tensors.append(parameter)
                    self.owners.append((number,))
                else:
                    self.owners[place] += (number,)

    def of(self, optimizer: Optimizer) -> list[int]:
        """Return the places of the parameters that `optimizer` updates."""
        places = (self._place.get(id(p)) for g in optimizer.param_groups for p in g["params"])
        return [place for place in places if place is not None]


class ParameterReadings:
    """What is read of the parameters during one recorded step.

    Memory: from `before_step` to `after_step` a copy of the weights that the optimizer is about to
    change, float32 for half types.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._gradients: dict[int, _Gradient] = {}
        self._clipped: dict[int, _Gradient] = {}
        self._snapshot: dict[int, Tensor] = {}
        self._segments: list[Segment] = []

    def after_backward(self) -> None:
        """Read the gradients as accumulated by now; a later backward's reading replaces this."""
        self._gradients.update(self._read_gradients(range(len(self._parameters.tensors))))

    def before_step(self, optimizer: Optimizer) -> None:
        """Read the gradients that `optimizer` gets, and the weights that it is about to change."""
        self.read_clipped(optimizer)
        places, tensors = self._parameters.of(optimizer), self._parameters.tensors
        self._read("weight_norm", {i: measure.dense(tensors[i]) for i in places})
        for i in places:
            weight = measure.dense(tensors[i])
            self._snapshot[i] = weight.float() if weight.dtype in _HALF else weight.clone()

    def read_clipped(self, optimizer: Optimizer) -> None:
        """Read the gradients that changed since `after_backward`: clipping, unscaling."""
        changed = []
        for i in self._parameters.of(optimizer):
            gradient = self._parameters.tensors[i].grad
            known = self._gradients.get(i)
            if gradient is None:
                continue
            if known is not None and known.is_of(gradient):
                self._clipped[i] = known
            else:
                changed.append(i)
        self._clipped.update(self._read_gradients(changed))

    def after_step(self, optimizer: Optimizer) -> None:
        """Read how far the parameters of `optimizer` have moved since `before_step`."""
        places = self._parameters.of(optimizer)
        moved = {i: self._snapshot.pop(i) for i in places if i in self._snapshot}
        tensors = self._parameters.tensors
        for group in _by_device(moved).values():
            weights = [measure.dense(tensors[i]) for i in group]
            torch._foreach_sub_([moved[i] for i in group], weights)
        self._read("update_norm", moved)

    def segments(self) -> list[Segment]:
        """Return everything that was read."""
        for i, gradient in self._clipped.items():  # where no backward was seen to end
            self._gradients.setdefault(i, gradient)
        readings: dict[int, tuple[Tensor, dict[int, list[Key]]]] = {}
        for metric, gradients in (
            ("grad_norm", self._gradients),
            ("clipped_grad_norm", self._clipped),
        ):
            for i, gradient in gradients.items():
                _, keys = readings.setdefault(id(gradient.norms), (gradient.norms, {}))
                keys.setdefault(gradient.position, []).append(
                    ("param", metric, self._parameters.owners[i])
                )
        gradients_read = [
            (tuple(tuple(keys.get(j, ())) for j in range(norms.numel())), norms)
            for norms, keys in readings.values()
        ]
        return self._segments + gradients_read

    def _read_gradients(self, places: Iterable[int]) -> dict[int, _Gradient]:
        tensors = self._parameters.tensors
        found = {i: g for i in places if (g := tensors[i].grad) is not None}
        result = {}
        for group in _by_device(found).values():
            norms = _norms([measure.dense(found[i]) for i in group])
            for position, i in enumerate(group):
                result[i] = _Gradient(found[i], norms, position)
        return result

    def _read(self, metric: str, tensors: dict[int, Tensor]) -> None:
        for group in _by_device(tensors).values():
            layout = tuple((("param", metric, self._parameters.owners[i]),) for i in group)
            self._segments.append((layout, _norms([tensors[i] for i in group])))


class _Gradient:
    """Where the norm of a gradient was written, and which state of the gradient that was."""

    __slots__ = ("_id", "_version", "norms", "position")

    def __init__(self, gradient: Tensor, norms: Tensor, position: int) -> None:
        self._id = id(gradient)
        self._version = gradient._version
        self.norms = norms
        self.position = position

    def is_of(self, gradient: Tensor) -> bool:
        """Whether `gradient` is the tensor that was read, unchanged since."""
        return self._id == id(gradient) and self._version == gradient._version


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    device = tensors[0].device
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, measure.reading_dtype(device, tensor.dtype))
    out = torch.empty(len(tensors), dtype=dtype, device=device)
    measure.norms(tensors, out)
    return out


def _by_device(tensors: dict[int, Tensor]) -> dict[torch.device, list[int]]:
    groups: dict[torch.device, list[int]] = defaultdict(list)
    for i, tensor in tensors.items():
        groups[tensor.device].append(i)
    return groups
