"""The optional C kernel behind tensors.py, for float32 tensors on the CPU: one pass where torch
takes several.

It is compiled on first use by the C compiler of the machine, where there is one, in a fifth of a
second, and kept in the user's cache. Without it everything is read by torch; GRADSCOPE_KERNEL=0
asks for that. Step of 50 layers of 256, watched / bare, with one / two threads: 1.21 / 1.30 with
the kernel, 1.25 / 1.43 without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.measure import cpu_compiler

_SOURCE = Path(__file__).with_suffix(".c")
_CHUNK = 2**16  # elements that one thread reads at once, as in cpu_kernel.c

_PLAIN = (Tensor, nn.Parameter)
_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIGNATURES = {
    "square_sum": (ctypes.c_double, [_POINTER, _LONG, _INT]),
    "product_sum": (ctypes.c_double, [_POINTER, _POINTER, _LONG, _INT]),
    "sums": (_INT, [_INT, _LONG, *[_POINTER] * 4, _INT]),
    "census": (_INT, [_POINTER, _LONG, _FLOAT, _FLOAT, _POINTER, _INT]),
}
SquareSums = NDArray[np.float64]
"""A sum of squares for each tensor, shape (n,)."""

_SQUARES, _COPIES, _DIFFERENCES = range(3)


class Kernel:
    """The functions of cpu_kernel.c, for tensors that `takes` accepts."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._square_sum, self._product_sum = library.square_sum, library.product_sum
        self._sums, self._census = library.sums, library.census

    @staticmethod
    def takes(x: Tensor) -> bool:
        """Whether `x` is float32 on the CPU, its elements one behind the other in any order."""
        return (
            x.dtype is torch.float32
            and type(x) in _PLAIN
            and x.is_cpu
            and x.layout is torch.strided
            and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
            and x.data_ptr() != 0  # a shard that was freed has elements and no memory
            and not x.is_neg()
        )

    def square_sum(self, x: Tensor) -> float:
        """Return the sum of squares of `x`."""
        n = x.numel()
        result: float = self._square_sum(x.data_ptr(), n, _threads(n))
        return result

    def product_sum(self, x: Tensor, y: Tensor) -> float:
        """Return the sum of products of `x` and `y`, which lie alike."""
        n = x.numel()
        result: float = self._product_sum(x.data_ptr(), y.data_ptr(), n, _threads(n))
        return result

    def square_sums(self, tensors: Sequence[Tensor]) -> SquareSums:
        """Return the sum of squares of each tensor."""
        return self._each(_SQUARES, tensors, tensors)

    def copies(self, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> SquareSums:
        """Copy `tensors` to `copies`, which lie alike; return the sum of squares of each."""
        return self._each(_COPIES, tensors, copies)

    def differences(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> SquareSums:
        """Return the sum of squares of each difference; `others` lie as `tensors` do."""
        return self._each(_DIFFERENCES, tensors, others)

    def census(self, x: Tensor, center: float, radius: float) -> tuple[float, float, float, float]:
        """Return the sum of squares, the sum, how many elements are not 0, how many far away.

        Far away is farther from `center` than `radius`.
        """
        n = x.numel()
        out = (ctypes.c_double * 4)()
        _check(self._census(x.data_ptr(), n, center, radius, out, _threads(n)))
        return out[0], out[1], out[2], out[3]

    def _each(self, kind: int, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> SquareSums:
        count = len(tensors)
        sizes = [x.numel() for x in tensors]
        n = (_LONG * count)(*sizes)
        x = (_POINTER * count)(*[tensor.data_ptr() for tensor in tensors])
        y = (_POINTER * count)(*[other.data_ptr() for other in others])
        out = np.empty(count)
        _check(self._sums(kind, count, n, x, y, out.ctypes.data, _threads(sum(sizes))))
        return out


def _threads(n: int) -> int:
    return torch.get_num_threads() if n > _CHUNK else 1


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the sums of chunks")


@cache
def kernel() -> Kernel | None:
    """Return the kernel, None where it is not wanted or cannot be had."""
    return cpu_compiler.load(_SOURCE, Kernel)
