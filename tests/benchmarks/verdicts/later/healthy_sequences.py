"""Recurrent nets and convolutions over time, for text, waves and rows of pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, Batch, _source, rows, seeded, text
from ..loops import adam, by_loss, next_character, supervised
from ..trainings import Step, healthy


@healthy("GRU of characters that keeps its state from piece to piece Adam")
def kept_state() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, width: int = 96) -> None:
            super().__init__()
            self.embed = nn.Embedding(CHARACTERS, 32)
            self.gru = nn.GRU(32, width, batch_first=True)
            self.head = nn.Linear(width, CHARACTERS)

        def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            h, state = self.gru(self.embed(x), state)
            return self.head(h), state

    model, codes = Net(), _source()
    optimizer, kept = adam(model, 3e-3), {}
    streams = codes[: len(codes) // 16 * 16].view(16, -1)

    def step(number: int) -> Tensor:
        piece = streams[:, 32 * number : 32 * number + 33].long()
        logits, state = model(piece[:, :-1], kept.get("state"))
        kept["state"] = state.detach()
        loss = next_character(logits, piece[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return model, step


@healthy("plain RNN over the rows of digits, clipped RMSprop")
def plain_rnn() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.RNN(8, 64, batch_first=True), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(x)[0][:, -1])

    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return model, supervised(model, optimizer, rows(64), clip=1.0)


@healthy("characters tagged by two bidirectional LSTMs with dropout of a half Adam")
def tagged() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.drop = nn.Embedding(CHARACTERS, 32), nn.Dropout(0.5)
            self.lstm = nn.LSTM(32, 48, 2, batch_first=True, bidirectional=True, dropout=0.5)
            self.head = nn.Linear(96, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.lstm(self.drop(self.embed(x)))[0]))

    model, pieces = Net(), text(16, 40)

    def batches(number: int) -> Batch:
        x, _ = pieces(number)
        opened = ((x == ord("(") - 31).long() - (x == ord(")") - 31).long()).cumsum(1)
        return x, (opened > 0).long()  # within parentheses opened in this piece

    def loss(told: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(told.flatten(0, 1), y.flatten())

    return model, supervised(model, adam(model, 5e-3), batches, loss)


@healthy("LSTM's cell by hand with layer norms, forget gates opened Adam")
def own_cell() -> tuple[nn.Module, Step]:
    class Cell(nn.Module):
        def __init__(self, inputs: int, width: int) -> None:
            super().__init__()
            self.of_x = nn.Linear(inputs, 4 * width)
            self.of_h = nn.Linear(width, 4 * width, bias=False)
            self.norm_x, self.norm_h = nn.LayerNorm(4 * width), nn.LayerNorm(4 * width)
            self.norm_c = nn.LayerNorm(width)
            with torch.no_grad():
                self.norm_x.bias[width : 2 * width] = 1.0

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            gates = self.norm_x(self.of_x(x)) + self.norm_h(self.of_h(h))
            i, f, g, o = gates.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * self.norm_c(c).tanh(), c

    class Net(nn.Module):
        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.embed, self.width = nn.Embedding(CHARACTERS, 32), width
            self.cell, self.head = Cell(32, width), nn.Linear(width, CHARACTERS)

        def forward(self, x: Tensor) -> Tensor:
            h = c = torch.zeros(len(x), self.width)
            states = []
            for at in self.embed(x).unbind(1):
                h, c = self.cell(at, h, c)
                states.append(h)
            return self.head(torch.stack(states, 1))

    model = Net()
    return model, supervised(model, adam(model, 3e-3), text(16, 24), next_character, clip=1.0)


@healthy("numbers spelt by a GRU that asks an encoder by additive attention, half forced Adam")
def spelt() -> tuple[nn.Module, Step]:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

    class Net(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.embed, self.letters = nn.Embedding(10, 24), nn.Embedding(28, 24)
            self.encoder = nn.GRU(24, width, batch_first=True, bidirectional=True)
            self.bridge = nn.Linear(2 * width, width)
            self.of_key, self.of_query = nn.Linear(2 * width, width), nn.Linear(width, width)
            self.score, self.cell = nn.Linear(width, 1), nn.GRUCell(24 + 2 * width, width)
            self.head = nn.Linear(3 * width, 28)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            keys, last = self.encoder(self.embed(x))
            state = self.bridge(torch.cat([last[0], last[1]], 1)).tanh()
            told, out = torch.zeros(len(x), dtype=torch.long), []
            forced = torch.rand(y.shape[1]) < 0.5
            for place in range(y.shape[1]):
                rate = self.score((self.of_key(keys) + self.of_query(state)[:, None]).tanh())
                seen = (rate.softmax(1) * keys).sum(1)
                state = self.cell(torch.cat([self.letters(told), seen], 1), state)
                out.append(self.head(torch.cat([state, seen], 1)))
                told = y[:, place] if forced[place] else out[-1].argmax(1)
            return torch.stack(out, 1)

    model = Net()
    optimizer = adam(model, 5e-3)

    def loss_of(number: int) -> Tensor:
        x = torch.randint(10, (48, 2), generator=seeded(number))
        words = [" ".join(names[d] for d in row).ljust(11, "~") for row in x.tolist()]
        codes = {" ": 26, "~": 27}
        y = torch.tensor([[codes.get(c, ord(c) - 97) for c in word] for word in words])
        return F.cross_entropy(model(x, y).flatten(0, 1), y.flatten())

    return model, by_loss(optimizer, loss_of, clip=1.0)


@healthy("marked numbers added by causal convolutions with BatchNorm NAdam")
def added() -> tuple[nn.Module, Step]:
    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, spread: int) -> None:
            super().__init__()
            self.pad = 2 * spread
            self.conv1 = nn.Conv1d(inputs, width, 3, dilation=spread)
            self.conv2 = nn.Conv1d(width, width, 3, dilation=spread)
            self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
            self.kept = nn.Conv1d(inputs, width, 1) if inputs != width else nn.Identity()
            self.drop = nn.Dropout(0.05)

        def forward(self, x: Tensor) -> Tensor:
            h = self.drop(F.relu(self.norm1(self.conv1(F.pad(x, (self.pad, 0))))))
            h = self.drop(F.relu(self.norm2(self.conv2(F.pad(h, (self.pad, 0))))))
            return F.relu(h + self.kept(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(Block(2, 24, 1), Block(24, 24, 2), Block(24, 24, 4))
            self.body.append(Block(24, 24, 8))
            self.head = nn.Linear(24, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[:, :, -1])

    model = Net()
    optimizer = torch.optim.NAdam(model.parameters(), lr=4e-3)

    def batches(number: int) -> Batch:
        source = seeded(number)
        value = torch.randn(64, 40, generator=source)
        mark = torch.zeros(64, 40).scatter_(
            1, torch.rand(64, 40, generator=source).topk(2).indices, 1
        )
        return torch.stack([value, mark], 1), (value * mark).sum(1, keepdim=True)

    return model, supervised(model, optimizer, batches, F.mse_loss)


@healthy("gates by convolutions, states by running sums Adam")
def quasi() -> tuple[nn.Module, Step]:
    class Quasi(nn.Module):
        def __init__(self, inputs: int, width: int) -> None:
            super().__init__()
            self.conv = nn.Conv1d(inputs, 3 * width, 2)

        def forward(self, x: Tensor) -> Tensor:
            z, f, o = self.conv(F.pad(x, (1, 0))).chunk(3, 1)
            z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
            state, states = torch.zeros_like(z[:, :, 0]), []
            for place in range(z.shape[-1]):
                state = f[:, :, place] * state + (1 - f[:, :, place]) * z[:, :, place]
                states.append(o[:, :, place] * state)
            return torch.stack(states, -1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(CHARACTERS, 48), nn.ModuleList()
            self.body.extend([Quasi(48, 96), Quasi(96, 96)])
            self.head = nn.Linear(96, CHARACTERS)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x).transpose(1, 2)
            for layer in self.body:
                h = layer(h)
            return self.head(h.transpose(1, 2))

    model = Net()
    return model, supervised(model, adam(model, 3e-3), text(16, 32), next_character)


@healthy("words of several widths, the largest of each, half dropped Adadelta")
def text_cnn() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(CHARACTERS, 32)
            self.convs = nn.ModuleList(nn.Conv1d(32, 48, size) for size in (3, 4, 5))
            self.drop, self.fc = nn.Dropout(0.5), nn.Linear(144, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x).transpose(1, 2)
            seen = [F.relu(conv(h)).amax(-1) for conv in self.convs]
            return self.fc(self.drop(torch.cat(seen, 1)))

    model, pieces = Net(), text(64, 48)
    word = torch.tensor([ord(c) - 31 for c in "self"])

    def batches(number: int) -> Batch:
        x, _ = pieces(number)
        found = (x.unfold(1, 4, 1) == word).all(-1).any(1)
        return x, found.long()

    optimizer = torch.optim.Adadelta(model.parameters())
    return model, supervised(model, optimizer, batches)
