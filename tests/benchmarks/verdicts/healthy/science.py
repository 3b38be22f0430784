"""Nets of the sciences: physics, graphs, sets, fields, control."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, seeded
from ..loops import adam, adamw, by_loss, sgd
from ..trainings import Step, healthy


def slope(out: Tensor, x: Tensor) -> Tensor:
    """Return the derivative of each output by its input, to be derived again."""
    return torch.autograd.grad(out.sum(), x, create_graph=True)[0]


@healthy("PINN of an oscillator Adam")
def oscillator() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(),
        nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1),
    )  # fmt: skip

    def loss_of(number: int) -> Tensor:
        time = (torch.rand(64, 1, generator=seeded(number)) * 3).requires_grad_()
        x = model(time)
        speed = slope(x, time)
        zero = torch.zeros(1, 1, requires_grad=True)
        start = model(zero)
        return (
            (slope(speed, time) + x).square().mean()
            + (start - 1).square().mean()
            + slope(start, zero).square().mean()
        )

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("PINN of heat in two dimensions AdamW")
def heat() -> tuple[nn.Module, Step]:
    layers: list[nn.Module] = [nn.Linear(2, 32), nn.Tanh()]
    for _ in range(4):
        layers += [nn.Linear(32, 32), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(32, 1))

    def loss_of(number: int) -> Tensor:
        at = torch.rand(128, 2, generator=seeded(number)).requires_grad_()
        first = slope(model(at), at)
        second = slope(first[:, :1], at)[:, :1]
        place = torch.rand(64, 1, generator=seeded(number + 999))
        begin = model(torch.cat([place, torch.zeros_like(place)], 1))
        wall = model(torch.cat([(place > 0.5).float(), place], 1))
        return (
            (first[:, 1:] - 0.1 * second).square().mean()
            + (begin - (3.14159 * place).sin()).square().mean()
            + wall.square().mean()
        )

    return model, by_loss(adamw(model, 3e-3), loss_of)


@healthy("SIREN of a picture Adam")
def siren() -> tuple[nn.Module, Step]:
    class Sine(nn.Module):
        def __init__(self, inputs: int, first: bool) -> None:
            super().__init__()
            self.linear, self.speed = nn.Linear(inputs, 64), 15.0 if first else 30.0
            bound = 1 / inputs if first else (6 / inputs) ** 0.5 / 30
            nn.init.uniform_(self.linear.weight, -bound, bound)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(self.speed * self.linear(x))

    model = nn.Sequential(Sine(2, True), Sine(64, False), Sine(64, False), nn.Linear(64, 1))
    picture = digits(1)(5)[0].view(1, 1, 8, 8)
    picture = F.interpolate(picture, size=(32, 32), mode="bicubic").flatten()

    def loss_of(number: int) -> Tensor:
        place = torch.randint(1024, (256,), generator=seeded(number))
        at = torch.stack([place // 32, place % 32], 1) / 16 - 1
        return F.mse_loss(model(at)[:, 0], picture[place])

    return model, by_loss(adam(model, 3e-4), loss_of)


@healthy("neural field of Fourier features SGD")
def fourier() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    waves = torch.randn(2, 32, generator=seeded(0)) * 3

    def loss_of(number: int) -> Tensor:
        at = torch.rand(256, 2, generator=seeded(number))
        seen = torch.cat([(at @ waves).sin(), (at @ waves).cos()], 1)
        return F.mse_loss(model(seen)[:, 0], (6 * at[:, 0]).sin() * (4 * at[:, 1]).cos())

    return model, by_loss(sgd(model, 0.05), loss_of)


@healthy("neural ODE by Euler's method Adam")
def ode() -> tuple[nn.Module, Step]:
    model = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 2))
    turn = torch.tensor([[-0.1, 1.0], [-1.0, -0.1]])

    def loss_of(number: int) -> Tensor:
        x = torch.randn(64, 2, generator=seeded(number))
        truth, loss = x, torch.zeros(())
        for _ in range(15):
            x = x + 0.1 * model(x)
            truth = truth + 0.1 * truth @ turn
            loss = loss + F.mse_loss(x, truth)
        return loss / 15

    return model, by_loss(adam(model, 5e-3), loss_of)


@healthy("DeepONet AdamW")
def deeponet() -> tuple[nn.Module, Step]:
    def net(inputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 24)
        )

    model = nn.ModuleDict({"branch": net(20), "trunk": net(1)})
    grid = torch.linspace(0, 1, 20)

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        height, phase = (torch.rand(64, 1, generator=source) for _ in range(2))
        at = torch.rand(64, 1, generator=source)
        shape = height * (3 * grid + 3 * phase).sin()
        integral = height / 3 * ((3 * phase).cos() - (3 * at + 3 * phase).cos())
        return F.mse_loss((model["branch"](shape) * model["trunk"](at)).sum(1, True), integral)

    return model, by_loss(adamw(model, 3e-3), loss_of)


def club(number: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a graph of two communities: adjacency, features and the community of each node."""
    source = seeded(number)
    side = torch.arange(60) % 2
    chance = torch.where(side[:, None] == side, 0.25, 0.03)
    edges = (torch.rand(60, 60, generator=source) < chance).float().triu(1)
    return edges + edges.T + torch.eye(60), torch.randn(60, 16, generator=source), side


