"""Runs in object stores and other places that fsspec reaches: copied here, part by part.

Part files never change once they are written, so that only new ones are fetched.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import Any

from gradscope import schema
from gradscope.errors import GradscopeError
from gradscope.storage import files
from gradscope.storage.run_json import META_NAME

_TRIES = 10  # a part may be merged away between its listing and its copy


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is an URL, such as "s3://bucket/runs/resnet56"."""
    return isinstance(path, str) and "://" in path


def runs_at(url: str) -> list[str]:
    """Return the URLs of the runs at `url`: itself, the folders in it, and those in them.

    Raises
    ------
    GradscopeError
        If the place cannot be read.
    """
    files, top = _connect(url)
    found: set[str] = set()
    try:
        for depth in ("", "*/", "*/*/"):
            found.update(files.glob(f"{top}/{depth}{META_NAME}"))
    except Exception as error:  # each store has errors of its own
        raise GradscopeError(f"{url}: cannot be read, {_reason(error)}") from error
    return sorted(files.unstrip_protocol(str(PurePosixPath(name).parent)) for name in found)


class Mirror:
    """A copy of a remote run in a temporary folder, which goes when this object does.

    Parameters
    ----------
    url : of the run's folder

    Attributes
    ----------
    path : Path
        The copy. Its last part is the run's name.

    Raises
    ------
    GradscopeError
        If there is no run, or it cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._files, self._top = _connect(url)
        folder = tempfile.mkdtemp(prefix="gradscope-")
        weakref.finalize(self, rmtree, folder, ignore_errors=True)
        self.path = Path(folder) / PurePosixPath(self._top).name
        self.path.mkdir()
        self.update()

    def update(self) -> None:
        """Copy what is new, and forget what is gone.

        Raises
        ------
        GradscopeError
            If the run was removed or cannot be read.
        """
        for attempt in range(_TRIES):
            try:
                # as a reader has to: `steps` first, whose rows make the others count; run.json,
                # which names every layer that they speak of, last
                self._files.invalidate_cache()  # of listings
                for table in reversed(schema.TABLES):
                    self._update_table(table)
                self._update_meta()
                return
            except FileNotFoundError as error:
                if attempt == _TRIES - 1:
                    raise GradscopeError(
                        f"{self._url}: no run, or a part of it is missing: {error}"
                    ) from error
            except Exception as error:  # each store has errors of its own
                raise GradscopeError(f"{self._url}: cannot be read, {_reason(error)}") from error

    def _update_table(self, table: str) -> None:
        try:
            listed = self._files.ls(f"{self._top}/{table}", detail=False)
        except FileNotFoundError:  # nothing was recorded yet
            return
        names = {n for n in (PurePosixPath(path).name for path in listed) if n[:1] != "."}
        (self.path / table).mkdir(exist_ok=True)
        here = {file.name for file in (self.path / table).iterdir()}
        for name in sorted(names - here):
            self._keep(table, name)
        for name in here - names:  # merged into one that has been copied
            files.remove(self.path / table / name)

    def _keep(self, table: str, name: str) -> None:
        temporary = self.path / table / f".{name}.tmp"
        self._files.get_file(f"{self._top}/{table}/{name}", str(temporary))
        files.replace(temporary, self.path / table / name)

    def _update_meta(self) -> None:
        content = self._files.cat_file(f"{self._top}/{META_NAME}")
        file = self.path / META_NAME
        if not file.exists() or file.read_bytes() != content:
            temporary = self.path / f".{META_NAME}.tmp"
            temporary.write_bytes(content)
            files.replace(temporary, file)


def _connect(url: str) -> tuple[Any, str]:
    """Return the file system of `url`, and its path there without a slash at the end."""
    try:
        import fsspec  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise GradscopeError(
            f"{url}: reading it needs fsspec, which is not installed; run: pip install fsspec"
        ) from error
    try:
        files, top = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # no such protocol, or its package is missing
        raise GradscopeError(f"{url}: cannot be opened, {_reason(error)}") from error
    return files, str(top).rstrip("/")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
