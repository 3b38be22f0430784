"""Held by no optimizer, frozen, not zeroed, moved by nothing or too far."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, digits, images, rows, text
from ..loops import adam, adamw, by_loss, next_character, sgd, supervised
from ..trainings import Step, broken
from .nets import Language, conv_net, of_characters, of_pictures


@broken(
    "patches of a transformer frozen by mistake AdamW",
    "frozen layers",
    "not-updated|disconnected|frozen",
    layer="tokens|places",
    remedy="requires_grad",
    information=True,
)
def frozen() -> tuple[nn.Module, Step]:
    model = Language()
    for part in (model.tokens, model.places):
        part.requires_grad_(False)
    return of_characters(
        model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    )


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(8, 32, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)[1][0])


@broken(
    "encoder left out of the optimizer Adam",
    "wrong optimizer group",
    "not-updated",
    layer="encoder",
    remedy="optimizer",
)
def left_out() -> tuple[nn.Module, Step]:
    model = Translator()
    return model, supervised(model, adam(model.decoder, 3e-3), rows())


@broken(
    "optimizer of the net before it was copied AdamW",
    "optimizer of another net",
    "not-updated",
    remedy="optimizer",
)
def of_another() -> tuple[nn.Module, Step]:
    first = conv_net()
    model = copy.deepcopy(first)
    return of_pictures(model, adamw(first))


class Listed(nn.Module):
    """Branches side by side, in a container of `kind`."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 12, 3, padding=1), nn.Linear(36, 10)
        branches = [nn.Conv2d(12, 12, size, padding=size // 2) for size in (1, 3, 5)]
        self.branches = branches if kind is list else dict(zip("abc", branches, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        some = self.branches if isinstance(self.branches, list) else self.branches.values()
        return self.head(torch.cat([F.relu(branch(x)).mean((2, 3)) for branch in some], 1))


def listed(kind: type) -> tuple[nn.Module, Step]:
    model = Listed(kind)
    return of_pictures(model, sgd(model))


for _kind in (list, dict):
    broken(
        f"branches of an inception block in a Python {_kind.__name__} SGD",
        "layers in a Python list",
        "not-updated",
        remedy="modulelist|moduledict|optimizer",
    )(partial(listed, _kind))


@broken(
    "zero_grad behind the backward pass of a tagger RMSprop",
    "zero_grad before the step",
    "not-updated",
    remedy="zero_grad",
)
def zeroed() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Embedding(CHARACTERS, 24), nn.Linear(24, 48), nn.Tanh())
    model.append(nn.Linear(48, CHARACTERS))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)

    def step(number: int) -> Tensor:
        x, y = text()(number)
        loss = next_character(model(x), y)
        loss.backward()
        model.zero_grad()
        optimizer.step()
        return loss.detach()

    return model, step


def never_zeroed(
    model: nn.Module, optimizer: torch.optim.Optimizer, x_y: object, loss_of: object
) -> tuple[nn.Module, Step]:
    def step(number: int) -> Tensor:
        x, y = x_y(number)  # type: ignore[operator]
        loss = loss_of(model(x), y)  # type: ignore[operator]
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step


NEVER = partial(
    broken, kind="no zero_grad", verdicts="accumulated|no-zero-grad", remedy="zero_grad", seen=8
)


@NEVER("conv net whose gradients are never zeroed Adam")
def never_adam() -> tuple[nn.Module, Step]:
    model = conv_net()
    return never_zeroed(model, adam(model), images(32, 12, 1), F.cross_entropy)


@NEVER("regression whose gradients are never zeroed SGD")
def never_sgd() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 16), nn.SiLU())
    model.append(nn.Linear(16, 1))
    return never_zeroed(
        model, sgd(model, 1e-3, 0.0), digits(), lambda out, y: (out[:, 0] - y).square().mean()
    )


@broken(
    "learning rate 0 in the group of the body AdamW",
    "learning rate 0",
    "not-updated",
    layer="blocks.0.up|blocks.0.qkv|blocks.1.up",
    remedy="learning rate|'lr'",
    seen=8,
    information=True,
)
def no_rate() -> tuple[nn.Module, Step]:
    model = Language()
    rest = [*model.tokens.parameters(), *model.places.parameters()]
    rest += [*model.norm.parameters(), *model.head.parameters()]
    groups = [{"params": model.blocks.parameters(), "lr": 0.0}, {"params": rest}]
    return of_characters(model, torch.optim.AdamW(groups, lr=2e-3))


@broken(
    "schedule that is over after twelve steps SGD",
    "learning rate 0",
    "not-updated",
    remedy="learning rate|'lr'|schedul",
    seen=100,
)
def over() -> tuple[nn.Module, Step]:
    model = conv_net()
    optimizer = sgd(model, 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: max(0.0, 1 - n / 12))
    return model, supervised(model, optimizer, images(32, 12, 1), schedule=schedule)


