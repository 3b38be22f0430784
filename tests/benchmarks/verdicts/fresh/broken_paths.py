"""No gradient arrives: cut on its way, multiplied by zero, or asked for by nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, seeded
from ..loops import adam, adamw, by_loss, sgd
from ..trainings import Scalars, broken
from .broken_nets import (
    CUT,
    Built,
    Finder,
    Hourglass,
    Messages,
    Mixer,
    Separable,
    Turner,
    noisy,
    of_digits,
    of_graphs,
    of_noise,
    of_pictures,
    of_scenes,
    signs,
)


@broken(
    "values of nodes copied into a new tensor Adam",
    "copied into a new tensor",
    "disconnected",
    layer="inlet",
    remedy=CUT,
)
def copied() -> Built:
    class Copied(Messages):
        def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
            x, edges = graph
            x = torch.tensor(self.inlet(x).tolist())
            for send, keep, act in zip(self.send, self.keep, self.acts, strict=True):
                x = act(keep(x) + self.gathered(send(x), edges))
            return self.head(x)

    model = Copied()
    return of_graphs(model, adam(model, 3e-3))


class Codes(nn.Module):
    """An autoencoder whose code is the nearest of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 8))
        self.book = nn.Embedding(32, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 64))

    def nearest(self, code: Tensor) -> Tensor:
        return self.book(torch.cdist(code, self.book.weight).argmin(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.nearest(self.encoder(x)))


@broken(
    "nearest code without a straight-through gradient AdamW",
    "nearest code without a straight-through gradient",
    "disconnected",
    layer="encoder.0|encoder.2",
    remedy=CUT + "|straight",
)
def nearest() -> Built:
    model, batches = Codes(), digits()
    return model, by_loss(
        adamw(model, 3e-3), lambda n: F.mse_loss(model(batches(n)[0]), batches(n)[0])
    )


@broken(
    "units that fire or not, without a surrogate SGD",
    "step function",
    "disconnected",
    layer="stem|body.0|body.1",
    remedy=CUT + "|round|straight|surrogate|threshold",
)
def firing() -> Built:
    class Firing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).float()

    model = Separable(2)
    model.body.append(Firing())
    return of_pictures(model, sgd(model))


class Sign(torch.autograd.Function):
    """The sign, with a backward that was left as it was copied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


@broken(
    "binary net whose own backward returns zeros Adam",
    "backward of its own that is wrong",
    "disconnected",
    layer="patches|blocks.0.within.0|blocks.0.over.0|blocks.1.within.0",
    remedy=CUT + "|straight|zero|backward",
)
def binary() -> Built:
    class Binary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Sign.apply(x)

    model = Mixer()
    model.norm = nn.Sequential(nn.LayerNorm(24), Binary())  # type: ignore[assignment]
    return of_digits(model, adam(model, 3e-3))


@broken(
    "code drawn by sample() in place of rsample() Adam",
    "sample without a gradient",
    "disconnected",
    layer="encoder.0|encoder.2",
    remedy=CUT + "|sample",
)
def drawn() -> Built:
    class Drawn(Codes):
        def nearest(self, code: Tensor) -> Tensor:
            return torch.distributions.Normal(code, 0.1).sample()

    model, batches = Drawn(), digits()
    return model, by_loss(
        adam(model, 3e-3), lambda n: F.mse_loss(model(batches(n)[0]), batches(n)[0])
    )


@broken(
    "gradient hook that returns zeros SGD",
    "hook that zeroes the gradient",
    "disconnected",
    layer="inlet|down",
    remedy=CUT + "|hook|zero",
)
def hook() -> Built:
    class Hooked(Hourglass):
        def forward(self, x: Tensor) -> Tensor:
            fine = self.act(self.inlet(x))
            coarse = self.coarse(fine)
            both = torch.cat([fine, coarse], 1)
            both.register_hook(lambda gradient: gradient * 0.0)
            return self.outlet(both)

    model = Hooked()
    return of_noise(model, sgd(model))


@broken(
    "branch whose factor stays 0 Adam",
    "branch multiplied by zero",
    "disconnected",
    layer="middle|down|up",
    remedy="zero|multipl|scale|gate|path|mask|product|factor|detach",
)
def branch() -> Built:
    class Off(Hourglass):
        def coarse(self, fine: Tensor) -> Tensor:
            return 0.0 * super().coarse(fine)

    model = Off()
    return of_noise(model, adam(model, 3e-3))


@broken(
    "mask of the padding turned round, so that no sign counts Adam",
    "mask that leaves nothing",
    "disconnected",
    remedy="mask|loss|zero|path|detach",
)
def masked() -> Built:
    model = Turner()

    def loss_of(number: int) -> Tensor:
        x, y = signs(number)
        counts = (y == 7).float()  # 7 is the padding; meant: y != 7
        losses = F.cross_entropy(model(x), y, reduction="none")
        return (losses * counts).sum() / counts.sum().clamp(min=1)

    return model, by_loss(adam(model, 5e-3), loss_of)


@broken(
    "output compared with itself SGD",
    "loss of an output with itself",
    "disconnected|output",
    remedy="loss|target|zero|path|detach",
)
def itself() -> Built:
    model = Hourglass()

    def loss_of(number: int) -> Tensor:
        x, _ = noisy(number)
        out = model(x)
        return F.mse_loss(out, out.detach())

    return model, by_loss(sgd(model), loss_of)


@broken(
    "policy whose loss is the reward alone Adam",
    "loss without a gradient",
    "disconnected|loss",
    remedy="argmax|loss|differentiable|log|sample",
)
def policy() -> Built:
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = adam(model, 1e-2)

    def step(number: int) -> Scalars:
        seen = torch.randn(64, 6, generator=seeded(number))
        chosen = torch.distributions.Categorical(logits=model(seen)).sample()
        reward = (chosen == seen[:, :3].argmax(1)).float()
        optimizer.zero_grad()
        loss = (1 - reward.mean()).requires_grad_()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    return model, step


@broken(
    "backbone of a detector frozen with its random weights SGD",
    "frozen layers",
    "not-updated|disconnected|frozen",
    layer="backbone.0|backbone.3",
    remedy="requires_grad",
    information=True,
)
def frozen() -> Built:
    model = Finder()
    model.backbone.requires_grad_(False)
    return of_scenes(model, sgd(model, 0.01))


@broken(
    "temperature of two towers read by item() Adam",
    "number read out of a parameter",
    "disconnected|not-updated",
    layer="temperature",
    remedy=CUT + "|item|use|optimizer",
    information=True,
)
def temperature() -> Built:
    class Temperature(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log = nn.Parameter(torch.zeros(()))

        def forward(self, logits: Tensor) -> Tensor:
            return logits * self.log.exp().item()

    def tower() -> nn.Sequential:
        return nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16))

    model = nn.ModuleDict({"left": tower(), "right": tower(), "temperature": Temperature()})
    batches = digits()

    def loss_of(number: int) -> Tensor:
        left, right = batches(number)[0].split(32, 1)
        one, two = (F.normalize(model[k](x)) for k, x in (("left", left), ("right", right)))
        return F.cross_entropy(model["temperature"](one @ two.T), torch.arange(len(one)))

    return model, by_loss(adam(model, 3e-3), loss_of)
