"""Nets of several players: generators, experts, codes, self-supervision, policies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, seeded
from ..loops import adam, adamw, by_loss, sgd, supervised
from ..trainings import Scalars, broken
from .broken_nets import Built
from .broken_paths import Codes


@broken(
    "generator whose noise is next to nothing Adam",
    "generator without noise",
    "collapsed",
    layer="generator.0|generator.1|generator.2|generator.3|generator.4",
    remedy="input|larger|normalis|vari|noise",
    seen=8,
)
def noiseless() -> Built:
    generator = nn.Sequential(
        nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 64)
    )
    critic = nn.Sequential(nn.Linear(64, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    first, second = adam(generator, 1e-3), adam(critic, 1e-3)
    batches = digits()

    def step(number: int) -> Scalars:
        x, _ = batches(number)
        made = generator(1e-5 * torch.randn(len(x), 8))
        second.zero_grad()
        won = F.softplus(-critic(x)).mean() + F.softplus(critic(made.detach())).mean()
        won.backward()
        second.step()
        first.zero_grad()
        lost = F.softplus(-critic(made)).mean()
        lost.backward()
        first.step()
        return {"generator_loss": lost.detach(), "critic_loss": won.detach()}

    return model, step


@broken(
    "conditional GAN whose discriminator saturates SGD and Adam",
    "generator starved",
    "vanishing|saturated|starved",
    layer="generator.0|generator.2|generator.4|discriminator.5",
    remedy="discriminator|balance|non-saturating|learning rate",
    seen=100,
    information=True,
)
def starved() -> Built:
    generator = nn.Sequential(
        nn.Linear(18, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 64)
    )
    discriminator = nn.Sequential(
        nn.Linear(74, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 1), nn.Sigmoid()
    )
    model = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    slow, quick = sgd(generator, 1e-3), adam(discriminator, 5e-3)
    batches = digits()

    def step(number: int) -> Scalars:
        for again in range(3):
            x, y = batches(3 * number + again)
            kind = F.one_hot(y, 10).float()
            made = generator(torch.cat([torch.randn(len(x), 8), kind], 1))
            quick.zero_grad()
            real = discriminator(torch.cat([x, kind], 1))
            false = discriminator(torch.cat([made.detach(), kind], 1))
            won = F.binary_cross_entropy(real, torch.ones_like(real))
            won = won + F.binary_cross_entropy(false, torch.zeros_like(false))
            won.backward()
            quick.step()
        slow.zero_grad()
        lost = (1 - discriminator(torch.cat([made, kind], 1)) + 1e-8).log().mean()
        lost.backward()
        slow.step()
        return {"generator_loss": lost.detach(), "discriminator_loss": won.detach()}

    return model, step


class Tasks(nn.Module):
    """Experts that two gates mix for two tasks; `sharp` multiplies the gates' logits."""

    def __init__(self, sharp: float, best: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(5)
        )
        self.gates = nn.ModuleList(nn.Linear(64, 5) for _ in range(2))
        self.heads = nn.ModuleList([nn.Linear(16, 10), nn.Linear(16, 2)])
        self.sharp = sharp
        for gate in self.gates:
            gate.bias.data[best] += sharp

    def forward(self, x: Tensor) -> list[Tensor]:
        told = torch.stack([expert(x) for expert in self.experts], 1)
        shares = [gate(x).softmax(1)[..., None] for gate in self.gates]
        return [head((share * told).sum(1)) for head, share in zip(self.heads, shares, strict=True)]


EXPERTS = "experts|disconnected|dead|vanishing"


