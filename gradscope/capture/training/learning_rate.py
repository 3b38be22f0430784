"""The learning rate that an optimizer steps with, without waiting for a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def learning_rate(groups: Iterable[Mapping[str, Any]]) -> float | Tensor | None:
    """Return the largest `lr` of `groups`; None where there is none, as where it is set by itself.

    Returns
    -------
    float, Tensor or None
        A 0-d tensor of its own where one of them lies on a device other than the CPU.
    """
    numbers: list[float] = []
    tensors: list[Tensor] = []
    for group in groups:
        rate = group.get("lr")
        if isinstance(rate, Tensor):
            if rate.numel() != 1:
                continue
            if rate.is_cpu:
                numbers.append(rate.item())
            else:
                tensors.append(rate.detach().reshape(()).to(torch.float32, copy=True))
        elif isinstance(rate, Real):
            numbers.append(float(rate))
    if not tensors:
        return max(numbers, default=None)
    largest = tensors[0] if len(tensors) == 1 else torch.stack(tensors).amax()
    return largest.clamp(min=max(numbers)) if numbers else largest
