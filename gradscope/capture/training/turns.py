"""Optimizers that take turns, where the steps that are recorded are always those of the same."""

from __future__ import annotations

import math
from itertools import count

from torch.optim.optimizer import Optimizer

from gradscope.capture.faults import Faults, guarded
from gradscope.capture.net.modules import Modules
from gradscope.capture.training.parameters import Parameters
from gradscope.capture.training.steps import Step
from gradscope.capture.training.weak_table import WeakTable
from gradscope.wording import layers_named

_BESIDE_STEPS = (
    ": no step of their optimizer is recorded. Optimizers take turns, and each of the steps that"
    " are, one in {}, is another's: watch(every={}) has steps of all"
)
_BESIDE_FORWARDS = (
    ": steps of their optimizer go back through the forward of a step before, which was not"
    " recorded: their signals and activations are NaN. watch(every=1) has them"
)

_ENOUGH = 4
"""Recorded steps that are looked at."""


class _Turns:
    """What is known of the steps of one optimizer."""

    def __init__(self) -> None:
        self.numbers: tuple[int, ...] = ()  # of its last two steps
        self.recorded = 0
        self.missed = 0  # recorded steps of others, since it has stepped first
        self.calls = False  # whether layers of its own were called in a recorded one of its steps


class Turns:
    """Tells of an optimizer none of whose steps is recorded, or none of whose forwards.

    Every tenth step is always the discriminator's where a generator steps in between.

    Parameters
    ----------
    modules, parameters
        Of the model.
    every : int
        Every so manieth step is recorded.
    faults : Faults
    """

    def __init__(
        self, modules: Modules, parameters: Parameters, every: int, faults: Faults
    ) -> None:
        self.faults = faults
        self._modules = modules
        self._parameters = parameters
        self._every = every
        self._turns: WeakTable[Optimizer, _Turns] = WeakTable()
        self._is_on = every > 1

    @guarded("optimizers that take turns", alone=True)
    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Take note of who has made `step`."""
        if not self._is_on:
            return
        turns = self._turns.get(optimizer)
        if turns is None:
            turns = self._turns[optimizer] = _Turns()
        turns.numbers = (*turns.numbers[-1:], step.number)
        if not step.recorded:
            return
        turns.recorded += 1
        layers = self._layers_of(optimizer).intersection(self._modules.executed)
        turns.calls = turns.calls or not layers or not layers.isdisjoint(step.forwarded)
        if turns.recorded == _ENOUGH and not turns.calls and step.forwarded:
            self._tell(optimizer, _BESIDE_FORWARDS)
        for other, its in self._turns.items():
            if not its.recorded and not step.was_made_by(other):
                its.missed += 1
                if its.missed == _ENOUGH:
                    self._tell(other, _BESIDE_STEPS.format(self._every, self._other_than(its)))
        if all(its.calls for its in self._turns.values()) and turns.recorded > _ENOUGH:
            self._is_on = False
            self._turns.clear()

    def _layers_of(self, optimizer: Optimizer) -> set[int]:
        owners = self._parameters.owners
        return {number for place in self._parameters.of(optimizer) for number in owners[place]}

    def _tell(self, optimizer: Optimizer, what: str) -> None:
        if numbers := self._layers_of(optimizer):
            self.faults.tell(layers_named(self._modules.names(numbers)) + what)

    def _other_than(self, turns: _Turns) -> int:
        """Return the next `every` with which each step of a round is recorded once in a while."""
        *_, before, last = (turns.numbers[0], *turns.numbers)
        return next(n for n in count(self._every + 1) if math.gcd(n, last - before) <= 1)
