"""Nets that draw, fill in, score or transport: codes, games, flows, noise."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import images, seeded
from ..loops import adam, adamw, by_loss
from ..trainings import Scalars, Step, healthy
from .healthy_nets import Attention, dense, follow, pixels


def moons(number: int, batch: int = 128) -> Tensor:
    """Return points of two half circles, (batch, 2)."""
    source = seeded(number)
    angle = math.pi * torch.rand(batch, generator=source)
    side = torch.randint(2, (batch,), generator=source) * 2.0 - 1
    points = torch.stack([angle.cos() * side + 0.5 * (1 - side), angle.sin() * side], 1)
    return points + 0.05 * torch.randn(batch, 2, generator=source)


@healthy("codes of a book by a straight-through gradient Adam")
def vector_quantised() -> tuple[nn.Module, Step]:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Conv2d(1, 24, 4, 2, 1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1)
            )
            self.book = nn.Embedding(64, 16)
            nn.init.uniform_(self.book.weight, -1 / 16, 1 / 16)
            self.decoder = nn.Sequential(
                nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(24, 1, 4, 2, 1)
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = self.encoder(x).permute(0, 2, 3, 1)
            near = torch.cdist(z.flatten(0, 2), self.book.weight).argmin(1).view(z.shape[:3])
            code = self.book(near)
            away = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
            made = self.decoder((z + (code - z).detach()).permute(0, 3, 1, 2))
            return F.mse_loss(made, x), away

    model, batches = Coder(), images(32, 12, 1)
    optimizer = adam(model, 2e-3)

    def step(number: int) -> Scalars:
        optimizer.zero_grad()
        made, away = model(batches(number)[0])
        loss = made + away
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach(), "progress": made.detach()}

    return model, step


@healthy("discrete codes drawn by Gumbel's noise Adam")
def gumbel() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict({"encoder": dense(64, 96, 80), "decoder": dense(80, 96, 64)})

    def loss_of(number: int) -> Tensor:
        x, _ = pixels(number)
        logits = model["encoder"](x).unflatten(1, (8, 10))
        heat = max(0.5, math.exp(-0.01 * number))
        made = model["decoder"](F.gumbel_softmax(logits, heat).flatten(1))
        apart = (logits.softmax(-1) * (logits.log_softmax(-1) + math.log(10))).sum((1, 2))
        wrong = F.binary_cross_entropy_with_logits(made, x, reduction="none").sum(1)
        return (wrong + apart).mean()

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("variational autoencoder of classes whose divergence is warmed up Adam")
def conditional() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "encoder": dense(74, 96, 96, 16, act=nn.Softplus),
            "decoder": dense(18, 96, 96, 64, act=nn.Softplus),
        }
    )

    def loss_of(number: int) -> Tensor:
        x, y = pixels(number)
        kind = F.one_hot(y, 10).float()
        mean, spread = model["encoder"](torch.cat([x, kind], 1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (spread / 2).exp()
        made = model["decoder"](torch.cat([z, kind], 1))
        wrong = F.binary_cross_entropy_with_logits(made, x, reduction="none").sum(1).mean()
        apart = (mean.square() + spread.exp() - spread - 1).sum(1).mean() / 2
        return wrong + min(1.0, number / 60) * apart

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("straight paths from noise by a transformer with zero-initialised modulation AdamW")
def straight_paths() -> tuple[nn.Module, Step]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(48, elementwise_affine=False)
            self.see, self.body = Attention(48), dense(48, 128, 48, act=nn.GELU)
            self.told = nn.Linear(48, 6 * 48)
            nn.init.zeros_(self.told.weight)
            nn.init.zeros_(self.told.bias)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            a, b, g, d, e, h = self.told(F.silu(c))[:, None].chunk(6, -1)
            x = x + g * self.see(self.norm(x) * (1 + a) + b)
            return x + h * self.body(self.norm(x) * (1 + d) + e)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.time, self.kind = (
                nn.Linear(9, 48), dense(16, 48, 48, act=nn.SiLU), nn.Embedding(10, 48)
            )  # fmt: skip
            self.place = nn.Parameter(0.02 * torch.randn(1, 16, 48))
            self.blocks = nn.ModuleList(Block() for _ in range(4))
            self.norm, self.out = nn.LayerNorm(48), nn.Linear(48, 9)
            nn.init.zeros_(self.out.weight)

        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            waves = t[:, None] * 2.0 ** torch.arange(8)
            c = self.time(torch.cat([waves.sin(), waves.cos()], 1)) + self.kind(y)
            x = self.cut(F.unfold(x, 3, stride=3).transpose(1, 2)) + self.place
            for block in self.blocks:
                x = block(x, c)
            return F.fold(self.out(self.norm(x)).transpose(1, 2), 12, 3, stride=3)

    model, batches = Net(), images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        noise, t = torch.randn_like(x), torch.randn(len(x)).sigmoid()
        at = t[:, None, None, None]
        return F.mse_loss(model((1 - at) * x + at * noise, t, y), noise - x)

    return model, by_loss(adamw(model, 2e-3), loss_of)


@healthy("denoiser preconditioned by the noise, with a mean of weights Adam")
def preconditioned() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.told = dense(1, 32, 32, act=nn.SiLU)
            self.into, self.out = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1)
            self.norms = nn.ModuleList(nn.GroupNorm(4, 32) for _ in range(4))
            self.body = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))

        def forward(self, x: Tensor, s: Tensor) -> Tensor:
            h, told = self.into(x / (s**2 + 1).sqrt()), self.told(s.log().view(-1, 1) / 4)
            for norm, layer in zip(self.norms, self.body, strict=True):
                h = h + layer(F.silu(norm(h) + told[..., None, None]))
            return x / (s**2 + 1) + s / (s**2 + 1).sqrt() * self.out(F.silu(h))

    net = Net()
    model = nn.ModuleDict({"net": net, "mean": copy.deepcopy(net).requires_grad_(False)})
    optimizer, batches = adam(net, 2e-3), images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        follow(model["mean"], net, 0.02)
        x, _ = batches(number)
        s = (1.2 * torch.randn(len(x), 1, 1, 1) - 1.2).exp()
        made = net(x + s * torch.randn_like(x), s)
        return ((s**2 + 1) / s**2 * (made - x).square()).mean()

    return model, by_loss(optimizer, loss_of)


@healthy("masked autoregressive flow of two half circles Adam")
def masked_flow() -> tuple[nn.Module, Step]:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.zeros(2))
            self.second = dense(1, 32, 32, 2, act=nn.Tanh)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            told = torch.stack([self.first.expand(len(x), 2), self.second(x[:, :1])], 1)
            shift, scale = told.unbind(-1)
            scale = 2 * (scale / 2).tanh()
            return ((x - shift) * (-scale).exp()).flip(1), -scale.sum(1)

    model = nn.ModuleList(Masked() for _ in range(6))

    def loss_of(number: int) -> Tensor:
        z, volume = moons(number), torch.zeros(())
        for layer in model:
            z, more = layer(z)
            volume = volume + more
        return (z.square().sum(1) / 2 + math.log(2 * math.pi) - volume).mean()

    return model, by_loss(adam(model, 5e-3), loss_of, clip=5.0)


@healthy("slope of an energy that points back to the data Adam")
def slope_of_energy() -> tuple[nn.Module, Step]:
    model = dense(3, 64, 64, 64, 1, act=nn.SiLU)

    def loss_of(number: int) -> Tensor:
        x, source = moons(number), seeded(number + 500)
        size = (-3 * torch.rand(len(x), 1, generator=source)).exp()
        noise = torch.randn(x.shape, generator=source)
        at = (x + size * noise).requires_grad_()
        level = model(torch.cat([at, size.log()], 1))
        (slope,) = torch.autograd.grad(level.sum(), at, create_graph=True)
        return (slope - noise).square().sum(1).mean()

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("mixture of bells for each input Adam")
def mixture_density() -> tuple[nn.Module, Step]:
    model = dense(1, 48, 48, 15, act=nn.Tanh)

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        y = 2 * torch.rand(128, 1, generator=source) - 1
        x = y + 0.3 * torch.sin(6.3 * y) + 0.05 * torch.randn(128, 1, generator=source)
        share, mean, spread = model(x).chunk(3, 1)
        bells = torch.distributions.Normal(mean, spread.exp())
        return -(share.log_softmax(1) + bells.log_prob(y)).logsumexp(1).mean()

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("functions guessed from few points by a neural process Adam")
def neural_process() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict({"encoder": dense(2, 64, 64, 64), "decoder": dense(65, 64, 64, 2)})

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = 4 * torch.rand(32, 20, 1, generator=source) - 2
        size, phase = torch.rand(2, 32, 1, 1, generator=source)
        y = (0.5 + size) * torch.sin(2 * x + 3 * phase)
        told = model["encoder"](torch.cat([x, y], -1)[:, :8]).mean(1, keepdim=True)
        both = torch.cat([x, told.expand(-1, 20, -1)], -1)
        mean, spread = model["decoder"](both).chunk(2, -1)
        spread = 0.1 + 0.9 * F.softplus(spread)
        return -torch.distributions.Normal(mean, spread).log_prob(y).mean()

    return model, by_loss(adam(model, 2e-3), loss_of)
