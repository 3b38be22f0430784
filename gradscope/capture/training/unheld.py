"""Weights that no torch.optim.Optimizer holds, but something else may change: it tells nothing."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence

from torch import Tensor

from gradscope import measure
from gradscope.autograd.torch_internals import version
from gradscope.capture.training.parameters import Parameters, Places
from gradscope.capture.training.sampling import sample_of
from gradscope.wording import layers_named


class Unheld:
    """Follows, in one recorded step, those that a backward has left a gradient of.

    Whether something changes them is told by their versions, which `p.data` hides: on the CPU their
    values are compared as well, the first time. Elsewhere that would have to wait for the device.

    Attributes
    ----------
    moved : set of int
        Places of those that something has changed, in this step or an earlier one.
    earlier : set of int
        Places of those that were changed before the last backward ended: it left no gradient that
        led to that.
    left_out : set of int
        Places of those that nothing has changed so far: nobody trains them.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._versions: dict[int, int] = {}
        self.moved: set[int] = set()
        self.earlier: set[int] = set()
        self.left_out: set[int] = set()

    def after_backward(self, seen: Container[int]) -> tuple[Places, Places]:
        """Return which of `seen` are changed by something, and which are to be compared."""
        tensors, others = self._parameters.tensors, self._parameters.others
        self.note_earlier(self._versions)
        new = [i for i in self._parameters.unheld() if i in seen and i not in self._versions]
        self._versions.update({i: version(tensors[i]) for i in new})
        return (
            tuple([i for i in new if others.get(i)]),
            tuple([i for i in new if i not in others]),
        )

    def note_earlier(self, versions: Mapping[int, int]) -> None:
        """Note, as a backward ends, which of the ones that had `versions` have changed since."""
        self.earlier.update(self._changed(versions))

    def keep(self, versions: Mapping[int, int]) -> Collection[int]:
        """Return the places of those among the ones that had `versions` as a backward ended."""
        unheld = self._parameters.unheld()
        self._versions = {i: was for i, was in versions.items() if i in unheld}
        self.earlier &= self._versions.keys()
        return self._versions.keys()

    def judge(self, copies: Mapping[int, Tensor], held: Container[int]) -> list[int]:
        """Find what has changed since, by `copies` of some; return places where that is news.

        Not those that were `held` by an optimizer that has made the step, and may be gone by now.
        """
        others, unheld = self._parameters.others, self._parameters.unheld()
        places = [i for i in self._versions if i in unheld and i not in held]
        changed = self._changed({i: self._versions[i] for i in places})
        fresh = [i for i in places if i not in others and i in copies and i not in changed]
        changed.update(self._differing(fresh, copies))
        news = [i for i in places if i in changed and not others.get(i)]
        others.update({i: False for i in fresh} | dict.fromkeys(changed, True))
        self.moved = {i for i in places if others.get(i)}
        self.left_out = set(places) - self.moved
        return news

    def _changed(self, versions: Mapping[int, int]) -> set[int]:
        tensors = self._parameters.tensors
        return {i for i, was in versions.items() if 0 <= was != version(tensors[i])}

    def _differing(self, places: Sequence[int], copies: Mapping[int, Tensor]) -> list[int]:
        """Return at which of `places` weights are not what they were, where that can be seen."""
        found = []
        for i in places:
            now, copy = measure.dense(self._parameters.tensors[i]), copies[i]
            now = now if now.shape == copy.shape else sample_of(now)
            if now.is_cpu and bool(((now != copy) & (copy == copy)).any()):
                found.append(i)
        return found


def told_of(names: Sequence[str], was_read: bool) -> str:
    """Return what is told where something else changes weights of the layers of these names."""
    norms = "clipped_grad_norm is NaN"
    if not was_read:
        norms += ", and so are weight_norm and update_norm of the step where it was first seen"
    return (
        f"{layers_named(names)}: something that is no torch.optim.Optimizer updates parameters"
        " there that none holds, and reports nothing. What it made of their gradients before it"
        f" took them is not known: {norms}. To have it, make it a subclass of"
        " torch.optim.Optimizer that holds them"
    )
