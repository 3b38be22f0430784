"""Nets that make pictures and points: games, codes, flows, noise taken away, energies."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..data import digits, images, seeded
from ..loops import adam, adamw, by_loss
from ..trainings import Scalars, Step, healthy


def bright(number: int, batch: int = 64) -> Tensor:
    """Return digits between 0 and 1, (batch, 64)."""
    x, _ = digits(batch)(number)
    low = x.min()
    return (x - low) / (x.max() - low)


def moons(number: int, batch: int = 256) -> Tensor:
    """Return points of two half circles, (batch, 2)."""
    source = seeded(number)
    angle = math.pi * torch.rand(batch, generator=source)
    side = (torch.rand(batch, generator=source) < 0.5).float()
    x = torch.stack([angle.cos() + side - 0.5, (1 - 2 * side) * angle.sin() + side / 2 - 0.25], 1)
    return x + 0.08 * torch.randn(x.shape, generator=source)


def spread_apart(made: Tensor, real: Tensor) -> Tensor:
    """Return the energy distance of two sets of points."""
    both = torch.cdist(made, real).mean()
    return 2 * both - torch.cdist(made, made).mean() - torch.cdist(real, real).mean()


@healthy("eight bells in a ring, a judge whose slope at real points is kept small Adam")
def ring() -> tuple[nn.Module, Step]:
    def tower(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2),
            nn.Linear(128, outputs),
        )  # fmt: skip

    maker, judge = tower(8, 2), tower(2, 1)
    model = nn.ModuleDict({"maker": maker, "judge": judge})
    of_maker, of_judge = (
        torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.0, 0.99)) for net in (maker, judge)
    )

    def step(number: int) -> Scalars:
        angle = torch.randint(8, (256,), generator=seeded(number)) * math.pi / 4
        real = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(256, 2)
        real.requires_grad_()
        made = maker(torch.randn(256, 8))
        told = judge(real)
        steep = torch.autograd.grad(told.sum(), real, create_graph=True)[0].square().sum(1)
        judged = F.softplus(-told).mean() + F.softplus(judge(made.detach())).mean()
        of_judge.zero_grad()
        (judged + 0.1 * steep.mean()).backward()
        of_judge.step()
        fooled = F.softplus(-judge(made)).mean()
        of_maker.zero_grad()
        fooled.backward()
        of_maker.step()
        apart = spread_apart(made.detach(), real.detach())
        return {"judge": judged.detach(), "maker": fooled.detach(), "progress": apart}

    return model, step


@healthy("clipped critic of points, five looks for each try RMSprop")
def clipped_critic() -> tuple[nn.Module, Step]:
    def tower(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs)
        )

    maker, critic = tower(4, 2), tower(2, 1)
    model = nn.ModuleDict({"maker": maker, "critic": critic})
    of_maker = torch.optim.RMSprop(maker.parameters(), lr=1e-3)
    of_critic = torch.optim.RMSprop(critic.parameters(), lr=1e-3)

    def step(number: int) -> Scalars:
        for look in range(5):
            real = moons(5 * number + look)
            with torch.no_grad():
                made = maker(torch.randn(256, 4))
            of_critic.zero_grad()
            apart = critic(made).mean() - critic(real).mean()
            apart.backward()
            of_critic.step()
            with torch.no_grad():
                for p in critic.parameters():
                    p.clamp_(-0.1, 0.1)
        of_maker.zero_grad()
        made = maker(torch.randn(256, 4))
        loss = -critic(made).mean()
        loss.backward()
        of_maker.step()
        return {"critic": apart.detach(), "maker": loss.detach(),
                "progress": spread_apart(made.detach(), real)}  # fmt: skip

    return model, step


@healthy("pictures of a class asked for, with spectral norms and projected labels Adam")
def asked_class() -> tuple[nn.Module, Step]:
    class Maker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.label = nn.Embedding(10, 16)
            self.body = nn.Sequential(
                nn.Linear(32, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 128),
                nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid(),
            )  # fmt: skip

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return self.body(torch.cat([z, self.label(y)], 1))

    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = parametrizations.spectral_norm
            self.body = nn.Sequential(
                norm(nn.Linear(64, 128)), nn.LeakyReLU(0.2), norm(nn.Linear(128, 64)),
                nn.LeakyReLU(0.2),
            )  # fmt: skip
            self.head, self.label = norm(nn.Linear(64, 1)), norm(nn.Embedding(10, 64))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.body(x)
            return self.head(h) + (h * self.label(y)).sum(1, keepdim=True)

    maker, judge = Maker(), Judge()
    model = nn.ModuleDict({"maker": maker, "judge": judge})
    of_maker = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.0, 0.9))
    of_judge = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.0, 0.9))

    def step(number: int) -> Scalars:
        x, y = bright(number), digits()(number)[1]
        made = maker(torch.randn(64, 16), y)
        of_judge.zero_grad()
        judged = F.relu(1 - judge(x, y)).mean() + F.relu(1 + judge(made.detach(), y)).mean()
        judged.backward()
        of_judge.step()
        of_maker.zero_grad()
        loss = -judge(made, y).mean()
        loss.backward()
        of_maker.step()
        return {"judge": judged.detach(), "maker": loss.detach(),
                "progress": spread_apart(made.detach(), x)}  # fmt: skip

    return model, step


@healthy("variational autoencoder of bits with six codes Adam")
def bits() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc21, self.fc22 = (
                nn.Linear(64, 128),
                nn.Linear(128, 6),
                nn.Linear(128, 6),
            )
            self.fc3, self.fc4 = nn.Linear(6, 128), nn.Linear(128, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h = F.relu(self.fc1(x))
            mean, log_var = self.fc21(h), self.fc22(h)
            z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
            return self.fc4(F.relu(self.fc3(z))), mean, log_var

    model = Net()

    def loss_of(number: int) -> Tensor:
        x = bright(number, 128)
        told, mean, log_var = model(x)
        wrong = F.binary_cross_entropy_with_logits(told, x, reduction="sum")
        far = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
        return (wrong + far) / len(x)

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("book of codes that follows a mean of what it is given, on convolutions Adam")
def book() -> tuple[nn.Module, Step]:
    class Book(nn.Module):
        def __init__(self, many: int = 32, width: int = 8) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randn(many, width))
            self.register_buffer("count", torch.ones(many))
            self.register_buffer("total", self.codes.clone())

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
            near = torch.cdist(flat, self.codes).argmin(1)
            if self.training:
                with torch.no_grad():
                    one = F.one_hot(near, len(self.codes)).float()
                    self.count.lerp_(one.sum(0), 0.05)
                    self.total.lerp_(one.T @ flat, 0.05)
                    self.codes.copy_(self.total / self.count.clamp_min(1e-3)[:, None])
            told = self.codes[near].view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
            return x + (told - x).detach(), F.mse_loss(x, told.detach())

    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(
                nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
                nn.Conv2d(32, 8, 1),
            ),
            "book": Book(),
            "decoder": nn.Sequential(
                nn.Conv2d(8, 32, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1)
            ),
        }
    )  # fmt: skip

    def loss_of(number: int) -> Tensor:
        x = digits(64)(number)[0].view(-1, 1, 8, 8)
        code, commit = model["book"](model["encoder"](x))
        return F.mse_loss(model["decoder"](code), x) + 0.25 * commit

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("holes in pictures filled by an autoencoder with ELU and no norm AdamW")
def filled() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(2, 24, 3, padding=1), nn.ELU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ELU(),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2), nn.ELU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(32, 24, 3, padding=1), nn.ELU(),
        nn.Conv2d(24, 1, 3, padding=1),
    )  # fmt: skip

    def loss_of(number: int) -> Tensor:
        x, _ = images(16, 16, 1)(number)
        top, left = torch.randint(10, (2,), generator=seeded(number)).tolist()
        hole = torch.zeros_like(x)
        hole[:, :, top : top + 6, left : left + 6] = 1
        told = model(torch.cat([x * (1 - hole), hole], 1))
        return F.l1_loss(told * hole, x * hole) * 10 + F.l1_loss(told, x)

    return model, by_loss(adamw(model, 1e-3), loss_of)


class Timed(nn.Module):
    """A residual block of convolutions that a time is told to."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(64, outputs)
        self.kept = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.kept(x) + self.conv2(F.silu(self.norm2(h)))


