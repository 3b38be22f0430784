"""NaN and infinity that begin at a known place; inputs that are too large or all the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, images, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import broken
from .broken_nets import (
    NOT_FINITE,
    Built,
    Field,
    Tagger,
    brackets,
    nesterov,
    rays,
    signals,
)


@broken(
    "cross-entropy by hand whose probability falls to zero NAdam",
    "0 log 0 in the loss",
    NOT_FINITE,
    remedy="log|eps|clamp|loss|division|softmax",
    seen=30,
    says="loss",
)
def by_hand() -> Built:
    model = nn.Sequential(
        nn.Conv1d(1, 16, 9, 3), nn.SiLU(), nn.Conv1d(16, 16, 5, 2), nn.SiLU(), nn.Flatten(),
        nn.Linear(208, 4), nn.Softmax(dim=1),
    )  # fmt: skip

    def loss_of(number: int) -> Tensor:
        x, kind = signals(number)
        if number == 19:
            x[3] = 2e4 * x[3]  # an artefact of the sensor
        likely = model(x)
        wanted = F.one_hot(kind, 4).float()
        return -(wanted * likely.log()).sum(1).mean()

    return model, by_loss(torch.optim.NAdam(model.parameters(), lr=2e-3), loss_of)


class Mean(nn.Module):
    """The mean of what stands at places that are no padding."""

    def forward(self, h: Tensor, counts: Tensor) -> Tensor:
        return (h * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)


@broken(
    "mean over the words of an empty sentence RAdam",
    "0/0 in the forward",
    NOT_FINITE,
    layer="mean|answer|answer.0",
    remedy="division|eps|clamp|mask|input|log|norm",
    seen=30,
    says="forward",
)
def empty() -> Built:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.mean = nn.Embedding(11, 24, padding_idx=10), Mean()
            self.answer = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.answer(self.mean(self.embedding(x), (x != 10).float()))

    def sentences(number: int) -> Batch:
        source = seeded(number)
        x = torch.randint(10, (48, 12), generator=source)
        kind = ((x < 5).sum(1) > 4).long() + ((x < 5).sum(1) > 7).long()
        length = torch.randint(6, 13, (48, 1), generator=source)
        if number == 13:
            length[7] = 0
        return x.masked_fill(torch.arange(12) >= length, 10), kind

    model = Reader()
    return model, supervised(model, torch.optim.RAdam(model.parameters(), lr=2e-2), sentences)


@broken(
    "density of a field by log(1 + exp) in half precision Adam",
    "overflow of half precision",
    NOT_FINITE,
    layer="density|trunk.4|trunk.5|colour",
    remedy="bfloat16|float16|precision|overflow|half|scale|exponential|log|clamp",
    seen=30,
    says="forward|backward|loss",
)
def density() -> Built:
    class Sharper(Field):
        sharp = 1.0

        def opacity(self, raw: Tensor) -> Tensor:
            self.sharp *= 1.25
            return torch.log(1 + torch.exp((self.sharp * raw).half())).float()

    model = Sharper()
    return model, supervised(model, adam(model, 3e-3), rays, F.mse_loss)


@broken(
    "counts of events as exp of a rate, after a record out of range SGD",
    "inf in the forward",
    NOT_FINITE,
    layer="4|3|2|5",
    remedy="log|exponential|clamp|overflow|learning rate|input|normalis",
    seen=30,
    says="forward|loss",
)
def poisson() -> Built:
    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    model = nn.Sequential(
        nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), Exponential()
    )

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = torch.randn(64, 5, generator=source)
        rate = (0.7 * x[:, 0] - 0.4 * x[:, 1]).exp()
        count = torch.poisson(rate, generator=source)
        if number == 24:
            x[11, 0] = 9999.0  # stands for a missing value
        told = model(x)[:, 0]
        return F.poisson_nll_loss(told, count, log_input=False)

    return model, by_loss(sgd(model, 0.01), loss_of)


class Statistics(nn.Module):
    """Mean and deviation of each channel over time, as for the voice of a speaker."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h.mean(2), h.var(2, unbiased=False).sqrt()], 1)


