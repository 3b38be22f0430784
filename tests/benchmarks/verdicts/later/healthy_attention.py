"""Transformers that look at pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..data import images
from ..loops import adam, adamw, sgd, supervised
from ..trainings import Step, healthy
from .healthy_transformers import Layer, warm_cosine


@healthy("patches behind a class token, dropped paths, smoothed labels AdamW")
def class_token() -> tuple[nn.Module, Step]:
    class Dropped(nn.Module):
        def __init__(self, width: int, rate: float) -> None:
            super().__init__()
            self.layer, self.rate = Layer(width), rate

        def forward(self, x: Tensor) -> Tensor:
            change = self.layer(x) - x
            if self.training and self.rate:
                kept = torch.rand(len(x), 1, 1) >= self.rate
                change = change * kept / (1 - self.rate)
            return x + change

    class Net(nn.Module):
        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, width, 4, 4)
            self.token = nn.Parameter(torch.zeros(1, 1, width))
            self.places = nn.Parameter(torch.zeros(1, 17, width))
            nn.init.trunc_normal_(self.token, std=0.02)
            nn.init.trunc_normal_(self.places, std=0.02)
            rates = torch.linspace(0, 0.1, 6).tolist()
            self.blocks = nn.Sequential(*(Dropped(width, rate) for rate in rates))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.patch(x).flatten(2).transpose(1, 2)
            h = torch.cat([self.token.expand(len(x), -1, -1), h], 1) + self.places
            return self.head(self.norm(self.blocks(h))[:, 0])

    model = Net()
    optimizer = adamw(model, 1e-3, 0.05)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    schedule = warm_cosine(optimizer)
    return model, supervised(model, optimizer, images(32, 16, 1), loss, schedule=schedule)


@healthy("windows that shift, with relative places and merged patches AdamW")
def windows() -> tuple[nn.Module, Step]:
    class Window(nn.Module):
        def __init__(self, width: int, size: int, shift: int) -> None:
            super().__init__()
            self.size, self.shift, self.heads = size, shift, width // 12
            self.layer = Layer(width, self.heads)
            self.table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, self.heads))
            nn.init.trunc_normal_(self.table, std=0.02)
            at = torch.stack(torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij")).flatten(1)
            apart = at[:, :, None] - at[:, None, :] + size - 1
            self.register_buffer("index", apart[0] * (2 * size - 1) + apart[1])

        def forward(self, x: Tensor) -> Tensor:
            batch, side, _, width = x.shape
            many, size = side // self.size, self.size
            x = x.roll((-self.shift, -self.shift), (1, 2))
            cut = x.view(batch, many, size, many, size, width).transpose(2, 3)
            bias = self.table[self.index].permute(2, 0, 1)
            cut = self.layer(cut.reshape(-1, size * size, width), bias)
            x = cut.view(batch, many, many, size, size, width).transpose(2, 3)
            return x.reshape(batch, side, side, width).roll((self.shift, self.shift), (1, 2))

    class Merge(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4 * width)
            self.less = nn.Linear(4 * width, 2 * width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            parts = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
            return self.less(self.norm(torch.cat(parts, -1)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.start = nn.Conv2d(1, 24, 2, 2), nn.LayerNorm(24)
            self.body = nn.Sequential(
                Window(24, 4, 0), Window(24, 4, 2), Merge(24), Window(48, 4, 0), Window(48, 4, 0)
            )
            self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(self.start(self.patch(x).permute(0, 2, 3, 1)))
            return self.head(self.norm(h).mean((1, 2)))

    model = Net()
    return model, supervised(model, adamw(model, 1e-3, 0.05), images(32, 16, 1), clip=5.0)


@healthy("few latents that look at every pixel again and again Adam")
def perceiver() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.latents = nn.Parameter(0.02 * torch.randn(12, width))
            self.read = nn.Linear(1 + 16, width)
            self.norm_x, self.norm_z = nn.LayerNorm(width), nn.LayerNorm(width)
            self.cross = nn.MultiheadAttention(width, 1, batch_first=True)
            self.self_layers = nn.ModuleList(Layer(width) for _ in range(2))
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))
            at = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 8)] * 2, indexing="ij"), -1)
            waves = math.pi * at.view(64, 2, 1) * torch.tensor([1.0, 2, 3, 4])
            self.register_buffer("waves", torch.cat([waves.sin(), waves.cos()], -1).flatten(1))

        def forward(self, x: Tensor) -> Tensor:
            pixels = torch.cat([x.flatten(1)[..., None], self.waves.expand(len(x), -1, -1)], -1)
            seen, z = self.norm_x(self.read(pixels)), self.latents.expand(len(x), -1, -1)
            for _ in range(2):  # the same weights each time
                z = z + self.cross(self.norm_z(z), seen, seen, need_weights=False)[0]
                for layer in self.self_layers:
                    z = layer(z)
            return self.head(z.mean(1))

    model = Net()
    return model, supervised(model, adam(model, 1e-3), images(64, 8, 1, most=1797))


@healthy("convolutions first, attention behind them SGD")
def hybrid() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(1, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
                nn.Conv2d(24, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 1),
            )  # fmt: skip
            self.places = nn.Parameter(torch.zeros(1, 16, width))
            self.layers = nn.Sequential(*(Layer(width) for _ in range(3)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layers(self.stem(x).flatten(2).transpose(1, 2) + self.places)
            return self.head(self.norm(h).mean(1))

    model = Net()
    return model, supervised(model, sgd(model, 0.03), images(32, 16, 1))
