"""The run that a scope writes: a new one or one that is resumed, by one process or by several."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import nn

from gradscope.capture.keys import OfLayer, OfParameter, OfShortcut
from gradscope.capture.net import layers
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.distributed import Sharing, replicas, several
from gradscope.capture.net.modules import Modules
from gradscope.errors import GradscopeError
from gradscope.session.connections import GlooConnections
from gradscope.session.joint import Joint
from gradscope.session.meeting import MEETING_SECONDS, Meeting
from gradscope.session.ranks import Ranks
from gradscope.session.shares import Shares
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
    next_step: int
    elapsed: float
    layers: list[dict[str, Any]]
    shortcuts: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    notes: list[str]
    marks: list[dict[str, Any]]
    problem: str = ""
    """What to tell of how the run was opened."""


def folder(model: nn.Module, run: str | os.PathLike[str] | None, resume: bool) -> Path:
    """Return the folder of the run called `run`; by default a new one, by time and class.

    A new one is made at once: of programs that start together each takes one of its own.

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
    path = first = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}"
    for number in itertools.count(2):
        try:
            if not several() or dist.get_rank() == 0:
                path.mkdir(parents=True)
            break
        except OSError:
            if not os.path.lexists(path):  # it cannot be made, as whoever writes there says
                break
        path = first.with_name(f"{first.name}_{number}")
    return path


def give_back(path: Path, run: str | os.PathLike[str] | None) -> None:
    """Take away a folder that `folder` has made for a run of no name, unless that is in there."""
    if run is None:
        with suppress(OSError):
            path.rmdir()


def refuse(model: object, problem: str) -> None:
    """Tell the processes that train together with this one, if any, why it does not watch."""
    if several():
        with suppress(Exception):  # it is on its way out with an error that says more
            Meeting(model).refuse(problem)


def open_run(
    model: nn.Module,
    path: Path,
    meta: Meta,
    sharing: Sharing,
    resume: bool,
    every_rank: bool,
    undo: ExitStack,
) -> Opened:
    """Open the run in `path`, to be written by rank 0, or with `every_rank` one for each process.

    A new run is taken back by `undo`. A relative path is made absolute: the program may change its
    folder. Where the other processes do not come in time, this one writes a run of its own
    readings, if it is rank 0.

    Raises
    ------
    GradscopeError
        If it cannot be begun or resumed; one process's problem is an error on all of them.
    """
    if not several():
        return _opened(_open(model, path.absolute(), meta, resume, undo), None)
    meeting = Meeting(model)
    # all relative paths are rank 0's; one that cannot be opened is found before anybody waits
    writer, problem = None, ""
    place: Meta = {"rank": meeting.rank, "ranks": meeting.size}
    try:
        if meeting.rank == 0:
            own = path.absolute() / "rank0" if every_rank else path.absolute()
            writer = _open(model, own, {**meta, **place}, resume, undo)
    except GradscopeError as error:
        problem = str(error)
    problem = meeting.agree(problem)
    if not problem and meeting.absent:
        return _alone(meeting, path, writer)
    if not problem:
        path = Path(meeting.broadcast(str(path.absolute())))
        if every_rank:
            writer, problem = _each(model, path, meta, place, resume, writer, undo)
            problem = meeting.agree(problem)
    if problem:
        raise GradscopeError(problem)
    shares, problem = _shares(model, meeting, sharing)
    if every_rank:
        assert writer is not None
        is_known = sharing.parallel == 1 and OfLayer not in shares.unknown
        told = {"replicas": _replicas(model, shares, meeting.size), "losses": shares.losses}
        writer.update(**told, outputs_followed=is_known)
        return _opened(writer, None)
    held = {} if writer is None else _opened(writer, None)._asdict()
    joint = Joint(*(held.get(key) or [] for key in ("layers", "shortcuts", "edges")))
    ranks = Ranks(meeting.rank, meeting.size, GlooConnections(meeting), shares, joint)
    told = {key: held.get(key) for key in ("next_step", "elapsed", "notes", "marks")}
    told = json.loads(meeting.broadcast(json.dumps(told)))
    nothing: dict[str, Any] = {"layers": [], "shortcuts": [], "edges": []}  # `joint` has them
    return Opened(path, writer, ranks, **told, **nothing, problem=problem)


