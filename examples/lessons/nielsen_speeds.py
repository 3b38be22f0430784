"""How fast does each layer of a sigmoid net learn? Nielsen's measurement, repeated.

Nielsen, Neural Networks and Deep Learning, chapter 5: the speed of a layer is the length of the
gradient of the cost with respect to its biases, averaged over 1000 images, in a net whose weights
start from N(0, 1/n_in) and whose biases start from N(0, 1).
"""

from __future__ import annotations

import itertools

import pandas as pd
import plotly.express as px
import torch
from lesson import digits, present, record
from plotly.graph_objects import Figure
from torch import Tensor, nn

PUBLISHED = {2: [0.07, 0.31], 3: [0.012, 0.060, 0.283], 4: [0.003, 0.017, 0.070, 0.285]}
"""Hidden layers -> speed of each of them, from input to output, in Nielsen's chapter."""


class Bias(nn.Module):
    """y = x + b: a module of its own, so that its gradient is read apart from the weights'."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias."""
        return x + self.bias


class CrossEntropy(nn.Module):
    """Nielsen's cost: binary cross-entropy summed over the outputs, averaged over the images."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the cost of sigmoid outputs given as logits."""
        goal = nn.functional.one_hot(target, 10).to(output)
        return nn.functional.binary_cross_entropy_with_logits(output, goal, reduction="sum") / len(
            goal
        )


def sigmoid_net(hidden: int, inputs: int = 64, width: int = 30) -> nn.Sequential:
    """Return [inputs, width, ..., width, 10] with Nielsen's initial weights."""
    sizes = [inputs, *[width] * hidden, 10]
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        weights = nn.Linear(n_in, n_out, bias=False)
        nn.init.normal_(weights.weight, std=n_in**-0.5)
        layers += [weights, Bias(n_out), nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])  # the last sigmoid is in the cost


def measure(seeds: int = 5) -> pd.DataFrame:
    """Return the speed of each hidden layer of the three nets, the median over seeds."""
    data = digits.load()
    rows = []
    for hidden, published in PUBLISHED.items():
        for seed in range(seeds):
            torch.manual_seed(seed)
            run = record(
                sigmoid_net(hidden),
                data.train_x[:1000],
                data.train_y[:1000],
                loss_of=CrossEntropy(),
            )
            frame = run.frame()
            speeds = frame.loc[frame["kind"] == "Bias", "grad_norm"].tolist()[:hidden]
            for layer, (speed, book) in enumerate(zip(speeds, published, strict=True), 1):
                rows.append((f"{hidden} hidden layers", layer, book, speed))
    table = pd.DataFrame(rows, columns=["net", "layer", "published", "measured"])
    return table.groupby(["net", "layer", "published"], as_index=False).median()


def draw(table: pd.DataFrame) -> Figure:
    """Draw published and measured speed over the layers."""
    long = table.melt(["net", "layer"], ["published", "measured"], "from", "speed")
    return px.line(
        long, x="layer", y="speed", color="net", line_dash="from", log_y=True, markers=True
    )


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    four = table[table["net"] == "4 hidden layers"]["measured"].tolist()
    return (
        f"Each layer learns several times slower than the one behind it: with four hidden layers"
        f" the first learns {four[-1] / four[0]:.0f} times slower than the fourth"
        f" (Nielsen: {PUBLISHED[4][-1] / PUBLISHED[4][0]:.0f} times)."
    )


if __name__ == "__main__":
    result = measure()
    present("Speed of learning in sigmoid nets", result, draw(result), sentence(result))
