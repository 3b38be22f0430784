"""The modules of a watched model: numbered, named, and held weakly."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from gradscope.autograd.torch_internals import is_scripted
from gradscope.capture import layers
from gradscope.capture.catalogue import LayerInfo


class ModuleInfo(NamedTuple):
    """What is known of a module before it is called."""

    number: int
    name: str
    kind: str
    owns_parameters: bool
    is_layer: bool
    is_activation: bool


class Modules:
    """All modules of a model, numbered in order of definition, later ones as they appear.

    Iterating yields (number, module) of those that are still alive.
    """

    def __init__(self, model: nn.Module) -> None:
        self.executed: dict[int, None] = {}
        self._model = weakref.ref(model)
        self._references: list[weakref.ref[nn.Module]] = []
        self._infos: list[ModuleInfo] = []
        self._parents: list[int | None] = []
        self._number: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self.look_for_new()

    def __iter__(self) -> Iterator[tuple[int, nn.Module]]:
        for number, reference in enumerate(self._references):
            module = reference()
            if module is not None:
                yield number, module

    def info(self, number: int) -> ModuleInfo:
        """Return what is known of module `number`."""
        return self._infos[number]

    def note_call(self, number: int) -> None:
        """Note that module `number` is called: `executed` keeps the order of first calls."""
        if number not in self.executed:
            self.executed[number] = None

    @property
    def met(self) -> tuple[int, int]:
        """How many modules there are, and how many have been called: grows with either."""
        return len(self._infos), len(self.executed)

    def look_for_new(self) -> None:
        """Give numbers to the modules that were added since the last look."""
        model = self._model()
        if model is None:
            return
        by_name: dict[str, int] = {}
        for name, module in model.named_modules():
            number = self._number.get(module)
            if number is None:
                number = self._number[module] = len(self._references)
                self._references.append(weakref.ref(module))
                self._infos.append(_describe(number, layers.clean(name), module))
                self._parents.append(by_name.get(name.rpartition(".")[0]) if name else None)
            by_name[name] = number

    def scripted(self) -> list[str]:
        """Return the names of the outermost modules that torch.jit has compiled."""
        names = [self._infos[n].name or layers.ROOT for n, m in self if is_scripted(m)]
        return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]

    def layers(self) -> list[LayerInfo]:
        """Return every layer as it is now, in order of definition."""
        return [
            LayerInfo(
                number,
                info.name or layers.ROOT,
                layers.kind(module),  # anew: a lazy module has changed its class
                sum(p.numel() for _, p in layers.own_parameters(module) if not layers.is_lazy(p)),
                layers.is_weight_layer(module),
                self._parents[number],
            )
            for number, module in self
            if (info := self._infos[number]).is_layer
        ]


def _describe(number: int, name: str, module: nn.Module) -> ModuleInfo:
    return ModuleInfo(
        number,
        name,
        layers.kind(module),
        bool(layers.own_parameters(module)),
        layers.is_layer(module),
        layers.is_activation(module),
    )
