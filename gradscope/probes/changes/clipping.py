"""Clipping the gradient's norm at what was usual for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import nn

from gradscope.probes.changes.change import SETTING, Change, Copy, DoesNotFit


@dataclass(frozen=True)
class Clipping(Change):
    """The global norm clipped at a quantile of those recorded without the change."""

    quantile: float

    def apply(self, copy: Copy) -> None:
        """Clip before each step."""
        norms = [norm for norm in copy.recorded.gradients if math.isfinite(norm) and norm > 0]
        if not norms:
            raise DoesNotFit(f"{self.name}: no gradient norm was recorded")
        most = float(np.quantile(norms, self.quantile))
        copy.before_step.append(
            lambda step: nn.utils.clip_grad_norm_(copy.model.parameters(), most)
        )


CLIPPING = Clipping(
    "gradient clipped at its lower quartile",
    frozenset({"exploding", "unstable", "none"}),
    SETTING,
    0.25,
)
