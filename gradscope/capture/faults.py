"""What could not be read: that reading is switched off and told of once; the training goes on."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Protocol

from gradscope.autograd.torch_internals import Unavailable
from gradscope.capture.memory import is_out_of_memory

_SHORT = 3
"""So often memory may be short for a reading: each time allocators throw out what they cache."""


class Faults:
    """Keeps count of what failed.

    Parameters
    ----------
    tell : called with a sentence, which it may be given more than once
    lacking : names of interfaces of torch whose loss has been told of already

    Attributes
    ----------
    doubt : called where what was read of the graph of the current step may not be all
    """

    def __init__(self, tell: Callable[[str], None], lacking: Collection[str] = ()) -> None:
        self.tell = tell
        self.doubt: Callable[[], None] = lambda: None
        self._lacking = lacking
        self._off: set[str] = set()
        self._short: Counter[str] = Counter()  # how often there was no memory

    def is_off(self, what: str) -> bool:
        """Whether `what` has failed: it is not read any more."""
        return what in self._off

    def report(self, what: str, error: Exception, alone: bool = False) -> None:
        """Switch `what` off, and tell of it; where memory was short, only if that lasts.

        Then what else the step has read of the graph may lack a part of a sum, unless `what` stands
        alone.
        """
        if is_out_of_memory(error):
            if not alone:
                self.doubt()
            self._short[what] += 1
            if self._short[what] >= _SHORT:
                self._off.add(what)
            if self._short.total() == 1:
                self.tell(
                    f"there was no memory to read {what}: what cannot be read is NaN, now and where"
                    " memory is short again, and the training goes on. Less is held with"
                    ' watch(updates="sampled"), or updates=False'
                )
            return
        self._off.add(what)
        if isinstance(error, Unavailable):
            if str(error) and error.name not in self._lacking:
                self.tell(str(error))
            return
        self.tell(
            f"could not read {what}: {type(error).__name__}: {error}; this reading is switched off,"
            " training goes on"
        )


class HasFaults(Protocol):
    """Something that records."""

    faults: Faults


def guarded(what: str, alone: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a method survive its errors: the first one switches it off, and is told.

    What it reads stands `alone` if nothing else that is read is wrong without it.
    """

    def guard(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def survive(self: HasFaults, *args: Any) -> None:
            if self.faults.is_off(what):
                return
            try:
                method(self, *args)
            except Exception as error:
                self.faults.report(what, error, alone)

        return survive

    return guard
