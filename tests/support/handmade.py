"""Runs with handmade readings: a chain of weight layers and activations, all columns settable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gradscope import schema
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from gradscope.storage.writer import RunWriter


def chain(n_weight_layers: int, activation: str = "Tanh") -> list[dict[str, object]]:
    """Layers fc0, act0, fc1, act1 ... and the output layer, which has no activation."""
    rows: list[dict[str, object]] = []
    for depth in range(1, n_weight_layers + 1):
        rows.append({"name": f"fc{depth - 1}", "kind": "Linear", "depth": depth, "parameters": 30})
        rows.append(
            {"name": f"act{depth - 1}", "kind": activation, "depth": depth, "parameters": 0}
        )
    return [{"layer": i, **row} for i, row in enumerate(rows[:-1])]


def falling(n_layers: int, decades: float, n_steps: int) -> np.ndarray:
    """Signals (n_steps, n_layers), `decades` lost evenly from last hidden to first layer."""
    exponents = np.zeros(n_layers)
    exponents[:-2] = np.linspace(-decades, 0, n_layers - 2)
    return np.tile(10.0**exponents, (n_steps, 1))


def make_run(
    path: Path,
    layers: Sequence[Mapping[str, object]],
    readings: Mapping[str, np.ndarray | float],
    *,
    n_steps: int = 40,
    shortcuts: Sequence[Mapping[str, object]] = (),
    shortcut_readings: Mapping[str, np.ndarray | float] | None = None,
    steps: Mapping[str, np.ndarray] | None = None,
) -> Run:
    """Write a run; each reading is a number or an array that fits (n_steps, n_layers)."""
    writer = RunWriter(path, {"model": "Handmade", "every": 1})
    writer.update(layers=[dict(row) for row in layers], shortcuts=[dict(row) for row in shortcuts])
    numbers = np.arange(n_steps, dtype=np.int64)
    for table, rows, values in (
        ("layers", layers, readings),
        ("shortcuts", shortcuts, shortcut_readings or {}),
    ):
        if not rows:
            continue
        index = schema.TABLES[table][1].name
        metrics = schema.names(schema.TABLES[table])[2:]
        full = {name: np.full((n_steps, len(rows)), np.nan) for name in metrics}
        for name, value in values.items():
            full[name][:] = value
        writer.add_rows(
            table,
            {
                "step": np.repeat(numbers, len(rows)),
                index: np.tile(np.arange(len(rows), dtype=np.int32), n_steps),
                **{name: value.ravel() for name, value in full.items()},
            },
        )
    writer.add_rows(
        "steps",
        {
            "step": numbers,
            "time": numbers * 0.1,
            "skipped": np.zeros(n_steps, dtype=bool),
            "grad_norm": np.ones(n_steps),
            "clipped_grad_norm": np.ones(n_steps),
            "loss_scale": np.ones(n_steps),
            **(steps or {}),
        },
    )
    writer.close()
    return load(path)
