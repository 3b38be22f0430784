"""A folder of many small runs: seconds until they are listed, shown and compared; not a test.

python tests/benchmarks/many_runs.py FOLDER [RUNS]

makes the runs in FOLDER first (10,000 by default), unless they are there: one training of 100 steps
of 13 layers, rewritten with other losses and gradients. A tenth of them has no summary, as a run
that was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

import gradscope
from gradscope import cli
from gradscope.diagnosis import kept
from gradscope.errors import GradscopeWarning
from gradscope.storage.run_json import write_meta
from gradscope.storage.writer import RunWriter
from gradscope_dashboard.library import Library

DISTINCT = 200
"""Runs that differ in their readings; the others are copies of them in other folders."""

KILLED = 10
"""One of so many runs has no summary."""

CHOSEN = 20


def template(folder: Path) -> gradscope.Run:
    """Train a small net, and return its run."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(16, 16), nn.Tanh())])
    model.append(nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(32, 16), torch.randint(0, 10, (32,))
    with gradscope.watch(model, folder) as scope:
        for _ in range(100):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scope.log(train_loss=loss, val_loss=1.1 * loss.detach())
    return scope.run


def make(folder: Path, runs: int) -> None:
    """Write `runs` runs to `folder`: some with numbers of their own, the others copies of these."""
    original = template(folder / "original")
    rng = np.random.default_rng(0)
    sync, os.fsync = os.fsync, lambda handle: None  # what a bench made may be lost
    try:
        for number in range(runs):
            path = folder / f"{number:05d}"
            if number < DISTINCT:
                rewrite(original, path, float(10 ** rng.uniform(-2, 0.5)), rng)
            else:
                copy(folder / f"{number % DISTINCT:05d}", path, number)
        for number in range(0, DISTINCT, KILLED):
            (folder / f"{number:05d}" / kept.FILE).unlink()
    finally:
        os.fsync = sync


def rewrite(original: gradscope.Run, path: Path, size: float, rng: np.random.Generator) -> None:
    """Write a run as `original`, its gradients and losses changed, and its summary."""
    meta = {key: original.meta[key] for key in ("model", "every", "layers", "edges", "heads")}
    writer = RunWriter(path, {**meta, "name": path.name, "config": {"lr": 0.1 * size, "seed": 0}})
    frame = original.layer_readings
    readings = {name: frame[name].to_numpy() for name in frame}
    slope = size ** (readings["layer"] / 12)  # from the output to the input
    norms = [name for name in readings if name.endswith("_norm")]
    writer.add_rows("layers", readings | {name: readings[name] * slope for name in norms})
    frame = original.steps
    steps = {name: frame[name].to_numpy() for name in frame}
    noise = rng.uniform(0.9, 1.1, len(frame))
    losses = ("train_loss", "val_loss")
    writer.add_rows("steps", steps | {name: steps[name] * noise for name in losses})
    writer.close()
    kept.summary_of(path)


def copy(source: Path, path: Path, number: int) -> None:
    """Copy a run with its summary, as another one of the sweep; one of `KILLED` without."""
    shutil.copytree(source, path)
    meta = json.loads((source / "run.json").read_bytes())
    del meta["crc32"]
    config = {**meta["config"], "seed": number // DISTINCT}
    write_meta(path, {**meta, "name": path.name, "config": config})
    summary = path / kept.FILE
    if number % KILLED == 0:
        summary.unlink()
    else:
        held = json.loads(summary.read_bytes())
        summary.write_text(json.dumps({**held, "of": kept._mark(path)}))


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Do `work`, and print what it took: by the clock, and of the processor, which counts."""
    began, used = time.perf_counter(), time.process_time()
    result = work()
    took, used = time.perf_counter() - began, time.process_time() - used
    print(f"{what:44s} {took:8.1f} s, processor {used:8.1f} s", flush=True)
    return result


def first_page(folder: Path) -> int:
    """Return how many rows the dashboard's table of runs can show when the page opens."""
    library = Library(folder)
    known = [row for row in library.rows() if "status" in row]
    library.close()
    return len(known)


def settled(folder: Path) -> int:
    """Return how many of them have a verdict, once all are worked out."""
    library = Library(folder)
    while any(row.get("verdict") is None for row in library.rows()):
        time.sleep(0.5)
    known = len(library.rows())
    library.close()
    return known


def listed(folder: Path) -> int:
    """Do what `gradscope runs` does; its output goes nowhere."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(["runs", str(folder)])
    return out.getvalue().count("\n") - 1


def main(folder: Path, runs: int) -> None:
    """Make the runs unless they are there, and time what people do with them."""
    if not (folder / f"{runs - 1:05d}").exists():
        folder.mkdir(parents=True, exist_ok=True)
        timed(f"{runs:,} runs made", lambda: make(folder, runs))
    timed("gradscope runs, a tenth without summaries", lambda: listed(folder))
    timed("gradscope runs", lambda: listed(folder))
    timed("dashboard: names, settings, states", lambda: first_page(folder))
    timed("dashboard: verdicts of all", lambda: settled(folder))
    chosen = [gradscope.load(folder / f"{number:05d}") for number in range(CHOSEN)]
    timed(f"compare of {CHOSEN}", lambda: gradscope.compare(chosen))
    everything = timed("load_all", lambda: gradscope.load_all(folder))
    timed("compare of all", lambda: gradscope.compare(everything))
    query = f"""SELECT filename, min(train_loss) FROM read_parquet(
        '{folder}/*/steps/*.parquet', union_by_name := true, filename := true) GROUP BY ALL"""
    timed("DuckDB: the lowest loss of each", lambda: duckdb.sql(query).fetchall())


if __name__ == "__main__":
    warnings.simplefilter("ignore", GradscopeWarning)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
