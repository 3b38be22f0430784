"""A larger or smaller learning rate, of all parameter groups alike."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.probes.changes.change import SETTINGS, Change, Copy


@dataclass(frozen=True)
class LearningRate(Change):
    """The learning rate times `factor`."""

    factor: float

    def apply(self, copy: Copy) -> None:
        """Change it in every group."""
        for group in copy.optimizer.param_groups:
            group["lr"] = group["lr"] * self.factor


_TOO_FAST = frozenset({"exploding", "dead", "saturated", "none"})
_TOO_SLOW = frozenset({"none"})

TENTH = LearningRate("learning rate x 1/10", _TOO_FAST, SETTINGS, 0.1)
THIRD = LearningRate("learning rate x 1/3", _TOO_FAST, SETTINGS, 1 / 3)
TRIPLE = LearningRate("learning rate x 3", _TOO_SLOW, SETTINGS, 3.0)
TENFOLD = LearningRate("learning rate x 10", _TOO_SLOW, SETTINGS, 10.0)
