"""Nets that train against, beside or upon each other: GANs, experts, self-supervision."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, seeded
from ..healthy.habits import switch
from ..loops import adam, by_loss, sgd
from ..trainings import Scalars, Step, broken


def gan(generator: nn.Module, discriminator: nn.Module, rates: tuple[float, float], rounds: int):
    """Train a GAN on the digits, the discriminator `rounds` times for each step of the other."""
    model = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    first = torch.optim.Adam(generator.parameters(), lr=rates[0], betas=(0.5, 0.99))
    second = torch.optim.Adam(discriminator.parameters(), lr=rates[1], betas=(0.5, 0.99))
    batches = digits()

    def step(number: int) -> Scalars:
        for again in range(rounds):
            real, _ = batches(number * rounds + again)
            with torch.no_grad():
                made = generator(torch.randn(len(real), 16))
            second.zero_grad()
            loss = score(discriminator(real), 1) + score(discriminator(made), 0)
            loss.backward()
            second.step()
        first.zero_grad()
        own = torch.log1p(-discriminator(generator(torch.randn(64, 16))).sigmoid() + 1e-7).mean()
        own.backward()
        first.step()
        return {"generator_loss": own.detach(), "discriminator_loss": loss.detach()}

    return model, step


def score(logits: Tensor, truth: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


def makers() -> tuple[nn.Module, nn.Module]:
    generator = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
    )
    discriminator = nn.Sequential(
        nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2),
        nn.Linear(128, 1),
    )  # fmt: skip
    return generator, discriminator


STARVED = "starved|vanishing|discriminator"
BALANCE = "discriminator|balance|non-saturating|learning rate"


@broken(
    "GAN whose discriminator wins and starves the generator Adam",
    "generator starved",
    STARVED,
    layer="generator.0",
    remedy=BALANCE,
    seen=30,
    information=True,
)
def starved() -> tuple[nn.Module, Step]:
    return gan(*makers(), (1e-4, 3e-3), 5)


@broken(
    "GAN whose discriminator is far too fast Adam",
    "discriminator too strong",
    STARVED + "|saturated|exploding|unstable",
    remedy=BALANCE,
    seen=30,
    information=True,
)
def strong() -> tuple[nn.Module, Step]:
    return gan(*makers(), (2e-4, 3e-2), 2)


class Experts(nn.Module):
    """A router that gives each sample to its best expert."""

    def __init__(self, biased: float) -> None:
        super().__init__()
        self.start = nn.Linear(64, 48)
        self.router = nn.Linear(48, 6)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48)) for _ in range(6)
        )
        self.head = nn.Linear(48, 10)
        self.router.bias.data[:2] = biased

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.start(x))
        best, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            if mine.any():
                out = out.index_put((mine,), best[mine, None] * expert(x[mine]))
        return self.head(x + out)


@broken(
    "four of six experts without a sample Adam",
    "dead experts",
    "disconnected|experts|starved|unused|dead",
    layer="experts.2.0|experts.3.0|experts.4.0|experts.5.0|experts.2|experts.3",
    remedy="balanc|router|expert",
    seen=8,
    information=True,
)
def experts() -> tuple[nn.Module, Step]:
    model = Experts(8.0)
    batches = digits()
    return model, by_loss(
        adam(model), lambda n: F.cross_entropy(model(batches(n)[0]), batches(n)[1])
    )


class Crowded(Experts):
    """The same, but that each expert gets one sample of each batch."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.start(x))
        weights = self.router(x).softmax(-1)
        chosen = weights.argmax(-1)
        chosen[: len(self.experts)] = torch.arange(len(self.experts))
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            out = out.index_put((mine,), weights[mine, number, None] * expert(x[mine]))
        return self.head(x + out)


@broken(
    "router that sends nearly all samples to one expert Adam",
    "collapsed router",
    "experts|collapsed",
    layer="experts.2.0|experts.3.0|experts.4.0|experts.5.0",
    remedy="balanc|router|expert",
    says="router",
    seen=30,
)
def crowded() -> tuple[nn.Module, Step]:
    model = Crowded(0.0)
    with torch.no_grad():
        model.router.bias[1] = 8.0
    batches = digits(256)
    return model, by_loss(
        adam(model), lambda n: F.cross_entropy(model(batches(n)[0]), batches(n)[1])
    )


