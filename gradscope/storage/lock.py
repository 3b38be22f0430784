"""The lock that one process holds on a run while it writes it; it ends with the process."""

from __future__ import annotations

import os
import sys
import time
import weakref
from pathlib import Path

from gradscope.errors import GradscopeError

if sys.platform != "win32":
    import fcntl

LOCK_NAME = ".lock"
_TRIES = 20  # `is_live` holds the lock for a moment
_PAUSE = 0.01  # seconds between two tries


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
        self._handle: int | None = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        for attempt in range(_TRIES):
            if _locked(self._handle, exclusive=True):
                break
            if attempt == _TRIES - 1:
                self.release()
                raise GradscopeError(
                    f"{path}: another process or scope writes this run; wait for it to end,"
                    " or choose another folder"
                )
            time.sleep(_PAUSE)
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether the lock is held."""
        return self._handle is not None

    def is_in(self, path: Path) -> bool:
        """Whether the file that is locked is still the one in `path`: it may be removed, or moved.

        Raises
        ------
        OSError
            If `path` cannot be read, but for a file that is not there.
        """
        assert self._handle is not None
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(path / LOCK_NAME))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go of the run."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def is_live(path: Path) -> bool:
    """Tell whether a living process writes the run in `path`."""
    try:
        handle = os.open(path / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _locked(handle, exclusive=False)
    finally:
        os.close(handle)


def _locked(handle: int, *, exclusive: bool) -> bool:
    """Take the lock without waiting; False if somebody else has it."""
    if sys.platform == "win32":  # no advisory locks there: every writer gets through
        return exclusive
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, as on Windows
        return exclusive
    return True


def _release_in_child() -> None:
    """Close a forked worker's copies, so that a lock ends with the process that took it."""
    for lock in list(_held):
        lock.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_release_in_child)
