"""A larger or smaller learning rate, of all parameter groups alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradscope.probes.changes.change import SETTING, Change, Copy, DoesNotFit
from gradscope.wording import number


@dataclass(frozen=True)
class LearningRate(Change):
    """The learning rate times `factor`."""

    factor: float

    def apply(self, copy: Copy) -> None:
        """Change it in every group."""
        for group in copy.optimizer.param_groups:
            group["lr"] = group["lr"] * self.factor


@dataclass(frozen=True)
class ByUpdateSpeed(Change):
    """The learning rate raised until weights would change by `speed` of their size a step.

    Source: Stanford CS231n, Neural Networks part 3: updates of 1e-3 of the weights are usual; a
    start may be ten times as fast.
    """

    speed: float

    def apply(self, copy: Copy) -> None:
        """Raise it by what the recorded update speed lacks."""
        known = copy.recorded.update_speed
        factor = self.speed / known if known > 0 else math.nan
        if not 10 < factor < 1e6:
            raise DoesNotFit(f"{self.name}: the weights change by {number(known)} a step already")
        for group in copy.optimizer.param_groups:
            group["lr"] = group["lr"] * factor


_TOO_FAST = frozenset({"exploding", "dead", "saturated", "unstable", "none"})
_TOO_SLOW = frozenset({"none"})

TENTH = LearningRate("learning rate x 1/10", _TOO_FAST, SETTING, 0.1)
THIRD = LearningRate("learning rate x 1/3", _TOO_FAST, SETTING, 1 / 3)
TRIPLE = LearningRate("learning rate x 3", _TOO_SLOW, SETTING, 3.0)
TENFOLD = LearningRate("learning rate x 10", _TOO_SLOW, SETTING, 10.0)
BY_SPEED = ByUpdateSpeed("learning rate for an update speed of 0.01", _TOO_SLOW, SETTING, 0.01)
