"""Usual ways to train that look odd to a recorder: two towers, frozen parts, accumulation ..."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, digits, images, seeded, text
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy


def encoder(out: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 96),
        nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, out),
    )  # fmt: skip


def views(number: int) -> list[Tensor]:
    """Return two noisy views of a batch."""
    x, _ = digits()(number)
    noise = seeded(number)
    return [x + 0.3 * torch.randn(x.shape, generator=noise) for _ in range(2)]


@healthy("SimCLR Adam")
def simclr() -> tuple[nn.Module, Step]:
    model = encoder()

    def loss_of(number: int) -> Tensor:
        first, second = (F.normalize(model(view), dim=-1) for view in views(number))
        return F.cross_entropy(first @ second.T / 0.2, torch.arange(len(first)))

    return model, by_loss(adam(model, 1e-3), loss_of)


@healthy("SimSiam SGD")
def simsiam() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(*encoder(), nn.BatchNorm1d(32, affine=False)),
            "predictor": nn.Sequential(
                nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32)
            ),
        }
    )

    def loss_of(number: int) -> Tensor:
        seen = [model["encoder"](view) for view in views(number)]
        guessed = [model["predictor"](code) for code in seen]
        pairs = ((guessed[0], seen[1]), (guessed[1], seen[0]))
        return 1 - sum(F.cosine_similarity(a, b.detach(), dim=-1).mean() for a, b in pairs) / 2

    return model, by_loss(sgd(model, 0.05), loss_of)


@healthy("BYOL AdamW")
def byol() -> tuple[nn.Module, Step]:
    online, predictor = encoder(), nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    model = nn.ModuleDict(
        {
            "online": online,
            "predictor": predictor,
            "target": copy.deepcopy(online).requires_grad_(False),
        }
    )
    trained = nn.ModuleList([online, predictor])

    def loss_of(number: int) -> Tensor:
        with torch.no_grad():
            pairs = zip(model["target"].parameters(), online.parameters(), strict=True)
            for old, new in pairs:
                old.lerp_(new, 0.05)
            seen = model["target"](views(number)[1])
        return 1 - F.cosine_similarity(predictor(online(views(number)[0])), seen, dim=-1).mean()

    return model, by_loss(adamw(trained, 1e-3), loss_of)


@healthy("two towers of users and things Adam")
def two_towers() -> tuple[nn.Module, Step]:
    def tower() -> nn.Sequential:
        return nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))

    model = nn.ModuleDict({"user": tower(), "thing": tower()})

    def loss_of(number: int) -> Tensor:
        user = torch.randperm(50, generator=seeded(number))[:32]
        thing = (user * 7 + 3) % 50
        score = model["user"](user) @ model["thing"](thing).T
        return F.cross_entropy(score, torch.arange(32))

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("matrix factorisation SGD")
def factors() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict({"user": nn.Embedding(40, 8), "thing": nn.Embedding(40, 8)})
    truth = torch.randn(40, 3, generator=seeded(0)) @ torch.randn(3, 40, generator=seeded(1))

    def loss_of(number: int) -> Tensor:
        user, thing = torch.randint(40, (2, 512), generator=seeded(number))
        return F.mse_loss((model["user"](user) * model["thing"](thing)).sum(-1), truth[user, thing])

    return model, by_loss(sgd(model, 2.0), loss_of)


@healthy("skip-gram of characters Adam")
def skip_gram() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {"word": nn.Embedding(CHARACTERS, 24), "context": nn.Embedding(CHARACTERS, 24)}
    )
    batches = text(32, 16)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        wrong = torch.randint(CHARACTERS, y.shape, generator=seeded(number))
        word = model["word"](x)
        near, far = ((word * model["context"](other)).sum(-1) for other in (y, wrong))
        return F.softplus(-near).mean() + F.softplus(far).mean()

    return model, by_loss(adam(model, 3e-2), loss_of)


@healthy("bag of characters SGD")
def bag() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.EmbeddingBag(CHARACTERS, 32), nn.Linear(32, 1))

    def batches(number: int) -> tuple[Tensor, Tensor]:
        x, _ = text(64, 12)(number)
        return x, (x == 1).float().mean(1, keepdim=True) * 10  # the share of blanks

    return model, supervised(model, sgd(model, 0.2), batches, F.mse_loss)


class Experts(nn.Module):
    """A mixture of four experts, of which each sample takes two."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.router = nn.Linear(64, 48), nn.Linear(48, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 48)) for _ in range(4)
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.start(x))
        share = self.router(x).softmax(-1)
        weight, chosen = share.topk(2, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, row, weight[row, place, None] * expert(x[row]))
        load = F.one_hot(chosen, 4).float().mean((0, 1))
        return self.head(x + out), 4 * (load * share.mean(0)).sum()


@healthy("mixture of experts with a balanced load AdamW")
def experts() -> tuple[nn.Module, Step]:
    model = Experts()
    return model, supervised(
        model,
        adamw(model, 2e-3),
        digits(),
        lambda out, y: F.cross_entropy(out[0], y) + 0.02 * out[1],
    )


