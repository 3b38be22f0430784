"""Agents that learn from rewards, imitate, or dream; teachers and students."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import seeded
from ..loops import adam, adamw, by_loss
from ..trainings import Scalars, Step, healthy
from .healthy_nets import dense, follow


class Pendulums:
    """Many pendulums at once: angle and speed; reward for standing upright."""

    def __init__(self, many: int) -> None:
        self.state = torch.stack([2 * torch.rand(many) - 1, torch.zeros(many)], 1)

    def seen(self) -> Tensor:
        angle, speed = self.state.unbind(1)
        return torch.stack([angle.cos(), angle.sin(), speed], 1)

    def step(self, push: Tensor) -> Tensor:
        angle, speed = self.state.unbind(1)
        reward = -(angle.square() + 0.1 * speed.square() + 0.001 * push.square())
        speed = (speed + 0.1 * (5 * angle.sin() + 3 * push)).clamp(-4, 4)
        self.state = torch.stack([(angle + 0.1 * speed).clamp(-3, 3), speed], 1)
        fallen = self.state[:, 0].abs() > 2
        self.state[fallen] = torch.rand_like(self.state[fallen]) - 0.5
        return reward - 5 * fallen.float()


@healthy("clipped steps towards better actions, advantages smoothed Adam")
def clipped_policy() -> tuple[nn.Module, Step]:
    model = nn.ModuleDict(
        {"actor": dense(3, 48, 48, 1, act=nn.Tanh), "critic": dense(3, 48, 48, 1, act=nn.Tanh)}
    )
    model.register_parameter("spread", nn.Parameter(torch.zeros(1)))
    for name, gain in (("actor", 0.01), ("critic", 1.0)):
        for layer in model[name]:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, 2**0.5)
                nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(model[name][-1].weight, gain)
    optimizer, world = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-5), Pendulums(64)

    def policy(x: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(model["actor"](x)[:, 0], model.spread.exp())

    def step(number: int) -> Scalars:
        kept: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for _ in range(16):
                x = world.seen()
                action = policy(x).sample()
                chance = policy(x).log_prob(action)
                kept.append((x, action, chance, world.step(action), model["critic"](x)[:, 0]))
            after, run, gains = model["critic"](world.seen())[:, 0], torch.zeros(64), []
            for *_, reward, value in reversed(kept):
                run = reward + 0.95 * after - value + 0.95 * 0.9 * run
                after = value
                gains.append(run)
        x, action, chance, reward, value = (
            torch.stack(part).flatten(0, 1) for part in zip(*kept, strict=True)
        )
        gain = torch.stack(gains[::-1]).flatten()
        target, gain = gain + value, (gain - gain.mean()) / (gain.std() + 1e-8)
        for _ in range(3):
            now = policy(x)
            share = (now.log_prob(action) - chance).exp()
            better = torch.min(share * gain, share.clamp(0.8, 1.2) * gain).mean()
            wrong = F.mse_loss(model["critic"](x)[:, 0], target)
            loss = -better + 0.5 * wrong - 0.001 * now.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        return {"policy_loss": -better.detach(), "value_loss": wrong.detach(),
                "progress": -reward.mean()}  # fmt: skip

    return model, step


def walks(number: int, batch: int = 128) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return steps in a field of 5 by 5: where, action, reward, where to, whether it ended."""
    source = seeded(number)
    place = torch.randint(25, (batch,), generator=source)
    action = torch.randint(4, (batch,), generator=source)
    row = (place // 5 + torch.tensor([1, -1, 0, 0])[action]).clamp(0, 4)
    column = (place % 5 + torch.tensor([0, 0, 1, -1])[action]).clamp(0, 4)
    end = (row == 4) & (column == 4)
    return place, action, end.float(), 5 * row + column, end


def true_values() -> Tensor:
    """Return what the best actions are worth at 0.9 a step, (25, 4)."""
    value = torch.zeros(25, 4)
    places, actions = torch.arange(25).repeat_interleave(4), torch.arange(4).repeat(25)
    row = (places // 5 + torch.tensor([1, -1, 0, 0])[actions]).clamp(0, 4)
    column = (places % 5 + torch.tensor([0, 0, 1, -1])[actions]).clamp(0, 4)
    to = 5 * row + column
    for _ in range(100):
        later = 0.9 * value.amax(1)[to] * (to != 24)
        value = ((to == 24).float() + later).view(25, 4)
    return value


@healthy("value and advantage apart, two nets that check each other Adam")
def duelling() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.value, self.gain = dense(10, 64, 64), nn.Linear(64, 1), nn.Linear(64, 4)

        def forward(self, place: Tensor) -> Tensor:
            x = torch.cat([F.one_hot(place // 5, 5), F.one_hot(place % 5, 5)], 1).float()
            h = F.relu(self.body(x))
            gain = self.gain(h)
            return self.value(h) + gain - gain.mean(1, keepdim=True)

    net = Net()
    model = nn.ModuleDict({"net": net, "old": copy.deepcopy(net).requires_grad_(False)})
    optimizer, true = adam(net, 3e-3), true_values()

    def step(number: int) -> Scalars:
        place, action, reward, to, end = walks(number)
        with torch.no_grad():
            best = net(to).argmax(1, keepdim=True)
            wanted = reward + 0.9 * model["old"](to).gather(1, best)[:, 0] * ~end
        loss = F.smooth_l1_loss(net(place).gather(1, action[:, None])[:, 0], wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        follow(model["old"], net, 0.1)
        with torch.no_grad():
            off = (net(torch.arange(25)) - true)[:24].square().mean()
        return {"td_loss": loss.detach(), "progress": off}

    return model, step


@healthy("values as chances of fifty-one sizes Adam")
def distributed() -> tuple[nn.Module, Step]:
    net = nn.Sequential(nn.Embedding(25, 32), dense(32, 64, 4 * 51))
    model = nn.ModuleDict({"net": net, "old": copy.deepcopy(net).requires_grad_(False)})
    optimizer, sizes, true = adam(net, 3e-3), torch.linspace(-0.5, 1.5, 51), true_values()

    def step(number: int) -> Scalars:
        place, action, reward, to, end = walks(number)
        every = torch.arange(len(place))
        with torch.no_grad():
            later = model["old"](to).view(-1, 4, 51).softmax(-1)
            share = later[every, (later * sizes).sum(-1).argmax(1)]
            moved = (reward[:, None] + 0.9 * sizes * ~end[:, None]).clamp(-0.5, 1.5)
            at = (moved + 0.5) / 0.04
            near = (1 - (at[:, :, None] - torch.arange(51)).abs()).clamp_min(0)
            wanted = (share[:, :, None] * near).sum(1)
        told = net(place).view(-1, 4, 51)[every, action].log_softmax(-1)
        loss = -(wanted * told).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(model["old"], net, 0.1)
        with torch.no_grad():
            value = (net(torch.arange(25)).view(25, 4, 51).softmax(-1) * sizes).sum(-1)
        return {"loss": loss.detach(), "progress": (value - true)[:24].square().mean()}

    return model, step


@healthy("actions drawn softly, two critics, a learnt temperature Adam")
def soft_actor() -> tuple[nn.Module, Step]:
    actor, critics = dense(6, 48, 48, 4), nn.ModuleList(dense(8, 48, 48, 1) for _ in range(2))
    model = nn.ModuleDict({"actor": actor, "critics": critics})
    model["old"] = copy.deepcopy(critics).requires_grad_(False)
    model.register_parameter("heat", nn.Parameter(torch.tensor(-1.0)))
    first, second = adam(actor, 2e-3), adam(critics, 3e-3)
    third = torch.optim.Adam([model.heat], lr=3e-3)

    def drawn(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = actor(x).chunk(2, 1)
        bell = torch.distributions.Normal(mean, spread.clamp(-4, 1).exp())
        raw = bell.rsample()
        squeeze = (1 - raw.tanh().square() + 1e-6).log()
        return raw.tanh(), (bell.log_prob(raw) - squeeze).sum(1, keepdim=True)

    def step(number: int) -> Scalars:
        source = seeded(number)
        x, action = (
            torch.randn(128, 6, generator=source),
            2 * torch.rand(128, 2, generator=source) - 1,
        )
        wanted = 0.5 * x[:, :2].tanh()
        reward = 1 - 3 * (action - wanted).square().sum(1, keepdim=True)
        with torch.no_grad():
            to = 0.5 * x + 0.5 * torch.randn(128, 6, generator=source)
            then, sure = drawn(to)
            both = torch.cat([to, then], 1)
            later = torch.min(*(net(both) for net in model["old"])) - model.heat.exp() * sure
            target = reward + 0.5 * later
        known = torch.cat([x, action], 1)
        wrong = sum(F.mse_loss(net(known), target) for net in critics)
        second.zero_grad()
        wrong.backward()  # type: ignore[union-attr]
        second.step()
        own, sure = drawn(x)
        best = torch.min(*(net(torch.cat([x, own], 1)) for net in critics))
        loss = (model.heat.detach().exp() * sure - best).mean()
        first.zero_grad()
        loss.backward()
        first.step()
        third.zero_grad()
        heat = -(model.heat * (sure.detach() - 2)).mean()
        heat.backward()
        third.step()
        follow(model["old"], critics, 0.05)
        off = (own.detach() - wanted).square().sum(1).mean()
        return {"actor_loss": loss.detach(), "critic_loss": wrong.detach(), "progress": off}  # type: ignore[union-attr]

    return model, step


@healthy("remembered signs rewarded late, by a GRU with a baseline Adam")
def remembered() -> tuple[nn.Module, Step]:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.act, self.value = (
                nn.GRU(5, 32, batch_first=True), nn.Linear(32, 4), nn.Linear(32, 1)
            )  # fmt: skip

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.memory(x)[0][:, -1]
            return self.act(h), self.value(h)[:, 0]

    model = Agent()
    optimizer = adam(model, 5e-3)

    def step(number: int) -> Scalars:
        sign = torch.randint(4, (256,), generator=seeded(number))
        x = 0.3 * torch.randn(256, 6, 5, generator=seeded(number + 500))
        x[:, 0, :4] += 2 * F.one_hot(sign, 4)
        logits, value = model(x)
        chances = torch.distributions.Categorical(logits=logits)
        action = chances.sample()
        reward = (action == sign).float()
        own = -(chances.log_prob(action) * (reward - value.detach())).mean()
        loss = own + 0.5 * F.mse_loss(value, reward) - 0.01 * chances.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {"policy_loss": own.detach(), "progress": 1 - reward.mean()}

    return model, step


@healthy("world dreamt by states drawn step by step AdamW")
def dreamt() -> tuple[nn.Module, Step]:
    class World(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = dense(3, 48, 24, act=nn.ELU), dense(40, 48, 3, act=nn.ELU)
            self.cell, self.before, self.after = (
                nn.GRUCell(9, 32), nn.Linear(32, 16), nn.Linear(56, 16)
            )  # fmt: skip

        def forward(self, x: Tensor, pushes: Tensor) -> tuple[Tensor, Tensor]:
            h, z, wrong, far = x.new_zeros(len(x), 32), x.new_zeros(len(x), 8), [], []
            for place in range(x.shape[1]):
                h = self.cell(torch.cat([z, pushes[:, place, None]], 1), h)
                mean, spread = self.after(torch.cat([h, self.encoder(x[:, place])], 1)).chunk(2, 1)
                guess, wide = self.before(h).chunk(2, 1)
                one = torch.distributions.Normal(mean, F.softplus(spread) + 0.1)
                two = torch.distributions.Normal(guess, F.softplus(wide) + 0.1)
                z = one.rsample()
                wrong.append((self.decoder(torch.cat([h, z], 1)) - x[:, place]).square().sum(1))
                far.append(torch.distributions.kl_divergence(one, two).sum(1))
            return torch.stack(wrong).mean(), torch.stack(far).mean()

    model = World()

    def loss_of(number: int) -> Tensor:
        world, pushes = Pendulums(32), torch.randn(32, 12, generator=seeded(number))
        seen = []
        for push in pushes.unbind(1):
            world.step(push)
            seen.append(world.seen())
        wrong, far = model(torch.stack(seen, 1), pushes)
        return wrong + 0.1 * far.clamp_min(0.3)

    return model, by_loss(adamw(model, 2e-3), loss_of, clip=100.0)


@healthy("returns asked for, actions told by a causal transformer AdamW")
def asked() -> tuple[nn.Module, Step]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.back, self.state, self.action = (
                nn.Linear(1, 32),
                nn.Linear(2, 32),
                nn.Embedding(3, 32),
            )
            self.place = nn.Embedding(8, 32)
            layer = nn.TransformerEncoderLayer(32, 2, 64, 0.1, "gelu", batch_first=True)
            self.body, self.norm = nn.TransformerEncoder(layer, 2), nn.LayerNorm(32)
            self.head = nn.Linear(32, 3)

        def forward(self, back: Tensor, state: Tensor, action: Tensor) -> Tensor:
            told = [self.back(back), self.state(state), self.action(action)]
            x = torch.stack([part + self.place.weight for part in told], 2).flatten(1, 2)
            mask = nn.Transformer.generate_square_subsequent_mask(24)
            return self.head(self.body(self.norm(x), mask, is_causal=True)[:, 1::3])

    model = Net()

    def loss_of(number: int) -> Tensor:
        source = seeded(number)
        state = torch.randn(32, 8, 2, generator=source)
        good = torch.rand(32, 1, generator=source) < 0.5
        best = torch.where(state[..., 0].abs() < 0.3, 1, torch.where(state[..., 0] < 0, 2, 0))
        action = torch.where(good, best, (best + 1) % 3)
        back = (good.float() * 2 - 1)[:, None].expand(-1, 8, -1) * torch.linspace(1, 0.2, 8)[
            :, None
        ]
        return F.cross_entropy(model(back, state, action).transpose(1, 2), action)

    return model, by_loss(adamw(model, 2e-3), loss_of, clip=0.25)


@healthy("policy and value of a board copied from a search SGD")
def board() -> tuple[nn.Module, Step]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
                nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.body(x))

    start = nn.Sequential(nn.Conv2d(2, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    model = nn.ModuleDict(
        {
            "body": nn.Sequential(*start, *(Residual() for _ in range(4))),
            "policy": nn.Sequential(nn.Conv2d(24, 1, 1), nn.Flatten()),
            "value": nn.Sequential(nn.Conv2d(24, 1, 1), nn.Flatten(), dense(25, 32, 1), nn.Tanh()),
        }
    )
    near = torch.ones(1, 1, 3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)

    def loss_of(number: int) -> Tensor:
        stones = torch.randint(3, (64, 1, 5, 5), generator=seeded(number))
        x = torch.cat([(stones == 1).float(), (stones == 2).float()], 1)
        own, other = (F.conv2d(x[:, [side]], near, padding=1) for side in (0, 1))
        free = (stones == 0).float()
        wanted = (2 * (own + 0.5 * other) - 20 * (1 - free)).flatten(1).softmax(1)
        told = model["body"](x)
        value = model["value"](told)[:, 0]
        score = ((x[:, 0] - x[:, 1]).sum((1, 2)) / 4).tanh()
        return F.mse_loss(value, score) + F.cross_entropy(model["policy"](told), wanted)

    return model, by_loss(optimizer, loss_of)
