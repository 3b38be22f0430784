"""The runs that the processes of one training wrote, `watch(ranks="all")`, put together into one.

The same rules as when rank 0 puts readings together while they train (`schema.Column`), as far as
what each process wrote allows: a mean weighs every process the same.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope import schema
from gradscope.arithmetic import Groups, combine, energy_share, share_of_process
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.loading import load, load_all
from gradscope.runs.run import Run
from gradscope.storage.reader import TableReader
from gradscope.storage.writer import RunWriter

_KEPT = ("model", "config", "every", "cut", "gradscope", "torch", "created", "marks", "facts")
_ROWS_AT_ONCE = 2**17

Track = Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]]


def merge(
    folders: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    track: Track = iter,
) -> Run:
    """Write the runs of all ranks of one training as one run with the norms over all of them.

    Parameters
    ----------
    folders : the runs, or a folder that holds them
        Such as the one that was given to `watch(run=..., ranks="all")`; URLs as for `load`.
    path : folder of the new run
    track : called with the pieces of the work, returns them one by one; may show progress

    Returns
    -------
    Run
        Of the steps that every process wrote. Time, loss scale and logged scalars are rank 0's. A
        reading that one process lacks is NaN.

    Raises
    ------
    GradscopeError
        If a rank is missing or there twice, the runs are not of one training, or `path` cannot be
        written.

    Notes
    -----
    With R processes, each of which has its share of the batch, and gradients averaged over them: a
    signal is the root of the sum of squares of the processes' signals / R; a norm of parameters
    that n processes hold alike that of their norms / sqrt(n); other norms that of their norms.
    """
    runs = _ranks(folders)
    layers = _Union(runs, "layer", lambda run: run.layers, ["name"])
    for run, numbered in zip(runs, layers.numbers, strict=True):
        for layer, function in run.functions.items():
            layers.rows[numbered[layer]].setdefault(schema.FUNCTION, function)
    shortcuts = _Union(
        runs, "shortcut", lambda run: run.shortcuts, ["name", "form", "split", "join", "branch"]
    )
    steps = [run.steps.set_index("step") for run in runs]
    common = steps[0].index
    for other in steps[1:]:
        common = common.intersection(other.index)
    numbers = common.sort_values().to_numpy()

    writer = RunWriter(path, {key: runs[0].meta[key] for key in _KEPT if key in runs[0].meta})
    try:
        writer.update(
            layers=layers.rows,
            shortcuts=shortcuts.rows,
            heads=runs[0].meta["heads"],
            edges=_edges(runs, layers.numbers),
            notes=_notes(runs, sum(not common.equals(s.index) for s in steps)),
            merged=len(runs),
        )
        height = max(1, _ROWS_AT_ONCE // max(1, len(layers.rows) * len(runs)))
        pieces = [numbers[start : start + height] for start in range(0, numbers.size, height)]
        for piece in track(pieces):
            of_layers = layers.merged(piece, schema.LAYER_METRICS)
            of_shortcuts = shortcuts.merged(piece, schema.SHORTCUT_METRICS)
            of_shortcuts["energy_share"] = energy_share(
                of_shortcuts["shortcut_norm"], of_shortcuts["branch_norm"]
            )
            writer.add_rows("layers", _table("layer", piece, of_layers))
            writer.add_rows("shortcuts", _table("shortcut", piece, of_shortcuts))
            writer.add_rows("steps", _step_rows(piece, steps, of_layers))
            writer.flush()
    finally:
        writer.close()
    return load(path)


class _Union:
    """The layers, or the shortcuts, of all ranks under one numbering: rank 0's, then new ones."""

    def __init__(
        self,
        runs: Sequence[Run],
        key: str,
        listed: Callable[[Run], pd.DataFrame],
        identity: list[str],
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.numbers: list[list[int]] = []
        self._readers = [
            TableReader(run.path / f"{key}s", str(run.meta["id"]), key, _warn) for run in runs
        ]
        known: dict[tuple[object, ...], int] = {}
        for run in runs:
            numbers = []
            seen: Counter[tuple[object, ...]] = Counter()
            for row in listed(run).to_dict("records"):
                name = tuple(row[column] for column in identity)
                seen[name] += 1
                number = known.setdefault((*name, seen[name]), len(self.rows))
                if number == len(self.rows):
                    self.rows.append({**{str(k): v for k, v in row.items()}, key: number})
                numbers.append(number)
            self.numbers.append(numbers)
        self._copies = [_copies(run, listed(run)) for run in runs]
        self._losses = [_losses(run) for run in runs]

    def merged(self, steps: np.ndarray, metrics: schema.Table) -> dict[str, np.ndarray]:
        """Return each metric over all ranks, steps x layers (or shortcuts)."""
        names = schema.names(metrics)
        read = [
            reader.read(names, steps, len(numbers))
            for reader, numbers in zip(self._readers, self.numbers, strict=True)
        ]
        flat = [number for numbers in self.numbers for number in numbers]
        groups = Groups(flat, [1] * len(flat))
        given: dict[str, np.ndarray] = {}
        result = {}
        for place, column in enumerate(metrics):
            each = zip(self._losses, self._copies, strict=True)
            shares = [share_of_process(column, losses, copies) for losses, copies in each]
            given[column.name] = np.concatenate(
                [values[place] * share for values, share in zip(read, shares, strict=True)], axis=1
            ).astype(np.float64)
            out = np.full((steps.size, len(self.rows)), np.nan)
            combine(column, given, groups, out)
            wide = read[0][place].dtype == np.float64
            result[column.name] = out if wide else out.astype(np.float32)
        return result


def _edges(runs: Sequence[Run], numbers: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    """Return the edges of all ranks; `numbers` are those of each rank's layers in the union."""
    found = {
        (numbered[source], numbered[target] if target >= 0 else target)
        for run, numbered in zip(runs, numbers, strict=True)
        for source, target in run.edges.itertuples(index=False)
    }
    return [{"source": source, "target": target} for source, target in sorted(found)]


def _copies(run: Run, listed: pd.DataFrame) -> np.ndarray:
    """Return how many ranks hold the parameters of each layer alike; all do if not said."""
    held: Mapping[str, float | None] = run.meta.get("replicas", {})
    return np.array([held.get(name, run.meta["ranks"]) for name in listed["name"]], np.float64)


def _losses(run: Run) -> float:
    """Return of how many losses the gradients are the mean; NaN if outputs are spread otherwise."""
    return float(run.meta.get("losses", run.meta["ranks"])) if _follows(run) else math.nan


def _follows(run: Run) -> bool:
    """Whether each process has outputs of samples of its own."""
    return bool(run.meta.get("outputs_followed", True))


def _ranks(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Return the runs of all ranks, in order."""
    folder = ", ".join(map(str, folders))
    runs: dict[int, Run] = {}
    for run in (run for folder in folders for run in load_all(folder)):
        if "rank" not in run.meta:
            continue
        rank = int(run.meta["rank"])
        if rank in runs:
            raise GradscopeError(
                f"{run.path}: rank {rank} is there twice, also in {runs[rank].path}; give the runs"
                " of one training"
            )
        runs[rank] = run
    if not runs:
        raise GradscopeError(
            f'{folder}: holds no runs of several ranks, as watch(ranks="all") writes them'
        )
    size = int(next(iter(runs.values())).meta["ranks"])
    missing = [str(rank) for rank in range(size) if rank not in runs]
    if missing:
        raise GradscopeError(
            f"{folder}: rank {', '.join(missing)} of {size} is missing; copy its run to the others"
        )
    listed = [runs[rank] for rank in range(size)]
    for what in ("model", "ranks", "every"):
        values = {run.meta[what] for run in listed}
        if len(values) > 1:
            raise GradscopeError(
                f"{folder}: the runs are not of one training, their `{what}` differs:"
                f" {', '.join(map(str, sorted(values)))}"
            )
    return listed


def _warn(problem: str) -> None:
    warnings.warn(problem, GradscopeWarning, stacklevel=2)


def _notes(runs: Sequence[Run], differing: int) -> list[str]:
    notes = []
    if not all(map(_follows, runs)):
        notes.append(
            "which part of an output each process holds is not known: there are no signals,"
            ' activations and shortcuts; without ranks="all" they are put together while training'
        )
    notes += [f"rank {run.meta['rank']}: {note}" for run in runs for note in run.notes]
    if differing:
        notes.append("steps that not every rank has on disk are left out")
    return notes


def _table(key: str, steps: np.ndarray, metrics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    width = next(iter(metrics.values())).shape[1]
    return {
        "step": np.repeat(steps, width),
        key: np.tile(np.arange(width, dtype=np.int32), steps.size),
        **{name: values.reshape(-1) for name, values in metrics.items()},
    }


def _step_rows(
    numbers: np.ndarray, steps: Sequence[pd.DataFrame], layers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    of_ranks = [rows.loc[numbers] for rows in steps]
    columns = {str(name): of_ranks[0][name].to_numpy() for name in of_ranks[0].columns}
    columns["skipped"] = np.any([rows["skipped"] for rows in of_ranks], axis=0)
    for name in ("grad_norm", "clipped_grad_norm"):
        total = np.sqrt(np.nansum(np.square(layers[name], dtype=np.float64), axis=1))
        unread = np.any([rows[name].isna() for rows in of_ranks], axis=0)
        columns[name] = np.where(unread, np.nan, total)
    return {"step": numbers, **columns}
