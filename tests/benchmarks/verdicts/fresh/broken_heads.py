"""The output, the loss and the targets do not fit each other, or the sign is wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import broken
from .broken_nets import (
    Built,
    Finder,
    Hourglass,
    Mixer,
    Separable,
    Table,
    Turner,
    noisy,
    of_signs,
    scene,
    table,
)


@broken(
    "softmax of each sign that is written, before cross-entropy Adam",
    "softmax twice",
    "output",
    remedy="softmax|logits",
)
def twice() -> Built:
    class Twice(Turner):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(-1)

    model = Twice()
    return of_signs(model, adam(model, 5e-3))


@broken(
    "sigmoid of a table's net given to a loss that applies one SGD",
    "sigmoid twice",
    "output",
    remedy="sigmoid|logits|bceloss",
)
def sigmoid() -> Built:
    class Likely(Table):
        def forward(self, row: tuple[Tensor, Tensor]) -> Tensor:
            return super().forward(row).sigmoid()

    model = Likely()
    return model, supervised(
        model,
        sgd(model),
        table,
        lambda p, y: F.binary_cross_entropy(p.sigmoid(), y),  # type: ignore
    )


@broken(
    "logits given to nll_loss AdamW",
    "nll_loss of logits",
    "output|unstable|exploding",
    remedy="log_softmax|logarithm|cross_entropy",
    seen=8,
)
def likelihood() -> Built:
    model = Mixer()
    return model, supervised(model, adamw(model, 3e-3), digits(), F.nll_loss)


@broken(
    "sigmoid of the box for places in pixels Adam",
    "output cannot reach its targets",
    "output|saturated",
    layer="place|place.1|place.0",
    remedy="target|range|linear|activation|normalis",
    seen=30,
)
def pixels() -> Built:
    model = Finder()
    model.place = nn.Sequential(model.place, nn.Sigmoid())  # type: ignore[assignment]

    def loss_of(number: int) -> Tensor:
        x, kind, place = scene(number)
        logits, where = model(x)
        return F.cross_entropy(logits, kind) + F.mse_loss(where, 4 + 120 * place)

    return model, by_loss(adam(model, 5e-3), loss_of)


@broken(
    "values of a critic broadcast against returns Adam",
    "shapes broadcast in the loss",
    "output",
    remedy="shape|squeeze|broadcast",
    seen=30,
)
def broadcast() -> Built:
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    model.append(nn.Linear(32, 1))

    def loss_of(number: int) -> Tensor:
        seen = torch.randn(64, 6, generator=seeded(number))
        returns = 2 * seen[:, 0] - seen[:, 1].abs()
        return F.smooth_l1_loss(model(seen), returns)

    return model, by_loss(adam(model, 5e-3), loss_of)


@broken(
    "optimizer that maximises, as for a reward SGD",
    "gradient of the wrong sign",
    "unstable|exploding",
    remedy="sign|maximi|loss|lower|learning rate",
    seen=30,
)
def maximised() -> Built:
    model = Separable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, maximize=True)
    return model, supervised(model, optimizer, images(32, 12, 1))


@broken(
    "softplus output that starts at -90 SGD",
    "activation flat at its start",
    "saturated|dead|vanishing|disconnected",
    layer="4|5",
    remedy="bias|normalis|linear|range|leaky|smaller|activation",
)
def flat() -> Built:
    model = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 16), nn.SiLU())
    model.extend([nn.Linear(16, 1), nn.Softplus()])
    nn.init.constant_(model[4].bias, -90.0)  # type: ignore[arg-type]
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        return F.mse_loss(model(x)[:, 0], y.float())

    return model, by_loss(sgd(model, 0.01), loss_of)


@broken(
    "loss summed over pixels and pictures, with the rate of a mean SGD",
    "sum where a mean was meant",
    "unstable|exploding|update-speed|dead",
    remedy="learning rate|mean|clip|loss",
    seen=8,
    information=True,
)
def summed() -> Built:
    model = Hourglass()
    return model, supervised(
        model, sgd(model), noisy, lambda out, y: F.mse_loss(out, y, reduction="sum")
    )


@broken(
    "loss divided by pixels, pictures and steps alike SGD",
    "loss scaled to nothing",
    "update-speed|not-updated",
    remedy="learning rate|'lr'|scale|loss",
    seen=30,
    information=True,
)
def divided() -> Built:
    model = Hourglass()
    return model, supervised(
        model, sgd(model), noisy, lambda out, y: F.mse_loss(out, y) / 144**2 / 1000
    )