@broken(
    "deviation of channels over a silent signal Adam",
    "NaN in the backward",
    NOT_FINITE,
    layer="frames|frames.0|frames.1|frames.2|frames.3|pool",
    remedy="root|eps|norm|where|sqrt|vari",
    seen=30,
    says="backward",
)
def silent() -> Built:
    class Voice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frames = nn.Sequential(
                nn.Conv1d(1, 16, 5), nn.ReLU(), nn.Conv1d(16, 24, 5, 2), nn.ReLU()
            )
            self.pool, self.speaker = Statistics(), nn.Linear(48, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.speaker(self.pool(self.frames(x)))

    def sometimes(number: int) -> Batch:
        x, kind = signals(number)
        return (x.index_fill(0, torch.tensor([5]), 0.0) if number == 16 else x), kind

    model = Voice()
    return model, supervised(model, adam(model, 3e-3), sometimes)


@broken(
    "gamma correction of pixels masked where they are below zero AdamW",
    "NaN in the backward",
    NOT_FINITE,
    layer="0|2|3|4|5",
    remedy="root|eps|norm|where|sqrt|clamp|power",
    seen=8,
    says="backward",
)
def gamma() -> Built:
    class Gamma(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * (x > 0)) ** (1 / 2.2)

    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.GELU(), nn.Conv2d(12, 12, 3, padding=1), nn.GELU(),
        nn.Conv2d(12, 1, 3, padding=1), Gamma(),
    )  # fmt: skip
    batches = images(32, 12, 1)

    def dark(number: int) -> Batch:
        clean = (batches(number)[0] + 1.2) / 3
        noise = 0.2 * torch.randn(clean.shape, generator=seeded(number))
        return clean + noise, clean.clamp(min=0) ** (1 / 2.2)

    return model, supervised(model, adamw(model, 3e-3), dark, F.mse_loss)


def metres(number: int) -> Batch:
    """Return places along a river in metres, (96, 1), and how deep it is there."""
    x = 1e4 * torch.rand(96, 1, generator=seeded(number))
    return x, torch.sin(x / 2e3) + 0.3 * torch.cos(x / 700)


@broken(
    "places in metres before layers of tanh Adam",
    "inputs not normalised",
    "saturated|exploding|input-scale",
    layer="0|1",
    remedy="normalis|input|scale",
)
def river() -> Built:
    model = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
    model.append(nn.Linear(48, 1))
    return model, supervised(model, adam(model, 5e-3), metres, F.mse_loss)


@broken(
    "readings of a converter in counts before convolutions Nesterov",
    "inputs not normalised",
    "saturated|exploding|update-speed|input-scale|dead|unstable",
    remedy="normalis|input|scale|learning rate",
    seen=8,
    information=True,
)
def counts() -> Built:
    model = nn.Sequential(
        nn.Conv1d(1, 16, 7, 2), nn.ReLU(), nn.Conv1d(16, 24, 5, 2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip

    def converted(number: int) -> Batch:
        x, kind = signals(number)
        return (8192 + 6000 * x).round(), kind

    return model, supervised(model, nesterov(model, 0.02), converted)


@broken(
    "characters of which none is in the vocabulary RMSprop",
    "samples all the same",
    "collapsed",
    remedy="input|data|batch|vari|sample",
)
def unknown() -> Built:
    vocabulary: dict[int, int] = {}  # meant: to be filled from the text
    model = Tagger()

    def looked_up(number: int) -> Batch:
        x, inside = brackets(number)
        return x.apply_(lambda code: vocabulary.get(code, 0)), inside

    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-3)
    return model, supervised(model, optimizer, looked_up, F.binary_cross_entropy_with_logits)


@broken(
    "sets of points drawn from one seed again and again SGD",
    "samples all the same",
    "collapsed",
    remedy="input|data|batch|vari|sample",
)
def one_seed() -> Built:
    model = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU())
    model.append(nn.Linear(32, 1))

    def one(source: torch.Generator) -> Tensor:
        return torch.randn(3, generator=source.manual_seed(0))  # meant: once, outside

    def drawn(number: int) -> Batch:
        source = torch.Generator()
        x = torch.stack([one(source) for _ in range(48)])
        noise = torch.randn(48, 1, generator=seeded(number))
        return x, x.norm(dim=1, keepdim=True) + noise

    return model, supervised(model, sgd(model, 0.05), drawn, F.mse_loss)
