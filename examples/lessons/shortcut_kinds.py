"""Why identity shortcuts? What is left of a gradient that passes L of them.

He et al. 2016, Identity Mappings in Deep Residual Networks, equation 8: shortcuts that scale by
lambda pass lambda^L of the gradient, besides what passes the branches. Identity shortcuts pass
all of it, whatever the depth. A projection is a matrix: what it passes depends on its weights.
"""

from __future__ import annotations

import pandas as pd
import plotly.express as px
import torch
from lesson import digits, nets, present, record
from plain_residual_highway import carried
from plotly.graph_objects import Figure
from torch import nn

WIDTH = 64


def block(kind: str) -> nn.Module:
    """Return a two-layer block with the shortcut `identity`, `projection` or `scaled by x`."""
    branch = nets.dense(WIDTH, 2, nn.Tanh, norm=False)
    if kind == "identity":
        return nets.Residual(branch)
    if kind == "projection":
        return nets.Residual(branch, nn.Linear(WIDTH, WIDTH, bias=False))
    return nets.Scaled(branch, float(kind.removeprefix("scaled by ")))


def predicted(kind: str, blocks: int) -> float:
    """Return the share of the gradient that `blocks` shortcuts pass.

    A projection with torch's default weights, of variance 1/(3n), shrinks a random vector by
    1/sqrt(3): a law for the mean over nets, not for each.
    """
    scale = {"identity": 1.0, "projection": 3**-0.5}.get(kind)
    return (float(kind.removeprefix("scaled by ")) if scale is None else scale) ** blocks


def measure(depths: tuple[int, ...] = (5, 10, 25)) -> pd.DataFrame:
    """Return the share passed by the shortcuts alone, and early over late gradient in all."""
    data = digits.load()
    rows = []
    for blocks in depths:
        for kind in ("identity", "scaled by 0.9", "scaled by 0.5", "projection"):
            torch.manual_seed(0)
            body = [block(kind) for _ in range(blocks)]
            model = nets.stack(body, WIDTH, nn.Tanh, inputs=64, classes=10).double()
            run = record(model, data.train_x[:256].double(), data.train_y[:256])
            share = carried(run)
            totals = run.shortcut_readings["total_norm"]
            rows.append(
                (kind, blocks, predicted(kind, blocks), share, totals.iloc[0] / totals.iloc[-1])
            )
    columns = ["shortcut", "blocks", "shortcuts alone, predicted", "measured", "early / late"]
    return pd.DataFrame(rows, columns=columns)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the share that the shortcuts alone pass against the number of blocks."""
    long = table.melt(
        ["shortcut", "blocks"], ["shortcuts alone, predicted", "measured"], "from", "share passed"
    )
    return px.line(
        long, x="blocks", y="share passed", color="shortcut", line_dash="from", log_y=True
    )


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    most = table["blocks"].max()
    half = table[(table["blocks"] == most) & (table["shortcut"] == "scaled by 0.5")].iloc[0]
    return (
        f"Identity shortcuts pass the gradient whole through {most} blocks; scaled by one half"
        f" they pass {half['measured']:.1e} of it, 0.5^{most}, and only the branches can help."
    )


if __name__ == "__main__":
    result = measure()
    present("What shortcuts pass", result, draw(result), sentence(result))
