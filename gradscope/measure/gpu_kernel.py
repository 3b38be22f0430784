"""The Triton kernels behind tensors on a GPU: one pass over each, nothing waits, nothing is kept.

Until they are compiled (gpu_compiler.py), and where there is no Triton, or no compiler for it, or
GRADSCOPE_KERNEL=0 asks for it, everything is read by torch (tensors.py).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.autograd import torch_internals
from gradscope.measure import sums
from gradscope.measure.entries import (
    COLUMNS,
    ELEMENTS,
    FACTOR,
    ROW,
    Form,
    Integers,
    Wanted,
    X,
    Y,
    Z,
    alike,
    bits,
    span,
)
from gradscope.measure.gpu_compiler import DTYPES, Compiler, Function, Launch
from gradscope.measure.sums import (
    COPY,
    DIFFERENCE,
    FIELDS,
    JOIN,
    MOMENTS,
    NONZERO,
    PAIR,
    SQUARES,
    Rows,
    Tensors,
)

_PLAIN = (Tensor, nn.Parameter)
_UNIT = 16  # bytes: the widest load
_PROGRAMS = 8  # a multiprocessor, at most
_TABLES = 64  # that are remembered


class Kernel:
    """Reads tensors of one device by compiled functions. What is not compiled yet is compiled."""

    moments = staticmethod(sums.moments_of)
    small, most = 2**21, 2**25  # elements of a tensor that may wait, and of all that do: a launch
    # for several costs that of ten for one

    def __init__(self, device: torch.device, source: ModuleType) -> None:
        self._device = device
        self._source = source
        self._compiler = Compiler(device, source, self._try)
        self._chunks: dict[tuple[int, bytes], Tensor] = {}
        properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        self._programs = _PROGRAMS * (properties.multi_processor_count if properties else 1)

    @staticmethod
    def takes(x: Tensor) -> bool:
        """Whether `x` is a plain tensor, with memory, of a dtype that is read in float32."""
        return (
            x.dtype in DTYPES
            and type(x) in _PLAIN
            and x.layout is torch.strided
            and x.data_ptr() != 0  # a shard that was freed has elements and no memory
            and not x.is_neg()
        )

    def read(self, wanted: Wanted, tensors: Tensors, row: int) -> bool:
        """Add sums over `tensors` to the row at address `row`, as triton_kernels.py says of a kind.

        Returns False, having done nothing, where it cannot be done yet. All are of one shape.
        """
        tensors, where = alike(tensors)
        x, y, z = tensors
        at = x.data_ptr()
        addresses = (at, at, at) if x is z else (at, y.data_ptr(), z.data_ptr())
        odd = (addresses[0] | addresses[1] | addresses[2]) % _UNIT
        unit = min(x.element_size(), y.element_size()) if odd else _UNIT
        launch = self._compiler.get("one", wanted.kind, x.dtype, y.dtype, unit)
        if launch is None:
            return False
        tiles = -(-where.elements // self._source.TILE)
        center, radius = bits(wanted.center), bits(wanted.radius)
        launch(
            min(tiles, self._programs),
            (*[a // unit for a in addresses], *where, center, radius, row),
        )
        return True

    def read_all(self, form: Form, tensors: Sequence[Tensors], row: int) -> list[int]:
        """Add sums over each of `tensors` to a row of its own, the first at address `row`.

        Returns the numbers of those that were not read: their memory is gone, or nothing that
        could read them is compiled yet.
        """
        held, table = form.entries(tensors, row)
        addresses = table[:, X : Z + 1]
        if not addresses.all():
            return [
                i
                for i, some in enumerate(tensors)
                if not all([x.data_ptr() for x in some])
                or not self.read(form.wanted[i], some, row + 8 * FIELDS * i)
            ]
        odd = bool((addresses % _UNIT).any())
        launches = []
        left: list[int] = []
        for group in form.groups:
            unit = _UNIT
            if odd:
                unit = min(group.dtype.itemsize, group.other.itemsize)
            launch = self._compiler.get("many", group.kind, group.dtype, group.other, unit)
            if launch is None:
                left += form.order[group.start : group.stop]
            else:
                launches.append((launch, slice(group.start, group.stop)))
                if odd:
                    addresses[group.start : group.stop] //= unit
        if not odd:
            addresses //= _UNIT
        if launches:
            self._launch_many(launches, table)
        del held
        return left

    def square_sums(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Return the sum of squares of each tensor, shape (n,), None where it cannot be done."""
        return self._each(SQUARES, tensors, tensors)

    def copies(self, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor | None:
        """Copy `tensors` to `copies`, which lie alike; return the sum of squares of each."""
        return self._each(COPY, tensors, copies)

    def differences(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor | None:
        """Return the sum of squares of each difference; `others` lie as `tensors` do."""
        return self._each(DIFFERENCE, tensors, others)

    # --- launching ----------------------------------------------------------------------------

    def _each(self, kind: int, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor | None:
        """Read all pairs of tensors by one launch for each combination of dtypes."""
        if not all([type(x) in _PLAIN and x.layout is torch.strided for x in xs]):
            return None
        if ys is not xs and [x.numel() for x in xs] != [y.numel() for y in ys]:
            return None  # others have taken their place
        groups: dict[tuple[torch.dtype, torch.dtype], list[int]] = defaultdict(list)
        for i, x in enumerate(xs):
            groups[x.dtype, ys[i].dtype].append(i)
        if not all([x in DTYPES and y in DTYPES for x, y in groups]):
            return None
        launches = []
        for group in groups:
            if (launch := self._compiler.get("many", kind, *group, _UNIT)) is not None:
                launches.append(launch)
        if len(launches) < len(groups):
            return None
        addresses = np.array([x.data_ptr() for x in xs], np.int64)
        others = addresses if ys is xs else np.array([y.data_ptr() for y in ys], np.int64)
        table = np.zeros((len(xs), COLUMNS), np.int64)
        table[:, X], table[:, Y], table[:, Z] = addresses, others, others
        if all([x.is_contiguous() for x in xs]) and (
            ys is xs or all([y.is_contiguous() for y in ys])
        ):
            table[:, ELEMENTS], table[:, FACTOR] = [x.numel() for x in xs], 1
        else:
            spans = [where for x in xs if (where := span(x)) is not None]
            alike = ys is xs or all([x.stride() == y.stride() for x, y in zip(xs, ys, strict=True)])
            if len(spans) < len(xs) or not alike:
                return None
            table[:, ELEMENTS : FACTOR + 1] = spans
        if ((addresses == 0) & (table[:, ELEMENTS] > 0)).any() or (
            (addresses | others) % _UNIT
        ).any():
            return None  # a shard that was freed has elements and no memory
        out = torch.zeros(len(xs), dtype=torch.float64, device=self._device)
        table[:, ROW] = out.data_ptr() + 8 * np.arange(len(xs))
        table[:, X : Z + 1] //= _UNIT
        if len(groups) > 1:
            table = table[[i for numbers in groups.values() for i in numbers]]
        stops = np.cumsum([len(numbers) for numbers in groups.values()]).tolist()
        parts = [slice(*both) for both in pairwise([0, *stops])]
        self._launch_many(list(zip(launches, parts, strict=True)), table)
        return out

    def _launch_many(self, launches: Sequence[tuple[Launch, slice]], table: Integers) -> None:
        """Read parts of a table of entries, each by as many programs as they have chunks."""
        there = self._to_device(table)
        for launch, part in launches:
            chunks = self._chunks_of(table[part, ELEMENTS])
            first = there.data_ptr() + 8 * COLUMNS * part.start
            launch(len(chunks), (first, chunks.data_ptr()))

    def _chunks_of(self, sizes: Integers) -> Tensor:
        """Return the number of an entry, and which chunk of it, for all chunks of entries."""
        stream = (
            torch_internals.raw_stream(self._device.index) if self._device.index is not None else 0
        )
        key = stream, sizes.tobytes()
        chunks = self._chunks.get(key)
        if chunks is None:
            if len(self._chunks) == _TABLES:
                self._chunks.clear()
            counts = -(-sizes // self._source.CHUNK)
            first = np.repeat(np.cumsum(counts) - counts, counts)
            numbers = np.repeat(np.arange(len(sizes)), counts)
            both = np.stack([numbers, np.arange(len(numbers)) - first], axis=1)
            chunks = self._chunks[key] = self._to_device(both)
        return chunks

    def _to_device(self, numbers: Integers) -> Tensor:
        if self._device.type == "cpu":
            return torch.from_numpy(numbers)
        pinned = torch.empty(numbers.shape, dtype=torch.int64, pin_memory=True)
        pinned.numpy()[...] = numbers
        return pinned.to(self._device, non_blocking=True)

    # --- compiled functions ---------------------------------------------------------------------

    @property
    def problem(self) -> str | None:
        """Why there are none, if they cannot be had."""
        return self._compiler.problem

    def prepare(self, dtypes: Iterable[torch.dtype]) -> None:
        """Compile in the background what tensors of these dtypes will ask for."""
        for dtype in dtypes:
            if dtype in DTYPES:
                for name in ("one", "many"):
                    for kind in (SQUARES, MOMENTS, NONZERO, JOIN):
                        self._compiler.get(name, kind, dtype, dtype, _UNIT)
                for kind in (COPY, DIFFERENCE):
                    self._compiler.get("many", kind, dtype, dtype, _UNIT)

    def wait(self, seconds: float) -> bool:
        """Wait until all is compiled that was asked for; return whether it is. Not for training."""
        return self._compiler.wait(seconds)

    def _try(self, made_for: Function, launch: Launch) -> None:
        """Read numbers that are known; on an accelerator this loads the function, too."""
        x = torch.full((3,), 2.0, dtype=made_for.x, device=self._device)
        y = torch.full((3,), 1.0, dtype=made_for.y, device=self._device)
        rows = Rows(self._device, 1)
        wanted = Wanted(made_for.kind, made_for.x, made_for.y, 3, 0.0, 0.0)
        _, entries = Form([wanted]).entries([(x, y, y)], rows.address(rows.take()))
        entries[:, X : Z + 1] //= made_for.unit
        if made_for.name == "one":
            launch(1, tuple(entries[0].tolist()))
        else:
            self._launch_many([(launch, slice(0, 1))], entries)
        expected = 3.0 if made_for.kind in (DIFFERENCE, JOIN) else 12.0
        if (found := _first(rows.values()[0])) != expected:
            raise ArithmeticError(f"{made_for.name}: read {found} for {expected}")


def by_torch(wanted: Wanted, tensors: Tensors) -> Tensor:
    """Return the sums that `Kernel.read` adds to a row, shape (5,), where it cannot yet."""
    x, y, z = (tensor.detach().double() for tensor in tensors)
    if wanted.kind == JOIN:
        found = [y * y, z * z, y * z, x * x, (x - y - z).square()]
    elif wanted.kind == PAIR:
        found = [x * x, y * y, x * y]
    else:
        found = [x * x, x, x != 0, (x - wanted.center).abs() > wanted.radius]
    totals = torch.stack([values.sum(dtype=torch.float64) for values in found])
    return torch.nn.functional.pad(totals, (0, FIELDS - len(found)))


def _first(row: Tensor) -> float:
    """Return the first number of `row`, by no call that a user may have forbidden."""
    host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
    host.copy_(row, non_blocking=True)
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record()
    arrived.synchronize()
    return float(host[0])


# --- which kernel -------------------------------------------------------------------------------

by_interpreter = False
"""Whether tensors on the CPU are read by Triton's interpreter, for which TRITON_INTERPRET=1 must be
set before Triton is imported: this is for tests."""

_made: dict[torch.device, Kernel] = {}
_missing: dict[torch.device, str] = {}


@cache
def kernel(device: torch.device) -> Kernel | None:
    """Return the kernel of a device, None where it is not wanted or there is no Triton for it."""
    if os.environ.get("GRADSCOPE_KERNEL") == "0":
        return None
    if device.type != "cuda" and not (device.type == "cpu" and by_interpreter):
        return None
    try:
        from gradscope.measure import triton_kernels
    except ImportError as error:
        _missing[device] = str(error)
        return None
    _made[device] = Kernel(device, triton_kernels)
    return _made[device]


def kernel_of(x: Tensor) -> Kernel | None:
    """Return the kernel of the device of `x`, None for a tensor on the CPU."""
    return kernel(x.device) if x.is_cuda or by_interpreter else None


def prepare(tensors: Iterable[Tensor]) -> None:
    """Compile in the background what the devices and dtypes of `tensors` will ask for."""
    found: dict[Kernel, set[torch.dtype]] = defaultdict(set)
    for x in tensors:
        if (fast := kernel_of(x)) is not None:
            found[fast].add(x.dtype)
    for fast, dtypes in found.items():
        fast.prepare(sorted(dtypes, key=str))


def problems() -> list[str]:
    """Return a sentence for each device that has no kernel though it could have one."""
    found = _missing | {d: k.problem for d, k in list(_made.items()) if k.problem is not None}
    return [
        f"tensors on {device} are read by torch, which costs more time, where Triton cannot be"
        f" used: {reason}"
        for device, reason in found.items()
    ]
