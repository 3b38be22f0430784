"""Synthetic runs with closed-form readings, written to disk through `RunWriter`.

Layer i of n of the plain net gets the signal 10 ** (-decades * (n - 1 - i) / (n - 1)): it vanishes
evenly toward the input. In the residual net every layer gets the same signal but for a mild slope,
and a shortcut spans each block of two layers. Everything else follows from the signal, so a test
can tell what each number must be.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradscope import schema
from gradscope.storage.writer import RunWriter

if TYPE_CHECKING:
    from gradscope.runs.run import Run

PLAIN_DECADES = 12.0
RESIDUAL_DECADES = 0.3


def span(first: int, last: int) -> np.ndarray:
    """Return the steps from `first` to `last`."""
    return np.arange(first, last + 1, dtype=np.int64)


def layer_table(n_layers: int) -> list[dict[str, object]]:
    """Weight layers and activations in turn, the last one a weight layer."""
    return [
        {
            "layer": i,
            "name": f"blocks.{i // 2}.{'fc' if i % 2 == 0 else 'act'}"
            if i < n_layers - 1
            else "head",
            "kind": "Linear" if i % 2 == 0 or i == n_layers - 1 else "Tanh",
            "depth": i // 2 + 1,
            "parameters": 4160 if i % 2 == 0 or i == n_layers - 1 else 0,
        }
        for i in range(n_layers)
    ]


def shortcut_table(n_shortcuts: int) -> list[dict[str, object]]:
    return [
        {
            "shortcut": i,
            "name": f"blocks.{i}",
            "form": "projection" if i % 8 == 0 else "identity",
            "split": f"blocks.{i - 1}" if i else "stem",
            "join": f"blocks.{i}",
            "branch": f"blocks.{i}.fc",
            "position": (i + 1) / (n_shortcuts + 1),
        }
        for i in range(n_shortcuts)
    ]


def signal(n_layers: int, steps: np.ndarray, decades: float) -> np.ndarray:
    """Return float64[S, n_layers], 1 at the output, 10 ** -decades at the input, slowly falling."""
    from_output = (n_layers - 1 - np.arange(n_layers)) / max(n_layers - 1, 1)
    return 10.0 ** (-decades * from_output) / (1.0 + steps[:, None] / 500.0)


def layer_rows(n_layers: int, steps: np.ndarray, decades: float) -> dict[str, np.ndarray]:
    """Return all columns of LAYER_READINGS for `steps`, every layer at every step."""
    signals = signal(n_layers, steps, decades)
    owner = np.array([bool(row["parameters"]) for row in layer_table(n_layers)])
    ones = np.ones_like(signals)
    parameter = np.where(owner, 1.0, np.nan) * ones
    activation = np.where(owner, np.nan, 1.0) * ones
    metrics = {
        "grad_norm": 0.5 * signals * parameter,
        "clipped_grad_norm": 0.4 * signals * parameter,
        "weight_norm": np.sqrt(8.0**2 + steps[:, None] * 0.05**2) * parameter,  # across the weights
        "update_norm": 0.05 * signals * parameter,
        "signal_norm": signals,
        "input_signal_norm": 0.9 * signals,
        "activation_norm": 2.0 * ones,
        "activation_mean": 0.01 * ones,
        "activation_std": 0.7 * ones,
        "derivative_mean": 0.6 * activation,
        "zero_fraction": 0.0 * ones,
        "saturated_fraction": 0.1 * activation,
        "cut_signal_norm": np.nan * ones,
        "dead_fraction": 0.05 * activation,
        "sample_spread": 0.8 * ones,
        "attention_logit_max": np.nan * ones,
        "time_decades": np.nan * ones,
        "moved_fraction": np.nan * ones,
        "output_elements": 64.0 * ones,
    }
    return {
        "step": np.repeat(steps, n_layers),
        "layer": np.tile(np.arange(n_layers, dtype=np.int32), steps.size),
        **{
            column.name: metrics[column.name].astype(np.float32).ravel()
            for column in schema.LAYER_METRICS
        },
    }


def shortcut_rows(n_shortcuts: int, steps: np.ndarray) -> dict[str, np.ndarray]:
    """Return all columns of SHORTCUT_READINGS: the two parts are orthogonal, 3 : 4 : 5."""
    shape = (steps.size, n_shortcuts)
    scale = np.broadcast_to(1.0 / (1.0 + steps[:, None] / 500.0), shape)
    metrics = {
        "total_norm": 0.5 * scale,
        "shortcut_norm": 0.4 * scale,
        "branch_norm": 0.3 * scale,
        "other_norm": 0.0 * scale,
        "cosine": np.zeros(shape),
        "energy_share": np.full(shape, 0.64),
        "branch_ratio": np.full(shape, 0.25),
    }
    return {
        "step": np.repeat(steps, n_shortcuts),
        "shortcut": np.tile(np.arange(n_shortcuts, dtype=np.int32), steps.size),
        **{name: values.astype(np.float32).ravel() for name, values in metrics.items()},
    }


def step_rows(steps: np.ndarray, loss_floor: float) -> dict[str, np.ndarray]:
    """Return all columns of STEPS, and the scalars `train_loss` and `val_loss`."""
    fall = np.exp(-steps / 200.0)
    return {
        "step": steps,
        "time": 0.01 * (steps + 1),
        "skipped": np.zeros(steps.size, bool),
        "grad_norm": 2.0 * fall + 0.1,
        "clipped_grad_norm": np.minimum(2.0 * fall + 0.1, 1.0),
        "loss_scale": np.ones(steps.size),
        "train_loss": loss_floor + (2.3 - loss_floor) * fall,
        "val_loss": loss_floor + 0.1 + (2.3 - loss_floor) * fall,
    }


def start(path: str | Path, *, n_layers: int = 50, residual: bool = False) -> RunWriter:
    """Return the writer of a run that has its layers and shortcuts, but no step yet."""
    meta = {"model": "ResidualNet" if residual else "PlainNet", "every": 1, "torch": "2.13.0"}
    writer = RunWriter(path, meta)
    shortcuts = shortcut_table((n_layers - 1) // 2) if residual else []
    writer.update(layers=layer_table(n_layers), shortcuts=shortcuts)
    return writer


def extend(writer: RunWriter, steps: np.ndarray) -> None:
    """Append the rows of `steps` to a run that `start` made."""
    n_layers, n_shortcuts = len(writer.meta["layers"]), len(writer.meta["shortcuts"])
    decades = RESIDUAL_DECADES if n_shortcuts else PLAIN_DECADES
    writer.add_rows("layers", layer_rows(n_layers, steps, decades))
    if n_shortcuts:
        writer.add_rows("shortcuts", shortcut_rows(n_shortcuts, steps))
    writer.add_rows("steps", step_rows(steps, loss_floor=0.02 if n_shortcuts else 1.5))


def write_run(
    path: str | Path,
    *,
    n_layers: int = 50,
    n_steps: int = 200,
    residual: bool = False,
    every: int = 1,
    flush: int = 50,
) -> Path:
    """Write a whole run: plain and vanishing, or residual and healthy.

    Parameters
    ----------
    path : folder of the run
    n_layers : weight layers and activations together
    n_steps : recorded steps
    residual : bool
        A shortcut round each block, and hardly any loss of signal.
    every : distance between recorded steps
    flush : recorded steps between two flushes
    """
    writer = start(path, n_layers=n_layers, residual=residual)
    writer.update(every=every)
    recorded = np.arange(n_steps, dtype=np.int64) * every
    for begin in range(0, n_steps, flush):
        extend(writer, recorded[begin : begin + flush])
        writer.flush()
    writer.close()
    return Path(path)


def write_with(path: Path, n_layers: int, n_steps: int, **changes: np.ndarray | float) -> Run:
    """Write a plain run whose metrics `changes` have these values, shape (n_steps, n_layers)."""
    from gradscope.runs.loading import load  # which those that only write do without

    writer = start(path, n_layers=n_layers)
    steps = np.arange(n_steps)
    rows = layer_rows(n_layers, steps, decades=3.0)
    for metric, values in changes.items():
        rows[metric] = np.broadcast_to(values, (n_steps, n_layers)).astype(np.float32).ravel()
    writer.add_rows("layers", rows)
    writer.add_rows("steps", step_rows(steps, 0.1))
    writer.close()
    return load(path)


def write_pair(folder: str | Path, **options: int) -> list[Path]:
    """Write `plain-50` (vanishing) and `residual-50` (healthy) into `folder`."""
    return [
        write_run(Path(folder) / "plain-50", **options),
        write_run(Path(folder) / "residual-50", residual=True, **options),
    ]


def check_rows(run: Run, n_layers: int = 6, n_shortcuts: int = 2) -> np.ndarray:
    """Compare the readings of a residual run with their closed form, and return the steps."""
    steps = run.steps["step"].to_numpy()
    expected = {
        **layer_rows(n_layers, steps, RESIDUAL_DECADES),
        **shortcut_rows(n_shortcuts, steps),
    }
    for name in ("signal_norm", "update_norm", "derivative_mean"):
        np.testing.assert_array_equal(run.matrix(name)[1].ravel(), expected[name])
    for name in ("total_norm", "energy_share"):
        np.testing.assert_array_equal(run.shortcut_matrix(name)[1].ravel(), expected[name])
    return steps
