"""Gradients that vanish or explode on their way, through layers or through time."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, text
from ..loops import adam, by_loss, next_character, sgd, supervised
from ..trainings import broken
from .broken_nets import (
    Built,
    Field,
    Flow,
    clips,
    first_sign,
    moons,
    nesterov,
    rays,
    signals,
)


@broken(
    "field of colours of nine sigmoid layers Nesterov",
    "vanishing through activations",
    "vanishing",
    layer="trunk.0",
    remedy="relu|gelu|normalis",
)
def sigmoids() -> Built:
    model = Field(9, nn.Sigmoid)
    return model, supervised(model, nesterov(model, 0.2), rays, F.mse_loss)


@broken(
    "variational autoencoder of eight sigmoid layers RMSprop",
    "vanishing through activations",
    "vanishing",
    layer="reader.0",
    remedy="relu|gelu|normalis",
)
def variational() -> Built:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            reader: list[nn.Module] = []
            for inputs, outputs in pairwise([64, 56, 48, 40, 32]):
                reader += [nn.Linear(inputs, outputs), nn.Sigmoid()]
            writer: list[nn.Module] = []
            for inputs, outputs in pairwise([8, 32, 40, 48, 56]):
                writer += [nn.Linear(inputs, outputs), nn.Sigmoid()]
            self.reader, self.writer = nn.Sequential(*reader), nn.Sequential(*writer)
            self.mean, self.spread, self.out = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(56, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.reader(x)
            mean, spread = self.mean(h), self.spread(h)
            code = mean + torch.randn_like(mean) * (0.5 * spread).exp()
            kl = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(1).mean()
            return self.out(self.writer(code)), kl

    model, batches = Coder(), digits()

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        out, kl = model(x)
        return F.mse_loss(out, x) + 1e-4 * kl

    return model, by_loss(torch.optim.RMSprop(model.parameters(), lr=2e-3), loss_of)


@broken(
    "flow of two moons whose tanh layers start with weights of 6 Adam",
    "weights start too large",
    "saturated|exploding",
    remedy="smaller|xavier|std|normalis",
)
def large_tanh() -> Built:
    model = Flow()
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=6.0)
    return model, by_loss(adam(model, 3e-3), lambda number: -model(moons(number)).mean())


@broken(
    "five convolutions of clips that start at a hundredth Nesterov",
    "weights start too small",
    "vanishing|collapsed",
    layer="0|2|4|6",
    remedy="larger|he weights|kaiming|std|init|normalis",
)
def small() -> Built:
    parts: list[nn.Module] = []
    for inputs in (1, 10, 10, 10, 10):
        parts += [nn.Conv3d(inputs, 10, 3, padding=1), nn.LeakyReLU(0.1)]
        nn.init.trunc_normal_(parts[-2].weight, std=0.005)
    model = nn.Sequential(*parts, nn.AvgPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(1500, 4))
    return model, supervised(model, nesterov(model, 0.01), clips)


@broken(
    "convolutions of signals drawn from a normal distribution of variance 1 Adam",
    "weights start too large",
    "exploding",
    remedy="smaller|he weights|kaiming|xavier|std|normalis|clip|init",
)
def large() -> Built:
    parts: list[nn.Module] = []
    for inputs in (1, 16, 16, 16, 16, 16, 16):
        parts += [nn.Conv1d(inputs, 16, 5, padding=2), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(32, 4))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model, supervised(model, adam(model, 1e-3), signals)


@broken(
    "34 convolutions of signals one after another Nesterov",
    "no shortcuts in a deep net",
    "vanishing|collapsed",
    layer="0",
    remedy="shortcut|normalis|he weights|kaiming|std",
)
def deep() -> Built:
    parts: list[nn.Module] = []
    for place in range(34):
        parts += [nn.Conv1d(16 if place else 1, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(64, 4))
    return model, supervised(model, nesterov(model, 0.05), signals)


class Doubled(nn.Module):
    """Adds twice what two convolutions say."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2, self.factor = nn.Conv2d(width, width, 3, padding=1), factor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.conv2(F.silu(self.conv1(x)))


@broken(
    "24 convolutional branches multiplied by 8 and added up RMSprop",
    "residual branches add up",
    "exploding",
    remedy="scale|zero|normalis|smaller|branch",
)
def branches() -> Built:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 4), *(Doubled(16, 8.0) for _ in range(24)), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-4)
    return model, supervised(model, optimizer, images(32, 16, 1))


LOST = "vanishing-through-time|vanishing"
HELP = "lstm|gru|orthogonal|identity|forget|gate|shorter|init|truncat|clip"


class Recaller(nn.Module):
    """Reads signs, and says at the end which was the first."""

    def __init__(self, rnn: nn.RNNBase, width: int = 24) -> None:
        super().__init__()
        self.signs, self.rnn = nn.Embedding(10, width), rnn
        self.answer = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.rnn(self.signs(x))[0][:, -1])


@broken(
    "two recurrent layers that recall a sign after 110 others Adamax",
    "RNN over a long time",
    LOST,
    layer="rnn",
    remedy=HELP,
)
def rnn() -> Built:
    model = Recaller(nn.RNN(24, 24, 2, batch_first=True))
    optimizer = torch.optim.Adamax(model.parameters(), lr=5e-3)
    return model, supervised(model, optimizer, partial(first_sign, length=110))


@broken(
    "two LSTM layers that recall a sign after 128 others RMSprop",
    "LSTM over a long time",
    LOST,
    layer="rnn",
    remedy=HELP,
)
def lstm() -> Built:
    model = Recaller(nn.LSTM(24, 24, 2, batch_first=True))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return model, supervised(model, optimizer, partial(first_sign, length=128))


@broken(
    "GRU that recalls a sign after 140 others NAdam",
    "GRU over a long time",
    LOST,
    layer="rnn",
    remedy=HELP,
)
def gru() -> Built:
    model = Recaller(nn.GRU(24, 24, batch_first=True))
    optimizer = torch.optim.NAdam(model.parameters(), lr=5e-3)
    return model, supervised(model, optimizer, partial(first_sign, length=140))


@broken(
    "GRUCell in a loop over 120 signs Nesterov",
    "cell over a long time",
    LOST,
    layer="cell",
    remedy=HELP,
)
def cell() -> Built:
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.signs, self.cell = nn.Embedding(10, 16), nn.GRUCell(16, 24)
            self.answer = nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros(len(x), 24)
            for now in self.signs(x).unbind(1):
                h = self.cell(now, h)
            return self.answer(h)

    model = Looped()
    return model, supervised(model, nesterov(model, 0.1), partial(first_sign, length=120))


@broken(
    "RNN of characters whose recurrent matrix has a gain of 3 SGD",
    "RNN that explodes",
    "exploding-through-time|exploding|saturated",
    layer="rnn",
    remedy="clip|orthogonal|identity|smaller|init|truncat|lstm|normalis",
)
def gain() -> Built:
    class Speaker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.signs = nn.Embedding(96, 32)
            self.rnn = nn.RNN(32, 64, nonlinearity="relu", batch_first=True)
            nn.init.orthogonal_(self.rnn.weight_hh_l0, 3.0)
            self.next = nn.Linear(64, 96)

        def forward(self, x: Tensor) -> Tensor:
            return self.next(self.rnn(self.signs(x))[0])

    model = Speaker()
    return model, supervised(model, sgd(model, 0.01), text(16, 40), next_character, clip=1.0)
