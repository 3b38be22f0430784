"""Physics, fields, graphs, sets, functions with their own layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import function, images, seeded
from ..loops import adam, adamw, by_loss, supervised
from ..trainings import Step, healthy
from .healthy_nets import dense


@healthy("Fourier neural operator of heat Adam")
def operator() -> tuple[nn.Module, Step]:
    class Spectral(nn.Module):
        def __init__(self, width: int = 24, modes: int = 8) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(width, width, modes, 2) / width)
            self.near = nn.Conv1d(width, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            seen, weight = torch.fft.rfft(x), torch.view_as_complex(self.weight)
            kept = torch.einsum("bik,iok->bok", seen[..., : weight.shape[-1]], weight)
            return F.gelu(torch.fft.irfft(kept, x.shape[-1]) + self.near(x))

    model = nn.Sequential(
        nn.Conv1d(2, 24, 1), *(Spectral() for _ in range(4)), nn.Conv1d(24, 48, 1), nn.GELU(),
        nn.Conv1d(48, 1, 1),
    )  # fmt: skip
    places = torch.arange(64) / 64

    def loss_of(number: int) -> Tensor:
        share = torch.randn(16, 5, 2, generator=seeded(number))
        waves = 2 * math.pi * torch.arange(1, 6)[:, None] * places
        parts = share[..., :1] * waves.sin() + share[..., 1:] * waves.cos()
        later = (parts * torch.exp(-0.05 * torch.arange(1, 6) ** 2)[:, None]).sum(1)
        x = torch.stack([parts.sum(1), places.expand(16, -1)], 1)
        away = (model(x)[:, 0] - later).norm(dim=1) / later.norm(dim=1)
        return away.mean()

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("Burgers' equation with weights that learn where it is wrong Adam")
def burgers() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.care = (
                dense(2, 24, 24, 24, 24, 1, act=nn.Tanh),
                nn.Parameter(torch.ones(64)),
            )
            for layer in self.body:
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_normal_(layer.weight)

    model = Net()
    slow = torch.optim.Adam(model.body.parameters(), lr=3e-3)
    fast = torch.optim.Adam([model.care], lr=1e-2, maximize=True)
    start = torch.stack([2 * torch.rand(64) - 1, torch.zeros(64)], 1)
    inside = torch.stack([2 * torch.rand(128) - 1, torch.rand(128)], 1)

    def slope(y: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0]

    def step(number: int) -> Tensor:
        at = inside.clone().requires_grad_()
        u = model.body(at)
        first = slope(u, at)
        bend = slope(first[:, 0], at)[:, 0]
        rest = first[:, 1] + u[:, 0] * first[:, 0] - 0.1 / math.pi * bend
        wrong = (model.body(start)[:, 0] + (math.pi * start[:, 0]).sin()).square()
        loss = rest.square().mean() + (model.care * wrong).mean()
        slow.zero_grad()
        fast.zero_grad()
        loss.backward()
        slow.step()
        fast.step()
        return loss.detach()

    return model, step


@healthy("membrane that takes the least energy Adam")
def least_energy() -> tuple[nn.Module, Step]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(self.first(x).tanh() ** 3).tanh()

    model = nn.Sequential(nn.Linear(2, 16), *(Residual() for _ in range(3)), nn.Linear(16, 1))

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = torch.rand(256, 2, generator=source).requires_grad_()
        u = model(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        edge = torch.rand(128, 2, generator=source)
        edge[torch.arange(128), torch.arange(128) % 2] = (torch.arange(128) // 2 % 2).float()
        return (first.square().sum(1) / 2 - u[:, 0]).mean() + 50 * model(edge).square().mean()

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("spirals by a field of time that Runge and Kutta follow Adam")
def spirals() -> tuple[nn.Module, Step]:
    field = dense(2, 32, 32, 2, act=nn.Tanh)
    true = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])

    def follow(speed: object, x: Tensor, steps: int = 12) -> Tensor:
        path = []
        for _ in range(steps):
            a = speed(x)  # type: ignore[operator]
            b = speed(x + 0.05 * a)  # type: ignore[operator]
            c = speed(x + 0.05 * b)  # type: ignore[operator]
            x = x + 0.1 / 6 * (a + 2 * b + 2 * c + speed(x + 0.1 * c))  # type: ignore[operator]
            path.append(x)
        return torch.stack(path)

    def loss_of(number: int) -> Tensor:
        x = 2 * torch.randn(32, 2, generator=seeded(number)).clamp(-1.5, 1.5)
        return (follow(field, x) - follow(lambda x: x @ true.T, x)).abs().mean()

    return field, by_loss(adam(field, 5e-3), loss_of)


@healthy("light gathered along rays through a field Adam")
def rays() -> tuple[nn.Module, Step]:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.rest = dense(30, 64, 64, 64), dense(94, 64, 64)
            self.density, self.colour = nn.Linear(64, 1), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            waves = (x[..., None] * 2.0 ** torch.arange(5)).flatten(-2)
            seen = torch.cat([waves.sin(), waves.cos()], -1)
            h = F.relu(self.rest(torch.cat([seen, F.relu(self.body(seen))], -1)))
            return F.softplus(self.density(h) - 1)[..., 0], self.colour(h).sigmoid()

    model = Field()
    depth = torch.linspace(0.5, 3.5, 24)

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        way = F.normalize(
            torch.randn(64, 3, generator=source) * 0.2 + torch.tensor([0, 0, 1.0]), dim=1
        )
        closest = 2 * way[:, 2]
        gap = 4 - closest**2
        hit = gap < 0.25
        normal = way * (closest - (0.25 - gap).clamp_min(0).sqrt())[:, None] - torch.tensor(
            [0, 0, 2.0]
        )
        wanted = torch.where(hit[:, None], normal + 0.5, torch.ones(3))
        jitter = torch.rand(64, 24, generator=source) * 0.13
        density, colour = model(way[:, None] * (depth + jitter)[..., None] / 2)
        opaque = 1 - (-4 * density * 0.13).exp()
        left = torch.cumprod(1 - opaque + 1e-10, 1)
        share = opaque * torch.cat([torch.ones(64, 1), left[:, :-1]], 1)
        made = (share[..., None] * colour).sum(1) + 1 - share.sum(1, keepdim=True)
        return F.mse_loss(made, wanted)

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("distance to a shape from a start that is a sphere Adam")
def distance() -> tuple[nn.Module, Step]:
    model = dense(2, 64, 64, 64, 1, act=lambda: nn.Softplus(beta=100))
    for layer in model[:-1:2]:
        nn.init.normal_(layer.weight, std=(2 / layer.out_features) ** 0.5)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(model[-1].weight, (math.pi / 64) ** 0.5, 1e-4)
    nn.init.constant_(model[-1].bias, -0.7)

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        angle = 2 * math.pi * torch.rand(128, generator=source)
        size = 0.6 + 0.25 * (3 * angle).sin()
        edge = torch.stack([size * angle.cos(), size * angle.sin()], 1)
        away = (2 * torch.rand(128, 2, generator=source) - 1).requires_grad_()
        (slope,) = torch.autograd.grad(model(away).sum(), away, create_graph=True)
        return model(edge).abs().mean() + 0.1 * (slope.norm(dim=1) - 1).square().mean()

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("picture by a table of hashed grids Adam")
def hashed() -> tuple[nn.Module, Step]:
    class Grids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(256, 2) for _ in range(6))
            for table in self.tables:
                nn.init.uniform_(table.weight, -1e-4, 1e-4)
            self.head = dense(12, 32, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            seen = []
            for level, table in enumerate(self.tables):
                at = x * int(4 * 1.5**level)
                low = at.floor()
                near, told = at - low, torch.zeros(())
                for corner in torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]):
                    place = (low + corner).long()
                    row = (place[:, 0] ^ (place[:, 1] * 2654435761)) % 256
                    share = torch.where(corner.bool(), near, 1 - near).prod(1, keepdim=True)
                    told = told + share * table(row)
                seen.append(told)
            return self.head(torch.cat(seen, 1))

    model, picture = Grids(), images(4, 32, 1)(0)[0][:1]

    def loss_of(number: int) -> Tensor:
        x = torch.rand(512, 2, generator=seeded(number))
        wanted = F.grid_sample(picture, 2 * x[None, None] - 1, align_corners=True).flatten()
        return F.mse_loss(model(x)[:, 0], wanted)

    return model, by_loss(torch.optim.Adam(model.parameters(), 1e-2, eps=1e-15), loss_of)


@healthy("splines on the edges AdamW")
def splines() -> tuple[nn.Module, Step]:
    class Splines(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.base = nn.Linear(inputs, outputs, bias=False)
            self.share = nn.Parameter(0.1 / 8 * torch.randn(outputs, inputs, 8))
            self.register_buffer("knots", torch.linspace(-2.2, 2.2, 12))

        def forward(self, x: Tensor) -> Tensor:
            k, at = self.knots, x[..., None]
            bell = ((at >= k[:-1]) & (at < k[1:])).float()
            for order in range(1, 4):
                left = (at - k[: -order - 1]) / (k[order:-1] - k[: -order - 1])
                right = (k[order + 1 :] - at) / (k[order + 1 :] - k[1:-order])
                bell = left * bell[..., :-1] + right * bell[..., 1:]
            return self.base(F.silu(x)) + torch.einsum("bik,oik->bo", bell, self.share)

    model = nn.Sequential(Splines(8, 12), Splines(12, 1))
    return model, supervised(model, adamw(model, 1e-2), function(128), F.mse_loss)


@healthy("features of a net in a Gaussian process Adam")
def deep_kernel() -> tuple[nn.Module, Step]:
    class Process(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = dense(8, 32, 32, 2)
            self.length, self.noise = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(-1.0))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = self.body(x) / self.length.exp()
            far = (z[:, None] - z[None]).square().sum(-1)
            cover = (-far / 2).exp() + (F.softplus(self.noise) + 1e-3) * torch.eye(len(x))
            root = torch.linalg.cholesky(cover)
            rest = torch.linalg.solve_triangular(root, y, upper=False)
            return (rest.square().sum() / 2 + root.diag().log().sum()) / len(x)

    model = Process()
    x, y = function(200)(0)
    return model, by_loss(adam(model, 1e-2), lambda n: model(x, (y - y.mean()) / y.std()))
