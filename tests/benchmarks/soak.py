"""A long training, and a large run beside CSV and SQLite: figures, not a test.

python tests/benchmarks/soak.py train [STEPS]     memory, parts and rate over a long training
python tests/benchmarks/soak.py store [STEPS]     size, write rate and load time of 300 layers;
                                                  CSV and SQLite get the first 5,000 steps
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
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


LOADERS = {
    "run": "import gradscope; load = lambda path: gradscope.load(path).matrix('signal_norm')[1]",
    "csv": "import pandas; load = lambda path: pandas.read_csv(path, usecols=['signal_norm'],"
    " engine='pyarrow').signal_norm.to_numpy()",
    "sqlite": "import sqlite3, numpy; load = lambda path: numpy.fromiter((row[0] for row in"
    " sqlite3.connect(path).execute('select signal_norm from layers')), numpy.float32)",
}
"""How a process of its own reads one metric of each."""

MEASURED = """
import re, sys, time
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, began = peak(), time.perf_counter()
values = load(sys.argv[1])
print(time.perf_counter() - began, peak() - before, values.size, float(values.sum(dtype="f8")))
"""


def measured_load(kind: str, path: Path) -> list[float]:
    """Return the seconds and the MiB of memory that it takes to load a metric, its size and sum."""
    done = subprocess.run(
        [sys.executable, "-c", LOADERS[kind] + MEASURED, str(path)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return [float(word) for word in done.stdout.split()]


def store(steps: int, compared: int = 5_000) -> None:
    """Write readings as a run, the first steps of them as CSV and to SQLite; read one metric."""
    import pyarrow as pa
    import pyarrow.csv

    from gradscope.storage.writer import RunWriter

    layer = {"name": "l", "kind": "Linear", "depth": 1, "parameters": 1}
    times: dict[str, float] = {}
    lengths = {"run": steps, "csv": min(steps, compared), "sqlite": min(steps, compared)}
    with tempfile.TemporaryDirectory() as folder:
        paths = {"run": Path(folder) / "run"}
        paths |= {kind: Path(folder) / f"run.{kind}" for kind in ("csv", "sqlite")}
        writer = RunWriter(paths["run"], {"model": "soak", "every": 1})
        writer.update(layers=[{"layer": i, **layer} for i in range(LAYERS)])
        database = sqlite3.connect(paths["sqlite"])
        with open(paths["csv"], "wb") as text:
            for rows in readings(steps):
                at = rows["step"][::LAYERS]
                nothing = dict.fromkeys(("time", "grad_norm", "clipped_grad_norm"), at * 0.1)
                with timed(times, "run"):
                    writer.add_rows("layers", rows)
                    skipped = np.zeros(at.size, bool)
                    writer.add_rows(
                        "steps",
                        {"step": at, "skipped": skipped, "loss_scale": at * 0.0 + 1, **nothing},
                    )
                    writer.flush()
                if at[0] >= compared:
                    continue
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

        print(f"{LAYERS} layers, 13 metrics, flushed every {FLUSH} steps; one metric is loaded")
        print("             steps   size MiB   write steps/s    load s   load MiB")
        for kind, path in paths.items():
            seconds, memory, count, _ = measured_load(kind, path)
            assert count == lengths[kind] * LAYERS
            print(
                f"{kind:8}{lengths[kind]:10}{size_mib(path):11.1f}"
                f"{lengths[kind] / times[kind]:16.0f}{seconds:10.2f}{memory:11.0f}"
            )
        print(f"parts: {sum(1 for _ in paths['run'].rglob('part-*'))}")


if __name__ == "__main__":
    choice, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    {"train": train, "store": store}[choice](count or {"train": 100_000, "store": 100_000}[choice])