broken(
    "switch of eight parts without a balancing loss Adam",
    "collapsed router",
    "experts|collapsed",
    layer="parts.0|parts.2|parts.3|parts.4|parts.5",
    remedy="balanc|router|expert",
    says="router",
    seen=100,
)(partial(switch, 0.0))


class Mixture(Experts):
    """The same, with all experts called on all samples, weighted by the router."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.start(x))
        weights = self.router(x).softmax(-1)
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return self.head(x + (weights[..., None] * out).sum(1))


@broken(
    "experts whose weights are next to nothing SGD",
    "dead experts",
    "disconnected|experts|starved|unused|dead|vanishing",
    layer="experts.2.0|experts.3.0|experts.4.0|experts.5.0|experts.2|experts.3",
    remedy="balanc|router|expert",
    seen=8,
    information=True,
)
def starved_experts() -> tuple[nn.Module, Step]:
    model = Mixture(30.0)
    batches = digits()
    return model, by_loss(
        sgd(model), lambda n: F.cross_entropy(model(batches(n)[0]), batches(n)[1])
    )


def views(number: int) -> tuple[Tensor, Tensor]:
    """Return two noisy views of a batch."""
    x, _ = digits()(number)
    noise = seeded(number)
    return tuple(x + 0.3 * torch.randn(x.shape, generator=noise) for _ in range(2))


def encoder(out: int = 32) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, out)
    )


@broken(
    "two views pulled together with nothing to hold them apart Adam",
    "representation collapses",
    "collapsed|vanishing",
    remedy="negative|stop|predictor|variance|contrast|spread",
    seen=100,
)
def collapse() -> tuple[nn.Module, Step]:
    model = encoder()

    def loss_of(number: int) -> Tensor:
        first, second = views(number)
        return F.mse_loss(model(first), model(second))

    return model, by_loss(adam(model, 2e-3), loss_of)


@broken(
    "SimSiam without stop-gradient and predictor SGD",
    "representation collapses",
    "collapsed|vanishing",
    remedy="negative|stop|predictor|variance|contrast|spread",
    seen=100,
)
def simsiam() -> tuple[nn.Module, Step]:
    model = encoder()

    def loss_of(number: int) -> Tensor:
        first, second = (model(view) for view in views(number))
        return -F.cosine_similarity(first, second, dim=-1).mean()

    return model, by_loss(sgd(model, 0.2), loss_of)


@broken(
    "variational autoencoder whose code collapses Adam",
    "posterior collapse",
    "collapsed|disconnected|vanishing",
    layer="mean|spread|encoder.0|encoder",
    remedy="beta|kl|anneal|weight",
    seen=100,
    information=True,
)
def posterior() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(64, 64), nn.ReLU()),
            "mean": nn.Linear(64, 8),
            "spread": nn.Linear(64, 8),
            "decoder": nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64)),
        }
    )
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        hidden = model["encoder"](x)
        mean, spread = model["mean"](hidden), model["spread"](hidden)
        code = mean + torch.randn_like(mean) * (spread / 2).exp()
        kl = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(-1).mean()
        return F.mse_loss(model["decoder"](code), x) + 100 * kl

    return model, by_loss(adam(model, 5e-3), loss_of)


@broken(
    "target network that is never refreshed but trained upon Adam",
    "target network in the graph",
    "exploding|update-speed|diverging|not-updated",
    layer="target.0|target",
    remedy="detach|no_grad|optimizer",
    information=True,
)
def target_network() -> tuple[nn.Module, Step]:
    online = nn.Sequential(
        nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )
    model = nn.ModuleDict({"online": online, "target": copy.deepcopy(online)})

    def loss_of(number: int) -> Tensor:
        state = torch.randn(64, 4, generator=seeded(number))
        after, reward = state.roll(1, 1), state[:, 0]
        value = model["online"](state).max(-1).values
        return F.mse_loss(value, reward + 0.99 * model["target"](after).max(-1).values)

    return model, by_loss(adam(model["online"]), loss_of)
