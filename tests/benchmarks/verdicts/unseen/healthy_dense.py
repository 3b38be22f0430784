"""Dense, tabular and wide nets, by many optimizers and habits of training."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, function, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy
from .nets import Language, conv_net, of_characters, of_pictures


def tapering(activation: str, optimizer: str, lr: float) -> tuple[nn.Module, Step]:
    """Train a net whose layers become narrower."""
    layers: list[nn.Module] = []
    for inputs, outputs in [(64, 96), (96, 64), (64, 48), (48, 24)]:
        layers += [nn.Linear(inputs, outputs), getattr(nn, activation)()]
    model = nn.Sequential(*layers, nn.Linear(24, 10))
    return model, supervised(
        model, getattr(torch.optim, optimizer)(model.parameters(), lr=lr), digits()
    )


for _row in [
    ("Mish", "RMSprop", 1e-3),
    ("SiLU", "NAdam", 2e-3),
    ("CELU", "Adagrad", 1e-2),
    ("PReLU", "RAdam", 5e-3),
    ("Softplus", "Adamax", 1e-2),
    ("RReLU", "AdamW", 2e-3),
    ("Hardtanh", "Adam", 2e-3),
    ("LogSigmoid", "Adam", 2e-3),
    ("Tanhshrink", "Adam", 3e-3),
    ("ReLU6", "Rprop", 1e-3),
]:
    healthy(f"tapering {_row[0]} net {_row[1]}")(partial(tapering, *_row))


class Gated(nn.Module):
    """Half of the units open or close the other half."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.RMSNorm(width), nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(value * F.silu(gate))


@healthy("gated residual layers AdamW")
def gated() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 48), *(Gated() for _ in range(6)), nn.RMSNorm(48))
    model.append(nn.Linear(48, 10))
    return model, supervised(model, adamw(model, 2e-3), digits())


@healthy("tabular net of residual batch-normalised blocks SGD")
def tabular() -> tuple[nn.Module, Step]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.BatchNorm1d(40), nn.Linear(40, 80), nn.ReLU(), nn.Dropout(0.2),
                nn.Linear(80, 40), nn.Dropout(0.1),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    model = nn.Sequential(nn.Linear(8, 40), *(Residual() for _ in range(5)), nn.BatchNorm1d(40))
    model += nn.Sequential(nn.ReLU(), nn.Linear(40, 1))
    return model, supervised(model, sgd(model, 0.02), function(128), F.mse_loss)


@healthy("wide and deep recommender Adam")
def wide_deep() -> tuple[nn.Module, Step]:
    class Recommender(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.things = nn.EmbeddingBag(64, 16, mode="mean")
            self.wide = nn.Linear(64, 10)
            self.deep = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(x) + self.deep(self.things(x.topk(12, 1).indices))

    model = Recommender()
    return model, supervised(model, adam(model, 5e-3), digits())


@healthy("cross network of features AdamW")
def crosses() -> tuple[nn.Module, Step]:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
            self.head = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            first = x
            for layer in self.layers:
                x = first * layer(x) + x
            return self.head(x)

    model = Cross()
    return model, supervised(model, adamw(model, 1e-3), digits())


@healthy("half of the units dropped Adam")
def dropped() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(256, 10),
    )  # fmt: skip
    return model, supervised(model, adam(model), digits())


@healthy("inputs dropped by .2 and units by .6 SGD")
def dropped_inputs() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Dropout(0.2), nn.Linear(64, 400), nn.ReLU(), nn.Dropout(0.6), nn.Linear(400, 10)
    )
    return model, supervised(model, sgd(model, 0.1), digits())


@healthy("labels smoothed and mixed SGD")
def mixed() -> tuple[nn.Module, Step]:
    model, batches = conv_net(nn.SiLU, norm=True), digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        x = x.view(-1, 1, 8, 8)
        other = torch.randperm(len(x), generator=seeded(number))
        out = model(0.8 * x + 0.2 * x[other])
        return 0.8 * F.cross_entropy(out, y, label_smoothing=0.1) + 0.2 * F.cross_entropy(
            out, y[other], label_smoothing=0.1
        )

    return model, by_loss(sgd(model, 0.05), loss_of)


