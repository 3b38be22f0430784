"""The optional C kernel behind tensors.py, for float32 tensors on the CPU: one pass where torch
takes several.

It is compiled on first use by the C compiler of the machine, where there is one, in a fifth of a
second, and kept in the user's cache. Without it everything is read by torch; GRADSCOPE_KERNEL=0
asks for that. docs/cost.md has what a step costs with the kernel, and without.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscope.measure import cpu_compiler, sums
from gradscope.measure.entries import Form, Wanted, host_entries, is_dense
from gradscope.measure.sums import CENSUS, COPY, DIFFERENCE, FIELDS, PAIR, SQUARES, Tensors

_SOURCE = Path(__file__).with_suffix(".c")
_CHUNK = 2**16  # elements that one thread reads at once, as in cpu_kernel.c

_PLAIN = (Tensor, nn.Parameter)
_FLOAT32, _STRIDED = torch.float32, torch.strided  # their names take time to look up
_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_SIGNATURES = {
    "sums": (_INT, [_INT, _LONG, *[_POINTER] * 4, _INT]),
    "read_rows": (_INT, [_LONG, _POINTER, _POINTER, _INT, _POINTER, _INT]),
}


class Kernel:
    """The functions of cpu_kernel.c, for tensors that `takes` accepts."""

    moments = staticmethod(sums.spread_of)
    small, most = 2**15, 2**18  # elements of a tensor that may wait, and of all that do: cached

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._sums, self._read_rows = library.sums, library.read_rows

    @staticmethod
    def takes(x: Tensor) -> bool:
        """Whether `x` is float32 on the CPU, its elements one behind the other in any order."""
        return (
            x.dtype is _FLOAT32
            and type(x) in _PLAIN
            and x.is_cpu
            and x.layout is _STRIDED
            and is_dense(x)
            and x.data_ptr() != 0  # a shard that was freed has elements and no memory
            and not x.is_neg()
        )

    def read(self, wanted: Wanted, tensors: Tensors, row: int) -> bool:
        """Add sums over `tensors`, of one shape, to the row at address `row`; return True."""
        tensors = _in_order(tensors)  # one may have its channels last, and another not
        entry = host_entries([wanted])
        addresses = (_POINTER * 3)(*[x.data_ptr() for x in tensors])
        threads = _threads(wanted.elements)
        _check(self._read_rows(1, entry, addresses, 3, row, threads))
        return True

    def read_all(self, form: Form, tensors: Sequence[Tensors], row: int) -> list[int]:
        """Add sums over each of `tensors` to a row of its own, the first at address `row`.

        Returns the numbers of those that were not read: their memory is gone.
        """
        single = form.single
        if not all([x.is_contiguous() for x, _, _ in tensors]) or not (
            single or all([y.is_contiguous() and z.is_contiguous() for _, y, z in tensors])
        ):
            tensors = [_in_order(some) for some in tensors]
        if single:
            addresses = [x.data_ptr() for x, _, _ in tensors]
        else:
            addresses = [x.data_ptr() for some in tensors for x in some]
        ways, count = 1 if single else 3, len(tensors)
        if 0 in addresses:
            gone = {i // ways for i, address in enumerate(addresses) if not address}
            for i in set(range(count)) - gone:
                self.read(form.wanted[i], tensors[i], row + 8 * FIELDS * i)
            return sorted(gone)
        there = array("Q", addresses)
        _check(self._read_rows(count, form.address, there.buffer_info()[0], ways, row, 1))
        return []

    def square_sum(self, x: Tensor) -> float:
        """Return the sum of squares of `x`."""
        return self._sums_of(SQUARES, (x, x, x))[0]

    def product_sum(self, x: Tensor, y: Tensor) -> float:
        """Return the sum of products of `x` and `y`, which lie alike."""
        return self._sums_of(PAIR, (x, y, y))[2]

    def census(self, x: Tensor, center: float, radius: float) -> tuple[float, ...]:
        """Return the sum of squares, the sum, how many elements are not 0, how many far away,
        and the sum of squared distances from the mean.

        Far away is farther from `center` than `radius`.
        """
        return self._sums_of(CENSUS, (x, x, x), center, radius)

    def _sums_of(
        self, kind: int, tensors: Tensors, center: float = 0.0, radius: float = 0.0
    ) -> tuple[float, ...]:
        x = tensors[0]
        row = (ctypes.c_double * FIELDS)()
        wanted = Wanted(kind, x.dtype, x.dtype, x.numel(), center, radius)
        self.read(wanted, tensors, ctypes.addressof(row))
        return tuple(row)

    def square_sums(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Return the sum of squares of each tensor, shape (n,), None where it cannot be done."""
        return self._each(SQUARES, tensors, tensors)

    def copies(self, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor | None:
        """Copy `tensors` to `copies`, which lie alike; return the sum of squares of each."""
        return self._each(COPY, tensors, copies)

    def differences(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor | None:
        """Return the sum of squares of each difference, None where `others` lie otherwise."""
        return self._each(DIFFERENCE, tensors, others)

    def _each(self, kind: int, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor | None:
        """Read all pairs of tensors, all on the CPU."""
        if not all(
            [
                x.dtype is _FLOAT32
                and type(x) in _PLAIN
                and x.layout is _STRIDED
                and not x.is_neg()
                for x in xs
            ]
        ) or not _lie_alike(xs, ys):
            return None
        n = array("q", [x.numel() for x in xs])
        x = y = array("Q", [x.data_ptr() for x in xs])
        if ys is not xs:
            y = array("Q", [y.data_ptr() for y in ys])
            if n != array("q", [y.numel() for y in ys]):
                return None  # others have taken their place
        if (0 in x or 0 in y) and any(0 in (a, b) for a, b, k in zip(x, y, n, strict=True) if k):
            return None  # a shard that was freed has elements and no memory
        out = torch.empty(len(n), dtype=torch.float64)
        told = [numbers.buffer_info()[0] for numbers in (n, x, y)]
        _check(self._sums(kind, len(n), *told, out.data_ptr(), _threads(sum(n))))
        return out


def _lie_alike(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> bool:
    """Whether elements of each pair lie one behind the other, in the same order, as float32."""
    if ys is xs:
        return all([x.is_contiguous() for x in xs]) or all(map(is_dense, xs))
    if not all([y.dtype is _FLOAT32 for y in ys]):
        return False
    if all([x.is_contiguous() for x in xs]) and all([y.is_contiguous() for y in ys]):
        return True
    pairs = zip(xs, ys, strict=True)
    return all(map(is_dense, xs)) and all(x.stride() == y.stride() for x, y in pairs)


def _in_order(tensors: Tensors) -> Tensors:
    """Return them one element behind the other, in the same order; copies where they are not."""
    x, y, z = tensors
    if x is z and x.is_contiguous(memory_format=torch.channels_last):
        return tensors
    if x is z:
        return (x.contiguous(),) * 3
    return x.contiguous(), y.contiguous(), z.contiguous()


def _threads(n: int) -> int:
    return torch.get_num_threads() if n > _CHUNK else 1


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the sums of chunks")


@cache
def kernel() -> Kernel | None:
    """Return the kernel, None where it is not wanted or cannot be had."""
    return cpu_compiler.load(_SOURCE, Kernel)
