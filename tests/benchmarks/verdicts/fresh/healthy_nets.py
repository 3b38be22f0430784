"""Small nets and pieces that several of these trainings share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images


def dense(*widths: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers of these widths, with an activation between each two."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), act()]
    return nn.Sequential(*layers[:-1])


def conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """Return a convolution without bias, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def encoder(out: int = 32) -> nn.Sequential:
    """Return a small convolutional encoder of pictures of one channel, 12 by 12."""
    return nn.Sequential(
        conv(1, 16), conv(16, 24, 2), conv(24, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, out),
    )  # fmt: skip


def two_views(number: int, batch: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Return two cropped, noisy views of pictures, (batch, 1, 12, 12), and their classes."""
    x, y = images(batch, 14, 1)(number)
    seen = []
    for _ in range(2):
        top, left = torch.randint(3, (2,)).tolist()
        crop = x[:, :, top : top + 12, left : left + 12]
        seen.append(crop + 0.2 * torch.randn_like(crop))
    return seen[0], seen[1], y


def follow(target: nn.Module, online: nn.Module, share: float = 0.05) -> None:
    """Move a target's weights by a share towards those of the net that is trained."""
    with torch.no_grad():
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.lerp_(new, share)


def pixels(number: int, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Return digits between 0 and 1, (batch, 64), and their classes."""
    x, y = digits(batch)(number)
    low = x.min()
    return (x - low) / (x.max() - low), y


class Attention(nn.Module):
    """Attention of several heads, of one set to another or to itself, without a mask."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor, told: Tensor | None = None, causal: bool = False) -> Tensor:
        told = x if told is None else told
        q, k, v = (
            layer(some).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, some in ((self.query, x), (self.key, told), (self.value, told))
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(seen.transpose(1, 2).flatten(2))
