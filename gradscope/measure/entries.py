"""Entries: how tensors are told to compiled kernels, which read many of them at one call.

On a GPU an entry is eight integers: the addresses of x, y and z (of a `Tensors`), how many elements
lie there one behind the other, how often each of them stands for an element (of an expanded
tensor), the bits of center and radius as float32, and the address of the row of sums to add to.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.measure.sums import COPY, DIFFERENCE, FIELDS, JOIN, PAIR, Tensors

COLUMNS = 8
X, Y, Z, ELEMENTS, FACTOR, CENTER, RADIUS, ROW = range(COLUMNS)

Integers = NDArray[np.int64]


class _HostEntry(ctypes.Structure):
    """An entry as cpu_kernel.c has it: it is handed addresses apart."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("center", ctypes.c_float),
        ("radius", ctypes.c_float),
    )


class Wanted(NamedTuple):
    """How a tensor is to be read.

    Attributes
    ----------
    kind : int
        Which sums.
    dtype, other : torch.dtype
        Of x; of y and z.
    elements : int
        Of each.
    center, radius : float
        Of a census.
    """

    kind: int
    dtype: torch.dtype
    other: torch.dtype
    elements: int
    center: float
    radius: float


class Span(NamedTuple):
    """Elements that lie one behind the other, each standing for `factor` elements of a tensor."""

    elements: int
    factor: int


def span(x: Tensor) -> Span | None:
    """Return how the elements of `x` lie in memory, None if there are gaps, or some overlap."""
    if is_dense(x):
        return Span(x.numel(), 1)
    factor, expected = 1, 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride == 0:
            factor *= size
        elif stride == expected:
            expected *= size
        else:
            return None
    return Span(expected, factor)


def alike(tensors: Tensors) -> tuple[Tensors, Span]:
    """Return them as they lie in memory, element by element; copies where there are gaps."""
    x, y, z = tensors
    where = span(x)
    strides = x.stride()
    if where is not None and (x is z or (y.stride() == strides and z.stride() == strides)):
        return tensors, where
    x = x.contiguous()
    if tensors[2] is not tensors[0]:
        return (x, y.contiguous(), z.contiguous()), Span(x.numel(), 1)
    return (x, x, x), Span(x.numel(), 1)


class Group(NamedTuple):
    """Entries from `start` to `stop` that one launch on a GPU can take."""

    kind: int
    dtype: torch.dtype
    other: torch.dtype
    start: int
    stop: int


class Form:
    """What the entries of some readings have in common from step to step.

    Attributes
    ----------
    wanted : sequence of k Wanted
    single : bool
        Whether all are of x alone.
    address : int
        Of k entries as cpu_kernel.c has them.
    order : list of k int
        The readings as `entries` has them: together those that one launch on a GPU can take.
    groups : list of Group
        These.
    """

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        count = len(wanted)
        self.wanted = wanted
        self.single = all(one.kind not in (PAIR, COPY, DIFFERENCE, JOIN) for one in wanted)
        self._on_host = host_entries(wanted)
        self.address = ctypes.addressof(self._on_host)
        together: dict[tuple[int, torch.dtype, torch.dtype], list[int]] = {}
        for i, one in enumerate(wanted):
            together.setdefault((one.kind, one.dtype, one.other), []).append(i)
        self.order = [i for places in together.values() for i in places]
        self.groups: list[Group] = []
        for key, places in together.items():
            start = self.groups[-1].stop if self.groups else 0
            self.groups.append(Group(*key, start, start + len(places)))
        self._entries = np.zeros((count, COLUMNS), np.int64)
        in_order = [wanted[i] for i in self.order]
        self._entries[:, ELEMENTS] = [one.elements for one in in_order]
        self._entries[:, FACTOR] = 1
        self._entries[:, CENTER] = [bits(one.center) for one in in_order]
        self._entries[:, RADIUS] = [bits(one.radius) for one in in_order]
        self._entries[:, ROW] = 8 * FIELDS * np.array(self.order)

    def entries(self, tensors: Sequence[Tensors], row: int) -> tuple[Sequence[Tensors], Integers]:
        """Return what to hold on to until it is read, and entries whose rows begin at `row`.

        An address is 0 where the memory is gone.
        """
        entries = self._entries.copy()
        tensors = [tensors[i] for i in self.order]
        if not all([x.is_contiguous() for x, _, _ in tensors]) or not all(
            [x is z or (y.is_contiguous() and z.is_contiguous()) for x, y, z in tensors]
        ):
            for i, some in enumerate(tensors):
                if some[0] is not some[2] or not is_dense(some[0]):
                    tensors[i], entries[i, ELEMENTS : FACTOR + 1] = alike(some)
        if self.single:
            entries[:, X : Z + 1] = np.array([x.data_ptr() for x, _, _ in tensors])[:, None]
        else:
            entries[:, X : Z + 1] = [[x.data_ptr() for x in some] for some in tensors]
        entries[:, ROW] += row
        return tensors, entries


def is_dense(x: Tensor) -> bool:
    """Whether the elements of `x` lie one behind the other, its channels last or not."""
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def host_entries(wanted: Sequence[Wanted]) -> ctypes.Array[_HostEntry]:
    """Return entries for the CPU, one behind the other."""
    told = [_HostEntry(one.kind, one.elements, one.center, one.radius) for one in wanted]
    return (_HostEntry * len(told))(*told)


@lru_cache(256)
def bits(value: float) -> int:
    """Return the bits of a number as float32."""
    found: int = struct.unpack("i", struct.pack("f", value))[0]
    return found
