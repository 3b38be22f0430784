"""Closed rows on their way from their devices to the host, without making a device wait.

The training thread puts rows here; another thread fetches them: one copy a device and flush, on a
stream of its own. The two share no lock: a signal may strike the training thread while it held one,
and its handler waits for the other thread.
"""

from __future__ import annotations

import math
import queue
import time
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.capture.reading.rows import Row
from gradscope.session.derived import Deriver, HostSegment, HostSums

_LOOK_AGAIN = 0.001
"""Seconds between looks at a full tape."""


class HostRow(NamedTuple):
    """A `Row` whose values have arrived on the host."""

    step: int
    time: float
    skipped: bool
    wide: bool
    segments: list[HostSegment]
    scalars: dict[str, float]
    is_doubtful: bool = False


class _Waiting(NamedTuple):
    row: Row
    written: dict[torch.device, torch.cuda.Event]
    """For each device an event that comes after its values."""


class Tape:
    """Closed rows on their way to the host.

    Parameters
    ----------
    limit : int
        Values that may wait. When they are more, `put` waits for the next fetch, so that memory
        stays bounded and nothing is dropped.
    """

    def __init__(self, limit: int = 2**24) -> None:
        self._limit = limit
        self._waiting: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        self._put = 0  # values, so far; counted by the training thread
        self._fetched = 0  # by the other one
        self._last = -1  # step of the last row of these
        self._closed = False
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._deriver = Deriver()

    def __len__(self) -> int:
        return self._waiting.qsize()

    def put(self, row: Row) -> None:
        """Take a closed row; called by the training thread.

        Once more where that was interrupted: the row may have been taken, or not.
        """
        values = _values(row)
        written = {
            device: torch.cuda.current_stream(device).record_event()
            for device in {tensor.device for tensor in values if not tensor.is_cpu}
            if device.type == "cuda"
        }
        while self._put - self._fetched > self._limit and not self._closed:
            time.sleep(_LOOK_AGAIN)
        self._put += sum([tensor.numel() for tensor in values])
        self._waiting.put(_Waiting(row, written))

    def close(self) -> None:
        """Make no `put` wait any more: nobody will fetch regularly from now on."""
        self._closed = True

    def fetch(self) -> list[HostRow]:
        """Return the rows closed since the last call, their values on the host.

        Waits for the device, so it must never run on the training thread while training goes on.
        """
        waiting = [self._waiting.get() for _ in range(self._waiting.qsize())]
        self._fetched += sum(values.numel() for row, _ in waiting for values in _values(row))
        waiting = [one for one in waiting if self._is_new(one.row)]
        by_device: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for row, _ in waiting:
            for values in _values(row):
                by_device[values.device, values.dtype].append(values)
        arrays = {}
        for (device, _), tensors in by_device.items():
            events = [written[device] for _, written in waiting if device in written]
            arrays[device, tensors[0].dtype] = iter(self._to_host(device, tensors, events))
        rows, derived = [], []
        for row, _ in waiting:
            segments = [(layout, next(arrays[v.device, v.dtype])) for layout, v in row.segments]
            sums = [
                HostSums(items, trials, next(arrays[v.device, v.dtype]).reshape(v.shape))
                for items, trials, v in row.sums
            ]
            derived.append(sums)
            kept = row.step, row.time, row.skipped, row.wide, segments, row.scalars, row.is_doubtful
            rows.append(HostRow(*kept))
        for host_row, segments in zip(rows, self._deriver.derive(derived), strict=True):
            host_row.segments.extend(segments)
        return rows

    def _is_new(self, row: Row) -> bool:
        known, self._last = self._last, row.step
        return row.step != known

    def _to_host(
        self, device: torch.device, tensors: list[Tensor], events: list[torch.cuda.Event]
    ) -> list[NDArray[np.floating]]:
        if device.type == "meta":
            return [np.full(t.numel(), math.nan) for t in tensors]
        if device.type == "cpu":
            return [t.numpy() for t in tensors]
        if device.type != "cuda":
            host = torch.cat([t.reshape(-1) for t in tensors]).cpu()
        else:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream = self._streams[device]
            with torch.cuda.stream(stream):
                stream.wait_event(events[-1])
                flat = torch.cat([t.reshape(-1) for t in tensors])
                host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
                host.copy_(flat, non_blocking=True)
                arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                arrived.record(stream)
            arrived.synchronize()
        lengths = np.cumsum([t.numel() for t in tensors])[:-1]
        return np.split(host.numpy(), lengths)


def _values(row: Row) -> list[Tensor]:
    """Return all that is still on a device."""
    return [*(values for _, values in row.segments), *(values for *_, values in row.sums)]
