"""Nets that make pictures: autoencoders, GANs, diffusion, flows, U-Nets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, seeded
from ..loops import adam, adamw, by_loss, sgd
from ..trainings import Scalars, Step, healthy


@healthy("autoencoder Adam")
def autoencoder() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8),
        nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64),
    )  # fmt: skip
    batches = digits()
    return model, by_loss(
        adam(model, 3e-3), lambda n: F.mse_loss(model(batches(n)[0]), batches(n)[0])
    )


@healthy("denoising convolutional autoencoder SGD")
def denoising() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
    )  # fmt: skip
    batches = images(16, 16, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return F.mse_loss(model(x + 0.3 * torch.randn_like(x)), x)

    return model, by_loss(sgd(model, 0.05), loss_of)


@healthy("variational autoencoder Adam")
def vae() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)),
            "decoder": nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64)),
        }
    )
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        mean, spread = model["encoder"](x).chunk(2, -1)
        code = mean + torch.randn_like(mean) * (spread / 2).exp()
        kl = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(-1).mean()
        return F.mse_loss(model["decoder"](code), x) * 64 + kl

    return model, by_loss(adam(model, 3e-3), loss_of)


def spread(real: Tensor, made: Tensor) -> float:
    """Return how far the mean and the covariance of made samples are from those of real ones."""
    real, made = real.flatten(1), made.flatten(1)
    mean = (real.mean(0) - made.mean(0)).square().sum()
    return float(mean + (real.T.cov() - made.T.cov()).square().sum().sqrt())


def gan(
    generator: nn.Module, discriminator: nn.Module, lr: float, size: int = 0, penalty: bool = False
) -> tuple[nn.Module, Step]:
    """Train a GAN on the digits, or on pictures of `size`; how far the samples are is progress."""
    model = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    first, second = (
        torch.optim.Adam(net.parameters(), lr=lr, betas=(0.5, 0.99)) for net in model.values()
    )
    batches = images(32, size, 1) if size else digits()

    def step(number: int) -> Scalars:
        real, _ = batches(number)
        noise = torch.randn(len(real), 16)
        second.zero_grad()
        made = generator(noise).detach()
        if penalty:
            loss = discriminator(made).mean() - discriminator(real).mean()
            between = torch.lerp(real, made, torch.rand(len(real), 1)).requires_grad_()
            (slope,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
            loss = loss + 10 * (slope.norm(dim=1) - 1).square().mean()
        else:
            loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(made)).mean()
        loss.backward()
        second.step()
        first.zero_grad()
        made = generator(noise)
        score = discriminator(made)
        own = -score.mean() if penalty else F.softplus(-score).mean()
        own.backward()
        first.step()
        return {
            "generator_loss": own.detach(),
            "discriminator_loss": loss.detach(),
            "progress": spread(real, made.detach()),
        }

    return model, step


def dense(inputs: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 96), activation, nn.Linear(96, 96), activation, nn.Linear(96, outputs)
    )


@healthy("GAN of dense layers Adam")
def dense_gan() -> tuple[nn.Module, Step]:
    return gan(dense(16, 64, nn.ReLU()), dense(64, 1, nn.LeakyReLU(0.2)), 1e-3)


@healthy("WGAN with gradient penalty Adam")
def wgan() -> tuple[nn.Module, Step]:
    return gan(dense(16, 64, nn.ReLU()), dense(64, 1, nn.LeakyReLU(0.2)), 1e-3, penalty=True)


@healthy("DCGAN Adam")
def dcgan() -> tuple[nn.Module, Step]:
    generator = nn.Sequential(
        nn.Unflatten(1, (16, 1, 1)),
        nn.ConvTranspose2d(16, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 1, 4), nn.Flatten(),
    )  # fmt: skip
    for layer in [*generator.modules(), *discriminator.modules()]:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
    return gan(generator, discriminator, 2e-3, size=16)


@healthy("GAN with spectral norm Adam")
def spectral() -> tuple[nn.Module, Step]:
    discriminator = dense(64, 1, nn.LeakyReLU(0.1))
    for layer in discriminator[::2]:
        nn.utils.parametrizations.spectral_norm(layer)
    return gan(dense(16, 64, nn.ReLU()), discriminator, 5e-3)


class UNet(nn.Module):
    """Two levels down and up, with the levels joined by concatenation."""

    def __init__(self, channels: int, outputs: int, timed: bool = False) -> None:
        super().__init__()
        self.time = nn.Linear(16, 32) if timed else None
        self.down = nn.ModuleList([self._pair(channels, 16), self._pair(16, 32)])
        self.middle = self._pair(32, 32)
        self.up = nn.ModuleList([self._pair(64, 16), self._pair(32, 16)])
        self.head = nn.Conv2d(16, outputs, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU(),
        )  # fmt: skip

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.avg_pool2d(x, 2)
        if self.time is not None and time is not None:
            angles = time[:, None] * torch.arange(1, 9)
            x = x + self.time(torch.cat([angles.sin(), angles.cos()], 1))[..., None, None]
        x = self.middle(x)
        for block, old in zip(self.up, reversed(kept), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2), old], 1))
        return self.head(x)


@healthy("U-Net segmentation Adam")
def segmentation() -> tuple[nn.Module, Step]:
    model, batches = UNet(1, 1), images(8, 16, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        noisy = x + 0.5 * torch.randn_like(x)
        return F.binary_cross_entropy_with_logits(model(noisy), (x > 0.5).float())

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("U-Net diffusion AdamW")
def diffusion() -> tuple[nn.Module, Step]:
    model, batches = UNet(1, 1, timed=True), images(16, 16, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        time, noise = torch.rand(len(x)), torch.randn_like(x)
        share = torch.cos(time * 1.5)[:, None, None, None]
        return F.mse_loss(model(share * x + (1 - share**2).sqrt() * noise, time), noise)

    return model, by_loss(adamw(model, 2e-3), loss_of)


@healthy("diffusion of points by an MLP Adam")
def points() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(),
        nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2),
    )  # fmt: skip

    def loss_of(number: int) -> Tensor:
        angle = torch.rand(256, generator=seeded(number)) * 6.28
        x = torch.stack([angle.cos(), angle.sin()], 1)
        time, noise = torch.rand(256, 1), torch.randn(256, 2)
        return F.mse_loss(model(torch.cat([torch.lerp(x, noise, time), time], 1)), noise - x)

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("RealNVP Adam")
def flow() -> tuple[nn.Module, Step]:
    parts = [
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        for _ in range(6)
    ]
    for part in parts:
        nn.init.zeros_(part[-1].weight)
        nn.init.zeros_(part[-1].bias)
    model, batches = nn.ModuleList(parts), digits()

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        x = x + 0.1 * torch.randn_like(x)
        volume = torch.zeros(len(x))
        for part in model:
            first, second = x.chunk(2, -1)
            scale, shift = part(first).chunk(2, -1)
            scale = torch.tanh(scale)
            second = second * scale.exp() + shift
            volume = volume + scale.sum(-1)
            x = torch.cat([second, first], -1)
        return (0.5 * x.square().sum(-1) - volume).mean()

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("masked autoregressive pixels by gated convolutions Adam")
def gated() -> tuple[nn.Module, Step]:
    class Gated(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.filter = nn.Conv1d(24, 24, 2, dilation=width)
            self.gate = nn.Conv1d(24, 24, 2, dilation=width)
            self.out, self.width = nn.Conv1d(24, 24, 1), width

        def forward(self, x: Tensor) -> Tensor:
            padded = F.pad(x, (self.width, 0))
            return x + self.out(torch.tanh(self.filter(padded)) * self.gate(padded).sigmoid())

    model = nn.Sequential(
        nn.Conv1d(1, 24, 1), *(Gated(2**n) for n in range(6)), nn.ReLU(), nn.Conv1d(24, 1, 1)
    )
    batches = digits(32)

    def loss_of(number: int) -> Tensor:
        x = batches(number)[0][:, None]
        return F.mse_loss(model(x[..., :-1]), x[..., 1:])

    return model, by_loss(adam(model, 3e-3), loss_of)
