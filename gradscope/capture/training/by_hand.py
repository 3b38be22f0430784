"""Steps that a program makes by hand where one of torch's optimizers has made steps before."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.optim.optimizer import Optimizer

from gradscope import measure
from gradscope.autograd.torch_internals import version
from gradscope.capture.training.parameters import Parameters

BY_HAND = (
    "weights have changed several times, from one forward to the next, while the optimizer that"
    " holds them told of no step: steps that are made by hand beside a torch.optim.Optimizer are"
    " not recorded, nor those that run within torch.compile. To have them, make what makes them a"
    " subclass of torch.optim.Optimizer that holds the model's parameters, and leave it out of that"
)

_TIMES = 4
"""In a row: sharpness-aware minimisation changes weights once or twice before each step."""


class ByHand:
    """Tells them by the version of one small weight of the optimizer that has stepped last.

    What has changed counts once the gradient is gone that may have led to it: weights are masked,
    or swapped, between the micro-batches of a step, too. Between recorded steps no backward is
    seen: there it has to be gone as a forward begins.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._followed: tuple[int, int] | None = None  # as of which change of parameters, its place
        self._version = 0
        self._times = 0

    def after_step(self, optimizer: Optimizer) -> None:
        """Begin anew: this step is told."""
        self._times = 0
        if self._optimizer is None or self._optimizer() is not optimizer:
            self._optimizer, self._followed = weakref.ref(optimizer), None
        weight = self._weight()
        if weight is None:
            tensors = self._parameters.tensors
            held = [i for i in self._parameters.of(optimizer) if tensors[i].grad is not None]
            if not held:
                return
            place = min(held, key=lambda i: tensors[i].numel())
            self._followed = self._parameters.changes, place
            weight = tensors[place]
        self._version = version(weight)

    def was_made(self) -> bool:
        """Look, before a forward, whether such steps are made; waits for no device."""
        weight = self._weight()
        if weight is None or not 0 <= self._version != version(weight):
            return False
        gradient = weight.grad
        if gradient is not None and not (gradient.is_cpu and not measure.dense(gradient).any()):
            return False
        self._version = version(weight)
        self._times += 1
        return self._times == _TIMES

    def _weight(self) -> Tensor | None:
        if self._followed is None or self._followed[0] != self._parameters.changes:
            return None
        return self._parameters.tensors[self._followed[1]]
