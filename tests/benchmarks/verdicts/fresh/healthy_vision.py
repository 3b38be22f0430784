"""Pictures: convolutions of other makes, compared views, boxes, weights of few bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from ..data import images
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy
from .healthy_nets import conv, dense


def head(width: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)


@healthy("dense blocks and transitions SGD")
def dense_blocks() -> tuple[nn.Module, Step]:
    class Grow(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)

    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1)]
    width = 16
    for _ in range(3):
        for _ in range(4):
            layers.append(Grow(width))
            width += 8
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1)]
        layers.append(nn.AvgPool2d(2))
        width //= 2
    model = nn.Sequential(*layers, *head(width))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    return model, supervised(model, optimizer, images(32, 16, 1))


@healthy("network in network with maxout Adam")
def maxout() -> tuple[nn.Module, Step]:
    class Maxout(nn.Module):
        def __init__(self, inputs: int, outputs: int, size: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, 2 * outputs, size, padding=size // 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).unflatten(1, (-1, 2)).amax(2)

    model = nn.Sequential(
        Maxout(1, 16, 3), Maxout(16, 16, 1), nn.MaxPool2d(2), Maxout(16, 32, 3), Maxout(32, 32, 1),
        nn.Dropout(0.3), nn.Conv2d(32, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return model, supervised(model, adam(model, 2e-3), images(32, 12, 1))


@healthy("capsules routed by agreement Adam")
def capsules() -> tuple[nn.Module, Step]:
    def squash(x: Tensor) -> Tensor:
        size = x.square().sum(-1, keepdim=True)
        return size / (1 + size) * x / (size + 1e-8).sqrt()

    class Capsules(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3, 2)
            self.turn = nn.Parameter(0.1 * torch.randn(10, 64, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(F.relu(self.conv(x))).flatten(1).unflatten(1, (-1, 8))
            guess = torch.einsum("kioj,bij->bkio", self.turn, squash(x))
            told = torch.zeros(guess.shape[:3])
            for _ in range(2):
                share = told.softmax(1)[..., None]
                told = told + (guess * squash((share * guess).sum(2))[:, :, None]).sum(-1).detach()
            return squash((told.softmax(1)[..., None] * guess).sum(2)).norm(dim=-1)

    def margin(out: Tensor, y: Tensor) -> Tensor:
        right = F.one_hot(y, 10)
        loss = right * F.relu(0.9 - out) ** 2 + 0.5 * (1 - right) * F.relu(out - 0.1) ** 2
        return loss.sum(1).mean()

    model = Capsules()
    return model, supervised(model, adam(model, 3e-3), images(32, 12, 1), margin)


@healthy("spatial transformer before a convolutional net SGD")
def spatial() -> tuple[nn.Module, Step]:
    class Spatial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look = nn.Sequential(
                nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(32),
                nn.ReLU(), nn.Linear(32, 6),
            )  # fmt: skip
            self.look(torch.zeros(2, 1, 16, 16))
            nn.init.zeros_(self.look[-1].weight)
            self.look[-1].bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])
            self.body = nn.Sequential(conv(1, 16), nn.MaxPool2d(2), conv(16, 32), *head(32))

        def forward(self, x: Tensor) -> Tensor:
            grid = F.affine_grid(self.look(x).view(-1, 2, 3), list(x.shape), align_corners=False)
            return self.body(F.grid_sample(x, grid, align_corners=False))

    model = Spatial()
    return model, supervised(model, sgd(model, 0.02), images(32, 16, 1))


@healthy("weights and activations of eight bits by fake quantisation SGD")
def quantised() -> tuple[nn.Module, Step]:
    def rounded(x: Tensor, bits: int = 8) -> Tensor:
        step = (x.detach().abs().max() / (2 ** (bits - 1) - 1)).clamp_min(1e-8)
        return x + ((x / step).round() * step - x).detach()

    class Quantised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(rounded(x), rounded(self.weight), self.bias, self.stride, 1)

    layers: list[nn.Module] = []
    for inputs, outputs, stride in [(1, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1)]:
        layers += [Quantised(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU6()]
    model = nn.Sequential(*layers, *head(32))
    return model, supervised(model, sgd(model, 0.02), images(32, 12, 1))


@healthy("nine tenths of the weights pruned Adam")
def pruned() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(48 * 16, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    for layer in (model[2], model[5]):
        prune.l1_unstructured(layer, "weight", 0.9)
    return model, supervised(model, adam(model, 2e-3), images(32, 12, 1))


@healthy("weight-normalised convolutions and a depth of blocks AdamW")
def weight_normalised() -> tuple[nn.Module, Step]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (
                parametrizations.weight_norm(nn.Conv2d(24, 24, 3, padding=1)) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.2 * self.second(F.relu(self.first(x)))

    start = parametrizations.weight_norm(nn.Conv2d(1, 24, 3, padding=1))
    model = nn.Sequential(start, *(Residual() for _ in range(8)), nn.ReLU(), *head(24))
    return model, supervised(model, adamw(model, 2e-3), images(32, 12, 1))


@healthy("offsets of deformable convolutions Adam", needs=["torchvision"])
def deformable() -> tuple[nn.Module, Step]:
    from torchvision.ops import DeformConv2d

    class Deformable(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.offset = nn.Conv2d(inputs, 18, 3, padding=1)
            self.conv, self.norm = (
                DeformConv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
            )
            nn.init.zeros_(self.offset.weight)
            nn.init.zeros_(self.offset.bias)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x, self.offset(x))))

    model = nn.Sequential(conv(1, 16), Deformable(16, 24), nn.MaxPool2d(2), Deformable(24, 24))
    model += nn.Sequential(*head(24))
    return model, supervised(model, adam(model, 2e-3), images(16, 12, 1))


@healthy("pictures four times as large by shuffled pixels Adam")
def larger() -> tuple[nn.Module, Step]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1)
            )

        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * self.body(x)

    model = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), *(Residual() for _ in range(6)))
    for _ in range(2):
        model += nn.Sequential(nn.Conv2d(24, 96, 3, padding=1), nn.PixelShuffle(2))
    model.append(nn.Conv2d(24, 1, 3, padding=1))
    batches = images(8, 32, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return F.l1_loss(model(F.avg_pool2d(x, 4)), x)

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("attention gates in a U-Net, Dice and cross-entropy AdamW")
def gated_unet() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([conv(1, 16), conv(16, 24), conv(24, 32)])
            self.up = nn.ModuleList([conv(32 + 24, 24), conv(24 + 16, 16)])
            self.gates = nn.ModuleList([nn.Conv2d(32 + 24, 1, 1), nn.Conv2d(24 + 16, 1, 1)])
            self.out = nn.Conv2d(16, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            kept = []
            for place, layer in enumerate(self.down):
                x = layer(F.max_pool2d(x, 2) if place else x)
                kept.append(x)
            for layer, gate, side in zip(self.up, self.gates, kept[-2::-1], strict=True):
                x = F.interpolate(x, scale_factor=2)
                side = side * gate(torch.cat([x, side], 1)).sigmoid()
                x = layer(torch.cat([x, side], 1))
            return self.out(x)

    model, batches = Net(), images(16, 16, 1)

    def loss_of(number: int) -> Tensor:
        clean, _ = batches(number)
        wanted = (clean > 0.3).float()
        out = model(clean + 0.5 * torch.randn_like(clean))
        p = out.sigmoid()
        dice = 1 - (2 * (p * wanted).sum() + 1) / (p.sum() + wanted.sum() + 1)
        return dice + F.binary_cross_entropy_with_logits(out, wanted)

    return model, by_loss(adamw(model, 2e-3), loss_of)


def scenes(number: int, batch: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Return digits placed on a dark field of 24 by 24, their corners and classes."""
    x, y = images(batch, 12, 1)(number)
    field = torch.full((batch, 1, 24, 24), float(x.min()))
    corner = torch.randint(12, (batch, 2), generator=torch.Generator().manual_seed(number))
    for own, picture, (top, left) in zip(field, x, corner.tolist(), strict=True):
        own[:, top : top + 12, left : left + 12] = picture
    return field, corner, y


