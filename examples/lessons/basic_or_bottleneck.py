"""What does a bottleneck block save? Parameters, multiply-adds and gradients of both kinds.

He et al. 2015, Deep Residual Learning, figure 5: a basic block of two 3x3 convolutions on 64
channels and a bottleneck block 1x1, 3x3, 1x1 on 256 channels have a similar time complexity. By
their definitions they have 2 * 9 * 64^2 = 73,728 and 2 * 256 * 64 + 9 * 64^2 = 69,632 weights,
each of which is used once per pixel.
"""

from __future__ import annotations

import pandas as pd
import plotly.express as px
import torch
from lesson import digits, nets, present, record
from plotly.graph_objects import Figure
from torch import Tensor, nn

import gradscope

BY_DEFINITION = {"basic": 2 * 9 * 64**2, "bottleneck": 2 * 256 * 64 + 9 * 64**2}


def count(branch: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return the weights of the convolutions in `branch`, and the multiply-adds an image."""
    convolutions = [module for module in branch.modules() if isinstance(module, nn.Conv2d)]
    multiply_adds = 0
    for convolution in convolutions:
        x = convolution(x)  # BatchNorm and ReLU in between change no shape
        multiply_adds += convolution.weight.numel() * x[0, 0].numel()
    return sum(convolution.weight.numel() for convolution in convolutions), multiply_adds


def measure(blocks: int = 3, widths: tuple[int, ...] = (16, 32)) -> pd.DataFrame:
    """Return size and cost of a block as in the paper, and the depth profile of a small net."""
    data = digits.load()
    images = data.train_x[:256].view(-1, 1, 8, 8)
    rows = []
    for name, branch, channels in (
        ("basic", nets.basic, 64),
        ("bottleneck", nets.bottleneck, 256),
    ):
        weights, multiply_adds = count(branch(channels, channels), torch.zeros(1, channels, 56, 56))
        torch.manual_seed(0)
        # the same inner width: a bottleneck's outer channels are four times as many
        outer = tuple(width * channels // 64 for width in widths)
        model = nets.conv_net(branch, blocks, outer)
        run = record(model, images, data.train_y[:256])
        totals = run.shortcut_readings["total_norm"]
        rows.append(
            (
                name,
                channels,
                BY_DEFINITION[name],
                weights,
                multiply_adds / 1e6,
                int(run.layers["depth"].max()),
                totals.iloc[0] / totals.iloc[-1],
                gradscope.diagnose(run).verdict,
            )
        )
    columns = [
        "block",
        "channels",
        "weights, by definition",
        "weights",
        "million multiply-adds at 56x56",
        "layers of the net",
        "early / late",
        "verdict",
    ]
    return pd.DataFrame(rows, columns=columns)


def draw(table: pd.DataFrame) -> Figure:
    """Draw the cost of both blocks."""
    return px.bar(table, x="block", y="million multiply-adds at 56x56", color="block")


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    basic, bottleneck = table.iloc[0], table.iloc[1]
    saved = 1 - bottleneck["weights"] / basic["weights"]
    return (
        f"A bottleneck block works on four times the channels with {saved:.0%} fewer weights and"
        f" multiply-adds, and the gradient comes through as well: early over late"
        f" {basic['early / late']:.2f} and {bottleneck['early / late']:.2f}."
    )


if __name__ == "__main__":
    result = measure()
    present("Basic and bottleneck blocks", result, draw(result), sentence(result))
