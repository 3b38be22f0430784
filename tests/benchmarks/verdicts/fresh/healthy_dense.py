"""Dense nets by optimizers, starts, depths and habits of training that the other sets lack."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..data import digits, function, images
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy
from .healthy_nets import dense, encoder


class Orthogonal(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton and Schulz for matrices, Adam's step for the rest."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model.parameters(), {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p]
                mean = kept.setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 0.1)
                if p.ndim == 2:
                    x = mean / (mean.norm() + 1e-7)
                    x = x.T if p.shape[0] > p.shape[1] else x
                    for _ in range(5):
                        own = x @ x.T
                        x = 3.4445 * x + (-4.775 * own + 2.0315 * own @ own) @ x
                    x = x.T if p.shape[0] > p.shape[1] else x
                    p.sub_(group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5 * x)
                else:
                    spread = kept.setdefault("spread", torch.zeros_like(p))
                    spread.lerp_(p.grad.square(), 0.05)
                    p.sub_(0.1 * group["lr"] * mean / (spread.sqrt() + 1e-8))


class Trusted(torch.optim.Optimizer):
    """Adam's direction, as long as a share of the layer's weights (LAMB)."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model.parameters(), {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p]
                at = kept["at"] = kept.get("at", 0) + 1
                mean = kept.setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                spread = kept.setdefault("spread", torch.zeros_like(p))
                spread.lerp_(p.grad.square(), 0.001)
                way = mean / (1 - 0.9**at) / ((spread / (1 - 0.999**at)).sqrt() + 1e-6) + 0.01 * p
                size = p.norm()
                share = size.clamp(max=10) / way.norm() if size > 0 else 1.0
                p.sub_(group["lr"] * share * way)


def optimised(
    optimizer: str, lr: float, arguments: dict[str, Any], *widths: int
) -> tuple[nn.Module, Step]:
    model, own = dense(*widths), {"Orthogonal": Orthogonal, "Trusted": Trusted}
    if optimizer in own:
        return model, supervised(model, own[optimizer](model, lr), digits())
    make = getattr(torch.optim, optimizer)
    return model, supervised(model, make(model.parameters(), lr=lr, **arguments), digits())


NESTEROV = {"momentum": 0.95, "nesterov": True, "weight_decay": 1e-3}

for _name, *_row in [
    ("orthogonal steps of momentum", "Orthogonal", 0.02, {}, 64, 128, 128, 128, 10),
    ("steps as long as a share of the weights", "Trusted", 0.02, {}, 64, 128, 128, 10),
    ("Adafactor on two layers", "Adafactor", 0.02, {}, 64, 128, 96, 10),
    ("Adadelta on five layers", "Adadelta", 1.0, {}, 64, 80, 80, 80, 80, 10),
    ("AMSGrad on a narrow waist", "Adam", 3e-3, {"amsgrad": True}, 64, 96, 8, 96, 10),
    ("averaged SGD on two layers", "ASGD", 0.2, {}, 64, 64, 10),
    ("Nesterov's momentum and decay", "SGD", 0.02, NESTEROV, 64, 128, 64, 10),
]:
    healthy(_name)(partial(optimised, *_row))


@healthy("forty layers of tanh that start orthogonal RMSprop")
def forty() -> tuple[nn.Module, Step]:
    model = dense(64, *[64] * 40, 10, act=nn.Tanh)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, 1.05)
            nn.init.zeros_(layer.bias)
    return model, supervised(model, torch.optim.RMSprop(model.parameters(), lr=1e-4), digits())


@healthy("starts scaled layer by layer to unit outputs SGD")
def scaled_starts() -> tuple[nn.Module, Step]:
    model = dense(64, *[96] * 10, 10, act=nn.ELU)
    x, _ = digits(256)(0)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                layer.weight.div_(layer(x).std())
            x = layer(x)
    return model, supervised(model, sgd(model, 0.01), digits())


@healthy("sums of losses of a batch, rate to fit SGD")
def sums() -> tuple[nn.Module, Step]:
    model = dense(64, 100, 50, 10)
    loss = partial(F.cross_entropy, reduction="sum")
    return model, supervised(model, sgd(model, 1e-3), digits(64), loss)


@healthy("single examples, one a step SGD")
def single() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def target(x: Tensor) -> Tensor:
        return x[:, :1] - x[:, 1:2] + 0.5 * x[:, 2:3].tanh()

    batches = function(1, target=target)
    x, y = function(256, target=target)(1000)
    train = supervised(model, sgd(model, 0.02, 0.0), batches, F.mse_loss)

    def step(number: int) -> dict[str, Tensor]:
        loss = train(number)
        with torch.no_grad():
            return {"loss": loss, "progress": F.mse_loss(model(x), y)}  # type: ignore[dict-item]

    return model, step


@healthy("all data in each step, fallen cosine AdamW")
def whole() -> tuple[nn.Module, Step]:
    model = dense(64, 256, 256, 10, act=nn.GELU)
    optimizer = adamw(model, 3e-3, 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    return model, supervised(model, optimizer, digits(1797), schedule=schedule)


@healthy("easy examples first SGD")
def easy_first() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 96), nn.LayerNorm(96), nn.ReLU(), nn.Linear(96, 96), nn.LayerNorm(96),
        nn.ReLU(), nn.Linear(96, 10),
    )  # fmt: skip
    batches = digits(128)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        kept = y < 3 + number // 12
        return F.cross_entropy(model(x[kept]), y[kept])

    return model, by_loss(sgd(model, 0.05), loss_of)


