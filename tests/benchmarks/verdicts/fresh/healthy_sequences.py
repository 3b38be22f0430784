"""Sequences: recurrent cells, convolutions over time, states, attention of other makes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..data import CHARACTERS, rows, seeded, text
from ..loops import adam, adamw, by_loss, next_character, sgd, supervised, warmed
from ..trainings import Step, healthy
from .healthy_nets import Attention, dense


@healthy("dilated causal convolutions with weight norm Adam")
def dilated() -> tuple[nn.Module, Step]:
    class Layer(nn.Module):
        def __init__(self, spread: int) -> None:
            super().__init__()
            self.first, self.second = (
                parametrizations.weight_norm(nn.Conv1d(48, 48, 3, dilation=spread))
                for _ in range(2)
            )
            self.drop, self.spread = nn.Dropout(0.1), spread

        def forward(self, x: Tensor) -> Tensor:
            h = x
            for layer in (self.first, self.second):
                h = self.drop(F.relu(layer(F.pad(h, (2 * self.spread, 0)))))
            return F.relu(x + h)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(CHARACTERS, 48), nn.Linear(48, CHARACTERS)
            self.body = nn.Sequential(*(Layer(2**place) for place in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.tokens(x).transpose(1, 2)).transpose(1, 2))

    model = Net()
    return model, supervised(model, adam(model, 2e-3), text(16, 32), next_character, clip=1.0)


@healthy("gated dilated convolutions with skips to the head Adam")
def wave_net() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Conv1d(1, 24, 1)
            self.gates = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=2**i) for i in range(6))
            self.back = nn.ModuleList(nn.Conv1d(24, 24, 1) for _ in range(6))
            self.skip = nn.ModuleList(nn.Conv1d(24, 32, 1) for _ in range(6))
            self.end, self.head = nn.Conv1d(32, 32, 1), nn.Conv1d(32, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            x, told = self.start(x[:, None]), torch.zeros(())
            for place, (gate, back, skip) in enumerate(
                zip(self.gates, self.back, self.skip, strict=True)
            ):
                one, two = gate(F.pad(x, (2**place, 0))).chunk(2, 1)
                h = one.tanh() * two.sigmoid()
                x, told = x + back(h), told + skip(h)
            return self.head(F.relu(self.end(F.relu(told))))

    model = Net()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        speed = 0.1 + 0.3 * torch.rand(16, 1, generator=source)
        wave = torch.sin(speed * torch.arange(81) + 6.3 * torch.rand(16, 1, generator=source))
        bins = ((wave + 1) * 15.9).long()
        return F.cross_entropy(model(wave[:, :-1]), bins[:, 1:])

    return model, by_loss(adam(model, 3e-3), loss_of)


class Conformer(nn.Module):
    """Half a layer, attention, a convolution over time, half a layer."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first, self.last = (
            nn.Sequential(nn.LayerNorm(width), dense(width, 2 * width, width, act=nn.SiLU))
            for _ in range(2)
        )
        self.norm, self.see = nn.LayerNorm(width), Attention(width)
        self.before, self.into = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.deep = nn.Conv1d(width, width, 5, padding=2, groups=width)
        self.batch, self.out = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)
        self.final = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.first(x)
        x = x + self.see(self.norm(x))
        h = F.glu(self.into(self.before(x).transpose(1, 2)), 1)
        x = x + self.out(F.silu(self.batch(self.deep(h)))).transpose(1, 2)
        return self.final(x + 0.5 * self.last(x))


@healthy("conformer with unaligned labels AdamW")
def conformer() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(8, 48), *(Conformer() for _ in range(3)), nn.Linear(48, 11))
    optimizer, batches = adamw(model, 2e-3), rows(32, 2)
    schedule = warmed(optimizer)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        schedule.step()
        chances = model(x).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(
            chances, y[:, None] + 1, torch.full((32,), 16), torch.full((32,), 1), zero_infinity=True
        )

    return model, by_loss(optimizer, loss_of, clip=5.0)


@healthy("reversal by two GRUs and Luong's attention Adam")
def reversal() -> tuple[nn.Module, Step]:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(12, 32)
            self.encoder = nn.GRU(32, 48, batch_first=True, bidirectional=True)
            self.bridge, self.decoder = nn.Linear(96, 48), nn.GRU(32, 48, batch_first=True)
            self.score, self.join = nn.Linear(96, 48, bias=False), nn.Linear(144, 48)
            self.head = nn.Linear(48, 12)

        def forward(self, x: Tensor, before: Tensor) -> Tensor:
            told, last = self.encoder(self.tokens(x))
            start = self.bridge(torch.cat([last[0], last[1]], 1)).tanh()[None]
            h, _ = self.decoder(self.tokens(before), start)
            share = (h @ self.score(told).transpose(1, 2)).softmax(-1)
            return self.head(self.join(torch.cat([h, share @ told], -1)).tanh())

    model = Translator()

    def loss_of(number: int) -> Tensor:
        x = torch.randint(1, 12, (64, 8), generator=seeded(number))
        wanted = x.flip(1)
        before = torch.cat([torch.zeros(64, 1, dtype=torch.long), wanted[:, :-1]], 1)
        return F.cross_entropy(model(x, before).transpose(1, 2), wanted)

    return model, by_loss(adam(model, 5e-3), loss_of, clip=1.0)


