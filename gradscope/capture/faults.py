"""What could not be read: that reading is switched off and told of once; the training goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, Protocol

from gradscope.autograd.torch_internals import Unavailable


class Faults:
    """Keeps count of what failed.

    Parameters
    ----------
    tell : called with a sentence, which it may be given more than once
    lacking : names of interfaces of torch whose loss has been told of already
    """

    def __init__(self, tell: Callable[[str], None], lacking: Collection[str] = ()) -> None:
        self.tell = tell
        self._lacking = lacking
        self._off: set[str] = set()

    def is_off(self, what: str) -> bool:
        """Whether `what` has failed: it is not read any more."""
        return what in self._off

    def report(self, what: str, error: Exception) -> None:
        """Switch `what` off, and tell of it."""
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


def guarded(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a method survive its errors: the first one switches it off, and is told."""

    def guard(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def survive(self: HasFaults, *args: Any) -> None:
            if self.faults.is_off(what):
                return
            try:
                method(self, *args)
            except Exception as error:
                self.faults.report(what, error)

        return survive

    return guard
