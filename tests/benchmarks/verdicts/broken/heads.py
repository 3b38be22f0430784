"""The output and the loss do not fit each other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, function, images
from ..loops import adam, sgd, supervised
from ..trainings import Step, broken

TWICE = "double-softmax|head|double-activation|output"
RANGE = "unreachable|head|bounded-output|output|output-range"


def body(last: nn.Module, *after: nn.Module, inputs: int = 64) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), last, *after
    )


@broken("softmax before cross-entropy SGD", "softmax twice", TWICE, remedy="softmax|logits")
def twice() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 10), nn.Softmax(-1))
    return model, supervised(model, sgd(model), digits())


@broken(
    "functional softmax before cross-entropy Adam",
    "softmax twice",
    TWICE,
    remedy="softmax|logits",
)
def twice_functional() -> tuple[nn.Module, Step]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 16, 3)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(self.head(F.relu(self.conv(x)).mean((2, 3))), dim=1)

    model = Model()
    return model, supervised(model, adam(model), images(32, 12, 1))


@broken("sigmoid before BCEWithLogits SGD", "sigmoid twice", TWICE, remedy="sigmoid|logits|bceloss")
def sigmoid_twice() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 10), nn.Sigmoid())
    return model, supervised(
        model,
        sgd(model),
        digits(),
        lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, 10).float()),
    )


@broken(
    "ReLU before cross-entropy SGD",
    "ReLU on the logits",
    TWICE + "|dead|" + RANGE,
    remedy="relu|logits|last|linear",
)
def relu_logits() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 10), nn.ReLU())
    return model, supervised(model, sgd(model), digits())


@broken(
    "sigmoid output whose units start saturated SGD",
    "saturated output",
    "saturated|head|output|unreachable",
    layer="5|4",
    remedy="smaller|scale|normalis|cross|logits",
)
def saturated() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 10), nn.Sigmoid())
    nn.init.normal_(model[4].weight, std=30.0)
    return model, supervised(
        model, sgd(model), digits(), lambda out, y: F.mse_loss(out, F.one_hot(y, 10).float())
    )


def far(number: int) -> tuple[Tensor, Tensor]:
    x, y = function(64)(number)
    return x, 50 + 10 * y


@broken(
    "tanh output for targets of 50 Adam",
    "output cannot reach its targets",
    RANGE + "|saturated",
    layer="5|4",
    remedy="target|range|linear|last activation|remove",
    seen=30,
)
def tanh_head() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 1), nn.Tanh(), inputs=8)
    return model, supervised(model, adam(model, 1e-2), far, F.mse_loss)


@broken(
    "sigmoid output for targets of -50 SGD",
    "output cannot reach its targets",
    RANGE + "|saturated",
    layer="5|4",
    remedy="target|range|linear|last activation|remove",
    seen=30,
)
def sigmoid_head() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 1), nn.Sigmoid(), inputs=8)
    return model, supervised(
        model, sgd(model, 0.01), lambda n: (far(n)[0], -far(n)[1]), F.mse_loss, clip=1.0
    )


@broken(
    "ReLU output for negative targets SGD",
    "output cannot reach its targets",
    RANGE + "|dead",
    layer="5|4",
    remedy="target|range|linear|last activation|remove|leaky",
    seen=30,
)
def relu_head() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 1), nn.ReLU(), inputs=8)
    return model, supervised(
        model, sgd(model, 0.01), lambda n: (far(n)[0], -far(n)[1]), F.mse_loss, clip=1.0
    )


@broken(
    "argmax of the classes in the loss SGD",
    "loss without a gradient",
    "disconnected|cannot tell|no-gradient",
    remedy="argmax|detach|no_grad|loss",
)
def no_gradient() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 10))
    optimizer, batches = sgd(model), digits()

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        loss = (model(x).argmax(-1) - y).float().abs().mean().requires_grad_()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step


@broken(
    "predictions broadcast against targets SGD",
    "shapes broadcast in the loss",
    "collapsed|head|broadcast|output",
    remedy="shape|squeeze|broadcast",
    seen=30,
    information=True,
)
def broadcast() -> tuple[nn.Module, Step]:
    model = body(nn.Linear(64, 1), inputs=8)
    return model, supervised(
        model, sgd(model, 0.02), function(64), lambda out, y: ((out - y[:, 0]) ** 2).mean()
    )