class Switch(nn.Module):
    """A router of eight parts, each sample to one, and the loss that balances their load."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.gate = nn.Linear(64, 48), nn.Linear(48, 8)
        self.parts = nn.ModuleList(nn.Linear(48, 48) for _ in range(8))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.start(x))
        weights = self.gate(x).softmax(-1)
        weight, chosen = weights.max(-1)
        out = torch.zeros_like(x)
        for number, part in enumerate(self.parts):
            (row,) = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, row, weight[row, None] * part(x[row]))
        load = F.one_hot(chosen, 8).float().mean(0)
        return self.head(x + out), 8 * (load * weights.mean(0)).sum()


def switch(balance: float) -> tuple[nn.Module, Step]:
    model, batches = Switch(), digits(128)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        out, load = model(x)
        return F.cross_entropy(out, y) + balance * load

    return model, by_loss(adam(model), loss_of)


healthy("switch of eight parts with a balancing loss Adam")(partial(switch, 0.05))


@healthy("new head on a frozen body Adam")
def frozen_body() -> tuple[nn.Module, Step]:
    body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    model = nn.Sequential(body.requires_grad_(False), nn.Linear(128, 10))
    return model, supervised(model, adam(model[1], 1e-2), digits())


@healthy("low-rank adaptation of frozen weights AdamW")
def low_rank() -> tuple[nn.Module, Step]:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(64, 64).requires_grad_(False)
            self.down, self.up = nn.Linear(64, 8, bias=False), nn.Linear(8, 64, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.base(x) + self.up(self.down(x)))

    model = nn.Sequential(*(Adapted() for _ in range(3)), nn.Linear(64, 10))
    parameters = [p for p in model.parameters() if p.requires_grad]
    return model, supervised(model, torch.optim.AdamW(parameters, lr=3e-3), digits())


@healthy("student taught by a teacher Adam")
def distilled() -> tuple[nn.Module, Step]:
    teacher = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    student = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, batches = nn.ModuleDict({"teacher": teacher, "student": student}), digits()
    nn.init.normal_(teacher[2].weight)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        with torch.no_grad():
            target = teacher(x).softmax(-1)
        return F.kl_div(student(x).log_softmax(-1), target, reduction="batchmean")

    return model, by_loss(adam(student, 3e-3), loss_of)


@healthy("gradients accumulated over four batches SGD")
def accumulated() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer, batches = sgd(model, 0.05), digits(16)

    def step(number: int) -> float:
        optimizer.zero_grad()
        total = 0.0
        for part in range(4):
            x, y = batches(4 * number + part)
            loss = F.cross_entropy(model(x), y) / 4
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        return total

    return model, step


@healthy("bfloat16 autocast AdamW")
def autocast() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3),
        nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    batches = images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), y)

    return model, by_loss(adamw(model, 3e-3), loss_of)


@healthy("loss scaled and clipped after unscale_ SGD")
def unscaled() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer, batches = sgd(model, 0.05), digits()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return model, step


@healthy("two tasks from one body Adam")
def two_tasks() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "body": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()),
            "which": nn.Linear(64, 10),
            "ink": nn.Linear(64, 1),
        }
    )
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        hidden = model["body"](x)
        ink = F.mse_loss(model["ink"](hidden)[:, 0], x.mean(1))
        return F.cross_entropy(model["which"](hidden), y) + ink

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("siamese net with triplets Adam")
def triplets() -> tuple[nn.Module, Step]:
    model, batches = encoder(16), digits(60)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        code = F.normalize(model(x), dim=-1)
        apart = torch.cdist(code, code)
        same = y[:, None] == y
        near = apart.masked_fill(~same, 0).amax(1)
        far = apart.masked_fill(same, 9).amin(1)
        return F.relu(near - far + 0.5).mean()

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("convolutions with squeeze and excitation AdamW")
def squeeze() -> tuple[nn.Module, Step]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24)
            self.down, self.up, self.gate = nn.Linear(24, 6), nn.Linear(6, 24), nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.conv(x))
            gate = self.gate(self.up(F.relu(self.down(h.mean((2, 3))))))
            return F.relu(x + h * gate[..., None, None])

    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), *(Block() for _ in range(6)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip
    return model, supervised(model, adamw(model, 2e-3), images(16, 12, 1))


@healthy("residual net with stochastic depth SGD")
def stochastic_depth() -> tuple[nn.Module, Step]:
    class Block(nn.Module):
        def __init__(self, dropped: float) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64)
            )
            self.dropped = dropped

        def forward(self, x: Tensor) -> Tensor:
            return x if torch.rand(()) < self.dropped else x + self.body(x)

    model = nn.Sequential(
        nn.Linear(64, 64), *(Block(0.05 * n) for n in range(1, 11)), nn.Linear(64, 10)
    )
    return model, supervised(model, sgd(model, 0.02), digits())


@healthy("LeNet with average pooling and tanh SGD")
def lenet() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip
    return model, supervised(model, sgd(model, 0.05), images(32, 16, 1))
