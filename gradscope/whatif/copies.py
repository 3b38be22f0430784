"""Copies of a model with its optimizer, and random numbers that are put back."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.errors import GradscopeError

LossFn = Any


class OutOfMemory(GradscopeError):
    """There is no room for a copy, or for its training."""


def copied(
    model: nn.Module, optimizer: Optimizer, loss_fn: Any
) -> tuple[nn.Module, Optimizer, Any]:
    """Return a model, an optimizer of its parameters in the same state, and the loss function.

    A loss function that is a module is copied, too. Hooks of gradscope do not come along, nor
    gradients.

    Raises
    ------
    GradscopeError
        If the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():  # a result that is kept has a graph, which cannot be copied
        for value in vars(module).values():
            _detach(value, memo)
    try:
        with out_of_memory():
            twin = copy.deepcopy(model, memo)
            steps = _optimizer(optimizer, memo)
            loss = copy.deepcopy(loss_fn, memo) if isinstance(loss_fn, nn.Module) else loss_fn
    except GradscopeError:
        raise
    except Exception as error:
        raise GradscopeError(
            f"what_if(): {type(model).__name__} cannot be copied, which every try begins with:"
            f" {type(error).__name__}: {_line(error)}"
        ) from error
    return twin, steps, loss


def _detach(value: Any, memo: dict[int, Any]) -> None:
    if isinstance(value, Tensor):
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _detach(entry, memo)
    elif isinstance(value, dict):
        for entry in value.values():
            _detach(entry, memo)


def _optimizer(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Return a copy whose parameters are those that `memo` has for the optimizer's own."""
    twin = copy.deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():
        # pickling leaves out what a subclass added, such as LBFGS's list of parameters; a `step`
        # of its own is what a scheduler put there, and steps the user's optimizer
        if not hasattr(twin, name) and name != "step" and not name.endswith("_hooks"):
            setattr(twin, name, copy.deepcopy(value, memo))
    return twin


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn what torch and Python raise where memory does not suffice into one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if full or "enough memory" in str(error) or "allocate memory" in str(error):
            raise OutOfMemory(
                "what_if(): out of memory; it takes one copy of the model with its gradients and"
                " optimizer state beside your own: use smaller batches, or try on another device"
            ) from error
        raise


@contextmanager
def random_kept() -> Iterator[None]:
    """Put the random numbers of Python, NumPy and torch back at the end, on every device."""
    python = random.getstate()
    numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
    cpu = torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state_all() if _cuda_is_used() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)
        torch.default_generator.set_state(cpu)
        for number, state in enumerate(cuda):
            torch.cuda.set_rng_state(state, number)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def seed(number: int) -> None:
    """Seed all that `random_kept` puts back.

    Parameters
    ----------
    number : int
    """
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)
    torch.default_generator.manual_seed(number)
    if _cuda_is_used():  # else it would be seeded anew when it is
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def _cuda_is_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
