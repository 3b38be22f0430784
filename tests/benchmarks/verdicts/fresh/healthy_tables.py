"""Tables, users and things; several tasks, experts, weights made by another net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, function, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Step, healthy
from .healthy_nets import Attention, dense


def rows_of(number: int, batch: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """Return categories, (batch, 4), numbers, (batch, 4), and whether somebody clicked."""
    source = seeded(number)
    kinds = torch.randint(20, (batch, 4), generator=source)
    numbers = torch.randn(batch, 4, generator=source)
    taste = torch.randn(4, 20, generator=seeded(3))
    score = taste[torch.arange(4), kinds].sum(1) + numbers[:, 0] * taste[0][kinds[:, 1]]
    return kinds, numbers, (score + numbers[:, 1] > 0).float()


@healthy("tokens of columns that attend to each other AdamW")
def columns() -> tuple[nn.Module, Step]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.see, self.up, self.down = Attention(32), nn.Linear(32, 96), nn.Linear(48, 32)
            self.drop = nn.Dropout(0.1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.drop(self.see(self.norm1(x)))
            value, gate = self.up(self.norm2(x)).chunk(2, -1)
            return x + self.drop(self.down(value * F.relu(gate)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kinds = nn.Embedding(80, 32)
            self.numbers, self.shift = (
                nn.Parameter(torch.randn(4, 32)),
                nn.Parameter(torch.zeros(4, 32)),
            )
            self.first = nn.Parameter(torch.randn(1, 1, 32))
            self.body, self.norm = nn.Sequential(*(Block() for _ in range(3))), nn.LayerNorm(32)
            self.head = nn.Linear(32, 1)

        def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
            told = self.kinds(kinds + 20 * torch.arange(4))
            x = torch.cat([told, numbers[..., None] * self.numbers + self.shift], 1)
            x = self.body(torch.cat([self.first.expand(len(x), -1, -1), x], 1))
            return self.head(F.relu(self.norm(x[:, 0])))[:, 0]

    model = Net()

    def loss_of(number: int) -> Tensor:
        kinds, numbers, y = rows_of(number)
        return F.binary_cross_entropy_with_logits(model(kinds, numbers), y)

    return model, by_loss(adamw(model, 3e-3), loss_of)


@healthy("columns chosen step by step by a sparse mask Adam")
def chosen() -> tuple[nn.Module, Step]:
    def sparsemax(x: Tensor) -> Tensor:
        top, _ = x.sort(dim=1, descending=True)
        place = torch.arange(1, x.shape[1] + 1)
        many = ((1 + place * top) > top.cumsum(1)).sum(1, keepdim=True)
        return F.relu(x - (top.cumsum(1).gather(1, many - 1) - 1) / many)

    class Glu(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(inputs, 48, bias=False), nn.BatchNorm1d(48)

        def forward(self, x: Tensor) -> Tensor:
            return F.glu(self.norm(self.linear(x)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.shared = nn.BatchNorm1d(64), Glu(64)
            self.own = nn.ModuleList(Glu(24) for _ in range(4))
            self.ask = nn.ModuleList(nn.Linear(12, 64, bias=False) for _ in range(3))
            self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(3))
            self.head = nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            x, left, told = self.norm(x), torch.ones(()), torch.zeros(())
            h = self.own[0](self.shared(x))
            for place, (ask, norm) in enumerate(zip(self.ask, self.norms, strict=True), 1):
                mask = sparsemax(norm(ask(h[:, 12:])) * left)
                left = left * (1.3 - mask)
                seen = self.shared(mask * x)
                h = (self.own[place](seen) + seen) * 0.5**0.5
                told = told + F.relu(h[:, :12])
            return self.head(told)

    model = Net()
    return model, supervised(model, adam(model, 1e-2), digits(128))


@healthy("soft trees that ask in layers Adam")
def trees() -> tuple[nn.Module, Step]:
    class Trees(nn.Module):
        def __init__(self, inputs: int, trees: int = 24, depth: int = 4) -> None:
            super().__init__()
            self.ask = nn.Parameter(torch.randn(trees * depth, inputs))
            self.cut = nn.Parameter(torch.randn(trees, depth) / 4)
            self.leaf = nn.Parameter(torch.randn(trees, 2**depth) / 2)
            bits = torch.arange(2**depth)[:, None] >> torch.arange(depth) & 1
            self.register_buffer("bits", bits.bool())

        def forward(self, x: Tensor) -> Tensor:
            seen = (x @ self.ask.softmax(1).T).view(len(x), *self.cut.shape)
            right = (2 * (seen - self.cut)).sigmoid()
            share = torch.where(self.bits, right[:, :, None], 1 - right[:, :, None]).prod(-1)
            return (share * self.leaf).sum(-1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Trees(64), Trees(64 + 24)
            self.head = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.head(torch.cat([h, self.second(torch.cat([x, h], 1))], 1))

    model = Net()
    return model, supervised(model, adam(model, 1e-2), digits(128))


@healthy("clicks from products of embeddings SGD and sparse Adam")
def clicks() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(20, 12, sparse=True) for _ in range(4))
            for table in self.tables:
                nn.init.uniform_(table.weight, -0.22, 0.22)
            self.bottom, self.top = dense(4, 32, 12), dense(12 + 10, 48, 24, 1)

        def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
            x = F.relu(self.bottom(numbers))
            told = [table(kinds[:, place]) for place, table in enumerate(self.tables)]
            both = torch.stack([x, *told], 1)
            one, two = torch.triu_indices(5, 5, 1)
            pairs = (both @ both.mT)[:, one, two]
            return self.top(torch.cat([x, pairs], 1))[:, 0]

    model = Net()
    rest = nn.ModuleList([model.bottom, model.top])
    slow = sgd(rest, 0.1)
    sparse = torch.optim.SparseAdam(model.tables.parameters(), lr=2e-2)

    def step(number: int) -> Tensor:
        kinds, numbers, y = rows_of(number)
        slow.zero_grad()
        sparse.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(kinds, numbers), y)
        loss.backward()
        slow.step()
        sparse.step()
        return loss.detach()

    return model, step


@healthy("factorisation machine beside a deep net Adam")
def machine() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.pair = nn.Embedding(80, 1), nn.Embedding(80, 8)
            nn.init.normal_(self.one.weight, std=0.01)
            nn.init.normal_(self.pair.weight, std=0.1)
            self.deep, self.linear = dense(36, 64, 64, 1), nn.Linear(4, 1)

        def forward(self, kinds: Tensor, numbers: Tensor) -> Tensor:
            kinds = kinds + 20 * torch.arange(4)
            v = self.pair(kinds)
            pairs = (v.sum(1).square() - v.square().sum(1)).sum(1, keepdim=True) / 2
            deep = self.deep(torch.cat([v.flatten(1), numbers], 1))
            return (self.one(kinds).sum(1) + self.linear(numbers) + pairs + deep)[:, 0]

    model = Net()

    def loss_of(number: int) -> Tensor:
        kinds, numbers, y = rows_of(number, 256)
        return F.binary_cross_entropy_with_logits(model(kinds, numbers), y)

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("next thing that a user takes, by attention to those before Adam")
def next_thing() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.things, self.places = nn.Embedding(101, 32, padding_idx=0), nn.Embedding(12, 32)
            self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(5))
            self.sees = nn.ModuleList(Attention(32, 2) for _ in range(2))
            self.bodies = nn.ModuleList(dense(32, 32, 32) for _ in range(2))
            self.drop = nn.Dropout(0.2)
            for table in (self.things, self.places):
                nn.init.normal_(table.weight, std=0.05)

        def forward(self, x: Tensor) -> Tensor:
            h = self.drop(self.things(x) * 32**0.5 + self.places.weight)
            for place, (see, body) in enumerate(zip(self.sees, self.bodies, strict=True)):
                h = h + self.drop(see(self.norms[2 * place](h), causal=True))
                h = h + self.drop(body(self.norms[2 * place + 1](h)))
            return self.norms[4](h)

    model = Net()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        x = torch.randint(100, (64, 1), generator=source) + 7 * torch.arange(13)
        x = (x + (torch.rand(64, 13, generator=source) < 0.1).long()) % 100 + 1
        h, other = model(x[:, :-1]), torch.randint(1, 101, (64, 12), generator=source)
        good, bad = ((h * model.things(to)).sum(-1) for to in (x[:, 1:], other))
        return F.softplus(-good).mean() + F.softplus(bad).mean()

    return model, by_loss(torch.optim.Adam(model.parameters(), 5e-3, betas=(0.9, 0.98)), loss_of)


@healthy("three tasks that share experts by gates of their own Adam")
def shared_experts() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(dense(64, 48, 32) for _ in range(5))
            self.gates = nn.ModuleList(nn.Linear(64, 5) for _ in range(3))
            self.towers = nn.ModuleList(dense(32, 24, n) for n in (10, 1, 1))
            self.doubt = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> list[Tensor]:
            told = torch.stack([F.relu(expert(x)) for expert in self.experts], 1)
            return [
                tower((gate(x).softmax(1)[..., None] * told).sum(1))
                for gate, tower in zip(self.gates, self.towers, strict=True)
            ]

    model, batches = Net(), digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        kind, odd, large = model(x)
        losses = torch.stack([
            F.cross_entropy(kind, y),
            F.binary_cross_entropy_with_logits(odd[:, 0], (y % 2).float()),
            F.mse_loss(large[:, 0], y / 5 - 1),
        ])  # fmt: skip
        return ((-model.doubt).exp() * losses + model.doubt / 2).sum()

    return model, by_loss(adam(model, 2e-3), loss_of)


@healthy("one expert of four for each token, with a limit AdamW")
def one_expert() -> tuple[nn.Module, Step]:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.gate = nn.LayerNorm(48), nn.Linear(48, 4, bias=False)
            self.experts = nn.ModuleList(dense(48, 96, 48) for _ in range(4))
            self.balance = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            chances = self.gate(h * (1 + 0.02 * torch.rand_like(h))).softmax(1)
            sure, which = chances.max(1)
            share = F.one_hot(which, 4).float().mean(0)
            self.balance = 4 * (share * chances.mean(0)).sum()
            out = torch.zeros_like(x)
            for place, expert in enumerate(self.experts):
                own = (which == place).nonzero()[: len(x) // 2, 0]
                out = out.index_add(0, own, sure[own, None] * expert(h[own]))
            return x + out

    model = nn.Sequential(
        nn.Linear(64, 48), Switch(), Switch(), nn.LayerNorm(48), nn.Linear(48, 10)
    )
    batches = digits(128)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        own = F.cross_entropy(model(x), y)
        return own + 0.01 * (model[1].balance + model[2].balance)

    return model, by_loss(adamw(model, 2e-3), loss_of)


@healthy("weights that another net makes from the task Adam")
def made_weights() -> tuple[nn.Module, Step]:
    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tasks, self.body = nn.Embedding(8, 16), dense(16, 64, 64)
            self.one, self.two = nn.Linear(64, 24 * 3), nn.Linear(64, 25)
            nn.init.normal_(self.one.weight, std=0.05)
            nn.init.normal_(self.two.weight, std=0.02)

        def forward(self, x: Tensor, task: Tensor) -> Tensor:
            told = F.relu(self.body(self.tasks(task)))
            one, two = self.one(told).view(-1, 24, 3), self.two(told)
            h = torch.tanh(x * one[..., 0] * 3 + one[..., 1] + one[..., 2])
            return (h * two[:, :24]).sum(1, keepdim=True) + two[:, 24:]

    model = Hyper()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        task = torch.randint(8, (128,), generator=source)
        x = 2 * torch.rand(128, 1, generator=source) - 1
        return F.mse_loss(model(x, task), torch.sin(2 * x + task[:, None]))

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("a small net for each column, summed, with a penalty AdamW")
def additive() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.columns = nn.ModuleList(dense(1, 24, 24, 1) for _ in range(8))
            self.bias, self.drop = nn.Parameter(torch.zeros(1)), nn.Dropout(0.05)

        def forward(self, x: Tensor) -> Tensor:
            told = [net(x[:, [place]]) for place, net in enumerate(self.columns)]
            return self.drop(torch.cat(told, 1)).sum(1, keepdim=True) + self.bias

    model = Net()
    batches = function(128, target=lambda x: (2 * x[:, :3]).sin().sum(1, True) + x[:, 3:4].abs())
    return model, supervised(model, adamw(model, 5e-3, 0.1), batches, F.mse_loss)
