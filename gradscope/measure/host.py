"""Readings of tensors on the CPU by torch, as plain numbers: there is nothing to wait for.

Float64 accumulation is an order of magnitude slower than float32 there: norms accumulate in the
tensor's own precision, over pieces short enough to keep the rounding error below 1e-6, and are
taken again, times a power of two, where a square may have left the range. For most float32
tensors cpu_kernel.py does the same in one pass; this is its reference.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gradscope.autograd import torch_internals

PIECE = 2**17
"""Elements that one reduction runs over: 67 M float32 in one go are .5 % off, and a piece of
512 KiB is still in the cache when it is read a second time."""

_FAR = 2.0**500
"""Beyond it, and below its inverse, squares of float64 may leave the range."""

_RANGE = {
    dtype: (1e7 * math.sqrt(torch.finfo(accumulator).tiny), factor)
    for dtype, accumulator, factor in (
        (torch.float16, torch.float32, 2.0**96),
        (torch.bfloat16, torch.float32, 2.0**96),
        (torch.float32, torch.float32, 2.0**96),
        (torch.float64, torch.float64, 2.0**600),
    )
}
"""For each dtype: a finite norm above the first is sure to have no square that left the range of
its accumulator; times the second, no square of a smaller element leaves it either."""

HALF = (torch.float16, torch.bfloat16)


def norm(x: Tensor) -> float:
    """Return the L2 norm of `x`."""
    if _is_piece(x):
        return _in_range(torch.linalg.vector_norm(x).item(), x)
    return _in_range(_norm_of_pieces(x), x)


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return the L2 norm of each tensor, those of small ones by one call."""
    small = [x for x in tensors if _is_piece(x)]
    found = iter(torch_internals.norms(small) if small else ())
    return [_in_range(next(found).item(), x) if _is_piece(x) else norm(x) for x in tensors]


