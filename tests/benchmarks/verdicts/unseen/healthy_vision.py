"""Pictures: classified, drawn, compared, filled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, seeded
from ..loops import adam, adamw, by_loss, sgd
from ..trainings import Step, healthy
from .nets import conv_net, of_pictures


class Pre(nn.Module):
    """Normalise, activate, convolve, twice."""

    def __init__(self, width: int, norm: object) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)  # type: ignore[operator]
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        return x + self.conv2(self.act(self.norm2(h)))


def pooled(width: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)


@healthy("pre-activation residual net of 16 convolutions SGD")
def pre_activation() -> tuple[nn.Module, Step]:
    blocks = (Pre(16, nn.BatchNorm2d) for _ in range(7))
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *blocks, nn.BatchNorm2d(16), nn.ReLU())
    return of_pictures(model.extend(pooled(16)), sgd(model, 0.05))


@healthy("residual net of group norms AdamW")
def groups() -> tuple[nn.Module, Step]:
    blocks = (Pre(24, lambda width: nn.GroupNorm(4, width)) for _ in range(4))
    model = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), *blocks)
    return of_pictures(model.extend(pooled(24)), adamw(model, 2e-3))


@healthy("ten plain convolutions with BatchNorm and pooling SGD")
def plain() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    width = 1
    for place, wider in enumerate([12, 12, 16, 16, 24, 24, 32, 32, 32, 32]):
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place in (3, 6) else []
        width = wider
    return of_pictures(model := nn.Sequential(*layers, *pooled(32)), sgd(model, 0.05))


@healthy("separable convolutions RMSprop")
def separable() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = [nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU6()]
    for _ in range(5):
        layers += [nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)]
        layers += [nn.ReLU6(), nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6()]
    model = nn.Sequential(*layers, *pooled(24))
    return of_pictures(model, torch.optim.RMSprop(model.parameters(), lr=1e-3))


@healthy("branches of four sizes Adam")
def inception() -> tuple[nn.Module, Step]:
    class Branches(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.some = nn.ModuleList(
                nn.Sequential(nn.Conv2d(inputs, 8, size, padding=size // 2), nn.ReLU())
                for size in (1, 3, 5)
            )
            self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(inputs, 8, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([*(branch(x) for branch in self.some), self.pool(x)], 1)

    model = nn.Sequential(Branches(1), Branches(32), Branches(32), *pooled(32))
    return of_pictures(model, adam(model, 3e-3))


@healthy("ConvNeXt blocks with layer scale AdamW")
def next_blocks() -> tuple[nn.Module, Step]:
    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv2d(32, 32, 5, padding=2, groups=32)
            self.norm = nn.LayerNorm(32)
            self.up, self.down = nn.Linear(32, 96), nn.Linear(96, 32)
            self.scale = nn.Parameter(torch.full((32,), 1e-2))

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.deep(x).permute(0, 2, 3, 1))
            return x + (self.scale * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)

    model = nn.Sequential(nn.Conv2d(1, 32, 2, 2), *(Next() for _ in range(6)), *pooled(32))
    return of_pictures(model, adamw(model, 3e-3))


@healthy("patches that attend to each other Adam")
def patches() -> tuple[nn.Module, Step]:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.first = nn.Conv2d(1, 32, 3, 3), nn.Parameter(torch.zeros(1, 1, 32))
            self.place = nn.Parameter(0.02 * torch.randn(1, 17, 32))
            layer = nn.TransformerEncoderLayer(
                32, 4, 64, 0.1, "gelu", batch_first=True, norm_first=True
            )
            self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.cut(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.place
            return self.head(self.body(x)[:, 0])

    model = Patches()
    return of_pictures(model, adam(model, 2e-3))


@healthy("weights of one or minus one by a straight-through gradient Adam")
def binary() -> tuple[nn.Module, Step]:
    class Binary(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
            signs = self.weight + (scale * self.weight.sign() - self.weight).detach()
            return F.conv2d(x, signs, self.bias, padding=1)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Binary(16, 24, 3),
        nn.BatchNorm2d(24), nn.ReLU(), Binary(24, 24, 3), nn.BatchNorm2d(24), nn.ReLU(),
    )  # fmt: skip
    return of_pictures(model.extend(pooled(24)), adam(model, 3e-3))


@healthy("convolutional variational autoencoder AdamW")
def variational() -> tuple[nn.Module, Step]:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.SiLU(),
                nn.Flatten(), nn.Linear(24 * 9, 16),
            )  # fmt: skip
            self.decoder = nn.Sequential(
                nn.Linear(8, 24 * 9), nn.SiLU(), nn.Unflatten(1, (24, 3, 3)),
                nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            mean, spread = self.encoder(x).chunk(2, 1)
            made = self.decoder(mean + torch.randn_like(mean) * (spread / 2).exp())
            apart = (mean.square() + spread.exp() - spread - 1).sum(1).mean() / 2
            return (made - x).square().mean() + 1e-3 * apart

    model, batches = Coder(), images(32, 12, 1)
    return model, by_loss(adamw(model, 3e-3), lambda n: model(batches(n)[0]))


@healthy("noise taken away by a convolutional net Adam")
def denoising() -> tuple[nn.Module, Step]:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(nn.Linear(1, 24), nn.SiLU(), nn.Linear(24, 24))
            self.into, self.out = nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 1, 3, padding=1)
            self.body = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1) for _ in range(4))
            nn.init.zeros_(self.out.weight)

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            h = self.into(x)
            told = self.time(time[:, None])[:, :, None, None]
            for layer in self.body:
                h = h + layer(F.silu(h + told))
            return self.out(F.silu(h))

    model, batches = Denoiser(), images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        time = torch.rand(len(x), generator=seeded(number))
        noise = torch.randn(x.shape, generator=seeded(number + 10_000))
        share = time[:, None, None, None]
        return F.mse_loss(model((1 - share) * x + share * noise, time), noise - x)

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("variance, invariance and covariance of two views SGD")
def vicreg() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 24))
    batches = digits(128)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        noise = seeded(number)
        one, two = (model(x + 0.3 * torch.randn(x.shape, generator=noise)) for _ in range(2))
        spread = sum(F.relu(1 - z.std(0)).mean() for z in (one, two))
        off = sum((torch.cov(z.T) - torch.diag(z.var(0))).square().sum() / 24 for z in (one, two))
        return 5 * F.mse_loss(one, two) + 5 * spread + off

    return model, by_loss(sgd(model, 0.01), loss_of)


@healthy("student without labels beside a centred teacher AdamW")
def dino() -> tuple[nn.Module, Step]:
    def tower() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU())

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = tower().append(nn.Linear(96, 32))
            self.teacher = tower().append(nn.Linear(96, 32)).requires_grad_(False)
            self.teacher.load_state_dict(self.student.state_dict())
            self.register_buffer("centre", torch.zeros(32))

    model, batches = Both(), digits(128)
    optimizer = adamw(model.student)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        one, two = (x + 0.2 * torch.randn(x.shape, generator=seeded(n)) for n in (number, -number))
        with torch.no_grad():
            wanted = model.teacher(two)
            for mean, weight in zip(
                model.teacher.parameters(), model.student.parameters(), strict=True
            ):
                mean.lerp_(weight, 0.01)
            target = ((wanted - model.centre) / 0.04).softmax(1)
            model.centre.lerp_(wanted.mean(0), 0.1)
        return F.cross_entropy(model.student(one) / 0.1, target)

    return model, by_loss(optimizer, loss_of)


@healthy("picture and caption made alike SGD")
def alike() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict({"picture": conv_net(norm=True), "caption": nn.Embedding(10, 10)})
    batches = images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        seen = F.normalize(model["picture"](x), dim=1)
        told = F.normalize(model["caption"].weight, dim=1)
        return F.cross_entropy(10 * seen @ told.T, y)

    return model, by_loss(sgd(model, 0.1), loss_of)


@healthy("boxes and classes from one body AdamW")
def boxes() -> tuple[nn.Module, Step]:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv_net(nn.SiLU, norm=True)[:-3]
            self.kind, self.box = nn.Conv2d(32, 10, 1), nn.Conv2d(32, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x)
            return self.kind(h).mean((2, 3)), self.box(h).mean((2, 3)).sigmoid()

    model, batches = Detector(), images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        wanted = torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3)), x.mean((1, 2, 3)), y / 10], 1)
        kinds, corners = model(x)
        return F.cross_entropy(kinds, y) + F.smooth_l1_loss(corners, wanted.sigmoid())

    return model, by_loss(adamw(model, 3e-3), loss_of)


@healthy("pixels coloured by a net without pooling Adam")
def segmented() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    for inputs, far in [(1, 1), (16, 2), (16, 4), (16, 2), (16, 1)]:
        layers += [nn.Conv2d(inputs, 16, 3, padding=far, dilation=far), nn.ReLU()]
    model, batches = nn.Sequential(*layers, nn.Conv2d(16, 3, 1)), images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return F.cross_entropy(model(x), (x[:, 0] > 0).long() + (x[:, 0] > 1).long())

    return model, by_loss(adam(model, 3e-3), loss_of)
