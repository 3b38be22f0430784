"""Gradients that are lost or grow on their way: over layers, over steps of time, in attention."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import function, seeded
from ..loops import adam, adamw, sgd, supervised
from ..trainings import broken
from .broken_nets import Built, Messages, Rows, Separable, graph, of_digits, of_pictures


@broken(
    "ten temporal convolutions with sigmoids SGD",
    "vanishing through activations",
    "vanishing",
    layer="1",
    remedy="relu|gelu|normalis",
)
def sigmoids() -> Built:
    layers: list[nn.Module] = []
    for inputs in (8, *[24] * 9):
        layers += [nn.Conv1d(inputs, 24, 3, padding=1), nn.Sigmoid()]
    model = nn.Sequential(
        nn.Unflatten(1, (8, 8)), *layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 10)
    )
    return of_digits(model, sgd(model))


class Cloud(nn.Module):
    """Points, each through the same layers, and the largest of each channel."""

    def __init__(self, depth: int, act: type[nn.Module], width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(2, width), act()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), act()]
        self.points, self.head = nn.Sequential(*layers), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.points(x).amax(1))


def clouds(number: int) -> tuple[Tensor, Tensor]:
    """Return points of circles, lines and blots, (48, 32, 2), and which each is."""
    source = seeded(number)
    kind = torch.randint(3, (48,), generator=source)
    angle = 6.28 * torch.rand(48, 32, generator=source)
    circle = torch.stack([angle.cos(), angle.sin()], 2)
    line, blot = circle * torch.tensor([1.0, 0.05]), 0.4 * circle
    some = torch.stack([circle, line, blot])[kind, torch.arange(48)]
    return some + 0.05 * torch.randn(48, 32, 2, generator=source), kind


@broken(
    "twenty tanh layers for each point of a cloud SGD",
    "vanishing through depth",
    "vanishing",
    layer="points.0",
    remedy="xavier|shortcut|normalis|larger",
)
def points() -> Built:
    model = Cloud(20, nn.Tanh)
    return model, supervised(model, sgd(model), clouds)


@broken(
    "depthwise convolutions of standard deviation .02 without norms SGD",
    "weights start too small",
    "vanishing|collapsed",
    layer="stem|body.0|body.1",
    remedy="larger|he weights|kaiming|std|init|normalis",
)
def small() -> Built:
    model = Separable(6, norm=False)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.02)
    return of_pictures(model, sgd(model))


class Coordinates(nn.Module):
    """Layers of sines, as for a picture from its coordinates; `factor` within each."""

    def __init__(self, factor: float, start: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 if n == 0 else 48, 48) for n in range(6))
        self.head, self.factor = nn.Linear(48, 1), factor
        for layer in self.layers[1:]:
            nn.init.uniform_(layer.weight, -start, start)

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = torch.sin((self.factor if place else 4.0) * layer(x))
        return self.head(x)


def wave(number: int) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(128, 2, generator=seeded(number)) - 1
    return x, torch.sin(4 * x[:, :1]) * torch.cos(3 * x[:, 1:])


@broken(
    "sines whose weights are not divided by their frequency Adam",
    "weights start too large",
    "exploding",
    remedy="smaller|scale|std|init|xavier|he weights|normalis",
)
def sines() -> Built:
    model = Coordinates(factor=30.0, start=(6 / 48) ** 0.5)
    return model, supervised(model, adam(model, 1e-3), wave, F.mse_loss)


class Scaled(nn.Module):
    def __init__(self, width: int, keep: float, add: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)
        self.keep, self.add = keep, add

    def forward(self, x: Tensor) -> Tensor:
        return self.keep * x + self.add * self.down(F.gelu(self.up(x)))


def scaled(keep: float, add: float, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 32), *(Scaled(32, keep, add) for _ in range(blocks)), nn.Linear(32, 10)
    )


@broken(
    "shortcuts multiplied by .3 SGD",
    "shortcuts scaled down",
    "vanishing",
    layer="0|1.up|1.down",
    remedy="shortcut|scale|larger|he weights|normalis",
)
def faint() -> Built:
    model = scaled(0.3, 0.3, 14)
    return of_digits(model, sgd(model))


class Kept(Messages):
    """The same with a shortcut around each round."""

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        x, edges = graph
        x = self.inlet(x)
        for send, keep, act in zip(self.send, self.keep, self.acts, strict=True):
            x = x + act(keep(x) + self.gathered(send(x), edges))
        return self.head(x)


class Summed(Kept):
    """The same, but that the receivers add what they get."""

    def gathered(self, told: Tensor, edges: Tensor) -> Tensor:
        return torch.zeros_like(told).index_add(0, edges[1], told[edges[0]])


@broken(
    "ten rounds of messages that are summed and not averaged SGD",
    "sums over neighbours",
    "exploding",
    remedy="normalis|scale|smaller|mean|clip|branch",
)
def summed() -> Built:
    model = Summed(10)
    return model, supervised(model, sgd(model, 0.01), graph)  # type: ignore[arg-type]


class Again(nn.Module):
    """One layer, again and again, until the state comes to rest."""

    def __init__(self, times: int, gain: float) -> None:
        super().__init__()
        self.inlet, self.again = nn.Linear(64, 40), nn.Linear(40, 40)
        self.head, self.times = nn.Linear(40, 10), times
        nn.init.orthogonal_(self.again.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for _ in range(self.times):
            x = torch.tanh(self.again(x))
        return self.head(x)


@broken(
    "one layer applied 60 times SGD",
    "one layer applied again and again",
    "vanishing-through-time|vanishing",
    layer="again|inlet",
    remedy="orthogonal|shortcut|lstm|gru|identity|init|fewer|shorter|truncat|xavier|larger",
)
def rest() -> Built:
    model = Again(60, 0.7)
    return of_digits(model, sgd(model))


class Minimal(nn.Module):
    """A cell of one gate, called at each step of time."""

    def __init__(self, width: int, forget: float) -> None:
        super().__init__()
        self.gate, self.new = nn.Linear(2 + width, width), nn.Linear(2 + width, width)
        nn.init.constant_(self.gate.bias, forget)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        both = torch.cat([x, state], 1)
        gate = torch.sigmoid(self.gate(both))
        return gate * state + (1 - gate) * torch.tanh(self.new(both))


class Reader(nn.Module):
    def __init__(self, cell: nn.Module, width: int = 24) -> None:
        super().__init__()
        self.cell, self.head, self.width = cell, nn.Linear(width, 2), width

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.width)
        for now in x.unbind(1):
            state = self.cell(now, state)
        return self.head(state)


class Whole(nn.Module):
    def __init__(self, rnn: nn.RNNBase, place: int = -1, width: int = 24) -> None:
        super().__init__()
        self.rnn, self.place, self.head = rnn, place, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, self.place])


def first(length: int, number: int) -> tuple[Tensor, Tensor]:
    """Return noise, (32, length, 2), and the sign of its first value."""
    x = torch.randn(32, length, 2, generator=seeded(number))
    return x, (x[:, 0, 0] > 0).long()


TIME = "lstm|gru|orthogonal|identity|forget|gate|shorter|init|truncat|clip"


@broken(
    "cell of one gate through 110 steps Adam",
    "cell over a long time",
    "vanishing-through-time|vanishing",
    layer="cell|cell.gate|cell.new",
    remedy=TIME,
)
def minimal() -> Built:
    model = Reader(Minimal(24, 0.0))
    return model, supervised(model, adam(model, 3e-3), partial(first, 110))


class Flow(nn.Module):
    """Forty steps of a differential equation."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.speed, self.head, self.size = nn.Linear(8, 8), nn.Linear(8, 1), size

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(40):
            x = x + self.size * F.elu(self.speed(x))
        return self.head(x)


