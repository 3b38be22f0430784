"""Gradients that the last backward has left, by which clipped ones are told from other ones."""

from __future__ import annotations

from collections import defaultdict
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
        """Copy a sample of each, in place of what was held."""
        self._samples = {i: sample_of(measure.dense(g)).clone() for i, g in gradients.items()}

    def become(self, others: Mapping[int, Tensor]) -> bool:
        """Whether the `others` may all have come of them by clipping; waits for each device once.

        A clipped gradient is the same but for a factor, or none of its elements has grown or
        changed its sign.
        """
        answers: dict[torch.device, list[Tensor]] = defaultdict(list)
        for i, other in others.items():
            now, left = sample_of(measure.dense(other)), self._samples.get(i)
            if left is None or left.shape != now.shape or now.is_meta:
                return False
            answers[now.device].append(_is_clipped(now, left))
        return all(bool(torch.stack(some).all()) for some in answers.values())


def _is_clipped(now: Tensor, left: Tensor) -> Tensor:
    if now.dtype != torch.float64:
        now, left = now.float(), left.float()
    has_shrunk = (now * left >= 0) & (now.abs() <= (1 + _ROUNDING) * left.abs())
    size = torch.linalg.vector_norm(now)
    difference = now * torch.linalg.vector_norm(left) - left * size
    is_scaled = difference.abs() <= _ROUNDING * size * left.abs()
    return torch.logical_or((has_shrunk | ~left.isfinite()).all(), is_scaled.all())
