"""The Triton kernels behind tensors on a GPU: one pass over each, nothing waits, nothing is kept.

They are compiled in the background, each for a device and a dtype when that is first seen, and
tried on numbers that are known before they are trusted. Until then, and where there is no Triton,
or no compiler for it, or GRADSCOPE_KERNEL=0 asks for it, everything is read by torch (tensors.py).
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradscope.autograd import torch_internals

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_PLAIN = (Tensor, nn.Parameter)
_UNIT = 16  # bytes: the widest load
_WARPS = 4
_PROGRAMS = 8  # a multiprocessor, at most
_LONG = 2**40  # sure to be taken for an integer of 64 bits
_PATIENCE = 10  # seconds without anything to compile, after which the thread ends

Entry = tuple[int, int, int, int, int, int, int]
"""Addresses of x and y, elements, how often each stands for one, center, radius, address of a row:
as triton_kernels.py has them, but in bytes."""


Launch = Callable[[int, tuple[int, ...]], None]
"""Called with a number of programs and the arguments that the function was not compiled for."""


class Span(NamedTuple):
    """Elements that lie one behind the other, each standing for `factor` elements of a tensor."""

    elements: int
    factor: int


def span(x: Tensor) -> Span | None:
    """Return how the elements of `x` lie in memory, None if there are gaps, or some overlap."""
    if x.is_contiguous():
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


class _Function(NamedTuple):
    """What a compiled function was made for."""

    name: str  # "one" or "many"
    kind: int
    x: torch.dtype
    y: torch.dtype
    unit: int


class Kernel:
    """The compiled functions of one device. What is not compiled yet is being compiled.

    Attributes
    ----------
    problem : str or None
        Why there are none.
    """

    def __init__(self, device: torch.device, source: ModuleType) -> None:
        self.problem: str | None = None
        self._device = device
        self._source = source
        self._ready: dict[_Function, Launch] = {}
        self._asked: set[_Function] = set()
        self._chunks: dict[tuple[int, ...], Tensor] = {}
        properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        self._programs = _PROGRAMS * (properties.multi_processor_count if properties else 1)
        self._queue: SimpleQueue[_Function | None] = SimpleQueue()
        self._worker: threading.Thread | None = None

    @staticmethod
    def takes(x: Tensor) -> bool:
        """Whether `x` is a plain tensor, with memory, of a dtype that is read in float32."""
        return (
            x.dtype in _DTYPES
            and type(x) in _PLAIN
            and x.layout is torch.strided
            and x.data_ptr() != 0  # a shard that was freed has elements and no memory
            and not x.is_neg()
        )

    def squares(self, x: Tensor, row: int) -> bool:
        """Add the sum of squares of `x` to the row at address `row`.

        Like all that follow, returns False, having done nothing, where it cannot yet be done.
        """
        return self._one(self._source.SQUARES, x, x, 0, 0, row)

    def census(self, x: Tensor, center: float, radius: float, row: int) -> bool:
        """Add the sum of squares, the sum, the numbers of elements not 0, and of those far away."""
        return self._one(self._source.CENSUS, x, x, _bits(center), _bits(radius), row)

    def pair(self, x: Tensor, y: Tensor, row: int) -> bool:
        """Add the sums of squares of `x` and `y`, which lie alike, and that of their products."""
        return self._one(self._source.PAIR, x, y, 0, 0, row)

    def square_sums(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Return the sum of squares of each tensor, shape (n,), None where it cannot be done."""
        return self._many(self._source.SQUARES, tensors, tensors)

    def copies(self, tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor | None:
        """Copy `tensors` to `copies`, which lie alike; return the sum of squares of each."""
        return self._many(self._source.COPY, tensors, copies)

    def differences(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor | None:
        """Return the sum of squares of each difference; `others` lie as `tensors` do."""
        return self._many(self._source.DIFFERENCE, tensors, others)

    # --- launching ----------------------------------------------------------------------------

    def _one(self, kind: int, x: Tensor, y: Tensor, center: int, radius: int, row: int) -> bool:
        where = span(x)
        if y is x:
            if where is None:  # gaps: a copy has none
                x = y = x.contiguous()
                where = Span(x.numel(), 1)
        elif where is None or x.stride() != y.stride():
            x, y = x.contiguous(), y.contiguous()
            where = Span(x.numel(), 1)
        address, other = x.data_ptr(), y.data_ptr()
        unit = _unit(x, address, y, other)
        launch = self._function("one", kind, x.dtype, y.dtype, unit)
        if launch is None:
            return False
        n, factor = where
        tiles = -(-n // self._source.TILE)
        launch(
            min(tiles, self._programs),
            (address // unit, other // unit, n, factor, center, radius, row),
        )
        return True

    def _many(self, kind: int, x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor | None:
        """Read all pairs of tensors by one launch for each combination of dtypes."""
        groups: dict[tuple[torch.dtype, torch.dtype, int], list[Entry]] = {}
        out = torch.zeros(len(x), dtype=torch.float64, device=self._device)
        row = out.data_ptr()
        for i, (a, b) in enumerate(zip(x, y, strict=True)):
            if not a.numel():
                continue
            where = span(a)
            if where is None or not self.takes(a) or (a is not b and a.stride() != b.stride()):
                return None
            address, other = a.data_ptr(), b.data_ptr()
            unit = _unit(a, address, b, other)
            entry = address // unit, other // unit, *where, 0, 0, row + 8 * i
            groups.setdefault((a.dtype, b.dtype, unit), []).append(entry)
        launches = [self._function("many", kind, *group) for group in groups]
        if not all(launches):
            return None
        for launch, entries in zip(launches, groups.values(), strict=True):
            self.launch_many(launch, entries)  # type: ignore[arg-type]
        return out

    def launch_many(self, launch: Launch, entries: Sequence[Entry]) -> None:
        """Read a table of entries, by as many programs as they have chunks."""
        sizes = tuple([entry[2] for entry in entries])
        chunks = self._chunks.get(sizes)
        if chunks is None:
            if len(self._chunks) > 64:
                self._chunks.clear()
            chunks = self._chunks[sizes] = self._to_device(_chunks(sizes, self._source.CHUNK))
        table = self._to_device(entries)
        launch(len(chunks), (table.data_ptr(), chunks.data_ptr()))

    def _to_device(self, numbers: Sequence[tuple[int, ...]]) -> Tensor:
        if self._device.type == "cpu":
            return torch.tensor(numbers, dtype=torch.int64)
        pinned = torch.tensor(numbers, dtype=torch.int64, pin_memory=True)
        return pinned.to(self._device, non_blocking=True)

    # --- compiling ----------------------------------------------------------------------------

    def prepare(self, dtypes: Sequence[torch.dtype]) -> None:
        """Compile in the background what tensors of these dtypes will ask for."""
        source = self._source
        for dtype in dtypes:
            if dtype in _DTYPES:
                for kind in (source.SQUARES, source.CENSUS, source.PAIR):
                    self._function("one", kind, dtype, dtype, _UNIT)
                for kind in (source.SQUARES, source.COPY, source.DIFFERENCE):
                    copy = torch.float32 if kind != source.SQUARES else dtype
                    self._function("many", kind, dtype, copy, _UNIT)

    def _function(self, *made_for: Any) -> Launch | None:
        found = self._ready.get(made_for)  # type: ignore[call-overload]
        if found is None and made_for not in self._asked and self.problem is None:
            function = _Function(*made_for)
            self._asked.add(function)
            self._queue.put(function)
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(
                    target=self._compile_all, name="gradscope-compile", daemon=True
                )
                self._worker.start()
        return found

    def _compile_all(self) -> None:
        """Compile what is asked for; on a thread of its own."""
        while True:
            try:
                function = self._queue.get(timeout=_PATIENCE)
            except Empty:
                return
            try:
                launch = self._compile(function)
            except Exception as error:  # whatever compiler, driver or cache folder come up with
                reason = (str(error).strip() or "no reason given").splitlines()[0]
                self.problem = f"{type(error).__name__}: {reason}"
                self._ready.clear()
                return
            self._ready[function] = launch

    def _compile(self, made_for: _Function) -> Launch:
        source, function = self._source, getattr(self._source, made_for.name)
        x, y = (_triton_dtype(dtype) for dtype in (made_for.x, made_for.y))
        constants: tuple[Any, ...] = (made_for.kind, x, y, made_for.unit, source.TILE)
        count = 7
        if made_for.name == "many":
            count = 2
            constants += (source.CHUNK, source.FIELDS, made_for.x.itemsize, made_for.y.itemsize)
        if self._device.type == "cpu":  # Triton's interpreter
            return lambda programs, arguments: function[(programs,)](*arguments, *constants)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream()):
            compiled = function.warmup(*[_LONG] * count, *constants, grid=(1,), num_warps=_WARPS)
            launch = _direct(compiled, constants, self._device)
            self._try(made_for, launch)
        return launch

    def _try(self, made_for: _Function, launch: Launch) -> None:
        """Read numbers that are known; on an accelerator this loads the function, too."""
        x = torch.full((3,), 2.0, dtype=made_for.x, device=self._device)
        y = torch.full((3,), 1.0, dtype=made_for.y, device=self._device)
        row = torch.zeros(4, dtype=torch.float64, device=self._device)
        entry = x.data_ptr() // made_for.unit, y.data_ptr() // made_for.unit, 3, 1, 0, 0
        if made_for.name == "one":
            launch(1, (*entry, row.data_ptr()))
        else:
            self.launch_many(launch, [(*entry, row.data_ptr())])
        expected = 3.0 if made_for.kind == self._source.DIFFERENCE else 12.0
        if (found := self._to_host(row)) != expected:
            raise ArithmeticError(f"{made_for.name}: read {found} for {expected}")

    def _stream(self) -> Any:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @staticmethod
    def _to_host(row: Tensor) -> float:
        """Return the first number of `row`, by no call that a user may have forbidden."""
        host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
        host.copy_(row, non_blocking=True)
        arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        arrived.record()
        arrived.synchronize()
        return float(host[0])


def _direct(compiled: Any, constants: tuple[Any, ...], device: torch.device) -> Launch:
    """Return what launches a compiled function without Triton's look at every argument (5 for 20 us)."""
    run, handle, packed = compiled.run, compiled.function, compiled.packed_metadata
    index = device.index

    def launch(programs: int, arguments: tuple[int, ...]) -> None:
        stream = torch_internals.raw_stream(index)
        run(programs, 1, 1, stream, handle, packed, None, None, None, *arguments, *constants)

    return launch


def _unit(x: Tensor, address: int, y: Tensor, other: int) -> int:
    """Return the bytes that both addresses are multiples of, as far as that matters."""
    return _UNIT if not (address | other) % _UNIT else min(x.element_size(), y.element_size())


def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language

    return getattr(triton.language, _DTYPES[dtype])


def _chunks(sizes: Sequence[int], chunk: int) -> list[tuple[int, int]]:
    """Return (number of an entry, number of a chunk of it) for all chunks."""
    return [(i, j) for i, n in enumerate(sizes) for j in range(-(-n // chunk))]


@lru_cache(256)
def _bits(value: float) -> int:
    bits: int = struct.unpack("i", struct.pack("f", value))[0]
    return bits


by_interpreter = False
"""Whether tensors on the CPU are read by Triton's interpreter, for which TRITON_INTERPRET=1 must be
set before Triton is imported: this is for tests."""


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


_made: dict[torch.device, Kernel] = {}
_missing: dict[torch.device, str] = {}


def problems() -> list[str]:
    """Return a sentence for each device that has no kernel though it could have one."""
    found = _missing | {d: k.problem for d, k in list(_made.items()) if k.problem is not None}
    return [
        f"tensors on {device} are read by torch, which costs more time, since Triton cannot be"
        f" used: {reason}"
        for device, reason in found.items()
    ]


def prepare(tensors: Iterable[Tensor]) -> None:
    """Compile in the background what the devices and dtypes of `tensors` will ask for."""
    found: dict[Kernel, set[torch.dtype]] = {}
    for x in tensors:
        if (fast := kernel_of(x)) is not None:
            found.setdefault(fast, set()).add(x.dtype)
    for fast, dtypes in found.items():
        fast.prepare(sorted(dtypes, key=str))


def kernel_of(x: Tensor) -> Kernel | None:
    """Return the kernel of the device of `x`, None for a tensor on the CPU."""
    return None if x.is_cpu and not by_interpreter else kernel(x.device)


def stream_of(device: torch.device) -> tuple[int, int]:
    """Return what tells the current stream of a device from all others of this process."""
    if device.type != "cuda":
        return -1, 0
    return device.index, torch_internals.raw_stream(device.index)