@healthy("centres of things as peaks of a map Adam")
def centres() -> tuple[nn.Module, Step]:
    body = nn.Sequential(conv(1, 16), conv(16, 24, 2), conv(24, 32, 2), conv(32, 32))
    model = nn.ModuleDict({"body": body, "map": nn.Conv2d(32, 10, 1), "size": nn.Conv2d(32, 2, 1)})
    nn.init.constant_(model["map"].bias, -2.19)

    def loss_of(number: int) -> Tensor:
        x, corner, y = scenes(number)
        told = model["body"](x)
        middle = (corner + 6).float()
        places = torch.stack(torch.meshgrid(*(2 * [4 * torch.arange(6.0) + 2]), indexing="ij"), -1)
        far = (places - middle[:, None, None]).square().sum(-1)
        wanted = torch.exp(-far / 18)[:, None] * F.one_hot(y, 10)[:, :, None, None]
        peak = (far == far.amin((1, 2), keepdim=True))[:, None] * F.one_hot(y, 10)[:, :, None, None]
        p = model["map"](told).sigmoid().clamp(1e-4, 1 - 1e-4)
        hit = peak * (1 - p) ** 2 * p.log()
        miss = (1 - peak) * (1 - wanted) ** 4 * p**2 * (1 - p).log()
        shift = (model["size"](told) - (middle[..., None, None] / 24)).abs() * peak.amax(1, True)
        return (-(hit + miss).sum() + shift.sum()) / len(x)

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("queries matched to things by the least cost AdamW", needs=["scipy"])
def matched() -> tuple[nn.Module, Step]:
    from scipy.optimize import linear_sum_assignment

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(1, 16, 2), conv(16, 32, 2))
            self.place = nn.Parameter(0.1 * torch.randn(1, 36, 32))
            self.queries = nn.Parameter(torch.randn(1, 4, 32))
            self.transformer = nn.Transformer(32, 4, 1, 2, 64, 0.0, batch_first=True)
            self.kind, self.box = nn.Linear(32, 11), dense(32, 32, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            seen = self.body(x).flatten(2).transpose(1, 2) + self.place
            told = self.transformer(seen, self.queries.expand(len(x), -1, -1))
            return self.kind(told), self.box(told).sigmoid()

    model = Detector()

    def loss_of(number: int) -> Tensor:
        x, corner, y = scenes(number)
        kinds, boxes = model(x)
        wanted = (corner + 6).float()[:, None] / 24
        labels = torch.full(kinds.shape[:2], 10)
        far = torch.zeros(())
        for place in range(len(x)):
            cost = 5 * (boxes[place] - wanted[place]).abs().sum(1)
            cost = (cost - kinds[place].softmax(1)[:, y[place]]).detach()
            query = linear_sum_assignment(cost[:, None].numpy())[0][0]
            labels[place, query] = y[place]
            far = far + (boxes[place, query] - wanted[place, 0]).abs().sum()
        weight = torch.ones(11).index_fill(0, torch.tensor([10]), 0.1)
        return F.cross_entropy(kinds.flatten(0, 1), labels.flatten(), weight) + 5 * far / len(x)

    return model, by_loss(adamw(model, 1e-3), loss_of, clip=0.5)
