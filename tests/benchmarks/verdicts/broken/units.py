"""Units that are off, flat, all alike, or hidden by a normalisation or dropout."""

from __future__ import annotations

from torch import Tensor, nn

from ..data import digits, images
from ..loops import adam, adamw, sgd, supervised
from ..trainings import Step, broken


def net(activation: type[nn.Module] = nn.ReLU, depth: int = 4) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(64, 64), activation()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def trained(model: nn.Module, lr: float = 0.05) -> tuple[nn.Module, Step]:
    return model, supervised(model, sgd(model, lr), digits())


@broken(
    "a ReLU layer off whole SGD",
    "dead layer",
    "dead",
    layer="3|2",
    remedy="bias|leaky|learning rate",
)
def dead() -> tuple[nn.Module, Step]:
    model = net()
    nn.init.constant_(model[2].bias, -30.0)
    return trained(model)


@broken(
    "four fifths of a ReLU layer off SGD",
    "dead units",
    "dead",
    layer="3|2",
    remedy="bias|leaky|learning rate",
    seen=8,
)
def mostly_dead() -> tuple[nn.Module, Step]:
    model = net()
    model[2].bias.data[:51] = -30.0
    return trained(model)


@broken(
    "nine tenths of the channels of a conv net off Adam",
    "dead units",
    "dead",
    layer="3|2",
    remedy="bias|leaky|learning rate",
    seen=8,
)
def dead_channels() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 40, 3),
        nn.ReLU(),
        nn.Conv2d(40, 32, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    model[2].bias.data[:36] = -50.0
    return model, supervised(model, adam(model), images(32, 12, 1))


@broken(
    "ReLUs that die of one large step SGD",
    "dead after a large step",
    "dead|unstable|update-speed",
    remedy="learning rate|leaky|warm",
    seen=30,
    information=True,
)
def killed() -> tuple[nn.Module, Step]:
    model = net(depth=3)
    optimizer = sgd(model, 0.05, 0.0)
    train = supervised(model, optimizer, digits())

    def step(number: int) -> float | Tensor:
        optimizer.param_groups[0]["lr"] = 30.0 if number == 10 else 0.05
        return train(number)

    return model, step


@broken(
    "inputs in the thousands before tanh SGD",
    "inputs not normalised",
    "saturated|exploding",
    layer="1|0",
    remedy="normalis|input|scale",
)
def unscaled() -> tuple[nn.Module, Step]:
    model = net(nn.Tanh, 3)
    batches = digits()

    def large(number: int) -> tuple[Tensor, Tensor]:
        x, y = batches(number)
        return x * 1e4, y

    return model, supervised(model, sgd(model, 0.01), large)


@broken(
    "inputs in the thousands before ReLU SGD",
    "inputs not normalised",
    "saturated|exploding|update-speed|input-scale|dead|unstable",
    remedy="normalis|input|scale|learning rate",
    seen=8,
    information=True,
)
def unscaled_relu() -> tuple[nn.Module, Step]:
    model = net(depth=3)
    batches = digits()

    def large(number: int) -> tuple[Tensor, Tensor]:
        x, y = batches(number)
        return x * 1e4, y

    return model, supervised(model, sgd(model, 0.01), large)


@broken(
    "sigmoids in a loop of large weights SGD",
    "saturated activations",
    "saturated|vanishing",
    layer="1|3|5|0",
    remedy="smaller|normalis|relu|xavier|std",
)
def saturated() -> tuple[nn.Module, Step]:
    model = net(nn.Sigmoid, 4)
    for layer in model[:-1:2]:
        nn.init.normal_(layer.weight, std=4.0)
    return trained(model)


@broken(
    "BatchNorm in eval SGD",
    "BatchNorm in eval",
    "batchnorm-eval|batchnorm|exploding|vanishing|normalisation",
    remedy="train()|eval",
    seen=8,
    information=True,
)
def in_eval() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
    for _ in range(12):
        layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    model.eval()
    return model, supervised(model, sgd(model, 0.05), images(16, 12))


@broken(
    "BatchNorm over two samples Adam",
    "BatchNorm of a tiny batch",
    "batchnorm|tiny-batch|normalisation|collapsed",
    remedy="batch|groupnorm|layernorm",
)
def two_samples() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return model, supervised(model, adam(model), digits(2))


@broken(
    "all weights one number SGD",
    "constant start",
    "collapsed|symmetric|constant-init",
    layer="0|2|4",
    remedy="random|init|start",
    seen=8,
)
def constant() -> tuple[nn.Module, Step]:
    model = net()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.02)
    return trained(model)


@broken(
    "all weights zero Adam",
    "zero start",
    "disconnected|collapsed|dead|vanishing",
    layer="0",
    remedy="random|init|start|zero",
)
def zeros() -> tuple[nn.Module, Step]:
    model = net()
    for layer in model[::2]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model, supervised(model, adam(model), digits())


@broken(
    "dropout of .95 in every layer SGD",
    "dropout too strong",
    "dropout",
    remedy="dropout",
    seen=8,
)
def dropout() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.95)]
    return trained(nn.Sequential(*layers, nn.Linear(64, 10)))


@broken(
    "12 attention layers without shortcuts AdamW",
    "rank collapse",
    "collapsed|vanishing",
    remedy="shortcut|normalis|init|larger",
    seen=8,
    information=True,
)
def rank() -> tuple[nn.Module, Step]:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            logits = self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5
            return logits.softmax(-1) @ self.value(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Linear(8, 32)
            self.body = nn.Sequential(*(Mixing() for _ in range(12)))
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.start(x.view(-1, 8, 8)))[:, 0])

    model = Model()
    return model, supervised(model, adamw(model), digits())


@broken(
    "layer whose outputs hardly vary SGD",
    "outputs all alike",
    "collapsed|vanishing|saturated",
    layer="2|3",
    remedy="larger|wider|init|normalis|relu|smaller",
    seen=8,
)
def alike() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 10)
    )
    nn.init.normal_(model[2].weight, std=1e-5)
    nn.init.zeros_(model[2].bias)
    return trained(model, 1e-3)
