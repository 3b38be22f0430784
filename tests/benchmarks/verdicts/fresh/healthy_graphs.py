"""Graphs, sets and clouds of points."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy
from .healthy_nets import Attention, dense


def neighbours(number: int, size: int = 12, batch: int = 32) -> tuple[Tensor, Tensor]:
    """Return random graphs, (batch, size, size), and features of nodes, (batch, size, 6)."""
    source = seeded(number)
    edges = (torch.rand(batch, size, size, generator=source) < 0.25).float().triu(1)
    return edges + edges.transpose(1, 2), torch.randn(batch, size, 6, generator=source)


@healthy("graphs of equal kind by sums of neighbours and BatchNorm Adam")
def isomorphism() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Linear(1, 32)
            self.bodies = nn.ModuleList(
                nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))
                for _ in range(4)
            )
            self.share, self.head = nn.Parameter(torch.zeros(4)), nn.Linear(4 * 32, 3)

        def forward(self, edges: Tensor) -> Tensor:
            h, told = self.start(edges.sum(-1, keepdim=True) / 3), []
            for share, body in zip(self.share, self.bodies, strict=True):
                seen = (1 + share) * h + edges @ h
                h = F.relu(body(seen.flatten(0, 1)).view_as(h))
                told.append(h.mean(1))
            return self.head(torch.cat(told, 1))

    model = Net()

    def batches(number: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(3, (48,), generator=seeded(number))
        ring = torch.eye(12).roll(1, 0) + torch.eye(12).roll(1, 0).T
        star = torch.zeros(12, 12)
        star[0, 1:] = star[1:, 0] = 1
        wild = neighbours(number, 12, 48)[0]
        return torch.where((y == 2)[:, None, None], wild, torch.stack([ring, star])[y % 2]), y

    return model, supervised(model, adam(model, 2e-3), batches)


@healthy("sixteen graph convolutions that keep their start AdamW")
def kept_start() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.head = nn.Linear(64, 48), nn.Linear(48, 10)
            self.layers = nn.ModuleList(nn.Linear(48, 48, bias=False) for _ in range(16))

        def forward(self, x: Tensor) -> Tensor:
            near = torch.cdist(x, x).topk(6, largest=False).indices
            edges = torch.zeros(len(x), len(x)).scatter(1, near, 1.0)
            edges = ((edges + edges.T) > 0).float()
            root = edges.sum(1).rsqrt()
            edges = root[:, None] * edges * root
            h = first = F.relu(self.start(x))
            for place, layer in enumerate(self.layers, 1):
                share, seen = math.log(0.5 / place + 1), 0.9 * edges @ h + 0.1 * first
                h = F.relu((1 - share) * seen + share * layer(F.dropout(seen, 0.1, self.training)))
            return self.head(h)

    model = Net()
    return model, supervised(model, adamw(model, 5e-3), digits(128))


@healthy("atoms moved by messages that turn with them Adam")
def equivariant() -> tuple[nn.Module, Step]:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tell, self.move = dense(49, 32, 32, act=nn.SiLU), dense(32, 32, 1, act=nn.SiLU)
            self.change = dense(56, 32, 24, act=nn.SiLU)
            nn.init.xavier_uniform_(self.move[-1].weight, gain=1e-3)

        def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            gap = x[:, :, None] - x[:, None]
            far = gap.square().sum(-1, keepdim=True)
            size = h.shape[1]
            pair = [h[:, :, None].expand(-1, -1, size, -1), h[:, None].expand(-1, size, -1, -1)]
            told = F.silu(self.tell(torch.cat([*pair, far], -1)))
            x = x + (gap * self.move(told)).mean(2)
            return h + self.change(torch.cat([h, told.mean(2)], -1)), x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.layers = nn.Linear(1, 24), nn.ModuleList(Layer() for _ in range(3))

        def forward(self, charge: Tensor, x: Tensor) -> Tensor:
            h = self.start(charge)
            for layer in self.layers:
                h, x = layer(h, x)
            return x

    model = Net()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = torch.randn(32, 5, 3, generator=source)
        charge = torch.randint(2, (32, 5, 1), generator=source) * 2.0 - 1
        gap = x[:, :, None] - x[:, None]
        force = (
            charge[:, :, None] * charge[:, None] * gap / (gap.square().sum(-1, True) + 0.5) ** 1.5
        )
        return F.mse_loss(model(charge, x), x + force.sum(2))

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("missing edges guessed from the rest of a graph Adam")
def edges_guessed() -> tuple[nn.Module, Step]:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.mean, self.spread = (
                nn.Linear(64, 32),
                nn.Linear(32, 16),
                nn.Linear(32, 16),
            )

        def forward(self, x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
            h = F.relu(edges @ self.first(x))
            return edges @ self.mean(h), edges @ self.spread(h)

    model = Coder()
    x, _ = digits(200)(0)
    near = torch.zeros(200, 200).scatter(1, torch.cdist(x, x).topk(9, largest=False).indices, 1.0)
    whole = ((near + near.T) > 0).float()

    def loss_of(number: int) -> Tensor:
        kept = (torch.rand(200, 200, generator=seeded(number)) < 0.85).triu(1)
        edges = whole * (kept | kept.T) + torch.eye(200) * 1e-3
        root = edges.sum(1).rsqrt()
        mean, spread = model(x, root[:, None] * edges * root)
        z = mean + torch.randn_like(mean) * spread.exp()
        apart = (mean.square() + (2 * spread).exp() - 2 * spread - 1).sum(1).mean() / 2
        weight = (1 - whole.mean()) / whole.mean()
        guess = F.binary_cross_entropy_with_logits(z @ z.T, whole, pos_weight=weight)
        return guess + apart / 200

    return model, by_loss(adam(model, 1e-2), loss_of)


@healthy("set that a few learnt points look at AdamW")
def induced() -> tuple[nn.Module, Step]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see, self.body = Attention(32), dense(32, 64, 32)
            self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)

        def forward(self, x: Tensor, told: Tensor) -> Tensor:
            x = self.norm1(x + self.see(x, told))
            return self.norm2(x + self.body(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.head = nn.Linear(2, 32), nn.Linear(32, 4)
            self.points = nn.ParameterList(torch.randn(1, n, 32) for n in (6, 6, 1))
            self.blocks = nn.ModuleList(Block() for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.start(x)
            for place in range(2):
                few = self.blocks[2 * place](self.points[place].expand(len(x), -1, -1), x)
                x = self.blocks[2 * place + 1](x, few)
            return self.head(self.blocks[4](self.points[2].expand(len(x), -1, -1), x)[:, 0])

    model = Net()

    def batches(number: int) -> tuple[Tensor, Tensor]:
        source = seeded(number)
        kinds = torch.randint(4, (32,), generator=source)
        middle = 2 * torch.randn(32, 4, 2, generator=source)
        which = torch.randint(4, (32, 24), generator=source) % (kinds[:, None] + 1)
        points = middle[torch.arange(32)[:, None], which]
        return points + 0.1 * torch.randn(32, 24, 2, generator=source), kinds

    return model, supervised(model, adamw(model, 1e-3), batches)


@healthy("clouds whose neighbours are found anew in each layer SGD")
def found_anew() -> tuple[nn.Module, Step]:
    class Edge(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(2 * inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            near = torch.cdist(x, x).topk(6, largest=False).indices
            told = x[torch.arange(len(x))[:, None, None], near]
            own = x[:, :, None].expand_as(told)
            return self.body(torch.cat([own, told - own], -1).permute(0, 3, 1, 2)).amax(-1).mT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Edge(3, 24), Edge(24, 24), Edge(24, 32)])
            self.head = nn.Sequential(
                nn.Linear(80, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 3)
            )

        def forward(self, x: Tensor) -> Tensor:
            told = []
            for layer in self.layers:
                x = layer(x)
                told.append(x)
            return self.head(torch.cat(told, -1).amax(1))

    model = Net()

    def batches(number: int) -> tuple[Tensor, Tensor]:
        source = seeded(number)
        y = torch.randint(3, (24,), generator=source)
        ball = torch.randn(24, 32, 3, generator=source)
        sphere = F.normalize(ball, dim=-1)
        box = 2 * torch.rand(24, 32, 3, generator=source) - 1
        kinds = torch.stack([ball / 1.7, sphere, box])
        return kinds[y, torch.arange(24)], y

    return model, supervised(model, sgd(model, 0.05), batches)
