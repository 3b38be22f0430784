"""One try: a change made to a copy, which is then trained for some steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from gradscope.errors import GradscopeError
from gradscope.probes.changes.change import NOTHING_RECORDED, Change, Copy, Recorded
from gradscope.probes.probe import LossFn, arguments_of
from gradscope.whatif.batches import Batches, for_model
from gradscope.whatif.copies import copied, out_of_memory, seed

_MEASURED_ON = 8  # batches that the loss after the last step is the mean of
_WARM_UP = 3  # steps whose time is left out


class Watched(Protocol):
    """What a copy's training is recorded by: a `Scope`."""

    def log(self, **scalars: float | Tensor) -> None:
        """Attach scalars to the step."""


Record = Callable[[nn.Module, Path, Optimizer], AbstractContextManager[Watched]]
"""How a copy is watched into a folder."""


@dataclass(frozen=True)
class Subject:
    """What is copied for each try, and left alone."""

    model: nn.Module
    optimizer: Optimizer
    loss_fn: LossFn
    batches: Batches
    steps: int


@dataclass(frozen=True)
class Training:
    """What one training of a copy came to.

    Attributes
    ----------
    losses : list of float
        Of each step.
    loss : float
        After the last one, a mean over some of the batches.
    seconds : float
        Of a step, their lowest tenth: others may be using the machine.
    parameters : int
        Trainable ones.
    """

    losses: list[float]
    loss: float
    seconds: float
    parameters: int

    @property
    def slope(self) -> float:
        """Slope of the loss over the second half of the steps, loss/step."""
        half = np.array(self.losses[len(self.losses) // 2 :])
        if len(half) < 2 or not np.isfinite(half).all():
            return float("nan")
        return float(np.polyfit(np.arange(len(half)), half, 1)[0])


def changed(
    subject: Subject,
    change: Change | None,
    number: int,
    recorded: Recorded = NOTHING_RECORDED,
) -> Copy:
    """Return a copy of the subject with a change made, its random numbers seeded by `number`.

    Raises
    ------
    GradscopeError
        If the model cannot be copied, or the change finds nothing to change (`DoesNotFit`).
    """
    model, optimizer, loss_fn = copied(subject.model, subject.optimizer, subject.loss_fn)
    batch = for_model(subject.batches.all[0], model)
    copy = Copy(model, optimizer, loss_fn, batch, subject.steps, recorded)
    before = {id(p) for p in model.parameters()}
    seed(number)
    if change is not None:
        with out_of_memory():
            change.apply(copy)
        _hand_over(copy, before)
    return copy


def _hand_over(copy: Copy, before: set[int]) -> None:
    """Give the optimizer the parameters that the change has made, and take those that are gone."""
    now = {id(p) for p in copy.model.parameters()}
    groups = copy.optimizer.param_groups
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) in now or id(p) not in before]
    held = {id(p) for group in groups for p in group["params"]}
    new = [p for p in copy.parameters if id(p) not in before and id(p) not in held]
    groups[0]["params"] += new


def train(subject: Subject, copy: Copy, number: int, scope: Watched | None = None) -> Training:
    """Train a copy, and measure.

    Parameters
    ----------
    subject : Subject
    copy : Copy
        Of it.
    number : int
        Seed of the order of the batches.
    scope : optional
        Gets the loss of each step.
    """
    losses: list[float] = []
    seconds: list[float] = []
    with torch.enable_grad(), out_of_memory():
        for step, batch in enumerate(subject.batches.in_order(number, subject.steps)):
            began = time.perf_counter()
            own = for_model(batch, copy.model)
            loss = _step(copy, own, step)
            losses.append(float(loss))
            seconds.append(time.perf_counter() - began)
            if scope is not None:
                scope.log(train_loss=losses[-1])
    with torch.no_grad(), out_of_memory():
        after = [
            float(loss_of(copy.model, copy.loss_fn, for_model(batch, copy.model)))
            for batch in subject.batches.some(_MEASURED_ON)
        ]
    timed = seconds[_WARM_UP:] or seconds
    size = sum(p.numel() for p in copy.parameters)
    return Training(losses, float(np.mean(after)), float(np.quantile(timed, 0.1)), size)


def _step(copy: Copy, batch: Any, step: int) -> Tensor:
    found: list[Tensor] = []

    def evaluate() -> Tensor:
        copy.optimizer.zero_grad()
        loss = loss_of(copy.model, copy.loss_fn, batch)
        found.append(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        for prepare in copy.before_step:
            prepare(step)
        return loss

    if isinstance(copy.optimizer, LBFGS):
        copy.optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    else:
        evaluate()
        copy.optimizer.step()
    return found[0]


def loss_of(model: nn.Module, loss_fn: LossFn, batch: Any) -> Tensor:
    """Return the loss of a model on a batch."""
    args, kwargs, target = arguments_of(batch)
    loss: Tensor = loss_fn(model(*args, **kwargs), target)
    return loss


def check(subject: Subject) -> None:
    """Refuse a loss that no copy can be trained by; nothing of the user's gets a gradient.

    Raises
    ------
    GradscopeError
        If the first batch cannot be used, the loss is no single number, does not depend on the
        copy, or depends on the user's own model.
    """
    copy = changed(subject, None, 0)
    try:
        with torch.enable_grad(), out_of_memory():
            loss = loss_of(copy.model, copy.loss_fn, copy.batch)
    except GradscopeError:
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        raise GradscopeError(
            "what_if(): the model or loss_fn failed on the first batch:"
            f" {type(error).__name__}: {text}"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise GradscopeError(f"what_if(): loss_fn must return one number, got {got}")
    own: list[Tensor] = [p for p in subject.model.parameters() if p.requires_grad]
    theirs = copy.parameters
    gradients = (
        torch.autograd.grad(loss, theirs + own, allow_unused=True)
        if loss.requires_grad
        else [None] * (len(theirs) + len(own))
    )
    if any(gradient is not None for gradient in gradients[len(theirs) :]):
        raise GradscopeError(
            "what_if(): loss_fn uses the parameters of the model itself, so that a copy's training"
            " would reach it; let it take what it needs from the output"
        )
    if all(gradient is None for gradient in gradients[: len(theirs)]):
        raise GradscopeError(
            "what_if(): the loss does not depend on the model; does loss_fn detach it, or not use"
            " the output?"
        )


def train_recorded(
    subject: Subject, copy: Copy, path: Path, record: Record, number: int
) -> Training:
    """Train a copy, watched into a folder."""
    with record(copy.model, path, copy.optimizer) as scope:
        return train(subject, copy, number, scope)
