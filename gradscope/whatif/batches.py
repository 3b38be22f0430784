"""The batches that every try is trained on: drawn once, used by all, left as they were."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradscope.errors import GradscopeError
from gradscope.probes.probe import arguments_of
from gradscope.whatif.copies import random_kept


class Batches:
    """Batches in memory.

    Attributes
    ----------
    all : list
    notes : list of str
        What is to be said of how they came.
    """

    def __init__(self, source: Any, steps: int) -> None:
        if isinstance(source, (dict, Tensor, str)) or not isinstance(source, Iterable):
            raise GradscopeError(
                "what_if(): batches are a list, a DataLoader or an iterator of pairs (inputs,"
                f" targets) or dicts, got {type(source).__name__}"
            )
        self.notes: list[str] = []
        self.all: list[Any] = list(_drawn(source, steps))
        if not self.all:
            raise GradscopeError(
                "what_if(): no batch came; if the iterator ran out before, make a new one"
            )
        for batch in self.all:
            arguments_of(batch)
        if hasattr(source, "__next__"):
            self.notes.append(
                f"{len(self.all)} batch{'es' * (len(self.all) > 1)} drawn from the iterator that"
                " was given; it goes on behind them"
            )
        if len(self.all) < steps:
            self.notes.append(
                f"{len(self.all)} batch{'es' * (len(self.all) > 1)} for {steps} steps: used again"
                " and again, in another order each time"
            )

    def in_order(self, seed: int, steps: int) -> Iterator[Any]:
        """Yield a batch for each step: at first as they came, for `seed` 0, else shuffled."""
        shuffle = random.Random(seed)
        order: list[Any] = list(self.all)
        left = steps
        if seed == 0:
            yield from order[:left]
            left -= len(order[:left])
        while left > 0:
            shuffle.shuffle(order)
            yield from order[:left]
            left -= len(order[:left])

    def some(self, most: int) -> list[Any]:
        """Return up to `most` of them, spread evenly."""
        return self.all[:: -(-len(self.all) // most)]


def _drawn(source: Any, steps: int) -> Iterator[Any]:
    if not isinstance(source, DataLoader):
        return iter(list(itertools.islice(source, steps)))
    # a loader's own iterator may be the one that the training is in the middle of
    twin = copy.copy(source)
    twin._iterator = None
    with random_kept(), _generators_kept(source):
        return iter(list(itertools.islice(twin, steps)))


@contextmanager
def _generators_kept(loader: DataLoader[Any]) -> Iterator[None]:
    """Put the generators of a loader and its samplers back at the end."""
    holders = [loader, loader.sampler, loader.batch_sampler]
    holders += [getattr(holder, "sampler", None) for holder in list(holders)]
    found = {
        id(generator): generator
        for holder in holders
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator)
    }
    states = [(generator, generator.get_state()) for generator in found.values()]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def for_model(batch: Any, model: nn.Module) -> Any:
    """Return a copy of a batch, on the model's device if it has only one."""
    devices = {p.device for p in model.parameters()}
    return _copied(batch, devices.pop() if len(devices) == 1 else None)


def _copied(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, Tensor):
        return (
            value.detach().to(device or value.device, copy=True).requires_grad_(value.requires_grad)
        )
    if isinstance(value, dict):
        return {key: _copied(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_copied(entry, device) for entry in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