def _shares(model: nn.Module, meeting: Meeting, sharing: Sharing) -> tuple[Shares, str]:
    """Return what of this process's readings is its own, and what is not known of that."""
    names = [
        layers.unwrapped_name(name) or layers.ROOT
        for name, module in model.named_modules()
        if layers.own_parameters(module)
    ]
    told = meeting.compare(names)
    usual, holders = told["usual"], told["holders"]
    losses = sharing.divisor or meeting.size / told["stages"] / sharing.parallel
    unknown = sharing.unknown or ((OfLayer, OfShortcut) if told["problem"] else ())
    have = {name: holders.get(name, usual) for name in names}
    experts = frozenset(name for name, share in have.items() if share < max(have.values()))
    held = {name: share / sharing.shards.get(name, 1) for name, share in have.items()}
    return Shares(losses, held, unknown, experts), sharing.problem or told["problem"]


def _each(
    model: nn.Module,
    path: Path,
    meta: Meta,
    place: Meta,
    resume: bool,
    writer: RunWriter | None,
    undo: ExitStack,
) -> tuple[RunWriter | None, str]:
    """Open the run of this process in `path`, and return it, or the problem with it."""
    if writer is not None:
        return writer, ""
    try:
        own = path / f"rank{place['rank']}"
        return _open(model, own, {**meta, **place}, resume, undo), ""
    except GradscopeError as error:
        return None, str(error)


def _alone(meeting: Meeting, path: Path, writer: RunWriter | None) -> Opened:
    """Open what this process writes without the others: rank 0's own readings."""
    absent = ", ".join(map(str, meeting.absent))
    note = (
        f"process {absent} of {meeting.size} did not call watch() within {MEETING_SECONDS} s, or"
        " with another model, as a stage of a pipeline is: this run holds the readings of process"
        " 0 alone, of its share of the batch or its stage. Call watch() on every process with the"
        " same model to have those of all"
    )
    if writer is None:
        return Opened(path, None, None, 0, 0.0, [], [], [], [], [], note)
    return _opened(writer, None)._replace(problem=note)


def _opened(writer: RunWriter, ranks: Ranks | None) -> Opened:
    lists = (writer.meta[key] for key in ("layers", "shortcuts", "edges", "notes", "marks"))
    return Opened(writer.path, writer, ranks, writer.next_step, writer.elapsed, *lists)


def _replicas(model: nn.Module, shares: Shares, size: int) -> dict[str, float | None]:
    """Return how many processes hold the same parameters of each layer, where not all do.

    None where that differs between parameters of a layer, or is not known.
    """
    found: dict[str, float | None] = {}
    for path, module in model.named_modules():
        name = layers.unwrapped_name(path) or layers.ROOT
        own = [p for _, p in layers.own_parameters(module) if not layers.is_lazy(p)]
        held = {replicas(p) * shares.holders.get(name, 1.0) for p in own}
        if held - {size}:
            known = len(held) == 1 and OfParameter not in shares.unknown
            found[name] = held.pop() if known else None
    return found


def _open(model: nn.Module, path: Path, meta: Meta, resume: bool, undo: ExitStack) -> RunWriter:
    """Begin a run, which `undo` takes back, or go on with one whose layers are those of `model`."""
    if resume and os.path.exists(path / META_NAME):
        old = read_meta(path)
        try:
            of_model = Modules(model).layers()
            rows = old["layers"]
            if int(old.get("ranks", 1)) > 1 and "replicas" not in old:  # of other stages, too
                names = {info.name for info in of_model}
                rows = [row for row in rows if row["name"] in names]
            known = Catalogue(rows, old["shortcuts"], old["edges"])
            difference = known.difference(of_model)
        except (LookupError, TypeError) as error:
            raise GradscopeError(
                f"{path / META_NAME}: broken, its lists of layers, shortcuts and edges cannot"
                " be read"
            ) from error
        if difference:
            raise GradscopeError(
                f"{path}: this run cannot be resumed, {difference}; build the model as it was, or"
                " choose another folder"
            )
    writer = RunWriter(path, meta, resume=resume)
    undo.callback(writer.take_back)
    return writer
