"""Series of numbers: their next values, their shapes, their chances."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, seeded
from ..loops import adam, adamw, by_loss, supervised
from ..trainings import Step, healthy


def waves(number: int, batch: int = 32, length: int = 64) -> tuple[Tensor, Tensor]:
    """Return noisy waves of four shapes, (batch, length), and their shapes."""
    source = seeded(number)
    shape = torch.randint(4, (batch,), generator=source)
    speed = 0.2 + 0.2 * torch.rand(batch, 1, generator=source)
    phase = 6.28 * torch.rand(batch, 1, generator=source) + speed * torch.arange(length)
    saw = (phase / 6.2832) % 1 * 2 - 1
    every = torch.stack([phase.sin(), phase.sin().sign(), saw, saw.abs() * 2 - 1])
    wave = every[shape, torch.arange(batch)]
    return wave + 0.1 * torch.randn(wave.shape, generator=source), shape


@healthy("levels of a wave by gated causal convolutions, added to the last Adam")
def levels() -> tuple[nn.Module, Step]:
    class Gated(nn.Module):
        def __init__(self, width: int, spread: int, last: bool) -> None:
            super().__init__()
            self.spread, self.conv = spread, nn.Conv1d(width, 2 * width, 2, dilation=spread)
            self.skip = nn.Conv1d(width, width, 1)
            self.residual = None if last else nn.Conv1d(width, width, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            signal, gate = self.conv(F.pad(x, (self.spread, 0))).chunk(2, 1)
            h = signal.tanh() * gate.sigmoid()
            return x if self.residual is None else x + self.residual(h), self.skip(h)

    class Net(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.embed = nn.Embedding(32, width)
            self.layers = nn.ModuleList(Gated(width, 2 ** (at % 5), at == 9) for at in range(10))
            self.end = nn.Sequential(
                nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, 32, 1)
            )

        def forward(self, x: Tensor) -> Tensor:
            h, total = self.embed(x).transpose(1, 2), 0.0
            for layer in self.layers:
                h, skip = layer(h)
                total = total + skip
            return self.end(total)

    model = Net()

    def batches(number: int) -> Batch:
        x = waves(number, 8)[0].clamp(-1, 1)
        loud = x.sign() * (1 + 31 * x.abs()).log() / 3.4657
        codes = ((loud + 1) / 2 * 31).round().long().clamp(0, 31)
        return codes[:, :-1], codes[:, 1:]

    return model, supervised(model, adam(model, 1e-3), batches)


@healthy("shapes of waves by branches of long kernels with shortcuts AdamW")
def shapes() -> tuple[nn.Module, Step]:
    class Branches(nn.Module):
        def __init__(self, inputs: int, width: int = 12) -> None:
            super().__init__()
            self.less = nn.Conv1d(inputs, width, 1, bias=False) if inputs > 1 else nn.Identity()
            inner = width if inputs > 1 else 1
            self.convs = nn.ModuleList(
                nn.Conv1d(inner, width, size, padding=size // 2, bias=False) for size in (19, 9, 5)
            )
            self.pool = nn.Sequential(
                nn.MaxPool1d(3, 1, 1), nn.Conv1d(inputs, width, 1, bias=False)
            )
            self.norm = nn.BatchNorm1d(4 * width)

        def forward(self, x: Tensor) -> Tensor:
            h = self.less(x)
            return F.relu(self.norm(torch.cat([*(c(h) for c in self.convs), self.pool(x)], 1)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(Branches(1), Branches(48), Branches(48))
            self.second = nn.Sequential(Branches(48), Branches(48), Branches(48))
            self.kept = nn.Sequential(nn.Conv1d(1, 48, 1, bias=False), nn.BatchNorm1d(48))
            self.norm, self.fc = nn.BatchNorm1d(48), nn.Linear(48, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None]
            h = F.relu(self.first(x) + self.kept(x))
            h = F.relu(self.second(h) + self.norm(h))
            return self.fc(h.mean(-1))

    model = Net()
    return model, supervised(model, adamw(model, 1e-3), lambda number: waves(number, 16))


@healthy("waves packed by one LSTM and unpacked by another Adam")
def packed() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.encoder = nn.LSTM(1, width, batch_first=True)
            self.code, self.start = nn.Linear(width, 8), nn.Linear(8, width)
            self.decoder = nn.LSTM(8, width, batch_first=True)
            self.head = nn.Linear(width, 1)

        def forward(self, x: Tensor) -> Tensor:
            _, (h, _) = self.encoder(x)
            code = self.code(h[-1])
            start = self.start(code).tanh()[None]
            repeated = code[:, None].expand(-1, x.shape[1], -1)
            return self.head(self.decoder(repeated, (start, torch.zeros_like(start)))[0])

    model = Net()

    def batches(number: int) -> Batch:
        source = seeded(number)
        phase = 6.28 * torch.rand(64, 1, 1, generator=source)
        wave = torch.sin(phase + 0.4 * torch.arange(16.0)[:, None])
        return wave, wave

    return model, supervised(model, adam(model, 5e-3), batches, F.mse_loss, clip=1.0)


@healthy("chances of the next sale by an LSTM's mean and spread Adam")
def sales() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shop = nn.Embedding(8, 6)
            self.lstm = nn.LSTM(9, 40, 2, batch_first=True, dropout=0.1)
            self.mean, self.spread = nn.Linear(40, 1), nn.Linear(40, 1)

        def forward(self, x: Tensor, shop: Tensor) -> tuple[Tensor, Tensor]:
            known = self.shop(shop)[:, None].expand(-1, x.shape[1], -1)
            h, _ = self.lstm(torch.cat([x, known], -1))
            return self.mean(h)[..., 0], F.softplus(self.spread(h))[..., 0]

    model = Net()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        shop = torch.randint(8, (32,), generator=source)
        day = torch.randint(7, (32, 1), generator=source) + torch.arange(29)
        week = day * 6.2832 / 7
        sold = (shop[:, None] / 4 - 1) + week.sin() * (1 + shop[:, None] / 8)
        sold = sold + 0.2 * torch.randn(sold.shape, generator=source)
        x = torch.stack([sold, week.sin(), week.cos()], -1)[:, :-1]
        mean, spread = model(x, shop)
        return F.gaussian_nll_loss(mean, sold[:, 1:], spread.square())

    return model, by_loss(adam(model, 5e-3), loss_of, clip=10.0)
