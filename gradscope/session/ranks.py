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
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gradscope.autograd.torch_internals import default_store
from gradscope.capture import layers
from gradscope.capture.catalogue import Catalogue
from gradscope.capture.distributed import unfollowed
from gradscope.session.combining import Combiner
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
    problem : str
        What is not known of how they share the model, "" if all is.
    combiner : Combiner
        Makes one row of the rows of all.
    """

    def __init__(self, model: object) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.absent: list[int] = []
        self.gone: list[int] = []
        kinds, self.problem = unfollowed(model) if isinstance(model, nn.Module) else ((), "")
        self.combiner = Combiner(self.size, kinds)
        name = signature(model)
        _meetings[name] += 1
        self._store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"gradscope/{name}/{_meetings[name]}", default_store()
        )
        self._group: Any = None
        self._open = set(range(self.size))
        self._waiting: dict[int, dict[int, HostRow]] = defaultdict(dict)
        self._latest = dict.fromkeys(range(self.size), -1)  # step that each has sent
        self._told = 0  # shortcuts that rank 0 was told of
        self._numbers: dict[int, list[int]] = defaultdict(list)  # of others' shortcuts, here

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

    def exchange(
        self, rows: list[HostRow], closing: bool, seconds: float, catalogue: Catalogue
    ) -> list[HostRow]:
        """Send `rows` to rank 0; there, return the rows that all processes have sent by now.

        Shortcuts are numbered by each process as it meets them, in its `catalogue`: those of others
        get rank 0's numbers, by their names.

        Waits for the next message of every process, `seconds` at most for each, so it must not run
        on the training thread.

        Raises
        ------
        RuntimeError
            If rank 0 does not take them.
        """
        if self.rank != 0:
            shortcuts = catalogue.shortcut_infos(self._told)
            self._send(Message(rows, closing, shortcuts), seconds)
            self._told += len(shortcuts)
            if closing:
                self._open.clear()
            return []
        messages = {0: Message(rows, closing, [])}
        for rank in sorted(self._open - {0}):
            try:
                messages[rank] = self._receive(rank, seconds)
            except RuntimeError:
                self._open.discard(rank)
                self.gone.append(rank)
        for rank, message in messages.items():
            self._numbers[rank] += catalogue.add_shortcuts(message.shortcuts)
            for row in message.renumbered(self._numbers[rank]) if rank else message.rows:
                self._waiting[row.step][rank] = row
                self._latest[rank] = row.step
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
        ready = [step for step in sorted(self._waiting) if self._is_ready(step)]
        return [self.combiner.combined(self._waiting.pop(step)) for step in ready]

    def _is_ready(self, step: int) -> bool:
        """Whether no process that is still there has its part of `step` left to send."""
        left = {rank for rank in self._open if self._latest[rank] < step}
        return 0 in self._waiting[step] and not left

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
