"""Agents that learn by trying, and those who recommend."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import seeded
from ..loops import adam, adamw, by_loss
from ..trainings import Scalars, Step, healthy


class Carts:
    """Many carts with poles at once; each falls at an angle of .2 and starts anew."""

    def __init__(self, many: int = 64) -> None:
        self.state, self.many = 0.05 * torch.randn(many, 4), many

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Push left (0) or right (1); return rewards and which poles have fallen."""
        x, v, angle, turn = self.state.unbind(1)
        force = 20.0 * action - 10.0
        push = (force + 0.05 * turn.square() * angle.sin()) / 1.1
        faster = (9.8 * angle.sin() - angle.cos() * push) / (
            0.5 * (4 / 3 - 0.1 * angle.cos().square() / 1.1)
        )
        along = push - 0.05 * faster * angle.cos() / 1.1
        state = [x + 0.02 * v, v + 0.02 * along, angle + 0.02 * turn, turn + 0.02 * faster]
        self.state = torch.stack(state, 1)
        fallen = (self.state[:, 2].abs() > 0.2) | (self.state[:, 0].abs() > 2.4)
        return torch.ones(self.many), fallen

    def renew(self, fallen: Tensor) -> None:
        self.state[fallen] = 0.05 * torch.randn(int(fallen.sum()), 4)


def tower(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place, width in enumerate(widths[1:]):
        layers += [nn.Linear(widths[place], width), act()]
    return nn.Sequential(*layers[:-1])


@healthy("poles kept upright by advantages of eight steps RMSprop")
def advantages() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
            self.policy, self.value = nn.Linear(64, 2), nn.Linear(64, 1)

        def forward(self, x: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
            h = self.body(x)
            return torch.distributions.Categorical(logits=self.policy(h)), self.value(h)[:, 0]

    model, world = Net(), Carts()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.99, eps=1e-5)

    def step(number: int) -> Scalars:
        chances, values, rewards, ends, entropy = [], [], [], [], torch.zeros(())
        for _ in range(8):
            policy, value = model(world.state)
            action = policy.sample()
            reward, fallen = world.step(action.float())
            world.renew(fallen)
            chances.append(policy.log_prob(action))
            values.append(value)
            rewards.append(reward)
            ends.append(fallen)
            entropy = entropy + policy.entropy().mean() / 8
        with torch.no_grad():
            later, returns = model(world.state)[1], []
            for reward, fallen in zip(reversed(rewards), reversed(ends), strict=True):
                later = reward + 0.95 * later * ~fallen
                returns.insert(0, later)
        gain = torch.stack(returns) - torch.stack(values)
        actor = -(torch.stack(chances) * gain.detach()).mean()
        critic = gain.square().mean()
        optimizer.zero_grad()
        (actor + 0.5 * critic - 0.01 * entropy).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        fell = torch.stack(ends).float().mean()
        return {"actor": actor.detach(), "critic": critic.detach(), "progress": fell}

    return model, step


@healthy("poles kept upright by clipped ratios in four rounds of small batches Adam")
def clipped_ratios() -> tuple[nn.Module, Step]:
    actor, critic = tower(4, 64, 64, 2, act=nn.Tanh), tower(4, 64, 64, 1, act=nn.Tanh)
    for net, last in ((actor, 0.01), (critic, 1.0)):
        for place, layer in enumerate(net[::2]):
            nn.init.orthogonal_(layer.weight, last if place == 2 else 2**0.5)
            nn.init.zeros_(layer.bias)
    model = nn.ModuleDict({"actor": actor, "critic": critic})
    optimizer, world = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-5), Carts(64)

    def step(number: int) -> Scalars:
        seen: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for _ in range(16):
                x = world.state.clone()
                policy = torch.distributions.Categorical(logits=actor(x))
                action = policy.sample()
                reward, fallen = world.step(action.float())
                world.renew(fallen)
                seen.append((x, action, policy.log_prob(action), critic(x)[:, 0], reward, fallen))
            after, run, gains = critic(world.state)[:, 0], torch.zeros(64), []
            for *_, value, reward, fallen in reversed(seen):
                wrong = reward + 0.98 * after * ~fallen - value
                run = wrong + 0.98 * 0.95 * run * ~fallen
                after = value
                gains.insert(0, run)
        x, action, before, value, _, fallen = (
            torch.stack(part).flatten(0, 1) for part in zip(*seen, strict=True)
        )
        gain = torch.stack(gains).flatten()
        wanted = gain + value
        for _ in range(4):
            for some in torch.randperm(len(x)).split(256):
                policy = torch.distributions.Categorical(logits=actor(x[some]))
                share = (policy.log_prob(action[some]) - before[some]).exp()
                good = (gain[some] - gain[some].mean()) / (gain[some].std() + 1e-8)
                better = torch.min(share * good, share.clamp(0.8, 1.2) * good).mean()
                off = F.mse_loss(critic(x[some])[:, 0], wanted[some])
                optimizer.zero_grad()
                (0.5 * off - better - 0.01 * policy.entropy().mean()).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
        return {
            "policy": -better.detach(),
            "value": off.detach(),
            "progress": fallen.float().mean(),
        }

    return model, step


