"""What open scopes do when their process exits, is told to end by SIGTERM, or forks."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Protocol

from gradscope.capture.recorder import Recorder
from gradscope.session.drain import Drain

HURRY_SECONDS = 5
"""For which other processes are waited for at the end of this one, and on an exception's way."""

_PATIENCE = 5  # seconds for which a flush may delay a fork, or the end after a SIGTERM


class Closable(Protocol):
    """What a `Scope` is to this module."""

    path: Path

    def end(self, seconds: float) -> None:
        """Stop recording, and write the rest; wait for other processes so long at most."""


class Open(NamedTuple):
    """An open scope and its parts."""

    scope: Closable
    recorder: Recorder
    drain: Drain


open_scopes: dict[int, Open] = {}
"""Open scopes by the identity of their model; a scope goes when its model does."""

_of_parent: list[Open] = []
"""Kept in a forked worker: to free what they hold on an accelerator would use it, which hangs."""

_paused = threading.local()


def enter(model_id: int, opened: Open) -> None:
    """Take note of a new scope: SIGTERM flushes it, unless the program handles SIGTERM itself."""
    open_scopes[model_id] = opened
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def leave(model_id: int, scope: Closable) -> None:
    """Take note of a closed scope; the last one leaves SIGTERM as it was."""
    opened = open_scopes.get(model_id)
    if opened is not None and opened.scope is scope:
        del open_scopes[model_id]
    if not open_scopes:
        _restore_sigterm()


def close_scope(model_id: int, seconds: float = HURRY_SECONDS) -> None:
    """Close the scope of a model, which may be gone."""
    opened = open_scopes.get(model_id)
    if opened is not None:
        opened.scope.end(seconds)


# --- SIGTERM ------------------------------------------------------------------------------------


def _terminate(number: int, frame: FrameType | None) -> None:
    """Flush, then end as a process without this handler does.

    Does not end it where a handler that the program put in later calls this one: then it is up to
    that handler what becomes of the process.
    """
    last = signal.getsignal(number) is _terminate
    if last:
        signal.signal(number, signal.SIG_DFL)  # a second SIGTERM ends the process at once
    written = [opened.drain.request_flush() for opened in list(open_scopes.values())]
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


# --- exit ---------------------------------------------------------------------------------------


@atexit.register
def _close_all() -> None:
    for model_id in list(open_scopes):
        close_scope(model_id)


# --- fork ---------------------------------------------------------------------------------------


def _before_fork() -> None:
    """Let flushes end: locks of Arrow that they hold would be held in the worker for ever."""
    drains = [opened.drain for opened in list(open_scopes.values())]
    _paused.drains = [drain for drain in drains if drain.pause(_PATIENCE)]


def _after_fork_in_parent() -> None:
    for drain in _paused.drains:
        drain.go_on()


def _after_fork_in_worker() -> None:
    """Record nothing: the parent goes on with the run."""
    for opened in open_scopes.values():
        opened.recorder.detach()
    _of_parent.extend(open_scopes.values())
    open_scopes.clear()
    _restore_sigterm()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_worker,
    )
