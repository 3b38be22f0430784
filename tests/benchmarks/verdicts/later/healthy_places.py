"""Nets whose answer is a picture: segments, heat maps, depths, flows, things found."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy


def shapes(number: int, batch: int = 8, size: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures of a square and a disc, the class of each pixel, and the two centres."""
    source = seeded(number)
    centre = 5 + (size - 10) * torch.rand(batch, 2, 2, generator=source)
    line = torch.arange(size).float()
    down = (line - centre[:, :, :1]).abs()[..., None]
    along = (line - centre[:, :, 1:]).abs()[:, :, None]
    square = torch.maximum(down[:, 0], along[:, 0]) < 3.5
    disc = down[:, 1].square() + along[:, 1].square() < 4.0**2
    kind = square.long()
    kind[disc] = 2
    x = (kind > 0).float() * 0.8 + 0.3 * torch.randn(kind.shape, generator=source)
    return x[:, None], kind, centre


def twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers)


@healthy("U-Net of three floors with transposed convolutions RMSprop")
def unet() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inc, self.down1, self.down2 = twice(1, 12), twice(12, 24), twice(24, 48)
            self.pool = nn.MaxPool2d(2)
            self.up1, self.up2 = (nn.ConvTranspose2d(2 * n, n, 2, 2) for n in (24, 12))
            self.conv1, self.conv2 = twice(48, 24), twice(24, 12)
            self.outc = nn.Conv2d(12, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            one = self.inc(x)
            two = self.down1(self.pool(one))
            h = self.up1(self.down2(self.pool(two)))
            h = self.up2(self.conv1(torch.cat([two, h], 1)))
            return self.outc(self.conv2(torch.cat([one, h], 1)))

    def loss(told: Tensor, y: Tensor) -> Tensor:
        share, hot = told.softmax(1), F.one_hot(y, 3).permute(0, 3, 1, 2).float()
        both = (share * hot).sum((0, 2, 3))
        dice = 2 * both / (share.sum((0, 2, 3)) + hot.sum((0, 2, 3)) + 1e-6)
        return F.cross_entropy(told, y) + 1 - dice.mean()

    model = Net()
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=1e-4, weight_decay=1e-8, momentum=0.9, foreach=True
    )
    return model, supervised(model, optimizer, lambda n: shapes(n)[:2], loss, clip=1.0)


@healthy("boxes from a pyramid of features, focal loss SGD")
def pyramid() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.stem, self.two = twice(1, 16), twice(16, 24)
            self.three, self.four = twice(24, 32), twice(32, 48)
            self.lateral = nn.ModuleList(nn.Conv2d(n, width, 1) for n in (24, 32, 48))
            self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
            self.tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
            self.tower.extend([nn.Conv2d(width, width, 3, padding=1), nn.ReLU()])
            self.kind, self.box = (nn.Conv2d(width, n, 3, padding=1) for n in (2, 4))
            for module in [*self.tower, self.kind, self.box]:
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, 0, 0.01)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            nn.init.constant_(self.kind.bias, -4.6)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
            h, floors = self.stem(x), []
            for stage in (self.two, self.three, self.four):
                h = stage(F.max_pool2d(h, 2))
                floors.append(h)
            top, out = None, []
            for place in (2, 1, 0):
                side = self.lateral[place](floors[place])
                top = side if top is None else side + F.interpolate(top, scale_factor=2.0)
                seen = self.tower(self.smooth[place](top))
                out.append((self.kind(seen), self.box(seen)))
            return out

    model = Net()

    def loss_of(number: int) -> Tensor:
        x, _, centre = shapes(number)
        total, many = torch.zeros(()), 2 * len(x)
        for told, box in model(x):
            size, pace = told.shape[-1], 24 / told.shape[-1]
            at = (torch.arange(size) + 0.5) * pace
            grid = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1)
            away = centre[:, :, None, None] - grid  # (batch, kinds, size, size, 2)
            hit = (away.abs().amax(-1) < pace / 2 + 0.5).float()
            cross = F.binary_cross_entropy_with_logits(told, hit, reduction="none")
            right = torch.exp(-cross)
            weight = 0.25 * hit + 0.75 * (1 - hit)
            total = total + (weight * (1 - right).square() * cross).sum() / many
            reach = torch.where(torch.arange(2) == 0, 3.5, 4.0)[None, :, None, None, None]
            wanted = torch.cat([reach + away, reach - away], -1) / 8
            off = F.smooth_l1_loss(
                box.permute(0, 2, 3, 1)[:, None].expand(-1, 2, -1, -1, -1), wanted, reduction="none"
            )
            total = total + (off * hit[..., None]).sum() / many
        return total

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    return model, by_loss(optimizer, loss_of, clip=10.0)


