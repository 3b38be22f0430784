"""Do deeper nets train worse, and is the gradient to blame? Plain and residual nets on digits.

He et al. 2015, Deep Residual Learning, section 4.1: on ImageNet a plain net of 34 layers ends at
28.54 % top-1 error and one of 18 layers at 27.94 %; its training error is the higher one, too. With
shortcuts the deeper net wins. Their plain nets have BatchNorm and healthy gradient norms, so they
find it unlikely that vanishing gradients are the cause; neither are they here.
"""

from __future__ import annotations

import pandas as pd
import plotly.express as px
import torch
from lesson import digits, nets, present, record
from plotly.graph_objects import Figure
from torch import nn

import gradscope

NETS = {
    "plain-8": (nets.plain, 8),
    "plain-32": (nets.plain, 32),
    "residual-32": (nets.residual, 32),
}


def measure(seeds: int = 3, epochs: int = 20) -> tuple[pd.DataFrame, list[gradscope.Comparison]]:
    """Return the training error of each net and seed, and gradscope's comparison for each seed."""
    data = digits.load()
    rows, comparisons = [], []
    for seed in range(seeds):
        runs = []
        for name, (build, depth) in NETS.items():
            torch.manual_seed(seed)
            model = build(depth, width=32, activation=nn.ReLU, norm=True)
            run = record(
                model,
                data.train_x,
                data.train_y,
                steps=epochs * len(data.train_x) // 64,
                batch=64,
                lr=0.05,
                decay=True,
                every=5,
                name=name,
            )
            diagnosis = gradscope.diagnose(run)
            error = run.steps["train_error"].dropna().iloc[-1]
            rows.append((name, seed, error, diagnosis.start, diagnosis.end))
            runs.append(run)
        comparisons.append(gradscope.compare(runs))
    columns = ["net", "seed", "training error", "gradient at the start", "at the end"]
    return pd.DataFrame(rows, columns=columns), comparisons


def draw(table: pd.DataFrame) -> Figure:
    """Draw the training errors."""
    return px.strip(table, x="net", y="training error", color="net")


def sentence(table: pd.DataFrame, comparisons: list[gradscope.Comparison]) -> str:
    """Say what one sees."""
    error = table.groupby("net")["training error"].mean()
    told = [o.sentence for c in comparisons for o in c.observations if o.kind == "degradation"]
    return (
        f"Four times the layers raise the training error of the plain net from"
        f" {error['plain-8']:.1%} to {error['plain-32']:.1%}; with shortcuts it is"
        f" {error['residual-32']:.1%}. gradscope: {told[0] if told else 'no degradation here'}"
    )


if __name__ == "__main__":
    result, compared = measure()
    present("Degradation with depth", result, draw(result), sentence(result, compared))
