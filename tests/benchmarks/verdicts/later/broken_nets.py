"""Small nets, and what they learn from, that several of these broken trainings share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, Batch, seeded, text
from ..trainings import Step

CUT = "detach|no_grad|argmax|.data|numpy|path|tensor"
"""Words of which one is in a remedy against a path that is cut."""

NOT_FINITE = "exploding|non-finite|nan"
FAST = "exploding|unstable|dead|saturated|update-speed"
SLOW = "not-updated|update-speed"

Built = tuple[nn.Module, Step]


def nesterov(model: nn.Module, lr: float, decay: float = 0.0) -> torch.optim.SGD:
    """Return SGD with Nesterov's momentum."""
    return torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=decay, nesterov=True)


class DenseNet(nn.Module):
    """Convolutions, each of which sees the channels of all before it."""

    def __init__(self, depth: int = 4, growth: int = 8, width: int = 12) -> None:
        super().__init__()
        self.stem, self.stages = nn.Conv2d(1, width, 3, 2, 1), nn.ModuleList()
        for _ in range(depth):
            self.stages.append(
                nn.Sequential(
                    nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1)
                )
            )
            width += growth
        self.norm, self.classifier = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = torch.cat([x, stage(x)], 1)
        return self.classifier(F.relu(self.norm(x)).mean((2, 3)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(x + self.bn3(self.conv3(h)))


class ResNet(nn.Module):
    """A residual net of bottlenecks."""

    def __init__(self, blocks: int = 4, width: int = 24) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*(Bottleneck(width, width // 2) for _ in range(blocks)))
        self.fc = nn.Linear(width, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.layer1(F.relu(self.bn1(self.conv1(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def video_net(width: int = 12) -> nn.Sequential:
    """Return a net of convolutions over time, height and width."""
    return nn.Sequential(
        nn.Conv3d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(width, width, 3, padding=1), nn.ReLU(), nn.Conv3d(width, width, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(width * 6 * 25, 4),
    )  # fmt: skip


def clips(number: int, batch: int = 24) -> Batch:
    """Return clips of a spot that moves, (batch, 1, 6, 10, 10), and which way of four."""
    source = seeded(number)
    way = torch.randint(4, (batch,), generator=source)
    speed = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])[way]
    start = 3.0 + 3.0 * torch.rand(batch, 2, generator=source)
    place = start[:, None] + 0.9 * (torch.arange(6.0) - 2.5)[:, None] * speed[:, None]
    axis = torch.arange(10.0)
    rows = (-((axis - place[..., :1]) ** 2)).exp()
    columns = (-((axis - place[..., 1:]) ** 2)).exp()
    x = rows[..., :, None] * columns[..., None, :]
    return 3 * (x + 0.1 * torch.randn(x.shape, generator=source))[:, None], way


def signals(number: int, batch: int = 32, length: int = 96) -> Batch:
    """Return sines, squares, saws and triangles with noise, (batch, 1, length), and which."""
    source = seeded(number)
    kind = torch.randint(4, (batch,), generator=source)
    speed = 0.02 + 0.03 * torch.rand(batch, 1, generator=source)
    phase = (speed * torch.arange(length) + torch.rand(batch, 1, generator=source)) % 1.0
    sine = (2 * math.pi * phase).sin()
    shapes = torch.stack([sine, sine.sign(), 2 * phase - 1, 4 * (phase - 0.5).abs() - 1])
    x = shapes[kind, torch.arange(batch)]
    return (x + 0.1 * torch.randn(batch, length, generator=source))[:, None], kind


class ViT(nn.Module):
    """A transformer of the patches of a picture of 16 times 16."""

    def __init__(self, depth: int = 2, width: int = 48) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, width, 4, 4)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.encoder(x)[:, 0]))


class Sorter(nn.Module):
    """An encoder and a decoder that write numbers in order."""

    def __init__(self, width: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(12, width), nn.Embedding(13, width)
        self.places = nn.Embedding(8, width)
        self.net = nn.Transformer(width, 4, 2, 2, 64, dropout, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 12)

    def encoded(self, x: Tensor) -> Tensor:
        return self.net.encoder(self.source(x))

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x.sort(1).values[:, :-1], (1, 0), value=12)
        told = self.target(before) + self.places.weight[: before.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(before.shape[1])
        return self.head(self.net.decoder(told, self.encoded(x), mask)).flatten(0, 1)


def numbers(number: int) -> Batch:
    """Return rows of six numbers, (32, 6), and the same in order, (192,)."""
    x = torch.randint(12, (32, 6), generator=seeded(number))
    return x, x.sort(1).values.flatten()


class Tagger(nn.Module):
    """A recurrent net in both directions that tags characters."""

    def __init__(self, width: int = 24, outputs: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.tag(self.lstm(self.embedding(x))[0])[..., 0]


def brackets(number: int) -> Batch:
    """Return pieces of source, (24, 32), and whether each character stands in brackets."""
    x, _ = text(24, 32)(number)
    depth = ((x == ord("(") - 31).long() - (x == ord(")") - 31).long()).cumsum(1)
    return x, (depth > 0).float()


class Attended(nn.Module):
    """Graph attention by hand: each node asks its neighbours, a few times over."""

    def __init__(self, rounds: int = 2, width: int = 24) -> None:
        super().__init__()
        self.inlet, self.outlet = nn.Linear(8, width), nn.Linear(width, 4)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.scores = nn.ModuleList(nn.Linear(width, 2) for _ in range(rounds))

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        x, near = graph
        x = F.elu(self.inlet(x))
        for value, score in zip(self.values, self.scores, strict=True):
            told, (here, there) = value(x), score(x).unbind(1)
            logits = F.leaky_relu(here[:, None] + there[None], 0.2)
            weight = logits.masked_fill(~near, -1e9).softmax(1)
            x = x + F.elu(weight @ told)
        return self.outlet(x)


def neighbours(number: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return values of 64 nodes, who is whose neighbour, and the nodes' classes."""
    source = seeded(number)
    kind = torch.randint(4, (64,), generator=source)
    x = torch.randn(4, 8, generator=seeded(5))[kind]
    x = x + 1.2 * torch.randn(64, 8, generator=source)
    likely = torch.where(kind[:, None] == kind[None], 0.4, 0.03)
    near = torch.rand(64, 64, generator=source) < likely
    return (x, near | torch.eye(64, dtype=torch.bool)), kind


class Towers(nn.Module):
    """Two towers, of users and of things, and how well they fit together."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.users = nn.Sequential(nn.Embedding(40, width), nn.Linear(width, width), nn.ReLU())
        self.users.append(nn.Linear(width, 16))
        self.items = nn.Sequential(nn.Embedding(60, width), nn.Linear(width, width), nn.ReLU())
        self.items.append(nn.Linear(width, 16))

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.users(pair[0]) @ self.items(pair[1]).T


def visits(number: int, batch: int = 64) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return users, and the things that they took; of all in the batch each takes its own."""
    source = seeded(number)
    user = torch.randint(40, (batch,), generator=source)
    item = (user % 20) * 3 + torch.randint(3, (batch,), generator=source)
    return (user, item), torch.arange(batch)


class Field(nn.Module):
    """Colour and density along rays, from the coordinates' sines and cosines."""

    def __init__(self, depth: int = 3, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for place in range(depth):
            parts += [nn.Linear(2 + 16 if place == 0 else 48, 48), act()]
        self.trunk = nn.Sequential(*parts)
        self.density, self.colour = nn.Linear(48, 1), nn.Linear(48, 3)

    def opacity(self, raw: Tensor) -> Tensor:
        return F.softplus(raw)

    def forward(self, points: Tensor) -> Tensor:
        angles = (points[..., None] * 2.0 ** torch.arange(4)).flatten(-2)
        h = self.trunk(torch.cat([points, angles.sin(), angles.cos()], -1))
        passing = (-0.2 * self.opacity(self.density(h)[..., 0])).exp()
        light = torch.cat([torch.ones_like(passing[:, :1]), passing[:, :-1].cumprod(1)], 1)
        return ((light * (1 - passing))[..., None] * self.colour(h).sigmoid()).sum(1)


def rays(number: int, batch: int = 48) -> Batch:
    """Return 16 points on each ray, (batch, 16, 2), and the colour that it meets, (batch, 3)."""
    source = seeded(number)
    angle = 2 * math.pi * torch.rand(batch, 1, generator=source)
    across = 0.8 * (2 * torch.rand(batch, 1, generator=source) - 1)
    along = torch.linspace(-1.0, 1.0, 16)
    points = torch.stack(
        [along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()], 2
    )
    inside = (points.norm(dim=2) < 0.6).float()
    hit = inside.amax(1)
    first = points[torch.arange(batch), inside.argmax(1)]
    colour = torch.stack([0.5 + 0.6 * first[:, 0], 0.5 + 0.6 * first[:, 1], hit], 1)
    return points, colour * hit[:, None]


class Coupling(nn.Module):
    """One half of the values, scaled and shifted as the other half says."""

    def __init__(self, turned: bool, width: int = 32) -> None:
        super().__init__()
        self.turned = turned
        self.net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width))
        self.net.extend([nn.Tanh(), nn.Linear(width, 2)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, other = (x.flip(1) if self.turned else x).chunk(2, 1)
        scale, shift = self.net(kept).chunk(2, 1)
        out = torch.cat([kept, other * scale.tanh().exp() + shift], 1)
        return (out.flip(1) if self.turned else out), scale.tanh()[:, 0]


class Flow(nn.Module):
    """A normalising flow of points in the plane; gives the logarithm of their density."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(bool(n % 2)) for n in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        for coupling in self.couplings:
            x, volume = coupling(x)
            total = total + volume
        return total - 0.5 * (x**2).sum(1) - math.log(2 * math.pi)


def moons(number: int, batch: int = 128) -> Tensor:
    """Return points of two half moons, (batch, 2)."""
    source = seeded(number)
    angle = math.pi * torch.rand(batch, generator=source)
    lower = (torch.rand(batch, generator=source) < 0.5).float()
    sign = 1 - 2 * lower
    x = torch.stack([sign * angle.cos() + lower - 0.5, sign * angle.sin() + 0.5 * lower - 0.25], 1)
    return 1.5 * x + 0.08 * torch.randn(batch, 2, generator=source)


class DeepSet(nn.Module):
    """Each member through one net, their mean through another."""

    def __init__(self, width: int = 40, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, width), act(), nn.Linear(width, width), act())
        self.outer = nn.Sequential(nn.Linear(width, width), act(), nn.Linear(width, 1))

    def pooled(self, told: Tensor) -> Tensor:
        return told.mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.pooled(self.inner(x)))[:, 0]


def sets(number: int) -> Batch:
    """Return sets of 12 points in space, (48, 12, 3), and how far they spread, (48,)."""
    source = seeded(number)
    size = 0.3 + 2 * torch.rand(48, 1, 1, generator=source)
    x = size * torch.randn(48, 12, 3, generator=source)
    return x, x.square().sum(2).mean(1).sqrt()


def first_sign(number: int, length: int) -> Batch:
    """Return signs, (32, length), of which the first is one of four, and which it is."""
    source = seeded(number)
    x = 4 + torch.randint(6, (32, length), generator=source)
    wanted = torch.randint(4, (32,), generator=source)
    x[:, 0] = wanted
    return x, wanted
