"""Runs found and opened: one by its path or URL, or all of a folder; finished or being written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.remote import Mirror, is_remote, runs_at
from gradscope.runs.run import Run
from gradscope.storage.run_json import META_NAME


def load(path: str | os.PathLike[str]) -> Run:
    """Open the run in a folder, finished or still being written.

    Parameters
    ----------
    path : folder of the run, such as "runs/resnet56"
        Or an URL, such as "s3://bucket/runs/resnet56", of any place that fsspec reads (s3 needs the
        package s3fs, gs gcsfs ...). Its part files are copied to a temporary folder, new ones by
        `Run.refresh`.

    Returns
    -------
    Run
        A `GradscopeWarning` tells of steps that were lost and of files that are damaged.

    Raises
    ------
    GradscopeError
        If there is no run, its `run.json` is broken, or a newer gradscope wrote it.
    """
    if is_remote(path):
        mirror = Mirror(str(path))
        return Run(mirror.path, mirror)
    folder = Path(path)
    if not os.path.isfile(folder / META_NAME):
        if not os.path.exists(folder):
            raise GradscopeError(f"{folder}: there is no such folder")
        if not os.path.isdir(folder):
            raise GradscopeError(
                f"{folder}: not a folder; give the folder of a run, the one that holds {META_NAME}"
            )
        inside = discover(folder)
        guess = f"; did you mean {inside[0]}" if inside else ""
        if len(inside) > 1:
            guess = "; did you mean one of " + ", ".join(map(str, inside[:3]))
            guess += f" or {len(inside) - 3} more" if len(inside) > 3 else ""
        raise GradscopeError(
            f"{folder}: not a run, it holds no {META_NAME}{guess}{'?' if guess else ''}"
        )
    return Run(folder)


def load_all(folder: str | os.PathLike[str]) -> list[Run]:
    """Open every run in a folder, in order of their paths.

    Parameters
    ----------
    folder : path or URL
        Runs are looked for in it, in its sub-folders, and in theirs.

    Returns
    -------
    list of Run
        A run that cannot be read is left out with a `GradscopeWarning`.

    Raises
    ------
    GradscopeError
        If there is no such folder, or an URL cannot be read.
    """
    runs = []
    for path in runs_at(str(folder)) if is_remote(folder) else discover(folder):
        try:
            runs.append(load(path))
        except GradscopeError as error:
            warnings.warn(f"{error}; this run is left out", GradscopeWarning, stacklevel=2)
    return runs


def discover(folder: str | os.PathLike[str]) -> list[Path]:
    """List the runs in a folder: itself, its sub-folders, and theirs; no part is read.

    Raises
    ------
    GradscopeError
        If there is no such folder.
    """
    top = Path(folder)
    if not os.path.isdir(top):
        raise GradscopeError(f"{top}: there is no such folder")
    return sorted(_runs_in(top, depth=2))


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if os.path.isfile(folder / META_NAME):
        yield folder
    elif depth:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith("."):
                    yield from _runs_in(folder / entry.name, depth - 1)
