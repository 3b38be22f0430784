"""What is to be tried, checked: a model on one process, its optimizer, a loss and some batches."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradscope.capture.net import layers
from gradscope.errors import GradscopeError
from gradscope.whatif.batches import Batches
from gradscope.whatif.trial import Subject


def subject_of(model: nn.Module, loss_fn: Any, batches: Any, optimizer: Any, steps: int) -> Subject:
    """Return what is to be tried; draws the batches.

    Raises
    ------
    GradscopeError
        If any of it cannot be used.
    """
    if layers.is_distributed(model):
        raise GradscopeError(
            f"what_if(): {type(model).__name__} is distributed; try changes on one process, with"
            " the module before it is wrapped"
        )
    if not callable(loss_fn):
        raise GradscopeError(
            f"what_if(): loss_fn must be callable as loss_fn(model(x), y), got"
            f" {type(loss_fn).__name__}"
        )
    if not isinstance(optimizer, Optimizer):
        raise GradscopeError(
            f"what_if(): needs a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise GradscopeError(f"what_if(steps={steps!r}): needs a whole number, 2 or more")
    inner = layers.unwrap(model)
    own = {id(p) for p in inner.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise GradscopeError(
            f"what_if(): this {type(optimizer).__name__} has none of the parameters of"
            f" {type(inner).__name__}"
        )
    return Subject(inner, optimizer, loss_fn, Batches(batches, steps), steps)
