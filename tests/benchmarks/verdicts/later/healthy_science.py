"""Equations, fields, flows of time, fixed points and graphs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, seeded
from ..loops import adam, adamw, by_loss, supervised
from ..trainings import Step, healthy


def tower(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place, width in enumerate(widths[1:]):
        layers += [nn.Linear(widths[place], width), act()]
    return nn.Sequential(*layers[:-1])


def slope(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


@healthy("Poisson's equation in a square, its edge with weight ten Adam")
def poisson() -> tuple[nn.Module, Step]:
    model = tower(2, 40, 40, 40, 1, act=nn.Tanh)
    for layer in model[::2]:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = torch.rand(256, 2, generator=source).requires_grad_()
        first = slope(model(x), x)
        second = slope(first[:, 0], x)[:, 0] + slope(first[:, 1], x)[:, 1]
        force = 2 * math.pi**2 * torch.sin(math.pi * x.detach()).prod(1)
        edge = torch.rand(128, 2, generator=source)
        edge[torch.arange(128), torch.arange(128) % 2] = (torch.arange(128) % 4 < 2).float()
        return (second + force).square().mean() / 100 + 10 * model(edge).square().mean()

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("growth of a population by its equation and few measurements AdamW")
def logistic() -> tuple[nn.Module, Step]:
    model = tower(1, 32, 32, 1, act=nn.SiLU)
    model.register_parameter("rate", nn.Parameter(torch.tensor(1.0)))

    def loss_of(number: int) -> Tensor:
        t = (5 * torch.rand(128, 1, generator=seeded(number))).requires_grad_()
        size = model(t - 2.5)
        law = (slope(size, t) - model.rate * size * (1 - size)).square().mean()
        seen = torch.linspace(0, 5, 9)[:, None]
        true = 1 / (1 + 9 * torch.exp(-1.5 * seen))
        return law + F.mse_loss(model(seen - 2.5), true)

    return model, by_loss(adamw(model, 5e-3), loss_of)


@healthy("radiance of waves of places with a skip and rays of colours Adam")
def radiance() -> tuple[nn.Module, Step]:
    class Field(nn.Module):
        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.first = tower(20, width, width)
            self.second = tower(width + 20, width, width)
            self.density, self.colour = nn.Linear(width, 1), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            waves = [f(2**k * math.pi * x) for k in range(5) for f in (torch.sin, torch.cos)]
            seen = torch.cat(waves, -1)
            h = F.relu(self.first(seen))
            h = F.relu(self.second(torch.cat([h, seen], -1)))
            return F.softplus(self.density(h)), self.colour(h).sigmoid()

    model = Field()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        start = 2 * torch.rand(96, 1, generator=source) - 1
        depth = torch.linspace(-1, 1, 16)
        at = torch.stack([start.expand(-1, 16), depth.expand(96, -1)], -1)
        density, colour = model(at)
        clear = torch.exp(-density[..., 0] * 0.125)
        passed = torch.cat([torch.ones(96, 1), clear.cumprod(1)[:, :-1]], 1)
        shown = ((passed * (1 - clear))[..., None] * colour).sum(1)
        hit = (start.abs() < 0.6).float()
        wanted = hit * torch.cat([0.5 + 0.5 * start, 0.5 - 0.5 * start, (3 * start).cos().abs()], 1)
        return F.mse_loss(shown, wanted)

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("sines of sines fitted to a picture and its slope Adam")
def sines() -> tuple[nn.Module, Step]:
    class Sine(nn.Module):
        def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
            super().__init__()
            self.linear = nn.Linear(inputs, outputs)
            bound = 1 / inputs if first else (6 / inputs) ** 0.5 / 30
            nn.init.uniform_(self.linear.weight, -bound, bound)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * self.linear(x))

    last = nn.Linear(64, 1)
    nn.init.uniform_(last.weight, -((6 / 64) ** 0.5) / 30, (6 / 64) ** 0.5 / 30)
    model = nn.Sequential(Sine(2, 64, True), Sine(64, 64), Sine(64, 64), last)
    picture = images(8, 24, 1)(0)[0][3, 0]
    line = torch.linspace(-1, 1, 24)
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 2)
    rise = torch.gradient(picture, spacing=2 / 23)

    def loss_of(number: int) -> Tensor:
        x = places.clone().requires_grad_()
        told = model(x)
        steep = torch.stack(rise, -1).view(-1, 2)
        return F.mse_loss(told[:, 0], picture.flatten()) + 1e-3 * F.mse_loss(slope(told, x), steep)

    return model, by_loss(adam(model, 1e-4), loss_of)


@healthy("digits carried by a field of convolutions through time RMSprop")
def carried() -> tuple[nn.Module, Step]:
    class Field(nn.Module):
        def __init__(self, width: int = 16) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, width)
            self.conv1 = nn.Conv2d(width + 1, width, 3, padding=1)
            self.conv2 = nn.Conv2d(width + 1, width, 3, padding=1)

        def forward(self, t: float, x: Tensor) -> Tensor:
            time = torch.full_like(x[:, :1], t)
            h = self.conv1(torch.cat([F.relu(self.norm1(x)), time], 1))
            return self.conv2(torch.cat([F.relu(self.norm2(h)), time], 1))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.field = nn.Conv2d(1, 16, 3, padding=1), Field()
            self.head = nn.Sequential(
                nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            self.head.append(nn.Linear(16, 10))

        def forward(self, x: Tensor) -> Tensor:
            h, pace = self.start(x), 0.25
            for place in range(4):  # the midpoint rule
                t = place * pace
                half = h + pace / 2 * self.field(t, h)
                h = h + pace * self.field(t + pace / 2, half)
            return self.head(h)

    model = Net()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return model, supervised(model, optimizer, images(32, 8, 1, most=1797))


@healthy("rest of a layer sought without gradients, then two steps with them Adam")
def rest() -> tuple[nn.Module, Step]:
    class Rest(nn.Module):
        def __init__(self, width: int = 64) -> None:
            super().__init__()
            self.inject = nn.Linear(64, width)
            self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

        def once(self, z: Tensor, x: Tensor) -> Tensor:
            return self.norm(0.5 * z + self.two(F.relu(self.one(z) + x)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.inject(x)
            z = torch.zeros_like(x)
            with torch.no_grad():
                for _ in range(12):
                    z = self.once(z, x)
            return self.head(self.once(self.once(z, x), x))

    model = Rest()
    return model, supervised(model, adam(model, 1e-3), digits(64))


@healthy("two springs moved by the slopes of an energy of Softplus AdamW")
def springs() -> tuple[nn.Module, Step]:
    model = tower(4, 48, 48, 1, act=nn.Softplus)
    model[-1] = nn.Linear(48, 1, bias=False)

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        place = torch.randn(128, 2, generator=source)
        speed = torch.randn(128, 2, generator=source)
        force = torch.stack([-2 * place[:, 0] + place[:, 1], place[:, 0] - 2 * place[:, 1]], 1)
        x = torch.cat([place, speed], 1).requires_grad_()
        grown = slope(model(x), x)
        # energy kept: its slopes move the state
        moved = torch.cat([grown[:, 2:], -grown[:, :2]], 1)
        return F.mse_loss(moved, torch.cat([speed, force], 1))

    return model, by_loss(adamw(model, 5e-3), loss_of)


def cities(number: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of 160 nodes of four kinds, their links (160, 160), and their kinds."""
    source = seeded(number)
    kind = torch.arange(160) % 4
    near = torch.where(kind[:, None] == kind, 0.12, 0.015)
    links = (torch.rand(160, 160, generator=source) < near).float().triu(1)
    links = links + links.T
    x = F.one_hot(kind, 4).float() @ torch.randn(4, 24, generator=source)
    return x + 1.5 * torch.randn(160, 24, generator=source), links, kind


