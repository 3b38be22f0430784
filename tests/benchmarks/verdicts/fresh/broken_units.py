"""Units that are off, flat or all alike, and norms and dropout that hide the signal."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, Batches, digits, images
from ..loops import adam, adamw, sgd, supervised
from ..trainings import broken
from .broken_nets import (
    Built,
    Messages,
    Mixer,
    Rows,
    Separable,
    Table,
    Turner,
    of_digits,
    of_graphs,
    of_pictures,
    of_rows,
    of_signs,
    table,
)


@broken(
    "years and incomes of a table as they are, before tanh Adam",
    "inputs not normalised",
    "saturated|input-scale",
    layer="deep.1|deep.0",
    remedy="normalis|input|scale",
)
def raw_table() -> Built:
    model = Table(nn.Tanh)

    def raw(number: int) -> Batch:
        (codes, numbers), y = table(number)
        raw = torch.tensor([1990.0, 52000.0, 40.0, 170.0])
        return (codes, raw + raw.sqrt() * numbers), y  # type: ignore[return-value]

    return model, supervised(model, adam(model), raw, F.binary_cross_entropy_with_logits)


@broken(
    "biases of -25 in the rounds of a graph net Adam",
    "dead layer",
    "dead",
    layer="acts.1|keep.1|send.1|acts.0|keep.0",
    remedy="bias|leaky|learning rate",
)
def dead_graph() -> Built:
    model = Messages()
    nn.init.constant_(model.keep[1].bias, -25.0)
    return of_graphs(model, adam(model, 3e-3))


@broken(
    "graph net whose ReLUs die of three large steps SGD",
    "dead after a large step",
    "dead|unstable|exploding|update-speed",
    remedy="learning rate|leaky|warm",
    seen=30,
    information=True,
)
def killed() -> Built:
    model = Messages()
    optimizer = sgd(model, 0.05)
    train = of_graphs(model, optimizer)[1]

    def step(number: int) -> object:
        optimizer.param_groups[0]["lr"] = 2.0 if 8 <= number < 11 else 0.05
        return train(number)

    return model, step  # type: ignore[return-value]


@broken(
    "activations clipped at 6 whose inputs are all above SGD",
    "clipped activations at their top",
    "saturated|dead",
    layer="body.3|body.2|body.1",
    remedy="smaller|normalis|bias|relu|learning rate|xavier",
)
def topped() -> Built:
    model = Separable(2, nn.ReLU6)
    nn.init.constant_(model.body[2].bias, 40.0)
    return of_pictures(model, sgd(model))


@broken(
    "norm whose gain is 60 before tanh SGD",
    "gain of a norm too large",
    "saturated|vanishing",
    layer="2|1|0|5|4|3",
    remedy="smaller|gain|normalis|xavier|std|relu",
)
def gain() -> Built:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(64, 64), nn.LayerNorm(64), nn.Tanh()]
        nn.init.constant_(layers[-2].weight, 60.0)  # type: ignore[arg-type]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return of_digits(model, sgd(model))


@broken(
    "LayerNorm over a single feature Adam",
    "norm over a single value",
    "collapsed|disconnected|tiny-batch",
    layer="deep.2|deep.0|deep.1|deep.3|head",
    remedy="feature|wider|group|vari|single|one value",
)
def single() -> Built:
    model = Table()
    model.deep = nn.Sequential(
        nn.Linear(22, 40), nn.ReLU(), nn.Linear(40, 1), nn.LayerNorm(1), nn.Linear(1, 24)
    )
    return of_rows(model, adam(model, 5e-3))


@broken(
    "GroupNorm of a group for each pooled channel SGD",
    "norm over a single value",
    "collapsed|disconnected|tiny-batch",
    layer="head.0|head.1|body|stem|body.7|body.6",
    remedy="feature|wider|group|vari|single|one value",
)
def groups() -> Built:
    model = Separable()
    model.head = nn.Sequential(nn.GroupNorm(16, 16), nn.Linear(16, 10))
    return of_pictures(model, sgd(model))


def zeros(batches: Batches, change: Callable[[Tensor], Tensor]) -> Batches:
    def at(number: int) -> Batch:
        x, y = batches(number)
        return change(x), y

    return at


@broken(
    "loader that gives black pictures AdamW",
    "inputs of zeros",
    "collapsed|disconnected|dead",
    remedy="input|data|batch|vari",
)
def black() -> Built:
    model = Separable()
    return model, supervised(model, adamw(model, 3e-3), zeros(images(32, 12, 1), torch.zeros_like))


@broken(
    "one digit repeated over the batch SGD",
    "samples all the same",
    "collapsed",
    remedy="input|data|batch|vari|sample",
)
def repeated() -> Built:
    model = Mixer()
    same = zeros(digits(), lambda x: x[:1].expand_as(x))
    return model, supervised(model, sgd(model), same)


@broken(
    "every weight of a graph net .05 SGD",
    "constant start",
    "collapsed",
    layer="inlet|send.0|keep.0|send.1|keep.1|acts.0|acts.1",
    remedy="random|init|start",
    seen=8,
)
def constant() -> Built:
    model = Messages()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.05)
    return of_graphs(model, sgd(model))


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base, self.down = nn.Linear(width, width), nn.Linear(width, 4, bias=False)
        self.up = nn.Linear(4, width, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.base(x) + self.up(self.down(x)))


@broken(
    "adapters of rank 4 with both matrices zero Adam",
    "zero start",
    "disconnected|collapsed|dead|vanishing",
    layer="0.down|0.up|1.down|1.up",
    remedy="random|init|start|zero",
)
def adapters() -> Built:
    model = nn.Sequential(Adapted(64), Adapted(64), nn.Linear(64, 10))
    for part in model[:2]:
        nn.init.zeros_(part.down.weight)
        nn.init.zeros_(part.up.weight)
    model[2].requires_grad_(False)
    rest = [p for p in model.parameters() if p.requires_grad]
    return of_digits(model, torch.optim.Adam(rest, lr=0.02))


@broken(
    "frozen statistics that do not fit, in depthwise convolutions SGD",
    "BatchNorm in eval",
    "batchnorm-eval|exploding|vanishing|unstable",
    remedy="train()|eval",
    seen=8,
    information=True,
)
def in_eval() -> Built:
    model = Separable(5)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.fill_(0.05)  # type: ignore[union-attr]
            part.eval()
    return of_pictures(model, sgd(model, 0.01))


@broken(
    "BatchNorm over two rows of a table Adam",
    "BatchNorm of a tiny batch",
    "tiny-batch",
    layer="deep.1|deep.4",
    remedy="batch|groupnorm|layernorm",
)
def two_rows() -> Built:
    model = Table()
    model.deep.insert(1, nn.BatchNorm1d(40))
    model.deep.insert(4, nn.BatchNorm1d(24))

    def two(number: int) -> Batch:
        (codes, numbers), y = table(number)
        return (codes[:2], numbers[:2]), y[:2]  # type: ignore[return-value]

    return model, supervised(model, adam(model), two, F.binary_cross_entropy_with_logits)


@broken(
    "functional dropout of .96 between the rounds of a graph net Adam",
    "dropout too strong",
    "dropout",
    remedy="dropout",
    seen=8,
)
def functional() -> Built:
    class Dropped(Messages):
        def gathered(self, told: Tensor, edges: Tensor) -> Tensor:
            return F.dropout(super().gathered(F.dropout(told, 0.96), edges), 0.96)

    model = Dropped()
    return of_graphs(model, adam(model, 3e-3))


@broken(
    "embeddings held to a norm of 1e-4 Adam",
    "embeddings held near zero",
    "collapsed|not-updated|vanishing|update-speed",
    remedy="norm|larger|written|overwrit|input",
    seen=8,
)
def held() -> Built:
    model = Turner()
    for part in (model.signs, model.written):
        part.max_norm = 1e-4
    return of_signs(model, adam(model, 5e-3))


@broken(
    "attention over one key, softmax over the wrong axis AdamW",
    "softmax over the wrong axis",
    "disconnected|attention|vanishing|collapsed",
    layer="blocks.0.query|blocks.0.key|blocks.1.query|blocks.1.key",
    remedy="softmax|axis|dim|path|key",
)
def one_key() -> Built:
    model = Rows()
    for block in model.blocks:
        block.told = lambda x, own=block: own.out(  # type: ignore[misc]
            (own.query(x) * own.key(x)).sum(-1)[..., None].softmax(-1) * own.value(x)
        )
    return of_digits(model, adamw(model, 3e-3))