@healthy("two LSTMs of characters with tied weights and one mask for all steps SGD")
def dropped_weights() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(CHARACTERS, 48)
            self.lstms = nn.ModuleList(nn.LSTM(48, 48, batch_first=True) for _ in range(2))
            self.head = nn.Linear(48, CHARACTERS)
            nn.init.uniform_(self.tokens.weight, -0.1, 0.1)
            self.head.weight = self.tokens.weight
            nn.init.zeros_(self.head.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = self.tokens(x)
            for lstm in self.lstms:
                mask = torch.empty(len(x), 1, 48).bernoulli_(0.8) / 0.8
                x = lstm(x * mask)[0]
            return self.head(x)

    model = Net()
    return model, supervised(model, sgd(model, 10.0, 0.0), text(32, 32), next_character, clip=0.25)


@healthy("diagonal states run as convolutions AdamW")
def states() -> tuple[nn.Module, Step]:
    class Layer(nn.Module):
        def __init__(self, width: int = 32, size: int = 16) -> None:
            super().__init__()
            self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 2 * width)
            self.decay = nn.Parameter(torch.full((width, size), 0.5).log())
            self.turn = nn.Parameter(torch.pi * torch.arange(size).float().repeat(width, 1))
            self.step = nn.Parameter(torch.linspace(-5, -1, width))
            self.read = nn.Parameter(torch.randn(width, size, 2) * 0.5**0.5)
            self.through = nn.Parameter(torch.ones(width))

        def forward(self, x: Tensor) -> Tensor:
            length = x.shape[1]
            pole = torch.complex(-self.decay.exp(), self.turn) * self.step.exp()[:, None]
            gain = torch.view_as_complex(self.read) * (pole.exp() - 1) / (pole + 1e-4)
            kernel = (gain[..., None] * (pole[..., None] * torch.arange(length)).exp()).sum(1).real
            h = self.norm(x).transpose(1, 2)
            seen = torch.fft.rfft(h, 2 * length) * torch.fft.rfft(kernel, 2 * length)
            h = torch.fft.irfft(seen, 2 * length)[..., :length] + self.through[:, None] * h
            return x + F.glu(self.out(F.gelu(h.transpose(1, 2))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.head = nn.Linear(1, 32), nn.Linear(32, 10)
            self.body = nn.Sequential(*(Layer() for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.start(x.flatten(1)[..., None])).mean(1))

    model = Net()
    return model, supervised(model, adamw(model, 5e-3), rows(32))


@healthy("pictures that move, by a convolutional LSTM Adam")
def convolutional_lstm() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.head = nn.Conv2d(1 + 16, 64, 3, padding=1), nn.Conv2d(16, 1, 1)

        def forward(self, frames: Tensor) -> Tensor:
            h = c = frames.new_zeros(len(frames), 16, 10, 10)
            guesses = []
            for frame in frames.unbind(1):
                i, f, o, g = self.gates(torch.cat([frame, h], 1)).chunk(4, 1)
                c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                guesses.append(self.head(h))
            return torch.stack(guesses, 1)

    model = Net()

    def loss_of(number: int) -> Tensor:
        start = torch.randint(3, (16, 2), generator=seeded(number)).float()
        places = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij"))
        time = torch.arange(7.0)
        at = start[:, None, :, None, None] + time[:, None, None, None]
        frames = (-(places - at).square().sum(2, keepdim=True) / 2).exp()
        return F.binary_cross_entropy_with_logits(model(frames[:, :-1]), frames[:, 1:])

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("pointers to the smallest of a set Adam")
def pointers() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.LSTM(1, 48, batch_first=True, bidirectional=True)
            self.query, self.key = nn.Linear(96, 48), nn.Linear(96, 48)
            self.score = nn.Linear(48, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            told, _ = self.encoder(x)
            both = self.query(told.mean(1))[:, None] + self.key(told)
            return self.score(both.tanh())[..., 0]

    model = Net()

    def loss_of(number: int) -> Tensor:
        x = torch.rand(64, 8, 1, generator=seeded(number))
        return F.cross_entropy(model(x), x[..., 0].argmin(1))

    return model, by_loss(adam(model, 5e-3), loss_of, clip=2.0)


@healthy("one block called six times, its steps told AdamW")
def universal() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(CHARACTERS, 48), nn.Embedding(32, 48)
            self.steps = nn.Parameter(0.02 * torch.randn(6, 48))
            self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(48) for _ in range(3))
            self.see, self.body = Attention(48), dense(48, 96, 48, act=nn.GELU)
            self.head = nn.Linear(48, CHARACTERS)

        def forward(self, x: Tensor) -> Tensor:
            h = self.tokens(x) + self.places.weight
            for step in self.steps:
                h = h + step
                h = h + self.see(self.norm1(h), causal=True)
                h = h + self.body(self.norm2(h))
            return self.head(self.norm3(h))

    model = Net()
    return model, supervised(model, adamw(model, 2e-3), text(16, 32), next_character, clip=1.0)


@healthy("segments that see the one before Adam")
def segments() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(CHARACTERS, 48), nn.Linear(48, CHARACTERS)
            self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(6))
            self.sees = nn.ModuleList(nn.MultiheadAttention(48, 4, batch_first=True) for _ in "123")
            self.bodies = nn.ModuleList(dense(48, 96, 48) for _ in range(3))
            mask = torch.ones(16, 32, dtype=torch.bool).triu(17)
            self.register_buffer("mask", mask)

        def forward(self, x: Tensor, before: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            h, kept = self.tokens(x), []
            for place, (see, body) in enumerate(zip(self.sees, self.bodies, strict=True)):
                kept.append(h.detach())
                q = self.norms[2 * place](h)
                told = torch.cat([self.norms[2 * place](before[place]), q], 1)
                h = h + see(q, told, told, attn_mask=self.mask, need_weights=False)[0]
                h = h + body(self.norms[2 * place + 1](h))
            return self.head(h), kept

    model, batches = Net(), text(16, 64)
    kept = [torch.zeros(16, 16, 48)] * 3

    def loss_of(number: int) -> Tensor:
        nonlocal kept
        x, y = batches(number // 4)
        part = slice(16 * (number % 4), 16 * (number % 4) + 16)
        logits, kept = model(x[:, part], kept if number % 4 else [torch.zeros(16, 16, 48)] * 3)
        return next_character(logits, y[:, part])

    return model, by_loss(adam(model, 2e-3), loss_of, clip=1.0)


@healthy("tags by a bidirectional GRU and a chain of transitions SGD")
def tags() -> tuple[nn.Module, Step]:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(20, 24)
            self.body = nn.GRU(24, 24, batch_first=True, bidirectional=True)
            self.head, self.moves = nn.Linear(48, 4), nn.Parameter(torch.zeros(4, 4))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            score = self.head(self.body(self.tokens(x))[0])
            total = score[:, 0]
            for place in range(1, x.shape[1]):
                total = (total[:, :, None] + self.moves).logsumexp(1) + score[:, place]
            own = score.gather(2, y[..., None]).sum((1, 2)) + self.moves[y[:, :-1], y[:, 1:]].sum(1)
            return (total.logsumexp(1) - own).mean()

    model = Tagger()

    def loss_of(number: int) -> Tensor:
        x = torch.randint(20, (32, 12), generator=seeded(number))
        return model(x, (x // 5 + x.roll(1, 1) % 2) % 4)

    return model, by_loss(sgd(model, 0.05), loss_of, clip=5.0)


@healthy("forecast by blocks that explain what is left Adam")
def blocks_of_rest() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bodies = nn.ModuleList(dense(24, 64, 64, 64) for _ in range(5))
            self.back = nn.ModuleList(nn.Linear(64, 24) for _ in range(5))
            self.ahead = nn.ModuleList(nn.Linear(64, 6) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            told = torch.zeros(())
            for body, back, ahead in zip(self.bodies, self.back, self.ahead, strict=True):
                h = F.relu(body(x))
                x, told = x - back(h), told + ahead(h)
            return told

    model = Net()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        speed, phase = (
            0.2 + torch.rand(64, 1, generator=source),
            torch.rand(64, 1, generator=source),
        )
        wave = torch.sin(speed * torch.arange(30) + 6 * phase) + 0.05 * torch.arange(30)
        return (model(wave[:, :24]) - wave[:, 24:]).abs().mean()

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("rows remembered by three layers of a minimal gated cell Adam")
def minimal() -> tuple[nn.Module, Step]:
    class Layer(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.gate, self.value = nn.Linear(inputs, 40), nn.Linear(inputs, 40)

        def forward(self, x: Tensor) -> Tensor:
            gate, value = self.gate(x).sigmoid(), self.value(x)
            h, out = torch.zeros_like(value[:, 0]), []
            for place in range(x.shape[1]):
                h = h + gate[:, place] * (value[:, place] - h)
                out.append(h)
            return torch.stack(out, 1)

    model = nn.Sequential(Layer(8), Layer(40), Layer(40), nn.LayerNorm(40), nn.Linear(40, 10))
    batches = rows(64, 2)
    return model, supervised(
        model, adam(model, 5e-3), batches, lambda out, y: F.cross_entropy(out[:, -1], y)
    )
