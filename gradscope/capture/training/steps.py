"""The step under way: begun by a forward, ended by an optimizer, closed by what comes after it."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Set
from typing import Protocol

from torch import Tensor
from torch.autograd.graph import Node
from torch.optim.optimizer import Optimizer

from gradscope.capture.faults import Faults, guarded
from gradscope.capture.keys import OfLayer, OfStep
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.distributed import SPLIT_SINCE, was_split_since
from gradscope.capture.net.modules import Modules
from gradscope.capture.reading.readings import Readings
from gradscope.capture.reading.rows import Row, Segment, Sums
from gradscope.capture.reading.units import is_look
from gradscope.capture.training.audit import Audit
from gradscope.capture.training.parameter_readings import ParameterReadings
from gradscope.capture.training.parameters import Parameters
from gradscope.capture.training.unheld import told_of
from gradscope.capture.under_way import UnderWay
from gradscope.measure import gpu_kernel
from gradscope.wording import layers_named

_ONCE_MORE = (
    "a backward went once more through the graph of one (retain_graph) whose gradients were thrown"
    " away: signals of such steps would be of both, and are not read. Sum the losses, or go"
    " forward anew for each, to have them"
)

_WITHOUT_STEP = "backwards_without_step"


class HasReadings(Protocol):
    """Readings, or what they follow from, put together."""

    def segments(self) -> list[Segment]:
        """Return numbers and tensors, put together to one tensor a device."""

    def sums(self) -> list[Sums]:
        """Return all rows of sums."""


class BackwardReadings(Protocol):
    """What is read in backwards; `leaves` are nodes that those reach that train the model."""

    leaves: list[Node]

    @property
    def readings(self) -> HasReadings:
        """What was read."""

    def release(self) -> None:
        """Let go of what would outlive the graph."""

    def end_of_backward(self) -> None:
        """Read what waits for the end."""


class Step:
    """What has been read of one step; `number` counts optimizer steps."""

    def __init__(self, number: int, recorded: bool) -> None:
        self.number = number
        self.recorded = recorded
        self.is_over = False  # stepped: the next forward or backward belongs to another step
        self.skipped = False
        self.is_doubtful = False  # its signals may be of another step, or not complete
        self.ended = math.nan  # seconds since the start
        self.stepped_by: list[weakref.ref[Optimizer]] = []
        self.gradients: dict[BackwardReadings, None] = {}  # those that a backward has reached
        self.tapped: list[BackwardReadings] = []  # those that hold on to their graph
        self.dropped: weakref.WeakSet[BackwardReadings] = weakref.WeakSet()  # of the former
        self.has_dropped = False  # though they had gradients
        self.is_mixed = False  # whether one of those was reached again
        self.has_failed = False  # whether a backward of it has just been cut short
        self.backwards: dict[int, bool] = {}  # number of a backward -> whether it counts
        self.has_untapped = False  # whether one of them went through no layer
        self.forwarded: set[int] = set()  # modules seen called, outside of backwards
        self.parameters: ParameterReadings | None = None
        self.readings = Readings()
        self.scalars: dict[str, float] = {}
        self.learning_rate = -math.inf  # the largest so far

    def was_made_by(self, optimizer: Optimizer) -> bool:
        """Whether `optimizer` has stepped, or its step was skipped."""
        return any(reference() is optimizer for reference in self.stepped_by)

    def drop_gradients(self, trained: bool) -> None:
        """Forget what was read in backwards whose gradients no optimizer will get.

        `trained` says whether there were parameters that trained.
        """
        for gradients in self.gradients:
            gradients.release()
        self.dropped.update(self.gradients)
        self.has_dropped |= trained
        self.gradients.clear()

    def leave_unknown(self, numbers: Set[int], modules: Modules) -> None:
        """Say of layers that nothing of them is known; else they would seem not to be called."""
        for number in numbers & modules.executed.keys():
            if modules.infos[number].is_layer:
                for metric in ("activation_norm", "signal_norm", "input_signal_norm"):
                    self.readings.add(math.nan, (OfLayer(metric, number, 0),))

    def row(self, wide: bool) -> Row:
        """Return everything that was read; `wide` as in Row."""
        scalars = self.scalars
        if self.learning_rate > -math.inf:
            scalars = {"learning_rate": self.learning_rate, **scalars}
        row = Row(
            self.number,
            self.ended,
            self.skipped,
            wide,
            scalars=scalars,
            is_doubtful=self.is_doubtful,
        )
        for gradients in self.gradients if not self.is_doubtful else ():
            row.segments += gradients.readings.segments()
            row.sums += gradients.readings.sums()
        if self.parameters is not None:
            row.segments += self.parameters.segments(ends_were_seen=not self.is_doubtful)
        row.segments += self.readings.segments()
        return row


class StepListener(Protocol):
    """Who has to know when steps begin and end."""

    def step_began(self, step: Step) -> None:
        """Take note that `step` is the one under way from now on."""

    def step_ended(self, step: Step) -> None:
        """Take note that an optimizer has made `step`."""


class Steps:
    """Counts the steps of one model, and emits a row for each one that is recorded.

    Parameters
    ----------
    modules, parameters, catalogue
        Of the model; `catalogue` numbers its layers before a row speaks of them.
    every : int
        Steps 0, `every`, 2 `every` ... are recorded.
    first, elapsed : int, float
        Number of the first step and seconds recorded before it.
    emit : called with each closed row
    faults : Faults

    Attributes
    ----------
    current : Step
    every : int
    rows : int
        How many were emitted.
    start : float
        When the recording began, by `time.monotonic`.
    told_by_hooks : bool
        Whether an optimizer has told of a step; else steps are found by what they do.
    listener : StepListener or None
    """

    def __init__(
        self,
        modules: Modules,
        parameters: Parameters,
        catalogue: Catalogue,
        every: int,
        first: int,
        elapsed: float,
        emit: Callable[[Row], None],
        faults: Faults,
    ) -> None:
        self.faults = faults
        self.every = every
        self.current = Step(first, recorded=first % every == 0)
        self.rows = 0
        self.start = time.monotonic() - elapsed
        self.told_by_hooks = False
        self._making: UnderWay | None = None  # an optimizer's step, unless that failed
        self.listener: StepListener | None = None
        faults.doubt = self._doubt_signals
        self._modules = modules
        self._parameters = parameters
        self._catalogue = catalogue
        self._emit = emit
        self._audit = Audit(modules, parameters, catalogue)
        self._numbered = (0, 0)
        self._was_split = False  # over processes, since the recording began
        self._trainer = -1  # the thread that trains

    @property
    def next_is_recorded(self) -> bool:
        """Whether the step after the current one is to be recorded."""
        return (self.current.number + 1) % self.every == 0

    @property
    def is_being_made(self) -> bool:
        """Whether an optimizer steps just now: what a closure evaluates is all of its step."""
        return self._making is not None and self._making.goes_on()

    def begin_to_make(self) -> None:
        """Note that an optimizer is about to make the current step."""
        self.told_by_hooks = True
        self._making = UnderWay()

    def look_for_failure(self) -> None:
        """Forget what was read before a step of an optimizer that raised: it was not made."""
        if self._making is not None and not self._making.goes_on():
            if self.current.parameters is not None and not self.current.is_over:
                self.current.parameters.forget_step()
            self._making = None

    def parameter_readings(self) -> ParameterReadings:
        """Return the current step's readings of parameters."""
        if self.current.parameters is None:
            self.look_up_parameters()
            looks = is_look(self.current.number // self.every)
            self.current.parameters = ParameterReadings(self._parameters, looks=looks)
        return self.current.parameters

    def look_up_parameters(self) -> None:
        """Take the parameters as they are now, unless readings stand by the places they had."""
        if self.current.parameters is None:
            known = self._parameters.changes
            self._parameters.look_up(self._modules)
            if self._parameters.changes != known:
                self._modules.look_at_parameters()

    def begin_parameter_readings(self) -> ParameterReadings:
        """Return them at the end of a backward, whose readings replace what was read before.

        They begin anew where parameters were frozen, or freed, since the backward before.
        """
        step = self.current
        known = step.parameters
        if known and not step.is_over and not self.is_being_made and known.are_outdated():
            step.parameters = None
        return self.parameter_readings()

    def doubt_gradients(self) -> None:
        """Take no gradient any more for one before clipping that an optimizer shows first."""
        self._parameters.ends_are_told = False

    def doubt_forward(self) -> None:
        """Take nothing for known of the graph of a step whose forward could not be followed."""
        if not self.current.is_over:
            self._doubt_signals()

    def _doubt_signals(self) -> None:
        """Take nothing for known that the current step reads of the graph."""
        self.current.is_doubtful = True

    def end(self, optimizer: Optimizer | None) -> None:
        """Note that `optimizer`, or one without hooks, has made the current step."""
        step = self.current
        step.is_over = True  # first of all: an interrupt may come at any time
        step.ended = time.monotonic() - self.start
        self._making = None
        if optimizer is not None:
            step.stepped_by.append(weakref.ref(optimizer))
            self._parameters.optimizers[optimizer] = None
            if step.parameters is not None:
                self.meet(optimizer)
                step.parameters.note_step(optimizer)
        if step.is_mixed:
            self.faults.tell(_ONCE_MORE)
        if _WITHOUT_STEP in self._catalogue.facts:
            self._set_fact(_WITHOUT_STEP, 0)
        self._trainer = threading.get_ident()
        if step.recorded:
            self._number_layers()
        if self.listener is not None:
            self.listener.step_ended(step)

    @guarded("which optimizers hold the parameters", alone=True)
    def meet(self, optimizer: Optimizer) -> None:
        """Take note of an optimizer that makes a step, and of those that wait for theirs."""
        self._parameters.meet(optimizer)

    def close(self) -> None:
        """Emit the row of the current step, and begin the next one.

        Where that is interrupted it is still the current one: its row may be emitted once more.
        """
        step = self.current
        if step.recorded:
            self._emit_row(step)
        number = step.number + 1
        self.current = Step(number, recorded=number % self.every == 0)
        if not step.recorded:
            self.current.scalars, self.current.readings = step.scalars, step.readings
        if self.listener is not None:
            self.listener.step_began(self.current)

    def close_if_made(self) -> None:
        """Close the current step if an optimizer has made it, without waiting for the next.

        Only on the thread that trains: for another one the step may be going on.
        """
        if self.current.is_over and self._trainer == threading.get_ident():
            self.close()

    @guarded("backwards without a step", alone=True)
    def tell_of_backwards(self, count: int) -> None:
        """Say that `count` backwards have led to no step, if none was made."""
        if count and not self.current.number and not self.current.is_over:
            self._set_fact(_WITHOUT_STEP, count)

    def finish(self) -> None:
        """Emit what the current step has."""
        step = self.current
        if step.scalars or len(step.readings) or (step.recorded and step.is_over):
            self._emit_row(step)

    def let_go(self) -> None:
        """Hold on to nothing that was trained or trains: memory is free when the user drops it."""
        self.current = Step(self.current.number, recorded=False)
        self._making = None
        self._parameters.let_go()

    def log(self, name: str, value: float | Tensor | None) -> None:
        """Attach a scalar to the current step, or to the next recorded one."""
        if isinstance(value, Tensor) and value.device.type != "cpu":  # stays on its device
            self.current.readings.add(value.detach().reshape(()).clone(), (OfStep(name),))
        elif value is not None:
            number = value.item() if isinstance(value, Tensor) else value
            self.current.scalars[name] = float(number)

    def count(self, fact: str) -> None:
        """Count one more of `schema.FACTS`, of what leads to no row."""
        self._set_fact(fact, self._catalogue.facts.get(fact, 0) + 1)

    def _set_fact(self, fact: str, value: int) -> None:
        self._number_layers()
        self._catalogue.set_fact(fact, value)

    def note_learning_rate(self, rate: float | Tensor | None) -> None:
        """Note the rate that an optimizer makes the current step with."""
        if isinstance(rate, Tensor):
            self.current.readings.add(rate, (OfStep("learning_rate"),))
        elif rate is not None:
            self.current.learning_rate = max(self.current.learning_rate, rate)

    @guarded("a row")
    def _emit_row(self, step: Step) -> None:
        if not self.rows:
            self._look_at_sharing()
        step.is_doubtful |= self._was_split
        for gradients in (*step.gradients, *step.tapped):
            gradients.release()
        if step.parameters is not None:
            self._finish(step.parameters)
        self._number_layers()
        self._look_through_parameters()
        for sentence in gpu_kernel.problems():
            self.faults.tell(sentence)
        self._emit(step.row(self._parameters.wide))
        self.rows += 1

    @guarded("weight updates", alone=True)
    def _finish(self, parameters: ParameterReadings) -> None:
        news = parameters.finish()
        if news:
            owners = {n for i in news for n in self._parameters.owners[i]}
            names = self._modules.names(owners)
            self.faults.tell(told_of(names, parameters.has_weights(news)))

    @guarded("how processes share layers", alone=True)
    def _look_at_sharing(self) -> None:
        model, known = self._modules.model, self._catalogue.sharing
        if model is not None and known is not None and was_split_since(model, known):
            self._was_split = True
            self.faults.tell(SPLIT_SINCE)

    @guarded("which parameters are trained")
    def _look_through_parameters(self) -> None:
        self._audit.update(self.told_by_hooks)

    def _number_layers(self) -> None:
        """Give numbers to layers and joins that were met, while the model is sure to be there."""
        met = self._modules.met
        if met != self._numbered:
            replaced = self._catalogue.add_layers(self._modules.layers(), self._modules.executed)
            self._catalogue.add_to_fact("dropout", self._modules.dropout())
            self._numbered = met
            if replaced:
                self.faults.tell(
                    f"{layers_named(replaced)}: replaced before step {self.current.number}; the"
                    " readings of what came in place go on under this name"
                )
        self._catalogue.add_shortcuts(self._modules.executed)