@healthy("sharpness-aware steps SGD")
def sharpness() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU())
    model.append(nn.Linear(48, 10))
    optimizer, batches = sgd(model, 0.05), digits()

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        weights = [p for p in model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        away = [0.05 * p.grad / (norm + 1e-12) for p in weights]
        with torch.no_grad():
            for p, shift in zip(weights, away, strict=True):
                p.add_(shift)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, shift in zip(weights, away, strict=True):
                p.sub_(shift)
        optimizer.step()
        return loss.detach()

    return model, step


@healthy("L-BFGS of a regression")
def lbfgs() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=4)
    x, y = function(256)(0)

    def step(number: int) -> Tensor:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            return loss

        return optimizer.step(closure).detach()

    return model, step


@healthy("sign of the momentum as step")
def lion() -> tuple[nn.Module, Step]:
    class Lion(torch.optim.Optimizer):
        def __init__(self, parameters: object, lr: float) -> None:
            super().__init__(parameters, {"lr": lr})  # type: ignore[arg-type]

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p.sub_(group["lr"] * mean.lerp(p.grad, 0.1).sign())
                    mean.lerp_(p.grad, 0.01)

    model = Language()
    return of_characters(model, Lion(model.parameters(), 4e-4))


@healthy("body thawed after twenty steps Adam")
def thawed() -> tuple[nn.Module, Step]:
    model = conv_net(norm=True)
    for layer in model[:6]:
        layer.requires_grad_(False)
    train = of_pictures(model, adam(model, 3e-3))[1]

    def step(number: int) -> object:
        if number == 20:
            model.requires_grad_(True)
        return train(number)

    return model, step  # type: ignore[return-value]


@healthy("learning rates that fall from layer to layer AdamW")
def layerwise() -> tuple[nn.Module, Step]:
    model = Language(3)
    parts = [model.tokens, model.places, *model.blocks, model.norm, model.head]
    groups = [
        {"params": part.parameters(), "lr": 3e-3 * 0.7**place}
        for place, part in enumerate(reversed(parts))
    ]
    return of_characters(model, torch.optim.AdamW(groups))


@healthy("warm-up and cosine of one cycle SGD")
def cycle() -> tuple[nn.Module, Step]:
    model = conv_net()
    optimizer = sgd(model, 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=101)
    batches = digits()
    return model, supervised(
        model,
        optimizer,
        lambda n: (batches(n)[0].view(-1, 1, 8, 8), batches(n)[1]),
        schedule=schedule,
    )


@healthy("average of the weights beside AdamW")
def averaged() -> tuple[nn.Module, Step]:
    model = conv_net(nn.GELU)
    average = copy.deepcopy(model)
    train = of_pictures(model, adamw(model, 3e-3))[1]

    def step(number: int) -> object:
        told = train(number)
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, 0.05)
        return told

    return model, step  # type: ignore[return-value]


@healthy("bfloat16 weights of a wide net SGD")
def bfloat16() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).bfloat16()
    batches = digits()
    return model, supervised(
        model, sgd(model, 0.05), lambda n: (batches(n)[0].bfloat16(), batches(n)[1])
    )


@healthy("float64 kernel machine of random features SGD")
def kernel() -> tuple[nn.Module, Step]:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.random, self.head = nn.Linear(64, 300), nn.Linear(300, 10)
            self.random.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cos(self.random(x)))

    model, batches = Features().double(), digits()
    return model, supervised(
        model, sgd(model.head, 0.02), lambda n: (batches(n)[0].double(), batches(n)[1])
    )


@healthy("three losses of three depths Adam")
def supervised_deeply() -> tuple[nn.Module, Step]:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
            self.heads = nn.ModuleList(nn.Linear(64, 10) for _ in range(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            found = []
            for place, layer in enumerate(self.layers):
                x = F.relu(layer(x))
                if place % 2:
                    found.append(self.heads[place // 2](x))
            return found

    model = Deep()
    return model, supervised(
        model, adam(model), digits(), lambda outs, y: sum(F.cross_entropy(o, y) for o in outs) / 3
    )


@healthy("ranking of documents by pairs SGD")
def ranking() -> tuple[nn.Module, Step]:
    model, batches = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1)), digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        score = model(x)[:, 0]
        better = (y[:, None] > y[None]).float()
        return (better * F.softplus(score[None] - score[:, None])).sum() / better.sum()

    return model, by_loss(sgd(model, 0.05), loss_of)
