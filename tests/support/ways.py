"""The ways in which tensors are read, behind one face: numbers on the host, whoever takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from gradscope import measure
from gradscope.measure import gpu_kernel, sums, tensors
from gradscope.measure.cpu_kernel import kernel as cpu_kernel
from gradscope.measure.entries import Wanted
from gradscope.measure.gpu_kernel import Kernel
from gradscope.measure.sums import CENSUS, PAIR, SQUARES, Rows

forget = gpu_kernel.kernel.cache_clear
"""Have the kernels of devices looked for anew."""

NAMES = ("C", "torch", "Triton", "torch on a GPU", "Triton on a GPU")


class Way:
    """By the public functions of `measure`: the C kernel, or torch."""

    device = "cpu"
    is_fast = True

    def norm(self, x: Tensor) -> float:
        return float(measure.norm(x.to(self.device)))

    def norms(self, some: Sequence[Tensor]) -> list[float]:
        return measure.norms([x.to(self.device) for x in some]).tolist()

    def census(self, x: Tensor, center: float | None = None, radius: float = 0.0):
        """Return a census as floats; its deviation, where it is left to the host, from the rest."""
        x = x.to(self.device)
        read = measure.census(x, center, radius)
        norm, mean = float(read.norm), float(read.mean)
        deviation = read.deviation
        if deviation is None:
            deviation = max(norm**2 / x.numel() - mean**2, 0) ** 0.5
        shares = (float(read.nonzero), float(read.far))
        if np.isnan(norm):  # as the columns do
            shares = (np.nan, np.nan)
        return measure.Census(norm, mean, deviation, *shares)

    def cosine(self, x: Tensor, y: Tensor) -> float:
        x, y = x.to(self.device), y.to(self.device)
        return float(measure.cosine(x, y, measure.norm(x), measure.norm(y)))


class Device(Way):
    device = "cuda"


class Kernels(Way):
    """By the kernels that Triton compiles, or interprets on the CPU; others by `measure`."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.is_fast = device != "cpu"  # else it is an interpreter
        found = gpu_kernel.kernel(torch.empty(0, device=device).device)
        assert found is not None
        self.kernel: Kernel = found

    def _sums(self, kind, x, y=None, center=0.0, radius=0.0):
        rows = Rows(x.device)
        y = x if y is None else y
        row = rows.take()
        wanted = Wanted(kind, x.dtype, y.dtype, x.numel(), center, radius)
        if not self.kernel.read(wanted, (x, y, y), rows.address(row)):  # not compiled yet
            assert self.kernel.wait(60), self.kernel.problem
            assert self.kernel.read(wanted, (x, y, y), rows.address(row))
        return rows.values().cpu().numpy()

    def _takes(self, x):
        return self.kernel.takes(x) and x.numel() > 0

    def norm(self, x):
        x = measure.dense(x.to(self.device))
        if not self._takes(x):
            return float(measure.norm(x))
        return float(sums.norm_of(np.ones(1), self._sums(SQUARES, x))[0][0])

    def norms(self, some):
        some = [measure.in_memory(x.to(self.device)) for x in some]
        self.kernel.square_sums(some)
        assert self.kernel.wait(60), self.kernel.problem
        return measure.norms(some).tolist()

    def census(self, x, center=None, radius=0.0):
        x = measure.dense(x.to(self.device))
        if not self._takes(x):
            return super().census(x, center, radius)
        rows = self._sums(CENSUS, x, center=center or 0.0, radius=radius)
        read = sums.census_of(np.array([float(x.numel())]), rows)
        return measure.Census(*(float(value[0]) for value in read))

    def cosine(self, x, y):
        x, y = x.to(self.device), y.to(self.device)
        return float(sums.pair_of(np.ones(1), self._sums(PAIR, x, y))[2][0])


def way_named(name: str, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Return one of NAMES, or skip the test where this machine does not have it."""
    if name == "C":
        if cpu_kernel() is None:
            pytest.skip("no C compiler on this machine: everything is read by torch")
        return Way()
    monkeypatch.setattr(tensors, "kernel", lambda: None)
    if name == "torch":
        return Way()
    if name == "torch on a GPU":
        monkeypatch.setattr(gpu_kernel, "kernel", lambda device: None)
        return Device()
    pytest.importorskip("triton", reason="Triton is not installed")
    if name == "Triton on a GPU":
        return Kernels("cuda")
    interpret(monkeypatch)
    return Kernels("cpu")


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensors on the CPU be read as those on a GPU are, by Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("Triton compiles on this machine: its interpreter is for those without a GPU")
    monkeypatch.setattr(tensors, "kernel", lambda: None)
    monkeypatch.setattr(gpu_kernel, "by_interpreter", True)
    monkeypatch.setattr(gpu_kernel, "_made", {})
    forget()


@pytest.fixture
def interpreted(monkeypatch):
    interpret(monkeypatch)
    yield
    forget()
