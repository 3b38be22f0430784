"""Small copies of trainings that people run, each a function that yields its model, then trains it.

    def accumulation():
        model = net()
        optimizer = SGD(model.parameters(), lr=0.1)
        yield model
        ...  # the loop, as it was reported

`tests/capture/test_situations.py` runs each twice, watched and with `Truth` in place of gradscope,
and holds the readings against each other. A file holds one kind; all generators in it are taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import iter_modules

from torch import nn

Situation = Callable[[], Iterator[nn.Module]]


def found() -> dict[str, Situation]:
    """Return every situation, by file and name."""
    return {
        f"{module.name}.{name}": value
        for module in iter_modules(__path__)
        for name, value in vars(import_module(f"{__name__}.{module.name}")).items()
        if inspect.isgeneratorfunction(value)
    }