@healthy("two graph convolutions, half of the features dropped, weights decayed Adam")
def graph_net() -> tuple[nn.Module, Step]:
    x, links, kind = cities()
    own = links + torch.eye(160)
    share = own / (own.sum(0).sqrt()[:, None] * own.sum(0).sqrt())
    taught = torch.arange(160) % 8 < 4

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gc1, self.gc2, self.drop = nn.Linear(24, 16), nn.Linear(16, 4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(share @ self.gc1(self.drop(x)))
            return share @ self.gc2(self.drop(h))

    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    return model, by_loss(optimizer, lambda _: F.cross_entropy(model(x)[taught], kind[taught]))


@healthy("eight heads that attend to linked nodes, ELU between Adam")
def graph_attention() -> tuple[nn.Module, Step]:
    x, links, kind = cities(1)
    cut = torch.where(links + torch.eye(160) > 0, 0.0, float("-inf"))

    class Attend(nn.Module):
        def __init__(self, inputs: int, outputs: int, heads: int) -> None:
            super().__init__()
            self.w = nn.Linear(inputs, heads * outputs, bias=False)
            self.one, self.two = (nn.Parameter(torch.empty(heads, outputs)) for _ in range(2))
            self.drop = nn.Dropout(0.4)
            for p in (self.one, self.two, self.w.weight):
                nn.init.xavier_uniform_(p, gain=1.414)

        def forward(self, x: Tensor) -> Tensor:
            h = self.w(self.drop(x)).view(len(x), *self.one.shape)
            rate = (h * self.one).sum(-1)[:, None] + (h * self.two).sum(-1)[None]
            share = (F.leaky_relu(rate, 0.2) + cut[..., None]).softmax(1)
            return torch.einsum("ijh,jhf->ihf", self.drop(share), h)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Attend(24, 8, 8), Attend(64, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.elu(self.first(x).flatten(1)))[:, 0]

    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=5e-4)
    return model, by_loss(optimizer, lambda _: F.cross_entropy(model(x), kind))


@healthy("charges of atoms by messages of their distances AdamW")
def charges() -> tuple[nn.Module, Step]:
    class Interact(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.filter = tower(16, width, width, act=nn.Softplus)
            self.before = nn.Linear(width, width, bias=False)
            self.after = tower(width, width, width, act=nn.Softplus)

        def forward(self, h: Tensor, waves: Tensor, other: Tensor) -> Tensor:
            told = (self.filter(waves) * self.before(h)[:, None] * other).sum(2)
            return h + self.after(told)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kind = nn.Embedding(3, 32)
            self.layers = nn.ModuleList(Interact() for _ in range(3))
            self.head = tower(32, 16, 1, act=nn.Softplus)

        def forward(self, kind: Tensor, place: Tensor) -> Tensor:
            far = (place[:, :, None] - place[:, None]).square().sum(-1).add(1e-9).sqrt()
            waves = torch.exp(-4 * (far[..., None] - torch.linspace(0, 4, 16)).square())
            other = (1 - torch.eye(place.shape[1]))[None, :, :, None]
            h = self.kind(kind)
            for layer in self.layers:
                h = layer(h, waves, other)
            return self.head(h).sum(1)

    model = Net()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        kind = torch.randint(3, (32, 6), generator=source)
        place = 1.5 * torch.randn(32, 6, 3, generator=source)
        charge = kind.float() - 1
        far = torch.cdist(place, place) + 1
        energy = (charge[:, :, None] * charge[:, None] / far).triu(1).sum((1, 2))
        return F.mse_loss(model(kind, place)[:, 0], energy)

    return model, by_loss(adamw(model, 2e-3), loss_of, clip=10.0)
