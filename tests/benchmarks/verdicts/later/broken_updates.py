"""Weights that no optimizer holds, that do not move, or that shrink."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, seeded
from ..loops import adam, by_loss, supervised
from ..trainings import broken
from .broken_nets import (
    SLOW,
    Attended,
    Built,
    DenseNet,
    Field,
    Sorter,
    Tagger,
    Towers,
    ViT,
    brackets,
    clips,
    neighbours,
    nesterov,
    numbers,
    rays,
    signals,
    video_net,
    visits,
)


@broken(
    "DenseNet whose stem and first stages are frozen with random weights NAdam",
    "frozen layers",
    "disconnected|frozen|not-updated",
    layer="stem|stages.0|stages.0.2|stages.1|stages.1.2|stages.0.0|stages.1.0",
    remedy="requires_grad|frozen|freez",
    information=True,
)
def frozen() -> Built:
    model = DenseNet()
    for name, parameter in model.named_parameters():
        if name.startswith(("stem", "stages.0", "stages.1")):
            parameter.requires_grad = False
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, supervised(model, torch.optim.NAdam(trained, lr=3e-3), images(32, 16, 1))


@broken(
    "tower of things left out of the optimizer Adamax",
    "wrong optimizer group",
    "not-updated",
    layer="items.0|items.1|items.3",
    remedy="optimizer",
)
def one_tower() -> Built:
    model = Towers()
    optimizer = torch.optim.Adamax(model.users.parameters(), lr=2e-2)
    return model, supervised(model, optimizer, visits)  # type: ignore[arg-type]


@broken(
    "groups of a sorter that miss its encoder Adamax",
    "wrong optimizer group",
    "not-updated",
    layer="net.encoder.layers.0.linear1|net.encoder.layers.0.linear2|net.encoder.layers.1.linear1"
    "|net.encoder.layers.1.linear2|source|net.encoder.layers.0.self_attn|net.encoder.layers.0.norm1"
    "|net.encoder.layers.0.self_attn.out_proj",
    remedy="optimizer",
)
def groups() -> Built:
    model = Sorter()
    wanted = ("net.decoder", "head", "target", "places")
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if name.startswith(wanted):
            (decayed if parameter.dim() > 1 else plain).append(parameter)
    optimizer = torch.optim.Adamax(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain}], lr=5e-3
    )
    return model, supervised(model, optimizer, numbers)


@broken(
    "zero_grad as the first act of a step method RAdam",
    "zero_grad before the step",
    "not-updated",
    remedy="zero_grad",
)
def zeroed() -> Built:
    model = Attended()

    class Trainer:
        def __init__(self) -> None:
            self.optimizer = torch.optim.RAdam(model.parameters(), lr=1e-2)

        def update(self) -> None:
            self.optimizer.zero_grad()
            self.optimizer.step()

    trainer = Trainer()

    def step(number: int) -> Tensor:
        graph, kind = neighbours(number)
        loss = F.cross_entropy(model(graph), kind)
        loss.backward()
        trainer.update()
        return loss.detach()

    return model, step


class Head(nn.Module):
    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.qkv, self.size = nn.Linear(width, 3 * size), size

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2) / self.size**0.5).softmax(-1) @ v


@broken(
    "heads of attention in a Python list RMSprop",
    "layers in a Python list",
    "not-updated",
    remedy="modulelist|optimizer|list|register",
)
def heads() -> Built:
    class Multi(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inlet, self.out = nn.Linear(8, 32), nn.Linear(32, 10)
            self.heads = [Head(32, 8) for _ in range(4)]

        def forward(self, x: Tensor) -> Tensor:
            x = self.inlet(x.view(-1, 8, 8))
            return self.out(torch.cat([head(x) for head in self.heads], -1).amax(1))

    model = Multi()
    return model, supervised(model, torch.optim.RMSprop(model.parameters(), lr=3e-3), digits())


class Denoiser(nn.Module):
    """Says which noise was added to a digit, and knows how much."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.inlet, self.outlet = nn.Linear(64, width), nn.Linear(width, 64)
        self.middle = nn.Linear(width, width)

    def forward(self, x: Tensor, when: Tensor) -> Tensor:
        h = F.silu(self.inlet(x) + self.time(when))
        return self.outlet(F.silu(h + self.middle(h)))