@healthy("noise guessed by a U-Net with zeroed ends and a mean of weights AdamW")
def noise_guessed() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64))
            self.start = nn.Conv2d(1, 16, 3, padding=1)
            self.one, self.two = Timed(16, 16), Timed(32, 32)
            self.down = nn.Conv2d(16, 32, 3, 2, 1)
            self.middle, self.last = Timed(32, 32), Timed(48, 16)
            self.norm, self.end = nn.GroupNorm(8, 16), nn.Conv2d(16, 1, 3, padding=1)
            nn.init.zeros_(self.end.weight)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            speed = torch.exp(-math.log(1e4) * torch.arange(16) / 16)
            at = 1000 * t[:, None] * speed
            time = self.time(torch.cat([at.sin(), at.cos()], 1))
            wide = self.one(self.start(x), time)
            h = self.middle(self.two(self.down(wide), time), time)
            h = self.last(torch.cat([F.interpolate(h, scale_factor=2.0), wide], 1), time)
            return self.end(F.silu(self.norm(h)))

    net = Net()
    mean = copy.deepcopy(net).requires_grad_(False)
    model, optimizer = nn.ModuleDict({"net": net, "mean": mean}), adamw(net, 1e-3)

    def step(number: int) -> Tensor:
        x = 2 * bright(number, 32).view(-1, 1, 8, 8) - 1
        t, noise = torch.rand(len(x)), torch.randn_like(x)
        kept = (math.pi / 2 * t).cos()[:, None, None, None]
        told = net(kept * x + (1 - kept.square()).sqrt() * noise, t)
        loss = F.mse_loss(told, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(mean.parameters(), net.parameters(), strict=True):
                old.lerp_(new, 0.01)
        return loss.detach()

    return model, step


@healthy("halves moved and scaled in turn, with normed activations Adam")
def coupled() -> tuple[nn.Module, Step]:
    class Coupling(nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.side = side
            self.log_scale, self.shift = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
            self.net = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
            self.net.append(nn.Linear(64, 2))
            nn.init.zeros_(self.net[-1].weight)
            nn.init.zeros_(self.net[-1].bias)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = (x + self.shift) * self.log_scale.exp()
            known, other = x[:, self.side, None], x[:, 1 - self.side, None]
            scale, shift = self.net(known).chunk(2, 1)
            scale = 2 * (scale / 2).tanh()
            other = other * scale.exp() + shift
            parts = [known, other] if self.side == 0 else [other, known]
            return torch.cat(parts, 1), scale[:, 0] + self.log_scale.sum()

    model = nn.ModuleList(Coupling(place % 2) for place in range(6))

    def loss_of(number: int) -> Tensor:
        x, total = moons(number), torch.zeros(256)
        for layer in model:
            x, grown = layer(x)
            total = total + grown
        bell = -0.5 * x.square().sum(1) - math.log(2 * math.pi)
        return -(bell + total).mean()

    return model, by_loss(adam(model, 3e-3), loss_of, clip=5.0)


@healthy("energies of what is seen below those of noise, by telling the two apart Adam")
def told_apart() -> tuple[nn.Module, Step]:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
            self.head, self.level = nn.Linear(64, 1), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))[:, 0] + self.level

    model, bell = Energy(), torch.distributions.Normal(0.0, 1.0)

    def loss_of(number: int) -> Tensor:
        real, noise = moons(number), torch.randn(256, 2)
        of_real, of_noise = (-model(x) - bell.log_prob(x).sum(1) for x in (real, noise))
        return -(F.logsigmoid(of_real).mean() + F.logsigmoid(-of_noise).mean())

    return model, by_loss(adam(model, 2e-3), loss_of)
