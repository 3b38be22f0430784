"""Does BatchNorm keep the gradient even? Not at the start, without shortcuts.

Yang et al. 2019, A Mean Field Theory of Batch Normalization: gradients of plain nets with BatchNorm
explode at initialisation, by sqrt(pi / (pi - 1)) = 1.21 a ReLU layer in wide nets with large
batches, 0.083 decades. It passes as the net trains.
"""

from __future__ import annotations

import math

import pandas as pd
import plotly.express as px
import torch
from lesson import digits, nets, present, record
from plotly.graph_objects import Figure
from torch import nn

import gradscope

PUBLISHED = 0.5 * math.log10(math.pi / (math.pi - 1))


def measure(depth: int = 32, width: int = 128, steps: int = 60) -> pd.DataFrame:
    """Return decades a layer at the start and after `steps`, plain and with shortcuts."""
    data = digits.load()
    rows = []
    for build in (nets.plain, nets.residual):
        torch.manual_seed(0)
        model = build(depth, width, nn.ReLU, norm=True)
        run = record(model, data.train_x, data.train_y, steps=steps, batch=256, lr=0.05, every=1)
        frame = run.frame()
        linear = frame[frame["kind"] == "Linear"].pivot(index="step", columns="layer")
        # the first layers still feel how alike the inputs are, the last one has no BatchNorm
        signal = linear["signal_norm"].to_numpy()[:, depth // 4 : -1]
        decades = [math.log10(row[0] / row[-1]) / (len(row) - 1) for row in signal]
        diagnosis = gradscope.diagnose(run)
        rows.append(
            (
                build.__name__,
                PUBLISHED if build is nets.plain else float("nan"),
                decades[0],
                decades[-1],
                diagnosis.start,
                diagnosis.end,
            )
        )
    columns = ["net", "decades a layer, published", "at the start", "at the end", "start", "end"]
    return pd.DataFrame(rows, columns=columns)


def draw(table: pd.DataFrame) -> Figure:
    """Draw decades a layer at the start and at the end."""
    columns = ["decades a layer, published", "at the start", "at the end"]
    long = table.melt("net", columns, "when", "decades a layer")
    return px.bar(long, x="net", y="decades a layer", color="when", barmode="group")


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    plain = table.iloc[0]
    return (
        f"At the start the plain net's gradient grows by {plain['at the start']:.3f} decades a"
        f" layer toward the input ({PUBLISHED:.3f} in theory), later by"
        f" {plain['at the end']:.3f}: an explosion that passes, not a fault of the run."
    )


if __name__ == "__main__":
    result = measure()
    present("BatchNorm at initialisation", result, draw(result), sentence(result))
