"""The life of one training step, as seen by the hooks: forward, backward, clip, step, close.

    forward    modules report their calls; the graph of the outermost call is tapped
    backward   gradients are read as they arrive; at the end those of the parameters, too
    clip       (whatever the user does to the gradients)
    step       before: gradients as the optimizer gets them, weights; after: the true update
    close      the first forward or backward after that hands the row to the tape

Nothing here waits for the device, and nothing that goes wrong here ends a training: the reading
that failed is switched off and told of once.
"""

from __future__ import annotations

import functools
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from gradscope.autograd.graph import Call, Graph, fingerprint
from gradscope.autograd.joins import Join, find_joins
from gradscope.capture.backward import Gradients, current_backward
from gradscope.capture.catalogue import Catalogue, ShortcutInfo, occurrences
from gradscope.capture.compiled import Eager, may_compile
from gradscope.capture.forward import Forward
from gradscope.capture.functions import read_functions
from gradscope.capture.hooks import ModuleTaps, tap_optimizers
from gradscope.capture.layers import ROOT
from gradscope.capture.modules import Modules
from gradscope.capture.parameters import ParameterReadings, Parameters
from gradscope.capture.plan import Plan, make_plan, position
from gradscope.capture.rows import Key, OfLayer, OfStep, Readings, Row
from gradscope.capture.scaler import ScalerTap, current_scale

PLANS = 128
"""Structures that are remembered: a model of changing depth has some, not any number."""

ANALYSIS_SHARE = 0.02
"""Share of a training's time, after the first seconds, that the analysis of structures may take."""

queue_callback = torch.autograd.Variable._execution_engine.queue_callback


class Step:
    """What has been read of one step; `number` counts optimizer steps."""

    def __init__(self, number: int, recorded: bool) -> None:
        self.number = number
        self.recorded = recorded
        self.is_over = False  # stepped: the next forward or backward belongs to another step
        self.skipped = False
        self.ended = math.nan  # seconds since the start
        self.stepped_by: list[weakref.ref[Optimizer]] = []
        self.gradients: dict[Gradients, None] = {}  # those that a backward has reached
        self.tapped: list[Gradients] = []  # those that hold on to their graph
        self.backwards: dict[int, bool] = {}  # number of a backward -> whether it counts
        self.parameters: ParameterReadings | None = None
        self.readings = Readings()
        self.scalars: dict[str, float] = {}

    def was_made_by(self, optimizer: Optimizer) -> bool:
        """Whether `optimizer` has stepped, or its step was skipped."""
        return any(reference() is optimizer for reference in self.stepped_by)

    def row(self, wide: bool) -> Row:
        """Return everything that was read; `wide` as in Row."""
        row = Row(self.number, self.ended, self.skipped, wide, scalars=self.scalars)
        for gradients in self.gradients:
            row.segments += gradients.readings.segments()
        if self.parameters is not None:
            row.segments += self.parameters.segments()
        row.segments += self.readings.segments()
        return row


