"""Views made alike, teachers, frozen bodies, experts, and dense nets of several makes."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..data import Batch, digits, function, images
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy


def encoder(width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in [(1, 16, 1), (16, 32, 2), (32, 64, 2)]:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, width))


def views(number: int, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Return two shifted, dimmed and noisy views of digits, (batch, 1, 12, 12)."""
    x, _ = images(batch, 14, 1, most=1797)(number)
    seen = []
    for _ in range(2):
        top, left = torch.randint(3, (2,)).tolist()
        cut = x[:, :, top : top + 12, left : left + 12]
        bright = 0.6 + 0.8 * torch.rand(batch, 1, 1, 1)
        seen.append(cut * bright + 0.3 * torch.randn_like(cut))
    return seen[0], seen[1]


@healthy("two views found among a hundred others, head of two layers, heat .5 AdamW")
def contrasted() -> tuple[nn.Module, Step]:
    head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    model = nn.Sequential(encoder(), nn.ReLU(), head)

    def loss_of(number: int) -> Tensor:
        z = F.normalize(model(torch.cat(views(number))), dim=1)
        near = z @ z.T / 0.5
        near.fill_diagonal_(-1e9)
        many = len(z) // 2
        return F.cross_entropy(near, torch.arange(2 * many).roll(many))

    return model, by_loss(adamw(model, 2e-3, 1e-4), loss_of)


@healthy("one view guesses the other's code in a slow net, both ways SGD")
def slow_net() -> tuple[nn.Module, Step]:
    def layers(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.ReLU(True), nn.Linear(128, outputs)
        )

    online, guess = nn.Sequential(encoder(), layers(64, 32)), layers(32, 32)
    slow = copy.deepcopy(online).requires_grad_(False)
    model = nn.ModuleDict({"online": online, "guess": guess, "slow": slow})
    optimizer = torch.optim.SGD(
        [*online.parameters(), *guess.parameters()], lr=0.05, momentum=0.9, weight_decay=1e-4
    )

    def step(number: int) -> Tensor:
        one, two = views(number)
        with torch.no_grad():
            wanted = slow(one), slow(two)
        told = guess(online(two)), guess(online(one))
        loss = 2 - 2 * (
            F.cosine_similarity(told[0], wanted[0]).mean() / 2
            + F.cosine_similarity(told[1], wanted[1]).mean() / 2
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(slow.parameters(), online.parameters(), strict=True):
                old.lerp_(new, 0.02)
        return loss.detach()

    return model, step


@healthy("all of a class drawn together, the others pushed apart Adam")
def drawn_together() -> tuple[nn.Module, Step]:
    model, batches = encoder(32), images(64, 12, 1, most=1797)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        z = F.normalize(model(x), dim=1)
        near = z @ z.T / 0.1
        own = torch.eye(len(y), dtype=torch.bool)
        same = (y[:, None] == y) & ~own
        share = near - near.masked_fill(own, -1e9).logsumexp(1, keepdim=True)
        return -((share * same).sum(1) / same.sum(1).clamp_min(1)).mean()

    return model, by_loss(adam(model), loss_of)


@healthy("hardest of each batch with a margin of .3 Adam")
def hardest() -> tuple[nn.Module, Step]:
    model, batches = encoder(32), images(64, 12, 1, most=1797)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        z = F.normalize(model(x), dim=1)
        far = (2 - 2 * z @ z.T).clamp_min(1e-12).sqrt()
        same = y[:, None] == y
        worst = (far * same).amax(1)
        closest = far.masked_fill(same, 10.0).amin(1)
        return F.relu(worst - closest + 0.3).mean()

    return model, by_loss(adam(model), loss_of)


def taught(model: nn.Module, many: int = 60, classes: int = 10) -> nn.Module:
    """Return a net that has been trained for a while."""
    optimizer, batches = adam(model, 2e-3), images(64, 12, 1, most=1797)
    for number in range(many):
        x, y = batches(number)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y % classes).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


@healthy("a small student at a heat of four beside true labels SGD")
def student() -> tuple[nn.Module, Step]:
    teacher = taught(encoder(10)).eval().requires_grad_(False)
    small = nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 10),
    )  # fmt: skip
    model, batches = nn.ModuleDict({"teacher": teacher, "student": small}), images(64, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        with torch.no_grad():
            wanted = (teacher(x) / 4).softmax(1)
        told = small(x)
        soft = F.kl_div((told / 4).log_softmax(1), wanted, reduction="batchmean") * 16
        return 0.7 * soft + 0.3 * F.cross_entropy(told, y)

    return model, by_loss(sgd(small, 0.02), loss_of)


@healthy("frozen body whose norms stay as they are, new head of two layers Adam")
def frozen() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = taught(encoder(10), classes=2)[:-1]
            self.body.requires_grad_(False)
            self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2))
            self.head.append(nn.Linear(64, 10))
            self.train()

        def train(self, mode: bool = True) -> Net:
            super().train(mode)
            self.body.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.body(x)
            return self.head(h)

    model = Net()
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-3)
    return model, supervised(model, optimizer, images(64, 12, 1, most=1797))