def copy_with_norms(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> list[float]:
    """Copy `tensors` to `copies`, and return the L2 norm of each."""
    return _change_with_norms(torch_internals.copy_all, Tensor.copy_, tensors, copies)


def difference_norms(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> list[float]:
    """Return the L2 norm of each difference, which overwrites `copies`, but for half types."""
    if any(copy.dtype in HALF for copy in copies):
        return [
            _difference(x, y) if y.dtype in HALF else difference_norms([x], [y])[0]
            for x, y in zip(tensors, copies, strict=True)
        ]
    return _change_with_norms(torch_internals.subtract_all, Tensor.sub_, tensors, copies)


def _difference(x: Tensor, y: Tensor) -> float:
    """Return the L2 norm of `x` - `y`, in which half types do not round."""
    squares = (
        torch.linalg.vector_norm(a.double() - b).item() ** 2
        for a, b in zip(_pieces(x), _pieces(y), strict=True)
    )
    return math.sqrt(sum(squares))


def census(
    x: Tensor, center: float | None, radius: float
) -> tuple[float, float, float, float, float]:
    """Return norm, mean and deviation, and the shares of elements that are not 0 or are far away.

    The deviation is sqrt(norm^2 / n - mean^2), which saves a pass; where that cancels, it is taken
    over `x` - mean.

    Parameters
    ----------
    x : Tensor, not empty
    center, radius : float
        Far away is farther from `center` than `radius`; a share that they do not ask for is NaN.
    """
    n = x.numel()
    square = total = nonzero = far = 0.0
    for piece in (x,) if _is_piece(x) else _pieces(x):
        part = torch.linalg.vector_norm(piece).item()
        square += part * part
        total += piece.sum().item()
        if center is not None:
            nonzero += torch.sign(piece, out=_scratch(piece)).abs_().sum().item()
        if radius:
            away = torch.sub(piece, center or 0.0, out=_scratch(piece)).abs_()
            # comparisons and sums of bool are many times slower than arithmetic
            far += (piece.numel() + away.sub_(radius).sign_().sum().item()) / 2
    length, mean = _in_range(math.sqrt(square), x), total / n
    if math.isnan(length):
        nonzero = far = math.nan
    return (
        length,
        mean,
        deviation(x, length, mean, 1e-2),
        math.nan if center is None else nonzero / n,
        far / n if radius else math.nan,
    )


def deviation(x: Tensor, length: float, mean: float, precision: float) -> float:
    """Return the standard deviation of `x` from its norm and its mean.

    Where the variance is less than `precision` of the mean square, it is taken over `x` - mean.
    """
    if _FAR < length < math.inf or 0 < length < 1 / _FAR:
        factor = _FAR if length < 1 else 1 / _FAR
        found = deviation(x.detach() * factor, length * factor, mean * factor, precision)
        return found / factor
    square_mean = length * length / x.numel()
    variance = square_mean - mean * mean
    if variance > precision * square_mean:
        return math.sqrt(variance)
    square = rest = 0.0
    for piece in _pieces(x.detach()):
        shifted = torch.sub(piece, mean, out=_scratch(piece))
        rest += shifted.sum().item()  # of the rounding of the mean
        part = norm(shifted)
        square += part * part
    square, rest = square / x.numel(), rest / x.numel()
    return math.sqrt(max(square - rest * rest, 0.0))


def _change_with_norms(
    change_all: Callable[[list[Tensor], list[Tensor]], object],
    change: Callable[[Tensor, Tensor], object],
    tensors: Sequence[Tensor],
    copies: Sequence[Tensor],
) -> list[float]:
    """Change `copies` by `tensors`, large ones piece by piece, and read them while cached."""
    values: list[float] = []
    for group in _cached_groups(copies):
        first = copies[group.start]
        if first.numel() <= PIECE or first.dtype in HALF:  # whose pieces are no views
            change_all(list(copies[group]), list(tensors[group]))
            values += norms(copies[group])
            continue
        square = 0.0
        for piece, target in zip(_pieces(tensors[group.start]), _pieces(first), strict=True):
            change(target, piece)
            part = torch.linalg.vector_norm(target).item()
            square += part * part
        values.append(_in_range(math.sqrt(square), first))
    return values


def _cached_groups(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yield slices of neighbours that are no larger than PIECE together, or of a single one."""
    start, size = 0, 0
    for i, x in enumerate(tensors):
        size += x.numel()
        if size > PIECE and i > start:
            yield slice(start, i)
            start, size = i, x.numel()
    yield slice(start, len(tensors))


# --- range ----------------------------------------------------------------------------------------


def _in_range(value: float, x: Tensor) -> float:
    """Return `value`, the norm of `x`, or take it again where a square may have left the range.

    Times a power of two no bit is lost: 5.5 us for 32,768 elements, 20 for a division by the
    largest of them.
    """
    low, factor = _RANGE[x.dtype]
    if low < value < math.inf or math.isnan(value):
        return value
    if value > 1:
        factor = 1 / factor
    return _norm_of_pieces(x, factor) / factor


def _norm_of_pieces(x: Tensor, factor: float = 1.0) -> float:
    square = 0.0
    for piece in _pieces(x):
        if factor != 1:
            piece = torch.mul(piece, factor, out=_scratch(piece))
        part = torch.linalg.vector_norm(piece).item()
        square += part * part
    return math.sqrt(square)


# --- pieces ---------------------------------------------------------------------------------------


def _is_piece(x: Tensor) -> bool:
    """Whether one reduction over `x` is exact: torch adds up what lies apart one by one."""
    lies_together = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x.numel() <= PIECE and x.dtype not in HALF and lies_together


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """Yield the elements of `x` in short 1-D pieces, half types as float32, the others as views."""
    if x.numel() == 0:
        return
    x = _in_order(x).reshape(-1)
    for piece in (x,) if x.numel() <= PIECE else torch.split(x, PIECE):
        yield piece.float() if piece.dtype in HALF else piece


def _in_order(x: Tensor) -> Tensor:
    """Return `x`, with its dimensions in the order in which they lie in memory if channels last."""
    return x if x.dim() != 4 or x.is_contiguous() else x.permute(0, 2, 3, 1)


_kept = threading.local()


def _scratch(x: Tensor) -> Tensor:
    """Return a tensor like `x`, a piece, for a passing result; the next call overwrites it.

    It is the same memory every time: to have fresh memory mapped costs up to thirty times what is
    then computed in it (93 against 3 us for the signs of 32,768 elements).
    """
    buffers: dict[torch.dtype, Tensor] = _kept.__dict__.setdefault("buffers", {})
    if x.dtype not in buffers:
        buffers[x.dtype] = torch.empty(PIECE, dtype=x.dtype)
    return buffers[x.dtype][: x.numel()].view(x.shape)