@healthy("graph convolutions Adam")
def gcn() -> tuple[nn.Module, Step]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = (
                nn.Linear(16, 32),
                nn.Linear(32, 32),
                nn.Linear(32, 2),
            )

        def forward(self, edges: Tensor, x: Tensor) -> Tensor:
            degree = edges.sum(1).rsqrt()
            edges = degree[:, None] * edges * degree
            for layer in (self.first, self.second):
                x = F.relu(edges @ layer(x))
            return self.head(edges @ x)

    model, (edges, x, side) = Model(), club()
    return model, by_loss(adam(model, 1e-2), lambda _: F.cross_entropy(model(edges, x), side))


@healthy("graph attention SGD")
def gat() -> tuple[nn.Module, Step]:
    class Layer(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.value = nn.Linear(inputs, 32)
            self.source, self.target = nn.Linear(32, 1), nn.Linear(32, 1)

        def forward(self, edges: Tensor, x: Tensor) -> Tensor:
            value = self.value(x)
            logits = F.leaky_relu(self.source(value) + self.target(value).T, 0.2)
            share = logits.masked_fill(edges == 0, -torch.inf).softmax(-1)
            return F.elu(share @ value)

    model = nn.ModuleList([Layer(16), Layer(32), nn.Linear(32, 2)])
    edges, x, side = club(1)

    def loss_of(_: int) -> Tensor:
        return F.cross_entropy(model[2](model[1](edges, model[0](edges, x))), side)

    return model, by_loss(sgd(model, 0.1), loss_of)


@healthy("message passing with a GRU AdamW")
def messages() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "start": nn.Linear(16, 32),
            "message": nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32)),
            "node": nn.GRUCell(32, 32),
            "head": nn.Linear(32, 2),
        }
    )
    edges, x, side = club(2)
    source, target = edges.nonzero().T

    def loss_of(_: int) -> Tensor:
        state = model["start"](x)
        for _ in range(4):
            sent = model["message"](torch.cat([state[source], state[target]], 1))
            state = model["node"](torch.zeros_like(state).index_add(0, target, sent), state)
        return F.cross_entropy(model["head"](state), side)

    return model, by_loss(adamw(model, 1e-3), loss_of)


@healthy("deep sets Adam")
def deep_sets() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "each": nn.Sequential(nn.Linear(2, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU()),
            "all": nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1)),
        }
    )

    def loss_of(number: int) -> Tensor:
        x = torch.randn(64, 12, 2, generator=seeded(number))
        spread = x.std(1).sum(1, keepdim=True)
        return F.mse_loss(model["all"](model["each"](x).mean(1)), spread)

    return model, by_loss(adam(model, 3e-3), loss_of)


@healthy("PointNet SGD")
def pointnet() -> tuple[nn.Module, Step]:
    model = nn.Sequential(
        nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2),
    )  # fmt: skip

    def loss_of(number: int) -> Tensor:
        x = torch.randn(32, 3, 64, generator=seeded(number))
        kind = torch.arange(32) % 2
        ball = x / x.norm(dim=1, keepdim=True)
        box = x / x.abs().amax(1, keepdim=True)
        return F.cross_entropy(model(torch.where(kind[:, None, None] == 0, ball, box)), kind)

    return model, by_loss(sgd(model, 0.05), loss_of)


@healthy("actor and critic Adam")
def actor_critic() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "body": nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()),
            "actor": nn.Linear(64, 4),
            "critic": nn.Linear(64, 1),
        }
    )

    def loss_of(number: int) -> Tensor:
        state = torch.randn(256, 4, generator=seeded(number))
        hidden = model["body"](state)
        chance = torch.distributions.Categorical(logits=model["actor"](hidden))
        action = chance.sample()
        reward = (action == state.argmax(-1)).float()
        value = model["critic"](hidden)[:, 0]
        gain = (reward - value).detach()
        loss = -(chance.log_prob(action) * gain).mean() + 0.5 * F.mse_loss(value, reward)
        missed[0] = 1 - float(reward.mean())
        return loss - 0.01 * chance.entropy().mean()

    missed = [1.0]
    train = by_loss(adam(model, 3e-3), loss_of, clip=0.5)
    return model, lambda number: {"loss": train(number), "progress": missed[0]}


@healthy("Q-learning with a target network Adam")
def q_learning() -> tuple[nn.Module, Step]:
    def net() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
        )

    model = nn.ModuleDict({"online": net(), "target": net().requires_grad_(False)})

    def loss_of(number: int) -> Tensor:
        with torch.no_grad():
            for old, new in zip(*(part.parameters() for part in model.values()), strict=True):
                new.lerp_(old, 0.05)
        source = seeded(number)
        state = torch.randn(128, 4, generator=source)
        action = torch.randint(3, (128, 1), generator=source)
        reward = (state[:, :3].gather(1, action) > 0).float()[:, 0]
        after = state.roll(1, 1)
        with torch.no_grad():
            target = reward + 0.5 * model["target"](after).max(-1).values
        return F.smooth_l1_loss(model["online"](state).gather(1, action)[:, 0], target)

    return model, by_loss(adam(model["online"], 3e-3), loss_of)
