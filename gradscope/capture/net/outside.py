"""Parameters that a model computes with and does not list, as those of layers in a Python list."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable

from torch import Tensor, nn
from torch.autograd.graph import Node


class Outside:
    """Leaves of the model's graphs, held weakly, until it is known that the model lists them."""

    def __init__(self) -> None:
        self._met: dict[int, weakref.ref[Tensor]] = {}
        self.news = 0  # how often some were met

    def __len__(self) -> int:
        return len(self._met)

    def meet(self, leaves: Iterable[Node]) -> None:
        """Take note of gradient accumulators that a graph of the model ends in.

        Of parameters alone: other leaves, and those of wrappers that flatten what they hold, are
        no layer's.
        """
        self.news += 1
        for leaf in leaves:
            variable = getattr(leaf, "variable", None)
            if type(variable) is nn.Parameter:
                self._met.setdefault(id(variable), weakref.ref(variable))

    def __contains__(self, parameter: object) -> bool:
        met = self._met.get(id(parameter))
        return met is not None and met() is parameter

    def without(self, listed: Collection[int]) -> list[Tensor]:
        """Return those that are alive and not `listed`, and forget the others."""
        alive = {key: p for key, held in self._met.items() if (p := held()) is not None}
        self._met = {key: self._met[key] for key in alive if key not in listed}
        return [alive[key] for key in self._met]


def kept_in(modules: Iterable[tuple[str, nn.Module]], lost: set[int]) -> list[str]:
    """Return the attributes that hold some of the `lost` parameters in a list, tuple or dict.

    Parameters
    ----------
    modules : iterable of (name, Module)
        That may have such attributes.
    lost : set of int
        Identities of parameters.
    """
    found = []
    for name, module in modules:
        for attribute, value in vars(module).items():
            if isinstance(value, (list, tuple, dict)) and not lost.isdisjoint(_held(value)):
                found.append(f"{name}.{attribute}" if name else attribute)
    return found


def _held(value: object, depth: int = 2) -> set[int]:
    """Return the identities of the parameters in nested containers, and in modules there."""
    if isinstance(value, nn.Module):
        return {id(parameter) for parameter in value.parameters()}
    if isinstance(value, nn.Parameter):
        return {id(value)}
    if not isinstance(value, (list, tuple, dict)) or depth == 0:
        return set()
    items = value.values() if isinstance(value, dict) else value
    return set().union(*(_held(item, depth - 1) for item in items))
