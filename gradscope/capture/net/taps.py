"""Taps within compiled graphs: what the compiler traces of us.

A tap hands a tensor on unchanged. Its backward sends sums over the gradient that passes, and those
that its forward took of the values, as the gradient of a *row*: a small tensor that all rows share
a node with (`rows`). So all of it is ordinary autograd, without a call back into Python: the
compiler puts the sums next to the kernel that makes the tensor, and no graph breaks.

A compiler traces everything here, so it is kept plain. Sums are taken in float64, or where there is
none, on MPS, in float32; what would leave its range is summed apart, times a power of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

COLUMNS = (
    *("gradient_low", "gradient", "gradient_high"),
    *("value_low", "value", "value_high"),
    *("sum", "count", "nonzero", "slopes", "flat"),
)
"""What a row holds: sums of squares, of those too small, in range, and too large; and sums."""

_N_GRADIENT = 3
_HALF = (torch.float16, torch.bfloat16)


class _Range(NamedTuple):
    """Whose squares to sum apart, and what they are multiplied by before."""

    low: float
    low_factor: float
    high: float
    high_factor: float


_RANGES = {
    torch.float32: _Range(2.0**-50, 2.0**90, 2.0**40, 2.0**-80),
    torch.float64: _Range(2.0**-450, 2.0**600, 2.0**450, 2.0**-600),
}


class Slope(NamedTuple):
    """An activation of which to read how steep it is.

    Attributes
    ----------
    function : nn.Module or None
        What is called on the tapped tensor, as by F.relu; None where a module returned that.
    from_output : bool
        Whether its derivative follows from its output, else from its input.
    derivative : callable or None
        From that, not in half precision, and the activation; None where it is not known.
    limit : float
        A slope up to this counts as flat.
    """

    function: nn.Module | None
    from_output: bool
    derivative: Callable[[Tensor, nn.Module], Tensor] | None
    limit: float


class Spot(NamedTuple):
    """A tensor to tap, `position` among those that require grad.

    Of one whose values are not read, only the gradient is.
    """

    position: int
    row: Tensor
    reads_value: bool
    slope: Slope | None


Spots = tuple[Spot, ...]

_Source = tuple[nn.Module, Tensor | None]
"""The module that returned a tensor, and what it was called with."""


class _Tap(torch.autograd.Function):
    """The identity, as a copy: what follows may work in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor, sums: Tensor) -> Tensor:
        ctx.save_for_backward(sums)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (sums,) = ctx.saved_tensors
        squares = _squares(gradient.detach(), sums.dtype)
        return gradient, torch.cat([torch.stack(squares), sums]), None


def at_input(
    spots: Spots, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Tap what a module is called with; None where nothing is tapped."""
    if not spots or not torch.is_grad_enabled():
        return None
    tapped: tuple[tuple[Any, ...], dict[str, Any]] = _replace((args, kwargs), spots, [0], None)
    return tapped


def at_output(spots: Spots, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Tap what `module` returned; None where nothing is tapped."""
    if not spots or not torch.is_grad_enabled():
        return None
    given = args[0] if len(args) > 0 and isinstance(args[0], Tensor) else None
    return _replace(output, spots, [0], (module, given))


def _replace(value: Any, spots: Spots, seen: list[int], source: _Source | None) -> Any:
    """Return `value` with the tensors at `spots` tapped; `seen` counts those with a gradient."""
    if isinstance(value, Tensor):
        if not value.requires_grad:
            return value
        position = seen[0]
        seen[0] += 1
        for spot in spots:
            if spot.position == position:
                return _tapped(value, spot, source)
        return value
    if type(value) is tuple:
        return tuple([_replace(item, spots, seen, source) for item in value])
    if type(value) is list:
        return [_replace(item, spots, seen, source) for item in value]
    if type(value) is dict:
        return {key: _replace(item, spots, seen, source) for key, item in value.items()}
    return value


def _tapped(x: Tensor, spot: Spot, source: _Source | None) -> Tensor:
    if not x.is_floating_point() or x.layout is not torch.strided:
        return x
    tapped: Tensor = _Tap.apply(x, spot.row, _sums(x, spot, source))
    return tapped


def _sums(x: Tensor, spot: Spot, source: _Source | None) -> Tensor:
    """Return all of a row but the squares of the gradient."""
    wide = spot.row.dtype
    zero = torch.zeros((), dtype=wide, device=x.device)
    if not spot.reads_value:
        return zero.expand(len(COLUMNS) - _N_GRADIENT).clone()
    values = x.detach()
    count = torch.full((), x.numel(), dtype=wide, device=x.device)
    sums = [*_squares(values, wide), values.to(wide).sum(), count]
    if spot.slope is None or source is None:
        return torch.stack([*sums, zero, zero, zero])
    activation, given = source
    if spot.slope.function is not None:
        activation, given = spot.slope.function, values
        values = activation.forward(values)
    nonzero = (values != 0).to(wide).sum()
    at = values if spot.slope.from_output else given
    if spot.slope.derivative is None or at is None or at is x:  # x: its input is lost, in place
        unknown = torch.full((), torch.nan, dtype=wide, device=x.device)
        return torch.stack([*sums, nonzero, unknown, unknown])
    at = at.detach()
    steep = spot.slope.derivative(at.float() if at.dtype in _HALF else at, activation).abs()
    flat = (steep <= spot.slope.limit).to(wide).sum()
    return torch.stack([*sums, nonzero, steep.to(wide).sum(), flat])


def _squares(x: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums of squares of the elements that are too small, in range and too large."""
    zero = torch.zeros((), dtype=wide, device=x.device)
    y = x.to(wide)
    if wide is torch.float64 and x.dtype is not torch.float64:  # their squares are in its range
        return zero, y.square().sum(), zero
    low, low_factor, high, high_factor = _RANGES[wide]
    size = y.abs()
    is_low, is_high = size < low, size > high
    return (
        (torch.where(is_low, y, 0.0) * low_factor).square().sum(),
        torch.where(is_low | is_high, 0.0, y).square().sum(),
        (torch.where(is_high, y, 0.0) * high_factor).square().sum(),
    )


def norms(low: Tensor, middle: Tensor, high: Tensor) -> Tensor:
    """Return L2 norms from the sums of `_squares`."""
    scale = _RANGES[middle.dtype]
    small, large = low.sqrt() / scale.low_factor, high.sqrt() / scale.high_factor
    return torch.hypot(torch.hypot(small, middle.sqrt()), large) + 0 * middle  # NaN beside inf


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _: Tensor,
        n: int,
        device: torch.device,
        arrived: Callable[[tuple[Tensor | None, ...]], None],
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.arrived = arrived
        wide = torch.float32 if device.type == "mps" else torch.float64
        return tuple(torch.zeros(len(COLUMNS), dtype=wide, device=device) for _ in range(n))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None, None]:
        ctx.arrived(gradients)
        return None, None, None, None


def rows(
    n: int, device: torch.device, arrived: Callable[[tuple[Tensor | None, ...]], None]
) -> tuple[tuple[Tensor, ...], Node]:
    """Return `n` rows for taps, and the node that they share.

    Each backward in which a tap took part, and that would reach a leaf, calls `arrived` once, with
    what the taps of each row have sent (None: nothing). It may be run any number of times.
    """
    leaf = torch.zeros((), device=device, requires_grad=True)
    made = _Rows.apply(leaf, n, device, arrived)
    return made, made[0].grad_fn
