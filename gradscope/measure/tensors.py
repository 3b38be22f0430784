"""Tensors in, norms out: pure functions that never wait for an accelerator.

On an accelerator a reading is a 0-d or 1-D tensor there, and norms accumulate in float64, so that
no square of a float32 leaves the range; where many tensors are read it has a kernel of its own
(gpu_kernel.py). On the CPU a reading is a float, read by a compiled kernel (cpu_kernel.py) or by
torch (host.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.autograd import torch_internals
from gradscope.measure import cpu_kernel, gpu_kernel, host
from gradscope.measure.cpu_kernel import kernel

_STRIDED = torch.strided  # its name takes time to look up

Reading = float | Tensor
"""A number on the host, or a 0-d tensor on an accelerator."""


class Census(NamedTuple):
    """What there is among the elements of a tensor.

    Attributes
    ----------
    norm, mean : Reading
    deviation : float or None
        Of the population. None on an accelerator: sqrt(norm^2 / n - mean^2) takes no kernels there
        if the host computes it.
    nonzero, far : Reading
        Shares of elements; NaN where there is a NaN among them, or no center or radius was named.
    """

    norm: Reading
    mean: Reading
    deviation: float | None
    nonzero: Reading
    far: Reading


def is_dense(x: Tensor) -> bool:
    """Whether `x` is an ordinary tensor of real numbers, which `dense` would at most detach."""
    return (
        type(x) is Tensor and x.layout is _STRIDED and not x.is_complex() and x.element_size() > 1
    )


def in_memory(x: Tensor) -> Tensor:
    """Return what of `x` lies here as a strided tensor: itself, as a rule, else `dense(x)`."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout is _STRIDED
    return x if plain and not x.is_complex() and x.element_size() > 1 else dense(x)


def dense(x: Tensor) -> Tensor:
    """Return the stored elements of `x` as a real, strided tensor, detached, on this process.

    A complex tensor becomes its real and imaginary parts, a sparse one its coalesced values, a
    distributed one its local shard: each has the same L2 norm, the last up to its other shards.
    One of 8-bit floating point, with which nothing can be computed, becomes one of 32 bits.
    """
    if not x.requires_grad and is_dense(x):
        return x
    x = x.detach()
    if is_dense(x):
        return x
    if (to_local := getattr(x, "to_local", None)) is not None:
        x = to_local()
    if x.layout is not torch.strided:
        x = x.coalesce().values() if x.layout is torch.sparse_coo else x.values()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return x.float() if x.element_size() == 1 else x


def norm(x: Tensor) -> Reading:
    """Return the L2 norm of `x`.

    Parameters
    ----------
    x : Tensor, any shape, floating point or complex
        NaN and inf in it pass through; exact to 1e-5 relative over its whole range.
    """
    if x.is_cpu and (fast := kernel()) is not None and fast.takes(x):
        return math.sqrt(fast.square_sum(x))
    x = dense(x)
    if x.is_cpu:
        return host.norm(x)
    if _may_leave_range(x):
        return _scaled_norm(x)
    return torch_internals.norms([x], _wide(x))[0]  # one pass: vector_norm would copy to float64


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor, by one fused call where the device has one.

    Parameters
    ----------
    tensors : sequence of n Tensors, any shapes, floating point or complex, one device

    Returns
    -------
    Tensor, shape (n,), on the same device
    """
    fast = _kernel_of(tensors[0])
    if fast is not None and (squares := fast.square_sums(tensors)) is not None:
        return squares.sqrt_()
    tensors = [dense(x) for x in tensors]
    if tensors[0].is_cpu:
        return torch.tensor(host.norms(tensors), dtype=torch.float64)
    if any(_may_leave_range(x) for x in tensors):
        return torch.stack([torch.as_tensor(norm(x)) for x in tensors])
    return torch.stack(torch_internals.norms(tensors, _wide(tensors[0])))


def copy_with_norms(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor:
    """Copy `tensors` to `copies`, and return the L2 norm of each, shape (n,).

    Parameters
    ----------
    tensors, copies : sequences of n Tensors
        Each copy like the dense form of its tensor; half types in float32, or as they are.
    """
    fast = _kernel_of(copies[0])
    if fast is not None and (squares := fast.copies(tensors, copies)) is not None:
        return squares.sqrt_()
    tensors = [dense(x) for x in tensors]
    if copies[0].is_cpu:
        return torch.tensor(host.copy_with_norms(tensors, copies), dtype=torch.float64)
    torch_internals.copy_all(copies, tensors)
    return norms(copies)


def difference_norms(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each difference, shape (n,); what `copies` held may be overwritten.

    Parameters
    ----------
    tensors, copies : as for `copy_with_norms`

    Raises
    ------
    ValueError
        If a tensor has another shape than its copy.
    """
    fast = _kernel_of(copies[0])
    if fast is not None and (squares := fast.differences(tensors, copies)) is not None:
        return squares.sqrt_()
    tensors = [dense(x) for x in tensors]
    for x, copy in zip(tensors, copies, strict=True):
        if x.shape != copy.shape:
            raise ValueError(f"a tensor of shape {tuple(copy.shape)} is of {tuple(x.shape)} now")
    if copies[0].is_cpu:
        return torch.tensor(host.difference_norms(tensors, copies), dtype=torch.float64)
    torch_internals.subtract_all(copies, tensors)
    return norms(copies)


