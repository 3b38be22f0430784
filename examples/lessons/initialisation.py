"""Does the start decide? torch's default, Xavier and He weights for tanh and ReLU.

Glorot and Bengio 2010 chose the variance 2 / (n_in + n_out) so that neither signals nor gradients
change from layer to layer in a net of near-linear units; He et al. 2015, Delving Deep into
Rectifiers, doubled it, as a ReLU blocks half of the gradient's energy: with Xavier weights each
ReLU layer multiplies the gradient by 1/sqrt(2), 0.1505 decades. torch's own weights have a variance
of 1 / (3 n), that is by 1/sqrt(6) in a ReLU layer, 0.3891 decades.
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

STARTS = {
    "default": lambda weight: None,
    "Xavier": nn.init.xavier_normal_,
    "He": nn.init.kaiming_normal_,
}
RELU = {
    "default": -0.5 * math.log10(6),
    "Xavier": -0.5 * math.log10(2),
    "He": 0.0,
}
"""Decades a ReLU layer adds to the gradient, from E[relu'(z)^2] = 1/2 and the weights' variance."""


def measure(depth: int = 20, steps: int = 200, width: int = 64) -> pd.DataFrame:
    """Return decades lost at init, predicted for ReLU, and the training loss after `steps`."""
    data = digits.load()
    rows = []
    for activation in (nn.Tanh, nn.ReLU):
        for start, init in STARTS.items():
            torch.manual_seed(0)
            model = nets.plain(depth, width, activation)
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    init(module.weight)
            run = record(model, data.train_x, data.train_y, steps=steps, batch=64, lr=0.01, every=5)
            diagnosis = gradscope.diagnose(run)
            hidden = depth - 2  # layers between the first and the last hidden one's outputs
            predicted = RELU[start] * hidden if activation is nn.ReLU else float("nan")
            rows.append(
                (
                    activation.__name__,
                    start,
                    predicted,
                    decades_at_start(run),
                    diagnosis.start,
                    run.steps["train_loss"].dropna().iloc[-10:].median(),
                )
            )
    columns = ["activation", "start", "decades, predicted", "measured", "verdict", "final loss"]
    return pd.DataFrame(rows, columns=columns)


def decades_at_start(run: gradscope.Run) -> float:
    """Return log10 of the first over the last hidden layer's signal at the first step."""
    frame = run.frame()
    first = frame[(frame["step"] == 0) & (frame["kind"] == "Linear")]["signal_norm"].to_numpy()
    return math.log10(first[0] / first[-2])


def draw(table: pd.DataFrame) -> Figure:
    """Draw the decades lost at the start."""
    return px.bar(table, x="start", y="measured", color="activation", barmode="group")


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    relu = table[table["activation"] == "ReLU"].set_index("start")
    lost, loss = -relu["measured"], relu["final loss"]
    return (
        f"In the ReLU layers torch's default start loses {lost['default']:.1f} decades of gradient,"
        f" Xavier's {lost['Xavier']:.1f} and He's {abs(lost['He']):.1f}: the last one trains, to a"
        f" loss of {loss['He']:.2f}, the first stays at {loss['default']:.2f}."
    )


if __name__ == "__main__":
    result = measure()
    present("Initialisation", result, draw(result), sentence(result))
