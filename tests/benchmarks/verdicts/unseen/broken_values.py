"""Gradients that vanish or explode; units that die, saturate or say the same."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, rows
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, broken
from .nets import conv_net, of_pictures, sines


@broken(
    "autoencoder of ten sigmoid layers SGD",
    "vanishing through activations",
    "vanishing",
    layer="0",
    remedy="relu|gelu|normalis",
)
def autoencoder() -> tuple[nn.Module, Step]:
    widths = [64, 48, 40, 32, 24, 16, 24, 32, 40, 48]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(48, 64))
    batches = digits()
    return model, by_loss(sgd(model), lambda n: F.mse_loss(model(batches(n)[0]), batches(n)[0]))


@broken(
    "24 softsign layers by default SGD",
    "vanishing through depth",
    "vanishing",
    layer="0",
    remedy="xavier|he weights|larger|shortcut|normalis",
)
def softsign() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    for _ in range(24):
        layers += [nn.Linear(64, 64), nn.Softsign()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return model, supervised(model, sgd(model), digits())


@broken(
    "26 convolutions without shortcuts AdaGrad",
    "no shortcuts in a deep net",
    "vanishing|collapsed",
    layer="0",
    remedy="shortcut|normalis|he weights|kaiming|std",
)
def deep() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = [nn.Conv2d(1, 10, 3, padding=1), nn.ReLU()]
    for _ in range(25):
        layers += [nn.Conv2d(10, 10, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 10))
    return of_pictures(model, torch.optim.Adagrad(model.parameters(), lr=1e-2))


@broken(
    "weights of standard deviation .7 in a plain GELU net SGD",
    "weights start too large",
    "exploding",
    remedy="smaller|he weights|kaiming|std|normalis",
)
def large() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    for _ in range(9):
        layers += [nn.Linear(64, 64), nn.GELU()]
        nn.init.normal_(layers[-2].weight, std=0.7)
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return model, supervised(model, sgd(model, 1e-9, 0.0), digits())


@broken(
    "50 pre-activation blocks without a scale Adam",
    "residual branches add up",
    "exploding",
    remedy="scale|zero|normalis",
)
def residual() -> tuple[nn.Module, Step]:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48))
            for layer in self.body[1::2]:
                nn.init.kaiming_normal_(layer.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    blocks = (PreActivation() for _ in range(50))
    model = nn.Sequential(nn.Linear(64, 48), *blocks, nn.Linear(48, 10))
    return model, supervised(model, adam(model, 1e-5), digits())


def of_first_row(kind: type[nn.Module], repeat: int, lr: float) -> tuple[nn.Module, Step]:
    """Ask a recurrent layer at the end of a long sequence."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][:, -1])

    model = Reader()
    return model, supervised(model, adam(model, lr), rows(32, repeat))


@broken(
    "RNN through 104 steps RMSprop",
    "RNN over a long time",
    "vanishing-through-time",
    layer="cell",
    remedy="lstm|gru|orthogonal|clip|shorter|truncat",
)
def rnn() -> tuple[nn.Module, Step]:
    return of_first_row(nn.RNN, 13, 1e-3)


@broken(
    "LSTM through 120 steps AdamW",
    "LSTM over a long time",
    "vanishing-through-time",
    layer="cell",
    remedy="forget|bias|shorter|truncat|orthogonal",
)
def lstm() -> tuple[nn.Module, Step]:
    return of_first_row(nn.LSTM, 15, 3e-3)


@broken(
    "RNNCell through 90 steps SGD",
    "cell over a long time",
    "vanishing-through-time",
    layer="cell",
    remedy="lstm|gru|orthogonal|clip|shorter|truncat",
)
def cell() -> tuple[nn.Module, Step]:
    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNNCell(1, 24), nn.Linear(24, 1)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 24)
            for now in x.unbind(1):
                state = self.cell(now, state)
            return self.head(state)

    model = Stepping()
    return model, supervised(model, sgd(model), lambda n: sines(n, length=90), F.mse_loss)


