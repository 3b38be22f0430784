"""How much gradient does a layer lose? Mean-field theory against the measured depth profile.

Schoenholz et al. 2017, Deep Information Propagation: in a wide random net each layer multiplies
the squared gradient by chi = sigma_w^2 E[phi'(z)^2], z normal with a variance q that goes from
layer to layer by q = sigma_w^2 E[phi(z)^2] + sigma_b^2; sigma_w^2 / n is the variance of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.express as px
import torch
from lesson import present, record
from plotly.graph_objects import Figure
from torch import Tensor, nn

WIDTH = 256
Init = Callable[[nn.Linear], object]


def nielsen(layer: nn.Linear) -> None:
    """Start from W ~ N(0, 1/n), b ~ N(0, 1)."""
    nn.init.normal_(layer.weight, std=WIDTH**-0.5)
    nn.init.normal_(layer.bias)


CASES: dict[str, tuple[type[nn.Module], Init, float, float]] = {
    # activation, initialisation, sigma_w^2, sigma_b^2; torch's own weights are uniform within
    # 1/sqrt(n), which has the variance 1/(3n), and so are its biases
    "sigmoid, Nielsen's start": (nn.Sigmoid, nielsen, 1, 1),
    "sigmoid, torch's default": (nn.Sigmoid, lambda layer: None, 1 / 3, 1 / (3 * WIDTH)),
    "tanh, torch's default": (nn.Tanh, lambda layer: None, 1 / 3, 1 / (3 * WIDTH)),
    "tanh, Xavier": (
        nn.Tanh,
        lambda layer: nn.init.xavier_normal_(layer.weight),
        1,
        1 / (3 * WIDTH),
    ),
    "ReLU, torch's default": (nn.ReLU, lambda layer: None, 1 / 3, 1 / (3 * WIDTH)),
    "ReLU, He": (nn.ReLU, lambda layer: nn.init.kaiming_normal_(layer.weight), 2, 1 / (3 * WIDTH)),
}


def predicted(
    activation: nn.Module, weight_variance: float, bias_variance: float, depth: int
) -> float:
    """Return the decades that a layer adds to the gradient by mean-field theory.

    The mean over the same layers that are measured, as q is still on its way to its fixed point.
    Expectations are sums over a fine grid of z; the input has q = 1.
    """
    z = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    weight = torch.exp(-(z**2) / 2)
    weight /= weight.sum()
    mean_square, decades = 1.0, []
    for _ in range(depth):
        q = weight_variance * mean_square + bias_variance
        scaled = (q**0.5 * z).requires_grad_()
        output = activation(scaled)
        (slope,) = torch.autograd.grad(output.sum(), scaled)
        mean_square = float((weight * output.detach() ** 2).sum())
        decades.append(0.5 * math.log10(weight_variance * float((weight * slope**2).sum())))
    return float(np.mean(decades[depth // 4 : -1]))


def deep_net(activation: type[nn.Module], init: Init, depth: int) -> nn.Sequential:
    """Return `depth` hidden layers and an output layer, in double precision."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(WIDTH, WIDTH)
        init(linear)
        layers += [linear, activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10)).double()


def measure(depth: int = 16, seeds: int = 3) -> pd.DataFrame:
    """Return decades per layer, predicted and measured, and the mean derivative."""
    rows = []
    for name, (activation, init, weights, biases) in CASES.items():
        slopes, derivatives = [], []
        for seed in range(seeds):
            torch.manual_seed(seed)
            run = record(deep_net(activation, init, depth), *batch())
            frame = run.frame()
            signal = frame.loc[frame["kind"] == "Linear", "signal_norm"].to_numpy()[:-1]
            # the first layers still feel the input's own size
            middle = np.log10(signal[depth // 4 :])
            slopes.append((middle[0] - middle[-1]) / (len(middle) - 1))
            derivatives.append(frame["derivative_mean"].mean())
        rows.append(
            (
                name,
                float(np.mean(derivatives)),
                predicted(activation(), weights, biases, depth),
                float(np.mean(slopes)),
            )
        )
    columns = ["net", "mean derivative", "decades a layer, predicted", "measured"]
    return pd.DataFrame(rows, columns=columns)


def batch() -> tuple[Tensor, Tensor]:
    """Return random inputs and classes."""
    return torch.randn(64, WIDTH, dtype=torch.float64), torch.randint(10, (64,))


def draw(table: pd.DataFrame) -> Figure:
    """Draw the decades a layer."""
    long = table.melt("net", ["decades a layer, predicted", "measured"], "from", "decades a layer")
    return px.bar(long, x="net", y="decades a layer", color="from", barmode="group")


def sentence(table: pd.DataFrame) -> str:
    """Say what one sees."""
    off = (table["measured"] - table["decades a layer, predicted"]).abs().max()
    worst = table.loc[table["measured"].idxmin()]
    return (
        f"Theory and measurement agree within {off:.3f} decades a layer: {worst['net']}, loses"
        f" {-worst['measured']:.2f} decades in every layer, He's start for ReLU hardly any."
    )


if __name__ == "__main__":
    result = measure()
    present("Gradient lost in a layer", result, draw(result), sentence(result))
