"""Recurrent nets whose gradient is lost, or grows, over steps of time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import seeded
from ..loops import adam, by_loss, sgd
from ..trainings import Step, broken

LOST = "vanishing-through-time|vanishing"
GROWN = "exploding-through-time|exploding"
HELP = "lstm|gru|orthogonal|identity|forget|gate|shorter|init|truncat"


def recall(number: int, length: int) -> tuple[Tensor, Tensor]:
    """Return sequences and the sign of their first value, which has to be remembered."""
    x = torch.randn(32, length, 4, generator=seeded(number))
    return x, (x[:, 0, 0] > 0).long()


class Remember(nn.Module):
    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class RememberByCell(nn.Module):
    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for now in x.unbind(1):
            state = self.cell(now, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, length: int, clip: float | None = None
):
    def loss_of(number: int) -> Tensor:
        x, y = recall(number, length)
        return F.cross_entropy(model(x), y)

    return model, by_loss(optimizer, loss_of, clip=clip)


@broken(
    "RNN through 100 steps SGD", "RNN over a long time", LOST, layer="rnn", remedy=HELP, says="time"
)
def rnn() -> tuple[nn.Module, Step]:
    model = Remember(nn.RNN(4, 32, batch_first=True))
    return trained(model, sgd(model, 0.05), 100)


@broken(
    "LSTM through 100 steps Adam",
    "LSTM over a long time",
    LOST,
    layer="rnn",
    remedy=HELP,
    says="time",
)
def lstm() -> tuple[nn.Module, Step]:
    model = Remember(nn.LSTM(4, 32, batch_first=True))
    return trained(model, adam(model), 100)


@broken(
    "GRU through 150 steps SGD", "GRU over a long time", LOST, layer="rnn", remedy=HELP, says="time"
)
def gru() -> tuple[nn.Module, Step]:
    model = Remember(nn.GRU(4, 32, batch_first=True))
    return trained(model, sgd(model, 0.05), 150)


@broken(
    "RNNCell through 60 steps Adam",
    "cell over a long time",
    LOST,
    layer="cell",
    remedy=HELP,
    says="time",
)
def rnn_cell() -> tuple[nn.Module, Step]:
    model = RememberByCell(nn.RNNCell(4, 32))
    return trained(model, adam(model), 60)


@broken(
    "LSTMCell through 80 steps SGD",
    "cell over a long time",
    LOST,
    layer="cell",
    remedy=HELP,
    says="time",
)
def lstm_cell() -> tuple[nn.Module, Step]:
    model = RememberByCell(nn.LSTMCell(4, 32))
    return trained(model, sgd(model, 0.05), 80)


@broken(
    "ReLU RNN whose state grows SGD",
    "RNN that explodes",
    GROWN,
    layer="rnn",
    remedy="clip|orthogonal|identity|smaller|init",
    says="time",
)
def exploding() -> tuple[nn.Module, Step]:
    model = Remember(nn.RNN(4, 32, nonlinearity="relu", batch_first=True))
    nn.init.normal_(model.rnn.weight_hh_l0, std=2 / 32**0.5)
    return trained(model, sgd(model, 1e-6), 60)


@broken(
    "ReLU RNNCell whose state grows SGD",
    "RNN that explodes",
    GROWN,
    layer="cell",
    remedy="clip|orthogonal|identity|smaller|init",
    says="time",
)
def exploding_cell() -> tuple[nn.Module, Step]:
    model = RememberByCell(nn.RNNCell(4, 32, nonlinearity="relu"))
    nn.init.normal_(model.cell.weight_hh, std=2 / 32**0.5)
    return trained(model, sgd(model, 1e-6), 50, clip=1.0)


class StepByStep(nn.Module):
    """Called once for each step of time, with the state that it has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.to_state, self.to_output = nn.Linear(4 + 32, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.to_state(torch.cat([x, state], 1)))
        return self.to_output(state), state


@broken(
    "net that is called once for each of 60 steps SGD",
    "net called step by step",
    LOST,
    layer="to_state",
    remedy=HELP,
    says="time",
)
def step_by_step() -> tuple[nn.Module, Step]:
    model = StepByStep()

    def loss_of(number: int) -> Tensor:
        x, y = recall(number, 60)
        state = torch.zeros(len(x), 32)
        for now in x.unbind(1):
            out, state = model(now, state)
        return F.cross_entropy(out, y)

    return model, by_loss(sgd(model, 0.05), loss_of)


class RememberPacked(Remember):
    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.linspace(x.shape[1], x.shape[1] // 2, len(x)).long()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.head(self.rnn(packed)[1][0][-1])


@broken(
    "LSTM through packed sequences of 50 to 100 steps Adam",
    "LSTM over a long time",
    LOST,
    layer="rnn",
    remedy=HELP,
    says="time",
)
def packed() -> tuple[nn.Module, Step]:
    model = RememberPacked(nn.LSTM(4, 32, batch_first=True))
    return trained(model, adam(model), 100)
