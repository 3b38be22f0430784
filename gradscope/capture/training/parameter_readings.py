"""Readings of the parameters of one step: gradients before and after clipping, weights, updates."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from gradscope import measure
from gradscope.autograd.torch_internals import version
from gradscope.capture.memory import is_out_of_memory, leaves_room, no_memory_for_copies
from gradscope.capture.reading.rows import Segment
from gradscope.capture.training.left_gradients import LeftGradients
from gradscope.capture.training.norms import Norms, by_device, read_norms, unknown, without
from gradscope.capture.training.parameters import Parameters, Places
from gradscope.capture.training.rounding import read_moved
from gradscope.capture.training.sampling import sample_of, scale_up
from gradscope.capture.training.unheld import Unheld

_CAME_LATE = (
    "an optimizer got gradients that were not there when the backward ended: what they were before"
    " clipping is not known, grad_norm is NaN there. If the program gathers them elsewhere, name"
    ' the place, as watch(gradient="main_grad")'
)

_SHARED = (
    "several optimizers update the same parameters in one step, one after the other: how far these"
    " move is NaN in the step that showed it, and of the whole step in those that are recorded next"
)

_RESHAPED = (
    "weights had another shape after a step of the optimizer than before it: how far it moved them"
    " cannot be told, update_norm is NaN there"
)


class ParameterReadings:
    """What is read of the parameters during one recorded step.

    Memory: from `before_step` to `after_step` a copy of the weights that the optimizer is about to
    change, or of a sample of them. `looks`: whether it is one of the steps at which, of weights in
    half precision, the share that moves is read.
    """

    def __init__(self, parameters: Parameters, *, looks: bool) -> None:
        self._parameters = parameters
        self._looks = looks and parameters.updates is True
        self._as_of = parameters.changes
        self.train = bool(parameters.tensors)  # whether any does
        self._gradients: list[Norms] = []
        self._seen: dict[int, weakref.ref[Tensor]] = {}  # gradients at the last end of a backward
        self._versions: dict[int, int] = {}
        self._ended = False  # whether a backward has
        self._clipped: dict[Optimizer | None, list[Norms]] = {}
        self._within: set[Optimizer | None] = set()  # that stepped before one had ended
        self._weights: list[Norms] = []
        self._updates: list[Norms] = []
        self._shares: list[Segment] = []  # of what moved
        self._copies: dict[int, Tensor] = {}
        self._shapes: dict[int, torch.Size] = {}  # of the weights that were copied
        self._pairs: dict[Places, tuple[list[Tensor], list[Tensor]]] = {}  # weights, their copies
        self._first: dict[Optimizer, Places] = {}  # what each is the first to update, of several
        self._held: set[int] = set()  # all of these
        self._moved: set[int] = set()  # parameters whose update was read
        self._spoiled: set[int] = set()  # those whose reading another optimizer has made wrong
        self._suspected: tuple[list[Norms], dict[int, _State]] = ([], {})
        self._left = LeftGradients()
        self._unheld = Unheld(parameters)
        self._stepped: set[int] = set()  # parameters whose optimizer has made this step

    def are_outdated(self) -> bool:
        """Whether other parameters are trained now than when they began."""
        return self._as_of != self._parameters.changes or self._parameters.froze_or_thawed()

    # --- the usual way: a backward ends, then optimizers tell before and after they step ------

    def after_backward(self) -> None:
        """Take note of the gradients as accumulated by now, in place of those of one before."""
        self._ended = True
        self._gradients = []
        if self._parameters.gradient.is_function:
            return
        found = self._find_gradients(range(len(self._parameters.tensors)))
        self._parameters.look_at_gradients()
        self._seen = {i: weakref.ref(g) for i, g in found.items()}
        self._versions = {i: version(g) for i, g in found.items()}

    def read_gradients(self) -> None:
        """Read those that were taken note of."""
        self._gradients = read_norms(self._left_now())

    def reached(self) -> set[int]:
        """Return the numbers of the modules whose parameters got these gradients, and moved."""
        owners, moved = self._parameters.owners, self._stepped
        return {number for i in self._seen if not moved or i in moved for number in owners[i]}

    def _left_now(self) -> dict[int, Tensor]:
        return {i: g for i, ref in self._seen.items() if (g := ref()) is not None}

    def were_thrown_away(self) -> bool | None:
        """Whether the gradients of the last backward are gone, so that no optimizer will get them.

        They are set to None, replaced, or all zero; None where that would have to wait for a
        device: they were changed in place there. There were none where all parameters were frozen,
        as those of a critic through which a generator is trained.
        """
        if not self.train:
            return True
        tensors = self._parameters.tensors
        kept = {
            i: g
            for i, ref in self._seen.items()
            if (g := ref()) is not None and g is self._parameters.gradient(tensors[i])
        }
        if not self._seen or not kept:
            return bool(self._seen)
        if _on_host(kept.values()):
            return _are_zero(kept.values())
        return None if all(version(g) != self._versions[i] for i, g in kept.items()) else False

    def are_none_left(self) -> bool | None:
        """As `were_thrown_away`, where it is not known which ones the last backward has left."""
        if self._parameters.gradient.is_function:
            return False
        found = self._find_gradients(range(len(self._parameters.tensors)))
        if not found or _on_host(found.values()):
            return _are_zero(found.values())
        return None

    def forget_step(self) -> None:
        """Forget what was read since the last backward, of a step that was not made."""
        self._weights = []
        for kept in (self._clipped, self._within, self._copies, self._pairs, self._first):
            kept.clear()
        self._held.clear()

    def before_step(self, optimizer: Optimizer) -> None:
        """Read the gradients that `optimizer` gets, and the weights that it is about to change.

        Of a parameter that several optimizers update in one step, within each other or one after
        the other, the gradient is the one that the first gets, and the update that of them all.
        """
        if self._suspected[1]:  # there is an optimizer that tells: no need to suspect one
            self._suspect_unheld_alone()
        places = self._places_of(optimizer)
        if self._moved and (again := self._moved.intersection(self._parameters.of(optimizer))):
            self._spoiled |= again
            self._parameters.shared |= again
            self._parameters.tell(_SHARED)
        self.read_clipped(optimizer)
        missing = tuple(i for i in places if i not in self._copies)
        self._weights += self._copy_weights(missing, optimizer)

    def read_clipped(self, optimizer: Optimizer | None) -> None:
        """Read the gradients that `optimizer` gets, or, for None, one that is not the model's own.

        Anew, also where nothing seems to have changed them: not every way of clipping leaves a
        mark (`p.grad.data`, unscaling, distributed tensors, code of others).
        """
        if not self._ended:
            self._within.add(optimizer)
        every = range(len(self._parameters.tensors))
        places = every if optimizer is None else self._places_of(optimizer)
        self._clipped[optimizer] = read_norms(self._find_gradients(places))

    def after_step(self, optimizer: Optimizer) -> None:
        """Read how far the parameters of `optimizer` have moved since `before_step`."""
        shared = self._parameters.shared
        self._forget_reshaped()
        places = [i for i in self._places_of(optimizer) if i not in shared and i in self._copies]
        if self._looks:
            copies = {i: self._copies[i] for i in places}
            self._shares += read_moved(self._parameters, optimizer, copies)
        self._updates += self._read_updates(tuple(places))
        self._moved.update(places)

    def keep_gradients(self) -> None:
        """Hold on to a sample of what the last backward has left."""
        self._left.keep(self._left_now())

    def were_put_together(self, optimizer: Optimizer) -> bool:
        """Whether `optimizer` gets others than the last backward has left, and no clipped ones."""
        found = self._find_gradients(self._parameters.of(optimizer))
        seen = {i: self._seen[i]() if i in self._seen else None for i in found}
        replaced = {i: g for i, g in found.items() if seen[i] is not g}
        return bool(replaced) and not self._left.become(replaced)

    def forget_gradients(self) -> None:
        """Take none of the last backward's for what the step is made of."""
        self._gradients = []

    def doubt_late(self) -> None:
        """Take no gradient for whole that no end of a backward has shown: it may be clipped."""
        self._within.clear()

    def note_step(self, optimizer: Optimizer) -> None:
        """Take note that `optimizer` has made the step, or that its step was skipped."""
        self._stepped.update(self._parameters.of(optimizer))

    def _idle(self) -> set[int]:
        """Return the places of parameters whose optimizer did not make the step.

        Their gradients are left from the last step of theirs, or wait for the next.
        """
        if not self._stepped or not self._parameters.are_divided:
            return set()
        waiting = set(range(len(self._parameters.tensors))) - self._parameters.unheld()
        return waiting - self._stepped

    def finish(self) -> list[int]:
        """Read how far parameters have moved that several optimizers update, now that all have.

        Or something that is none of torch's: return the places where this is news.
        """
        if self._suspected[1]:
            return []
        self._forget_reshaped()
        news = self._unheld.judge(self._copies, self._held)
        self._forget_copies(self._unheld.left_out)
        self._updates += self._read_updates(tuple(self._copies))
        return news

    def before_others(self) -> None:
        """Read the weights that no torch.optim.Optimizer holds, where something changes them."""
        if states := self._suspected[1]:  # no optimizer that tells has stepped yet
            self._unheld.note_earlier({i: state.weight for i, state in states.items()})
            return
        known, to_compare = self._unheld.after_backward(self._seen)
        self._weights += self._copy_weights(known)
        self._weights += self._copy_weights(to_compare, to_compare=True)

    def _suspect_unheld_alone(self) -> None:
        weights, states = self._suspected
        self._suspected = [], {}
        kept = self._unheld.keep({i: states[i].weight for i in states if i in self._seen})
        self._weights += [some for norms in weights for some in norms.of(kept)]
        self._copies = {i: copy for i, copy in self._copies.items() if i in kept}
        self._pairs.clear()

    def _forget_reshaped(self) -> None:
        """Let go of the copies of weights that have another shape now: nothing can be compared."""
        tensors, shapes = self._parameters.tensors, self._shapes
        reshaped = [i for i in self._copies if tensors[i].shape != shapes[i]]
        if reshaped:
            self._parameters.tell(_RESHAPED)
            self._pairs.clear()
            self._forget_copies(reshaped)

    def _places_of(self, optimizer: Optimizer) -> Places:
        """Return the places of the parameters that `optimizer` is the first to update."""
        places = self._first.get(optimizer)
        if places is None:
            places = self._parameters.of(optimizer)
            if self._held:
                places = tuple([i for i in places if i not in self._held])
            self._held.update(places)
            self._first[optimizer] = places
        return places

    # --- an optimizer that tells nothing: its step is found by what it did --------------------

    def before_update(self) -> None:
        """Read the weights, which an optimizer that has not been seen yet may change."""
        tensors = self._parameters.tensors
        found: dict[int, Tensor | None] = dict.fromkeys(range(len(tensors)))
        if not self._parameters.gradient.is_function:
            found = {**self._find_gradients(range(len(tensors)))}
        weights = self._copy_weights(tuple(found), to_compare=True)
        self._suspected = weights, {i: _state(tensors[i], g) for i, g in found.items()}

    def was_updated(self, trust_gradients: bool, may_wait: bool) -> bool:
        """Whether weights have changed since `before_update`.

        Parameters
        ----------
        trust_gradients : bool
            Believe it when the gradients were consumed. Otherwise, where weights may have changed
            behind autograd's back (`p.data`), their values are compared: this waits for the device.
        may_wait : bool
            Compare on an accelerator even where nothing hints at a step.
        """
        tensors, (_, states) = self._parameters.tensors, self._suspected
        gradient = self._parameters.gradient
        now = {
            i: _state(tensors[i], None if gradient.is_function else gradient(tensors[i]))
            for i in states
        }
        if any(now[i].weight != before.weight >= 0 for i, before in states.items()):
            return True
        consumed = any(now[i].gradient != before.gradient for i, before in states.items())
        if consumed and trust_gradients:
            return True
        replaced = any(now[i].memory != before.memory for i, before in states.items())
        if not (consumed or replaced or may_wait or self.compares_always):
            return False
        whole = self._parameters.updates is True
        return any(
            not torch.equal(copy, now if whole else sample_of(now))
            for i, copy in self._copies.items()
            for now in (measure.dense(tensors[i]),)
        )

    @property
    def compares_always(self) -> bool:
        """Whether weights are compared at every look, as no device has to be waited for."""
        return _on_host(self._copies.values())

    def after_update(self) -> None:
        """Read how far the parameters have moved since `before_update`.

        What the optimizer got is gone, unless another one told: it may have clipped by itself, and
        zeroed afterwards.
        """
        self._weights, states = self._suspected
        self._clipped.setdefault(None, [])
        self._updates += self._read_updates(tuple(states))

    # --- what was read ------------------------------------------------------------------------

    def has_weights(self, places: Iterable[int]) -> bool:
        """Whether the weights at `places` were read before the step."""
        return set(places).issubset([i for norms in self._weights for i in norms.places])

    @property
    def has_gradients(self) -> bool:
        """Whether an optimizer got a gradient."""
        return any(self._clipped.values())

    def segments(self, ends_were_seen: bool = True) -> list[Segment]:
        """Return every reading, as (layout, values).

        Parameters
        ----------
        ends_were_seen : bool
            Of all backwards: gradients that none has shown come from within one.
        """
        ends_were_seen &= self._parameters.ends_are_told
        ends_were_seen &= not self._parameters.gradient.is_function
        layout = self._parameters.layout
        segments = list(self._shares)
        for metric, read, wrong in (
            ("weight_norm", self._weights, self._unheld.left_out),
            ("update_norm", self._updates, self._spoiled),
            ("grad_norm", self._gradients, self._idle() | self._unheld.earlier),
            *[(metric, norms, ()) for metric, norms in self._unknown().items()],
        ):
            for norms in read:
                right = without(layout(norms.places, (metric,)), norms.places, wrong)
                segments.append((right, norms.values))
        for optimizer, norms in [(o, n) for o, some in self._clipped.items() for n in some]:
            segments.append((layout(norms.places, ("clipped_grad_norm",)), norms.values))
            if not ends_were_seen or self._seen.keys() >= set(norms.places):
                continue
            # gradients that no end of a backward has shown, as those of an optimizer that steps
            # within it, are read only now
            if optimizer in self._within:
                late = without(layout(norms.places, ("grad_norm",)), norms.places, self._seen)
                segments.append((late, norms.values))
            else:
                self._parameters.tell(_CAME_LATE)
        return [(keys, values) for keys, values in segments if keys]

    def _unknown(self) -> dict[str, list[Norms]]:
        """Return NaN where something reports nothing: no layer's norm is of the others alone."""
        moved, tensors = self._unheld.moved, self._parameters.tensors
        places = {"clipped_grad_norm": moved - self._unheld.earlier}
        for metric, read in (("weight_norm", self._weights), ("update_norm", self._updates)):
            if metric == "weight_norm" or self._parameters.updates:
                places[metric] = moved.difference(*[norms.places for norms in read])
        return {metric: unknown(some, tensors) for metric, some in places.items()}

    def _find_gradients(self, places: Iterable[int]) -> dict[int, Tensor]:
        tensors = self._parameters.tensors
        gradient = self._parameters.gradient
        if gradient.is_given:
            found = {i: g for i in places if (g := gradient(tensors[i])) is not None}
        else:
            found = {i: g for i in places if (g := tensors[i].grad) is not None}
        if len(self._parameters.touched) < len(tensors):
            self._parameters.touched.update(found)
        return found

    def _copy_weights(
        self, places: Places, optimizer: Optimizer | None = None, to_compare: bool = False
    ) -> list[Norms]:
        """Read the weights at `places`, and copy what their update is read, or found, by."""
        updates = self._parameters.updates
        result = []
        for group, weights in self._weights_at(places):
            copied = weights if updates is True else [sample_of(w) for w in weights]
            copies, is_pair = None, False
            if updates or to_compare:
                copies = self._memory_for(group, copied, optimizer)
            if copies is None or updates is not True:
                result.append(Norms(group, measure.norms(weights)))
                if copies is None:
                    continue
                measure.copy_with_norms(copied, copies)
            else:
                result.append(Norms(group, measure.copy_with_norms(weights, copies)))
                tensors = self._parameters.tensors
                is_pair = all([w is tensors[i] for i, w in zip(group, weights, strict=True)])
            self._shapes.update({i: self._parameters.tensors[i].shape for i in group})
            self._copies.update(zip(group, copies, strict=True))  # now that they are copies
            if is_pair:
                self._pairs[group] = weights, copies
        return result

    def _memory_for(
        self, places: Places, weights: list[Tensor], optimizer: Optimizer | None
    ) -> list[Tensor] | None:
        """Return memory for copies of `weights`, None where there is none, which is told."""
        parameters = self._parameters
        first = None if optimizer in parameters.optimizers else optimizer
        try:
            if first is None or leaves_room(weights, first):
                return [parameters.copy_of(w, i) for i, w in zip(places, weights, strict=True)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        parameters.forget_copies()
        parameters.tell(no_memory_for_copies(weights))
        return None

    def _read_updates(self, places: Places) -> list[Norms]:
        if not self._parameters.updates:
            self._forget_copies(places)
            return []
        if places in self._pairs:  # as when they were copied
            pair = self._pairs.pop(places)
            self._forget_copies(places)  # before they become differences
            return [Norms(places, measure.difference_norms(*pair))]
        result = []
        for group, weights in self._weights_at([i for i in places if i in self._copies]):
            copies = [self._copies[i] for i in group]
            self._forget_copies(group)
            if self._parameters.updates is True:
                norms = measure.difference_norms(weights, copies)
            else:
                samples = [sample_of(w) for w in weights]
                norms = scale_up(measure.difference_norms(samples, copies), weights, samples)
            result.append(Norms(group, norms))
        return result

    def _forget_copies(self, places: Iterable[int]) -> None:
        for i in places:
            self._copies.pop(i, None)

    def _weights_at(self, places: Iterable[int]) -> list[tuple[Places, list[Tensor]]]:
        """Return the weights at `places`, in groups of one device."""
        weights = {i: measure.in_memory(self._parameters.tensors[i]) for i in places}
        return [(group, [weights[i] for i in group]) for group in by_device(weights)]


class _State(NamedTuple):
    """What changes when a weight or its gradient is overwritten, or replaced."""

    weight: int
    memory: int
    gradient: tuple[int, int]


def _state(weight: Tensor, gradient: Tensor | None) -> _State:
    of_gradient = (0, 0) if gradient is None else (id(gradient), version(gradient))
    return _State(version(weight), measure.dense(weight).data_ptr(), of_gradient)


def _are_zero(tensors: Iterable[Tensor]) -> bool:
    return not any(bool(measure.dense(x).any()) for x in sorted(tensors, key=Tensor.numel))


def _on_host(tensors: Iterable[Tensor]) -> bool:
    """Whether their values can be had without waiting for a device."""
    return all(tensor.is_cpu for tensor in tensors)
