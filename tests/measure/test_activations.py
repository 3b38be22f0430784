"""Derivatives of activation functions against autograd."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from gradscope.kinds import BOUNDS, canonical
from gradscope.measure.activations import SAMPLE, activation_readings, derivative, steepest

MODULES = [
    nn.CELU(),
    nn.CELU(alpha=0.7),
    nn.ELU(),
    nn.ELU(alpha=1.5),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.Hardshrink(0.8),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(),
    nn.Hardtanh(-2, 0.5),
    nn.LeakyReLU(0.3),
    nn.LeakyReLU(-0.5),
    nn.LogSigmoid(),
    nn.Mish(),
    nn.PReLU(),
    nn.PReLU(5, init=-0.3),
    nn.ReLU(),
    nn.ReLU6(),
    nn.SELU(),
    nn.Sigmoid(),
    nn.SiLU(),
    nn.Softplus(),
    nn.Softplus(beta=3),
    nn.Softshrink(0.3),
    nn.Softsign(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Threshold(0.5, -1),
    nn.Threshold(-1, 3),
]


def inputs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Values of both signs in which no function has a kink."""
    torch.manual_seed(0)
    return 4 * torch.randn(40, 5, 7, dtype=dtype)


def autograd_derivative(module: nn.Module, z: torch.Tensor) -> torch.Tensor:
    z = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(module(z).sum(), z)
    return slope


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_derivative_is_that_of_autograd(module: nn.Module) -> None:
    z = inputs()
    module = module.double()
    slope = derivative(module, z, module(z))
    torch.testing.assert_close(slope, autograd_derivative(module, z), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_readings_summarise_the_derivative(module: nn.Module) -> None:
    z = inputs()
    module = module.double()
    slope = autograd_derivative(module, z).abs()
    output = module(z)
    readings = activation_readings(module, z, output)
    assert readings.derivative_mean == pytest.approx(slope.mean().item(), rel=1e-5)
    assert readings.zero_fraction == pytest.approx((output == 0).double().mean().item())
    flat = (slope < 0.1 * steepest(module)).double().mean().item()
    assert readings.saturated_fraction == pytest.approx(flat, abs=1e-3)


@pytest.mark.parametrize("module", [m for m in MODULES if not isinstance(m, nn.PReLU)], ids=str)
def test_no_derivative_exceeds_its_bound_and_the_bound_is_reached(module: nn.Module) -> None:
    z = torch.linspace(-16, 16, 200_000, dtype=torch.float64)
    largest = autograd_derivative(module, z).abs().max().item()
    assert largest == pytest.approx(steepest(module), rel=1e-3)


def test_every_known_kind_has_a_bound_and_a_derivative() -> None:
    tested = {canonical(type(module).__name__) for module in MODULES}
    assert tested == set(BOUNDS)


@pytest.mark.parametrize(
    "module",
    [nn.ReLU(True), nn.ELU(1.0, True), nn.LeakyReLU(0.1, True), nn.Hardtanh(inplace=True)],
    ids=str,
)
def test_an_in_place_call_is_read_from_its_output(module: nn.Module) -> None:
    z = inputs()
    apart = copy.deepcopy(module)
    apart.inplace = False
    expected = autograd_derivative(apart, z)
    torch.testing.assert_close(derivative(module, None, module(z.clone())), expected)


def test_a_lost_input_gives_nan_and_still_the_zeros() -> None:
    readings = activation_readings(nn.SiLU(), None, torch.tensor([0.0, 1.0]))
    assert math.isnan(readings.derivative_mean) and math.isnan(readings.saturated_fraction)
    assert readings.zero_fraction == 0.5


def test_an_unknown_function_gives_nan() -> None:
    readings = activation_readings("Softmax", torch.ones(3), torch.ones(3))
    assert math.isnan(readings.derivative_mean)


@pytest.mark.parametrize("kind", ["tanh", "TanhBackward0", "Tanh"])
def test_a_function_call_is_known_by_its_name_or_its_autograd_node(kind: str) -> None:
    z = inputs()
    torch.testing.assert_close(derivative(kind, None, torch.tanh(z)), 1 - torch.tanh(z) ** 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    a = torch.full((300_000,), 0.5, dtype=dtype)
    readings = activation_readings("sigmoid", None, a)
    assert readings.derivative_mean == pytest.approx(0.25)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_waits_for_the_device(module: nn.Module) -> None:
    z = torch.empty(40, 5, 7, device="meta")
    module = copy.deepcopy(module).float().to("meta")
    readings = activation_readings(module, z, module(z))
    tensors = [reading for reading in readings if isinstance(reading, torch.Tensor)]
    assert len(tensors) == 3
    for reading in tensors:
        assert reading.shape == () and reading.device.type == "meta"


def test_nan_passes_through() -> None:
    output = torch.tensor([float("nan"), 0.5])
    assert math.isnan(activation_readings("tanh", None, output).derivative_mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_slope_of_a_tenth_is_not_saturated_however_it_is_rounded(dtype: torch.dtype) -> None:
    z = torch.randn(500, generator=torch.Generator().manual_seed(0)).to(dtype)
    for slope, share in ((0.1, 0.0), (0.09, (z < 0).double().mean().item())):
        module = nn.LeakyReLU(slope)
        assert activation_readings(module, z, module(z)).saturated_fraction == pytest.approx(share)


@pytest.mark.parametrize("shape", [(8192, 3), (64, 768), (8, 288, 7, 7), (700, 100), (16384, 2)])
def test_a_sample_has_all_columns_alike(shape: tuple[int, ...]) -> None:
    """Of outputs that are 0 in one column alone the share of zeros is that of the columns."""
    columns = shape[-1]
    z = torch.full(shape, 1.0)
    z[..., 0] = -50.0  # where softplus is 0, and flat
    module = nn.Softplus()
    read = activation_readings(module, z, torch.where(z < 0, 0.0, module(z)))
    assert read.zero_fraction == pytest.approx(1 / columns, rel=0.02)
    assert read.saturated_fraction == pytest.approx(1 / columns, rel=0.02)
    slope = torch.sigmoid(torch.tensor(1.0)).item()
    assert read.derivative_mean == pytest.approx(slope * (1 - 1 / columns), rel=0.02)


@pytest.mark.parametrize("shape", [(50, 32), (2000, 32), (4, 32, 9, 7), (8, 32, 30, 31)])
def test_each_channel_of_prelu_has_a_slope_of_its_own(shape: tuple[int, ...]) -> None:
    module = nn.PReLU(32)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.01, 0.9, 32))
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    output = module(z)
    (slope,) = torch.autograd.grad(output.sum(), [z])
    read = activation_readings(module, z.detach(), output.detach())
    tolerance = 1e-6 if z.numel() <= SAMPLE else 0.02
    assert read.derivative_mean == pytest.approx(slope.mean().item(), rel=tolerance)
    flat = (slope < 0.1).double().mean().item()
    assert read.saturated_fraction == pytest.approx(flat, rel=2 * tolerance)
