"""Recurrent nets: over characters, over rows of pictures, by modules and by cells."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, digits, rows, seeded, text
from ..loops import adam, adamw, by_loss, next_character, sgd, supervised
from ..trainings import Step, healthy


class Characters(nn.Module):
    """A recurrent model of characters."""

    def __init__(self, kind: type[nn.RNNBase], width: int = 96, layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 32)
        self.rnn = kind(32, width, layers, batch_first=True)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


def characters(kind: str, layers: int, lr: float) -> tuple[nn.Module, Step]:
    model = Characters(getattr(nn, kind), layers=layers)
    return model, supervised(model, adam(model, lr), text(16, 48), next_character, clip=1.0)


healthy("LSTM of characters Adam")(partial(characters, "LSTM", 1, 3e-3))
healthy("three LSTMs of characters Adam")(partial(characters, "LSTM", 3, 3e-3))
healthy("GRU of characters Adam")(partial(characters, "GRU", 2, 3e-3))
healthy("RNN of characters Adam")(partial(characters, "RNN", 1, 2e-3))


class Rows(nn.Module):
    """Reads a picture row by row, and says what it shows."""

    def __init__(self, kind: type[nn.RNNBase], both: bool = False) -> None:
        super().__init__()
        self.rnn = kind(8, 48, batch_first=True, bidirectional=both)
        self.head = nn.Linear(96 if both else 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


@healthy("bidirectional LSTM of rows SGD")
def both_ways() -> tuple[nn.Module, Step]:
    model = Rows(nn.LSTM, both=True)
    return model, supervised(model, sgd(model, 0.3), rows())


@healthy("GRU of rows AdamW")
def gru_rows() -> tuple[nn.Module, Step]:
    model = Rows(nn.GRU)
    return model, supervised(model, adamw(model, 5e-3), rows(64, 2))


class Cells(nn.Module):
    """Calls a cell once a step of time."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for row in x.unbind(1):
            state = self.cell(row, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@healthy("LSTMCell over rows Adam")
def lstm_cell() -> tuple[nn.Module, Step]:
    model = Cells(nn.LSTMCell(8, 48), 48)
    return model, supervised(model, adam(model, 5e-3), rows())


@healthy("GRUCell over rows SGD")
def gru_cell() -> tuple[nn.Module, Step]:
    model = Cells(nn.GRUCell(8, 48), 48)
    return model, supervised(model, sgd(model, 0.2), rows())


@healthy("IRNN cell over rows Adam")
def irnn() -> tuple[nn.Module, Step]:
    cell = nn.RNNCell(8, 48, nonlinearity="relu")
    nn.init.eye_(cell.weight_hh)
    nn.init.zeros_(cell.bias_hh)
    model = Cells(cell, 48)
    return model, supervised(model, adam(model, 1e-3), rows(), clip=1.0)


class Translator(nn.Module):
    """Writes a sequence backwards: an encoder, a decoder and additive attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 24)
        self.encoder = nn.GRU(24, 48, batch_first=True, bidirectional=True)
        self.decoder = nn.GRUCell(24 + 96, 48)
        self.query, self.key, self.energy = nn.Linear(48, 32), nn.Linear(96, 32), nn.Linear(32, 1)
        self.head = nn.Linear(48, 20)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        seen, last = self.encoder(self.embedding(x))
        state, said = last[0], []
        before = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)
        for word in self.embedding(before).unbind(1):
            energy = self.energy(torch.tanh(self.query(state)[:, None] + self.key(seen)))
            context = (energy.softmax(1) * seen).sum(1)
            state = self.decoder(torch.cat([word, context], 1), state)
            said.append(self.head(state))
        return torch.stack(said, 1)


@healthy("sequence to sequence with attention Adam")
def translator() -> tuple[nn.Module, Step]:
    model = Translator()

    def loss_of(number: int) -> Tensor:
        x = torch.randint(1, 20, (32, 8), generator=seeded(number))
        y = x.flip(1)
        return F.cross_entropy(model(x, y).flatten(0, 1), y.flatten())

    return model, by_loss(adam(model, 5e-3), loss_of, clip=1.0)


@healthy("LSTM forecaster with truncated backpropagation Adam")
def forecaster() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict({"rnn": nn.LSTM(1, 32, batch_first=True), "head": nn.Linear(32, 1)})
    phases = torch.rand(16, 1, generator=seeded(0)) * 6
    state: list[tuple[Tensor, Tensor] | None] = [None]

    def loss_of(number: int) -> Tensor:
        time = torch.arange(number * 20, number * 20 + 21) * 0.3
        wave = torch.sin(time + phases)[..., None]
        out, new = model["rnn"](wave[:, :-1], state[0])
        state[0] = tuple(part.detach() for part in new)
        return F.mse_loss(model["head"](out), wave[:, 1:])

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("highway net SGD")
def highway() -> tuple[nn.Module, Step]:
    class Highway(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.change, self.gate = nn.Linear(64, 64), nn.Linear(64, 64)
            nn.init.constant_(self.gate.bias, -2.0)

        def forward(self, x: Tensor) -> Tensor:
            open_ = torch.sigmoid(self.gate(x))
            return open_ * torch.relu(self.change(x)) + (1 - open_) * x

    model = nn.Sequential(nn.Linear(64, 64), *(Highway() for _ in range(20)), nn.Linear(64, 10))
    return model, supervised(model, sgd(model, 0.05), digits())


@healthy("net that is called once for each row Adam")
def step_by_step() -> tuple[nn.Module, Step]:
    class StepByStep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_state, self.to_output = nn.Linear(8 + 48, 48), nn.Linear(48, 10)

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            state = torch.tanh(self.to_state(torch.cat([x, state], 1)))
            return self.to_output(state), state

    model, batches = StepByStep(), rows()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        state = torch.zeros(len(x), 48)
        for row in x.unbind(1):
            out, state = model(row, state)
        return F.cross_entropy(out, y)

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("GRU of packed rows Adam")
def packed() -> tuple[nn.Module, Step]:
    class Packed(Rows):
        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.linspace(x.shape[1], x.shape[1] - 3, len(x)).long()
            rows_ = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.head(self.rnn(rows_)[1][-1])

    model = Packed(nn.GRU)
    return model, supervised(model, adam(model, 5e-3), rows())