@broken(
    "gates of two tasks that take one expert of five Adam",
    "dead experts",
    EXPERTS,
    layer="experts.0.0|experts.1.0|experts.3.0|experts.4.0|experts.0|experts.1|experts.3|experts.4",
    remedy="balanc|router|expert|gate",
    seen=8,
    information=True,
)
def tasks() -> Built:
    model = Tasks(25.0, 2)

    def both(out: list[Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(out[0], y) + F.cross_entropy(out[1], y % 2)

    return model, supervised(model, adam(model, 3e-3), digits(), both)  # type: ignore[arg-type]


@broken(
    "convolutional experts, the best one for each picture alone SGD",
    "collapsed router",
    "experts|collapsed|disconnected",
    layer="experts.0|experts.1|experts.2|experts.3|experts.4|experts.5",
    remedy="balanc|router|expert",
    seen=30,
    information=True,
)
def pictures() -> Built:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.router = nn.Conv2d(1, 12, 3, padding=1), nn.Linear(12, 6)
            self.experts = nn.ModuleList(nn.Conv2d(12, 24, 3, padding=1) for _ in range(6))
            self.head = nn.Linear(24, 10)
            self.router.bias.data[3] = 6.0

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.stem(x))
            share, chosen = self.router(x.mean((2, 3))).softmax(1).max(1)
            out = x.new_zeros(len(x), 24)
            for number, expert in enumerate(self.experts):
                mine = chosen == number
                if mine.any():
                    told = F.silu(expert(x[mine])).amax((2, 3))
                    out = out.index_put((mine,), share[mine, None] * told)
            return self.head(out)

    model = Chosen()
    return model, supervised(model, sgd(model), images(32, 12, 1))


@broken(
    "book of codes too far away to be chosen Adam",
    "codebook collapses",
    "collapsed|dead|experts|disconnected|vanishing",
    layer="book|decoder.0|decoder.1|decoder.2",
    remedy="code|larger|init|normalis|input|vari|negative|smaller|spread",
    seen=8,
)
def book() -> Built:
    class Far(Codes):
        def __init__(self) -> None:
            super().__init__()
            nn.init.normal_(self.book.weight, std=0.2)
            self.book.weight.data[1:] += 40.0

        def nearest(self, code: Tensor) -> Tensor:
            chosen = self.book(torch.cdist(code, self.book.weight).argmin(1))
            self.far = F.mse_loss(code, chosen.detach()) + F.mse_loss(chosen, code.detach())
            return code + (chosen - code).detach()

    model, batches = Far(), digits()

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        return F.mse_loss(model(x), x) + model.far

    return model, by_loss(adam(model, 3e-3), loss_of)


@broken(
    "recurrent variational autoencoder whose code is ignored Adam",
    "posterior collapse",
    "collapsed|disconnected|vanishing",
    layer="code|reader|writer",
    remedy="beta|kl|anneal|weight",
    seen=100,
    information=True,
)
def posterior() -> Built:
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader, self.code = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 12)
            self.inlet = nn.Linear(6, 32)
            self.writer, self.out = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean, spread = self.code(self.reader(x)[1][0]).chunk(2, 1)
            code = mean + torch.randn_like(mean) * (spread / 2).exp()
            before = F.pad(x, (0, 0, 1, 0))[:, :-1]
            out = self.out(self.writer(before, self.inlet(code)[None])[0])
            kl = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(1).mean()
            return out, kl

    model, batches = Coded(), digits()

    def loss_of(number: int) -> Tensor:
        x = batches(number)[0].view(-1, 8, 8)
        out, kl = model(x)
        return F.mse_loss(out, x) + 20 * kl

    return model, by_loss(adam(model, 5e-3), loss_of)


@broken(
    "triplets whose embeddings fall into one point SGD",
    "representation collapses",
    "collapsed|vanishing",
    remedy="negative|stop|predictor|variance|contrast|spread",
    seen=100,
)
def triplets() -> Built:
    model = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 48), nn.SiLU())
    model.append(nn.Linear(48, 16))
    batches = digits()

    def loss_of(number: int) -> Tensor:
        x, y = batches(number)
        out = model(x)
        away = (out[:, None] - out[None]).square().sum(2)
        same = y[:, None] == y[None]
        farthest = (away * same).amax(1)
        nearest = (away + 1e9 * same).amin(1)
        return F.relu(farthest - nearest + 5.0).mean()

    return model, by_loss(sgd(model, 0.05), loss_of)


@broken(
    "BYOL whose target is the online net itself AdamW",
    "representation collapses",
    "collapsed|vanishing",
    remedy="negative|stop|predictor|variance|contrast|spread",
    seen=100,
)
def byol() -> Built:
    online = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 24, 3, 2, 1))
    online.extend([nn.Flatten(), nn.SiLU(), nn.Linear(216, 24)])
    model = nn.ModuleDict({"online": online, "predictor": nn.Linear(24, 24)})
    batches = images(32, 12, 1)

    def loss_of(number: int) -> Tensor:
        x, _ = batches(number)
        noise = 0.4 * torch.randn(2, *x.shape, generator=seeded(number))
        one, two = (online(x + part) for part in noise)
        return (model["predictor"](one) - two).square().sum(1).mean()

    return model, by_loss(adamw(model, 5e-3), loss_of)


@broken(
    "policy that is sure of one action from the start Adam",
    "policy saturated",
    "saturated|vanishing|collapsed|disconnected",
    layer="policy.2|policy.0|policy.1|policy.3",
    remedy="smaller|entropy|normalis|bias|scale|larger|init",
    seen=8,
)
def sure() -> Built:
    policy = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3), nn.LogSoftmax(1))
    nn.init.normal_(policy[2].weight, std=0.1)  # type: ignore[arg-type]
    policy[2].bias.data[1] = 120.0
    model = nn.ModuleDict({"policy": policy})
    optimizer = adam(model, 1e-3)

    def step(number: int) -> Scalars:
        seen = torch.randn(64, 6, generator=seeded(number))
        log = policy(seen)
        chosen = torch.distributions.Categorical(logits=log).sample()
        reward = (chosen == seen[:, :3].argmax(1)).float()
        optimizer.zero_grad()
        loss = -(log.gather(1, chosen[:, None])[:, 0] * (reward - reward.mean())).mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach(), "progress": 1 - reward.mean()}

    return model, step


@broken(
    "values of actions that chase themselves with a discount above 1 SGD",
    "bootstrapped values that run away",
    "exploding|unstable|update-speed",
    remedy="detach|no_grad|learning rate|clip|target|lower",
    seen=8,
)
def chase() -> Built:
    model = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
    model.append(nn.Linear(48, 3))

    def loss_of(number: int) -> Tensor:
        seen = torch.randn(64, 4, generator=seeded(number))
        with torch.no_grad():
            target = seen[:, 0] + 1.6 * model(2 * seen.roll(1, 1)).max(1).values + 1
        return F.mse_loss(model(seen).max(1).values, target)

    return model, by_loss(sgd(model, 0.05), loss_of)
