"""Steps that are too large or too small for the weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..loops import adam, adamw, sgd, supervised
from ..trainings import broken
from .broken_nets import (
    FAST,
    SLOW,
    Built,
    Hourglass,
    Messages,
    Rows,
    Table,
    Turner,
    Waves,
    noisy,
    of_characters,
    of_digits,
    of_graphs,
    of_noise,
    of_rows,
    signs,
    table,
)


@broken(
    "learning rate 2 for a graph net Adam",
    "learning rate too large",
    FAST,
    remedy="learning rate",
    seen=8,
    information=True,
)
def fast_adam() -> Built:
    model = Messages()
    return of_graphs(model, adam(model, 2.0))


@broken(
    "rate of the head a thousand times that of the body AdamW",
    "rate of one group too large",
    FAST,
    layer="head",
    remedy="learning rate|group",
    seen=8,
    information=True,
)
def fast_head() -> Built:
    model = Rows()
    rest = [p for name, p in model.named_parameters() if "head" not in name]
    groups = [{"params": model.head.parameters(), "lr": 3.0}, {"params": rest}]
    return of_digits(model, torch.optim.AdamW(groups, lr=3e-3))


@broken(
    "momentum of .999 with the rate for .9 SGD",
    "momentum too large",
    FAST,
    remedy="momentum|learning rate",
    seen=30,
    information=True,
)
def momentum() -> Built:
    model = Hourglass()
    return of_noise(model, sgd(model, 0.2, 0.999))


@broken(
    "learning rate 1e-7 for causal convolutions SGD",
    "learning rate too small",
    SLOW,
    remedy="learning rate|'lr'",
    seen=30,
    information=True,
)
def slow() -> Built:
    model = Waves()
    return of_characters(model, sgd(model, 1e-7))


@broken(
    "eps of 1 where 1e-8 is usual Adam",
    "eps too large",
    SLOW,
    remedy="eps|learning rate|'lr'",
    seen=30,
    information=True,
)
def eps() -> Built:
    model = Table()
    return of_rows(model, torch.optim.Adam(model.parameters(), lr=1e-3, eps=1.0))


@broken(
    "weight decay of 100 for a table's net AdamW",
    "weight decay too large",
    "collapsed|vanishing|update-speed|not-updated",
    remedy="decay",
    seen=30,
    information=True,
)
def decay() -> Built:
    model = Table()
    return of_rows(model, adamw(model, 5e-3, 100.0))


@broken(
    "gradients of a U-Net clipped to a norm of .00001 SGD",
    "clip norm too small",
    SLOW,
    remedy="clip",
    seen=30,
    information=True,
)
def clipped() -> Built:
    model = Hourglass()
    return model, supervised(model, sgd(model), noisy, F.mse_loss, clip=1e-5)


@broken(
    "values of scaled gradients clipped before unscale_ SGD",
    "clipping of scaled gradients",
    "scaled-clipping",
    remedy="unscale_",
    seen=8,
)
def scaled() -> Built:
    model = Turner()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**18)

    def step(number: int) -> Tensor:
        x, y = signs(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return model, step


@broken(
    "scaled gradients that nothing divides by the scale SGD",
    "scaled gradients never unscaled",
    FAST,
    remedy="scale|learning rate",
    seen=8,
    information=True,
)
def unscaled() -> Built:
    model = Table()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def step(number: int) -> Tensor:
        x, y = table(number)
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(x), y)
        scaler.scale(loss).backward()
        optimizer.step()  # meant: scaler.step(optimizer)
        return loss.detach()

    return model, step


@broken(
    "24 batches added up and not divided SGD",
    "accumulation without a division",
    FAST + "|accumulated",
    remedy="learning rate|divide|accumulat|clip|mean",
    seen=8,
    information=True,
)
def undivided() -> Built:
    model = Table()
    optimizer = sgd(model, 0.5)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        for part in range(24):
            x, y = table(24 * number + part)
            loss = F.binary_cross_entropy_with_logits(model(x), y)
            loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step
