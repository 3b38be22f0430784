"""Does the gradient reach the first layer? Plain, residual and highway nets by depth.

A highway layer carries its input with the share 1 - sigmoid(b) as long as its gate's weights are
small (Srivastava et al. 2015, Highway Networks: b from -1 to -10), so that L of them pass
(1 - sigmoid(b))^L of the gradient on the carry path alone. The plain net has no such path.
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

GATE_BIAS = -4.0


def measure(depths: tuple[int, ...] = (6, 10, 20, 34, 50)) -> pd.DataFrame:
    """Return early over late gradient of the three nets, and the highway's carry path alone."""
    data = digits.load()
    rows = []
    for depth in depths:
        for build in (nets.plain, nets.residual, nets.highway):
            torch.manual_seed(0)
            options = {"gate_bias": GATE_BIAS} if build is nets.highway else {}
            model = build(depth, **options)
            for name, module in model.named_modules():
                if name.endswith(".gate"):
                    nn.init.zeros_(module.weight)  # the gate is its bias alone
            run = record(model, data.train_x[:256], data.train_y[:256])
            diagnosis = gradscope.diagnose(run)
            row = {"net": build.__name__, "depth": depth, "early / late": 10**diagnosis.decades}
            if build is nets.highway:
                row["carry path, predicted"] = (1 - 1 / (1 + math.exp(-GATE_BIAS))) ** (depth - 2)
                row["measured"] = carried(run)
            rows.append(row | {"verdict": diagnosis.verdict})
    return pd.DataFrame(rows)


def carried(run: gradscope.Run) -> float:
    """Return the share of the gradient that passes all blocks on their shortcuts alone.

    What arrives over a block's shortcut, over what left the next block: the product of them all.
    The last block's output is the output layer's input.
    """
    readings = run.shortcut_readings
    readings = readings[readings["step"] == readings["step"].min()]
    layers = run.layer_readings
    behind = layers["input_signal_norm"][layers["step"] == layers["step"].min()].iloc[-1]
    leaving = [*readings["total_norm"].tolist()[1:], behind]
    shares = [s / g for s, g in zip(readings["shortcut_norm"], leaving, strict=True)]
    return math.prod(shares)


def draw(table: pd.DataFrame) -> Figure:
    """Draw early over late gradient against depth."""
    return px.line(table, x="depth", y="early / late", color="net", log_y=True, markers=True)


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    deepest = table[table["depth"] == table["depth"].max()].set_index("net")["early / late"]
    return (
        f"At {table['depth'].max()} layers the first layer of the plain net gets"
        f" {deepest['plain']:.0e} of the last one's gradient, that of the residual net"
        f" {deepest['residual']:.1f} and that of the highway net {deepest['highway']:.2f} times it."
    )


if __name__ == "__main__":
    result = measure()
    present("Early over late gradient by depth", result, draw(result), sentence(result))
