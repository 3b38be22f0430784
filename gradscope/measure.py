"""Tensors in, norms out: pure functions that never wait for an accelerator.

On an accelerator a reading is a 0-d or 1-D tensor there, and norms accumulate in float64, so that
no square of a float32 leaves the range. On the CPU a reading is a float (host.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope import host

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


def dense(x: Tensor) -> Tensor:
    """Return the stored elements of `x` as a real, strided tensor, detached, on this process.

    A complex tensor becomes its real and imaginary parts, a sparse one its coalesced values, a
    distributed one its local shard: each has the same L2 norm, the last up to its other shards.
    """
    if x.requires_grad:
        x = x.detach()
    if type(x) is Tensor and x.layout is torch.strided and not x.is_complex():
        return x
    x = x.detach()
    if (to_local := getattr(x, "to_local", None)) is not None:
        x = to_local()
    if x.layout is not torch.strided:
        x = x.coalesce().values() if x.layout is torch.sparse_coo else x.values()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return x


def norm(x: Tensor) -> Reading:
    """Return the L2 norm of `x`.

    Parameters
    ----------
    x : Tensor, any shape, real floating point
        NaN and inf in it pass through; exact to 1e-5 relative over its whole range.
    """
    if x.is_cpu:
        return host.norm(x)
    result: Tensor = torch.linalg.vector_norm(x, dtype=_wide(x))
    return result


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor, by one fused call where the device has one.

    Parameters
    ----------
    tensors : sequence of n Tensors, any shapes, real floating point, one device

    Returns
    -------
    Tensor, shape (n,), on the same device
    """
    if tensors[0].is_cpu:
        return torch.tensor(host.norms(tensors), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=_wide(tensors[0])))


def copy_with_norms(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor:
    """Copy `tensors` to `copies`, and return the L2 norm of each, shape (n,)."""
    if copies[0].is_cpu:
        return torch.tensor(host.copy_with_norms(tensors, copies), dtype=torch.float64)
    torch._foreach_copy_(list(copies), list(tensors))
    return norms(copies)


def difference_norms(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each difference, shape (n,); what `copies` held may be overwritten."""
    if copies[0].is_cpu:
        return torch.tensor(host.difference_norms(tensors, copies), dtype=torch.float64)
    torch._foreach_sub_(list(copies), list(tensors))
    return norms(copies)


def census(x: Tensor, center: float | None = None, radius: float = 0.0) -> Census:
    """Return norm, mean and deviation of the elements of `x`, and two shares of them.

    Parameters
    ----------
    x : Tensor, any shape, not empty, real floating point
    center, radius : float
        Far away is farther from `center` than `radius`; a share that they do not ask for is NaN.
    """
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


def cosine(a: Tensor, b: Tensor, a_norm: Reading, b_norm: Reading) -> Reading:
    """Return the cosine between `a` and `b`; NaN where one of them is zero.

    Parameters
    ----------
    a, b : Tensor, same shape, real floating point
    a_norm, b_norm : float or Tensor, shape ()
        Their norms. To divide by them first keeps the products in range.
    """
    if a.is_cpu:
        if not (a_norm and b_norm):
            return math.nan
        dtype = torch.float32 if a.dtype in host.HALF else a.dtype
    else:
        dtype = _wide(a)
    unit_a = a.to(dtype).div(a_norm).reshape(-1)
    unit_b = b.to(dtype).div(b_norm).reshape(-1)
    product = torch.dot(unit_a, unit_b)
    return float(product.item()) if a.is_cpu else product


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype that readings of `x` accumulate in on an accelerator."""
    return torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
