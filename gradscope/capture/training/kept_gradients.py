"""Gradients that no `zero_grad` throws away between two steps, told by their versions."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor
from torch.optim.optimizer import Optimizer

from gradscope import measure
from gradscope.autograd.torch_internals import version
from gradscope.capture.faults import Faults, guarded
from gradscope.capture.training.parameters import Parameters
from gradscope.capture.training.weak_table import WeakTable

ENOUGH = 7
"""Steps in a row before which gradients were kept: then nobody will throw them away."""


class KeptGradients:
    """Looks, in the first steps, whether an optimizer gets the gradients of its last step again.

    Those are kept that no backward between the two has found thrown away, as those of a critic are
    found that was zeroed only after the generator's. On the CPU alone: elsewhere it would have to
    wait for the device to tell gradients that were zeroed by `p.grad.data.zero_()` from others.

    Parameters
    ----------
    parameters : Parameters
    tell : called with the numbers of the modules whose gradients are kept, once
    faults : Faults
    """

    def __init__(
        self, parameters: Parameters, tell: Callable[[set[int]], None], faults: Faults
    ) -> None:
        self.faults = faults
        self._parameters = parameters
        self._tell = tell
        self._changes = parameters.changes
        self._left: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by the step, or a backward
        self._seen: set[int] = set()  # places that a backward came to since their last step
        self._thrown: set[int] = set()
        self._steps: dict[int, int] = {}  # place -> steps in a row
        self._looks: WeakTable[Optimizer, int] = WeakTable()
        self._is_on = not self._parameters.gradient.is_given

    @guarded("gradients that are kept from step to step")
    def before_backward(self) -> None:
        """Look at what the last steps have left."""
        if not self._is_on:
            return
        self._follow_changes()
        for place in self._left.keys() - self._thrown:
            self._seen.add(place)
            if not self._is_kept(place):
                self._thrown.add(place)

    @guarded("gradients that are kept from step to step")
    def after_backward(self) -> None:
        """Take note of what it has added to them."""
        if self._is_on:
            self._follow_changes()
            self._note(set(self._left) - self._thrown)

    @guarded("gradients that are kept from step to step")
    def after_step(self, optimizer: Optimizer, were_looked_at: bool) -> None:
        """Take note of the gradients that a step leaves; count it if backwards of it were seen."""
        if not self._is_on:
            return
        self._follow_changes()
        places = set(self._parameters.of(optimizer))
        if not were_looked_at:
            self._seen -= places
        for place in places if were_looked_at else ():
            if place in self._thrown or place not in self._left:
                self._steps[place] = 0
            elif place in self._seen:
                self._steps[place] = self._steps.get(place, 0) + 1
        kept = {place for place, steps in self._steps.items() if steps >= ENOUGH}
        self._looks[optimizer] = self._looks.get(optimizer, 0) + bool(places & self._seen)
        looks = list(self._looks.values())
        if kept or min(looks) > ENOUGH or max(looks) > 4 * ENOUGH:
            self._is_on = False
            self._left.clear()
            if kept:
                self._tell({owner for place in kept for owner in self._parameters.owners[place]})
            return
        self._seen -= places
        self._thrown -= places
        self._note(places)

    def _is_kept(self, place: int) -> bool:
        gradient = self._gradient(place)
        left, was = self._left[place]
        return (
            gradient is not None
            and left() is gradient
            and version(gradient) == was
            and bool(measure.dense(gradient).any())
        )

    def _note(self, places: set[int]) -> None:
        for place in places:
            gradient = self._gradient(place)
            if gradient is not None and gradient.is_cpu:
                self._left[place] = weakref.ref(gradient), version(gradient)
            else:
                self._left.pop(place, None)

    def _gradient(self, place: int) -> Tensor | None:
        return self._parameters.gradient(self._parameters.tensors[place])

    def _follow_changes(self) -> None:
        """Begin anew where other parameters are trained now: places are of those."""
        if self._parameters.changes != self._changes:
            self._changes = self._parameters.changes
            for memory in (self._left, self._seen, self._thrown, self._steps):
                memory.clear()
