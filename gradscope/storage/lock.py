"""The lock that one process holds on a run while it writes it; it ends with the process."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from gradscope.errors import GradscopeError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".lock"
_TRIES = 20  # `is_live` holds the lock for a moment
_PAUSE = 0.01  # seconds between two tries

Release = Callable[[], None]


class Lock:
    """Hold the run in `path` until `release`, or until the process dies.

    Raises
    ------
    GradscopeError
        If another writer holds it.
    OSError
        If the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._release: Release | None = None
        for attempt in range(_TRIES):
            self._release = _take(path / LOCK_NAME, exclusive=True)
            if self._release is not None:
                break
            if attempt == _TRIES - 1:
                raise GradscopeError(
                    f"{path}: another process or scope writes this run; wait for it to end,"
                    " or choose another folder"
                )
            time.sleep(_PAUSE)
        self._file = os.stat(path / LOCK_NAME)
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether the lock is held."""
        return self._release is not None

    def is_in(self, path: Path) -> bool:
        """Whether the file that is locked is still the one in `path`: it may be removed, or moved.

        Raises
        ------
        OSError
            If `path` cannot be read, but for a file that is not there.
        """
        try:
            return os.path.samestat(self._file, os.stat(path / LOCK_NAME))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go of the run."""
        if self._release is not None:
            self._release()
            self._release = None


def is_live(path: Path) -> bool:
    """Tell whether a living process writes the run in `path`."""
    if not os.path.exists(path / LOCK_NAME):
        return False
    try:
        release = _take(path / LOCK_NAME, exclusive=False)
    except OSError:
        return False
    if release is None:
        return True
    release()
    return False


def _take(file: Path, *, exclusive: bool) -> Release | None:
    """Take the lock without waiting, and return what lets go of it; None if somebody has it."""
    return _by_filelock(file) if fcntl is None else _by_flock(file, exclusive)


def _by_flock(file: Path, exclusive: bool) -> Release | None:
    """As `_take`; readers take it together, and need not be allowed to write."""
    assert fcntl is not None
    handle = os.open(file, os.O_RDWR | os.O_CREAT if exclusive else os.O_RDONLY, 0o644)
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:  # a file system without locks: every writer gets through, and none seems dead
        if not exclusive:
            os.close(handle)
            return None
    return lambda: os.close(handle)


def _by_filelock(file: Path) -> Release | None:
    """As `_take`, where there is no flock; two readers at once hold each other for writers."""
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock.release


def _release_in_child() -> None:
    """Close a forked worker's copies, so that a lock ends with the process that took it."""
    for lock in list(_held):
        lock.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
