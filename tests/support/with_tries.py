"""A run, beside which two changes were tried: one helps, one explodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import handmade
from gradscope.runs.run import Run
from gradscope.runs.tries import FOLDER, Tried, write_tried

LOSSES = {
    "": np.full(20, 2.3),
    "shortcuts": np.linspace(2.3, 0.1, 20),
    "own": np.geomspace(2.3, 1e30, 20),
}
NAMES = {
    "": "unchanged",
    "shortcuts": "shortcuts around pairs of layers",
    "own": "learning rate x 100",
}


def with_tries(path: Path, own: str = NAMES["own"]) -> Run:
    """Write it; the change that explodes is called `own`."""
    names = {**NAMES, "own": own}
    runs, rows = [], []
    for folder, losses in LOSSES.items():
        place = path / FOLDER / folder if folder else path
        steps = {"train_loss": losses}
        signal = {"signal_norm": handmade.falling(5, 3.0, 20)}
        runs.append(handmade.make_run(place, handmade.chain(3), signal, n_steps=20, steps=steps))
        helps = folder == "shortcuts"
        rows.append(
            Tried(
                names[folder], folder, ("vanishing",), helps, helps,
                "healthy" if helps else "vanishing", -0.1 if helps else -3.0, 1e-3, 2.3,
                float(losses[-1]), -0.1, 0.01, 1.2, 100, 20, 3,
            )
        )  # fmt: skip
    write_tried(path, rows)
    return runs[0]
