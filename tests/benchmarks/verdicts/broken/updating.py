"""A gradient arrives, and the weights do not follow it, or too far."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, text
from ..loops import adam, adamw, next_character, sgd, supervised
from ..trainings import Step, broken

STILL = "not-updated|update-speed"


def net(depth: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


@broken(
    "first layers held by no optimizer SGD",
    "wrong optimizer group",
    "not-updated",
    layer="0|2",
    remedy="optimizer",
)
def no_optimizer() -> tuple[nn.Module, Step]:
    model = net()
    return model, supervised(model, sgd(model[4:]), digits())


@broken(
    "layers in a Python list Adam",
    "layers in a Python list",
    "not-updated",
    remedy="modulelist|optimizer|list",
)
def python_list() -> tuple[nn.Module, Step]:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
            self.middle = [nn.Linear(64, 64) for _ in range(4)]

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            for layer in self.middle:
                x = F.relu(layer(x))
            return self.last(x)

    model = Listed()
    return model, supervised(model, adam(model), digits())


@broken(
    "head replaced after the optimizer was made SGD",
    "layers made after the optimizer",
    "not-updated",
    layer="6",
    remedy="optimizer",
)
def late_head() -> tuple[nn.Module, Step]:
    model = net()
    optimizer = sgd(model)
    model[6] = nn.Linear(64, 10)
    return model, supervised(model, optimizer, digits())


@broken(
    "zero_grad between backward and step SGD",
    "zero_grad before the step",
    "not-updated",
    remedy="zero_grad",
)
def zeroed() -> tuple[nn.Module, Step]:
    model = net()
    optimizer, batches = sgd(model), digits()

    def step(number: int) -> Tensor:
        x, y = batches(number)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        return loss.detach()

    return model, step


@broken(
    "zero_grad to none between backward and step Adam",
    "zero_grad before the step",
    "not-updated",
    remedy="zero_grad",
)
def zeroed_to_none() -> tuple[nn.Module, Step]:
    model = net()
    optimizer, batches = adam(model), digits()

    def step(number: int) -> Tensor:
        x, y = batches(number)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        return loss.detach()

    return model, step


@broken(
    "no zero_grad at all SGD",
    "no zero_grad",
    "accumulated|no-zero-grad",
    remedy="zero_grad",
    seen=8,
)
def never_zeroed() -> tuple[nn.Module, Step]:
    model = net()
    optimizer, batches = sgd(model, 0.02), digits()

    def step(number: int) -> Tensor:
        x, y = batches(number)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step


@broken("learning rate 0 SGD", "learning rate 0", "not-updated", remedy="learning rate|'lr'")
def no_rate() -> tuple[nn.Module, Step]:
    model = net()
    return model, supervised(model, sgd(model, 0.0), digits())


@broken(
    "schedule that begins and stays at 0 AdamW",
    "learning rate 0",
    "not-updated",
    remedy="learning rate|'lr'|schedul",
)
def no_schedule() -> tuple[nn.Module, Step]:
    model = net()
    optimizer = adamw(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: n // 1000)
    return model, supervised(model, optimizer, digits(), schedule=schedule)


@broken(
    "learning rate a thousand times too large SGD",
    "learning rate too large",
    "exploding|unstable|dead|update-speed",
    remedy="learning rate",
    information=True,
    seen=8,
)
def fast() -> tuple[nn.Module, Step]:
    model = net()
    return model, supervised(model, sgd(model, 50.0), digits())


@broken(
    "learning rate 1 with Adam",
    "learning rate too large",
    "exploding|unstable|dead|saturated|update-speed",
    remedy="learning rate",
    information=True,
    seen=8,
)
def fast_adam() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    )
    return model, supervised(model, adam(model, 1.0), digits())


@broken(
    "learning rate 1e-8 Adam",
    "learning rate too small",
    STILL,
    remedy="learning rate|'lr'",
    seen=30,
    information=True,
)
def slow() -> tuple[nn.Module, Step]:
    model = net()
    return model, supervised(model, adam(model, 1e-8), digits())


@broken(
    "steps below half precision SGD",
    "steps below half precision",
    "not-updated",
    remedy="float32|precision|master",
)
def half() -> tuple[nn.Module, Step]:
    model = net().bfloat16()
    optimizer, batches = sgd(model, 1e-5, 0.0), digits()

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.bfloat16()), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step


@broken(
    "weight decay 10 AdamW",
    "weight decay too large",
    "collapsed|vanishing|update-speed|decay|shrinking|not-updated",
    remedy="decay",
    seen=30,
    information=True,
)
def decay() -> tuple[nn.Module, Step]:
    model = net()
    return model, supervised(model, adamw(model, 1e-2, 10.0), digits())


@broken(
    "clipped to a norm of 1e-6 SGD",
    "clip norm too small",
    "not-updated|update-speed|clipping",
    remedy="clip",
    seen=30,
    information=True,
)
def clipped() -> tuple[nn.Module, Step]:
    model = net()
    return model, supervised(model, sgd(model, 0.05), digits(), clip=1e-6)


@broken(
    "clipped before unscale_ SGD",
    "clipping of scaled gradients",
    "scaled-clipping",
    remedy="unscale_",
    seen=8,
)
def scaled() -> tuple[nn.Module, Step]:
    model = net()
    optimizer, batches = sgd(model), digits()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return model, step


@broken(
    "averaged weights copied over the trained ones Adam",
    "weights overwritten each step",
    "not-updated|overwritten|reset",
    remedy="average|overwrit|copied|written|reset",
    seen=8,
)
def overwritten() -> tuple[nn.Module, Step]:
    model = net()
    average = copy.deepcopy(model)
    train = supervised(model, adam(model), digits())

    def step(number: int) -> Tensor:
        loss = train(number)
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, 1e-4)
                weight.copy_(mean)
        return loss

    return model, step


@broken(
    "head started anew each step SGD",
    "weights overwritten each step",
    "not-updated|overwritten|reset",
    layer="6",
    remedy="overwrit|written|reset|init",
    seen=8,
)
def restarted() -> tuple[nn.Module, Step]:
    model = net()
    train = supervised(model, sgd(model), digits())

    def step(number: int) -> Tensor:
        nn.init.normal_(model[6].weight.data, std=0.1)
        return train(number)

    return model, step


@broken(
    "tied weights that came apart Adam",
    "tied weights broken",
    "not-updated",
    layer="head",
    remedy="optimizer|tie",
)
def untied() -> tuple[nn.Module, Step]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(96, 48)
            self.body = nn.GRU(48, 48, batch_first=True)
            self.head = nn.Linear(48, 96, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.embedding(x))[0])

    model = Model()
    optimizer = adam(model, 3e-3)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())  # as loading may do
    return model, supervised(model, optimizer, text(), next_character)
