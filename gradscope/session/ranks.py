"""Several processes that train one model: their readings, put together by the first of them.

Each process sends its rows to rank 0 whenever it flushes, over connections of its own and from its
drain thread: nothing is exchanged in a step, and the training's own collectives are not disturbed,
nor do they matter: a program may destroy its process group before it closes its scope.

Nobody waits for another process without a bound of seconds. A process that is silent for longer
is taken to be gone; of steps that not every process has sent, only what all hold alike is kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from gradscope import schema
from gradscope.arithmetic import share_of_process
from gradscope.autograd.torch_internals import default_store
from gradscope.capture import layers
from gradscope.capture.rows import Key, Keys, Layout, OfParameter, OfStep
from gradscope.session.derived import HostSegment
from gradscope.session.messages import Message
from gradscope.session.tape import HostRow

MEETING_SECONDS = 15
"""For which `watch()` waits for the other processes to call it, too."""

SILENCE_SECONDS = 20
"""For which a process may be silent, that sends every second, until it is taken to be gone."""

_meetings: Counter[str] = Counter()  # of models of one signature, so far


def signature(model: object) -> str:
    """Return what tells models apart, the same on every process that trains one."""
    names = [type(model).__name__]
    if isinstance(model, nn.Module):
        names += [layers.unwrapped_name(name) for name, _ in model.named_parameters()]
    text = "\n".join(names)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


class Ranks:
    """The processes that train one model; made on all of them.

    Parameters
    ----------
    model : what is watched
        Processes meet whose models have the same class and the same names of parameters.

    Attributes
    ----------
    rank, size : int
    absent : list of int
        Processes that did not come to the meeting: if there are any, this one goes on alone.
    gone : list of int
        Those that have fallen silent since they came.
    partial : list of int
        Steps that not every process has sent.
    """

    def __init__(self, model: object) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.absent: list[int] = []
        self.gone: list[int] = []
        self.partial: list[int] = []
        name = signature(model)
        _meetings[name] += 1
        self._store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"gradscope/{name}/{_meetings[name]}", default_store()
        )
        self._group: Any = None
        self._open = set(range(self.size))
        self._waiting: dict[int, dict[int, HostRow]] = defaultdict(dict)
        self._shares: dict[tuple[bool, bool, Layout], list[tuple[Layout, list[int], float]]] = {}

    # --- before a run is begun ------------------------------------------------------------------

    def refuse(self, problem: str) -> None:
        """Tell the others why this process does not watch, and wait for nobody."""
        self._store.set(f"problem/{self.rank}", problem)

    def agree(self, problem: str) -> str:
        """Return the first problem that a process has, "" if none has any.

        Waits for the others to come, `MEETING_SECONDS` at most; see `absent`.
        """
        self._store.set(f"problem/{self.rank}", problem)
        if problem:
            return problem
        keys = [f"problem/{rank}" for rank in range(self.size)]
        try:
            self._store.wait(keys, timedelta(seconds=MEETING_SECONDS))
        except RuntimeError:
            self._store.set("alone", "yes")
        if self._store.check(["alone"]):
            self.absent = [r for r, key in enumerate(keys) if not self._store.check([key])]
            self.absent = self.absent or [r for r in range(self.size) if r != self.rank]
            keys = [key for key in keys if self._store.check([key])]
        problems = [self._store.get(key).decode() for key in keys]
        return next((p for p in problems if p), "")

    def agree_again(self, problem: str) -> str:
        """Return the first problem that a process has; all of them have come."""
        self._store.set(f"second problem/{self.rank}", problem)
        keys = [f"second problem/{rank}" for rank in range(self.size)]
        self._store.wait(keys, timedelta(seconds=SILENCE_SECONDS))
        return next((p for p in (self._store.get(key).decode() for key in keys) if p), "")

    def broadcast(self, value: str) -> str:
        """Return rank 0's `value`; waits for it, `SILENCE_SECONDS` at most."""
        number = self._store.add(f"told by {self.rank}", 1)
        if self.rank == 0:
            self._store.set(f"value/{number}", value)
            return value
        self._store.wait([f"value/{number}"], timedelta(seconds=SILENCE_SECONDS))
        return str(self._store.get(f"value/{number}").decode())

    def connect(self) -> None:
        """Open connections to all of them; everybody has to."""
        store = dist.PrefixStore("data", self._store)  # type: ignore[attr-defined]
        patience = timedelta(seconds=SILENCE_SECONDS)
        self._group = dist.ProcessGroupGloo(store, self.rank, self.size, timeout=patience)

    # --- while it is written --------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether nothing more is awaited from any process."""
        return not self._open

    def exchange(self, rows: list[HostRow], closing: bool, seconds: float) -> list[HostRow]:
        """Send `rows` to rank 0; there, return the rows that all processes have sent by now.

        Waits for the next message of every process, `seconds` at most for each, so it must not run
        on the training thread.

        Raises
        ------
        RuntimeError
            If rank 0 does not take them.
        """
        if self.rank != 0:
            self._send(Message(rows, closing), seconds)
            if closing:
                self._open.clear()
            return []
        messages = {0: Message(rows, closing)}
        for rank in sorted(self._open - {0}):
            try:
                messages[rank] = self._receive(rank, seconds)
            except RuntimeError:
                self._open.discard(rank)
                self.gone.append(rank)
        for rank, message in messages.items():
            for row in message.rows:
                self._waiting[row.step][rank] = row
            if message.closing:
                self._open.discard(rank)
        return self._take_ready()

    def give_up(self) -> list[HostRow]:
        """Return what is left of steps that some process has not sent."""
        self._open.clear()
        self._group = None
        return self._take_ready()

    def _take_ready(self) -> list[HostRow]:
        """Take out the steps of which nothing is awaited any more, each as one row."""
        return [self._merge(step) for step in sorted(self._waiting) if self._is_ready(step)]

    def _is_ready(self, step: int) -> bool:
        """Whether no process that is still there has its part of `step` left to send."""
        found = self._waiting[step]
        return 0 in found and not self._open - found.keys()

    def _send(self, message: Message, seconds: float) -> None:
        data = torch.frombuffer(bytearray(message.packed()), dtype=torch.uint8)
        patience = timedelta(seconds=seconds)
        self._group.send([torch.tensor([data.numel()])], 0, 0).wait(patience)
        self._group.send([data], 0, 1).wait(patience)

    def _receive(self, rank: int, seconds: float) -> Message:
        size = torch.zeros(1, dtype=torch.int64)
        patience = timedelta(seconds=seconds)
        self._group.recv([size], rank, 0).wait(patience)
        data = torch.empty(int(size.item()), dtype=torch.uint8)
        self._group.recv([data], rank, 1).wait(patience)
        return Message.unpacked(data.numpy().tobytes())

    # --- several processes' readings as one -------------------------------------------------------

    def _merge(self, step: int) -> HostRow:
        """Put the readings of one step together; what belongs to the step itself is rank 0's."""
        rows = self._waiting.pop(step)
        whole = len(rows) == self.size
        if not whole:
            self.partial.append(step)
            rows = {0: rows[0]}
        segments = [
            segment
            for rank, row in sorted(rows.items())
            for layout, values in row.segments
            for segment in self._shared(layout, values, rank == 0, whole)
        ]
        return rows[0]._replace(segments=segments)

    def _shared(
        self, layout: Layout, values: NDArray[np.floating], own: bool, whole: bool
    ) -> Iterator[HostSegment]:
        """Yield what one process's values add to those of all, keys of one share at a time."""
        known = own, whole, layout
        if known not in self._shares:
            if len(self._shares) > 64:  # layouts repeat, but for a model that changes all the time
                self._shares.clear()
            self._shares[known] = list(self._by_share(layout, own, whole))
        for keys, places, share in self._shares[known]:
            yield keys, values[places] * share

    def _by_share(
        self, layout: Layout, own: bool, whole: bool
    ) -> Iterator[tuple[Layout, list[int], float]]:
        """Yield the keys of each share, with their places in `layout` and the share."""
        shares: dict[float, list[tuple[int, Keys]]] = defaultdict(list)
        for place, keys in enumerate(layout):
            by_share: dict[float, list[Key]] = defaultdict(list)
            for key in keys:
                if own or not isinstance(key, OfStep):
                    share = self._share(key, whole)
                    if share is not None:
                        by_share[share].append(key)
            for share, some in by_share.items():
                shares[share].append((place, tuple(some)))
        for share, entries in shares.items():
            yield tuple(keys for _, keys in entries), [place for place, _ in entries], share

    def _share(self, key: Key, whole: bool) -> float | None:
        """Return what a process's reading is multiplied by before it is combined with others'.

        None where it says nothing without the others'; what all of them hold alike does.
        """
        if isinstance(key, OfStep):
            return 1.0
        copies = key.copies if isinstance(key, OfParameter) else 1
        if whole:
            return float(share_of_process(_COLUMNS[key.metric], self.size, copies))
        return 1.0 if copies == self.size else None


_COLUMNS = schema.by_name(schema.LAYER_METRICS, schema.SHORTCUT_METRICS, schema.FORWARD_NORMS)
