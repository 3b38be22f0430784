"""The modules of a watched model: numbered, named, and held weakly."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from torch import nn

from gradscope.autograd.torch_internals import children_of, is_scripted
from gradscope.capture.net import layers
from gradscope.capture.net.catalogue import LayerInfo
from gradscope.capture.net.recurrence import time_dimension
from gradscope.measure.activations import slope_rule

_DROPOUTS = (
    nn.AlphaDropout,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.FeatureAlphaDropout,
)


class ModuleInfo(NamedTuple):
    """What is known of a module before it is called; `time` as in `recurrence.time_dimension`.

    `may_lose_input`: an activation whose slope is read from what it may be told to overwrite.
    """

    number: int
    name: str
    kind: str
    owns_parameters: bool
    is_layer: bool
    is_activation: bool
    may_lose_input: bool
    time: int | None


class Modules:
    """All modules of a model, numbered in order of definition, later ones as they appear.

    Iterating yields (number, module) of those that are part of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.executed: dict[int, None] = {}
        self._model = weakref.ref(model)
        self._references: list[weakref.ref[nn.Module]] = []
        self.infos: list[ModuleInfo] = []
        self._parents: list[int | None] = []
        self._looks = 0
        self._present: list[int] = []  # those that were part of the model at the last look
        self._families: list[tuple[int, weakref.ref[nn.Module], tuple[int, ...]]] = []
        self._number: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self.look_for_new()

    def __iter__(self) -> Iterator[tuple[int, nn.Module]]:
        for number in self._present:
            module = self._references[number]()
            if module is not None:
                yield number, module

    @property
    def model(self) -> nn.Module | None:
        """The model, while it is there."""
        return self._model()

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return what to call modules, in order of definition."""
        return [self.infos[number].name or layers.ROOT for number in sorted(numbers)]

    def info(self, number: int) -> ModuleInfo:
        """Return what is known of module `number`."""
        return self.infos[number]

    def note_call(self, number: int) -> None:
        """Note that module `number` is called: `executed` keeps the order of first calls."""
        if number not in self.executed:
            self.executed[number] = None

    @property
    def met(self) -> tuple[int, int]:
        """Differs once modules were looked for again, or called for the first time."""
        return self._looks, len(self.executed)

    def look_for_new(self) -> None:
        """Give numbers to the modules that were added since the last look."""
        model = self._model()
        if model is None:
            return
        by_name: dict[str, int] = {}
        computing: tuple[str, ...] = ()  # prefixes of what computes weights: no layers, no calls
        self._present = []
        self._families = []  # each with the identities of its children
        self._looks += 1
        for name, module in model.named_modules():
            if name.startswith(computing) and computing:
                continue
            if layers.is_parametrized(module):
                inside = f"{name}.{layers.PARAMETRIZATIONS}" if name else layers.PARAMETRIZATIONS
                computing += (inside,)
            number = self._number.get(module)
            if number is None:
                number = self._number[module] = len(self._references)
                self._references.append(weakref.ref(module))
                self.infos.append(_describe(number, layers.unwrapped_name(name), module))
                self._parents.append(by_name.get(name.rpartition(".")[0]) if name else None)
            else:
                called = layers.unwrapped_name(name)
                if self.infos[number].name != called:
                    self.infos[number] = self.infos[number]._replace(name=called)
            by_name[name] = number
            self._present.append(number)
            children = tuple(map(id, children_of(module)))
            self._families.append((number, self._references[number], children))
        self.look_at_parameters()

    def look_at_parameters(self) -> None:
        """Take those for layers that have been given their first parameter."""
        for number, module in self:
            if self._is_given_one(number, module):
                self.infos[number] = _describe(number, self.infos[number].name, module)
                self._looks += 1

    def _is_given_one(self, number: int, module: nn.Module) -> bool:
        return not self.infos[number].owns_parameters and bool(layers.own_parameters(module))

    def have_changed(self) -> bool:
        """Whether a module was added, removed, replaced or given its first parameter since."""
        for number, reference, children in self._families:
            module = reference()
            if module is not None and (
                tuple(map(id, children_of(module))) != children
                or self._is_given_one(number, module)
            ):
                return True
        return False

    def uncalled(self, used: Container[object]) -> set[int]:
        """Return the modules that own some of `used`, of whose owners none was called.

        Not containers, nor those whose weights are used by themselves as a rule: embeddings, as
        learnt queries, and the `out_proj` of a MultiheadAttention.
        """
        called: set[int] = set()  # identities of parameters
        found: dict[int, set[int]] = {}
        torchs: set[int] = set()  # identities of modules
        for number, module in self:
            if isinstance(module, nn.MultiheadAttention):
                torchs |= set(map(id, children_of(module)))
            own = {id(p) for _, p in layers.own_parameters(module) if p in used}
            if number in self.executed:
                called |= own
            elif layers.acts(module) and id(module) not in torchs:
                found[number] = own
        return {number for number, own in found.items() if own - called}

    def scripted(self) -> list[str]:
        """Return the names of the outermost modules that torch.jit has compiled."""
        names = [self.infos[n].name or layers.ROOT for n, m in self if is_scripted(m)]
        return [n for n in names if not any(n.startswith(f"{other}.") for other in names)]

    def dropout(self) -> dict[str, float]:
        """Return the share that each dropout of the model in training leaves out, by its name."""
        return {
            self.infos[number].name: module.p
            for number, module in self
            if isinstance(module, _DROPOUTS) and module.training and module.p > 0
        }

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
            if (info := self.infos[number]).is_layer
        ]


def _describe(number: int, name: str, module: nn.Module) -> ModuleInfo:
    return ModuleInfo(
        number,
        name,
        layers.kind(module),
        bool(layers.own_parameters(module)),
        layers.is_layer(module),
        layers.is_activation(module),
        _may_lose_input(module),
        time_dimension(module),
    )


def _may_lose_input(module: nn.Module) -> bool:
    if not hasattr(module, "inplace") or not layers.is_activation(module):
        return False
    rule = slope_rule(module)
    return rule is not None and rule[0] == "input"
