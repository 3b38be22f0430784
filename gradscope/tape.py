"""Rows of readings on the device, drained to the host without making the device wait.

The training thread collects `Readings`, which stay where they were made, and hands finished rows to
a `Tape`. Another thread fetches them: one copy a device and flush, on a stream of its own.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.measure import Reading

Key = tuple[Any, ...]
"""One thing that a value stands for: the metric, what was measured, details for its decoding."""

Layout = tuple[tuple[Key, ...], ...]
"""The keys of each value of a 1-D tensor, in order; a value may stand for several things."""

Segment = tuple[Layout, Tensor]
Decoded = tuple[Layout, NDArray[np.floating]]


@lru_cache(2**14)
def output_keys(layer: int, n: int) -> tuple[tuple[Key, ...], ...]:
    """Return the keys of norm, mean and deviation of an output of n elements."""
    return tuple((("layer", f"activation_{name}", layer, n),) for name in ("norm", "mean", "std"))


@lru_cache(2**14)
def activation_keys(layer: int, n: int) -> tuple[tuple[Key, ...], ...]:
    """Return the keys of `ActivationReadings` of an output of n elements."""
    names = ("derivative_mean", "zero_fraction", "saturated_fraction")
    return tuple((("layer", name, layer, n),) for name in names)


class Readings:
    """Readings as they are taken, each with the keys of all that it stands for.

    Keys are best the same objects at every step: then the layouts of two steps compare in no time.
    """

    def __init__(self) -> None:
        self._numbers: list[float] = []
        self._numbers_keys: list[tuple[Key, ...]] = []
        self._tensors: list[Tensor] = []
        self._tensors_keys: list[tuple[Key, ...]] = []

    def add(self, value: Reading, keys: tuple[Key, ...]) -> None:
        """Take a reading; a tensor must not be changed any more."""
        if isinstance(value, float):
            self._numbers.append(value)
            self._numbers_keys.append(keys)
        else:
            self._tensors.append(value)
            self._tensors_keys.append(keys)

    def add_all(self, values: Sequence[Reading], keys: Sequence[tuple[Key, ...]]) -> None:
        """Take several readings, each with the keys in its place."""
        for value, key in zip(values, keys, strict=True):
            self.add(value, key)

    def __len__(self) -> int:
        return len(self._numbers) + len(self._tensors)

    def segments(self) -> list[Segment]:
        """Return everything, put together to one tensor a device."""
        result: list[Segment] = []
        if self._numbers:
            together = torch.from_numpy(np.array(self._numbers))
            result.append((tuple(self._numbers_keys), together))
        devices = [value.device for value in self._tensors]
        for device in dict.fromkeys(devices):
            mine = [i for i, other in enumerate(devices) if other == device]
            together = torch.stack([self._tensors[i].to(_dtype(device)) for i in mine])
            result.append((tuple(self._tensors_keys[i] for i in mine), together))
        return result


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass
class Row:
    """The readings of one recorded step."""

    step: int
    time: float = math.nan
    skipped: bool = False
    wide: bool = False  # keep it in float64, in which the model computes
    segments: list[Segment] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    written: dict[torch.device, torch.cuda.Event] = field(default_factory=dict)


@dataclass
class HostRow:
    """A row whose values have arrived on the host."""

    step: int
    time: float
    skipped: bool
    wide: bool
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
                row.wide,
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
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream = self._streams[device]
            with torch.cuda.stream(stream):
                stream.wait_event(events[-1])
                flat = torch.cat(tensors)
                host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
                host.copy_(flat, non_blocking=True)
                arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                arrived.record(stream)
            arrived.synchronize()
        lengths = np.cumsum([t.numel() for t in tensors])[:-1]
        return np.split(host.numpy(), lengths)
