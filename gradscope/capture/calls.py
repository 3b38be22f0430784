"""Module hooks report here: forwards are followed, and the graphs that they leave are tapped."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from gradscope.autograd.graph import Graph, adds_after
from gradscope.autograd.torch_internals import (
    Unavailable,
    in_transform,
    is_capturing,
    recomputing_node,
    roots_of_innermost_backward,
    transform_has_graph,
)
from gradscope.capture import sentences
from gradscope.capture.compiled.eager import Eager
from gradscope.capture.compiled.tapped import Taps
from gradscope.capture.compiled.unseen import Unseen
from gradscope.capture.faults import Faults, guarded
from gradscope.capture.forwards.chains import Chains
from gradscope.capture.forwards.forward import Forward
from gradscope.capture.forwards.gradients import Gradients
from gradscope.capture.forwards.plan import Plan
from gradscope.capture.forwards.structures import ATTENTION, Structures
from gradscope.capture.garbage import collection_put_off
from gradscope.capture.keys import Key, OfLayer
from gradscope.capture.memory import is_out_of_memory
from gradscope.capture.net import layers
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.hooks import ModuleHooks
from gradscope.capture.net.layers import ROOT
from gradscope.capture.net.modules import Modules
from gradscope.capture.reading.attention import read_attention
from gradscope.capture.reading.functions import read_functions
from gradscope.capture.reading.units import Units
from gradscope.capture.training.backward import Backwards
from gradscope.capture.training.losses import Losses
from gradscope.capture.training.steps import Step, Steps
from gradscope.capture.training.updates import Updates
from gradscope.capture.under_way import UnderWay
from gradscope.wording import layers_named


class Calls:
    """Follows the calls of a model's modules, on recorded steps through every module.

    Parameters
    ----------
    modules, catalogue, steps, backwards, updates
        Of the model.
    cut : "shortcuts", "branches" or None
        What to cut in a second backward, on every `cut_every`-th step.
    cut_every : int
    compiled : weak references to modules
        Those that were handed to torch.compile.
    faults : Faults

    Attributes
    ----------
    saw_forward : bool
        Whether the model was called with gradients on.
    """

    def __init__(
        self,
        modules: Modules,
        catalogue: Catalogue,
        steps: Steps,
        backwards: Backwards,
        updates: Updates,
        cut: str | None,
        cut_every: int,
        compiled: tuple[weakref.ref[nn.Module], ...],
        faults: Faults,
    ) -> None:
        self.faults = faults
        self.saw_forward = False
        self._modules = modules
        self._steps = steps
        self._backwards = backwards
        self._updates = updates
        self._cut = cut
        self._cut_every = cut_every
        self._compiled = bool(compiled)
        self._eager = Eager()
        self._unseen = Unseen(modules, catalogue.outside, self._eager, self._compiled, faults)
        self._hooks = ModuleHooks(self)
        self._taps = Taps(
            compiled,
            self._compiled_call_begins,
            modules,
            catalogue,
            steps,
            backwards,
            self._hooks,
            faults,
        )
        self._structures = Structures(catalogue, faults, steps.start, self._meet)
        backwards.look_at_loss = Losses(catalogue, faults).look
        self._units = Units(faults)
        self._chains = Chains()
        self._outermost = {0}  # modules that were called from outside the model
        self._expected: dict[int, Plan] = {}  # outermost module -> plan of its last forward
        self._forward: Forward | None = None
        self._are_several = False  # threads, which have been seen in forwards at once
        self._node: Node | None = None  # in whose backward a call was computed anew
        self._is_apart = False  # that call, from others in the same
        self._has_lost = False  # what was overwritten before it was read
        self._unread: set[int] = set()  # layers computed anew whose gradients did not count
        self._transformed: set[int] = set()  # layers that were called within torch.func

    # --- what module hooks tell -------------------------------------------------------------------

    def note_transformed(self, number: int, module: nn.Module) -> None:
        """Note that module `number` is called within torch.func; its weights may train by that."""
        self._modules.note_call(number)
        if transform_has_graph() and any(
            isinstance(p, nn.Parameter) and p.requires_grad
            for _, p in layers.own_parameters(module)
        ):
            self._transformed.add(number)

    def enter(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Note that module `number` is called."""
        modules = self._modules
        if number not in modules.executed:
            modules.note_call(number)
        forward = self._forward
        if forward is not None:
            if forward.thread != get_ident():
                if not self._may_begin_beside(forward):
                    return
                forward = self._forward = None
            elif number in self._outermost and not forward.goes_on():  # an interrupt cut it short
                forward = self._forward = None
        forward = forward or self._begin(number)
        if forward is not None:
            if self._compiled:
                self._taps.enter(number, args, kwargs)
            forward.enter(modules.infos[number], module, args, kwargs)
        elif self._compiled and self._taps.is_on:
            self._taps.passes(number, 1)

    def leave(self, number: int, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Note that module `number` returned."""
        forward = self._forward
        if forward is None:
            if self._compiled and self._taps.is_on:
                self._taps.passes(number, -1)
            return
        if forward.thread != get_ident():
            return
        if self._compiled:
            self._taps.leave(number, module, output)
        if forward.leave(number, module, args, output):
            self._forward = None
            with collection_put_off():
                self._tap(forward)

    def module_failed(self, number: int, error: Exception) -> None:
        """Go on without module `number`, whose call could not be read."""
        if self._forward is not None and self._forward.thread == get_ident():
            self._forward = None
        if not is_out_of_memory(error):  # which may pass
            self._hooks.give_up(number)
            self._steps.doubt_forward()  # of the layers before nothing is known any more
            if number in self._outermost:
                self._unseen.gave_up = True
                self._steps.doubt_gradients()  # no forward is tapped, and no end of a backward told
        self._doubt(error)
        name = self._modules.info(number).name or ROOT
        self.faults.report(f"the calls of layer '{name}'", error)

    def _doubt(self, error: Exception) -> None:
        """Without torch's help no end of a backward is told: gradients may be clipped already."""
        if isinstance(error, Unavailable):
            self._unseen.gave_up = True
            self._steps.doubt_gradients()

    def _compiled_call_begins(self) -> None:
        """Note that a compiled module is called: if it is a forward, the step before is over."""
        if is_capturing():
            self.faults.tell(sentences.CAPTURED)
            return
        if self._backwards.is_outside() and not in_transform():
            self._close_if_over()
            self._backwards.thread = get_ident()
        self.saw_forward = True

    def _close_if_over(self) -> None:
        self._backwards.forget_failed()
        self._steps.look_for_failure()
        self._updates.look_for_step()
        if self._steps.current.is_over:
            self._steps.close()

    def _may_begin_beside(self, forward: Forward) -> bool:
        """Whether a call in another thread than that of `forward` is read: if that never returned.

        Without gradients, as an actor infers beside the training, it is none that is read at all.
        """
        if not torch.is_grad_enabled():
            return False
        if not forward.goes_on():
            return True
        if self._backwards.is_outside():
            self._close_if_over()
            self._are_several = self._steps.current.is_doubtful = True
            self.faults.tell(sentences.THREADS)
        return False

    def _begin(self, number: int) -> Forward | None:
        """Begin an outermost call; None where nothing is recorded of it, or taps do."""
        if not torch.is_grad_enabled():
            return None
        if is_capturing():
            self.faults.tell(sentences.CAPTURED)
            return None
        if self._backwards.is_outside():
            self._close_if_over()
            if self._are_several and not self._backwards.is_here():  # maybe the rest of a call
                self._steps.current.is_doubtful = True
            self._backwards.thread = get_ident()
        elif not self._computes_anew(number):
            return None
        if not self._steps.current.recorded or self._taps.is_on:
            self._steps.current.forwarded.add(number)
            return None
        self._outermost.add(number)
        self._units.begin(self._steps.current.number // self._steps.every)
        self._forward = Forward(self._expected.get(number), self._units, UnderWay())
        if self._compiled:
            self._taps.forward_begins()
        return self._forward

    def _computes_anew(self, number: int) -> bool:
        """Whether a call within a backward is one that was not read before, without gradients.

        That is so under re-entrant checkpointing. Otherwise the forward has been read, and is only
        gone through again to fetch what was not kept.
        """
        node = recomputing_node()
        if node is None or number in self._steps.current.forwarded:
            return False
        self._is_apart = node is self._node
        self._node = node
        return True

    def _arrives_anew(
        self, is_apart: bool, end: int, layers: set[int], gradients: Gradients
    ) -> bool:
        """Say whether gradients count that reach what was computed within a backward.

        `end` is the sequence number after that, `is_apart` whether more was, apart from it.
        """
        counts = self._backwards.arrives(gradients)
        if not counts:
            self._unread |= layers
        elif is_apart or _is_added_to(end):
            self.faults.tell(sentences.APART)
        return counts

    def _tap(self, forward: Forward) -> None:
        """Tap the graph that the outermost call has left, if it has left one."""
        self.saw_forward = True
        if self._backwards.is_outside():
            self._steps.current.forwarded |= forward.with_graph
        graph = forward.graph()
        if graph is None:
            return
        plan = self._structures.plan(graph, forward)
        plan.trust.lost = self._note_lost
        if plan is not self._expected.get(forward.modules[0].number):
            forward.readings.read_waiting()
            forward.readings.believe(plan.trust)  # the other knows the nodes of another graph
        if plan.functions:
            self._read_functions(plan, graph, forward)
        if plan.forward or plan.forward_sums:
            self._supply(plan, graph, forward)
        if self._units.is_on:
            self._read_attention(plan, graph, forward)
            self._structures.add_batch_norms(forward)
            self._units.read(forward.readings)
        forward.readings.read_waiting()
        self._expected[forward.modules[0].number] = plan
        step = self._steps.current
        cut = self._cut if step.number % self._cut_every == 0 else None
        arrives = self._backwards.arrives
        if not self._backwards.is_outside():
            layers = {number for number in forward.layers if number is not None}
            end = forward.outermost().stop
            arrives = partial(self._arrives_anew, self._is_apart, end, layers)
            link = None
        else:
            link = self._chains.follow(forward.modules[0].number, forward.outermost(), plan.way)
        gradients = Gradients(plan, forward.readings, arrives, self._gradient_failed, cut, link)
        if self._compiled and self._taps.looks:
            self._taps.learn(plan, graph, forward)
        gradients.tap(graph, forward.calls if plan.direct or cut else (), forward.replays())
        if cut:
            step.tapped.append(gradients)

    def _note_lost(self) -> None:
        """Say once that what waited to be read was overwritten."""
        if not self._has_lost:
            self._has_lost = True
            self.faults.tell(sentences.LOST.format(step=self._steps.current.number))

    @guarded("what joins add up in the forward")
    def _supply(self, plan: Plan, graph: Graph, forward: Forward) -> None:
        forward.supply(plan, graph)

    @guarded("activations called as functions")
    def _read_functions(self, plan: Plan, graph: Graph, forward: Forward) -> None:
        read_functions(plan.functions, graph, forward.readings, self._units)

    @guarded(ATTENTION)
    def _read_attention(self, plan: Plan, graph: Graph, forward: Forward) -> None:
        read_attention(plan.attention, graph, forward.readings, self._units.look)

    def _gradient_failed(self, keys: Sequence[Key], error: Exception) -> None:
        names = {self._modules.info(key.module).name for key in keys if isinstance(key, OfLayer)}
        self._doubt(error)
        where = f"at layer '{', '.join(sorted(names))}'" if names else "at shortcuts"
        if self._cut is not None and not names:
            where += f", or with {self._cut} cut"
        self.faults.report(f"the gradient {where}", error)

    def _meet(self) -> None:
        """Look for modules that were added to the model."""
        self._taps.forget()
        self._modules.look_for_new()
        self._hooks.take_out(keep=[number for number, _ in self._modules])
        self._hooks.put_in(self._modules)

    # --- steps ------------------------------------------------------------------------------------

    def step_began(self, step: Step) -> None:
        """Follow every module in a recorded step, and between them those called from outside."""
        self._node = None
        self._chains.clear()
        if step.recorded:
            if self._modules.have_changed():
                self._meet()
            self.arm()
            step.leave_unknown(self._hooks.given_up, self._modules)
        else:
            self._disarm()

    def step_ended(self, step: Step) -> None:
        """Give up a forward that has not returned, and tell compiled code by what it left out."""
        if step.recorded and self._transformed:
            step.is_doubtful = True
            self.faults.tell(self._named(self._transformed) + sentences.TRANSFORMED)
        self._transformed.clear()
        if self._forward is not None and self._forward.thread == get_ident():
            self._forward = None  # later calls may have been taken for a part of it
            step.is_doubtful = True
            self.faults.tell(sentences.NOT_RETURNED)
        elif self._taps.is_on:
            self._taps.step_ended(step)
        elif not self._unseen.gave_up:
            self._unseen.look(step)
            self._compiled = self._unseen.is_compiled
        if self._unread:
            self.faults.tell(self._named(self._unread) + sentences.UNREAD)
            self._unread.clear()
        if self._steps.next_is_recorded:
            self.arm()
        elif self._compiled:
            self._disarm()

    def _named(self, numbers: set[int]) -> str:
        return layers_named(self._modules.names(numbers))

    def detach(self) -> None:
        """Take out every hook."""
        self._taps.detach()
        self._hooks.take_out()
        self._eager.switch_off()
        self._forward = self._node = None

    def arm(self) -> None:
        """Make the modules report their calls."""
        self._hooks.put_in(self._modules)
        if not self._compiled:
            return
        if self._taps.switch(self._is_readable_by_taps()):
            self._eager.switch_off()
        else:
            self._eager.switch_on()

    def _is_readable_by_taps(self) -> bool:
        """Whether the step that begins asks for nothing that taps do not read."""
        step = self._steps.current
        number = step.number + step.is_over
        return self._cut is None or number % self._cut_every != 0

    def _disarm(self) -> None:
        """Leave an unrecorded step to itself: only its outermost calls report."""
        self._hooks.take_out(keep=self._outermost)
        self._taps.switch(False)
        self._eager.switch_off()


def _is_added_to(end: int) -> bool:
    """Whether what was made from `end` on, for the innermost backward, has several inputs."""
    try:
        return adds_after(end, roots_of_innermost_backward())
    except Unavailable:
        return False
