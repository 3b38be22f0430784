"""Small trainings that may be broken on purpose, watched and diagnosed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from gradscope.diagnosis.findings import Diagnosis, Finding

Loss = Callable[[Tensor, Tensor], Tensor]


def net(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for i in range(len(widths) - 2):
        modules += [nn.Linear(widths[i], widths[i + 1]), act()]
    return nn.Sequential(*modules, nn.Linear(*widths[-2:]))


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def train(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 24,
    loss_of: Loss = F.cross_entropy,
    before: Callable[[int, Tensor], Tensor | None] = lambda step, x: x,
    after_backward: Callable[[], None] = lambda: None,
    zero: bool = True,
    log: bool = True,
    targets: Callable[[Tensor], Tensor] = lambda x: x[:, :4].argmax(1),
) -> Diagnosis:
    torch.manual_seed(1)
    with gradscope.watch(model, path) as scope:
        for step in range(steps):
            x = torch.randn(32, 16)
            y = targets(x)
            x = before(step, x)
            if zero:
                optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            after_backward()
            optimizer.step()
            if log:
                scope.log(train_loss=loss.detach())
    return gradscope.diagnose(scope.run)


def the(diagnosis: Diagnosis, verdict: str) -> Finding:
    (finding,) = [f for f in diagnosis.findings if f.verdict == verdict]
    return finding


class Last(nn.Module):
    """The last state of a recurrent layer, and a head."""

    def __init__(self, rnn: nn.Module, length: int) -> None:
        super().__init__()
        self.rnn, self.length, self.head = rnn, length, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(1, self.length)[:, : 4 * self.length].view(len(x), self.length, 4)
        if not isinstance(self.rnn, nn.RNNCellBase):
            return self.head(self.rnn(x)[0][:, -1])
        state = None
        for now in x.unbind(1):
            state = self.rnn(now, state)
        return self.head(state[0] if isinstance(state, tuple) else state)
