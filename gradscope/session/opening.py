"""The run that a scope writes: a new one or one that is resumed, by one process or by several."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from gradscope.capture import layers
from gradscope.capture.catalogue import Catalogue
from gradscope.capture.distributed import replicas, several
from gradscope.capture.modules import Modules
from gradscope.errors import GradscopeError
from gradscope.session.ranks import Ranks
from gradscope.storage.run_json import META_NAME, Meta, read_meta
from gradscope.storage.writer import RunWriter

_LONGEST_KIND = 60  # characters of a class name in the name of a folder


class Opened(NamedTuple):
    """A run, and what it holds when recording begins."""

    path: Path
    writer: RunWriter | None
    """None where another process writes."""
    ranks: Ranks | None
    """The processes whose readings go into this run; None if it is this one alone."""
    is_new: bool
    """Whether this process began it, and did not go on with one."""
    next_step: int
    elapsed: float
    layers: list[dict[str, Any]]
    shortcuts: list[dict[str, Any]]
    notes: list[str]


def folder(model: nn.Module, run: str | os.PathLike[str] | None, resume: bool) -> Path:
    """Return the folder of the run called `run`; by default a new one, by time and class.

    Raises
    ------
    GradscopeError
        If the run to resume is not named.
    """
    if run is not None:
        return Path(run)
    if resume:
        raise GradscopeError(
            "watch(resume=True): which run? Name its folder: watch(model, run=...)"
        )
    kind = re.sub(r"\W", "", type(model).__name__)[:_LONGEST_KIND]
    path = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}"
    number = 2
    while path.exists():
        path = path.with_name(f"{path.name.partition('_')[0]}_{number}")
        number += 1
    return path


def open_run(model: nn.Module, path: Path, meta: Meta, resume: bool, every_rank: bool) -> Opened:
    """Open the run in `path`, to be written by rank 0, or with `every_rank` one for each process.

    A relative path is made absolute: the program may change its folder.

    Raises
    ------
    GradscopeError
        If it cannot be begun or resumed; one process's problem is an error on all of them.
    """
    if not several():
        return _opened(_open(model, path.absolute(), meta, resume), None)
    ranks = Ranks()
    path = Path(ranks.broadcast(str(path))).absolute()
    writer, problem = None, ""
    if every_rank:
        path = path / f"rank{ranks.rank}"
    if every_rank or ranks.rank == 0:
        try:
            place: Meta = {"rank": ranks.rank, "ranks": ranks.size}
            if every_rank:
                place["replicas"] = _replicas(model)
            writer = _open(model, path, {**meta, **place}, resume)
        except GradscopeError as error:
            problem = str(error)
    problem = ranks.agree(problem)
    if problem:
        if writer is not None:
            writer.close()
        raise GradscopeError(problem)
    if every_rank:
        assert writer is not None
        return _opened(writer, None)
    held = {} if writer is None else _opened(writer, None)._asdict()
    told = {key: held.get(key) for key in ("next_step", "elapsed", "layers", "shortcuts", "notes")}
    is_new = writer is not None and writer.is_new
    return Opened(path, writer, ranks, is_new, **json.loads(ranks.broadcast(json.dumps(told))))


def _opened(writer: RunWriter, ranks: Ranks | None) -> Opened:
    lists = (writer.meta[key] for key in ("layers", "shortcuts", "notes"))
    return Opened(
        writer.path, writer, ranks, writer.is_new, writer.next_step, writer.elapsed, *lists
    )


def _replicas(model: nn.Module) -> dict[str, int]:
    """Return how many processes hold the same parameters of each layer, where not all do."""
    return {
        layers.clean(name) or layers.ROOT: replicas(own[0][1])
        for name, module in model.named_modules()
        if (own := layers.own_parameters(module)) and hasattr(own[0][1], "device_mesh")
    }


def _open(model: nn.Module, path: Path, meta: Meta, resume: bool) -> RunWriter:
    """Begin a run, or go on with one whose layers are those of `model`."""
    if resume and os.path.exists(path / META_NAME):
        old = read_meta(path)
        try:
            known = Catalogue(old["layers"], old["shortcuts"])
            difference = known.difference(Modules(model).layers())
        except (LookupError, TypeError) as error:
            raise GradscopeError(
                f"{path / META_NAME}: broken, its lists of layers and shortcuts cannot be read"
            ) from error
        if difference:
            raise GradscopeError(
                f"{path}: this run cannot be resumed, {difference}; build the model as it was, or"
                " choose another folder"
            )
    return RunWriter(path, meta, resume=resume)