@broken(
    "diffusion of digits whose gradients add up over all steps Nesterov",
    "no zero_grad",
    "accumulated|no-zero-grad",
    remedy="zero_grad",
    seen=8,
)
def diffusion() -> Built:
    model = Denoiser()
    optimizer, batches = nesterov(model, 0.1), digits()

    def step(number: int) -> Tensor:
        x, _ = batches(number)
        source = seeded(number)
        when = torch.rand(len(x), 1, generator=source)
        noise = torch.randn(x.shape, generator=source)
        loss = F.mse_loss(model((1 - when).sqrt() * x + when.sqrt() * noise, when), noise)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step


@broken(
    "vocabulary of a tagger enlarged after the optimizer was made RAdam",
    "layers made after the optimizer",
    "not-updated",
    layer="embedding",
    remedy="optimizer",
)
def enlarged() -> Built:
    model = Tagger()
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-2)
    larger = nn.Embedding(120, 24)
    with torch.no_grad():
        larger.weight[:96] = model.embedding.weight
    model.embedding = larger
    loss = F.binary_cross_entropy_with_logits
    return model, supervised(model, optimizer, brackets, loss)


@broken(
    "second fold that is trained by the optimizer of the first Nesterov",
    "optimizer of another net",
    "not-updated",
    remedy="optimizer",
)
def folds() -> Built:
    optimizer = None
    for _ in range(2):
        model = nn.Sequential(
            nn.Conv1d(1, 16, 7, 2), nn.GELU(), nn.Conv1d(16, 24, 5, 2), nn.GELU(),
            nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(96, 4),
        )  # fmt: skip
        if optimizer is None:
            optimizer = nesterov(model, 0.05)
    return model, supervised(model, optimizer, signals)


@broken(
    "learning rate read as a whole number Nesterov",
    "learning rate 0",
    "not-updated",
    remedy="learning rate|'lr'",
)
def whole() -> Built:
    model = video_net()
    settings = {"lr": "0.02"}
    rate = int(float(settings["lr"]))
    return model, supervised(model, nesterov(model, rate), clips)


class Factors(nn.Module):
    """Matrix factorisation: vectors of users and things, and their product."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(16, 1024), nn.Embedding(24, 1024)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return (self.user(pair[0]) * self.item(pair[1])).sum(1) / 32


@broken(
    "factors in bfloat16 whose steps are lost in rounding Adam",
    "steps below half precision",
    SLOW,
    remedy="float32|precision|master|learning rate|'lr'",
    seen=8,
)
def factors() -> Built:
    model = Factors().bfloat16()
    taste = torch.randn(16, 24, generator=seeded(9)).sign()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        user = torch.randint(16, (512,), generator=source)
        item = torch.randint(24, (512,), generator=source)
        return F.softplus(-taste[user, item] * model((user, item)).float()).mean()

    return model, by_loss(adam(model, 2e-4), loss_of)


@broken(
    "graph attention clipped to a norm of .0000001 SGD",
    "clip norm too small",
    "not-updated|update-speed|clipping",
    remedy="clip",
    seen=30,
    information=True,
)
def clipped() -> Built:
    model = Attended()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    return model, supervised(model, optimizer, neighbours, clip=1e-7)  # type: ignore[arg-type]


@broken(
    "penalty of 20 on the weights' squares in the loss of a field Adam",
    "weight decay too large",
    "collapsed|vanishing|update-speed|decay|shrinking|not-updated",
    remedy="decay",
    seen=30,
    information=True,
)
def penalty() -> Built:
    model = Field()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=20.0)
    return model, supervised(model, optimizer, rays, F.mse_loss)


@broken(
    "decay of 2 at each step of a vision transformer Nesterov",
    "weight decay too large",
    "collapsed|vanishing|update-speed|decay|shrinking|not-updated",
    remedy="decay",
    seen=30,
    information=True,
)
def decay() -> Built:
    model = ViT()
    return model, supervised(model, nesterov(model, 0.05, 2.0), images(32, 16, 1))
