"""Tensors in, norms out: pure functions that write their result to a 0-d or 1-D tensor on the device.

Nothing here waits for an accelerator. There, norms accumulate in float64, so that no square of a
float32 leaves the range. On the CPU float64 accumulation is an order of magnitude slower than
float32, and a result can be read at no cost: there norms accumulate in the tensor's own precision,
over pieces short enough to keep the rounding error below 1e-6, and are taken again, divided by the
largest element, where a square may have left the range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 2**18
"""Elements that one float32 reduction on the CPU may run over: 67 M in one go are .5 % off."""

_HALF = (torch.float16, torch.bfloat16)


def reading_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which readings of `dtype` tensors on `device` are kept."""
    if device.type == "cpu":
        return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def dense(x: Tensor) -> Tensor:
    """Return the stored elements of `x` as a real, strided tensor, detached, on this process.

    A complex tensor becomes its real and imaginary parts, a sparse one its coalesced values, a
    distributed one its local shard: each has the same L2 norm, the last up to its other shards.
    """
    x = x.detach()
    if (to_local := getattr(x, "to_local", None)) is not None:
        x = to_local()
    if x.layout is not torch.strided:
        x = x.coalesce().values() if x.layout is torch.sparse_coo else x.values()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return x


def norm(x: Tensor, out: Tensor) -> None:
    """Write the L2 norm of `x` to `out`.

    Parameters
    ----------
    x : Tensor, any shape, real floating point
    out : Tensor, shape (), float32 or float64, same device
        NaN and inf in `x` pass through; exact to 1e-5 relative over the whole range of `x`.
    """
    if x.device.type != "cpu":
        torch.linalg.vector_norm(x, dtype=out.dtype, out=out)
        return
    if x.dtype == out.dtype and x.numel() <= PIECE:
        torch.linalg.vector_norm(x, out=out)
    else:
        out.fill_(_norm_of_pieces(x, out.dtype))
    if _left_the_range(out.item(), out.dtype):
        out.fill_(_scaled_norm(x, out.dtype))


def norms(tensors: Sequence[Tensor], out: Tensor) -> None:
    """Write the L2 norm of each tensor to `out`, in one fused call where the device has one.

    Parameters
    ----------
    tensors : sequence of n Tensors, any shapes, real floating point, one device
    out : Tensor, shape (n,), float32 or float64, same device
    """
    if not tensors:
        return
    if out.device.type != "cpu":
        torch.stack(torch._foreach_norm(list(tensors), 2, dtype=out.dtype), out=out)
        return
    if all(x.dtype == out.dtype and x.numel() <= PIECE for x in tensors):
        torch.stack(torch._foreach_norm(list(tensors), 2), out=out)
        for i, value in enumerate(out.tolist()):
            if _left_the_range(value, out.dtype):
                out[i] = _scaled_norm(tensors[i], out.dtype)
    else:
        for x, slot in zip(tensors, out.unbind(), strict=True):
            norm(x, slot)


def mean(x: Tensor, out: Tensor) -> None:
    """Write the mean of all elements of `x`, any shape, to the 0-d tensor `out`."""
    if x.device.type == "cpu" and x.dtype in _HALF:
        x = x.float()
    torch.mean(x, dim=None, dtype=out.dtype, out=out)


def moments(x: Tensor, norm_out: Tensor, mean_out: Tensor, std_out: Tensor) -> None:
    """Write L2 norm, mean and population standard deviation of all elements of `x`.

    The deviation follows from the other two, sqrt(norm^2 / n - mean^2), which saves a pass; where
    that difference cancels in float32, it is taken over `x` - mean.

    Parameters
    ----------
    x : Tensor, any shape, real floating point
    norm_out, mean_out, std_out : Tensor, shape (), float32 or float64, same device
    """
    if x.device.type == "cpu" and x.dtype in _HALF:
        x = x.float()
    norm(x, norm_out)
    mean(x, mean_out)
    n = max(x.numel(), 1)
    if x.device.type != "cpu":
        square = norm_out.square().div_(n)
        torch.sub(square, mean_out.square(), out=square)
        torch.sqrt(square.clamp_(min=0), out=std_out)
        return
    rms, center = norm_out.item() / math.sqrt(n), mean_out.item()
    variance = rms * rms - center * center
    if variance > 1e-2 * rms * rms:
        std_out.fill_(math.sqrt(variance))
    else:
        norm(x - mean_out, std_out)
        std_out.div_(math.sqrt(n))


def cosine(a: Tensor, b: Tensor, a_norm: Tensor, b_norm: Tensor, out: Tensor) -> None:
    """Write the cosine between `a` and `b` to `out`; NaN where one of them is zero.

    Parameters
    ----------
    a, b : Tensor, same shape, real floating point
    a_norm, b_norm : Tensor, shape ()
        Their norms: dividing by them first keeps the products in range.
    out : Tensor, shape (), same device
    """
    unit_a = a.to(out.dtype).div(a_norm).reshape(-1)
    unit_b = b.to(out.dtype).div(b_norm).reshape(-1)
    torch.dot(unit_a, unit_b, out=out)


def _left_the_range(value: float, dtype: torch.dtype) -> bool:
    """Whether squares smaller or larger than `dtype` can hold may have entered a norm."""
    return value < 1e7 * math.sqrt(torch.finfo(dtype).tiny) or value == math.inf


def _norm_of_pieces(x: Tensor, dtype: torch.dtype, divisor: float = 1.0) -> float:
    total = 0.0
    for piece in _pieces(x, dtype):
        part = torch.linalg.vector_norm(piece if divisor == 1 else piece / divisor).item()
        total += part * part
    return math.sqrt(total)


def _scaled_norm(x: Tensor, dtype: torch.dtype) -> float:
    largest = max((piece.abs().max().item() for piece in _pieces(x, dtype)), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * _norm_of_pieces(x, dtype, divisor=largest)


def _pieces(x: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    if not x.is_contiguous() and x.dim() == 4:
        x = x.permute(0, 2, 3, 1)  # channels_last: the same elements without a copy
    for piece in x.reshape(-1).split(PIECE):
        if piece.numel():
            yield piece.to(dtype)
