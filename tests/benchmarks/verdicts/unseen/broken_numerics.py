"""NaN and infinity that begin at a known place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, broken
from .nets import Block, Language, of_characters

NOT_FINITE = "exploding|non-finite|nan"


@broken(
    "arccosine of values beyond 1 Adam",
    "NaN in the forward",
    NOT_FINITE,
    layer="1|2|3",
    remedy="log|division|root|clamp|domain",
    seen=30,
    says="forward",
)
def arccosine() -> tuple[nn.Module, Step]:
    class Angle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.number = 0

        def forward(self, x: Tensor) -> Tensor:
            self.number += 1
            cosine = F.normalize(x, dim=1)
            return torch.acos(cosine * (0.9 if self.number < 15 else 3.0))

    model = nn.Sequential(nn.Linear(64, 48), Angle(), nn.Linear(48, 24), nn.ReLU())
    model.append(nn.Linear(24, 10))
    return model, supervised(model, adam(model), digits())


@broken(
    "attention over nothing in one sentence AdamW",
    "NaN in the forward",
    NOT_FINITE,
    layer="blocks.0.out|blocks.0.qkv",
    remedy="mask|log|division|eps|softmax",
    seen=30,
    says="forward",
)
def nothing() -> tuple[nn.Module, Step]:
    class Masked(Block):
        number = 0

        def forward(self, x: Tensor) -> Tensor:
            self.number += 1
            q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
            logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            if self.number == 20:
                hidden = torch.ones_like(hidden)
            told = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v
            x = x + self.out(told)
            return x + self.down(self.act(self.up(self.norm2(x))))

    model = Language()
    model.blocks = nn.ModuleList(Masked(48) for _ in range(2))
    return of_characters(model, adamw(model))


@broken(
    "exponential of a variance that overflows SGD",
    "inf in the forward",
    NOT_FINITE,
    layer="2|3|4|spread|decoder.0",
    remedy="log|exponential|clamp|overflow|learning rate",
    seen=30,
    says="forward|loss",
)
def variance() -> tuple[nn.Module, Step]:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread = nn.Linear(64, 8), nn.Linear(64, 8)
            self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64))
            self.number = 0

        def forward(self, x: Tensor) -> Tensor:
            self.number += 1
            spread = self.spread(x) + (200.0 if self.number > 16 else 0.0)
            return self.decoder(self.mean(x) + torch.randn(len(x), 8) * spread.exp())

    model, batches = Coder(), digits()
    return model, by_loss(sgd(model), lambda n: F.mse_loss(model(batches(n)[0]), batches(n)[0]))


@broken(
    "root hidden by torch.where SGD",
    "NaN in the backward",
    NOT_FINITE,
    layer="0|2",
    remedy="root|eps|norm|where",
    says="backward",
    seen=30,
)
def hidden_root() -> tuple[nn.Module, Step]:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x.sqrt(), torch.zeros_like(x))

    model = nn.Sequential(nn.Linear(64, 32), Root(), nn.Linear(32, 10))
    return model, supervised(model, sgd(model), digits())


@broken(
    "length of rows of zeros in the loss Adam",
    "NaN in the backward",
    NOT_FINITE,
    remedy="root|eps|norm|where",
    says="backward|gradient of the loss",
    seen=30,
)
def length() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16, bias=False))
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        out = model(x)
        if number == 25:
            out = out * (torch.arange(len(x)) > 3)[:, None]
        return (out.square().sum(1).sqrt() - y).square().mean()

    return model, by_loss(adam(model), loss_of)


@broken(
    "missing values among the targets SGD",
    "NaN in the targets",
    NOT_FINITE,
    remedy="loss|target",
    says="loss",
    seen=30,
)
def missing() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        wanted = y.float() / 10
        if number == 18:
            wanted[5] = torch.nan
        return F.mse_loss(model(x)[:, 0], wanted)

    return model, by_loss(sgd(model), loss_of)
