"""Small nets that several of these trainings share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, images, text
from ..loops import next_character, supervised
from ..trainings import Step

CUT = "detach|no_grad|argmax|.data|numpy|path|tensor"
"""Words of which one is in a remedy against a path that is cut."""


def conv_net(activation: type[nn.Module] = nn.ReLU, *, norm: bool = False) -> nn.Sequential:
    """Return three convolutions and a head, for pictures of one channel."""
    layers: list[nn.Module] = []
    for inputs, outputs in [(1, 16), (16, 24), (24, 32)]:
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1)]
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers += [activation()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def of_pictures(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Step]:
    """Train a classifier of pictures."""
    return model, supervised(model, optimizer, images(32, 12, 1))


class Block(nn.Module):
    """A pre-norm block of causal attention and two layers."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.act, self.drop = nn.GELU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, 4, width // 4).unbind(2)
        told = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.drop(self.out(told.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.down(self.act(self.up(self.norm2(x)))))


class Language(nn.Module):
    """A small model of characters."""

    def __init__(self, layers: int = 2, width: int = 48, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def of_characters(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Step]:
    """Train a model of characters."""
    return model, supervised(model, optimizer, text(16, 24), next_character)


def sines(number: int, batch: int = 32, length: int = 40) -> tuple[Tensor, Tensor]:
    """Return noisy sines, (batch, length, 1), and their frequencies, (batch, 1)."""
    source = torch.Generator().manual_seed(number)
    speed = 0.1 + 0.4 * torch.rand(batch, 1, generator=source)
    phase = 2 * math.pi * torch.rand(batch, 1, generator=source)
    wave = torch.sin(speed * torch.arange(length) + phase)
    wave = wave + 0.05 * torch.randn(batch, length, generator=source)
    return wave[..., None], speed
