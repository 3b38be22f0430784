"""Which compiled kernel puts sums over a tensor into rows: C on the CPU, Triton on a GPU."""

from __future__ import annotations

from torch import Tensor

from gradscope.autograd import torch_internals
from gradscope.measure import cpu_kernel, gpu_kernel

Kernel = cpu_kernel.Kernel | gpu_kernel.Kernel

HOST = -1, 0
"""The stream of tensors on the CPU."""


def kernel_for(x: Tensor) -> Kernel | None:
    """Return the kernel of the device of `x`, None where there is none."""
    if x.is_cuda or gpu_kernel.by_interpreter:
        return gpu_kernel.kernel(x.device)
    return cpu_kernel.kernel() if x.is_cpu else None


def stream_of(x: Tensor) -> tuple[int, int]:
    """Return what tells the current stream of the device of `x` from all others."""
    index = x.get_device()
    return (index, torch_internals.raw_stream(index)) if index >= 0 else HOST