@broken(
    "ReLU RNN of recurrent weights 1.4 through 48 steps SGD",
    "RNN that explodes",
    "exploding-through-time|exploding",
    layer="0|cell",
    remedy="clip|orthogonal|truncat|lstm",
)
def growing() -> tuple[nn.Module, Step]:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNN(8, 24, nonlinearity="relu", batch_first=True)
            self.cell.weight_hh_l0.data = 1.4 * torch.eye(24)
            self.head = nn.Linear(24, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][:, -1])

    model = Reader()
    return model, supervised(model, sgd(model, 1e-12, 0.0), rows(32, 6))


@broken(
    "RNN on raw values of hundreds Adam",
    "RNN on raw input",
    "saturated|input-scale",
    layer="cell",
    remedy="normalis|input",
)
def raw() -> tuple[nn.Module, Step]:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.RNN(8, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(400 + 300 * x)[0][:, -1])

    model = Reader()
    return model, supervised(model, adam(model), rows(32))


@broken(
    "pictures divided by 255 twice SGD",
    "inputs not normalised",
    "collapsed|input-scale",
    remedy="normalis|input",
    seen=8,
    information=True,
)
def divided() -> tuple[nn.Module, Step]:
    model, batches = conv_net(), images(32, 12, 1)

    def tiny(number: int) -> tuple[Tensor, Tensor]:
        x, y = batches(number)
        return x / 255**2, y

    return model, supervised(model, sgd(model), tiny)


@broken(
    "biases of -4 before the ReLUs of a conv net Adam",
    "dead layer",
    "dead",
    layer="3|4|5",
    remedy="bias|leaky|learning rate",
)
def off() -> tuple[nn.Module, Step]:
    model = conv_net()
    model[2].bias.data.fill_(-4.0)
    return of_pictures(model, adam(model))


@broken(
    "nine tenths of the units of a feed-forward layer off AdamW",
    "dead units",
    "dead",
    layer="1.act|1.up",
    remedy="bias|leaky|learning rate",
    seen=30,
)
def mostly_off() -> tuple[nn.Module, Step]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.act = nn.LayerNorm(32), nn.Linear(32, 80), nn.ReLU()
            self.down = nn.Linear(80, 32)
            self.up.bias.data[:72] = -20.0

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.act(self.up(self.norm(x))))

    model = nn.Sequential(nn.Linear(64, 32), Residual(), nn.Linear(32, 10))
    return model, supervised(model, adamw(model), digits())


@broken(
    "every weight of a conv net .03 SGD",
    "constant start",
    "collapsed|symmetric|constant-init",
    layer="0|2|4",
    remedy="random|init|start",
    seen=8,
)
def constant() -> tuple[nn.Module, Step]:
    model = conv_net()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.03)
    return of_pictures(model, sgd(model))


@broken(
    "residual net in eval after the first validation SGD",
    "BatchNorm in eval",
    "batchnorm-eval|batchnorm|normalisation|exploding|vanishing",
    remedy="train()|eval",
    seen=30,
    information=True,
)
def validated() -> tuple[nn.Module, Step]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.body(x))

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), *(Residual() for _ in range(3)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    train = of_pictures(model, sgd(model, 0.05))[1]

    def step(number: int) -> object:
        if number == 2:
            model.eval()
        return train(number)

    return model, step  # type: ignore[return-value]


@broken(
    "BatchNorm of pooled features of three pictures SGD",
    "BatchNorm of a tiny batch",
    "batchnorm|tiny-batch|normalisation|collapsed",
    remedy="batch|groupnorm|layernorm",
)
def three() -> tuple[nn.Module, Step]:
    model = conv_net()
    model.insert(8, nn.BatchNorm1d(32))
    return model, supervised(model, sgd(model, 0.01), images(3, 12, 1))