@healthy("heat maps of two points by stacked hourglasses Adam")
def hourglasses() -> tuple[nn.Module, Step]:
    class Residual(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs // 2, 1),
                nn.BatchNorm2d(outputs // 2), nn.ReLU(),
                nn.Conv2d(outputs // 2, outputs // 2, 3, padding=1),
                nn.BatchNorm2d(outputs // 2), nn.ReLU(), nn.Conv2d(outputs // 2, outputs, 1),
            )  # fmt: skip
            self.kept = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.kept(x) + self.body(x)

    class Hourglass(nn.Module):
        def __init__(self, floors: int, width: int) -> None:
            super().__init__()
            self.up, self.low = Residual(width, width), Residual(width, width)
            self.inner = Hourglass(floors - 1, width) if floors > 1 else Residual(width, width)
            self.last = Residual(width, width)

        def forward(self, x: Tensor) -> Tensor:
            low = self.last(self.inner(self.low(F.max_pool2d(x, 2))))
            return self.up(x) + F.interpolate(low, scale_factor=2.0)

    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), Residual(12, width))
            self.glass = nn.ModuleList(Hourglass(2, width) for _ in range(2))
            self.feature = nn.ModuleList(
                nn.Sequential(
                    Residual(width, width), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
                for _ in range(2)
            )  # fmt: skip
            self.heat = nn.ModuleList(nn.Conv2d(width, 2, 1) for _ in range(2))
            self.merge_f, self.merge_h = nn.Conv2d(width, width, 1), nn.Conv2d(2, width, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            h, heats = self.stem(x), []
            for place in range(2):
                seen = self.feature[place](self.glass[place](h))
                heats.append(self.heat[place](seen))
                if place == 0:
                    h = h + self.merge_f(seen) + self.merge_h(heats[-1])
            return heats

    model = Net()

    def loss_of(number: int) -> Tensor:
        x, _, centre = shapes(number)
        line = torch.arange(24).float()
        down = (line - centre[:, :, :1]).square()[..., None]
        along = (line - centre[:, :, 1:]).square()[:, :, None]
        heat = torch.exp(-(down + along) / 8)
        return sum(F.mse_loss(told, heat) for told in model(x))  # type: ignore[return-value]

    return model, by_loss(adam(model, 2.5e-3), loss_of)


@healthy("distances to the nearest edge by atrous convolutions side by side AdamW")
def distances() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.body = nn.Sequential(twice(1, 16), twice(16, width))
            self.far = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(width, 12, 3, padding=rate, dilation=rate, bias=False),
                    nn.GroupNorm(4, 12), nn.ReLU(),
                )
                for rate in (1, 2, 4, 8)
            )  # fmt: skip
            self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 12, 1), nn.ReLU())
            self.head = nn.Sequential(nn.Conv2d(60, 24, 1), nn.SiLU(), nn.Conv2d(24, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            seen = [part(h) for part in self.far]
            seen.append(self.whole(h).expand(-1, -1, *h.shape[-2:]))
            return self.head(torch.cat(seen, 1))[:, 0]

    def batches(number: int) -> Batch:
        x, _, centre = shapes(number)
        line = torch.arange(24).float()
        down = (line - centre[:, :, :1])[..., None]
        along = (line - centre[:, :, 1:])[:, :, None]
        return x, (down.square() + along.square()).sqrt().amin(1) / 10

    model = Net()
    return model, supervised(model, adamw(model, 1e-3), batches, nn.SmoothL1Loss(beta=0.1))


@healthy("movement between two pictures guessed coarsely, then finer Adam")
def movement() -> tuple[nn.Module, Step]:
    def leaky(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1, True))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = leaky(2, 16), leaky(16, 32, 2), leaky(32, 48, 2)
            self.coarse = nn.Conv2d(48, 2, 3, padding=1)
            self.up = nn.ConvTranspose2d(48, 32, 4, 2, 1)
            self.fine = nn.Sequential(leaky(66, 32), nn.Conv2d(32, 2, 3, padding=1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            wide = self.two(self.one(x))
            low = self.three(wide)
            coarse = self.coarse(low)
            larger = F.interpolate(coarse, scale_factor=2.0, mode="bilinear")
            h = torch.cat([wide, F.leaky_relu(self.up(low), 0.1), larger], 1)
            return coarse, self.fine(h)

    model = Net()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        noise = torch.randn(16, 1, 28, 28, generator=source)
        wide = 3 * F.avg_pool2d(noise, 5, 1)
        shift = torch.randint(-2, 3, (16, 2), generator=source)
        pairs = [
            torch.stack([scene[0, 2:22, 2:22], scene[0, 2 + d : 22 + d, 2 + a : 22 + a]])
            for scene, (d, a) in zip(wide, shift.tolist(), strict=True)
        ]
        wanted = shift[:, :, None, None].float()
        coarse, fine = model(torch.stack(pairs))
        return 0.3 * (coarse - wanted).abs().mean() + (fine - wanted).abs().mean()

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("colours put back by a small net without pooling, PReLU between SGD")
def colours() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = [nn.Conv2d(1, 24, 5, padding=2), nn.PReLU(24)]
    for _ in range(4):
        layers += [nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.PReLU(24)]
    model = nn.Sequential(*layers, nn.Conv2d(24, 3, 3, padding=1))

    def batches(number: int) -> Batch:
        x, kind, _ = shapes(number)
        paint = torch.tensor([[0.1, 0.1, 0.3], [0.9, 0.2, 0.1], [0.2, 0.8, 0.3]])
        return x, paint[kind].permute(0, 3, 1, 2)

    return model, supervised(model, sgd(model, 0.05), batches, F.mse_loss)
