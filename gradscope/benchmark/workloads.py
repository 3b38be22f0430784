"""Four nets that cost in different ways, in plain torch: what `gradscope bench` trains.

`deep` spends its time in Python, `resnet` in convolutions, `gpt` in matrix products, `wide` in the
memory traffic of its optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer


@dataclass(frozen=True)
class Workload:
    """A net, its optimizer and a batch of random data.

    Attributes
    ----------
    name, about : str
    model : builds the net
    optimizer : of the net's parameters
    batch : makes inputs and targets
    steps : int
        Of a block that is timed.
    """

    name: str
    about: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    batch: Callable[[], tuple[Tensor, Tensor]]
    steps: int


class _Basic(nn.Module):
    """He's basic block: two convolutions, and a projection where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.shortcut(x))


def _resnet() -> nn.Module:
    """Return the ResNet-18 for CIFAR's 32 x 32 images."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [
        _Basic(before, after, 1 if before == after else 2) for before, after in pairwise(widths)
    ]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *blocks, *head)


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.gelu, self.down = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self._attend(self.qkv(self.norm1(x))))
        y: Tensor = x + self.down(self.gelu(self.up(self.norm2(x))))
        return y

    def _attend(self, qkv: Tensor) -> Tensor:
        n, length, width = qkv.shape
        q, k, v = qkv.view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(n, length, width // 3)


class _Gpt(nn.Module):
    def __init__(self, layers: int = 6, width: int = 256, words: int = 1024) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.place = nn.Embedding(128, width)
        self.blocks = nn.Sequential(*(_TransformerBlock(width, 8) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        x = self.blocks(self.embedding(words) + self.place(places))
        scores: Tensor = self.head(self.norm(x)).flatten(0, 1)
        return scores


def _mlp(layers: int, width: int) -> nn.Module:
    hidden = [m for _ in range(layers - 1) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, width))


def _classes(*shape: int, classes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape), torch.randint(classes, shape[:1])


def _text() -> tuple[Tensor, Tensor]:
    words = torch.randint(1024, (8, 129))
    return words[:, :-1], words[:, 1:].flatten()


WORKLOADS = (
    Workload(
        "deep",
        "MLP, 50 layers of 256, batch 128, Adam",
        lambda: _mlp(50, 256),
        lambda model: Adam(model.parameters(), lr=1e-4),
        lambda: _classes(128, 256, classes=256),
        steps=30,
    ),
    Workload(
        "resnet",
        "ResNet-18 for CIFAR, batch 32, SGD with momentum",
        _resnet,
        lambda model: SGD(model.parameters(), lr=1e-3, momentum=0.9),
        lambda: _classes(32, 3, 32, 32, classes=10),
        steps=2,
    ),
    Workload(
        "gpt",
        "GPT, 6 layers of 256, 128 tokens, batch 8, AdamW",
        _Gpt,
        lambda model: AdamW(model.parameters(), lr=1e-4),
        _text,
        steps=2,
    ),
    Workload(
        "wide",
        "MLP, 4 layers of 4096, batch 32, Adam",
        lambda: _mlp(4, 4096),
        lambda model: Adam(model.parameters(), lr=1e-5),
        lambda: _classes(32, 4096, classes=4096),
        steps=2,
    ),
)
