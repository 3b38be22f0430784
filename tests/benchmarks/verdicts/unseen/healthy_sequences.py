"""Sequences, graphs, physics, control, mixtures."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import CHARACTERS, digits, rows, seeded, text
from ..loops import adam, adamw, by_loss, next_character, sgd, supervised
from ..trainings import Scalars, Step, healthy
from .broken_paths import Mixture
from .nets import Language, of_characters, sines


@healthy("three blocks of characters AdamW")
def characters() -> tuple[nn.Module, Step]:
    model = Language(3)
    return of_characters(model, adamw(model, 3e-3))


@healthy("ten blocks of characters whose branches start small AdamW")
def ten_blocks() -> tuple[nn.Module, Step]:
    model = Language(10, 32)
    for block in model.blocks:
        for layer in (block.out, block.down):
            nn.init.normal_(layer.weight, std=0.02 / 20**0.5)
    return of_characters(model, adamw(model, 3e-3))


@healthy("characters with dropout of .3 Adam")
def dropped() -> tuple[nn.Module, Step]:
    model = Language(2, dropout=0.3)
    return of_characters(model, adam(model, 3e-3))


@healthy("embedding tied to the head AdamW")
def tied() -> tuple[nn.Module, Step]:
    model = Language(2)
    model.head = nn.Linear(48, CHARACTERS, bias=False)
    nn.init.normal_(model.tokens.weight, std=0.1)
    model.head.weight = model.tokens.weight
    return of_characters(model, adamw(model, 3e-3))


@healthy("mixture of eight experts whose gate starts at zero AdamW")
def mixture() -> tuple[nn.Module, Step]:
    class Model(Language):
        def __init__(self) -> None:
            super().__init__(1)
            self.mixture = Mixture()
            nn.init.normal_(self.mixture.gate.weight, std=0.02)
            nn.init.zeros_(self.mixture.gate.bias)

        def forward(self, x: Tensor) -> Tensor:
            h = self.blocks[0](self.tokens(x))
            return self.head(self.norm(h + self.mixture(h)))

    model = Model()
    return of_characters(model, adamw(model, 3e-3))


@healthy("rotated queries and keys and gated layers AdamW")
def rotated() -> tuple[nn.Module, Step]:
    class Rotating(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
            self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
            self.gate, self.up = (nn.Linear(width, 96, bias=False) for _ in range(2))
            self.down = nn.Linear(96, width, bias=False)

        def turn(self, x: Tensor) -> Tensor:
            one, two = x.chunk(2, -1)
            angle = torch.arange(x.shape[1])[:, None] * 100.0 ** -torch.linspace(0, 1, 24)
            return torch.cat(
                [one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos()], -1
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm1(x)
            x = x + self.o(
                F.scaled_dot_product_attention(
                    self.turn(self.q(h)), self.turn(self.k(h)), self.v(h), is_causal=True
                )
            )
            h = self.norm2(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    model = nn.Sequential(nn.Embedding(CHARACTERS, 48), Rotating(), Rotating(), nn.RMSNorm(48))
    model.append(nn.Linear(48, CHARACTERS, bias=False))
    return of_characters(model, adamw(model, 3e-3))


@healthy("translation by a decoder that looks at an encoder Adam")
def translation() -> tuple[nn.Module, Step]:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.place = nn.Embedding(CHARACTERS, 32), nn.Embedding(32, 32)
            self.net = nn.Transformer(32, 4, 2, 2, 64, 0.0, batch_first=True, norm_first=True)
            self.head = nn.Linear(32, CHARACTERS)

        def forward(self, x: Tensor) -> Tensor:
            h = self.words(x) + self.place(torch.arange(x.shape[1]))
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.head(self.net(h.flip(1), h, tgt_mask=mask, tgt_is_causal=True))

    model = Translator()
    return model, supervised(model, adam(model, 3e-3), text(16, 16), next_character)


@healthy("two GRUs of rows with dropout RMSprop")
def grus() -> tuple[nn.Module, Step]:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.GRU(8, 32, 2, batch_first=True, dropout=0.2)
            self.head = nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0].mean(1))

    model = Reader()
    return model, supervised(model, torch.optim.RMSprop(model.parameters(), lr=3e-3), rows())


@healthy("convolutions over time before an LSTM Adam")
def convolved() -> tuple[nn.Module, Step]:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(8, 24, 3, padding=1)
            self.body, self.head = nn.LSTM(24, 32, batch_first=True), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
            return self.head(self.body(h)[0][:, -1])

    model = Reader()
    return model, supervised(model, adam(model, 5e-3), rows())


@healthy("next value of a sine by an LSTM Adam")
def forecast() -> tuple[nn.Module, Step]:
    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.LSTM(1, 24, batch_first=True), nn.Linear(24, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0])

    model = Forecast()

    def loss_of(number: int) -> Tensor:
        wave, _ = sines(number)
        return F.mse_loss(model(wave[:, :-1]), wave[:, 1:])

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("letters of unknown alignment AdamW")
def alignment() -> tuple[nn.Module, Step]:
    class Listener(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.GRU(8, 32, batch_first=True, bidirectional=True)
            self.head = nn.Linear(64, 11)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0]).log_softmax(-1).transpose(0, 1)

    model, batches = Listener(), rows(32)

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        return F.ctc_loss(
            model(x), y[:, None] + 1, torch.full((32,), 8), torch.ones(32, dtype=torch.long)
        )

    return model, by_loss(adamw(model, 5e-3), loss_of)


@healthy("sum of neighbours in a random graph Adam")
def neighbours() -> tuple[nn.Module, Step]:
    class Isomorphism(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(w, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))
                for w in (8, 32, 32)
            )
            self.head = nn.Linear(96, 10)

        def forward(self, x: Tensor) -> Tensor:
            near = torch.eye(8) + torch.diag(torch.ones(7), 1) + torch.diag(torch.ones(7), -1)
            found, batch = [], len(x)
            for layer in self.layers:
                x = layer((near @ x).flatten(0, 1)).view(batch, 8, 32)
                found.append(x.mean(1))
            return self.head(torch.cat(found, 1))

    model = Isomorphism()
    return model, supervised(model, adam(model, 3e-3), rows())


@healthy("energy whose derivatives move a pendulum Adam")
def pendulum() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
    model.append(nn.Linear(48, 1))

    def loss_of(number: int) -> Tensor:
        state = (4 * torch.rand(96, 2, generator=seeded(number)) - 2).requires_grad_()
        (slope,) = torch.autograd.grad(model(state).sum(), state, create_graph=True)
        place, speed = state.detach().unbind(1)
        return F.mse_loss(slope, torch.stack([place.sin(), speed], 1))

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("waves that satisfy Helmholtz's equation AdamW")
def helmholtz() -> tuple[nn.Module, Step]:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x)

    model = nn.Sequential(nn.Linear(1, 40), Sine(), nn.Linear(40, 40), Sine(), nn.Linear(40, 1))

    def loss_of(number: int) -> Tensor:
        x = (3 * torch.rand(96, 1, generator=seeded(number))).requires_grad_()
        y = model(x)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        ends = model(torch.tensor([[0.0], [1.5]]))
        return (second + y).square().mean() + 10 * (
            ends[:, 0] - torch.tensor([0.0, 0.9975])
        ).square().mean()

    return model, by_loss(adamw(model, 5e-3), loss_of)


@healthy("flow of time by Heun's method SGD")
def heun() -> tuple[nn.Module, Step]:
    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.head = nn.Linear(64, 24), nn.Linear(24, 10)
            self.field = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 24))

        def forward(self, x: Tensor) -> Tensor:
            x = self.start(x)
            for _ in range(5):
                slope = self.field(x)
                x = x + 0.1 * (slope + self.field(x + 0.2 * slope))
            return self.head(x)

    model = Flow()
    return model, supervised(model, sgd(model), digits())


@healthy("fixed point of one layer Adam")
def fixed_point() -> tuple[nn.Module, Step]:
    class Equilibrium(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.again = nn.Linear(64, 40), nn.Linear(40, 40, bias=False)
            self.norm, self.head = nn.LayerNorm(40), nn.Linear(40, 10)
            nn.init.normal_(self.again.weight, std=0.05)

        def forward(self, x: Tensor) -> Tensor:
            told = self.into(x)
            with torch.no_grad():
                state = torch.zeros_like(told)
                for _ in range(12):
                    state = torch.tanh(self.again(state) + told)
            state = torch.tanh(self.again(state) + told)
            return self.head(self.norm(state))

    model = Equilibrium()
    return model, supervised(model, adam(model, 2e-3), digits())


@healthy("two critics and an actor AdamW")
def critics() -> tuple[nn.Module, Step]:
    def tower(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, 48), nn.ReLU(), nn.Linear(48, outputs))

    model = nn.ModuleDict({"actor": tower(8, 2), "one": tower(10, 1), "two": tower(10, 1)})
    first = adamw(model["actor"], 3e-3)
    second = adamw(nn.ModuleList([model["one"], model["two"]]), 3e-3)

    def reward(state: Tensor, action: Tensor) -> Tensor:
        return -(action - state[:, :2].tanh()).square().sum(1, keepdim=True)

    def step(number: int) -> Scalars:
        state = torch.randn(64, 8, generator=seeded(number))
        action = model["actor"](state).tanh()
        tried = (action + 0.3 * torch.randn(64, 2, generator=seeded(number + 500))).detach()
        both = torch.cat([state, tried], 1)
        second.zero_grad()
        wanted = reward(state, tried)
        told = F.mse_loss(model["one"](both), wanted) + F.mse_loss(model["two"](both), wanted)
        told.backward()
        second.step()
        first.zero_grad()
        both = torch.cat([state, action], 1)
        own = -torch.min(model["one"](both), model["two"](both)).mean()
        own.backward()
        first.step()
        return {"actor_loss": own.detach(), "critic_loss": told.detach(),
                "progress": -reward(state, action).mean().detach()}  # fmt: skip

    return model, step


@healthy("actions drawn and rewarded SGD")
def rewarded() -> tuple[nn.Module, Step]:
    model, batches = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10)), digits(256)
    optimizer = sgd(model, 0.3)

    def step(number: int) -> Scalars:
        x, y = batches(number)
        chances = torch.distributions.Categorical(logits=model(x))
        action = chances.sample()
        won = (action == y).float()
        optimizer.zero_grad()
        loss = -(chances.log_prob(action) * (won - won.mean())).mean()
        loss.backward()
        optimizer.step()
        return {"policy": loss.detach(), "progress": 1 - won.mean()}

    return model, step


@healthy("steps through a learnt start of few samples Adam")
def meta() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))

    def loss_of(number: int) -> Tensor:
        total = torch.zeros(())
        for task in range(4):
            source = seeded(7 * number + task)
            shift = 2 * torch.rand(1, generator=source)
            x = 4 * torch.rand(20, 1, generator=source) - 2
            y = torch.sin(x + shift)
            weights = dict(model.named_parameters())
            own = F.mse_loss(torch.func.functional_call(model, weights, (x[:10],)), y[:10])
            grads = torch.autograd.grad(own, list(weights.values()), create_graph=True)
            moved = {k: w - 0.05 * g for (k, w), g in zip(weights.items(), grads, strict=True)}
            total = total + F.mse_loss(torch.func.functional_call(model, moved, (x[10:],)), y[10:])
        return total / 4

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("memory of pairs by attention without weights of its own Adam")
def memory() -> tuple[nn.Module, Step]:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
            self.keys, self.values = (nn.Parameter(torch.randn(40, 32) / 6) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.look(x) @ self.keys.T).softmax(1) @ self.values)

    model = Memory()
    return model, supervised(model, adam(model, 1e-2), digits())


@healthy("student that takes a large net's probabilities SGD")
def distilled() -> tuple[nn.Module, Step]:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            self.teacher = nn.Sequential(nn.Linear(64, 200), nn.Tanh(), nn.Linear(200, 10))
            self.teacher[2].weight.data *= 6

    model, batches = Pair(), digits()
    optimizer = sgd(copy.copy(model.student), 0.1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        with torch.no_grad():
            told = model.teacher(x)
        return F.kl_div(
            (model.student(x) / 2).log_softmax(1), (told / 2).softmax(1), reduction="batchmean"
        )

    return model, by_loss(optimizer, loss_of)
