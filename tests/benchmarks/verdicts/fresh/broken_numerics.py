"""NaN, infinity and spikes that begin at a known place."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, digits, images, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import broken
from .broken_nets import (
    NOT_FINITE,
    Built,
    Mixer,
    Rows,
    Separable,
    Swish,
    Table,
    of_digits,
    of_graphs,
    of_pictures,
    table,
)
from .broken_nets import Messages as Graph


@broken(
    "entropy of actions of which one cannot be chosen Adam",
    "0 log 0 in the loss",
    NOT_FINITE,
    remedy="log|eps|clamp|loss|division",
    seen=30,
    says="loss",
)
def entropy() -> Built:
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))

    def loss_of(number: int) -> Tensor:
        seen = torch.randn(64, 6, generator=seeded(number))
        logits = model(seen)
        if number >= 15:
            logits = logits + torch.tensor([0.0, 0.0, -math.inf])
        chances = logits.softmax(1)
        wanted = F.nll_loss((chances + 1e-6).log(), seen[:, :2].argmax(1))
        return wanted + 0.01 * (chances * chances.log()).sum(1).mean()

    return model, by_loss(adam(model, 1e-2), loss_of)


@broken(
    "softmax by hand whose exponentials overflow SGD",
    "softmax by hand overflows",
    NOT_FINITE,
    layer="attend|value|out",
    remedy="exponential|softmax|overflow|clamp|max|learning rate|division|log",
    seen=30,
    says="forward",
)
def by_hand() -> Built:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.attend = nn.Linear(8, 32), nn.Linear(8, 1)
            self.out, self.number = nn.Linear(32, 10), 0

        def forward(self, x: Tensor) -> Tensor:
            self.number += 1
            x = x.view(-1, 8, 8)
            weight = (self.attend(x) * (500.0 if self.number > 20 else 1.0)).exp()
            return self.out((weight * self.value(x).relu()).sum(1) / weight.sum(1))

    model = Pooled()
    return of_digits(model, sgd(model))


class Standardised(nn.Module):
    """Pictures, each less its mean and over its deviation."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


@broken(
    "blank picture divided by its own deviation Adam",
    "0/0 in a norm of one's own",
    NOT_FINITE,
    layer="0|1.stem|1",
    remedy="division|eps|clamp|input|norm",
    seen=30,
    says="forward|input",
)
def blank() -> Built:
    batches = images(32, 12, 1)

    def one_blank(number: int) -> Batch:
        x, y = batches(number)
        if number == 17:
            x = x.index_fill(0, torch.tensor([4]), 0.0)
        return x, y

    model = nn.Sequential(Standardised(), Separable())
    return model, supervised(model, adam(model, 3e-3), one_blank)


@broken(
    "last batch of one row standardised by its own deviation AdamW",
    "deviation of one sample",
    NOT_FINITE,
    layer="deep.0|deep.1|deep.2|deep",
    remedy="division|eps|batch|norm|drop_last|clamp",
    seen=30,
    says="forward",
)
def last_row() -> Built:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)) / (x.std(0) + 1e-5)

    model = Table()
    model.deep.insert(1, Own())

    def short(number: int) -> Batch:
        (codes, numbers), y = table(number)
        size = 1 if number == 21 else 64
        return (codes[:size], numbers[:size]), y[:size]  # type: ignore[return-value]

    loss = F.binary_cross_entropy_with_logits
    return model, supervised(model, adamw(model, 5e-3), short, loss)


@broken(
    "logits of attention beyond half precision AdamW",
    "overflow of half precision",
    NOT_FINITE,
    layer="blocks.0|blocks.0.out|blocks.0.query|blocks.0.key|blocks.0.value",
    remedy="bfloat16|float16|precision|overflow|half|scale|exponential|softmax|mask",
    says="forward",
)
def half() -> Built:
    def told(own: Swish, x: Tensor) -> Tensor:
        logits = own.query(x).half() @ own.key(x).half().transpose(1, 2)
        return own.out((own.scale * logits.float()).softmax(-1) @ own.value(x))

    model = Rows(2, 32)
    for block in model.blocks:
        block.told = partial(told, block)  # type: ignore[method-assign]
        for part in (block.query, block.key):
            nn.init.normal_(part.weight, std=25.0)
    return of_digits(model, adamw(model, 3e-3))


class Capsules(nn.Module):
    """Eight vectors of four, each scaled by its length; the first is masked."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 8, 4) * (torch.arange(8) > 0)[:, None]
        square = (x**2).sum(2, keepdim=True)
        return (x * square.sqrt() / (1 + square)).flatten(1)


@broken(
    "capsules of which one is masked SGD",
    "NaN in the backward",
    NOT_FINITE,
    layer="0|1|2",
    remedy="root|eps|norm|where|sqrt",
    says="backward",
)
def capsules() -> Built:
    model = nn.Sequential(nn.Linear(64, 32), Capsules(), nn.Linear(32, 10))
    return of_digits(model, sgd(model))


@broken(
    "generalised mean of channels that are zero Adam",
    "NaN in the backward",
    NOT_FINITE,
    layer="pool|body.5|body.4|body.3|stem",
    remedy="root|eps|norm|log|clamp|power",
    seen=8,
    says="backward",
)
def generalised() -> Built:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.power = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(min=0).pow(self.power).mean((2, 3)).pow(1 / self.power)

    class Pooled(Separable):
        def __init__(self) -> None:
            super().__init__(2, nn.ReLU, norm=False)
            self.pool = Mean()
            self.body[4].bias.data[:2] = -50.0

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.body(self.stem(x))))

    model = Pooled()
    return of_pictures(model, adam(model, 3e-3))


@broken(
    "pairs of which one is a sample with itself AdamW",
    "NaN in the backward",
    NOT_FINITE,
    remedy="root|eps|norm|where|sqrt",
    says="backward|gradient of the loss",
)
def pairs() -> Built:
    model = nn.Sequential(nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 12))
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        out = model(x)
        away = (out[:, None] - out[None]).square().sum(2).sqrt()
        same = y[:, None] == y[None]
        return away[same].mean() + F.relu(1 - away[~same]).mean()

    return model, by_loss(adamw(model, 3e-3), loss_of)


@broken(
    "exponential hidden by torch.where that overflows Adam",
    "NaN in the backward",
    NOT_FINITE,
    layer="keep.0|send.0|inlet|acts.0",
    remedy="exponential|where|clamp|overflow|eps|root|norm",
    seen=30,
    says="backward",
)
def hidden() -> Built:
    class Elu(nn.Module):
        number = 0

        def forward(self, x: Tensor) -> Tensor:
            self.number += 1
            x = x * (300.0 if self.number == 22 else 1.0)
            return torch.where(x > 0, x, x.exp() - 1)

    model = Graph(1)
    model.acts[0] = Elu()
    return of_graphs(model, adam(model, 3e-3))


@broken(
    "half-precision mixer whose gradients are too small for it SGD",
    "gradients underflow in half precision",
    "vanishing|disconnected|not-updated|update-speed",
    remedy="scale|float32|precision|bfloat16",
    seen=8,
)
def underflow() -> Built:
    model, batches = Mixer().half(), digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        return F.cross_entropy(model(x.half()).float(), y) * 1e-6

    return model, by_loss(sgd(model, 5e4, 0.0), loss_of)