def _kernel_of(x: Tensor) -> cpu_kernel.Kernel | gpu_kernel.Kernel | None:
    """Return what reads many tensors at one call where `x` is, None if there is nothing."""
    if x.is_cpu and (fast := kernel()) is not None:  # not compiled where only accelerators train
        return fast
    return gpu_kernel.kernel_of(x)


def census(x: Tensor, center: float | None = None, radius: float = 0.0) -> Census:
    """Return norm, mean and deviation of the elements of `x`, and two shares of them.

    Parameters
    ----------
    x : Tensor, any shape, not empty, floating point or complex
    center, radius : float
        Far away is farther from `center` than `radius`; a share that they do not ask for is NaN.
    """
    if x.is_cpu and (fast := kernel()) is not None and fast.takes(x):
        return _host_census(fast, x, center, radius)
    x = dense(x)
    if x.is_cpu:
        return Census(*host.census(x, center, radius))
    mean = torch.mean(x, dim=None, dtype=_wide(x))
    nonzero: Reading = math.nan
    far: Reading = math.nan
    if center is not None:
        nonzero = torch.sign(x).abs_().mean(dim=None, dtype=_wide(x))
        if radius:
            signs = torch.sub(x, center).abs_().sub_(radius).sign_()
            far = signs.mean(dim=None, dtype=_wide(x)).add_(1).div_(2)
    return Census(norm(x), mean, None, nonzero, far)


def _host_census(fast: cpu_kernel.Kernel, x: Tensor, center: float | None, radius: float) -> Census:
    n = x.numel()
    square, total, nonzero, far, spread = fast.census(x, center or 0.0, radius)
    length, mean, deviation = math.sqrt(square), total / n, math.sqrt(spread / n)
    if center is None or math.isnan(length):
        return Census(length, mean, deviation, math.nan, math.nan)
    return Census(length, mean, deviation, nonzero / n, far / n if radius else math.nan)


def cosine(a: Tensor, b: Tensor, a_norm: Reading, b_norm: Reading) -> Reading:
    """Return the cosine between `a` and `b`; NaN where one of them is zero.

    Parameters
    ----------
    a, b : Tensor, same shape, real floating point
    a_norm, b_norm : float or Tensor, shape ()
        Their norms. To divide by them first keeps the products in range.
    """
    if a.is_cpu and not (a_norm and b_norm):
        return math.nan
    fast = kernel() if a.is_cpu else None
    if fast is not None and fast.takes(a) and fast.takes(b) and a.stride() == b.stride():
        return fast.product_sum(a, b) / (a_norm * b_norm)
    narrow = torch.float32 if a.dtype in host.HALF else a.dtype
    dtype = narrow if a.is_cpu else _wide(a)
    unit_a = a.to(dtype).div(a_norm).reshape(-1)
    unit_b = b.to(dtype).div(b_norm).reshape(-1)
    product = torch.dot(unit_a, unit_b)
    return float(product.item()) if a.is_cpu else product


def _may_leave_range(x: Tensor) -> bool:
    """Whether squares of what `x` holds can leave the range of what they are summed in."""
    return x.dtype is torch.float64 or _wide(x) is torch.float32


def _scaled_norm(x: Tensor) -> Tensor:
    """Return the L2 norm of `x`, whose largest element is brought to 1 before it is squared."""
    x = x.float() if x.dtype in host.HALF else x
    peak = torch.linalg.vector_norm(x, math.inf)
    peak = torch.where((peak > 0) & peak.isfinite(), peak, 1.0)
    scaled: Tensor = torch.linalg.vector_norm(x / peak) * peak
    return scaled


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype that readings of `x` accumulate in on an accelerator."""
    return torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
