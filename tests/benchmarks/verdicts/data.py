"""What the trainings learn from: scikit-learn's digits, Python's own source, small functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Batches = Callable[[int], Batch]

CHARACTERS = 96
"""Printable ASCII, and one for the rest."""


@cache
def _digits() -> Batch:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order])


def digits(batch: int = 64, *, most: int = 1797) -> Batches:
    """Return batches of handwritten digits of zero mean, (batch, 64), and their classes."""
    x, y = _digits()
    x = (x - x.mean()) / x.std()

    def at(number: int) -> Batch:
        places = torch.arange(number * batch, (number + 1) * batch) % min(most, len(y))
        return x[places], y[places]

    return at


def images(batch: int = 16, size: int = 32, channels: int = 3, *, most: int = 256) -> Batches:
    """Return the digits as pictures, (batch, channels, size, size)."""
    flat = digits(batch, most=most)

    def at(number: int) -> Batch:
        x, y = flat(number)
        x = F.interpolate(x.view(-1, 1, 8, 8), size=(size, size), mode="bilinear")
        return x.expand(-1, channels, -1, -1).contiguous(), y

    return at


def rows(batch: int = 64, repeat: int = 1) -> Batches:
    """Return the digits as sequences of rows, (batch, 8 * repeat, 8), each row repeated."""
    flat = digits(batch)

    def at(number: int) -> Batch:
        x, y = flat(number)
        return x.view(-1, 8, 8).repeat_interleave(repeat, dim=1), y

    return at


@cache
def _source() -> Tensor:
    modules = ("argparse", "ast", "asyncio.base_events", "collections", "difflib", "inspect")
    text = "".join(inspect.getsource(import_module(name)) for name in modules)
    codes = torch.tensor(list(text.encode("ascii", "replace"))) - 31
    return codes.clamp(0, CHARACTERS - 1)


def text(batch: int = 16, length: int = 64) -> Batches:
    """Return pieces of Python's source as characters, and the next ones, (batch, length) each."""
    codes = _source()

    def at(number: int) -> Batch:
        starts = torch.randint(len(codes) - length - 1, (batch,), generator=seeded(number))
        pieces = torch.stack([codes[start : start + length + 1] for start in starts.tolist()])
        return pieces[:, :-1], pieces[:, 1:]

    return at


def function(
    batch: int = 64,
    width: int = 8,
    outputs: int = 1,
    *,
    target: Callable[[Tensor], Tensor] | None = None,
) -> Batches:
    """Return normal inputs and a smooth function of them, (batch, width) and (batch, outputs)."""
    mixing = torch.randn(width, outputs, generator=seeded(7)) / width**0.5

    def at(number: int) -> Batch:
        x = torch.randn(batch, width, generator=seeded(number))
        return x, target(x) if target else torch.sin(2 * x @ mixing) + 0.5 * x[:, :1]

    return at


def seeded(number: int) -> torch.Generator:
    """Return a source of random numbers of its own."""
    return torch.Generator().manual_seed(1000 + number)
