"""Small nets and data for what is tried on copies: deep, shallow, with functions, with blocks."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16


def batches(count: int = 12, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    """Points around four centres, and which of them."""
    generator = torch.Generator().manual_seed(3)
    centres = 2 * torch.randn(4, 8, generator=generator)
    classes = [torch.randint(4, (size,), generator=generator) for _ in range(count)]
    return [(centres[y] + 0.5 * torch.randn(size, 8, generator=generator), y) for y in classes]


def plain(depth: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """`depth` layers with torch's own weights: a deep one's gradient vanishes."""
    torch.manual_seed(0)
    hidden = [
        nn.Sequential(OrderedDict(fc=nn.Linear(WIDTH, WIDTH), act=activation()))
        for _ in range(depth - 2)
    ]
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(8, WIDTH),
            start=activation(),
            body=nn.Sequential(*hidden),
            last=nn.Linear(WIDTH, 4),
        )
    )


class Functional(nn.Module):
    """The same with a function for an activation."""

    def __init__(self, depth: int, function: str = "sigmoid") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, WIDTH)
        self.body = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth - 2))
        self.last = nn.Linear(WIDTH, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        function = getattr(torch, self.function)
        x = function(self.first(x))
        for layer in self.body:
            x = function(layer(x))
        return self.last(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x)))


def residual(blocks: int) -> nn.Sequential:
    """Residual blocks without normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, WIDTH), *[Block() for _ in range(blocks)], nn.Linear(WIDTH, 4)
    )


def momentum(model: nn.Module, lr: float = 0.05) -> torch.optim.SGD:
    """SGD with momentum, of all parameters that learn."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum=0.9)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, data: list) -> list[float]:
    """Train, a step for each batch; return the losses."""
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
