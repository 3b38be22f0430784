"""torch.compile: compiled code has no module calls to report, so recorded steps run without it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from gradscope.autograd import torch_internals


def is_compiled(model: nn.Module) -> bool:
    """Whether `model` or a part of it has been handed to torch.compile."""
    return any(map(torch_internals.is_compiled, model.modules()))


def compiled_frames() -> int:
    """Return how many functions this process has compiled by now."""
    counted = sys.modules.get("torch._dynamo.utils")
    return 0 if counted is None else int(counted.counters["frames"]["ok"])


def has_compiled(before: int) -> bool:
    """Whether this process has compiled functions since there were `before`; so it may, unknown."""
    try:
        return compiled_frames() > before
    except (AttributeError, LookupError, TypeError):
        return "torch._dynamo" in sys.modules


class Eager:
    """Switches compiled functions of this process to their Python originals, and back.

    Compiled code is kept meanwhile: switching compiles nothing again.
    """

    def __init__(self) -> None:
        self._stance: Any = None

    def switch_on(self) -> None:
        """Run Python originals from now on."""
        if self._stance is None:
            self._stance = torch.compiler.set_stance("force_eager")

    def switch_off(self) -> None:
        """Go back to what was the rule before."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None
