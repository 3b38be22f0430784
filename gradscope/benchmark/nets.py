"""The nets that `gradscope bench` trains, in plain torch: residual nets, transformers, MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


def resnet18() -> nn.Module:
    """Return the ResNet-18 for CIFAR's 32 x 32 images."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [
        _Basic(before, after, 1 if before == after else 2) for before, after in pairwise(widths)
    ]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *blocks, *head)


class _Bottleneck(nn.Module):
    """He's bottleneck with ReLU in place, as torchvision has it: the 3 x 3 takes the stride."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        y: Tensor = self.relu(branch + self.shortcut(x))
        return y


def resnet50(
    width: int = 64, depths: Sequence[int] = (3, 4, 6, 3), classes: int = 1000
) -> nn.Module:
    """Return the ResNet-50 for ImageNet, channels last; smaller ones with other numbers."""
    blocks: list[nn.Module] = []
    before = width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        for place in range(depth):
            blocks.append(_Bottleneck(before, inner, 2 if stage and not place else 1))
            before = 4 * inner
    stem = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    net = nn.Sequential(*stem, *blocks, *head)
    return net.to(memory_format=torch.channels_last)


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


class Gpt(nn.Module):
    """A GPT; scores come as one row a word."""

    def __init__(self, layers: int, width: int, heads: int, words: int, places: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.place = nn.Embedding(places, width)
        self.blocks = nn.Sequential(*(_TransformerBlock(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        """Return the scores of the word that follows each of `words`."""
        places = torch.arange(words.shape[1], device=words.device)
        x = self.blocks(self.embedding(words) + self.place(places))
        scores: Tensor = self.head(self.norm(x)).flatten(0, 1)
        return scores


def gpt2(
    layers: int = 12, width: int = 768, heads: int = 12, words: int = 50304, places: int = 1024
) -> nn.Module:
    """Return the GPT-2 small, its head tied to the embedding; smaller ones with other numbers.

    50257 words are rounded up to a multiple of 64, as everybody does who trains it.
    """
    net = Gpt(layers, width, heads, words, places)
    for embedding in (net.embedding, net.place):
        nn.init.normal_(embedding.weight, std=0.02)
    net.head.weight = net.embedding.weight
    return net


def mlp(layers: int, width: int, inputs: int, outputs: int, act: type[nn.Module]) -> nn.Module:
    """Return a plain MLP of so many linear layers."""
    widths = [inputs, *[width] * (layers - 1)]
    hidden = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))
