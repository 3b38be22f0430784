"""Steps that are too large, too small or in the wrong direction; attention that is too sure."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import digits, images, rows, seeded
from ..loops import adam, adamw, by_loss, supervised
from ..trainings import Scalars, broken
from .broken_nets import (
    FAST,
    SLOW,
    Built,
    DeepSet,
    DenseNet,
    Tagger,
    ViT,
    brackets,
    nesterov,
    sets,
    signals,
)


@broken(
    "learning rate .3 for a vision transformer RAdam",
    "learning rate too large",
    FAST,
    remedy="learning rate",
    seen=8,
    information=True,
)
def transformer() -> Built:
    model = ViT()
    optimizer = torch.optim.RAdam(model.parameters(), lr=0.3)
    return model, supervised(model, optimizer, images(32, 16, 1))


class Physics(nn.Module):
    """Solves a differential equation: u'' = -9 sin 3x, u = 0 at both ends."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width))
        self.net.extend([nn.Tanh(), nn.Linear(width, 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def residual(model: nn.Module, number: int) -> Tensor:
    x = (3.1416 * torch.rand(64, 1, generator=seeded(number))).requires_grad_()
    u = model(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    ends = model(torch.tensor([[0.0], [3.1416]]))
    return (second + 9 * torch.sin(3 * x)).square().mean() / 40 + ends.square().sum()


@broken(
    "learning rate 1 for a net that solves an equation Adam",
    "learning rate too large",
    FAST,
    remedy="learning rate",
    seen=8,
    information=True,
)
def equation() -> Built:
    model = Physics()
    return model, by_loss(adam(model, 1.0), lambda number: residual(model, number))


@broken(
    "learning rate 30 for a DenseNet Nesterov",
    "learning rate too large",
    FAST,
    remedy="learning rate",
    seen=8,
    information=True,
)
def dense() -> Built:
    model = DenseNet()
    return model, supervised(model, nesterov(model, 30.0), images(32, 16, 1))


class ActorCritic(nn.Module):
    """One trunk, a policy of four actions and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.policy, self.value = nn.Linear(48, 4), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.policy(x), self.value(x)[:, 0]


@broken(
    "learning rate .0000001 for actor and critic Nesterov",
    "learning rate too small",
    SLOW,
    remedy="learning rate|'lr'",
    seen=30,
    information=True,
)
def critic() -> Built:
    model = ActorCritic()
    optimizer = nesterov(model, 1e-7)

    def step(number: int) -> Scalars:
        seen = torch.randn(128, 6, generator=seeded(number))
        logits, value = model(seen)
        policy = torch.distributions.Categorical(logits=logits)
        action = policy.sample()
        reward = (action == seen[:, :4].argmax(1)).float()
        gain = reward - value
        loss = -(policy.log_prob(action) * gain.detach()).mean() + 0.5 * gain.square().mean()
        optimizer.zero_grad()
        (loss - 0.01 * policy.entropy().mean()).backward()
        optimizer.step()
        return {"loss": loss.detach(), "progress": 1 - reward.mean()}

    return model, step


class Lion(torch.optim.Optimizer):
    """Steps of one size in the direction of the averaged gradient, written by hand."""

    def __init__(self, parameters, lr: float) -> None:  # type: ignore[no-untyped-def]
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.add_(mean.lerp(p.grad, 0.1).sign(), alpha=group["lr"])
                mean.lerp_(p.grad, 0.01)


@broken(
    "optimizer written by hand that adds its steps Lion",
    "gradient of the wrong sign",
    "unstable|exploding|rising-loss",
    remedy="sign|maximi|loss|lower|learning rate",
    seen=30,
)
def climbing() -> Built:
    model = nn.Sequential(
        nn.Conv1d(1, 16, 9, 4), nn.GroupNorm(4, 16), nn.ELU(), nn.Conv1d(16, 24, 5, 2), nn.ELU(),
        nn.AdaptiveMaxPool1d(3), nn.Flatten(), nn.Linear(72, 4),
    )  # fmt: skip
    return model, supervised(model, Lion(model.parameters(), 1e-3), signals)


@broken(
    "ReLUs of a deep set killed by the rate of the first steps Nesterov",
    "dead after a large step",
    "dead|unstable|exploding|update-speed",
    remedy="learning rate|leaky|warm",
    seen=30,
    information=True,
)
def killed() -> Built:
    model = DeepSet()
    optimizer = nesterov(model, 4.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0 if n < 6 else 0.005)
    return model, supervised(model, optimizer, sets, F.mse_loss, clip=1.0, schedule=schedule)


class Deep(nn.Module):
    """A transformer of many layers, each normalised behind its sum."""

    def __init__(self, layers: int, first: bool, width: int = 32) -> None:
        super().__init__()
        self.inlet, self.places = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, batch_first=True, norm_first=first
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.inlet(x) + self.places).mean(1))


@broken(
    "transformer of 12 post-norm layers at a rate of .01 Adam",
    "post-norm without warm-up",
    "vanishing|collapsed|exploding|unstable|update-speed",
    remedy="warm|pre-norm|pre-ln|before each|norm_first|lower|learning rate",
    seen=30,
)
def post_norm() -> Built:
    model = Deep(12, first=False)
    return model, supervised(model, adam(model, 1e-2), rows(32))


class Pooler(nn.Module):
    """Attention of learned questions to the rows and columns of a digit, twice."""

    def __init__(self, temperature: float, width: int = 32) -> None:
        super().__init__()
        self.inlet, self.ask = nn.Linear(16, width), nn.Parameter(torch.randn(4, width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(4 * width, 10)
        self.temperature, self.norm = temperature, nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 8, 8)
        place = torch.eye(8).expand(len(x), -1, -1)
        x = self.norm(self.inlet(torch.cat([x, place], 2)))
        logits = self.query(self.ask) @ self.key(x).transpose(1, 2) / self.temperature
        return self.out((logits.softmax(-1) @ self.value(x)).flatten(1))


@broken(
    "questions to a digit at a temperature of .002 AdamW",
    "attention logits too large",
    "attention|attention-logits|saturated",
    remedy="scale|sqrt|normalis|temperature|qk|smaller",
    seen=8,
)
def cold() -> Built:
    model = Pooler(0.002)
    return model, supervised(model, adamw(model, 3e-3), digits())


@broken(
    "questions to a digit that grow under a rate of .1 RMSprop",
    "attention logits that grow",
    "attention|attention-logits|saturated|unstable|exploding|update-speed",
    remedy="scale|sqrt|normalis|temperature|qk|lower|learning rate|smaller",
    seen=30,
    information=True,
)
def growing() -> Built:
    model = Pooler(32**0.5)
    return model, supervised(model, torch.optim.RMSprop(model.parameters(), lr=0.1), digits())


@broken(
    "rate of a recurrent tagger divided by the steps taken, from .00001 on AdamW",
    "learning rate too small",
    SLOW,
    remedy="learning rate|'lr'|schedul",
    seen=30,
    information=True,
)
def divided() -> Built:
    model = Tagger()
    optimizer = adamw(model, 1e-5, 0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))
    loss = F.binary_cross_entropy_with_logits
    return model, supervised(model, optimizer, brackets, loss, schedule=schedule)