@broken(
    "differential equation of steps too large SGD",
    "state that grows over time",
    "exploding-through-time|exploding",
    layer="speed",
    remedy="clip|orthogonal|smaller|step|init|normalis|scale",
)
def euler() -> Built:
    model = Flow(0.5)
    nn.init.normal_(model.speed.weight, std=0.45)
    return model, supervised(model, sgd(model, 1e-3), function(64), F.mse_loss)


@broken(
    "logits of attention multiplied by the root of the width AdamW",
    "attention without its scale",
    "attention-logits|saturated",
    layer="blocks.0.query|blocks.0.key|blocks.0|blocks.1|blocks.1.query|blocks.1.key",
    remedy="scale|smaller|normalis|sqrt",
)
def sharp() -> Built:
    model = Rows(2, 32, scale=32**0.5)
    for block in model.blocks:
        for part in (block.query, block.key):
            nn.init.normal_(part.weight, std=2.0)
    return of_digits(model, adamw(model, 1e-3))


@broken(
    "logits of attention that grow under a rate too large Adam",
    "attention logits that grow",
    "attention-logits|unstable|exploding|update-speed",
    remedy="learning rate|normalis|scale|smaller",
    seen=30,
    information=True,
)
def growing() -> Built:
    model = Rows(2, 32)
    groups = [p for name, p in model.named_parameters() if ".query." in name or ".key." in name]
    rest = [p for p in model.parameters() if all(p is not other for other in groups)]
    return of_digits(model, torch.optim.Adam([{"params": groups, "lr": 1.0}, {"params": rest}]))
