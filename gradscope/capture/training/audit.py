"""Which parameters of each layer are trained, what keeps the others from it, and `eps` and
decay of the optimizers.
"""

from __future__ import annotations

from collections import defaultdict

from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.modules import Modules
from gradscope.capture.net.outside import kept_in
from gradscope.capture.training.parameters import Parameters, all_optimizers


class Audit:
    """Keeps `schema.TRAINING`, and facts of optimizers, up to date in the catalogue."""

    def __init__(self, modules: Modules, parameters: Parameters, catalogue: Catalogue) -> None:
        self._modules = modules
        self._parameters = parameters
        self._catalogue = catalogue
        self._state: tuple[object, ...] = ()
        self._changes = 0
        self._listed: list[tuple[int, str, int | None]] = []
        self._outside = 0

    def update(self, told_by_hooks: bool) -> None:
        """Say of each layer what is known by now; costs nothing where nothing has changed.

        Parameters
        ----------
        told_by_hooks : bool
            Whether an optimizer has told of a step. What one holds that tells nothing is not known.
        """
        parameters = self._parameters
        groups = sum(len(optimizer.param_groups) for optimizer in parameters.optimizers)
        if parameters.changes != self._changes:  # maybe to objects that stand for the same
            self._changes = parameters.changes
            if parameters.listed != self._listed:
                self._listed, self._state = parameters.listed, ()
        others = sum(parameters.others.values())
        state = len(parameters.touched), len(parameters.optimizers), groups, others, told_by_hooks
        if state != self._state:
            self._state = state
            self._catalogue.set_training(self._training(told_by_hooks))
            if eps := self._largest("eps"):
                self._catalogue.set_fact("eps", eps)
            if decay := self._largest("weight_decay"):
                self._catalogue.set_fact("weight_decay", max(decay.values()))
        if told_by_hooks and len(self._catalogue.outside) != self._outside:
            self._look_outside()

    def _largest(self, option: str) -> dict[str, float]:
        """Return the largest `option` of each class of optimizer, where it is a number."""
        largest: dict[str, float] = {}
        for optimizer in self._parameters.optimizers:
            name = type(optimizer).__name__
            for group in optimizer.param_groups:
                if isinstance(value := group.get(option), (int, float)):
                    largest[name] = max(float(value), largest.get(name, 0.0))
        return largest

    def _look_outside(self) -> None:
        """Say of which shapes are the parameters that neither model nor optimizers hold."""
        lost = self._catalogue.outside.without({id(p) for p in self._parameters.tensors})
        self._outside = len(lost)
        if lost and not self._parameters.may_be_gathered:
            groups = [group for optimizer in all_optimizers() for group in optimizer.param_groups]
            held = {id(p) for group in groups for p in group["params"]}
            free = [p for p in lost if id(p) not in held]
            self._catalogue.set_fact("outside", [list(p.shape) for p in free])
            named = ((self._modules.info(number).name, module) for number, module in self._modules)
            self._catalogue.set_fact("outside_in", kept_in(named, {id(p) for p in free}))

    def _training(self, told_by_hooks: bool) -> dict[int, str]:
        parameters = self._parameters
        held = {place for o in parameters.optimizers for place in parameters.of(o)}
        held |= set(range(len(parameters.tensors))) - parameters.unheld()  # some may be gone by now
        if told_by_hooks and len(held) < len(parameters.tensors):  # maybe of one yet to step
            held |= {place for o in all_optimizers() for place in parameters.of(o)}
        held |= {place for place, changes in parameters.others.items() if changes}
        told_by_hooks &= bool(held)
        words: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for module, name, place in parameters.listed:
            if place is None:
                words[module]["frozen"].append(name)
                continue
            lacks = []
            if told_by_hooks and place not in held:
                lacks.append("no optimizer")
            if place not in parameters.touched:
                lacks.append("no gradient")
            for word in lacks or ["trained"]:
                words[module][word].append(name)
        return {module: _in_words(names) for module, names in words.items()}


def _in_words(names: dict[str, list[str]]) -> str:
    """Return the words in order; with the names of parameters where these are not all alike."""
    if len({tuple(some) for some in names.values()}) == 1:
        return ", ".join(word for word in _ORDER if word in names)
    return ", ".join(f"{word} ({' '.join(names[word])})" for word in _ORDER if word in names)


_ORDER = ("trained", "frozen", "no optimizer", "no gradient")
