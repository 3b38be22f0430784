"""The training loops that most of the trainings share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import CHARACTERS, Batches
from .trainings import Step

Loss = Callable[[Tensor, Tensor], Tensor]


def supervised(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    loss: Loss = F.cross_entropy,
    *,
    clip: float | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Step:
    """Return the step of a plain loop."""

    def step(number: int) -> Tensor:
        x, y = batches(number)
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if schedule:
            schedule.step()
        return value.detach()

    return step


def by_loss(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor],
    *,
    clip: float | None = None,
) -> Step:
    """Return the step of a loop whose loss is a function of the step's number."""

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        value = loss_of(number)
        value.backward()
        if clip:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return value.detach()

    return step


def next_character(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of predicted characters, (batch, length, CHARACTERS) of logits."""
    return F.cross_entropy(logits.reshape(-1, CHARACTERS), target.reshape(-1))


def warmed(
    optimizer: torch.optim.Optimizer, steps: int = 20
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a linear warm-up of the learning rate."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / steps))


def sgd(model: nn.Module, lr: float = 0.05, momentum: float = 0.9) -> torch.optim.SGD:
    """Return SGD of all parameters that are trained."""
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=lr, momentum=momentum
    )


def adam(model: nn.Module, lr: float = 1e-3) -> torch.optim.Adam:
    """Return Adam of all parameters."""
    return torch.optim.Adam(model.parameters(), lr=lr)


def adamw(model: nn.Module, lr: float = 1e-3, decay: float = 0.01) -> torch.optim.AdamW:
    """Return AdamW of all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
