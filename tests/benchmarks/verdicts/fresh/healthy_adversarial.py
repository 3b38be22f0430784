"""A maker of pictures against a judge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..data import images
from ..trainings import Scalars, Step, healthy
from .healthy_nets import Attention, dense, pixels


def game(
    maker: nn.Module, judge: nn.Module, losses: object, rates: tuple[float, float] = (1e-3, 1e-3)
) -> tuple[nn.Module, Step]:
    """Train a maker of digits and its judge; how far means and spreads are apart is progress."""
    model = nn.ModuleDict({"maker": maker, "judge": judge})
    own, other = (
        torch.optim.Adam(net.parameters(), lr=lr, betas=(0.5, 0.99))
        for net, lr in zip((maker, judge), rates, strict=True)
    )

    def step(number: int) -> Scalars:
        x, y = pixels(number)
        x = 2 * x - 1
        noise = torch.randn(64, 16)
        with torch.no_grad():
            made = maker(noise)
        other.zero_grad()
        judged = losses(judge, x, made, y)[0]  # type: ignore[operator]
        judged.backward()
        other.step()
        own.zero_grad()
        made = maker(torch.randn(64, 16))
        loss = losses(judge, x, made, y)[1]  # type: ignore[operator]
        loss.backward()
        own.step()
        with torch.no_grad():
            apart = (made.mean(0) - x.mean(0)).square().mean() + (
                made.std(0) - x.std(0)
            ).square().mean()
        return {"maker_loss": loss.detach(), "judge_loss": judged.detach(), "progress": apart}

    return model, step


@healthy("game of squared differences with two rates Adam")
def least_squares() -> tuple[nn.Module, Step]:
    maker = nn.Sequential(
        nn.Linear(16, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 96), nn.BatchNorm1d(96),
        nn.ReLU(), nn.Linear(96, 64), nn.Tanh(),
    )  # fmt: skip
    judge = dense(64, 96, 96, 1, act=lambda: nn.LeakyReLU(0.2))

    def losses(judge: nn.Module, real: Tensor, made: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        told = judge(made)
        return (judge(real) - 1).square().mean() + told.square().mean(), (told - 1).square().mean()

    return game(maker, judge, losses, (1e-3, 2e-3))


@healthy("hinge game of convolutions with spectral norm and attention Adam")
def hinge() -> tuple[nn.Module, Step]:
    class See(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.see, self.share = Attention(width, 2), nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(2).transpose(1, 2)
            return x + self.share * self.see(flat).transpose(1, 2).view_as(x)

    def sn(layer: nn.Module) -> nn.Module:
        return parametrizations.spectral_norm(layer)

    maker = nn.Sequential(
        nn.Linear(16, 32 * 4), nn.Unflatten(1, (32, 2, 2)), nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), See(32),
        nn.Upsample(scale_factor=2), nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16),
        nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1), nn.Tanh(), nn.Flatten(),
    )  # fmt: skip
    judge = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), sn(nn.Conv2d(1, 24, 3, padding=1)), nn.LeakyReLU(0.1),
        sn(nn.Conv2d(24, 32, 4, 2, 1)), nn.LeakyReLU(0.1), See(32), sn(nn.Conv2d(32, 48, 4, 2, 1)),
        nn.LeakyReLU(0.1), nn.Flatten(), sn(nn.Linear(192, 1)),
    )  # fmt: skip

    def losses(judge: nn.Module, real: Tensor, made: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        told = judge(made)
        return F.relu(1 - judge(real)).mean() + F.relu(1 + told).mean(), -told.mean()

    return game(maker, judge, losses, (1e-3, 2e-3))


@healthy("pictures translated by a U-Net that a judge of patches scores Adam")
def translated() -> tuple[nn.Module, Step]:
    class Maker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
            self.three, self.four = (
                nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ConvTranspose2d(32, 1, 4, 2, 1)
            )  # fmt: skip
            self.norm = nn.InstanceNorm2d(32)

        def forward(self, x: Tensor) -> Tensor:
            a = F.leaky_relu(self.one(x), 0.2)
            b = F.leaky_relu(self.norm(self.two(a)), 0.2)
            return self.four(torch.cat([a, F.relu(self.three(b))], 1))

    maker = Maker()
    judge = nn.Sequential(
        nn.Conv2d(2, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 3, padding=1),
        nn.InstanceNorm2d(32), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 3, padding=1),
    )  # fmt: skip
    model, batches = nn.ModuleDict({"maker": maker, "judge": judge}), images(16, 16, 1)
    own, other = (
        torch.optim.Adam(n.parameters(), 1e-3, betas=(0.5, 0.999)) for n in (maker, judge)
    )

    def step(number: int) -> Scalars:
        x, _ = batches(number)
        edges = (x - F.avg_pool2d(x, 3, 1, 1)).clone()
        made = maker(edges)
        other.zero_grad()
        real, fake = (judge(torch.cat([edges, some], 1)) for some in (x, made.detach()))
        judged = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
        judged.backward()
        other.step()
        own.zero_grad()
        far = F.l1_loss(made, x)
        loss = F.softplus(-judge(torch.cat([edges, made], 1))).mean() + 50 * far
        loss.backward()
        own.step()
        return {
            "maker_loss": loss.detach(),
            "judge_loss": judged.detach(),
            "progress": far.detach(),
        }

    return model, step
