"""Random nets whose hidden outputs can be had, for judging a diagnosis by plain autograd."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {
    "relu": (nn.ReLU, F.relu),
    "tanh": (nn.Tanh, torch.tanh),
    "sigmoid": (nn.Sigmoid, torch.sigmoid),
    "gelu": (nn.GELU, F.gelu),
    "silu": (nn.SiLU, F.silu),
    "elu": (nn.ELU, F.elu),
    "softplus": (nn.Softplus, F.softplus),
    "leaky": (partial(nn.LeakyReLU, 0.1), partial(F.leaky_relu, negative_slope=0.1)),
    "selu": (nn.SELU, F.selu),
    "softsign": (nn.Softsign, F.softsign),
    "linear": (nn.Identity, lambda x: x),
}


@dataclass(frozen=True)
class Spec:
    """What a net of the zoo is made of."""

    form: str  # plain, residual, pre-activation, highway, conv, conv-residual, transformer
    depth: int  # hidden layers, or blocks
    width: int
    activation: str
    functional: bool  # activations as functions, not modules
    norm: str  # none, batch, layer
    init: str  # default, xavier, he, orthogonal, small, large
    loss: str  # cross-entropy, sum, mse
    batch: int
    scale: float  # of the loss
    seed: int


class Net(nn.Module):
    """A stem, blocks and an output layer; `hidden` returns the blocks' outputs, too."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        conv = spec.form.startswith("conv")
        block = {
            "plain": Plain,
            "conv": Plain,
            "residual": Residual,
            "conv-residual": Residual,
            "pre-activation": PreActivation,
            "highway": Highway,
            "transformer": Transformer,
        }[spec.form]
        self.stem = weights(conv, 1 if conv else 64, spec.width)
        self.act = Activation(spec)
        self.blocks = nn.ModuleList(block(spec, conv) for _ in range(spec.depth))
        self.head = nn.Linear(spec.width, 10)
        self.form = spec.form
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module is not self.head:
                initialise(module, spec.init)

    def hidden(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of the stem and of each block, and the net's."""
        if self.form == "transformer":
            x = x.view(len(x), 4, 16).repeat(1, 1, 4)  # four tokens
        h = self.stem(x)
        if self.form in ("plain", "conv", "residual", "conv-residual", "highway"):
            h = self.act(h)
        outputs = [h]
        for block in self.blocks:
            h = block(h)
            outputs.append(h)
        if h.dim() == 4:
            return outputs, self.head(h.mean((2, 3)))
        return outputs, self.head(h.mean(1) if h.dim() == 3 else h)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x)[1]


