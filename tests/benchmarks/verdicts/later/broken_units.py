"""Units that are dead, alike or dropped; nets of several players that starve or collapse."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, seeded
from ..loops import adam, adamw, by_loss, supervised
from ..trainings import Scalars, broken
from .broken_nets import (
    Built,
    ResNet,
    Sorter,
    clips,
    nesterov,
    numbers,
    sets,
    signals,
    video_net,
)


@broken(
    "biases of -30 in the second convolution of clips RMSprop",
    "dead layer",
    "dead",
    layer="3|4|5",
    remedy="bias|leaky|learning rate",
)
def biases() -> Built:
    model = video_net()
    nn.init.constant_(model[3].bias, -30.0)  # type: ignore[arg-type]
    return model, supervised(model, torch.optim.RMSprop(model.parameters(), lr=1e-3), clips)


@broken(
    "deep set of which nine tenths of the inner units are off Adamax",
    "dead units",
    "dead",
    layer="inner.2|inner.3",
    remedy="bias|leaky|learning rate",
    seen=8,
)
def mostly_off() -> Built:
    inner = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 60), nn.ReLU())
    nn.init.uniform_(inner[2].bias[:54].detach(), -90.0, -60.0)  # type: ignore[index]
    outer = nn.Sequential(nn.Linear(60, 32), nn.ReLU(), nn.Linear(32, 1))
    model = nn.ModuleDict({"inner": inner, "outer": outer})

    def loss_of(number: int) -> Tensor:
        x, size = sets(number)
        return F.mse_loss(outer(inner(x).mean(1))[:, 0], size)

    return model, by_loss(torch.optim.Adamax(model.parameters(), lr=5e-3), loss_of)


@broken(
    "autoencoder whose weights are all a tenth Adamax",
    "constant start",
    "collapsed|symmetric|constant-init",
    layer="0|1|2|3|4|5|6",
    remedy="random|init|start",
    seen=8,
)
def constant() -> Built:
    model = nn.Sequential(
        nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 12), nn.SiLU(), nn.Linear(12, 32), nn.SiLU(),
        nn.Linear(32, 64),
    )  # fmt: skip
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return F.mse_loss(model(x), x)

    return model, by_loss(torch.optim.Adamax(model.parameters(), lr=5e-3), loss_of)


@broken(
    "residual net of 8 bottlenecks that is never told to train() Nesterov",
    "BatchNorm in eval",
    "batchnorm-eval|batchnorm|normalisation|exploding|vanishing|unstable",
    remedy="train()|eval",
    seen=8,
    information=True,
)
def never_train() -> Built:
    model = ResNet(8)
    model.eval()
    return model, supervised(model, nesterov(model, 0.1), images(32, 16, 1))


@broken(
    "dropout of .95, meant to be kept and not dropped, in a sorter Adam",
    "dropout too strong",
    "dropout",
    remedy="dropout",
    seen=8,
)
def kept() -> Built:
    model = Sorter(dropout=0.95)
    return model, supervised(model, adam(model, 3e-3), numbers)


@broken(
    "dropout of .97 over the features of a table of points NAdam",
    "dropout too strong",
    "dropout",
    remedy="dropout",
    seen=8,
)
def points() -> Built:
    drop = nn.AlphaDropout(0.97)
    model = nn.Sequential(
        nn.Linear(36, 64), nn.SELU(), drop, nn.Linear(64, 64), nn.SELU(), drop, nn.Linear(64, 1)
    )

    def loss_of(number: int) -> Tensor:
        x, size = sets(number)
        return F.mse_loss(model(x.flatten(1))[:, 0], size)

    return model, by_loss(torch.optim.NAdam(model.parameters(), lr=3e-3), loss_of)


def ring(number: int) -> Tensor:
    """Return points around eight places on a circle, (128, 2)."""
    source = seeded(number)
    angle = 2 * math.pi * torch.randint(8, (128,), generator=source) / 8
    x = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return x + 0.05 * torch.randn(128, 2, generator=source)


@broken(
    "GAN of a ring whose minimax loss starves the generator Adam",
    "generator starved",
    "starved|vanishing|discriminator|saturated|output|loss",
    layer="generator.0|generator.2|generator.4",
    remedy="discriminator|balance|non-saturating|learning rate",
    seen=100,
    information=True,
)
def starved() -> Built:
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    generator.append(nn.Linear(32, 2))
    nn.init.constant_(generator[4].bias, 6.0)  # type: ignore[arg-type]
    discriminator = nn.Sequential(
        nn.Linear(2, 96), nn.LeakyReLU(0.2), nn.Linear(96, 96), nn.LeakyReLU(0.2), nn.Linear(96, 1)
    )
    model = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    slow = torch.optim.Adam(generator.parameters(), lr=1e-5, betas=(0.5, 0.9))
    quick = torch.optim.Adam(discriminator.parameters(), lr=5e-3, betas=(0.5, 0.9))

    def step(number: int) -> Scalars:
        for again in range(4):
            with torch.no_grad():
                made = generator(torch.randn(128, 4))
            quick.zero_grad()
            won = F.softplus(-discriminator(ring(4 * number + again))).mean()
            won = won + F.softplus(discriminator(made)).mean()
            won.backward()
            quick.step()
        slow.zero_grad()
        lost = F.logsigmoid(-discriminator(generator(torch.randn(128, 4)))).mean()
        lost.backward()
        slow.step()
        return {"generator_loss": lost.detach(), "discriminator_loss": won.detach()}

    return model, step


@broken(
    "mixture of six regressions whose router is never balanced NAdam",
    "dead experts",
    "disconnected|experts|starved|unused|dead",
    layer="experts.1|experts.2|experts.3|experts.4|experts.5|experts.1.0|experts.2.0|experts.3.0"
    "|experts.4.0|experts.5.0",
    remedy="balanc|router|expert",
    seen=8,
    information=True,
)
def experts() -> Built:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inlet, self.router = nn.Conv1d(1, 12, 9, 4), nn.Linear(12, 6)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(12 * 22, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(6)
            )
            nn.init.zeros_(self.router.weight)
            with torch.no_grad():
                self.router.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.inlet(x))
            share, chosen = self.router(h.mean(2)).softmax(1).max(1)
            out = h.new_zeros(len(h), 4)
            for number in chosen.unique().tolist():
                mine = (chosen == number).nonzero()[:, 0]
                told = self.experts[number](h[mine].flatten(1))
                out = out.index_add(0, mine, share[mine, None] * told)
            return out

    model = Mixture()
    return model, supervised(model, torch.optim.NAdam(model.parameters(), lr=3e-3), signals)


@broken(
    "Siamese net of signals that sees pairs of one kind alone AdamW",
    "representation collapses",
    "collapsed|vanishing",
    remedy="negative|stop|predictor|variance|contrast|spread",
    seen=100,
)
def siamese() -> Built:
    model = nn.Sequential(
        nn.Conv1d(1, 16, 7, 3), nn.GELU(), nn.Conv1d(16, 24, 5, 2), nn.GELU(), nn.Flatten(),
        nn.Linear(312, 32), nn.GELU(), nn.Linear(32, 16),
    )  # fmt: skip

    def loss_of(number: int) -> Tensor:
        x, kind = signals(number)
        one, two = (model(x.roll(turn, 2)) for turn in (0, 5))
        order = torch.argsort(kind, stable=True)
        same = kind[order][1:] == kind[order][:-1]
        far = (one[order][1:] - two[order][:-1]).square().sum(1)
        return far[same].mean()  # meant: and pairs of two kinds, pushed apart

    return model, by_loss(adamw(model, 3e-3), loss_of)
