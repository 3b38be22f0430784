"""Why does a residual block have two layers? One-layer blocks are plain layers in disguise.

He et al. 2015, Deep Residual Learning, section 3.2: with a single layer the block is similar to
y = W x + x, for which they saw no advantages. Indeed relu(W x + x) = relu((W + I) x): the same net
as a plain one with the weight W + I, gradients and all. Checked here to rounding error.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from lesson import digits, nets, present, record
from plotly.graph_objects import Figure
from torch import nn

import gradscope

WIDTH = 64


def net(kind: str, blocks: int) -> nn.Sequential:
    """Return a net of one-layer blocks, of two-layer blocks, or the plain net of W + I."""
    torch.manual_seed(0)
    body: list[nn.Module] = []
    for _ in range(blocks):
        first, second = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))
        if kind == "plain, W + I":
            with torch.no_grad():
                first.weight += torch.eye(WIDTH)
            body.append(first)
        elif kind == "one layer":
            body.append(nets.Residual(nn.Sequential(first)))
        else:
            body.append(nets.Residual(nn.Sequential(first, nn.ReLU(), second)))
        body.append(nn.ReLU())
    return nets.stack(body, WIDTH, nn.ReLU, inputs=64, classes=10).double()


def measure(blocks: int = 10) -> pd.DataFrame:
    """Return the gradient that enters the activation behind each block of the three nets."""
    data = digits.load()
    rows = []
    for kind in ("one layer", "plain, W + I", "two layers"):
        run = record(net(kind, blocks), data.train_x[:256].double(), data.train_y[:256])
        found = {finding.verdict for finding in gradscope.diagnose(run).findings}
        frame = run.frame()
        behind = frame[frame["name"].str.fullmatch(r"blocks\.\d*[13579]")]
        for number, signal in enumerate(behind["signal_norm"], 1):
            rows.append((kind, number, signal, "reparameterised" in found))
    return pd.DataFrame(rows, columns=["block", "number", "gradient", "flagged as plain"])


def difference(table: pd.DataFrame) -> float:
    """Return the largest relative difference between the one-layer net and the plain one."""
    gradient = table.set_index(["block", "number"])["gradient"]
    one, plain = gradient["one layer"], gradient["plain, W + I"]
    return float(np.abs(one / plain - 1).max())


def draw(table: pd.DataFrame) -> Figure:
    """Draw the gradient behind each block."""
    return px.line(
        table, x="number", y="gradient", color="block", line_dash="block", markers=True, log_y=True
    )


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    return (
        "One-layer blocks and the plain net with the weights W + I have the same gradients, to"
        f" {difference(table):.0e} of them: such a shortcut only starts the weights elsewhere."
    )


if __name__ == "__main__":
    result = measure()
    present("One-layer and two-layer blocks", result, draw(result), sentence(result))
