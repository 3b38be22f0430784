"""How steep an activation function is where a batch put it: mean |phi'(z)|, off, saturated.

Where the derivative follows from the output a = phi(z), it is taken from there: the output is at
hand also after an in-place call, which overwrites z.

    sigmoid a (1 - a)      tanh 1 - a^2           relu a > 0            softplus 1 - exp(-beta a)
    softsign (1 - |a|)^2   elu a + alpha, a < 0   log-sigmoid 1 - exp(a)

Everything here stays on the device and never waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradscope import measure
from gradscope.kinds import BOUNDS, canonical
from gradscope.measure import Reading
from gradscope.measure.spacing import distance
from gradscope.measure.sums import Numbers, census_of

SAMPLE = 2**14
"""Elements that the readings of a function without a short cut are taken from, at most."""

_canonical = cache(canonical)
_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


class ActivationReadings(NamedTuple):
    """Readings of one call of an activation function: numbers, or 0-d tensors on its device."""

    derivative_mean: Reading
    zero_fraction: Reading
    saturated_fraction: Reading


class WholeRule(NamedTuple):
    """How to read an activation from a census of its whole output, with this center and radius."""

    center: float
    radius: float
    readings: Callable[[Any, Any], ActivationReadings]

    def derive(self, n: Numbers, rows: Numbers) -> tuple[Numbers, ...]:
        """Return them from rows of sums, as a `Derivation` does."""
        readings: tuple[Any, ...] = self.readings(n, census_of(n, rows))
        return readings


class _Rule(NamedTuple):
    """phi' of an activation, elementwise, from its output or from its input."""

    source: str  # "output" or "input"
    derivative: Callable[[Tensor, Any], Tensor]


def activation_readings(
    activation: nn.Module | str, input: Tensor | None, output: Tensor
) -> ActivationReadings:
    """Return how steep and how far off `activation` was in one call.

    Parameters
    ----------
    activation : nn.Module or str
        The module, which holds its settings (slope, alpha, ...), or a kind such as `tanh` or
        `TanhBackward0`, which stands for torch's defaults.
    input : Tensor, any shape, or None
        z as it was before the call; None where it is lost, as after an in-place call.
    output : Tensor, the same shape
        phi(z).

    Returns
    -------
    ActivationReadings
        `derivative_mean` = mean |phi'(z)|; `zero_fraction`, the share of the outputs that are
        exactly 0; `saturated_fraction`, the share of |phi'| below a tenth of the largest value
        that phi' can take. ReLU, tanh and sigmoid are read in whole, the others from every k-th
        element where there are more than SAMPLE. The first and the last are NaN for a function
        that is not known here, or whose derivative needs an input that is lost.
    """
    if (whole := whole_rule(activation)) is not None:
        census = measure.census(output, whole.center, whole.radius)
        return whole.readings(output.numel(), census)
    with torch.no_grad():
        output = sample(output)
        zero = 1 - measure.census(output, 0.0).nonzero
        some = None if input is None else sample(input)
        slope = derivative(activation, some, output, None if input is None else input.shape)
        if slope is None:
            return ActivationReadings(math.nan, zero, math.nan)
        steep = measure.census(slope.abs_(), 0.0, flat(activation))
        return ActivationReadings(steep.mean, zero, 1 - steep.far)


def sample(x: Tensor) -> Tensor:
    """Return `x`, or a copy of every k-th of its elements where these are more than SAMPLE."""
    apart = _apart(x.numel())
    return x if apart == 1 else x.reshape(-1)[::apart].contiguous()


def _apart(n: int) -> int:
    """Return how far apart the sampled ones of n elements are."""
    return 1 if n <= SAMPLE else distance(n, SAMPLE)


def whole_rule(activation: nn.Module | str) -> WholeRule | None:
    """Return how to read `activation` from sums over its output, None where these do not tell."""
    return _WHOLE.get(_kind(activation))


def _relu_readings(n: Any, census: Any) -> ActivationReadings:
    off = 1 - census.nonzero
    return ActivationReadings(census.nonzero, off, off)