@healthy("matrices of rank four beside frozen queries and values AdamW")
def low_rank() -> tuple[nn.Module, Step]:
    class Low(nn.Module):
        def __init__(self, base: nn.Linear, rank: int = 4) -> None:
            super().__init__()
            self.base, self.drop = base.requires_grad_(False), nn.Dropout(0.05)
            self.a = nn.Linear(base.in_features, rank, bias=False)
            self.b = nn.Linear(rank, base.out_features, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 8 / 4 * self.b(self.a(self.drop(x)))

    class Block(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
            self.mlp = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm1(x)
            q, k, v = (
                f(h).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            told = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + self.o(told)
            return x + self.mlp(self.norm2(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.places = nn.Conv2d(1, 48, 3, 3), nn.Parameter(torch.zeros(16, 48))
            self.blocks = nn.Sequential(*(Block() for _ in range(3)))
            self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.blocks(self.patch(x).flatten(2).transpose(1, 2) + self.places)
            return self.head(self.norm(h.mean(1)))

    model = taught(Net(), 100, 5)
    model.requires_grad_(False)
    for block in model.blocks:  # type: ignore[union-attr]
        block.q, block.v = Low(block.q), Low(block.v)
    model.head = nn.Linear(48, 10)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    return model, supervised(model, optimizer, images(64, 12, 1, most=1797))


@healthy("two of six experts by a noisy gate with a fair share asked for AdamW")
def experts() -> tuple[nn.Module, Step]:
    class Mixture(nn.Module):
        def __init__(self, width: int, many: int = 6) -> None:
            super().__init__()
            self.gate, self.noise = nn.Linear(width, many), nn.Linear(width, many)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
                for _ in range(many)
            )
            self.unfair: Tensor | float = 0.0

        def forward(self, x: Tensor) -> Tensor:
            rate = self.gate(x) + torch.randn(len(x), 6) * F.softplus(self.noise(x)) / 6
            top, which = rate.topk(2, 1)
            share = torch.zeros_like(rate).scatter(1, which, top.softmax(1))
            out = torch.zeros_like(x)
            for place, expert in enumerate(self.experts):
                some = (which == place).any(1).nonzero()[:, 0]
                out = out.index_add(0, some, share[some, place, None] * expert(x[some]))
            load = share.mean(0)
            self.unfair = load.var() / load.mean().square()
            return x + out

    model = nn.Sequential(
        nn.Linear(64, 48), nn.LayerNorm(48), Mixture(48), nn.LayerNorm(48), Mixture(48),
        nn.LayerNorm(48), nn.Linear(48, 10),
    )  # fmt: skip
    batches = digits(128)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        return F.cross_entropy(model(x), y) + 0.01 * (model[2].unfair + model[4].unfair)

    return model, by_loss(adamw(model, 2e-3), loss_of)


@healthy("very wide layer with weight norm, one step of all digits Nesterov")
def very_wide() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(64, 2048)), nn.ReLU(), nn.Dropout(0.5),
        parametrizations.weight_norm(nn.Linear(2048, 10)),
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    return model, supervised(model, optimizer, digits(1024))


@healthy("ninety-six residual layers whose branches grow from zero Adam")
def from_zero() -> tuple[nn.Module, Step]:
    class Grown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.alpha = nn.Linear(64, 64), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.alpha * F.mish(self.linear(x))

    model = nn.Sequential(nn.Linear(64, 64), *(Grown() for _ in range(96)), nn.Linear(64, 10))
    return model, supervised(model, adam(model), digits(64))


@healthy("convolutions without norms, each branch times a number that starts at zero Adam")
def norm_free() -> tuple[nn.Module, Step]:
    class Free(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
            self.scale = nn.Parameter(torch.zeros(1))
            for conv in (self.conv1, self.conv2):
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.conv2(F.relu(self.conv1(F.relu(x))))

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), *(Free(16) for _ in range(3)), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), *(Free(32) for _ in range(3)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return model, supervised(model, adam(model, 2e-3), images(32, 12, 1, most=1797))


@healthy("largest of four linear pieces in each unit, half dropped SGD")
def pieces() -> tuple[nn.Module, Step]:
    class Maxout(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).unflatten(1, (-1, 4)).amax(-1)

    model = nn.Sequential(nn.Dropout(0.2), Maxout(64, 512), nn.Dropout(0.5), Maxout(128, 512))
    model.extend([nn.Dropout(0.5), nn.Linear(128, 10)])
    return model, supervised(model, sgd(model, 0.02), digits(64))


@healthy("self-normalising regression of eight layers SGD")
def self_normalising() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = []
    for inputs, outputs in [(8, 64), *[(64, 64)] * 6, (64, 1)]:
        layers += [nn.Linear(inputs, outputs), nn.SELU()]
        nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="linear")  # type: ignore[arg-type]
        nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
    model = nn.Sequential(*layers[:-1])
    return model, supervised(model, sgd(model, 2e-3), function(128), F.smooth_l1_loss)


@healthy("mixed digits through PReLU and BatchNorm, weights averaged at the end SGD")
def averaged() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 128, bias=False), nn.BatchNorm1d(128), nn.PReLU(),
        nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128), nn.PReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    mean, batches = torch.optim.swa_utils.AveragedModel(model), digits(128)
    optimizer = sgd(model, 0.1)

    def mixed(number: int) -> Batch:
        x, y = batches(number)
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        order = torch.randperm(len(x))
        hot = F.one_hot(y, 10).float()
        return share * x + (1 - share) * x[order], share * hot + (1 - share) * hot[order]

    train = supervised(model, optimizer, mixed)

    def step(number: int) -> object:
        loss = train(number)
        if number >= 60:
            mean.update_parameters(model)
        return loss

    return model, step  # type: ignore[return-value]
