"""Nets of the examples: plain, residual and highway ones, built from the same few parts.

A plain net and its residual twin hold the same modules in the same order, so the same seed gives
them the same weights: only the additions `x + branch(x)` tell them apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


class Residual(nn.Module):
    """y = shortcut(x) + branch(x); without a `shortcut` module it is the identity."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branch found to what came in."""
        kept = x if self.shortcut is None else self.shortcut(x)
        return kept + self.branch(x)


class Scaled(nn.Module):
    """y = scale * x + branch(x), the scaled shortcut of He et al. 2016, Identity Mappings."""

    def __init__(self, branch: nn.Module, scale: float) -> None:
        super().__init__()
        self.branch = branch
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branch found to a share of what came in."""
        return self.scale * x + self.branch(x)


class Highway(nn.Module):
    """y = T(x) * H(x) + (1 - T(x)) * x with a learned gate T (Srivastava et al. 2015).

    `gate_bias` is negative, so that the layer starts by carrying most of its input.
    """

    def __init__(self, width: int, activation: Activation = nn.Tanh, gate_bias: float = -2) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), activation())
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the transformed and the carried input."""
        gate = torch.sigmoid(self.gate(x))
        return gate * self.transform(x) + (1 - gate) * x


# --- fully connected nets: `depth` counts the layers with weights, first and last included -----


def dense(width: int, layers: int, activation: Activation, norm: bool) -> nn.Sequential:
    """`layers` times: weights, BatchNorm where `norm` is set, activation."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts.append(nn.Linear(width, width))
        if norm:
            parts.append(nn.BatchNorm1d(width))
        parts.append(activation())
    return nn.Sequential(*parts)


def stack(
    blocks: list[nn.Module], width: int, activation: Activation, inputs: int, classes: int
) -> nn.Sequential:
    """Input layer, blocks, output layer."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(inputs, width),
            start=activation(),
            blocks=nn.Sequential(*blocks),
            last=nn.Linear(width, classes),
        )
    )


def plain(
    depth: int,
    width: int = 64,
    activation: Activation = nn.Tanh,
    *,
    norm: bool = False,
    inputs: int = 64,
    classes: int = 10,
) -> nn.Sequential:
    """`depth` layers, one after the other."""
    blocks: list[nn.Module] = [dense(width, 1, activation, norm) for _ in range(depth - 2)]
    return stack(blocks, width, activation, inputs, classes)


def residual(
    depth: int,
    width: int = 64,
    activation: Activation = nn.Tanh,
    *,
    norm: bool = False,
    inputs: int = 64,
    classes: int = 10,
    layers_per_block: int = 2,
) -> nn.Sequential:
    """`depth` layers, with an identity shortcut around every `layers_per_block` hidden ones."""
    if (depth - 2) % layers_per_block:
        raise ValueError(
            f"depth {depth} less the first and last layer is no multiple of {layers_per_block}"
        )
    blocks: list[nn.Module] = [
        Residual(dense(width, layers_per_block, activation, norm))
        for _ in range((depth - 2) // layers_per_block)
    ]
    return stack(blocks, width, activation, inputs, classes)


def highway(
    depth: int,
    width: int = 64,
    activation: Activation = nn.Tanh,
    *,
    gate_bias: float = -2,
    inputs: int = 64,
    classes: int = 10,
) -> nn.Sequential:
    """`depth` layers, all but the first and the last of them highway layers."""
    blocks: list[nn.Module] = [Highway(width, activation, gate_bias) for _ in range(depth - 2)]
    return stack(blocks, width, activation, inputs, classes)


# --- convolutional nets on small images, as in He et al. 2015 ---------------------------------


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the image's size at stride 1, and BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def basic(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Branch of a basic block: two 3x3 convolutions."""
    return nn.Sequential(
        *conv(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *conv(outputs, outputs, 3)
    )


def bottleneck(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Branch of a bottleneck block: 1x1 down to a quarter, 3x3, 1x1 up again."""
    inner = outputs // 4
    return nn.Sequential(
        *conv(inputs, inner, 1),
        nn.ReLU(inplace=True),
        *conv(inner, inner, 3, stride),
        nn.ReLU(inplace=True),
        *conv(inner, outputs, 1),
    )


def conv_net(
    branch: Callable[[int, int, int], nn.Module] = basic,
    blocks: int = 2,
    widths: tuple[int, ...] = (16, 32),
    *,
    shortcuts: bool = True,
    classes: int = 10,
) -> nn.Sequential:
    """Stages of `blocks` blocks on images (N, 1, H, W); each stage after the first halves them.

    Identity shortcuts, and a projection (1x1 convolution, option B of He et al. 2015) where the
    shape changes. With `shortcuts=False` the plain net of the same branches.
    """
    body: list[nn.Module] = [*conv(1, widths[0], 3), nn.ReLU(inplace=True)]
    inputs = widths[0]
    for stage, outputs in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            path: nn.Module = branch(inputs, outputs, stride)
            if shortcuts:
                same = stride == 1 and inputs == outputs
                path = Residual(path, None if same else conv(inputs, outputs, 1, stride))
            body += [path, nn.ReLU(inplace=True)]
            inputs = outputs
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
