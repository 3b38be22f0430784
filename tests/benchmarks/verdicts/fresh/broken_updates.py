"""Weights that no optimizer holds, that do not move, or that something else writes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, digits, images
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Scalars, broken
from .broken_nets import (
    SLOW,
    Built,
    Finder,
    Hourglass,
    Messages,
    Mixer,
    Separable,
    Turner,
    Waves,
    found,
    noisy,
    of_characters,
    of_digits,
    of_graphs,
    of_noise,
    of_pictures,
    of_scenes,
    signs,
)


@broken(
    "only the head of a detector in the optimizer AdamW",
    "wrong optimizer group",
    "not-updated",
    layer="backbone.0|backbone.3",
    remedy="optimizer",
)
def heads_only() -> Built:
    model = Finder()
    rest = [*model.kind.parameters(), *model.place.parameters()]
    return of_scenes(model, torch.optim.AdamW(rest, lr=3e-3))


@broken(
    "levels of a U-Net in a Python list Adam",
    "layers in a Python list",
    "not-updated",
    remedy="modulelist|optimizer|list|register",
)
def levels() -> Built:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inlet, self.outlet = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 1, 3, padding=1)
            self.levels = [
                (nn.Conv2d(12, 12, 3, 2, 1), nn.ConvTranspose2d(12, 12, 2, 2)) for _ in range(2)
            ]

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.inlet(x))
            for down, up in self.levels:
                x = x + F.silu(up(F.silu(down(x))))
            return self.outlet(x)

    model = Levels()
    return of_noise(model, adam(model, 3e-3))


@broken(
    "recurrent matrix that is a tensor and no parameter SGD",
    "weight that is no parameter",
    "not-updated",
    remedy="parameter|optimizer|register|modulelist",
)
def tensor() -> Built:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inlet, self.head = nn.Linear(8, 32), nn.Linear(32, 10)
            self.again = (torch.randn(32, 32) / 32**0.5).requires_grad_()

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(len(x), 32)
            for row in x.view(-1, 8, 8).unbind(1):
                state = torch.tanh(self.inlet(row) + state @ self.again)
            return self.head(state)

    model = Plain()
    return of_digits(model, sgd(model))


@broken(
    "third round of a graph net added after the optimizer AdamW",
    "layers made after the optimizer",
    "not-updated",
    layer="send.2|keep.2",
    remedy="optimizer",
)
def third() -> Built:
    model = Messages()
    optimizer = adamw(model, 3e-3)
    model.send.append(nn.Linear(24, 24))
    model.keep.append(nn.Linear(24, 24))
    model.acts.append(nn.ReLU())
    return of_graphs(model, optimizer)


@broken(
    "generator whose optimizer holds the discriminator Adam",
    "optimizer of another net",
    "not-updated",
    layer="generator.0|generator.2",
    remedy="optimizer",
    seen=8,
)
def swapped() -> Built:
    generator = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 64))
    critic = nn.Sequential(nn.Linear(64, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    first, second = adam(critic, 1e-3), adam(critic, 1e-3)  # meant: adam(generator)
    batches = digits()

    def step(number: int) -> Scalars:
        x, _ = batches(number)
        made = generator(torch.randn(len(x), 8))
        second.zero_grad()
        won = F.softplus(-critic(x)).mean() + F.softplus(critic(made.detach())).mean()
        won.backward()
        second.step()
        generator.zero_grad()
        first.zero_grad()
        lost = F.softplus(-critic(made)).mean()
        lost.backward()
        first.step()
        return {"generator_loss": lost.detach(), "critic_loss": won.detach()}

    return model, step


@broken(
    "U-Net whose gradients are never zeroed AdamW",
    "no zero_grad",
    "accumulated",
    remedy="zero_grad",
    seen=30,
)
def never_adamw() -> Built:
    model = Hourglass()
    optimizer = adamw(model, 3e-3)

    def step(number: int) -> Tensor:
        x, y = noisy(number)
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step


@broken(
    "accumulation over more batches than there are Adam",
    "optimizer never stepped",
    "not-updated|accumulated",
    remedy="step|optimizer|zero_grad|accumulat",
    seen=8,
)
def accumulation() -> Built:
    model = Finder()
    optimizer = adam(model, 3e-3)

    def step(number: int) -> Tensor:
        loss = found(model, number)
        (loss / 1000).backward()
        if number % 1000 == 999:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    return model, step


@broken(
    "zero_grad before the step of a mixer AdamW",
    "zero_grad before the step",
    "not-updated|update-speed",
    remedy="zero_grad",
)
def zeroed() -> Built:
    model = Mixer()
    optimizer, batches = adamw(model, 3e-3), digits()

    def step(number: int) -> Tensor:
        x, y = batches(number)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        return loss.detach()

    return model, step


@broken(
    "rate that falls tenfold with each batch and not each epoch SGD",
    "schedule stepped for each batch",
    SLOW,
    remedy="learning rate|'lr'|schedul",
    seen=30,
)
def tenfold() -> Built:
    model = Separable()
    optimizer = sgd(model, 0.02)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    return model, supervised(model, optimizer, images(32, 12, 1), schedule=schedule)


@broken(
    "critic's weights clipped to .0001 after each step RMSprop",
    "weights clipped to next to nothing",
    "collapsed|vanishing|not-updated",
    remedy="clip|clamp|larger|written|overwrit|reset|init",
    seen=8,
)
def clipped() -> Built:
    model = Separable(2, nn.SiLU, norm=False)
    train = of_pictures(model, torch.optim.RMSprop(model.parameters(), lr=1e-3))[1]

    def step(number: int) -> object:
        told = train(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-1e-4, 1e-4)
        return told

    return model, step  # type: ignore[return-value]


@broken(
    "weights drawn anew at each call of train() Adam",
    "weights overwritten each step",
    "not-updated|overwritten|reset",
    layer="reader|writer|head|signs|query",
    remedy="overwrit|written|reset|init",
    seen=8,
)
def anew() -> Built:
    class Anew(Turner):
        def train(self, mode: bool = True) -> Anew:
            super().train(mode)
            for part in self.children():
                if mode:
                    part.reset_parameters()  # type: ignore[operator]
            return self

    model = Anew()
    train = supervised(model, adam(model, 5e-3), signs)

    def step(number: int) -> object:
        model.train()
        return train(number)

    return model, step  # type: ignore[return-value]


@broken(
    "head tied to the embedding by a copy Adam",
    "tied weights broken",
    "not-updated",
    layer="head",
    remedy="optimizer|tie|parameter",
)
def copied() -> Built:
    model = Waves()
    optimizer = adam(model, 5e-3)
    tied = model.inlet.weight.detach().clone()[:, :, None]
    model.head.weight = nn.Parameter(tied)
    assert len(tied) == CHARACTERS
    return of_characters(model, optimizer)


@broken(
    "bfloat16 mixer under steps too small SGD",
    "steps below half precision",
    SLOW,
    remedy="float32|precision|master|learning rate|'lr'",
    seen=8,
)
def rounded() -> Built:
    model = Mixer().bfloat16()
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        return F.cross_entropy(model(x.bfloat16()).float(), y)

    return model, by_loss(sgd(model, 2e-6, 0.0), loss_of)


@broken(
    "scale of the loss held where all gradients overflow SGD",
    "every step skipped by the scaler",
    "not-updated|exploding",
    remedy="scale|step|optimizer|overflow|precision",
    seen=8,
)
def skipped() -> Built:
    model = Separable(2)
    optimizer, batches = sgd(model), images(32, 12, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26)

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update(2.0**26)  # meant: update()
        return loss.detach()

    return model, step
