"""How the processes that train one model find each other when it is watched.

They do by the store that the program's process group was made with, whatever becomes of that group.
Each leaves there what does not grow with their number, and nobody waits without a bound of seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from gradscope.autograd.torch_internals import default_store
from gradscope.session.holders import find_holders

MEETING_SECONDS = 15
"""For which `watch()` waits for the other processes to call it, too."""

SILENCE_SECONDS = 20
"""For which a process may be silent, that sends every second, until it is taken to be gone."""

_meetings: Counter[str] = Counter()  # of models of one class, so far


class Meeting:
    """All processes that watch a model of one class, the first, second ... of each; made on all.

    Attributes
    ----------
    rank, size : int
    absent : list of int
        Processes that did not come: if there are any, this one goes on alone.
    """

    def __init__(self, model: object) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.absent: list[int] = []
        name = type(model).__name__
        _meetings[name] += 1
        self.store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"gradscope/{name}/{_meetings[name]}", default_store()
        )
        self._rounds = 0
        self._told = 0

    def refuse(self, problem: str) -> None:
        """Tell the others why this process does not watch, and wait for nobody."""
        self.store.set("problem/0", problem)
        self.store.set("all/0", "yes")

    def agree(self, problem: str) -> str:
        """Return a problem that a process has, "" if none has any.

        Waits for the others to come, `MEETING_SECONDS` at most; see `absent`. Once all have come,
        it may be called again.
        """
        number = self._rounds
        self._rounds += 1
        self.store.set(f"here/{number}/{self.rank}", "yes")
        if problem:
            self.store.set(f"problem/{number}", problem)
            self.store.set(f"all/{number}", "yes")
            return problem
        if self.store.add(f"count/{number}", 1) == self.size:
            self.store.set(f"all/{number}", "yes")
        try:
            self.store.wait([f"all/{number}"], timedelta(seconds=MEETING_SECONDS))
        except RuntimeError:
            self.store.set("alone", "yes")
            self.store.set(f"all/{number}", "yes")
        if self.store.check([f"problem/{number}"]):
            return str(self.store.get(f"problem/{number}").decode())
        if self.store.check(["alone"]):
            others = [rank for rank in range(self.size) if rank != self.rank]
            self.absent = [r for r in others if not self.store.check([f"here/{number}/{r}"])]
            self.absent = self.absent or others
        return ""

    def compare(self, names: Sequence[str]) -> dict[str, Any]:
        """Return how the layers `names` of this process are those of others; see `find_holders`.

        Of what many processes have alike, the store has one copy.
        """
        kind = hashlib.sha256("\n".join(names).encode("utf-8", "replace")).hexdigest()[:16]
        if self.store.add(f"kind/{kind}", 1) == 1:
            number = self.store.add("kinds", 1)
            self.store.set(f"names/{number}", json.dumps([kind, list(names)]))
        self.agree("")
        patience = timedelta(seconds=SILENCE_SECONDS)
        if self.rank == 0:
            keys = [f"names/{i + 1}" for i in range(self.store.add("kinds", 0))]
            self.store.wait(keys, patience)
            kinds = [json.loads(self.store.get(key)) for key in keys]
            groups = [(some, self.store.add(f"kind/{other}", 0)) for other, some in kinds]
            for (other, _), found in zip(kinds, find_holders(groups), strict=True):
                self.store.set(f"holders/{other}", json.dumps(found))
        self.store.wait([f"holders/{kind}"], patience)
        told: dict[str, Any] = json.loads(self.store.get(f"holders/{kind}"))
        return told

    def broadcast(self, value: str) -> str:
        """Return rank 0's `value`; waits for it, `SILENCE_SECONDS` at most."""
        self._told += 1
        key = f"value/{self._told}"
        if self.rank == 0:
            self.store.set(key, value)
            return value
        self.store.wait([key], timedelta(seconds=SILENCE_SECONDS))
        return str(self.store.get(key).decode())
