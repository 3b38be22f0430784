"""Recorded steps of compiled models, read by taps within their graphs.

The first recorded step runs eagerly, and the hooks on its graph show the structure; from then on a
compiled twin of each compiled module runs in recorded steps (compiled.py), with taps where that
structure has something to read (tap_plan.py, taps.py). What compiles anew later may be of another
structure, and is looked at eagerly once more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.autograd.graph import Graph
from gradscope.autograd.torch_internals import (
    Unavailable,
    apart_from_modes,
    is_capturing,
    will_accumulate,
)
from gradscope.capture.compiled.aliases import Aliases
from gradscope.capture.compiled.eager import Sites, compiled_frames
from gradscope.capture.compiled.tap_plan import TapPlan, plan_taps
from gradscope.capture.compiled.tap_readings import TappedReadings, TapRows
from gradscope.capture.faults import Faults, guarded
from gradscope.capture.forwards.forward import Forward, with_gradient
from gradscope.capture.forwards.plan import Plan
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.hooks import ModuleHooks
from gradscope.capture.net.modules import Modules
from gradscope.capture.training.backward import Backwards
from gradscope.capture.training.steps import Step, Steps
from gradscope.wording import layers_named

EAGER_DEVICES = ("cpu",)
"""Where recorded steps stay eager: what a compiler makes of the sums costs more than our kernel."""

STRUCTURES = 8
"""So often what compiles anew is looked at eagerly; then recorded steps stay eager."""

_TAPS = "compiled steps within their graphs"


class Taps:
    """Has compiled modules run with taps in recorded steps, as far as these show the structure.

    Parameters
    ----------
    sites : modules that were handed to torch.compile, weakly
    begin : called when a compiled module is called, gradients on
    modules, catalogue, steps, backwards, hooks, faults
        Of the model.

    Attributes
    ----------
    is_on : bool
    """

    def __init__(
        self,
        sites: tuple[weakref.ref[nn.Module], ...],
        begin: Callable[[], None],
        modules: Modules,
        catalogue: Catalogue,
        steps: Steps,
        backwards: Backwards,
        hooks: ModuleHooks,
        faults: Faults,
    ) -> None:
        self.faults = faults
        self.is_on = False
        self._begin = begin
        self._modules = modules
        self._catalogue = catalogue
        self._steps = steps
        self._backwards = backwards
        self._hooks = hooks
        self._reached = False  # a site was called: what is put there is called, too
        self._is_stale = True  # the structure is not known, or may have changed
        self._frames = -1  # compiled functions when taps were warm
        self._looks = 0
        self._depth = 0  # of calls under way that taps read
        self._plans: dict[int, tuple[Plan, TapPlan]] = {}  # outermost module -> its last
        self._rows = TapRows()
        self._arrived: TappedReadings | None = None
        self._aliases: Aliases | None = None
        self._sites: Sites | None = None
        device = self._one_device() if sites else None
        self._reads = device is not None and device.type not in EAGER_DEVICES
        try:
            if sites:  # where they are not read their calls tell at least that a step is over
                self._sites = Sites(sites, self)
                if self._reads:
                    self._sites.check_twins()
                    hooks.may_tap()
                self._sites.put_in()
        except Unavailable as error:
            if self._reads:
                faults.report(_TAPS, error)

    def _one_device(self) -> torch.device | None:
        found = {p.device for _, m in self._modules for p in m.parameters(recurse=False)}
        return found.pop() if len(found) == 1 else None

    # --- which way a step runs --------------------------------------------------------------------

    def switch(self, wanted: bool) -> bool:
        """Run the next calls with taps if they are `wanted` and can be had; return if so."""
        on = wanted and self._can_read()
        if on != self.is_on:
            self.is_on = on
            self._depth = 0
            self._hooks.tap(self._rows.spots() if on else {})
        return on

    def _can_read(self) -> bool:
        return (
            self._reads
            and self._sites is not None
            and self._reached
            and not self._is_stale
            and not self.faults.is_off(_TAPS)
            and bool(self._rows)
        )

    def step_ended(self, step: Step) -> None:
        """Have the structure looked at again if a graph was compiled that was not there before."""
        if not (self.is_on and step.recorded):
            return
        frames = compiled_frames()
        if not step.gradients and step.parameters is not None and step.parameters.has_gradients:
            self._give_up(
                f"step {step.number} was compiled in a way that shows nothing to taps: it has"
                " readings of parameters only. From now on recorded steps run without torch.compile"
            )
        elif self._frames < 0:
            self._frames = frames
        elif frames > self._frames:
            self._frames = -1
            self._is_stale = True
            self._looks += 1
            if self._looks > STRUCTURES:
                self._give_up(
                    "the model is compiled anew all the time: from now on recorded steps run"
                    " without torch.compile"
                )

    def _give_up(self, sentence: str) -> None:
        self.faults.tell(sentence)
        self.detach()

    def detach(self) -> None:
        """Leave the compiled modules as they were."""
        self.switch(False)
        sites, self._sites = self._sites, None
        if sites is not None:
            sites.take_out()

    # --- what compiled modules tell ---------------------------------------------------------------

    def compiled_call_begins(self) -> bool:
        """Take note of a call; return whether it runs with taps."""
        if not torch.is_grad_enabled():
            return False
        self._reached = True
        self._note_call()
        return self.is_on and not is_capturing()

    @guarded("calls of compiled modules")
    def _note_call(self) -> None:
        apart_from_modes(self._begin)

    @guarded("the beginning of compiled backwards")
    def compiled_call_ended(self, output: object) -> None:
        """Have the backward of a call reported when it begins."""
        if not self._backwards.is_outside():
            return
        for tensor in with_gradient(output):
            if tensor.grad_fn is not None:
                tensor.grad_fn.register_prehook(self._backward_begins)

    def compiled_call_failed(self, error: Exception) -> None:
        """Go on without taps: the compiler could not take them in."""
        self.faults.report(_TAPS, error)
        self.detach()

    @guarded("the beginning of compiled backwards")
    def _backward_begins(self, *_: object) -> None:
        if self.is_on and will_accumulate(self._rows.nodes):
            apart_from_modes(self._backwards.arrives, self._current())

    def _rows_arrived(self, sent: tuple[Tensor | None, ...]) -> None:
        try:
            with torch.no_grad():
                apart_from_modes(self._take, [None if x is None else x.detach() for x in sent])
        except Exception as error:
            self.faults.report(_TAPS, error)

    def _take(self, sent: list[Tensor | None]) -> None:
        if not self.is_on:
            return
        readings = self._current()
        if self._backwards.arrives(readings):
            readings.add(sent)

    def _current(self) -> TappedReadings:
        step = self._steps.current
        if self._arrived is None or self._arrived not in step.gradients:
            self._arrived = TappedReadings(self._rows)
        return self._arrived

    # --- the structure ----------------------------------------------------------------------------

    @property
    def looks(self) -> bool:
        """Whether the forward under way is to show the structure."""
        return self._aliases is not None

    def forward_begins(self) -> None:
        """Take note of an eager forward on a recorded step."""
        can_look = self._reads and self._sites is not None
        can_look &= self._reached or not self._steps.rows
        self._aliases = Aliases(with_gradient) if can_look and not self.is_on else None

    def forget(self) -> None:
        """Look at the structure once more: modules have changed."""
        self._is_stale = True

    def passes(self, number: int, way: int) -> None:
        """Take note of a call (1) or return (-1) that taps read, or that nobody does."""
        if way > 0 and not self._depth and number not in self._plans and not self._is_stale:
            self._is_stale = True
            self.faults.tell(
                f"a part of the model was called by itself for the first time in step"
                f" {self._steps.current.number}: it is read from the next recorded step on"
            )
        self._depth = max(self._depth + way, 0)

    def enter(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call in an eager forward."""
        if self._aliases is not None:
            self._aliases.enter(number, args, kwargs)

    def leave(self, number: int, module: nn.Module, output: object) -> None:
        """Take note of a return in an eager forward."""
        if self._aliases is not None:
            self._aliases.leave(number, module, output)

    @guarded("the structure of compiled steps")
    def learn(self, plan: Plan, graph: Graph, forward: Forward) -> None:
        """Plan taps for the structure of an eager forward."""
        aliases, self._aliases = self._aliases, None
        outermost = forward.modules[0].number
        known = self._plans.get(outermost)
        self._is_stale = False
        if aliases is None or len(forward.calls) < len(forward.modules):
            return
        if forward.has_constants:  # taps see what has a gradient
            return
        if known is not None and known[0] is plan:
            return
        taps = plan_taps(
            plan,
            graph,
            forward.calls,
            [module for module, _ in forward.returned()],
            dict(self._modules),
            aliases.unsafe(),
        )
        self._plans[outermost] = plan, taps
        if (device := self._one_device()) is not None:
            plans = [planned for _, planned in self._plans.values()]
            self._rows.plan(plans, device, self._rows_arrived)
        self._tell(taps)

    def _tell(self, taps: TapPlan) -> None:
        """Say once what taps cannot show."""
        for what, names in taps.unread.items():
            if what.endswith("shortcuts"):
                names = self._catalogue.joins.names(map(int, names))
            self.faults.tell(
                f"compiled steps are read within their graph, which does not show {what}"
                f" ({layers_named(list(dict.fromkeys(names)))}): NaN from the second recorded step"
                " on. A model that is not compiled shows them all"
            )