def guarded(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a method of the recorder survive its errors: the first switches it off, and is told."""

    def guard(method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def survive(self: Recorder, *args: Any) -> None:
            if what in self._off:
                return
            try:
                method(self, *args)
            except Exception as error:
                self.failed(what, error)

        return survive

    return guard


class Recorder:
    """Records the steps of one model.

    Parameters
    ----------
    model : nn.Module
        Held weakly.
    optimizers : sequence of Optimizer, optional
        Whose steps count; by default those of every optimizer that has a parameter of the model.
    every : int
        Steps 0, `every`, 2 `every` ... are recorded.
    catalogue : Catalogue
        Numbers the layers and shortcuts that are met.
    emit : called with each closed row
    tell : called with a sentence about what cannot be recorded
    scaler : optional
        A loss scaler whose class is not torch's.
    compiled : bool
        Whether torch.compile has its hands on the model.
    keep_snapshot : bool, optional
        Keep the memory for the weights before a step.
    cut : "shortcuts", "branches" or None
        What to cut in a second backward, on every `cut_every`-th step.
    first, elapsed : int, float
        Number of the first step and seconds recorded before it, in a run that is resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizers: Sequence[Optimizer] | None,
        every: int,
        catalogue: Catalogue,
        emit: Callable[[Row], None],
        tell: Callable[[str], None],
        scaler: Any = None,
        compiled: bool = False,
        keep_snapshot: bool | None = None,
        cut: str | None = None,
        cut_every: int = 1,
        first: int = 0,
        elapsed: float = 0.0,
    ) -> None:
        self._catalogue = catalogue
        self.rows = 0
        self.saw_forward = self.saw_backward = False
        self._model = weakref.ref(model)
        self._optimizers = None if optimizers is None else weakref.WeakSet(optimizers)
        self._every = every
        self._emit = emit
        self._tell = tell
        self._cut = cut
        self._cut_every = cut_every
        self._start = time.monotonic() - elapsed
        self._modules = Modules(model)
        self._parameters = Parameters(keep_snapshot)
        self._outermost = {0}  # modules that were called from outside the model
        self._plans: dict[int, Plan] = {}
        self._expected: dict[int, Plan] = {}  # outermost module -> plan of its last forward
        self._forward: Forward | None = None
        self._unfinished: int | None = None  # the backward whose end is awaited
        self._ended_backwards = 0
        self._ended_before_step = 0
        self._updates: weakref.WeakKeyDictionary[Optimizer, tuple[int, bool]]
        self._updates = weakref.WeakKeyDictionary()
        self._saw_optimizer = self._hookless = False
        self._off: set[str] = set()
        self._numbered = (0, 0)
        self._trainer = -1  # the thread that trains
        self._analysis = 0.0  # seconds spent on looking for joins
        self._step = Step(first, recorded=first % every == 0)
        self._taps = ModuleTaps(self)
        self._compiled = compiled
        self._eager = Eager()
        self._arm()
        self._step_taps: list[RemovableHandle | ScalerTap]
        self._step_taps = [*tap_optimizers(self), ScalerTap(self, scaler)]

    # --- forward ------------------------------------------------------------------------------

    def enter(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that module `number` is called."""
        self._modules.note_call(number)
        if in_transform():
            return
        forward = self._forward or self._begin_forward(number)
        if forward is not None:
            forward.enter(self._modules.info(number), args, kwargs)

    def leave(self, number: int, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Note that module `number` returned."""
        if self._forward is None or in_transform():
            return
        if self._forward.leave(number, module, args, output):
            forward, self._forward = self._forward, None
            self._tap(forward)

    def _begin_forward(self, number: int) -> Forward | None:
        """Begin an outermost call; None where nothing is recorded of it."""
        if not torch.is_grad_enabled():
            return None
        if current_backward() == -1:  # else it is checkpointing that computes again
            self._unfinished = None
            if not self._saw_optimizer:
                self._look_for_update()
            if self._step.is_over:
                self._close_step()
        if not self._step.recorded:
            return None
        self._outermost.add(number)
        self._forward = Forward(self._expected.get(number))
        return self._forward

    def _tap(self, forward: Forward) -> None:
        """Tap the graph that the outermost call has left, if it has left one."""
        self.saw_forward = True
        graph = forward.graph()
        if graph is None:
            return
        calls, outermost = forward.calls, forward.modules[0].number
        structure = fingerprint(graph, calls)
        plan = self._plans.pop(structure, None) or self._make_plan(graph, forward)
        self._plans[structure] = plan  # the last one used stands last
        if len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]
        forward.supply(plan, graph)
        if plan.functions:
            self._read_functions(plan, graph, forward)
        self._expected[outermost] = plan
        cut = self._cut if self._step.number % self._cut_every == 0 else None
        gradients = Gradients(plan, forward.readings, self._arrives, self._gradient_failed, cut)
        gradients.tap(graph, calls)
        if cut:
            self._step.tapped.append(gradients)

    @guarded("activation functions")
    def _read_functions(self, plan: Plan, graph: Graph, forward: Forward) -> None:
        read_functions(plan.functions, graph, forward.readings)

    def _make_plan(self, graph: Graph, forward: Forward) -> Plan:
        """Analyse a structure that is met for the first time."""
        self._modules.look_for_new()
        self._taps.put_in(self._modules)
        calls, layers = forward.calls, forward.layers
        joins = self._find_joins(graph, calls)
        names = [(j.name, j.form, j.split, j.join, j.branch) for j in joins]
        numbers = self._catalogue.add_shortcuts(
            [
                ShortcutInfo(*name, occurrence, position(graph, calls, layers, join))
                for name, occurrence, join in zip(names, occurrences(names), joins, strict=True)
            ]
        )
        plan = make_plan(graph, calls, layers, joins, numbers)
        self._catalogue.function_of |= {f.layer: f.name for f in plan.functions}
        return plan

    def _find_joins(self, graph: Graph, calls: Sequence[Call]) -> list[Join]:
        """Look for residual joins, within a share of the time that the training has taken."""
        begun = time.monotonic()
        if self._analysis > 5 + ANALYSIS_SHARE * (begun - self._start):
            self._tell(
                "the structure of the model changes all the time: shortcuts are looked for in some"
                f" of the structures only, so that this takes {ANALYSIS_SHARE:.0%} of the time"
            )
            return []
        joins = find_joins(graph, calls)
        self._analysis += time.monotonic() - begun
        return joins

    # --- backward -----------------------------------------------------------------------------

    def _arrives(self, gradients: Gradients) -> bool:
        """Say whether the backward that reaches `gradients` counts; its first reading asks."""
        backward = current_backward()
        counts = self._step.backwards.get(backward)
        if counts is None:
            counts = self._begin_backward(backward, gradients)
        if counts:
            self._step.gradients.setdefault(gradients)
        return counts

    def _begin_backward(self, backward: int, gradients: Gradients) -> bool:
        nested = self._unfinished is not None  # as reentrant checkpointing's backwards are
        if self._step.is_over and not nested:
            self._close_step()
        counts = self._step.recorded and bool(self._step_taps) and trains(gradients.leaves)
        self._step.backwards[backward] = counts
        if counts and not nested:
            self._unfinished = backward
            # DistributedDataParallel queues its all-reduce after this: queue once more behind it
            queue_callback(lambda: queue_callback(self._end_backward))
        return counts

    @guarded("the end of the backward")
    def _end_backward(self) -> None:
        """Read the parameters' gradients, as accumulated and not yet clipped."""
        self._unfinished = None
        self._ended_backwards += 1
        self.saw_backward = True
        for gradients in self._step.gradients:
            gradients.end_of_backward()
        self._read_gradients()

    @guarded("the gradients of the parameters")
    def _read_gradients(self) -> None:
        self._readings().after_backward()
        if not self._saw_optimizer:
            self._readings().before_update()

    # --- step ---------------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer) -> None:
        """Read what any optimizer in this process, if it is one of the model's, is about to use."""
        if not self._updates_model(optimizer):
            return
        if self._step.was_made_by(optimizer):
            self._close_step()  # no forward was seen since it stepped last
        self._saw_optimizer = True
        self._ended_before_step = self._ended_backwards
        if self._step.recorded:
            self._read_weights(optimizer)

    @guarded("weights and clipped gradients")
    def _read_weights(self, optimizer: Optimizer) -> None:
        # what a scaler hands to an optimizer that unscales and skips by itself:
        self._log("grad_scale", getattr(optimizer, "grad_scale", None))
        self._log("found_inf", getattr(optimizer, "found_inf", None))
        self._readings().before_step(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """Read what a step of an optimizer of the model has changed."""
        if not self._updates_model(optimizer):
            return
        self._end_of_step(optimizer)
        if self._step.recorded:
            self._read_updates(optimizer)

    @guarded("weight updates")
    def _read_updates(self, optimizer: Optimizer) -> None:
        if self._ended_backwards > self._ended_before_step:  # its closure went backward
            self._readings().read_clipped(optimizer)
        self._readings().after_step(optimizer)

    @guarded("the loss scale")
    def before_scaled_step(self, scaler: Any, optimizer: Optimizer) -> None:
        """Read the factor that the gradients carry, or carried until they were unscaled."""
        if self._updates_model(optimizer) and self._step.recorded:
            self._log("loss_scale", current_scale(scaler))
            self._readings().expect_changes()

    @guarded("steps that the scaler skips")
    def after_scaled_step(self, scaler: Any, optimizer: Optimizer) -> None:
        """Note a step that the scaler skipped: then no optimizer hook has told of it."""
        if self._updates_model(optimizer) and not self._step.was_made_by(optimizer):
            self._step.skipped = True
            self._end_of_step(optimizer)

    @guarded("steps of an optimizer without hooks")
    def _look_for_update(self) -> None:
        """Find a step of an optimizer without hooks by what it did to weights and gradients.

        A torch.optim.Optimizer reports by hooks; a class that merely looks like one does not.
        """
        readings = self._step.parameters
        if readings is None or self._step.is_over or not readings.was_updated(self._hookless):
            return
        if not self._hookless:
            self._hookless = True
            self._every = 1
            self._tell(
                "the optimizer is no torch.optim.Optimizer and reports no steps: they are told by"
                " the change of the weights, and every step is recorded"
            )
        readings.after_update()
        self._end_of_step(None)

    def _end_of_step(self, optimizer: Optimizer | None) -> None:
        if optimizer is not None:
            self._step.stepped_by.append(weakref.ref(optimizer))
        self._step.ended = time.monotonic() - self._start
        self._step.is_over = True
        self._trainer = threading.get_ident()
        if self._step.recorded:
            self._number_layers()
        if self._forward is not None:  # an interrupt cut it short: it will never return
            self._forward = None
        elif self._step.parameters is not None and not self._step.gradients and may_compile():
            self._note_compiled(self._step.parameters)
        if (self._step.number + 1) % self._every == 0:
            self._arm()

    def _note_compiled(self, readings: ParameterReadings) -> None:
        """Take it that gradients which no forward led to come from compiled code."""
        if readings.has_gradients and not self._compiled:
            self._compiled = True
            self._tell(
                f"no forward was seen in step {self._step.number}, which seems to have run"
                " compiled: it has readings of parameters only. From now on recorded steps run"
                " without torch.compile; call torch.compile before watch() to have them all"
            )

    def _number_layers(self) -> None:
        """Give numbers to the layers that were met, while the model is sure to be there."""
        met = self._modules.met
        if met != self._numbered:
            self._catalogue.add_layers(self._modules.layers(), self._modules.executed)
            self._numbered = met

    def _updates_model(self, optimizer: Optimizer) -> bool:
        if self._optimizers is not None:
            return optimizer in self._optimizers
        groups, updates = self._updates.get(optimizer, (-1, False))
        if groups != len(optimizer.param_groups) or (self._step.recorded and not updates):
            self._parameters.look_up(self._modules)
            updates = bool(self._parameters.of(optimizer))
            self._updates[optimizer] = len(optimizer.param_groups), updates
        return updates

    def _readings(self) -> ParameterReadings:
        if self._step.parameters is None:
            self._parameters.look_up(self._modules)
            self._step.parameters = ParameterReadings(self._parameters)
        return self._step.parameters

    # --- close --------------------------------------------------------------------------------

    def log(self, scalars: dict[str, float | Tensor]) -> None:
        """Attach `scalars` to the current step, or to the next recorded one."""
        for name, value in scalars.items():
            self._log(name, value)

    def _log(self, name: str, value: float | Tensor | None) -> None:
        if isinstance(value, Tensor) and value.device.type != "cpu":  # stays on its device
            self._step.readings.add(value.detach().reshape(()).clone(), (OfStep(name),))
        elif value is not None:
            self._step.scalars[name] = float(value.item() if isinstance(value, Tensor) else value)

    def _close_step(self) -> None:
        """Hand the row to the tape and begin the next step."""
        step = self._step
        number = step.number + 1
        self._step = Step(number, recorded=number % self._every == 0)
        if step.recorded:
            self._emit_row(step)
        else:
            self._step.scalars, self._step.readings = step.scalars, step.readings
        if self._step.recorded:
            self._arm()
        else:
            self._taps.take_out(keep=self._outermost)
            self._eager.switch_off()

    def _arm(self) -> None:
        """Make the modules report their calls."""
        self._taps.put_in(self._modules)
        if self._compiled:
            self._eager.switch_on()

    @guarded("a row")
    def _emit_row(self, step: Step) -> None:
        for gradients in (*step.gradients, *step.tapped):
            gradients.release()
        self._number_layers()
        self._emit(step.row(self._parameters.wide))
        self.rows += 1

    def end_step(self) -> None:
        """Close the current step if an optimizer has made it, without waiting for the next.

        Only on the thread that trains: for another one the step may be going on.
        """
        if self._step_taps and self._step.is_over and self._trainer == threading.get_ident():
            self._close_step()

    def close(self) -> None:
        """Hand over what is left and take out every hook."""
        if not self._step_taps:
            return
        if not self._saw_optimizer:
            self._look_for_update()
        step = self._step
        if step.scalars or len(step.readings) or (step.recorded and step.is_over):
            self._emit_row(step)
        self.detach()

    def detach(self) -> None:
        """Take out every hook, and record nothing more."""
        self._taps.take_out()
        self._eager.switch_off()
        for tap in self._step_taps:
            tap.remove()
        self._step_taps = []
        self._forward = None

    # --- survive ------------------------------------------------------------------------------

    def module_failed(self, number: int, error: Exception) -> None:
        """Go on without module `number`, whose call could not be read."""
        self._forward = None
        self._taps.give_up(number)
        self.failed(f"the calls of layer '{self._modules.info(number).name or ROOT}'", error)

    def _gradient_failed(self, keys: Sequence[Key], error: Exception) -> None:
        names = {self._modules.info(key.module).name for key in keys if isinstance(key, OfLayer)}
        what = f"at layer '{', '.join(sorted(names))}'" if names else f"with {self._cut} cut"
        self.failed(f"the gradient {what}", error)

    def failed(self, what: str, error: Exception) -> None:
        """Tell that `what` could not be read; training goes on."""
        self._off.add(what)
        self._tell(
            f"could not read {what}: {type(error).__name__}: {error}; this reading is switched"
            " off, training goes on"
        )


def in_transform() -> bool:
    """Whether torch.func (grad, vmap, ...) is at work: its tensors are not those of a training."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def trains(leaves: Sequence[Node]) -> bool:
    """Whether the backward under way accumulates the gradient of a parameter, as `leaves` name."""
    try:
        return not leaves or any(torch._C._will_engine_execute_node(leaf) for leaf in leaves)
    except RuntimeError:  # it is an autograd.grad: nothing is accumulated
        return False