@healthy("gradients clipped for each example, with noise SGD")
def private() -> tuple[nn.Module, Step]:
    model, batches = dense(64, 64, 10, act=nn.Tanh), digits(128)
    optimizer = sgd(model, 0.3)
    grad = torch.func.vmap(
        torch.func.grad(
            lambda w, x, y: F.cross_entropy(torch.func.functional_call(model, w, (x,)), y)
        ),
        (None, 0, 0),
    )

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        each = grad({k: p.detach() for k, p in model.named_parameters()}, x, y)
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in each.values()]).norm(dim=0)
        share = (1 / norm).clamp(max=1)
        for name, p in model.named_parameters():
            total = torch.einsum("b,b...->...", share, each[name])
            p.grad = (total + 0.6 * torch.randn_like(p)) / len(x)
        optimizer.step()
        return loss.detach()

    return model, step


@healthy("two tasks whose quarrels are projected away Adam")
def projected() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kind, self.mirror = (
                dense(64, 96, 64),
                nn.Linear(64, 10),
                nn.Linear(64, 64),
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = F.relu(self.body(x))
            return self.kind(h), self.mirror(h)

    model, batches = Net(), digits()
    optimizer = adam(model, 2e-3)

    def step(number: int) -> Tensor:
        x, y = batches(number)
        kind, mirror = model(x)
        losses, sides = (F.cross_entropy(kind, y), F.mse_loss(mirror, x)), []
        for loss in losses:
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            sides.append([torch.zeros_like(p) if p.grad is None else p.grad.clone()
                          for p in model.parameters()])  # fmt: skip
        one, two = (torch.cat([g.flatten() for g in side]) for side in sides)
        both = (one @ two).clamp(max=0)
        total = one + two - both * two / two.square().sum() - both * one / one.square().sum()
        parts = total.split([p.numel() for p in model.parameters()])
        for p, part in zip(model.parameters(), parts, strict=True):
            p.grad = part.view_as(p)
        optimizer.step()
        return sum(losses).detach()  # type: ignore[union-attr]

    return model, step


@healthy("slow weights behind fast ones every five steps AdamW")
def looking_ahead() -> tuple[nn.Module, Step]:
    model = dense(64, 128, 128, 10, act=nn.Mish)
    slow = [p.detach().clone() for p in model.parameters()]
    train = supervised(model, adamw(model, 3e-3), digits())

    def step(number: int) -> object:
        loss = train(number)
        if number % 5 == 4:
            with torch.no_grad():
                for kept, p in zip(slow, model.parameters(), strict=True):
                    p.copy_(kept.lerp_(p, 0.5))
        return loss

    return model, step  # type: ignore[return-value]


@healthy("layers recomputed in the backward pass Adam")
def recomputed() -> tuple[nn.Module, Step]:
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
            self.parts = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(64), dense(64, 128, 64, act=nn.GELU)) for _ in range(6)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.start(x)
            for part in self.parts:
                x = x + checkpoint(part, x, use_reentrant=False)
            return self.head(x)

    model = Net()
    return model, supervised(model, adam(model), digits())


@healthy("layers of Lipschitz constant one by spectral norm, hinge Adam")
def lipschitz() -> tuple[nn.Module, Step]:
    model = dense(64, 128, 128, 128, 10, act=lambda: nn.LeakyReLU(0.1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            parametrizations.spectral_norm(layer)
    return model, supervised(model, adam(model, 2e-3), digits(), nn.MultiMarginLoss(margin=0.3))


@healthy("heads trained first, then layer after layer AdamW")
def from_the_head() -> tuple[nn.Module, Step]:
    model, x = encoder(10), images(256, 12, 1)(0)
    before = adam(model, 3e-3)
    for place in range(20):  # pretrained to tell odd from even
        part = slice(64 * (place % 4), 64 * (place % 4) + 64)
        before.zero_grad()
        F.cross_entropy(model(x[0][part]), x[1][part] % 2).backward()
        before.step()
    model[-1].reset_parameters()  # type: ignore[operator]
    model.zero_grad()
    model[:-1].requires_grad_(False)
    train = supervised(model, adamw(model, 3e-3), images(32, 12, 1))

    def step(number: int) -> object:
        if number in (20, 35, 50):
            model[2 - (20, 35, 50).index(number)].requires_grad_(True)
        return train(number)

    return model, step  # type: ignore[return-value]


@healthy("a student whose layers follow the teacher's Adam")
def hints() -> tuple[nn.Module, Step]:
    teacher, batches = nn.ModuleList([dense(64, 128, 128), nn.Linear(128, 10)]), digits()
    optimizer = adam(teacher, 3e-3)
    for number in range(60):  # the teacher is good before its student comes
        x, y = batches(number)
        optimizer.zero_grad()
        F.cross_entropy(teacher[1](F.relu(teacher[0](x))), y).backward()
        optimizer.step()
    teacher.zero_grad()
    student = nn.ModuleList([dense(64, 24, 24), nn.Linear(24, 10), nn.Linear(24, 128)])
    model = nn.ModuleDict({"teacher": teacher.requires_grad_(False), "student": student})

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        h = F.relu(student[0](x))
        with torch.no_grad():
            told = F.relu(teacher[0](x))
        return F.cross_entropy(student[1](h), y) + 0.5 * F.mse_loss(student[2](h), told)

    return model, by_loss(adam(student, 3e-3), loss_of)
