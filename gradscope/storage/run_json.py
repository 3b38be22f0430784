"""`run.json`: what a run is, written whole or not at all, with a checksum.

Beside it lies some room, freed when the disk is full, so that the run can still tell what it lost.
"""

from __future__ import annotations

import errno
import json
import os
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradscope import schema
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.storage import files, parts
from gradscope.storage.lock import is_live

META_NAME = "run.json"
LISTS = ("layers", "shortcuts", "edges", "heads", "notes", "lost", "marks")
"""Keys of `run.json` that hold lists, empty where there is nothing to list."""

Meta = dict[str, Any]

_ROOM_NAME = ".room"
_SPARE = 2**14  # bytes by which run.json may grow when the disk is full
_FULL = (errno.ENOSPC, errno.EDQUOT)


def read_meta(path: Path) -> Meta:
    """Return what the `run.json` of the run in `path` holds.

    Raises
    ------
    GradscopeError
        If it cannot be read, is broken, or was written by a newer gradscope.
    """
    file = path / META_NAME
    try:
        meta = json.loads(file.read_bytes())
    except OSError as error:
        raise GradscopeError(f"{file}: cannot be read, {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise GradscopeError(
            f"{file}: broken, not JSON ({error}); restore it from a copy, or delete the run"
        ) from error
    version = meta.get("format") if isinstance(meta, dict) else None
    if type(version) is not int or version < 1:
        raise GradscopeError(f"{file}: not written by gradscope, its format is {version!r}")
    if version > schema.FORMAT_VERSION:
        raise GradscopeError(
            f"{file}: format {version} is newer than this gradscope reads"
            f" ({schema.FORMAT_VERSION}); upgrade it with: pip install -U gradscope-torch"
        )
    checksum = meta.pop("crc32", None)
    if checksum != _crc(meta):
        warnings.warn(
            f"{file}: does not match its checksum; it was edited, or it is damaged",
            GradscopeWarning,
            stacklevel=2,
        )
    for key in LISTS:
        if not isinstance(meta.setdefault(key, []), list):
            raise GradscopeError(f"{file}: broken, `{key}` is no list")
    return dict(meta)


def status_of(path: Path, meta: Meta) -> str:
    """Return the state of a run: "running", "closed", or "crashed" where nobody writes it now."""
    status = str(meta.get("status", "crashed"))
    return "crashed" if status == "running" and not is_live(path) else status


def lost_words(lost: list[dict[str, Any]]) -> str:
    """Return the steps that could not be written in words, such as `lost steps 12-35: ...`."""
    words = []
    for gap in lost:
        with suppress(LookupError, TypeError):  # a damaged run.json
            words.append(f"lost steps {gap['first']}-{gap['last']}: {gap['why']}")
    return "; ".join(words)


def last_lost(lost: list[dict[str, Any]]) -> int:
    """Return the last of the steps that could not be written, -1 if none was lost."""
    last = -1
    for gap in lost:
        with suppress(LookupError, TypeError, ValueError, OverflowError):  # a damaged run.json
            last = max(last, int(gap["last"]))
    return last


def write_meta(path: Path, meta: Meta) -> None:
    """Write the `run.json` of the run in `path`, on a full disk in the room that was kept for it.

    Raises
    ------
    OSError
        If the disk refuses; the old `run.json` is still there.
    """
    text = json.dumps({**meta, "crc32": _crc(meta)}, indent=1).encode("ascii")
    try:
        _replace(path, text)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free_room(path)
        _replace(path, text)
    else:
        _keep_room(path, len(text) + _SPARE)


def free_room(path: Path) -> None:
    """Give up the room that is kept for `run.json`."""
    with suppress(OSError):
        (path / _ROOM_NAME).unlink()


def reason(error: OSError) -> str:
    """Return why the disk refused, in words such as `no space left on device`."""
    return (error.strerror or str(error)).lower()


def _keep_room(path: Path, size: int) -> None:
    room = path / _ROOM_NAME
    with suppress(OSError):
        if not room.exists() or room.stat().st_size < size:
            with parts.new_file(room) as file:
                file.write(os.urandom(size))  # zeros may take no room on disk


def _replace(path: Path, text: bytes) -> None:
    temporary = path / f".{META_NAME}.tmp"
    try:
        with parts.new_file(temporary) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        files.replace(temporary, path / META_NAME)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    parts.sync_folder(path)


def _crc(meta: Meta) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode("ascii"))