def _tanh_readings(n: Any, census: Any) -> ActivationReadings:
    slope = 1 - census.norm * census.norm / n
    return ActivationReadings(slope, 1 - census.nonzero, census.far)  # 1 - a^2 < 0.1


def _sigmoid_readings(n: Any, census: Any) -> ActivationReadings:
    slope = census.mean - census.norm * census.norm / n
    return ActivationReadings(slope, 1 - census.nonzero, census.far)  # a (1 - a) < 0.1 / 4


_WHOLE = {
    "relu": WholeRule(0.0, 0.0, _relu_readings),
    "sigmoid": WholeRule(0.5, math.sqrt(0.225), _sigmoid_readings),
    "tanh": WholeRule(0.0, math.sqrt(0.9), _tanh_readings),
}
"""Kinds whose readings follow from a census of the whole output."""


def derivative(
    activation: nn.Module | str,
    input: Tensor | None,
    output: Tensor,
    shape: Sequence[int] | None = None,
) -> Tensor | None:
    """Return phi'(z) element by element, as `torch.autograd` has it; None where it is unknown.

    Parameters and shapes as for `activation_readings`; half precision is computed in float32. Of
    samples (`sample`) `shape` is that of what they are of.
    """
    rule = _rule(activation)
    if rule is None or output.is_complex():
        return None
    source = output if rule.source == "output" else input
    if source is None:
        return None
    if source.dtype in (torch.float16, torch.bfloat16):
        source = source.float()
    settings = activation if isinstance(activation, nn.Module) else None
    if isinstance(settings, nn.PReLU) and settings.num_parameters > 1 and shape is not None:
        slopes = _of_channels(settings.weight.detach(), shape).view(source.shape)
        return torch.where(source > 0, 1.0, slopes.to(source))
    return rule.derivative(source.detach(), settings)


