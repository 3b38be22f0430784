"""NaN, infinity and spikes that begin at a known place."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, text
from ..loops import adam, by_loss, next_character, sgd, supervised
from ..trainings import Step, broken

NOT_FINITE = "exploding|non-finite|nan"
AT = 12
"""The step at which it goes wrong."""


class Parts(nn.Module):
    """Three layers, and something in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(64, 64), Middle(self), nn.Linear(64, 10)
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(F.relu(self.middle(F.relu(self.first(x)))))
        self.number += 1
        return out

    def change(self, x: Tensor, now: bool) -> Tensor:
        return x


class Middle(nn.Module):
    def __init__(self, owner: Parts) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.__dict__["owner"] = owner

    def forward(self, x: Tensor) -> Tensor:
        return self.owner.change(self.linear(x), self.owner.number >= AT)


def trained(model: nn.Module) -> tuple[nn.Module, Step]:
    return model, supervised(model, sgd(model, 0.02), digits())


@broken(
    "logarithm of negative values SGD",
    "NaN in the forward",
    NOT_FINITE,
    layer="middle|middle.linear|last",
    remedy="log|division|clamp|domain",
    seen=30,
    says="forward",
)
def logarithm() -> tuple[nn.Module, Step]:
    class Log(Parts):
        def change(self, x: Tensor, now: bool) -> Tensor:
            return torch.log(x) if now else x

    return trained(Log())


@broken(
    "division by zero Adam",
    "inf in the forward",
    NOT_FINITE,
    layer="middle|middle.linear|last",
    remedy="division|eps|clamp|log",
    seen=30,
    says="forward",
)
def division() -> tuple[nn.Module, Step]:
    class Division(Parts):
        def change(self, x: Tensor, now: bool) -> Tensor:
            return x / (x.detach() > 0) if now else x

    model = Division()
    return model, supervised(model, adam(model), digits())


@broken(
    "root of zero whose derivative is infinite SGD",
    "NaN in the backward",
    NOT_FINITE,
    layer="middle|middle.linear|first",
    remedy="sqrt|root|eps|norm|division",
    seen=30,
    says="backward",
)
def root() -> tuple[nn.Module, Step]:
    class Root(Parts):
        def change(self, x: Tensor, now: bool) -> Tensor:
            return x + torch.sqrt((x * (x.detach() > 0)) ** 2) if now else x

    return trained(Root())


@broken(
    "norm of a zero vector in the loss SGD",
    "NaN in the backward",
    NOT_FINITE,
    layer="last",
    remedy="sqrt|root|eps|norm|division",
    seen=30,
    says="backward",
)
def distance() -> tuple[nn.Module, Step]:
    model = Parts()
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        out = model(x)
        loss = F.cross_entropy(out, y)
        if number >= AT:
            loss = loss + torch.sqrt(((out - out.detach()) ** 2).sum(-1)).mean()
        return loss

    return model, by_loss(sgd(model, 0.02), loss_of)


@broken(
    "infinity in a batch SGD",
    "inf in the input",
    NOT_FINITE,
    layer="first",
    remedy="input|batch|data",
    seen=30,
    says="input|batch",
)
def input_infinite() -> tuple[nn.Module, Step]:
    batches = digits()

    def bad(number: int) -> tuple[Tensor, Tensor]:
        x, y = batches(number)
        return (x.index_fill(0, torch.tensor([3]), math.inf) if number == AT else x), y

    model = Parts()
    return model, supervised(model, sgd(model, 0.02), bad)


@broken(
    "NaN in a column of the data Adam",
    "NaN in the input",
    NOT_FINITE,
    layer="first",
    remedy="input|batch|data",
    seen=30,
    says="input|batch",
)
def input_nan() -> tuple[nn.Module, Step]:
    batches = digits()

    def bad(number: int) -> tuple[Tensor, Tensor]:
        x, y = batches(number)
        return (x.index_fill(1, torch.tensor([3]), math.nan) if number == AT else x), y

    model = Parts()
    return model, supervised(model, adam(model), bad)


@broken(
    "one weight becomes NaN SGD",
    "NaN in a parameter",
    NOT_FINITE,
    layer="middle.linear|middle",
    remedy="parameter|weight|checkpoint|load|overwrit",
    seen=30,
    says="weight|parameter",
)
def parameter() -> tuple[nn.Module, Step]:
    model = Parts()
    train = supervised(model, sgd(model, 0.02), digits())

    def step(number: int) -> float | Tensor:
        if number == AT:
            model.middle.linear.weight.data[3, 5] = math.nan
        return train(number)

    return model, step


@broken(
    "values that overflow half precision SGD",
    "overflow of half precision",
    NOT_FINITE,
    layer="middle|middle.linear|last",
    remedy="bfloat16|float16|precision|overflow|half|scale|exponential",
    says="forward",
)
def overflow() -> tuple[nn.Module, Step]:
    class Half(Parts):
        def change(self, x: Tensor, now: bool) -> Tensor:
            return (x * 3e4).half().mul(4).float() / 1e5

    return trained(Half())


@broken(
    "spike by one bad batch SGD",
    "loss spike",
    "spike|unstable|exploding|dead",
    remedy="batch|data|clip",
    seen=30,
    information=True,
)
def bad_batch() -> tuple[nn.Module, Step]:
    batches = digits()

    def bad(number: int) -> tuple[Tensor, Tensor]:
        x, y = batches(number)
        return (x * 300 if number == AT else x), y

    model = Parts()
    return model, supervised(model, sgd(model, 0.01), bad)


@broken(
    "spike of the loss by one step of learning rate 2 Adam",
    "loss spike",
    "spike|unstable|exploding|dead|saturated",
    remedy="learning rate|clip|warm",
    seen=30,
    information=True,
)
def bad_step() -> tuple[nn.Module, Step]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(96, 32)
            self.rnn = nn.GRU(32, 64, batch_first=True)
            self.head = nn.Linear(64, 96)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.embedding(x))[0])

    model = Model()
    optimizer = adam(model, 3e-3)
    train = supervised(model, optimizer, text(16, 32), next_character)

    def step(number: int) -> float | Tensor:
        optimizer.param_groups[0]["lr"] = 2.0 if number == AT else 3e-3
        return train(number)

    return model, step
