"""Several processes that train one model: their readings, put together by the first of them.

Each process sends its rows to rank 0 whenever it flushes, over a gloo group of its own and from its
drain thread: nothing is exchanged in a step, and the training's own collectives are not disturbed.
The gradient is taken to be averaged over the processes, as DistributedDataParallel and fully_shard
do, each of which has its share of the batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from gradscope import schema
from gradscope.arithmetic import share_of_process
from gradscope.capture.rows import Key, Keys, Layout, OfParameter, OfStep
from gradscope.session.tape import HostRow, HostSegment


class _Message(NamedTuple):
    rows: list[HostRow]
    closing: bool


class Ranks:
    """The processes that train one model; made on all of them at the same time."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._group: Any = dist.new_group(backend="gloo")
        self._open = set(range(self.size))
        self._waiting: dict[int, dict[int, HostRow]] = defaultdict(dict)

    def agree(self, problem: str) -> str:
        """Return the first problem that a process has, "" if none has any."""
        problems: list[Any] = [None] * self.size
        dist.all_gather_object(problems, problem, group=self._group)
        return next((p for p in problems if p), "")

    def broadcast(self, value: str) -> str:
        """Return rank 0's `value`."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    @property
    def done(self) -> bool:
        """Whether every process has said that it is closing."""
        return not self._open

    def exchange(self, rows: list[HostRow], closing: bool) -> list[HostRow]:
        """Send `rows` to rank 0; there, return the rows that all processes have sent by now.

        Waits for the next message of every process, so it must not run on the training thread.
        """
        if self.rank != 0:
            dist.send_object_list([_Message(rows, closing)], dst=0, group=self._group)
            if closing:
                self._open.clear()
            return []
        messages = {0: _Message(rows, closing)}
        for rank in self._open - {0}:
            received: list[Any] = [None]
            dist.recv_object_list(received, src=rank, group=self._group)
            messages[rank] = received[0]
        for rank, message in messages.items():
            for row in message.rows:
                self._waiting[row.step][rank] = row
            if message.closing:
                self._open.discard(rank)
        complete = [
            step
            for step, found in sorted(self._waiting.items())
            if 0 in found and not self._open - found.keys()
        ]
        return [self._merge(self._waiting.pop(step)) for step in complete]

    def _merge(self, rows: dict[int, HostRow]) -> HostRow:
        """Put the readings of one step together; what belongs to the step itself is rank 0's."""
        segments = [
            segment
            for rank, row in sorted(rows.items())
            for layout, values in row.segments
            for segment in self._shared(layout, values, own=rank == 0)
        ]
        return rows[0]._replace(segments=segments)

    def _shared(
        self, layout: Layout, values: NDArray[np.floating], own: bool
    ) -> Iterator[HostSegment]:
        """Yield what one process's values add to those of all, keys of one share at a time."""
        shares: dict[float, list[tuple[int, Keys]]] = defaultdict(list)
        for place, keys in enumerate(layout):
            by_share: dict[float, list[Key]] = defaultdict(list)
            for key in keys:
                if own or not isinstance(key, OfStep):
                    by_share[self._share(key)].append(key)
            for share, some in by_share.items():
                shares[share].append((place, tuple(some)))
        for share, entries in shares.items():
            places = [place for place, _ in entries]
            yield tuple(keys for _, keys in entries), values[places] * share

    def _share(self, key: Key) -> float:
        """Return what a process's reading is multiplied by before it is combined with others'."""
        if isinstance(key, OfStep):
            return 1.0
        copies = key.copies if isinstance(key, OfParameter) else 1
        return float(share_of_process(_COLUMNS[key.metric], self.size, copies))


_COLUMNS = schema.by_name(schema.LAYER_METRICS, schema.SHORTCUT_METRICS, schema.FORWARD_NORMS)
