"""Compiles Triton kernels in the background, and tries each before it is trusted.

Each is compiled for a device and a dtype, when that is first asked for: no step of a training waits
for it. Triton keeps what it has compiled in the user's cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch

from gradscope.autograd import torch_internals

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""What is read, as Triton calls it."""

_WARPS = 4
_LONG = 2**40  # sure to be taken for an integer of 64 bits

Launch = Callable[[int, tuple[int, ...]], None]
"""Called with a number of programs and the arguments that the function was not compiled for."""


class Function(NamedTuple):
    """What a function of triton_kernels.py is compiled for."""

    name: str  # "one" or "many"
    kind: int
    x: torch.dtype
    y: torch.dtype
    unit: int


class Compiler:
    """Compiles the functions of one device.

    Parameters
    ----------
    device : torch.device
    source : module
        triton_kernels.py
    try_out : called with what was compiled
        Raises if it does not read what it should.

    Attributes
    ----------
    problem : str or None
        What could not be compiled, as bfloat16 for a card without it, and why.
    """

    def __init__(
        self,
        device: torch.device,
        source: ModuleType,
        try_out: Callable[[Function, Launch], None],
    ) -> None:
        self.problem: str | None = None
        self._device = device
        self._source = source
        self._try_out = try_out
        self._ready: dict[Function, Launch] = {}
        self._asked: set[Function] = set()
        self._failed: set[Function] = set()
        self._queue: list[Function] = []
        self._lock = threading.Lock()
        self._is_working = False

    def get(self, *made_for: Any) -> Launch | None:
        """Return what launches a `Function`; None if it has yet to be compiled, or cannot be."""
        found: Launch | None = self._ready.get(made_for)  # type: ignore[call-overload]
        if found is None and made_for not in self._asked:
            function = Function(*made_for)
            with self._lock:
                self._asked.add(function)
                self._queue.append(function)
                if not self._is_working:
                    self._is_working = True
                    name = "gradscope-compile"
                    threading.Thread(target=self._compile_all, name=name, daemon=True).start()
        return found

    def wait(self, seconds: float) -> bool:
        """Wait until all is compiled that was asked for; return whether it is. Not for training."""
        deadline = time.monotonic() + seconds
        while self._asked - self._failed - self._ready.keys():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return not self._failed

    def _compile_all(self) -> None:
        """Compile what is asked for; on a thread of its own."""
        while True:
            with self._lock:
                if not self._queue:
                    self._is_working = False
                    return
                function = self._queue.pop(0)
            try:
                self._ready[function] = self._compile(function)
            except Exception as error:  # whatever compiler, driver or cache folder come up with
                self._failed.add(function)
                reason = (str(error).strip() or "no reason given").splitlines()[0]
                dtype = DTYPES[function.x]
                self.problem = f"{reason} ({type(error).__name__}, for tensors of {dtype})"

    def _compile(self, made_for: Function) -> Launch:
        source, function = self._source, getattr(self._source, made_for.name)
        x, y = (_triton_dtype(dtype) for dtype in (made_for.x, made_for.y))
        constants: tuple[Any, ...] = (made_for.kind, x, y, made_for.unit, source.TILE)
        count = source.FIELDS
        if made_for.name == "many":
            count = 2
            constants += (source.CHUNK, source.FIELDS, made_for.x.itemsize, made_for.y.itemsize)
        if self._device.type == "cpu":  # Triton's interpreter
            return lambda programs, arguments: function[(programs,)](*arguments, *constants)
        with torch.cuda.device(self._device), torch.cuda.stream(_stream(self._device)):
            compiled = function.warmup(*[_LONG] * count, *constants, grid=(1,), num_warps=_WARPS)
            launch = _direct(compiled, constants, self._device)
            self._try_out(made_for, launch)  # which loads the function, too
        return launch


def _direct(compiled: Any, constants: tuple[Any, ...], device: torch.device) -> Launch:
    """Return what launches a compiled function, without Triton's look at every argument.

    Nine microseconds instead of twenty.
    """
    run, handle, packed = compiled.run, compiled.function, compiled.packed_metadata
    index = device.index

    def launch(programs: int, arguments: tuple[int, ...]) -> None:
        if torch.cuda.current_device() != index:
            with torch.cuda.device(index):
                return launch(programs, arguments)
        stream = torch_internals.raw_stream(index)
        run(programs, 1, 1, stream, handle, packed, None, None, None, *arguments, *constants)

    return launch


def _triton_dtype(dtype: torch.dtype) -> Any:
    from triton import language

    return getattr(language, DTYPES[dtype])


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
