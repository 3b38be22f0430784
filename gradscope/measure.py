"""Tensors in, norms out: pure functions that never wait for an accelerator.

On an accelerator a reading is a 0-d or 1-D tensor there, and norms accumulate in float64, so that
no square of a float32 leaves the range. On the CPU a reading is a float, for there is nothing to
wait for. There float64 accumulation is an order of magnitude slower than float32: norms accumulate
in the tensor's own precision, over pieces short enough to keep the rounding error below 1e-6, and
are taken again, divided by the largest element, where a square may have left the range.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Reading = float | Tensor
"""A number on the host, or a 0-d tensor on an accelerator."""

PIECE = 2**18
"""Elements that one reduction on the CPU runs over: 67 M float32 in one go are .5 % off, and a
piece is still in the cache when it is read a second time."""

_SAFE = {
    dtype: (1e7 * math.sqrt(torch.finfo(accumulator).tiny), math.inf)
    for dtype, accumulator in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    )
}
"""Norms strictly between these are sure to have no square that left the range of their dtype."""

_HALF = (torch.float16, torch.bfloat16)


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
    if not x.is_cpu:
        result: Tensor = torch.linalg.vector_norm(x, dtype=_wide(x))
        return result
    if x.dtype not in _HALF and x.numel() <= PIECE:
        return _checked(torch.linalg.vector_norm(x).item(), x)
    return _checked(_norm_of_pieces(x), x)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor, by one fused call where the device has one.

    Parameters
    ----------
    tensors : sequence of n Tensors, any shapes, real floating point, one device

    Returns
    -------
    Tensor, shape (n,), on the same device
    """
    if not tensors[0].is_cpu:
        return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=_wide(tensors[0])))
    return torch.tensor(_host_norms(tensors), dtype=torch.float64)


def copy_with_norms(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor:
    """Copy `tensors` to `copies`, and return the L2 norm of each, shape (n,)."""
    return _change_with_norms(torch._foreach_copy_, Tensor.copy_, tensors, copies)


def subtract_with_norms(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor:
    """Subtract `tensors` from `copies`, and return the L2 norm of each difference, shape (n,)."""
    return _change_with_norms(torch._foreach_sub_, Tensor.sub_, tensors, copies)


def _change_with_norms(
    change_all: Callable[[list[Tensor], list[Tensor]], object],
    change: Callable[[Tensor, Tensor], object],
    tensors: Sequence[Tensor],
    copies: Sequence[Tensor],
) -> Tensor:
    """Change `copies` by `tensors`; on the CPU large ones piece by piece, to read them cached."""
    if not copies[0].is_cpu:
        change_all(list(copies), list(tensors))
        return norms(copies)
    values: list[float] = []
    for group in _cached_groups(copies):
        if copies[group.start].numel() <= PIECE:
            change_all(list(copies[group]), list(tensors[group]))
            values += _host_norms(copies[group])
            continue
        square = 0.0
        for piece, target in zip(
            _pieces(tensors[group.start]), _pieces(copies[group.start]), strict=True
        ):
            change(target, piece)
            square += torch.linalg.vector_norm(target).item() ** 2
        values.append(_checked(math.sqrt(square), copies[group.start]))
    return torch.tensor(values, dtype=torch.float64)


def _cached_groups(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yield slices of neighbours that are no larger than PIECE together, or of a single one."""
    start, size = 0, 0
    for i, x in enumerate(tensors):
        size += x.numel()
        if size > PIECE and i > start:
            yield slice(start, i)
            start, size = i, x.numel()
    yield slice(start, len(tensors))


def _host_norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return the L2 norms of tensors on the CPU, the small ones by one call."""
    small = [i for i, x in enumerate(tensors) if x.numel() <= PIECE and x.dtype not in _HALF]
    found = torch._foreach_norm([tensors[i] for i in small], 2) if small else ()
    values = {i: _checked(value.item(), tensors[i]) for i, value in zip(small, found, strict=True)}
    if len(small) < len(tensors):
        for i in set(range(len(tensors))).difference(small):
            values[i] = float(norm(tensors[i]))
    return [values[i] for i in range(len(tensors))]


_kept = threading.local()


def scratch_like(x: Tensor) -> Tensor:
    """Return a tensor like `x` for a passing result, overwritten by the next call in this thread.

    On the CPU it is the same memory every time: to have fresh memory mapped costs up to thirty
    times what is then computed in it (93 against 3 us for the signs of 32,768 elements).
    """
    n = x.numel()
    if not x.is_cpu or n > PIECE:
        return torch.empty_like(x)
    buffers: dict[torch.dtype, Tensor] = _kept.__dict__.setdefault("buffers", {})
    if x.dtype not in buffers:
        buffers[x.dtype] = torch.empty(PIECE, dtype=x.dtype)
    return buffers[x.dtype][:n].view(x.shape)


def moments(x: Tensor) -> tuple[Reading, Reading, Reading]:
    """Return L2 norm, mean and population standard deviation of all elements of `x`.

    The deviation follows from the other two, sqrt(norm^2 / n - mean^2), which saves a pass; where
    that difference cancels in float32, it is taken over `x` - mean.

    Parameters
    ----------
    x : Tensor, any shape, not empty, real floating point
    """
    n = x.numel()
    if not x.is_cpu:
        length, center = norm(x), torch.mean(x, dim=None, dtype=_wide(x))
        square = (length * length).div_(n)  # type: ignore[union-attr]
        return length, center, square.sub_(center.square()).clamp_(min=0).sqrt_()
    if x.dtype in _HALF:
        x = x.float()
    length = norm(x)
    mean: float = x.sum().item() / n
    square_mean = length * length / n
    variance = square_mean - mean * mean
    if variance > 1e-2 * square_mean:
        return length, mean, math.sqrt(variance)
    centered = torch.sub(x, mean, out=scratch_like(x))
    return length, mean, norm(centered) / math.sqrt(n)


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
        dtype = torch.float32 if a.dtype in _HALF else a.dtype
    else:
        dtype = _wide(a)
    unit_a = a.to(dtype).div(a_norm).reshape(-1)
    unit_b = b.to(dtype).div(b_norm).reshape(-1)
    product = torch.dot(unit_a, unit_b)
    return float(product.item()) if a.is_cpu else product


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype that readings of `x` accumulate in on an accelerator."""
    return torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64


def _checked(value: float, x: Tensor) -> float:
    """Return `value`, the norm of `x`, or take it again where a square may have left the range."""
    low, high = _SAFE[x.dtype]
    return value if low < value < high else _scaled_norm(x)


def _norm_of_pieces(x: Tensor, divisor: float = 1.0) -> float:
    pieces = [piece if divisor == 1 else piece / divisor for piece in _pieces(x)]
    return math.sqrt(sum(part.item() ** 2 for part in torch._foreach_norm(pieces, 2)))


def _scaled_norm(x: Tensor) -> float:
    """Return the L2 norm of `x`, some squares of which may have left the range of its dtype."""
    largest = max((piece.abs().max().item() for piece in _pieces(x)), default=0.0)
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * _norm_of_pieces(x, largest)


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """Yield the elements of `x` in short 1-D pieces, half types as float32, the others as views."""
    if x.numel() == 0:
        return
    if not x.is_contiguous() and x.dim() == 4:
        x = x.permute(0, 2, 3, 1)  # channels_last: the same elements without a copy
    x = x.reshape(-1)
    for piece in (x,) if x.numel() <= PIECE else torch.split(x, PIECE):
        yield piece.float() if piece.dtype in _HALF else piece