class Activation(nn.Module):
    """An activation as a module within, or as a function call in the caller's forward."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        module, self.function = ACTIVATIONS[spec.activation]
        self.module = None if spec.functional else module()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.module is None else self.module(x)


class Plain(nn.Module):
    def __init__(self, spec: Spec, conv: bool) -> None:
        super().__init__()
        self.fc, self.norm = weights(conv, spec.width, spec.width), normalisation(spec, conv)
        self.act = Activation(spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.fc(x)))


class Residual(nn.Module):
    """He et al. 2015: the activation after the addition."""

    def __init__(self, spec: Spec, conv: bool) -> None:
        super().__init__()
        self.fc1, self.norm1 = weights(conv, spec.width, spec.width), normalisation(spec, conv)
        self.fc2, self.norm2 = weights(conv, spec.width, spec.width), normalisation(spec, conv)
        self.act1, self.act2 = Activation(spec), Activation(spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(x + self.norm2(self.fc2(self.act1(self.norm1(self.fc1(x))))))


class PreActivation(nn.Module):
    """He et al. 2016: nothing after the addition."""

    def __init__(self, spec: Spec, conv: bool) -> None:
        super().__init__()
        self.fc1, self.norm1 = weights(conv, spec.width, spec.width), normalisation(spec, conv)
        self.fc2, self.norm2 = weights(conv, spec.width, spec.width), normalisation(spec, conv)
        self.act1, self.act2 = Activation(spec), Activation(spec)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act2(self.norm2(self.fc1(self.act1(self.norm1(x))))))


class Highway(nn.Module):
    def __init__(self, spec: Spec, conv: bool) -> None:
        super().__init__()
        self.transform, self.gate = nn.Linear(spec.width, spec.width), None
        self.gate = nn.Linear(spec.width, spec.width)
        self.act = Activation(spec)
        self.bias = -1.0 - spec.seed % 5

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x) + self.bias)
        return gate * self.act(self.transform(x)) + (1 - gate) * x


class Transformer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, spec: Spec, conv: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(spec.width), nn.LayerNorm(spec.width)
        self.attention = nn.MultiheadAttention(spec.width, 4, batch_first=True)
        self.up, self.down = nn.Linear(spec.width, spec.width), nn.Linear(spec.width, spec.width)
        self.act = Activation(spec)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        x = x + self.attention(z, z, z, need_weights=False)[0]
        return x + self.down(self.act(self.up(self.norm2(x))))


def weights(conv: bool, inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1) if conv else nn.Linear(inputs, outputs)


def normalisation(spec: Spec, conv: bool) -> nn.Module:
    if spec.norm == "batch":
        return nn.BatchNorm2d(spec.width) if conv else nn.BatchNorm1d(spec.width)
    if spec.norm == "layer":
        return nn.GroupNorm(1, spec.width) if conv else nn.LayerNorm(spec.width)
    return nn.Identity()


def initialise(module: nn.Linear | nn.Conv2d, init: str) -> None:
    if init == "xavier":
        nn.init.xavier_normal_(module.weight)
    elif init == "he":
        nn.init.kaiming_normal_(module.weight)
    elif init == "orthogonal":
        nn.init.orthogonal_(module.weight)
    elif init in ("small", "large"):
        factor = {"small": 0.7, "large": 1.6}[init]
        nn.init.normal_(module.weight, std=factor / math.sqrt(module.weight[0].numel()))


def random_spec(rng: random.Random) -> Spec:
    """Return a spec drawn at random; forms and depths such that all verdicts occur."""
    form = rng.choice(
        ["plain"] * 8
        + ["residual", "pre-activation", "highway", "conv", "conv-residual"] * 2
        + ["transformer"]
    )
    conv = form.startswith("conv")
    return Spec(
        form=form,
        depth=rng.choice([2, 3, 4, 6, 8, 12, 16] if conv else [2, 3, 5, 8, 12, 18, 24, 32]),
        width=64 if form == "transformer" else rng.choice([8, 16] if conv else [16, 32, 64, 128]),
        activation=rng.choice(list(ACTIVATIONS)),
        functional=rng.random() < 0.5,
        norm=rng.choice(["none", "none", "batch", "layer"]),
        init=rng.choice(["default", "default", "xavier", "he", "orthogonal", "small", "large"]),
        loss=rng.choice(["cross-entropy", "sum", "mse"]),
        batch=rng.choice([16, 64]),
        scale=rng.choice([1.0, 1.0, 1024.0, 1 / 1024]),
        seed=rng.randrange(10**6),
    )


def batch_of(spec: Spec) -> tuple[Tensor, Tensor]:
    x = torch.randn(spec.batch, 64)
    if spec.form.startswith("conv"):
        x = x.view(-1, 1, 8, 8)
    return x, torch.randint(10, (spec.batch,))


def loss_of(spec: Spec, output: Tensor, target: Tensor) -> Tensor:
    if spec.loss == "mse":
        return spec.scale * F.mse_loss(output, F.one_hot(target, 10).to(output))
    reduction = "sum" if spec.loss == "sum" else "mean"
    return spec.scale * F.cross_entropy(output, target, reduction=reduction)


def decades_by_autograd(model: Net, spec: Spec, x: Tensor, target: Tensor) -> float:
    """log10 of the gradient at the first over that at the last hidden output, in float64."""
    hidden, output = model.hidden(x)
    early, late = torch.autograd.grad(
        loss_of(spec, output, target), [hidden[0], hidden[-1]], allow_unused=True
    )
    assert early is not None and late is not None
    early_norm, late_norm = early.double().norm().item(), late.double().norm().item()
    if late_norm == 0:
        return math.nan
    return math.log10(early_norm / late_norm) if early_norm else -math.inf
