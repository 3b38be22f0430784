"""Several processes that train one model: their readings, added up on the way to the first.

Each has four others below it at most, adds what these send to its own, and sends that on: what a
process does in a flush does not grow with their number. Sums travel from thread to thread of ours,
over connections of their own: the training's collectives are not disturbed, as those of a back end
would be that may run one at a time and in one order, nor do they matter: a program may destroy its
process group before it closes its scope.

Nobody waits for another process without a bound of seconds. A process that is silent for longer
is taken to be gone; of steps that not every process has sent, only what all hold alike is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gradscope.capture.net.catalogue import Catalogue
from gradscope.session.columns import Decoded
from gradscope.session.combining import Combiner
from gradscope.session.connections import Connections, above, below
from gradscope.session.joint import Joint, described
from gradscope.session.messages import Message
from gradscope.session.partial_rows import Ints, PartialRow, Slots, partial_rows
from gradscope.session.shares import Shares


class Ranks:
    """The processes that train one model; made on all of them, once they have met.

    Parameters
    ----------
    rank, size : int
    connections : Connections
        To the process above and those below.
    shares : Shares
        Of this process's readings.
    joint : Joint
        Layers and shortcuts of all; on rank 0 with those of the run that is resumed.

    Attributes
    ----------
    above : int
        The process that this one sends to.
    gone : list of int
        Those below this process that have fallen silent.
    foreign : list of int
        Steps that rank 0 did not make, the first of each message: they are left out.
    combiner : Combiner
    """

    def __init__(
        self, rank: int, size: int, connections: Connections, shares: Shares, joint: Joint
    ) -> None:
        self.rank, self.size = rank, size
        self.above = above(rank)
        self._connections = connections
        self.shares, self.joint = shares, joint
        self.gone: list[int] = []
        self.foreign: list[int] = []
        self._slots = Slots()
        self.combiner = Combiner(self.size, joint, self._slots)
        self._below = {other: _Sender() for other in below(rank, size)}
        self._complete = -1.0  # up to which step this process has read
        self._waiting: dict[int, PartialRow] = {}
        self._own: set[int] = set()  # steps of those that this process has read
        self._runs_sent = 0
        self._catalogue_told = -1, 0  # its changes, and notes
        self._told = ""
        self._settled = 0  # news that were passed on, or have their place in the run
        self.done = False
        """Whether nothing more is awaited from any process, nor to be sent."""

    def exchange(
        self,
        decoded: Iterable[Decoded],
        closing: bool,
        seconds: float,
        catalogue: Catalogue,
        notes: Sequence[str] = (),
    ) -> list[Decoded]:
        """Add `decoded` to what others have read, and send it on; on rank 0, return what all have.

        Waits for the next message of every process below, `seconds` at most for each, so it must
        not run on the training thread.

        Raises
        ------
        RuntimeError
            If the process above takes nothing any more.
        """
        if (catalogue.changes, len(notes)) != self._catalogue_told:
            self._catalogue_told = catalogue.changes, len(notes)
            self.joint.take({**described(catalogue, self.shares.experts), "notes": list(notes)})
        numbers = self.joint.numbers()
        for row in partial_rows(decoded, self._slots, numbers):
            if row.step in self._waiting:
                row.add(self._waiting.pop(row.step), self._slots.largest)  # its own scalars first
            self._add(row)
            self._own.add(row.step)
            self._complete = row.step
        if closing:
            self._complete = math.inf
        for rank, sender in self._below.items():
            if sender.complete < math.inf:
                try:
                    self._take(
                        rank, sender, Message.unpacked(self._connections.receive(rank, seconds))
                    )
                except RuntimeError:
                    sender.complete = math.inf
                    self.gone.append(rank)
        complete = min([self._complete, *(s.complete for s in self._below.values())])
        return self._pass_on(complete, seconds)

    def give_up(self, seconds: float) -> list[Decoded]:
        """Pass on what is left of steps that some process has not sent."""
        left = [] if self.done else self._pass_on(math.inf, seconds)
        self._connections.end()
        return left

    def _take(self, rank: int, sender: _Sender, message: Message) -> None:
        """Add what a process below has sent."""
        if message.told is not None:
            self.joint.take(message.told, rank)
            sender.numbers = self.joint.numbers(rank)
        for kind, of in message.slots:
            new = self._slots.take(kind, sender.numbers[kind.table][of])
            sender.slots = np.concatenate([sender.slots, new])
        for row in message.rows:
            sums = np.zeros((2, self._slots.size))
            sums[:, sender.slots[: row.sums.shape[1]]] = row.sums
            row.sums = sums
            self._add(row)
        sender.complete = message.complete

    def _add(self, row: PartialRow) -> None:
        if row.step in self._waiting:
            self._waiting[row.step].add(row, self._slots.largest)
        else:
            self._waiting[row.step] = row

    def _pass_on(self, complete: float, seconds: float) -> list[Decoded]:
        """Take out the steps of which nothing is awaited any more, and send or return them."""
        ready = [self._waiting.pop(step) for step in sorted(self._waiting) if step <= complete]
        if self.rank == 0:
            self.done = complete == math.inf
            rows = [row for row in ready if row.step in self._own]
            self.foreign += [row.step for row in ready if row.step not in self._own][:1]
            self._own -= {row.step for row in ready}
            if (rows or self._settled) and self._settled != self.joint.news:
                self.joint.settle()  # for the first time when all have told of their layers
                self._settled = self.joint.news
            return [self.combiner.decoded(rows)] if rows else []
        self._own.clear()
        told = self._news()
        message = Message(complete, ready, self._slots.runs[self._runs_sent :], told)
        self._connections.send(message.packed(), seconds)
        self._runs_sent = len(self._slots.runs)
        self.done = complete == math.inf
        return []

    def _news(self) -> dict[str, Any] | None:
        """Return the layers and shortcuts of all below, None where they are those told last."""
        if self._settled == self.joint.news:
            return None
        self._settled = self.joint.news
        told = self.joint.described()
        text = json.dumps(told, sort_keys=True)
        is_new, self._told = text != self._told, text
        return told if is_new else None


class _Sender:
    """What is known of a process below: how far it is, and which numbers of its are which here."""

    def __init__(self) -> None:
        self.complete = -1.0
        self.numbers: dict[str, Ints] = {}
        self.slots: Ints = np.empty(0, np.int64)
