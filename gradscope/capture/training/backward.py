"""The backwards that reach the model: which of them train it, and when they end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from gradscope.autograd.torch_internals import (
    Unavailable,
    apart_from_modes,
    at_end_of_backward,
    current_backward,
    is_capturing,
    version,
    will_accumulate,
)
from gradscope.capture.faults import Faults, guarded
from gradscope.capture.training.kept_gradients import KeptGradients
from gradscope.capture.training.parameters import Parameters
from gradscope.capture.training.steps import BackwardReadings, Steps

_END, _LEFT = "the end of the backward", "what gradients a backward leaves"
_UNTAPPED = "gradients of a backward that goes through no layer"

_CUT_SHORT = (
    "a backward raised, or was interrupted, and what it had left of gradients by then is added to:"
    " signals and activations of such steps are NaN. Call zero_grad() before the next backward to"
    " have them"
)

_MANY = 32
"""Backwards from which on it is told, at each power of two, that no step has come of them."""


class _Before(NamedTuple):
    """What there was as a backward was called; of each gradient itself, and its version."""

    ended: int
    gradients: list[tuple[weakref.ref[Tensor], int] | None]

    def has_changed(self, now: list[Tensor | None]) -> bool:
        """Whether a gradient was added to, or has come."""
        return any(
            g is not None if was is None else was[0]() is not g or g is None or version(g) != was[1]
            for was, g in zip(self.gradients, now, strict=False)
        )


class Backwards:
    """Lets gradients be read in the backwards of recorded steps.

    Parameters
    ----------
    steps : Steps
    parameters : Parameters
    kept : KeptGradients
        Looks at what is there before each.
    faults : Faults

    Attributes
    ----------
    ended : int
        How many have ended.
    is_open : bool
        False once nothing is recorded any more.
    thread : int
        In which the model is trained: that of its latest forward, until then of `watch`. Gradients
        are looked at in no other, as torch may write them meanwhile, which ends in a crash.
    look_for_step : called before a backward begins
        Its forward may have come before the gradients went that hint at a step.
    look_at_loss : called as one begins
    """

    def __init__(
        self, steps: Steps, parameters: Parameters, kept: KeptGradients, faults: Faults
    ) -> None:
        self.faults = faults
        self.ended = 0
        self.is_open = True
        self.thread = threading.get_ident()
        self._steps = steps
        self._parameters = parameters
        self._kept = kept
        self.look_for_step: Callable[[], None] = lambda: None
        self.look_at_loss: Callable[[], None] = lambda: None
        self._unfinished: int | None = None  # the backward whose end is awaited
        self._ends_are_told = True
        self._before: _Before | None = None

    def is_here(self) -> bool:
        """Whether this is the thread in which the model is trained."""
        return self.thread == threading.get_ident()

    def is_outside(self) -> bool:
        """Whether a forward that begins now lies outside of every backward: it is the user's own.

        Within one, checkpointing computes something again.
        """
        outside = current_backward() == -1
        if outside:
            self._unfinished = None  # it was interrupted, if it is not finished yet
        return outside

    def arrives(self, gradients: BackwardReadings) -> bool:
        """Say whether the backward that reaches `gradients` counts; its first reading asks."""
        backward = current_backward()
        counts = self._steps.current.backwards.get(backward)
        if counts is None:
            counts = self._begin(backward, gradients)
        if counts:
            self._steps.current.gradients.setdefault(gradients)
            if gradients in self._steps.current.dropped:
                self._steps.current.is_mixed = self._steps.current.is_doubtful = True
        return counts

    def _begin(self, backward: int, gradients: BackwardReadings) -> bool:
        nested = self._unfinished is not None  # as reentrant checkpointing's backwards are
        if not nested:
            self._steps.look_for_failure()
            self._close_if_over()
        step, leaves = self._steps.current, gradients.leaves
        counts = step.recorded and self.is_open and not is_capturing()
        # without leaves of the model in the graph there is nobody to ask: it counts
        counts = counts and (not leaves or will_accumulate(leaves))
        step.backwards[backward] = counts
        if counts and not nested:
            if not self._steps.is_being_made:
                self._drop_what_was_thrown_away()
            self._unfinished = backward
            self._await_end()
            self._kept.before_backward()
            self.look_at_loss()
        return counts

    def _close_if_over(self) -> None:
        before = self._steps.current
        if not before.is_over:
            self.look_for_step()
            forwarded = before.forwarded  # that of this backward was taken for one of them
        else:
            forwarded = set()
        if before.is_over:
            self._steps.close()
            self._steps.current.forwarded |= forwarded

    def _drop_what_was_thrown_away(self) -> None:
        """Forget earlier backwards of the step whose gradients no optimizer will get."""
        step = self._steps.current
        failed, step.has_failed = step.has_failed, False
        if not step.gradients or (step.parameters is None and not failed):
            return
        readings = self._steps.parameter_readings()
        gone = readings.are_none_left() if failed else readings.were_thrown_away()
        if failed and gone is False:
            self.faults.tell(_CUT_SHORT)
            step.is_doubtful = True
        if gone is None:
            self.faults.tell(
                "gradients were changed in place between two backwards of a step, by"
                " zero_grad(set_to_none=False) maybe: whether signals of the first belong to the"
                " step is not known, and they are not read. Use zero_grad() to have them"
            )
            step.is_doubtful = True
        if gone:
            self._drop()

    def _drop(self) -> None:
        self._steps.current.drop_gradients(self._steps.parameter_readings().train)

    def forget_failed(self) -> None:
        """Forget a backward that has raised, if it is sure that nothing of it is left.

        What was read of it holds gradients, for which the next forward may need the memory.
        """
        step = self._steps.current
        if step.has_failed and step.gradients and self._steps.parameter_readings().are_none_left():
            self._drop()

    def _await_end(self) -> None:
        try:
            # DistributedDataParallel queues its all-reduce after this: queue once more behind it
            at_end_of_backward(lambda: at_end_of_backward(lambda: apart_from_modes(self._end)))
        except Unavailable as error:
            self.faults.report(_END, error)
            self._unfinished = None
            self.ended += 1  # or rather begun: there was one
            self._ends_are_told = False
            self._steps.doubt_gradients()

    # --- a backward that goes through no layer, as of a penalty on weights ----------------------

    @guarded(_UNTAPPED, alone=True)
    def call_begins(self) -> None:
        """Note what gradients there are as a backward is called, whatever it goes through."""
        if not self.is_here():
            return
        self._before = None
        step = self._steps.current
        if not self.is_open or not (step.recorded or step.is_over):
            return
        if not step.is_over:
            apart_from_modes(self.look_for_step)
        elif self._parameters.froze_or_thawed():
            self._steps.look_up_parameters()
        apart_from_modes(self._kept.before_backward)
        found = self._parameters.gradients()
        noted = [None if g is None else (weakref.ref(g), version(g)) for g in found]
        self._before = _Before(self.ended, noted)

    @guarded(_UNTAPPED, alone=True)
    def call_ended(self) -> None:
        """Read the gradients if it has added to them, and none of its nodes has told of it."""
        if not self.is_here():
            return
        before, self._before = self._before, None
        if before is None or before.ended != self.ended or is_capturing():
            return
        if before.has_changed(self._parameters.gradients()):
            apart_from_modes(self._read_untapped, not any(before.gradients))

    @guarded(_UNTAPPED, alone=True)
    def call_failed(self) -> None:
        """Note that it has raised: what was read of it may be of no step."""
        if not self.is_here():
            return
        before, self._before = self._before, None
        if before is not None and self._unfinished is not None:
            self._unfinished = None
            self._steps.current.has_failed = True

    def _read_untapped(self, is_first: bool) -> None:
        if self._steps.current.is_over:
            self._steps.close()
        step = self._steps.current
        if not step.recorded:
            return
        if step.gradients and is_first and not self._steps.is_being_made:
            self._drop()
        self.ended += 1
        step.backwards[-1 - self.ended] = step.has_untapped = True
        self._read_gradients()
        self._kept.after_backward()

    def settle(self) -> None:
        """Read what waits for the end of a backward, where none is told, or none came."""
        if (self._ends_are_told and self.faults.is_off(_END)) or self.faults.is_off(_LEFT):
            self._steps.doubt_gradients()  # nothing tells which of them are this step's
            self._steps.current.is_doubtful = True
        if self._steps.current.has_failed:
            self._drop_what_was_thrown_away()
        if not self._ends_are_told:
            for gradients in self._steps.current.gradients:
                gradients.end_of_backward()

    @guarded(_END)
    def _end(self) -> None:
        """Read the parameters' gradients, as accumulated and not yet clipped."""
        self.ended += 1
        self._complete_signals()
        self._read_gradients()
        self._kept.after_backward()
        if self.ended >= _MANY and not self.ended & (self.ended - 1):
            self._steps.tell_of_backwards(self.ended)
        self._unfinished = None  # last of all: one that is interrupted before has failed

    @guarded("what is complete at the end of the backward")
    def _complete_signals(self) -> None:
        for gradients in self._steps.current.gradients:
            gradients.end_of_backward()

    def _read_gradients(self) -> None:
        self._look_at_gradients()
        self._read_norms()
        self._read_weights()

    @guarded(_LEFT)
    def _look_at_gradients(self) -> None:
        readings = self._steps.begin_parameter_readings()
        readings.after_backward()
        if self._steps.current.has_dropped:
            readings.keep_gradients()

    @guarded("the gradients of the parameters", alone=True)
    def _read_norms(self) -> None:
        self._steps.parameter_readings().read_gradients()

    @guarded("the weights before a step", alone=True)
    def _read_weights(self) -> None:
        readings = self._steps.parameter_readings()
        if not self._steps.told_by_hooks:
            readings.before_update()
        else:
            readings.before_others()
