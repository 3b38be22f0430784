"""What open scopes do when their process exits, is told to end by SIGTERM, or forks."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradscope.scope import Scope

open_scopes: dict[int, Scope] = {}
"""Open scopes by the identity of their model; a scope goes when its model does."""

_scopes_of_parent: list[Scope] = []
"""Kept in a forked worker: to free what they hold on an accelerator would use it, which hangs."""

_PATIENCE = 5  # seconds that a flush may delay the end of a process that got SIGTERM


def enter(model_id: int, scope: Scope) -> None:
    """Take note of a new scope: SIGTERM flushes it, unless the program handles SIGTERM itself."""
    open_scopes[model_id] = scope
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def leave(model_id: int, scope: Scope) -> None:
    """Take note of a closed scope; the last one leaves SIGTERM as it was."""
    if open_scopes.get(model_id) is scope:
        del open_scopes[model_id]
    if not open_scopes:
        _restore_sigterm()


def close_scope(model_id: int) -> None:
    """Close the scope of a model that is gone."""
    scope = open_scopes.get(model_id)
    if scope is not None:
        scope.close()


def _terminate(number: int, frame: FrameType | None) -> None:
    """Flush, then end as a process without this handler does.

    Does not end it where a handler that the program put in later calls this one: then it is up to
    that handler what becomes of the process.
    """
    last = signal.getsignal(number) is _terminate
    if last:
        signal.signal(number, signal.SIG_DFL)  # a second SIGTERM ends the process at once
    written = [scope.request_flush() for scope in list(open_scopes.values())]
    for done in written:
        done.wait(_PATIENCE)
    if last:
        os.kill(os.getpid(), number)


def _restore_sigterm() -> None:
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    """Whether this is the thread that may change what a signal does."""
    return threading.current_thread() is threading.main_thread()


@atexit.register
def _close_all() -> None:
    for model_id in list(open_scopes):
        close_scope(model_id)


def _leave_to_parent() -> None:
    """Record nothing in a forked worker: its parent goes on with the run."""
    for scope in open_scopes.values():
        scope.detach()
    _scopes_of_parent.extend(open_scopes.values())
    open_scopes.clear()
    _restore_sigterm()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