@broken(
    "bfloat16 language model of steps too small SGD",
    "steps below half precision",
    "not-updated",
    remedy="float32|precision|master",
    seen=8,
)
def half() -> tuple[nn.Module, Step]:
    model = Language().bfloat16()
    return of_characters(model, sgd(model, 1e-7, 0.0))


@broken(
    "conv net clipped while its gradients are scaled SGD",
    "clipping of scaled gradients",
    "scaled-clipping",
    remedy="unscale_",
    seen=8,
)
def scaled() -> tuple[nn.Module, Step]:
    model = conv_net()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    batches = images(32, 12, 1)

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return model, step


@broken(
    "gradients clipped to values of 1e-8 SGD",
    "clip norm too small",
    "not-updated|update-speed|clipping",
    remedy="clip",
    seen=30,
    information=True,
)
def clipped() -> tuple[nn.Module, Step]:
    model = conv_net()
    optimizer = sgd(model, 0.05)
    batches = images(32, 12, 1)

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 1e-8)
        optimizer.step()
        return loss.detach()

    return model, step


@broken(
    "checkpoint loaded again at every step Adam",
    "weights overwritten each step",
    "not-updated|overwritten|reset",
    remedy="average|overwrit|copied|written|reset|checkpoint",
    seen=8,
)
def loaded() -> tuple[nn.Module, Step]:
    model = conv_net()
    saved, train = copy.deepcopy(model.state_dict()), of_pictures(model, adam(model))[1]

    def step(number: int) -> object:
        model.load_state_dict(saved)
        return train(number)

    return model, step  # type: ignore[return-value]


@broken(
    "weight decay of 30 in a conv net SGD",
    "weight decay too large",
    "collapsed|vanishing|update-speed|decay|shrinking|not-updated",
    remedy="decay",
    seen=30,
    information=True,
)
def decay() -> tuple[nn.Module, Step]:
    model = conv_net()
    return of_pictures(model, torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=30.0))


@broken(
    "learning rate .5 for a GRU Adam",
    "learning rate too large",
    "exploding|unstable|dead|saturated|update-speed",
    remedy="learning rate",
    seen=8,
    information=True,
)
def fast() -> tuple[nn.Module, Step]:
    model = Translator()
    return model, supervised(model, adam(model, 0.5), rows())


@broken(
    "learning rate 100 for a conv net SGD",
    "learning rate too large",
    "exploding|unstable|dead|saturated|update-speed",
    remedy="learning rate",
    seen=8,
    information=True,
)
def faster() -> tuple[nn.Module, Step]:
    model = conv_net(nn.GELU)
    return of_pictures(model, sgd(model, 100.0))


@broken(
    "learning rate 1e-9 for a language model AdamW",
    "learning rate too small",
    "not-updated|update-speed",
    remedy="learning rate|'lr'",
    seen=30,
    information=True,
)
def slow() -> tuple[nn.Module, Step]:
    model = Language()
    return of_characters(model, adamw(model, 1e-9, 0.0))


@broken(
    "classifier exchanged for one of other classes AdamW",
    "layers made after the optimizer",
    "not-updated",
    layer="11|head",
    remedy="optimizer",
)
def exchanged() -> tuple[nn.Module, Step]:
    model = conv_net(norm=True)
    optimizer = adamw(model)
    model[-1] = nn.Linear(32, 12)
    return of_pictures(model, optimizer)


@broken(
    "classes compared with the targets as a loss Adam",
    "loss without a gradient",
    "disconnected|loss",
    remedy="argmax|loss|differentiable",
)
def accuracy() -> tuple[nn.Module, Step]:
    model = conv_net()
    batches = images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        wrong = (model(x).argmax(1) != y).float()
        return wrong.mean().requires_grad_()

    return model, by_loss(adam(model), loss_of)


@broken(
    "loss of the targets alone SGD",
    "loss without a gradient",
    "disconnected|loss",
    remedy="argmax|loss|differentiable",
)
def targets_alone() -> tuple[nn.Module, Step]:
    model = conv_net()
    shift = nn.Parameter(torch.zeros(10))
    batches = images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        model(x)
        return F.cross_entropy(F.one_hot(y, 10).float() + shift, y)

    return model, by_loss(sgd(model), loss_of)


@broken(
    "teacher's average written into the student AdamW",
    "weights overwritten each step",
    "not-updated|overwritten|reset",
    remedy="average|overwrit|copied|written|reset",
    seen=8,
)
def average() -> tuple[nn.Module, Step]:
    model = conv_net(nn.GELU)
    teacher = copy.deepcopy(model)
    train = of_pictures(model, adamw(model))[1]

    def step(number: int) -> object:
        told = train(number)
        with torch.no_grad():
            for mean, weight in zip(teacher.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, 1e-5)
                weight.copy_(mean)
        return told

    return model, step  # type: ignore[return-value]
