"""Small nets, and what they learn from, that several of these broken trainings share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, Batch, digits, images, seeded, text
from ..loops import by_loss, next_character, supervised
from ..trainings import Step

CUT = "detach|no_grad|argmax|.data|numpy|path|tensor"
"""Words of which one is in a remedy against a path that is cut."""

NOT_FINITE = "exploding"
FAST = "exploding|unstable|dead|saturated|update-speed"
SLOW = "not-updated|update-speed"

Optimizer = torch.optim.Optimizer
Built = tuple[nn.Module, Step]


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, as for phones, of pictures of digits."""

    def __init__(self, blocks: int = 3, act: type[nn.Module] = nn.Hardswish, norm: bool = True):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        parts: list[nn.Module] = []
        for _ in range(blocks):
            parts += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)]
            parts += [nn.BatchNorm2d(16), act()] if norm else [act()]
        self.body, self.head = nn.Sequential(*parts), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).amax((2, 3)))


def of_pictures(model: nn.Module, optimizer: Optimizer) -> Built:
    """Train a classifier of pictures."""
    return model, supervised(model, optimizer, images(32, 12, 1))


class Hourglass(nn.Module):
    """A U-Net of two levels: down, up, and the finer level beside the coarser one."""

    def __init__(self, act: type[nn.Module] = nn.SiLU, last: type[nn.Module] = nn.Identity):
        super().__init__()
        self.inlet, self.down = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, 2, 1)
        self.middle = nn.Conv2d(24, 24, 3, padding=1)
        self.up, self.outlet = nn.ConvTranspose2d(24, 12, 2, 2), nn.Conv2d(24, 1, 3, padding=1)
        self.act, self.last = act(), last()

    def coarse(self, fine: Tensor) -> Tensor:
        return self.act(self.up(self.act(self.middle(self.act(self.down(fine))))))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.act(self.inlet(x))
        return self.last(self.outlet(torch.cat([fine, self.coarse(fine)], 1)))


def noisy(number: int) -> Batch:
    """Return pictures with noise, and without, (32, 1, 12, 12) each."""
    clean, _ = images(32, 12, 1)(number)
    return clean + 0.7 * torch.randn(clean.shape, generator=seeded(number)), clean


def of_noise(model: nn.Module, optimizer: Optimizer) -> Built:
    """Train a net that takes the noise out of pictures."""
    return model, supervised(model, optimizer, noisy, F.mse_loss)


