"""Memory that there is not: what it would have taken is not read, and the training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory could not be had, on a device or on the host."""
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "DefaultCPUAllocator: not enough memory" in str(error)
    )


def leaves_room(weights: Sequence[Tensor], optimizer: Optimizer) -> bool:
    """Whether a copy of `weights` leaves room for what `optimizer` makes in its first step.

    That is reckoned as two numbers a parameter, and a third for a moment, as Adam makes. Always
    after the first step, and where a device does not tell.
    """
    if optimizer.state or not weights or not weights[0].is_cuda:
        return True
    device = weights[0].device
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free > 4 * sum(w.numel() * w.element_size() for w in weights)


def no_memory_for_copies(weights: Sequence[Tensor]) -> str:
    """Return what is told where there was no memory to copy `weights` into."""
    size = sum(w.numel() * w.element_size() for w in weights)
    return (
        f"there was no memory, or too little beside what the optimizer needs, for the"
        f" {size / 1e6:,.1f} MB of weights by which a step's update is told: update_norm is NaN in"
        ' such steps. watch(updates="sampled") estimates it from a sample, updates=False leaves it'
        " out"
    )
