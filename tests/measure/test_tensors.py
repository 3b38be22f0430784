"""Norms and shares against float64: by the compiled kernel, by torch, whatever lies in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import ways
from gradscope import measure
from gradscope.measure import gpu_kernel, sums, tensors
from gradscope.measure.entries import Wanted


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.gpu) if name.endswith("GPU") else name
        for name in ways.NAMES
        if torch.cuda.is_available() or not name.endswith("GPU")
    ]
)
def way(request, monkeypatch) -> Iterator[ways.Way]:
    """Each way of reading that this machine has."""
    yield ways.way_named(request.param, monkeypatch)
    ways.forget()


def exact(x: Tensor) -> np.ndarray:
    return x.detach().cpu().to(torch.float64).numpy().astype(np.longdouble)


def exact_norm(x: Tensor) -> float:
    return float(np.sqrt(np.square(exact(x)).sum()))


def layouts() -> dict[str, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4, 3)
    return {
        "contiguous": x,
        "channels last": x.to(memory_format=torch.channels_last),
        "permuted": x.permute(3, 1, 0, 2),
        "strided": x[:, ::2],
        "expanded": torch.randn(1, 7).expand(5, 7),
        "scalar": torch.tensor(-3.0),
        "requires grad": x.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(x.clone()),
        "negated view": torch.randn(9, dtype=torch.complex64).conj().imag,
        "large": torch.randn(3, 100_003) + 0.5,
    }


@pytest.mark.parametrize("name", layouts())
def test_a_census_is_that_of_float64_however_the_tensor_lies_in_memory(name, way):
    x = layouts()[name]
    x = x if name == "negated view" else torch.nn.functional.dropout(x, 0.2)
    values = exact(x)
    read = way.census(x, 0.25, 0.5)
    assert read.norm == pytest.approx(exact_norm(x), rel=1e-6)
    assert read.mean == pytest.approx(float(values.mean()), rel=1e-5, abs=1e-7)
    assert read.deviation == pytest.approx(float(values.std()), rel=1e-5, abs=1e-12)
    assert read.nonzero == pytest.approx((values != 0).mean())
    assert read.far == pytest.approx((abs(values - 0.25) > 0.5).mean())
    assert way.norm(x) == pytest.approx(exact_norm(x), rel=1e-6)


@pytest.mark.parametrize("half", ["first channels", "every other column", "expanded"])
def test_what_lies_apart_in_memory_is_read_as_exactly_as_what_lies_together(half, way):
    x = torch.rand(8, 32, 32, 32, generator=torch.Generator().manual_seed(0)) ** 8
    views = {
        "first channels": x[:, :16],
        "every other column": x[..., ::2],
        "expanded": x[:, :1].expand(-1, 16, -1, -1),
    }
    assert measure.norm(views[half]) == pytest.approx(exact_norm(views[half]), rel=5e-6)
    assert measure.norms([views[half]]).item() == pytest.approx(exact_norm(views[half]), rel=5e-6)


SIZES = (1e-45, 1e-30, 1e-20, 1e-7, 1.0, 1e4, 1e20, 1e30, 1e38, 1e-300, 1e300)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (dtype, size)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        for size in SIZES
        if torch.finfo(dtype).smallest_normal / 1e8 < size < torch.finfo(dtype).max / 2
    ],
)
def test_no_square_leaves_the_range(dtype, size, way):
    x = (torch.randn(1000, dtype=torch.float64) * 0.1 + 1).mul(size).to(dtype)
    assert x.isfinite().all()
    assert way.norm(x) == pytest.approx(exact_norm(x), rel=1e-5)
    (together,) = way.norms([x])
    assert together == pytest.approx(exact_norm(x), rel=1e-5)


@pytest.mark.slow
def test_a_hundred_million_elements_are_right_to_a_hundred_thousandth(way):
    n = 10**8 if way.is_fast else 3 * 10**6  # an interpreter takes a minute for ten million
    x = torch.randn(n) + 0.1
    square = sum(float(np.square(p.double().numpy()).sum()) for p in x.split(10**7))
    mean = sum(float(p.double().sum()) for p in x.split(10**7)) / n
    read = way.census(x)
    assert read.norm == pytest.approx(math.sqrt(square), rel=1e-5)
    assert read.mean == pytest.approx(mean, rel=1e-5)
    assert read.deviation == pytest.approx(math.sqrt(square / n - mean**2), rel=1e-5)


def test_a_deviation_far_below_the_mean_is_not_lost(way):
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 1e-3 + 100
    assert way.census(x).deviation == pytest.approx(float(exact(x).std()), rel=1e-5)
    assert way.census(torch.full((50,), 0.3)).deviation == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e200, 1e300])
def test_a_deviation_has_the_range_of_float64(size, way):
    x = torch.randn(1000, dtype=torch.float64)
    read = way.census(x * size, None, 0.0)
    assert read.norm == pytest.approx(x.norm().item() * size, rel=1e-12)
    assert read.mean == pytest.approx(x.mean().item() * size, rel=1e-9)
    assert read.deviation == pytest.approx(x.std(correction=0).item() * size, rel=1e-9)
    shifted = way.census((x * 1e-6 + 1) * size, None, 0.0)
    assert shifted.deviation == pytest.approx(1e-6 * x.std(correction=0).item() * size, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, math.inf, -math.inf, math.nan])
def test_zero_inf_and_nan_pass_through(value, way):
    x = torch.ones(100)
    x[7] = value
    expected = exact_norm(x)
    np.testing.assert_allclose(way.norm(x), expected, rtol=1e-6)
    read = way.census(x, 0.0, 0.5)
    np.testing.assert_allclose(read.norm, expected, rtol=1e-6)
    if math.isnan(value):
        assert math.isnan(read.nonzero) and math.isnan(read.far) and math.isnan(read.mean)
    else:
        assert read.nonzero == pytest.approx(0.99 if value == 0 else 1)
    assert way.norm(torch.zeros(10)) == 0


def test_sparse_and_complex_tensors_have_the_norm_of_their_elements(way):
    dense = torch.tensor([[0.0, 3.0], [4.0, 0.0]])
    assert way.norm(dense.to_sparse()) == pytest.approx(5)
    assert way.norm(torch.tensor([3 + 4j, 12j])) == pytest.approx(13)


def test_copies_and_differences_have_the_norms_of_each_tensor(way):
    torch.manual_seed(0)
    shapes = [(300, 700), (5,), (64, 3, 3, 3), (1,)]
    tensors = [torch.randn(shape, device=way.device) for shape in shapes]
    tensors[2] = tensors[2].to(memory_format=torch.channels_last)
    copies = [torch.empty_like(x) for x in tensors]
    norms = measure.copy_with_norms(tensors, copies)
    assert norms.tolist() == pytest.approx([exact_norm(x) for x in tensors], rel=1e-6)
    assert all(torch.equal(x, y) for x, y in zip(tensors, copies, strict=True))
    before = [x.clone() for x in tensors]
    for x in tensors:
        x.mul_(1.001)
    moved = measure.difference_norms(tensors, copies)
    expected = [exact_norm(x - y) for x, y in zip(tensors, before, strict=True)]
    assert moved.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_cosine_neither_overflows_nor_underflows(way):
    a, b = torch.randn(5000), torch.randn(5000)
    expected = float((exact(a) * exact(b)).sum()) / exact_norm(a) / exact_norm(b)
    for size in (1e-30, 1.0, 1e30):
        x, y = a * size, b * size
        cosine = way.cosine(x, y)
        assert cosine == pytest.approx(expected, rel=1e-4)
    assert math.isnan(way.cosine(a, torch.zeros(5000)))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_tensors_of_8_bits_are_read_as_what_they_stand_for(dtype, way):
    x = torch.randn(500).to(dtype)
    assert way.norm(x) == pytest.approx(exact_norm(x), rel=1e-6)
    assert way.census(x, 0.0).mean == pytest.approx(float(exact(x).mean()), rel=1e-5)


def test_overlapping_and_shifted_tensors_are_read_element_by_element(way):
    base = torch.randn(1000)
    for x in (
        base.unfold(0, 20, 3),
        base[1:],
        base[3:].bfloat16()[1:],
        base.as_strided((30, 7, 5), (2, 1, 9)),
        torch.empty(0, 4),
    ):
        assert way.norm(x) == pytest.approx(exact_norm(x), rel=1e-6)


@pytest.mark.parametrize("kind", [sums.SQUARES, sums.CENSUS, sums.PAIR, sums.JOIN])
def test_torch_stands_in_for_a_kernel_with_the_same_sums(kind, monkeypatch):
    ways.interpret(monkeypatch)
    x, y, z = (torch.randn(5000) for _ in range(3))
    tensors = (x, y, z) if kind == sums.JOIN else (x, y, y) if kind == sums.PAIR else (x,) * 3
    kernel, rows = ways.Kernels("cpu").kernel, sums.Rows(x.device)
    row = rows.take()
    wanted = Wanted(kind, x.dtype, x.dtype, 5000, 0.25, 0.5)
    kernel.read(wanted, tensors, rows.address(row))
    assert kernel.wait(60)
    assert kernel.read(wanted, tensors, rows.address(row))
    read, expected = rows.values()[0], gpu_kernel.by_torch(wanted, tensors)
    which = {sums.SQUARES: 1, sums.CENSUS: 4, sums.PAIR: 3, sums.JOIN: 5}[kind]
    torch.testing.assert_close(read[:which], expected[:which], rtol=1e-6, atol=1e-3)
    ways.forget()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1.0, 1e20, 1e36])
def test_where_there_is_no_float64_norms_hold_over_the_whole_range(size, dtype):
    """As on MPS: the arithmetic is float32's, here on the CPU."""
    x = (torch.rand(1000, dtype=torch.float64) * size).to(dtype)
    if not (x.isfinite().all() and x.any()):
        return  # no such numbers in this dtype
    read = tensors._scaled_norm(x)
    assert read.dtype is torch.float32
    assert float(read) == pytest.approx(exact_norm(x), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_where_there_is_no_float64_zero_and_what_is_not_finite_stay_so(value):
    x = torch.tensor([value, 1.0, -2.0] if value else [0.0, 0.0])
    np.testing.assert_equal(float(tensors._scaled_norm(x)), exact_norm(x))
