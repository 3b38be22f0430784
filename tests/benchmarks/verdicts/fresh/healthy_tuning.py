"""Nets that were trained before and are tuned in part; long recipes; few or large inputs."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, function, images, text
from ..loops import adam, adamw, by_loss, next_character, sgd, supervised
from ..trainings import Scalars, Step, healthy
from .healthy_nets import Attention, conv, dense, encoder, follow


class Block(nn.Module):
    """A pre-norm block with two places at which something may be added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(48), nn.LayerNorm(48)
        self.see, self.body = Attention(48), dense(48, 128, 48, act=nn.GELU)
        self.after_see, self.after_body = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.after_see(self.see(self.norm1(x), causal=True))
        return x + self.after_body(self.body(self.norm2(x)))


class Trained(nn.Module):
    """A model of characters that was trained on Python's source for 60 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(96, 48), nn.Embedding(40, 48)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 96)
        self.prompt: nn.Parameter | None = None
        optimizer, batches = adamw(self, 3e-3), text(16, 32)
        for number in range(60):
            x, y = batches(number)
            optimizer.zero_grad()
            next_character(self(x), y).backward()
            optimizer.step()
        self.requires_grad_(False)
        self.zero_grad()

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        if self.prompt is not None:
            h = torch.cat([self.prompt.expand(len(x), -1, -1), h], 1)
        h = h + self.places.weight[: h.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h[:, -x.shape[1] :]))


def capitals(number: int) -> tuple[Tensor, Tensor]:
    """Return characters, and the next ones, of which small letters are written as capitals."""
    x, y = text(16, 32)(number)
    return x, torch.where((y > 65) & (y < 92), y - 32, y)


def tuned(model: Trained, lr: float) -> tuple[nn.Module, Step]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    return model, supervised(model, optimizer, capitals, next_character)


@healthy("bottlenecks that start at zero in a frozen net AdamW")
def bottlenecks() -> tuple[nn.Module, Step]:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(48, 12), nn.Linear(12, 48)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.up(F.gelu(self.down(x)))

    model = Trained()
    for block in model.blocks:
        block.after_see, block.after_body = Adapter(), Adapter()
    return tuned(model, 5e-3)


@healthy("only biases and norms of a trained net AdamW")
def biases() -> tuple[nn.Module, Step]:
    model = Trained()
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias") or "norm" in name)
    return tuned(model, 1e-2)


@healthy("a learnt prompt and head before a frozen net AdamW")
def prompt() -> tuple[nn.Module, Step]:
    model = Trained()
    model.prompt = nn.Parameter(0.5 * torch.randn(1, 8, 48))
    model.head.requires_grad_(True)
    return tuned(model, 5e-3)


@healthy("a linear probe on features without labels SGD")
def probe() -> tuple[nn.Module, Step]:
    body, batches = encoder(48), images(64, 12, 1)
    before = adam(body, 2e-3)
    for number in range(30):  # two noisy views told apart from the rest
        x, _ = batches(number)
        one, two = (F.normalize(body(x + 0.3 * torch.randn_like(x)), dim=1) for _ in range(2))
        before.zero_grad()
        F.cross_entropy(one @ two.T / 0.2, torch.arange(len(x))).backward()
        before.step()
    body.requires_grad_(False).eval()
    body.zero_grad()
    model = nn.Sequential(body, nn.Linear(48, 10))
    return model, supervised(model, sgd(model, 0.3), batches)


@healthy("whole net tuned with a small rate, head with a large one SGD")
def two_rates() -> tuple[nn.Module, Step]:
    body, batches = encoder(48), images(64, 12, 1)
    start = nn.Sequential(body, nn.ReLU(), nn.Linear(48, 2))
    train = supervised(start, adam(start, 2e-3), lambda n: (batches(n)[0], batches(n)[1] % 2))
    for number in range(30):
        train(number)
    start.zero_grad()
    model = nn.Sequential(body, nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.SGD(
        [{"params": body.parameters(), "lr": 3e-3}, {"params": model[2].parameters(), "lr": 3e-2}],
        momentum=0.9,
        weight_decay=1e-4,
    )
    return model, supervised(model, optimizer, batches)


@healthy("patches in bfloat16, sums of four batches, warm-up, cosine, mean of weights AdamW")
def recipe() -> tuple[nn.Module, Step]:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.place = (
                nn.Conv2d(1, 48, 3, 3),
                nn.Parameter(0.02 * torch.randn(1, 16, 48)),
            )
            layer = nn.TransformerEncoderLayer(
                48, 4, 96, 0.1, "gelu", batch_first=True, norm_first=True
            )
            self.body = nn.TransformerEncoder(layer, 5, enable_nested_tensor=False)
            self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = self.cut(x).flatten(2).transpose(1, 2) + self.place
            return self.head(self.norm(self.body(x).mean(1)))

    net, batches = Patches(), images(16, 12, 1)
    model = nn.ModuleDict({"net": net, "mean": copy.deepcopy(net).requires_grad_(False)})
    optimizer = adamw(net, 3e-3, 0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / 10, 0.5 + 0.5 * math.cos(math.pi * n / 100))
    )

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for part in range(4):
            x, y = batches(4 * number + part)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(x), y, label_smoothing=0.05) / 4
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        follow(model["mean"], net, 0.05)
        return total

    return model, step


@healthy("two pictures a step with instance norms Adam")
def two_pictures() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.InstanceNorm2d(24, affine=True), nn.ReLU(),
        nn.Conv2d(24, 32, 3, 2, 1), nn.InstanceNorm2d(32, affine=True), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(32, 1, 3, padding=1),
    )  # fmt: skip
    batches = images(2, 16, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return F.binary_cross_entropy_with_logits(model(x + torch.randn_like(x)), (x > 0.3).float())

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("columns of very different sizes behind a BatchNorm SGD")
def sizes() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.BatchNorm1d(8), dense(8, 64, 64, 1, act=nn.ReLU))
    batches, scale = function(128), 10.0 ** torch.arange(-3, 5)

    def large(number: int) -> tuple[Tensor, Tensor]:
        x, y = batches(number)
        return (x + 3) * scale, y

    return model, supervised(model, sgd(model, 0.05), large, F.mse_loss)


@healthy("cut and pasted pictures through pyramids of squeezed channels SGD")
def pasted() -> tuple[nn.Module, Step]:
    class Squeezed(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                conv(inputs, 2 * inputs, size=1), conv(2 * inputs, 2 * inputs, stride),
                nn.Conv2d(2 * inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
            )  # fmt: skip
            self.ask = nn.Sequential(nn.Linear(outputs, 4), nn.SiLU(), nn.Linear(4, outputs))
            self.same = stride == 1 and inputs == outputs

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)
            h = h * self.ask(h.mean((2, 3))).sigmoid()[..., None, None]
            return x + h if self.same else h

    plan = [(16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 32, 1)]
    model = nn.Sequential(conv(1, 16), *(Squeezed(*row) for row in plan), nn.AdaptiveAvgPool2d(1))
    model += nn.Sequential(nn.Flatten(), nn.Linear(32, 10))
    batches = images(64, 16, 1)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        other, size = torch.randperm(len(x)), int(torch.randint(2, 8, ()))
        top, left = torch.randint(16 - size, (2,)).tolist()
        x = x.clone()
        x[:, :, top : top + size, left : left + size] = x[
            other, :, top : top + size, left : left + size
        ]
        share, out = size**2 / 256, model(x)
        return (1 - share) * F.cross_entropy(out, y) + share * F.cross_entropy(out, y[other])

    return model, by_loss(sgd(model, 0.05), loss_of)


@healthy("early exits, each taught by the last SGD")
def exits() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "parts": nn.ModuleList([dense(64, 64), dense(64, 64), dense(64, 64)]),
            "exits": nn.ModuleList(nn.Linear(64, 10) for _ in range(3)),
        }
    )
    optimizer, batches = sgd(model, 0.05), digits()

    def step(number: int) -> Scalars:
        x, y = batches(number)
        outs = []
        for part, leave in zip(model["parts"], model["exits"], strict=True):
            x = F.relu(part(x))
            outs.append(leave(x))
        own = F.cross_entropy(outs[-1], y)
        told = outs[-1].detach().softmax(1)
        early = sum(F.cross_entropy(o, y) + F.cross_entropy(o, told) for o in outs[:-1]) / 4
        optimizer.zero_grad()
        loss = own + early
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach(), "last_exit": own.detach()}

    return model, step
