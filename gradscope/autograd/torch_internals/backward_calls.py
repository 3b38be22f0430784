"""Calls of `backward`, told of whatever they lead through: also where that is no node of ours."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch

from gradscope.autograd.torch_internals.backwards import current_backward
from gradscope.autograd.torch_internals.interfaces import Unavailable

_RUN = "_engine_run_backward"


class BackwardListener(Protocol):
    """Who is told of every backward of this process that adds to gradients, but of none within one.

    None of these may raise.
    """

    def call_begins(self) -> None:
        """Take note that one is called."""

    def call_ended(self) -> None:
        """Take note that it has ended, without an error."""

    def call_failed(self) -> None:
        """Take note that it has raised, or was interrupted."""


class _Following:
    """Stands in place of what runs a backward, for as long as somebody listens."""

    def __init__(self) -> None:
        self.listeners: list[weakref.ref[BackwardListener]] = []
        self._ours: Any = None
        self._theirs: Any = None

    def add(self, listener: weakref.ref[BackwardListener]) -> None:
        self.listeners.append(listener)
        if len(self.listeners) > 1:
            return
        if not can_follow():  # said by `missing`
            return
        run = getattr(torch.autograd, _RUN)

        def told(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or not kwargs.get("accumulate_grad"):
                return run(outputs, *args, **kwargs)  # that is of an autograd.grad
            if not _is_outermost():  # as re-entrant checkpointing's are not
                return run(outputs, *args, **kwargs)
            for listener in self._present():
                listener.call_begins()
            try:
                result = run(outputs, *args, **kwargs)
            except BaseException:
                for listener in self._present():
                    listener.call_failed()
                raise
            for listener in self._present():
                listener.call_ended()
            return result

        self._ours, self._theirs = told, run
        setattr(torch.autograd, _RUN, told)

    def remove(self, listener: weakref.ref[BackwardListener]) -> None:
        self.listeners.remove(listener)
        if not self.listeners and getattr(torch.autograd, _RUN, None) is self._ours:
            setattr(torch.autograd, _RUN, self._theirs)

    def _present(self) -> list[BackwardListener]:
        return [found for ref in self.listeners if (found := ref()) is not None]


def _is_outermost() -> bool:
    try:
        return current_backward() == -1
    except Unavailable:  # said by `missing`
        return False


def can_follow() -> bool:
    """Whether this torch runs backwards by what we can stand in place of."""
    return hasattr(torch.autograd, _RUN)


_following = _Following()


class FollowedBackwards:
    """Tells `listener`, which it does not keep alive, of backwards until `remove`."""

    def __init__(self, listener: BackwardListener) -> None:
        self._listener: weakref.ref[BackwardListener] | None = weakref.ref(listener)
        _following.add(self._listener)

    def remove(self) -> None:
        """Stop; the last one to do so leaves torch as it was."""
        if self._listener is not None:
            _following.remove(self._listener)
            self._listener = None
