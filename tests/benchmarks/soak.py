"""A long training, and a large run beside CSV and SQLite: figures, not a test.

python tests/benchmarks/soak.py train [STEPS]     memory, parts and rate over a long training
python tests/benchmarks/soak.py store [STEPS]     size, write rate and load time of 300 layers
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

LAYERS = 300
FLUSH = 500


def resident_mib() -> float:
    """Return the resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def size_mib(path: Path) -> float:
    """Return how much `path`, a file or a folder, holds."""
    size = 0
    for file in [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):  # a part that was just merged
            size += file.stat().st_size
    return size / 2**20


def train(steps: int) -> None:
    """Train a small net with every=1; print ten times what it costs by then."""
    import torch
    from torch import nn

    import gradscope

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(32, 8)
    y = x.sum(1, keepdim=True).sin()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        print("     steps   steps/s  CPU us/step   RSS MiB   parts    disk MiB")
        with gradscope.watch(model, path):
            for tenth in range(1, 11):
                began, used = time.perf_counter(), time.process_time()
                for _ in range(steps // 10):
                    optimizer.zero_grad()
                    (model(x) - y).square().mean().backward()
                    optimizer.step()
                rate = steps / 10 / (time.perf_counter() - began)
                cost = (time.process_time() - used) / steps * 10 * 1e6
                parts = sum(1 for _ in path.rglob("part-*"))
                print(
                    f"{tenth * steps // 10:10}{rate:10.0f}{cost:13.0f}{resident_mib():10.1f}"
                    f"{parts:8}{size_mib(path):12.1f}",
                    flush=True,
                )
        recorded = gradscope.load(path).steps.step
        assert recorded.tolist() == list(range(steps))


def readings(steps: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of `layers`, FLUSH steps at a time: random walks, as norms in training are."""
    from gradscope import schema

    chance = np.random.default_rng(0)
    names = schema.names(schema.LAYER_METRICS)
    level = chance.normal(-3, 2, (len(names), LAYERS))
    for first in range(0, steps, FLUSH):
        at = np.arange(first, min(first + FLUSH, steps))
        walks = level[:, None] + np.cumsum(
            chance.normal(0, 0.01, (len(names), at.size, LAYERS)), axis=1
        )
        level = walks[:, -1]
        noise = chance.normal(0, 0.1, walks.shape)
        values = np.exp(walks + noise).astype(np.float32)
        yield {
            "step": np.repeat(at, LAYERS),
            "layer": np.tile(np.arange(LAYERS, dtype=np.int32), at.size),
            **{name: values[i].ravel() for i, name in enumerate(names)},
        }


@contextmanager
def timed(times: dict[str, float], key: str) -> Iterator[None]:
    """Add the seconds that the block takes to `times[key]`."""
    began = time.perf_counter()
    yield
    times[key] = times.get(key, 0.0) + time.perf_counter() - began


def store(steps: int) -> None:
    """Write the same readings as a run, as CSV and to SQLite, and read one metric of each."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.csv

    import gradscope
    from gradscope.store import RunWriter

    layer = {"name": "l", "kind": "Linear", "depth": 1, "parameters": 1}
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        run, csv, base = (Path(folder) / name for name in ("run", "run.csv", "run.sqlite"))
        writer = RunWriter(run, {"model": "soak", "every": 1})
        writer.update(layers=[{"layer": i, **layer} for i in range(LAYERS)])
        database = sqlite3.connect(base)
        with open(csv, "wb") as text:
            for rows in readings(steps):
                at = rows["step"][::LAYERS]
                nothing = dict.fromkeys(("time", "grad_norm", "clipped_grad_norm"), at * 0.1)
                with timed(times, "run"):
                    writer.append("layers", rows)
                    skipped = np.zeros(at.size, bool)
                    writer.append(
                        "steps",
                        {"step": at, "skipped": skipped, "loss_scale": at * 0.0 + 1, **nothing},
                    )
                    writer.flush()
                with timed(times, "csv"):
                    options = pa.csv.WriteOptions(include_header=at[0] == 0)
                    pa.csv.write_csv(pa.table(rows), text, options)
                with timed(times, "sqlite"):
                    if at[0] == 0:
                        database.execute(f"create table layers ({', '.join(rows)})")
                    marks = ", ".join("?" * len(rows))
                    lists = zip(*(values.tolist() for values in rows.values()), strict=True)
                    database.executemany(f"insert into layers values ({marks})", lists)
                    database.commit()
        writer.close()
        database.close()

        with timed(times, "load run"):
            ours = gradscope.load(run).matrix("signal_norm")[1]
        with timed(times, "load csv"):
            frame = pd.read_csv(csv, usecols=["signal_norm"], engine="pyarrow")
        with timed(times, "load sqlite"), sqlite3.connect(base) as database:
            column = database.execute("select signal_norm from layers").fetchall()
        np.testing.assert_array_equal(ours.ravel(), frame["signal_norm"].astype(np.float32))
        np.testing.assert_array_equal(ours.ravel(), np.array(column, np.float32).ravel())

        print(f"{LAYERS} layers x {steps} steps, 13 metrics, flushed every {FLUSH} steps")
        print("            size MiB    write steps/s    load one metric s")
        for name, path in (("run", run), ("csv", csv), ("sqlite", base)):
            print(
                f"{name:10}{size_mib(path):10.1f}{steps / times[name]:17.0f}"
                f"{times[f'load {name}']:17.2f}"
            )
        print(f"parts: {sum(1 for _ in run.rglob('part-*'))}")


if __name__ == "__main__":
    choice, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    {"train": train, "store": store}[choice](count or {"train": 100_000, "store": 10_000}[choice])
