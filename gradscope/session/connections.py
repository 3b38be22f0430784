"""Connections between processes, for the threads of ours alone: nothing of the training is in them.

Each is one to the process above, and one each to the few below: what a process holds open does not
grow with their number.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

from gradscope.session.meeting import SILENCE_SECONDS, Meeting

BELOW = 4
"""How many processes send to one."""


def above(rank: int) -> int:
    """Return the process that `rank` sends to."""
    return (rank - 1) // BELOW


def below(rank: int, size: int) -> range:
    """Return the processes that send to `rank`."""
    first = BELOW * rank + 1
    return range(min(first, size), min(first + BELOW, size))


class Connections(Protocol):
    """How a process reaches the one above and those below; waits `seconds` at most."""

    def send(self, data: bytes, seconds: float) -> None:
        """Send to the process above; RuntimeError if it takes nothing."""

    def receive(self, rank: int, seconds: float) -> bytes:
        """Return the next message of a process below; RuntimeError if none comes."""

    def end(self) -> None:
        """Let go of the connections."""


class GlooConnections:
    """Connections by gloo, over the store of a meeting; everybody who met has to make them.

    Gloo, whatever the training uses: what is sent is on the host by then, and little; collectives
    of a back end that run in one order on all processes could not come from another thread.
    """

    def __init__(self, meeting: Meeting) -> None:
        self._rank = meeting.rank
        senders = below(meeting.rank, meeting.size)
        # first the one above: nobody waits for those who wait for it
        self._up: Any = _group(meeting, above(meeting.rank)) if meeting.rank else None
        self._down: Any = _group(meeting, meeting.rank) if senders else None

    def send(self, data: bytes, seconds: float) -> None:
        """Send to the process above."""
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        patience = timedelta(seconds=seconds)
        self._up.send([torch.tensor([content.numel()])], 0, 0).wait(patience)
        self._up.send([content], 0, 1).wait(patience)

    def receive(self, rank: int, seconds: float) -> bytes:
        """Return the next message of a process below."""
        place = _place(rank, self._rank)
        size = torch.zeros(1, dtype=torch.int64)
        patience = timedelta(seconds=seconds)
        self._down.recv([size], place, 0).wait(patience)
        content = torch.empty(int(size.item()), dtype=torch.uint8)
        self._down.recv([content], place, 1).wait(patience)
        return content.numpy().tobytes()

    def end(self) -> None:
        """Let go of the connections."""
        self._up = self._down = None


def _group(meeting: Meeting, head: int) -> Any:
    """Return the group of a process and those below it."""
    store = dist.PrefixStore(f"data/{head}", meeting.store)  # type: ignore[attr-defined]
    patience = timedelta(seconds=SILENCE_SECONDS)
    size = 1 + len(below(head, meeting.size))
    return dist.ProcessGroupGloo(store, _place(meeting.rank, head), size, timeout=patience)


def _place(rank: int, head: int) -> int:
    """Return the number of `rank` in the group of `head`."""
    return 0 if rank == head else 1 + rank - below(head, rank + 1)[0]
