"""Losses of statistics: survival, quantiles, counts, weights that are drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, seeded
from ..loops import adam, by_loss, sgd
from ..trainings import Step, healthy
from .healthy_nets import dense


@healthy("hazards of survival compared with those still at risk SGD")
def hazards() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(8, 32), nn.SELU(), nn.Dropout(0.2), nn.Linear(32, 32), nn.SELU(), nn.Linear(32, 1)
    )

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = torch.randn(256, 8, generator=source)
        risk = 2 * x[:, 0] - 1.5 * x[:, 1] * (x[:, 1] > 0) + x[:, 2]
        time = torch.empty(256).exponential_(generator=source) * (-risk).exp()
        seen, order = time < 3, time.argsort(descending=True)
        score = model(x[order])[:, 0]
        return -((score - score.logcumsumexp(0)) * seen[order]).sum() / seen.sum()

    return model, by_loss(sgd(model, 0.02), loss_of)


@healthy("quantiles of a spread that grows RMSprop")
def quantiles() -> tuple[nn.Module, Step]:
    model = dense(4, 48, 48, 5, act=nn.SiLU)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = torch.randn(128, 4, generator=source)
        noise = torch.randn(128, generator=source) * (0.1 + 0.3 * x[:, 1].abs())
        away = (3 * x[:, 0].sin() + x[:, 2] + noise)[:, None] - model(x)
        return torch.maximum(levels * away, (levels - 1) * away).mean()

    return model, by_loss(torch.optim.RMSprop(model.parameters(), lr=2e-3), loss_of)


@healthy("counts by a Poisson net whose last layer starts at zero Adam")
def counts() -> tuple[nn.Module, Step]:
    model = dense(8, 48, 48, 1, act=nn.GELU)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = torch.randn(256, 8, generator=source)
        wanted = torch.poisson((1 + x[:, 0] + 0.5 * x[:, 1]).clamp(-3, 3).exp(), generator=source)
        return F.poisson_nll_loss(model(x)[:, 0], wanted)

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("weights that are drawn anew, with a prior Adam")
def drawn() -> tuple[nn.Module, Step]:
    class Drawn(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.mean = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
            self.spread = nn.Parameter(torch.full((outputs, inputs), -4.0))
            self.bias = nn.Parameter(torch.zeros(outputs))

        def forward(self, x: Tensor) -> Tensor:
            wide = x.square() @ F.softplus(self.spread).square().T
            out = F.linear(x, self.mean, self.bias)
            return out + wide.clamp_min(1e-12).sqrt() * torch.randn_like(out)

        def apart(self) -> Tensor:
            s = F.softplus(self.spread)
            return (self.mean.square() + s.square() - 2 * s.log() - 1).sum() / 2

    model = nn.Sequential(Drawn(64, 64), nn.ReLU(), Drawn(64, 64), nn.ReLU(), Drawn(64, 10))
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        prior = sum(layer.apart() for layer in model if isinstance(layer, Drawn))
        return F.cross_entropy(model(x), y) + 1e-5 * prior

    return model, by_loss(adam(model, 2e-3), loss_of)
