"""No gradient arrives: cut on its way, or nothing asks for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, text
from ..loops import adam, by_loss, next_character, sgd, supervised
from ..trainings import Step, broken

CUT = "detach|no_grad|argmax|.data|numpy|path"


class TwoParts(nn.Module):
    """A body and a head, and something in between."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


def trained(model: nn.Module) -> tuple[nn.Module, Step]:
    return model, supervised(model, sgd(model, 0.05), digits())


@broken("detach in the middle SGD", "detach", "disconnected", layer="body.0", remedy=CUT)
def detach() -> tuple[nn.Module, Step]:
    class Detached(TwoParts):
        def between(self, x: Tensor) -> Tensor:
            return x.detach()

    return trained(Detached())


@broken("detach in the middle Adam", "detach", "disconnected", layer="body.0", remedy=CUT)
def detach_adam() -> tuple[nn.Module, Step]:
    class Detached(TwoParts):
        def between(self, x: Tensor) -> Tensor:
            return x.detach()

    model = Detached()
    return model, supervised(model, adam(model), digits())


@broken(".data in the middle SGD", ".data", "disconnected", layer="body.0", remedy=CUT)
def data() -> tuple[nn.Module, Step]:
    class Data(TwoParts):
        def between(self, x: Tensor) -> Tensor:
            return x.data

    return trained(Data())


@broken("body under no_grad SGD", "no_grad", "disconnected", layer="body.0", remedy=CUT)
def no_grad() -> tuple[nn.Module, Step]:
    class NoGrad(TwoParts):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body(x)
            return self.head(x)

    return trained(NoGrad())


@broken("values through numpy SGD", "numpy", "disconnected", layer="body.0", remedy=CUT)
def numpy() -> tuple[nn.Module, Step]:
    class Numpy(TwoParts):
        def between(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.detach().numpy() * 2)

    return trained(Numpy())


@broken("argmax in the middle Adam", "argmax", "disconnected", layer="body.0", remedy=CUT)
def argmax() -> tuple[nn.Module, Step]:
    class Argmax(TwoParts):
        def between(self, x: Tensor) -> Tensor:
            return F.one_hot(x.argmax(-1), 64).float()

    model = Argmax()
    return model, supervised(model, adam(model), digits())


@broken(
    "rounding in the middle SGD",
    "rounding",
    "disconnected",
    layer="body.0",
    remedy=CUT + "|round|straight",
)
def rounding() -> tuple[nn.Module, Step]:
    class Rounded(TwoParts):
        def between(self, x: Tensor) -> Tensor:
            return (x * 4).round() / 4

    return trained(Rounded())


@broken("features of a backbone detached SGD", "detach", "disconnected", layer="0.0", remedy=CUT)
def backbone() -> tuple[nn.Module, Step]:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.detach().mean((2, 3)))

    body = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
    )
    model = nn.Sequential(body, Head())
    return model, supervised(model, sgd(model, 0.05), images(32, 16, 1))


@broken(
    "first layers frozen by mistake SGD",
    "frozen layers",
    "disconnected|frozen|not-updated",
    layer="body.0",
    remedy="requires_grad|frozen|freez",
    information=True,
)
def frozen() -> tuple[nn.Module, Step]:
    model = TwoParts()
    model.body.requires_grad_(False)
    return trained(model)


@broken(
    "embedding that nothing uses Adam",
    "module the loss does not use",
    "disconnected|unused",
    layer="position",
    remedy="use|loss|remove",
    information=True,
)
def unused() -> tuple[nn.Module, Step]:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.position = nn.Embedding(96, 32), nn.Embedding(64, 32)
            self.body = nn.GRU(32, 64, batch_first=True)
            self.head = nn.Linear(64, 96)

        def forward(self, x: Tensor) -> Tensor:
            h = self.embedding(x)
            h + self.position(torch.arange(x.shape[1]))  # meant: h += ...
            return self.head(self.body(h)[0])

    model = Positions()
    return model, supervised(model, adam(model), text(), next_character)


@broken(
    "auxiliary head without a loss SGD",
    "module the loss does not use",
    "disconnected|unused",
    layer="second",
    remedy="use|loss|remove",
    information=True,
)
def auxiliary() -> tuple[nn.Module, Step]:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
            self.first, self.second = nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x)
            return self.first(h), self.second(h)

    model = TwoHeads()
    return model, supervised(model, sgd(model), digits(), lambda out, y: F.cross_entropy(out[0], y))


@broken(
    "target network's output in place of the online one Adam",
    "wrong detach",
    "disconnected",
    layer="online.0",
    remedy=CUT,
)
def wrong_network() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            key: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
            for key in ("online", "target")
        }
    )
    head = nn.Linear(10, 10)
    model["head"] = head
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        with torch.no_grad():
            value = model["online"](x)
        return F.cross_entropy(head(value), y)

    return model, by_loss(adam(model), loss_of)


@broken(
    "sign turned by a wrong detach SGD",
    "gradient of the wrong sign",
    "unstable|exploding|rising-loss",
    remedy="sign|detach|loss|lower",
    seen=30,
)
def wrong_sign() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        loss = F.cross_entropy(model(x), y)
        return loss.detach() * 2 - loss

    return model, by_loss(sgd(model, 0.02), loss_of)
