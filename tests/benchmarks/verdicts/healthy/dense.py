"""Plain and residual nets of dense layers."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, function
from ..loops import adam, adamw, sgd, supervised
from ..trainings import Step, healthy

OPTIMIZERS = {"SGD": partial(sgd, momentum=0.0), "momentum": sgd, "Adam": adam, "AdamW": adamw}


def mlp(
    depth: int, activation: str, optimizer: str, lr: float, init: str = "", norm: str = ""
) -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(64, 64)
        if init:
            getattr(nn.init, init)(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, *([getattr(nn, norm)(64)] if norm else []), getattr(nn, activation)()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return model, supervised(model, OPTIMIZERS[optimizer](model, lr), digits())


for _row in [
    (1, "ReLU", "SGD", 0.2),
    (2, "ReLU", "Adam", 1e-3),
    (2, "Tanh", "SGD", 0.2),
    (3, "GELU", "AdamW", 1e-3),
    (2, "Sigmoid", "Adam", 5e-3),
    (4, "LeakyReLU", "momentum", 0.05),
    (4, "ELU", "SGD", 0.1),
    (8, "ReLU", "momentum", 0.02, "kaiming_normal_"),
    (8, "Tanh", "momentum", 0.02, "xavier_normal_"),
    (16, "ReLU", "Adam", 3e-4, "kaiming_normal_"),
    (20, "Tanh", "Adam", 3e-4, "orthogonal_"),
    (6, "ReLU", "momentum", 0.05, "", "BatchNorm1d"),
    (12, "ReLU", "Adam", 1e-3, "", "BatchNorm1d"),
    (12, "GELU", "AdamW", 1e-3, "", "LayerNorm"),
    (4, "Hardswish", "AdamW", 2e-3),
]:
    healthy(f"{_row[0]}-layer {' '.join(str(part) for part in (*_row[1:3], *_row[4:]))} MLP")(
        partial(mlp, *_row)
    )


@healthy("SELU net with alpha dropout momentum")
def selu() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    for _ in range(8):
        linear = nn.Linear(64, 64)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU(), nn.AlphaDropout(0.05)]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return model, supervised(model, sgd(model, 0.02), digits())


@healthy("MLP with dropout SGD")
def dropout() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(256, 10),
    )
    return model, supervised(model, sgd(model, 0.05), digits())


@healthy("MLP with a fifth of the labels wrong Adam")
def label_noise() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    batches = digits()

    def noisy(number: int) -> tuple[Tensor, Tensor]:
        x, y = batches(number)
        wrong = torch.randperm(len(y))[: len(y) // 5]
        return x, y.index_put((wrong,), torch.randint(10, (len(wrong),)))

    return model, supervised(model, adam(model), noisy)


@healthy("linear regression SGD")
def linear_regression() -> tuple[nn.Module, Step]:
    model = nn.Linear(8, 1)
    target = torch.arange(8.0)
    batches = function(target=lambda x: (x @ target)[:, None])
    return model, supervised(model, sgd(model, 0.05, 0.0), batches, F.mse_loss)


@healthy("logistic regression AdamW")
def logistic_regression() -> tuple[nn.Module, Step]:
    model = nn.Linear(64, 10)
    return model, supervised(model, adamw(model, 1e-2), digits())


@healthy("regression MLP Adam")
def regression() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
    )
    return model, supervised(model, adam(model, 3e-3), function(), F.mse_loss)


class Block(nn.Module):
    """A residual block of two layers."""

    def __init__(self, form: str, blocks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64) if form == "pre-norm" else nn.Identity()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.scale = 1.0
        if form in ("fixup", "zero"):
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)
        if form == "fixup":
            nn.init.normal_(self.first.weight, std=(2 / 64) ** 0.5 * blocks**-0.5)
        if form == "rezero":
            self.scale = nn.Parameter(torch.zeros(1))
        if form == "scaled":
            for layer in (self.first, self.second):
                nn.init.kaiming_normal_(layer.weight)
            self.scale = blocks**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.second(F.relu(self.first(self.norm(x))))


def residual(form: str, blocks: int, optimizer: str, lr: float) -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 64), *(Block(form, blocks) for _ in range(blocks)), nn.Linear(64, 10)
    )
    return model, supervised(model, OPTIMIZERS[optimizer](model, lr), digits())


for _name, *_arguments in [
    ("default residual net momentum", "default", 12, "momentum", 0.02),
    ("pre-norm residual net AdamW", "pre-norm", 24, "AdamW", 1e-3),
    ("Fixup net SGD", "fixup", 24, "SGD", 0.05),
    ("ReZero net Adam", "rezero", 30, "Adam", 1e-3),
    ("zero-initialised residual net momentum", "zero", 20, "momentum", 0.02),
    ("scaled residual net momentum", "scaled", 50, "momentum", 0.01),
]:
    healthy(_name)(partial(residual, *_arguments))
