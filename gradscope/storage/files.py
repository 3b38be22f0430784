"""Files replaced and removed, also where somebody reads them: Windows refuses that for as long."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

READERS_BLOCK = sys.platform == "win32"
"""Whether a file that is open cannot be replaced or removed."""

_TRIES = 50
_PAUSE = 0.02  # seconds between two tries


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which it takes the place of.

    Raises
    ------
    OSError
        If the disk refuses, or `target` is being read for longer than a second.
    """
    _patiently(lambda: os.replace(source, target))


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises
    ------
    OSError
        As `replace`.
    """
    _patiently(lambda: path.unlink(missing_ok=True))


def _patiently(change: Callable[[], None]) -> None:
    for attempt in range(_TRIES):
        try:
            return change()
        except PermissionError:
            if not READERS_BLOCK or attempt == _TRIES - 1:
                raise
            time.sleep(_PAUSE)