class Messages(nn.Module):
    """Nodes that send messages along edges, which the receivers average, in a few rounds."""

    def __init__(self, rounds: int = 2, width: int = 24, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.inlet, self.head = nn.Linear(8, width), nn.Linear(width, 4)
        self.send = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.keep = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.acts = nn.ModuleList(act() for _ in range(rounds))

    def gathered(self, told: Tensor, edges: Tensor) -> Tensor:
        total = torch.zeros_like(told).index_add(0, edges[1], told[edges[0]])
        return total / edges[1].bincount(minlength=len(told)).clamp(min=1)[:, None]

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        x, edges = graph
        x = self.inlet(x)
        for send, keep, act in zip(self.send, self.keep, self.acts, strict=True):
            x = act(keep(x) + self.gathered(send(x), edges))
        return self.head(x)


def graph(number: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return values of 96 nodes, edges mostly within their classes, and the classes."""
    source = seeded(number)
    kind = torch.randint(4, (96,), generator=source)
    centres = torch.randn(4, 8, generator=seeded(5))
    x = centres[kind] + 1.5 * torch.randn(96, 8, generator=source)
    edges = torch.randint(96, (2, 1200), generator=source)
    alike = kind[edges[0]] == kind[edges[1]]
    return (x, edges[:, alike | (torch.rand(1200, generator=source) < 0.1)]), kind


def of_graphs(model: nn.Module, optimizer: Optimizer) -> Built:
    """Train a classifier of nodes."""
    return model, supervised(model, optimizer, graph)  # type: ignore[arg-type]


class Table(nn.Module):
    """Rows of a table: three columns of codes, embedded, and four of numbers."""

    def __init__(self, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.codes = nn.ModuleList(nn.Embedding(size, 6) for size in (12, 20, 5))
        self.deep = nn.Sequential(nn.Linear(22, 40), act(), nn.Linear(40, 24), act())
        self.head = nn.Linear(24, 1)

    def forward(self, row: tuple[Tensor, Tensor]) -> Tensor:
        codes, numbers = row
        parts = [embed(code) for embed, code in zip(self.codes, codes.unbind(1), strict=True)]
        return self.head(self.deep(torch.cat([*parts, numbers], 1)))[:, 0]


def table(number: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return rows, (64, 3) and (64, 4), and whether each belongs to the first class, (64,)."""
    source = seeded(number)
    codes = torch.stack([torch.randint(n, (64,), generator=source) for n in (12, 20, 5)], 1)
    numbers = torch.randn(64, 4, generator=source)
    worth = torch.randn(12, generator=seeded(3))[codes[:, 0]] + numbers[:, 0] - numbers[:, 1]
    return (codes, numbers), (worth > 0).float()


def of_rows(model: nn.Module, optimizer: Optimizer) -> Built:
    """Train a classifier of rows."""
    loss = F.binary_cross_entropy_with_logits
    return model, supervised(model, optimizer, table, loss)  # type: ignore[arg-type]


class Turner(nn.Module):
    """Reads five signs and writes them in turned order, with attention to what it has read."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.signs, self.written = nn.Embedding(6, width), nn.Embedding(7, width)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.writer = nn.GRU(width, width, batch_first=True)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(2 * width, 6)

    def weights(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        read, state = self.reader(self.signs(x))
        before = torch.cat([torch.full_like(x[:, :1], 6), x.flip(1)[:, :-1]], 1)
        written, _ = self.writer(self.written(before), state)
        logits = self.query(written) @ self.key(read).transpose(1, 2) / written.shape[-1] ** 0.5
        return self.head(torch.cat([written, self.weights(logits) @ read], -1)).flatten(0, 1)


def signs(number: int) -> Batch:
    """Return rows of five signs, (32, 5), and the same turned, (160,)."""
    x = torch.randint(6, (32, 5), generator=seeded(number))
    return x, x.flip(1).flatten()


def of_signs(model: nn.Module, optimizer: Optimizer) -> Built:
    """Train a net that turns sequences."""
    return model, supervised(model, optimizer, signs)


class Finder(nn.Module):
    """Says which digit a picture shows, and where: a backbone with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.GroupNorm(3, 12), nn.ReLU(),
            nn.Conv2d(12, 24, 3, 2, 1), nn.GroupNorm(3, 24), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.kind, self.place = nn.Linear(384, 10), nn.Linear(384, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.backbone(x)
        return self.kind(x), self.place(x)


def scene(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, (32, 1, 16, 16), the digits in them, and where, from 0 to 1, (32, 2)."""
    flat, kind = digits(32, most=256)(number)
    corner = 8 * torch.randint(2, (32, 2), generator=seeded(number))
    x = torch.zeros(32, 1, 16, 16)
    for row, (picture, (top, left)) in enumerate(zip(flat, corner.tolist(), strict=True)):
        x[row, 0, top : top + 8, left : left + 8] = picture.view(8, 8) + 1.2
    return x, kind, corner / 8


def found(model: nn.Module, number: int) -> Tensor:
    """Return the loss of both heads of a `Finder`."""
    x, kind, place = scene(number)
    logits, where = model(x)
    return F.cross_entropy(logits, kind) + F.mse_loss(where, place)


def of_scenes(model: nn.Module, optimizer: Optimizer) -> Built:
    """Train a `Finder`."""
    return model, by_loss(optimizer, lambda number: found(model, number))


class Gated(nn.Module):
    """A dilated causal convolution with a gate, and a shortcut."""

    def __init__(self, width: int, gap: int) -> None:
        super().__init__()
        self.gap, self.both = gap, nn.Conv1d(width, 2 * width, 2, dilation=gap)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        told, gate = self.both(F.pad(x, (self.gap, 0))).chunk(2, 1)
        return x + self.out(told.tanh() * gate.sigmoid())


class Waves(nn.Module):
    """Causal convolutions over characters."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inlet = nn.Embedding(CHARACTERS, width)
        self.body = nn.Sequential(*(Gated(width, gap) for gap in (1, 2, 4)))
        self.head = nn.Conv1d(width, CHARACTERS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.inlet(x).transpose(1, 2))).transpose(1, 2)


def of_characters(model: nn.Module, optimizer: Optimizer) -> Built:
    """Train a model of characters."""
    return model, supervised(model, optimizer, text(16, 24), next_character)


class Mixing(nn.Module):
    """Layers over places, then over channels, each behind a norm and beside a shortcut."""

    def __init__(self, places: int, width: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over = nn.Sequential(nn.Linear(places, 24), act(), nn.Linear(24, places))
        self.within = nn.Sequential(nn.Linear(width, 48), act(), nn.Linear(48, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    """An MLP-Mixer of digits in 16 patches."""

    def __init__(self, blocks: int = 2, width: int = 24, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.Sequential(*(Mixing(16, width, act) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x.view(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def of_digits(model: nn.Module, optimizer: Optimizer) -> Built:
    """Train a classifier of digits, (batch, 64)."""
    return model, supervised(model, optimizer, digits())


class Swish(nn.Module):
    """A block of attention over the rows of a digit and a gated feed-forward, behind RMSNorm."""

    def __init__(self, width: int, scale: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down, self.scale = nn.Linear(2 * width, width), scale or width**-0.5

    def told(self, x: Tensor) -> Tensor:
        logits = self.scale * self.query(x) @ self.key(x).transpose(1, 2)
        return self.out(logits.softmax(-1) @ self.value(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.told(self.norm1(x))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Rows(nn.Module):
    """A transformer of the eight rows of a digit, with a token of the class."""

    def __init__(self, blocks: int = 2, width: int = 32, scale: float = 0.0) -> None:
        super().__init__()
        self.inlet, self.places = nn.Linear(8, width), nn.Embedding(9, width)
        self.blocks = nn.ModuleList(Swish(width, scale) for _ in range(blocks))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.inlet(x.view(-1, 8, 8)), (0, 0, 1, 0)) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])
