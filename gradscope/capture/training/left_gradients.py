"""Gradients that the last backward has left, by which clipped ones are told from other ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradscope import measure
from gradscope.capture.training.sampling import sample_of

_ROUNDING = 0.01
"""Of half types, in a few operations."""


class LeftGradients:
    """Holds samples of them, in a step where an earlier backward's were thrown away."""

    def __init__(self) -> None:
        self._samples: dict[int, Tensor] = {}

    def keep(self, gradients: Mapping[int, Tensor]) -> None:
        """Copy a sample of each that is on the CPU, in place of what was held."""
        dense = {i: measure.dense(g) for i, g in gradients.items()}
        self._samples = {i: sample_of(g).clone() for i, g in dense.items() if g.is_cpu}

    def become(self, others: Mapping[int, Tensor]) -> bool:
        """Whether the `others` may all have come of them by clipping, as far as can be seen.

        A clipped gradient is the same but for a factor, or none of its elements has grown or
        changed its sign. On the CPU alone: elsewhere it would have to wait for the device.
        """
        for i, other in others.items():
            now, left = sample_of(measure.dense(other)), self._samples.get(i)
            if left is None or left.shape != now.shape or not now.is_cpu:
                return False
            if not _is_clipped(now, left):
                return False
        return True


def _is_clipped(now: Tensor, left: Tensor) -> bool:
    if now.dtype != torch.float64:
        now, left = now.float(), left.float()
    has_shrunk = (now * left >= 0) & (now.abs() <= (1 + _ROUNDING) * left.abs())
    size = torch.linalg.vector_norm(now)
    difference = now * torch.linalg.vector_norm(left) - left * size
    is_scaled = difference.abs() <= _ROUNDING * size * left.abs()
    return bool((has_shrunk | ~left.isfinite()).all() or is_scaled.all())
