"""Rows of readings on the device, drained to the host without making the device wait.

The training thread takes 0-d slots from a `Strip`, lets kernels write to them, and hands finished
rows to a `Tape`. Another thread fetches them: one copy a device and flush, on a stream of its own.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.measure import reading_dtype

Key = tuple[Hashable, ...]
"""One thing that a value stands for: the metric, what was measured, details for its decoding."""

Layout = tuple[tuple[Key, ...], ...]
"""The keys of each value of a 1-D tensor, in order; a value may stand for several things."""

Segment = tuple[Layout, Tensor]
Decoded = tuple[Layout, NDArray[np.floating]]


class Strip:
    """Device memory that readings are written into, slot by slot.

    Parameters
    ----------
    device, dtype
        Of every slot.
    size : int
        Slots to begin with; as many more are added whenever they are used up.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, size: int) -> None:
        self.device = device
        self.dtype = dtype
        self.size = max(size, 16)
        self._segments: list[tuple[list[tuple[Key, ...]], Tensor]] = []
        self._free: list[Tensor] = []

    def slot(self, *keys: Key) -> Tensor:
        """Return a 0-d tensor for the reading that all of `keys` stand for."""
        if not self._free:
            values = torch.full((self.size,), math.nan, dtype=self.dtype, device=self.device)
            self._free = list(values.unbind())[::-1]
            self._segments.append(([], values))
        self._segments[-1][0].append(keys)
        return self._free.pop()

    def segments(self) -> list[Segment]:
        """Return what was written, as (layout, values)."""
        return [(tuple(keys), values[: len(keys)]) for keys, values in self._segments]

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._segments)


class Strips:
    """One strip for each device and precision that the readings of a model need."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._strips: dict[tuple[torch.device, torch.dtype], Strip] = {}

    def slot(self, x: Tensor, *keys: Key) -> Tensor:
        """Return a 0-d tensor for a reading of `x`."""
        return self._at(x.device, reading_dtype(x.device, x.dtype)).slot(*keys)

    def slot_like(self, reading: Tensor, *keys: Key) -> Tensor:
        """Return a 0-d tensor of the device and dtype of `reading`."""
        return self._at(reading.device, reading.dtype).slot(*keys)

    def _at(self, device: torch.device, dtype: torch.dtype) -> Strip:
        strip = self._strips.get((device, dtype))
        if strip is None:
            strip = self._strips[device, dtype] = Strip(device, dtype, self._size)
        return strip

    def segments(self) -> list[Segment]:
        """Return what was written to all of them."""
        return [segment for strip in self._strips.values() for segment in strip.segments()]

    def __len__(self) -> int:
        return sum(map(len, self._strips.values()))


@dataclass
class Row:
    """The readings of one recorded step."""

    step: int
    time: float = math.nan
    skipped: bool = False
    segments: list[Segment] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    written: dict[torch.device, torch.cuda.Event] = field(default_factory=dict)


@dataclass
class HostRow:
    """A row whose values have arrived on the host."""

    step: int
    time: float
    skipped: bool
    segments: list[Decoded]
    scalars: dict[str, float]


class Tape:
    """Closed rows on their way to the host.

    Parameters
    ----------
    limit : int
        Values that may wait. When they are more, `append` waits for the next fetch, so that memory
        stays bounded and nothing is dropped.
    """

    def __init__(self, limit: int = 2**24) -> None:
        self._limit = limit
        self._waiting: list[Row] = []
        self._values = 0
        self._changed = threading.Condition()
        self._closed = False
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, row: Row) -> None:
        """Hand over a closed row; called by the training thread."""
        for device in {values.device for _, values in row.segments}:
            if device.type == "cuda":
                row.written[device] = torch.cuda.current_stream(device).record_event()
        with self._changed:
            while self._values > self._limit and not self._closed:
                self._changed.wait()
            self._waiting.append(row)
            self._values += sum(values.numel() for _, values in row.segments)

    def close(self) -> None:
        """Make no `append` wait any more: nobody will fetch regularly from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fetch(self) -> list[HostRow]:
        """Return the rows closed since the last call, their values on the host.

        Waits for the device, so it must never run on the training thread while training goes on.
        """
        with self._changed:
            rows, self._waiting, self._values = self._waiting, [], 0
            self._changed.notify_all()
        by_device: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for row in rows:
            for _, values in row.segments:
                by_device[values.device, values.dtype].append(values)
        arrays = {}
        for (device, _), tensors in by_device.items():
            events = [row.written[device] for row in rows if device in row.written]
            arrays[device, tensors[0].dtype] = iter(self._to_host(device, tensors, events))
        return [
            HostRow(
                row.step,
                row.time,
                row.skipped,
                [(layout, next(arrays[v.device, v.dtype])) for layout, v in row.segments],
                row.scalars,
            )
            for row in rows
        ]

    def _to_host(
        self, device: torch.device, tensors: list[Tensor], events: list[torch.cuda.Event]
    ) -> list[NDArray[np.floating]]:
        if device.type == "meta":
            return [np.full(t.numel(), math.nan) for t in tensors]
        if device.type == "cpu":
            return [t.numpy() for t in tensors]
        if device.type != "cuda":
            host = torch.cat(tensors).cpu()
        else:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            stream = self._streams[device]
            with torch.cuda.stream(stream):
                stream.wait_event(events[-1])
                flat = torch.cat(tensors)
                host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
                host.copy_(flat, non_blocking=True)
                arrived = torch.cuda.Event(blocking=True)
                arrived.record(stream)
            arrived.synchronize()
        lengths = np.cumsum([t.numel() for t in tensors])[:-1]
        return np.split(host.numpy(), lengths)