@healthy("values of pushes from a memory, a target that creeps behind AdamW")
def memory() -> tuple[nn.Module, Step]:
    net = tower(4, 128, 128, 2)
    target = copy.deepcopy(net).requires_grad_(False)
    model = nn.ModuleDict({"net": net, "target": target})
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, amsgrad=True)
    world = Carts(32)
    kept = [torch.zeros(800 * 32, *size) for size in ((4,), (), (), (4,), ())]

    def step(number: int) -> Scalars:
        fell = 0.0
        for look in range(8 * number, 8 * number + 8):
            with torch.no_grad():
                x = world.state.clone()
                action = net(x).argmax(1)
            tried = torch.rand(32) < max(0.05, 0.9 - number / 40)
            action = torch.where(tried, torch.randint(2, (32,)), action)
            reward, fallen = world.step(action.float())
            new = (x, action, reward, world.state, fallen)
            for memory, part in zip(kept, new, strict=True):
                memory[32 * look : 32 * look + 32] = part
            world.renew(fallen)
            fell += float(fallen.float().mean()) / 8
            some = torch.randint(32 * look + 32, (128,))
            x, action, reward, to, ended = (memory[some] for memory in kept)
            with torch.no_grad():
                wanted = reward + 0.99 * target(to).amax(1) * (1 - ended)
            told = net(x).gather(1, action.long()[:, None])[:, 0]
            loss = F.smooth_l1_loss(told, wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(net.parameters(), 100)
            optimizer.step()
            with torch.no_grad():
                for old, new in zip(target.parameters(), net.parameters(), strict=True):
                    old.lerp_(new, 0.02)
        return {"td_loss": loss.detach(), "progress": fell}

    return model, step


@healthy("actions of a teacher copied, its trajectories noised AdamW")
def copied() -> tuple[nn.Module, Step]:
    model = tower(4, 64, 64, 1, act=nn.SiLU)

    def loss_of(number: int) -> Tensor:
        x = torch.randn(128, 4, generator=seeded(number)) * torch.tensor([1.0, 1.0, 0.1, 0.5])
        wanted = (0.3 * x[:, :1] + 0.6 * x[:, 1:2] + 8 * x[:, 2:3] + 2 * x[:, 3:]).tanh()
        told = model(x + 0.02 * torch.randn(x.shape, generator=seeded(number + 500)))
        return F.mse_loss(told, wanted)

    return model, by_loss(adamw(model, 1e-3), loss_of)


def tastes(number: int, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Return users of 120, and one of 80 things that each took."""
    source = seeded(number)
    likes = torch.randn(120, 3, generator=seeded(5)) @ torch.randn(3, 80, generator=seeded(6))
    user = torch.randint(120, (batch,), generator=source)
    return user, torch.multinomial((2 * likes[user]).softmax(1), 1, generator=source)[:, 0]


@healthy("towers of users and things, the others of a batch as negatives Adagrad")
def towers() -> tuple[nn.Module, Step]:
    class Tower(nn.Module):
        def __init__(self, many: int) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(many, 32), tower(32, 64, 32)

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.body(self.embed(x)), dim=1)

    model = nn.ModuleDict({"user": Tower(120), "thing": Tower(80)})
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.05)
    often = torch.bincount(torch.cat([tastes(n)[1] for n in range(900, 920)]), minlength=80) + 1.0
    rarely = -(often / often.sum()).log()

    def loss_of(number: int) -> Tensor:
        user, thing = tastes(number)
        logits = model["user"](user) @ model["thing"](thing).T / 0.1 + rarely[thing]
        same = (thing[:, None] == thing) & ~torch.eye(len(thing), dtype=torch.bool)
        return F.cross_entropy(logits.masked_fill(same, -1e9), torch.arange(len(thing)))

    return model, by_loss(optimizer, loss_of)


@healthy("pairs of a thing taken and one not, products beside layers Adam")
def pairs() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.thing = nn.Embedding(120, 16), nn.Embedding(80, 16)
            self.user_deep, self.thing_deep = nn.Embedding(120, 16), nn.Embedding(80, 16)
            self.deep = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
            self.head = nn.Linear(32, 1, bias=False)
            for name, p in self.named_parameters():
                if name.split(".")[0] in ("user", "thing", "user_deep", "thing_deep"):
                    nn.init.normal_(p, 0.0, 0.01)

        def forward(self, user: Tensor, thing: Tensor) -> Tensor:
            plain = self.user(user) * self.thing(thing)
            deep = self.deep(torch.cat([self.user_deep(user), self.thing_deep(thing)], 1))
            return self.head(torch.cat([plain, deep], 1))[:, 0]

    model = Net()

    def loss_of(number: int) -> Tensor:
        user, taken = tastes(number, 512)
        other = torch.randint(80, taken.shape, generator=seeded(number + 500))
        return -F.logsigmoid(model(user, taken) - model(user, other)).mean()

    return model, by_loss(adam(model, 1e-2), loss_of)


@healthy("a table's words and numbers through norms and dropout, two answers AdamW")
def table() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeds = nn.ModuleList(nn.Embedding(n, min(50, n // 2 + 1)) for n in (12, 7, 30))
            self.drop, self.norm = nn.Dropout(0.04), nn.BatchNorm1d(4)
            layers: list[nn.Module] = []
            for inputs, outputs, rate in [(31, 100, 0.1), (100, 50, 0.1)]:
                layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU(True)]
                layers += [nn.BatchNorm1d(outputs), nn.Dropout(rate)]
            self.body = nn.Sequential(*layers)
            self.price, self.sold = nn.Linear(50, 1), nn.Linear(50, 1)

        def forward(self, words: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            told = [embed(words[:, at]) for at, embed in enumerate(self.embeds)]
            h = self.body(torch.cat([self.drop(torch.cat(told, 1)), self.norm(numbers)], 1))
            return self.price(h)[:, 0], self.sold(h)[:, 0]

    model = Net()
    optimizer = adamw(model, 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=101)
    worth = [torch.randn(n, generator=seeded(n)) for n in (12, 7, 30)]

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        words = torch.stack([torch.randint(len(w), (128,), generator=source) for w in worth], 1)
        numbers = torch.randn(128, 4, generator=source)
        value = sum(w[words[:, at]] for at, w in enumerate(worth)) + numbers[:, 0] * numbers[:, 1]
        sold = (value + numbers[:, 2] > 0).float()
        price, chance = model(words, numbers * torch.tensor([1.0, 5.0, 0.2, 100.0]) + 3)
        schedule.step()
        return F.mse_loss(price, value) + F.binary_cross_entropy_with_logits(chance, sold)

    return model, by_loss(optimizer, loss_of)
