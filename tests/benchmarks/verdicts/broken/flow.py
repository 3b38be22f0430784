"""Gradients that vanish or explode on their way, by depth, activation or start."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, text
from ..loops import adam, adamw, next_character, sgd, supervised
from ..trainings import Step, broken


def plain(depth: int, activation: str, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(depth):
        layers += [nn.Linear(64 if place == 0 else width, width), getattr(nn, activation)()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def started(model: nn.Module, factor: float) -> nn.Module:
    """Multiply He's weights by `factor`; the head keeps its own."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][:-1]
    for layer in linear:
        nn.init.kaiming_normal_(layer.weight)
        layer.weight.data *= factor
        nn.init.zeros_(layer.bias)
    return model


def by_sgd(model: nn.Module, lr: float) -> tuple[nn.Module, Step]:
    return model, supervised(model, sgd(model, lr), digits())


@broken(
    "12 sigmoid layers SGD",
    "vanishing through activations",
    "vanishing",
    layer="0",
    remedy="relu|gelu|normalis",
)
def sigmoids() -> tuple[nn.Module, Step]:
    return by_sgd(plain(12, "Sigmoid"), 0.1)


@broken(
    "8 sigmoid layers Adam",
    "vanishing through activations",
    "vanishing",
    layer="0",
    remedy="relu|gelu|normalis",
)
def sigmoids_adam() -> tuple[nn.Module, Step]:
    model = plain(10, "Sigmoid")
    return model, supervised(model, adam(model, 1e-3), digits())


@broken(
    "30 tanh layers SGD",
    "vanishing through depth",
    "vanishing",
    layer="0",
    remedy="xavier|shortcut|normalis",
)
def tanhs() -> tuple[nn.Module, Step]:
    return by_sgd(plain(30, "Tanh"), 0.05)


@broken(
    "40 ReLU layers by default SGD",
    "vanishing through depth",
    "vanishing",
    layer="0",
    remedy="he weights|kaiming|shortcut|normalis|std",
)
def deep_relu() -> tuple[nn.Module, Step]:
    return by_sgd(plain(40, "ReLU"), 0.05)


@broken(
    "small start SGD",
    "weights start too small",
    "vanishing|collapsed",
    layer="0",
    remedy="larger weights|he weights|kaiming|std|init",
)
def small() -> tuple[nn.Module, Step]:
    return by_sgd(started(plain(8, "ReLU"), 0.1), 0.05)


@broken(
    "start of standard deviation .01 in a conv net SGD",
    "weights start too small",
    "vanishing|collapsed",
    layer="0",
    remedy="larger weights|he weights|kaiming|std|init",
)
def small_convolutions() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(9):
        layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
    return model, supervised(model, sgd(model, 0.01), images(16, 16))


@broken(
    "large start SGD",
    "weights start too large",
    "exploding",
    remedy="smaller weights|he weights|kaiming|xavier|std|normalis|clip",
)
def large() -> tuple[nn.Module, Step]:
    return by_sgd(started(plain(10, "ReLU"), 3.0), 1e-3)


@broken(
    "large start tanh SGD",
    "weights start too large",
    "saturated|exploding",
    remedy="smaller weights|xavier|std|normalis",
)
def large_tanh() -> tuple[nn.Module, Step]:
    return by_sgd(started(plain(8, "Tanh"), 6.0), 0.01)


@broken(
    "deep conv net without shortcuts SGD",
    "no shortcuts in a deep net",
    "vanishing",
    layer="0",
    remedy="shortcut|normalis|he weights|kaiming|std",
)
def no_shortcuts() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU()]
    for _ in range(29):
        layers += [nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
    return model, supervised(model, sgd(model, 0.05), images(16, 8))


class Block(nn.Module):
    def __init__(self, width: int = 64, gain: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= gain

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


@broken(
    "40 residual blocks without normalisation SGD",
    "residual branches add up",
    "exploding",
    remedy="scale|zero|normalis",
)
def residual() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 64), *(Block() for _ in range(40)), nn.Linear(64, 10))
    return by_sgd(model, 1e-3)


@broken(
    "linear net of gain 2 SGD",
    "weights start too large",
    "exploding",
    remedy="smaller weights|xavier|he weights|std|normalis|clip",
)
def linear() -> tuple[nn.Module, Step]:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(16)), nn.Linear(64, 10))
    for layer in model[:-1]:
        nn.init.normal_(layer.weight, std=2 / 8)
    return by_sgd(model, 1e-5)


class PostNorm(nn.Module):
    def __init__(self, layers: int, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(96, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 96)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.body(self.embedding(x), mask, is_causal=True))


@broken(
    "post-norm transformer of 24 layers without warm-up Adam",
    "post-norm without warm-up",
    "vanishing|collapsed|exploding",
    remedy="warm|pre-norm|pre-ln|before each|norm_first|lower",
    seen=30,
)
def post_norm() -> tuple[nn.Module, Step]:
    model = PostNorm(24)
    for parameter in model.body.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter, gain=1.4)
    return model, supervised(model, adam(model, 3e-3), text(8, 24), next_character)


class Attention(nn.Module):
    """Attention by hand, whose queries and keys have no scale."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.scale = nn.Linear(width, width), scale

    def forward(self, x: Tensor) -> Tensor:
        logits = self.query(x) @ self.key(x).transpose(1, 2) * self.scale
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.out(logits.masked_fill(mask, -math.inf).softmax(-1) @ self.value(x))


class Fused(Attention):
    """The same with torch's kernel."""

    def forward(self, x: Tensor) -> Tensor:
        given = (part(x)[:, None] for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(*given, is_causal=True, scale=self.scale)
        return self.out(seen[:, 0])


class Attending(nn.Module):
    def __init__(
        self, scale: float, kind: type[Attention] = Attention, width: int = 64, layers: int = 4
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(96, width)
        self.attentions = nn.ModuleList(kind(width, scale) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.head = nn.Linear(width, 96)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for attention, norm in zip(self.attentions, self.norms, strict=True):
            x = x + attention(norm(x))
        return self.head(x)


def attending(scale: float, lr: float, kind: type[Attention] = Attention) -> tuple[nn.Module, Step]:
    model = Attending(scale, kind)
    return model, supervised(model, adamw(model, lr), text(8, 32), next_character)


broken(
    "attention whose logits are large AdamW",
    "attention logits too large",
    "attention|attention-logits|saturated",
    remedy="scale|sqrt|normalis|temperature|qk",
    seen=8,
)(partial(attending, 40.0, 1e-3))
broken(
    "attention whose logits grow AdamW",
    "attention logits grow",
    "attention|attention-logits|saturated",
    remedy="scale|sqrt|normalis|temperature|qk|lower",
    seen=30,
)(partial(attending, 1.0, 3e-2))
broken(
    "fused attention whose logits are large AdamW",
    "attention logits too large",
    "attention|attention-logits|saturated",
    layer="attentions.0.query|attentions.1.query|attentions.2.query|attentions.3.query",
    remedy="scale|sqrt|normalis|temperature|qk",
    seen=8,
)(partial(attending, 40.0, 1e-3, Fused))
broken(
    "fused attention whose logits grow AdamW",
    "attention logits grow",
    "attention|attention-logits|saturated",
    layer="attentions.0.query|attentions.1.query|attentions.2.query|attentions.3.query",
    remedy="scale|sqrt|normalis|temperature|qk|lower",
    seen=30,
)(partial(attending, 0.125, 1e-1, Fused))
