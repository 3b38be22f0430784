"""Another activation in the place of one that flattens out, be it a module or a function."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gradscope.kinds import BOTH_SIDES, canonical
from gradscope.probes.changes.change import EXCHANGE, Change, Copy, DoesNotFit


@dataclass(frozen=True)
class Activation(Change):
    """Activations that follow a layer with weights, exchanged; gates elsewhere stay.

    Attributes
    ----------
    kinds : collection of str
        Which are exchanged, as `kinds.canonical` spells them.
    module : class of the module that takes their place
    function : the same as a function
    """

    kinds: Collection[str]
    module: Callable[[], nn.Module]
    function: Callable[[Tensor], Tensor]

    def apply(self, copy: Copy) -> None:
        """Replace the modules, and have the functions called in their place."""
        hidden = [unit for unit in copy.chain.units[:-1] if unit.activation in self.kinds]
        modules = [unit.activation_name for unit in hidden if unit.activation_name]
        # one module may stand behind several layers
        for name in dict.fromkeys(modules):
            if canonical(type(copy.model.get_submodule(name)).__name__) in self.kinds:
                copy.replace(name, self.module())
        behind = [unit.last for unit in hidden if not unit.activation_name]
        if behind:
            substitute(copy.model, behind, self.kinds, self.function)
        if not hidden:
            raise DoesNotFit(
                f"{self.name}: no {' or '.join(sorted(self.kinds))} follows a hidden layer"
            )


def substitute(
    model: nn.Module,
    behind: Collection[str],
    kinds: Collection[str],
    function: Callable[[Tensor], Tensor],
) -> None:
    """Let `function` be called where the model calls one of `kinds` on the output of a module.

    Parameters
    ----------
    model : nn.Module
        Gets a class of its own, of the same name.
    behind : names of the modules
    kinds : of functions, as `kinds.canonical` spells them
    function : of a tensor
    """
    mode = _Substituting(kinds, function)
    for name in behind:
        model.get_submodule(name).register_forward_hook(mode.note)
    plain = type(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return plain.forward(self, *args, **kwargs)

    model.__class__ = type(plain.__name__, (plain,), {"forward": forward})


class _Substituting(TorchFunctionMode):
    def __init__(self, kinds: Collection[str], function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._kinds = kinds
        self._function = function
        self._output: weakref.ref[Tensor] | None = None

    def note(self, module: nn.Module, args: Any, output: object) -> None:
        self._output = weakref.ref(output) if isinstance(output, Tensor) else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = canonical(getattr(func, "__name__", "")).rstrip("_")
        latest = None if self._output is None else self._output()
        if args and name in self._kinds and latest is not None and args[0] is latest:
            return self._function(latest)
        return func(*args, **(kwargs or {}))


TANH = Activation(
    "tanh for sigmoid", frozenset({"vanishing", "saturated"}), EXCHANGE, {"sigmoid"}, nn.Tanh,
    torch.tanh,
)  # fmt: skip
RELU = Activation("ReLU activations", frozenset(), EXCHANGE, BOTH_SIDES, nn.ReLU, F.relu)
GELU = Activation(
    "GELU activations", frozenset({"dead"}), EXCHANGE, BOTH_SIDES | {"relu"}, nn.GELU, F.gelu
)