def _of_channels(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return of each element of a sample of a tensor of `shape` the value of its channel."""
    n = math.prod(shape)
    places = torch.arange(0, n, _apart(n), device=values.device)
    return values[places // math.prod(shape[2:]) % len(values)]


def slope_rule(
    activation: nn.Module | str,
) -> tuple[str, Callable[[Tensor, nn.Module | None], Tensor]] | None:
    """Return how `derivative` is taken, once and for all; None where it is unknown.

    From "output" or "input", and by which function of that, not in half precision, and the module.
    """
    return _rule(activation)


def steepest(activation: nn.Module | str) -> float:
    """Return the largest |phi'| that `activation` can have, its settings considered."""
    kind = _kind(activation)
    settings = activation if isinstance(activation, nn.Module) else None
    if kind == "leakyrelu":
        return max(1.0, abs(_get(settings, "negative_slope", 0.01)))
    if kind == "elu":
        return max(1.0, abs(_get(settings, "alpha", 1.0)))
    return BOUNDS[kind]


def flat(activation: nn.Module | str) -> float:
    """Return the |phi'| up to which `activation` counts as saturated: below a tenth of the most.

    That of LeakyReLU(0.1) is not below it, however it is rounded.
    """
    return 0.1 * steepest(activation) * (1 - 2 * torch.finfo(torch.float32).eps)


def _kind(activation: nn.Module | str) -> str:
    return _canonical(activation if isinstance(activation, str) else type(activation).__name__)


def _get(settings: nn.Module | None, name: str, default: float) -> float:
    """Return a module's setting, or torch's default for a call without a module."""
    return float(getattr(settings, name, default))


def _rule(activation: nn.Module | str) -> _Rule | None:
    """Return how to get phi' of `activation`, if it is known."""
    kind = _kind(activation)
    settings = activation if isinstance(activation, nn.Module) else None
    if kind == "leakyrelu" and _get(settings, "negative_slope", 0.01) < 0:
        return _Rule("input", _leaky_relu)  # the output's sign no longer tells the input's
    if kind == "elu" and _get(settings, "alpha", 1.0) <= 0:
        return None
    if kind == "threshold" and _get(settings, "value", 0) > _get(settings, "threshold", 0):
        return _Rule("input", _threshold)
    return _RULES.get(kind)


def _leaky_relu(x: Tensor, settings: nn.Module | None) -> Tensor:
    return torch.where(x > 0, 1.0, _get(settings, "negative_slope", 0.01)).to(x.dtype)


def _prelu(z: Tensor, settings: nn.Module | None) -> Tensor:
    slope = torch.full((), 0.25) if settings is None else settings.get_parameter("weight").detach()
    if slope.numel() > 1:  # one slope a channel, which is dimension 1
        slope = slope.view(1, -1, *[1] * (z.dim() - 2)) if z.dim() > 1 else slope
    return torch.where(z > 0, torch.ones_like(z), slope.to(z))


def _elu(a: Tensor, settings: nn.Module | None) -> Tensor:
    return torch.where(a > 0, torch.ones_like(a), a + _get(settings, "alpha", 1.0))


def _celu(a: Tensor, settings: nn.Module | None) -> Tensor:
    return torch.where(a > 0, torch.ones_like(a), a / _get(settings, "alpha", 1.0) + 1)


def _selu(a: Tensor, _: nn.Module | None) -> Tensor:
    return torch.where(a > 0, torch.full_like(a, _SELU_SCALE), a + _SELU_SCALE * _SELU_ALPHA)


def _softplus(a: Tensor, settings: nn.Module | None) -> Tensor:
    return -torch.expm1(-_get(settings, "beta", 1.0) * a)


def _by(backward: Callable[..., Any], z: Tensor, **settings: str) -> Tensor:
    """Return what torch's own `backward` makes of a gradient of ones: one operation."""
    slopes: Tensor = backward(torch.ones_like(z), z, **settings)
    return slopes


def _gelu(z: Tensor, settings: nn.Module | None) -> Tensor:
    approximate = getattr(settings, "approximate", "none")
    return _by(torch.ops.aten.gelu_backward.default, z, approximate=approximate)


def _silu(z: Tensor, _: nn.Module | None) -> Tensor:
    return _by(torch.ops.aten.silu_backward.default, z)


def _mish(z: Tensor, _: nn.Module | None) -> Tensor:
    return _by(torch.ops.aten.mish_backward.default, z)


def _hardswish(z: Tensor, _: nn.Module | None) -> Tensor:
    middle = z / 3 + 0.5
    return torch.where(z.abs() < 3, middle, (z > 0).to(z.dtype))


def _hardtanh(a: Tensor, settings: nn.Module | None) -> Tensor:
    low, high = _get(settings, "min_val", -1.0), _get(settings, "max_val", 1.0)
    return ((a > low) & (a < high)).to(a.dtype)


def _threshold(x: Tensor, settings: nn.Module | None) -> Tensor:
    return (x > _get(settings, "threshold", 0)).to(x.dtype)


def _shrink(a: Tensor, _: nn.Module | None) -> Tensor:
    return (a != 0).to(a.dtype)


_RULES: dict[str, _Rule] = {
    "celu": _Rule("output", _celu),
    "elu": _Rule("output", _elu),
    "gelu": _Rule("input", _gelu),
    "hardshrink": _Rule("output", _shrink),
    "hardsigmoid": _Rule("output", lambda a, _: ((a > 0) & (a < 1)).to(a.dtype) / 6),
    "hardswish": _Rule("input", _hardswish),
    "hardtanh": _Rule("output", _hardtanh),
    "leakyrelu": _Rule("output", _leaky_relu),
    "logsigmoid": _Rule("output", lambda a, _: -torch.expm1(a)),
    "mish": _Rule("input", _mish),
    "prelu": _Rule("input", _prelu),
    "relu": _Rule("output", lambda a, _: (a > 0).to(a.dtype)),
    "relu6": _Rule("output", lambda a, _: ((a > 0) & (a < 6)).to(a.dtype)),
    "selu": _Rule("output", _selu),
    "sigmoid": _Rule("output", lambda a, _: a * (1 - a)),
    "silu": _Rule("input", _silu),
    "softplus": _Rule("output", _softplus),
    "softshrink": _Rule("output", _shrink),
    "softsign": _Rule("output", lambda a, _: (1 - a.abs()) ** 2),
    "tanh": _Rule("output", lambda a, _: 1 - a**2),
    "tanhshrink": _Rule("input", lambda z, _: torch.tanh(z) ** 2),
    "threshold": _Rule("output", _threshold),
}
