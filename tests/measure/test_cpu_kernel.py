"""The compiled kernel: what it takes, and where it is compiled and loaded from."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from gradscope.measure import cpu_kernel as kernel_module
from gradscope.measure import sums
from gradscope.measure.cpu_kernel import Kernel, kernel
from gradscope.measure.entries import Form, Wanted


@pytest.fixture
def compiled() -> Kernel:
    found = kernel()
    if found is None:
        pytest.skip("no C compiler on this machine: everything is read by torch")
    return found


def test_the_kernel_reads_the_same_bits_with_any_number_of_threads(compiled):
    x, many = torch.randn(1_000_003), [torch.randn(n) for n in (70_000, 3, 200_000, 0, 65_536)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            read = compiled.census(x, 0.0, 1.0)
            found.append((compiled.square_sum(x), read, compiled.square_sums(many).tolist()))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_the_kernel_takes_no_tensor_that_it_would_misread(compiled):
    x = torch.randn(4, 6)
    others = [
        x.double(),
        x.half(),
        x.to_sparse(),
        x.to("meta"),
        x[:, ::2],
        torch.randn(9, dtype=torch.complex64).conj().imag,
        torch.empty(0),
    ]
    freed = torch.randn(5)
    freed.untyped_storage().resize_(0)
    assert compiled.takes(x) and compiled.takes(torch.nn.Parameter(x))
    assert not any(map(compiled.takes, [*others, freed]))


@pytest.mark.parametrize(
    "environment",
    [
        {"GRADSCOPE_KERNEL": "0"},
        {"CC": "no-such-compiler"},
        {"CC": "false"},
        {"CC": "cc 'quoted"},
    ],
    ids=lambda e: "=".join(*e.items()),
)
def test_without_a_compiler_or_against_the_users_will_there_is_no_kernel(
    environment, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert kernel.__wrapped__() is None
    assert not list(tmp_path.rglob("*.so"))


def test_the_compiler_may_be_called_with_arguments(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "cc -DUNUSED=1 '-DTWO WORDS'")
    found = kernel.__wrapped__()
    assert found is not None and found.square_sum(torch.full((3,), 2.0)) == 12.0


def test_clang_brings_no_second_runtime_of_openmp(compiled, tmp_path, monkeypatch):
    """Of a compiler that says that it is clang; which runtimes are loaded shows the process."""
    cc = tmp_path / "cc"
    cc.write_text('#!/bin/sh\n[ "$1" = --version ] && echo clang version 18 || exec gcc "$@"\n')
    cc.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(cc))
    assert kernel.__wrapped__() is not None
    (library,) = (tmp_path / "gradscope").iterdir()
    assert b"GOMP_parallel" not in library.read_bytes()


def test_windows_needs_no_compiler_and_no_owner_of_files(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.delattr("os.getuid")
    assert kernel.__wrapped__() is None


def test_the_kernel_is_compiled_once_into_the_users_cache(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernel.__wrapped__() is not None
    (path,) = (tmp_path / "gradscope").iterdir()
    made = path.stat().st_mtime_ns
    assert kernel.__wrapped__() is not None
    assert list((tmp_path / "gradscope").iterdir()) == [path]
    assert path.stat().st_mtime_ns == made
    assert stat.S_IMODE((tmp_path / "gradscope").stat().st_mode) == 0o700


def test_nothing_is_loaded_from_a_cache_that_others_can_write_to(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "gradscope"
    folder.mkdir()
    os.chmod(folder, 0o777)
    loaded: list[Path] = []

    class Noting(Kernel):
        def __init__(self, path: Path) -> None:
            loaded.append(path)
            super().__init__(path)

    monkeypatch.setattr(kernel_module, "Kernel", Noting)
    assert kernel.__wrapped__() is not None
    assert not list(folder.iterdir())
    assert folder not in loaded[0].parents


def test_tensors_that_lie_in_memory_in_different_orders_are_read_element_by_element(compiled):
    total, branch = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    shortcut = (total - branch).contiguous(memory_format=torch.channels_last)
    wanted = Wanted(sums.JOIN, total.dtype, total.dtype, total.numel(), 0.0, 0.0)
    at_once, late = sums.Rows(total.device, 1), sums.Rows(total.device, 1)
    tensors = total, shortcut, branch
    compiled.read(wanted, tensors, at_once.take_all())
    compiled.read_all(Form([wanted]), [tensors], late.take_all())
    x, y = shortcut.double(), branch.double()
    rest = total.double() - x - y
    expected = [x * x, y * y, x * y, total.double().square(), rest * rest]
    for rows in (at_once, late):
        assert rows.values()[0].tolist() == pytest.approx([float(v.sum()) for v in expected])
