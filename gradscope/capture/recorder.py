"""The recorder of one model: what follows a training step, and how the parts hang together.

    forward    modules report their calls (calls.py); the graph of the outermost call is tapped
    backward   gradients are read as they arrive (gradients.py); at its end those of the
               parameters, too (backward.py)
    clip       (whatever the user does to the gradients)
    step       before: gradients as the optimizer gets them, weights; after: the true update
               (updates.py)
    close      the first forward or backward after that emits the row (steps.py)

Nothing here waits for the device, and nothing that goes wrong here ends a training: the reading
that failed is switched off and told of once (faults.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from gradscope.autograd import torch_internals
from gradscope.autograd.torch_internals import FollowedBackwards, FollowedHooks
from gradscope.capture.calls import Calls
from gradscope.capture.faults import Faults
from gradscope.capture.net.catalogue import Catalogue
from gradscope.capture.net.hiding import HiddenHooks
from gradscope.capture.net.hooks import hook_optimizers
from gradscope.capture.net.modules import Modules
from gradscope.capture.reading.rows import Row
from gradscope.capture.training.alike import units_alike
from gradscope.capture.training.backward import Backwards
from gradscope.capture.training.getter import GradientGetter
from gradscope.capture.training.kept_gradients import KeptGradients
from gradscope.capture.training.parameters import Parameters
from gradscope.capture.training.scaler import ScalerHook
from gradscope.capture.training.steps import Steps
from gradscope.capture.training.updates import Updates
from gradscope.measure import gpu_kernel
from gradscope.wording import layers_named

_Handle = RemovableHandle | ScalerHook | HiddenHooks | FollowedHooks | FollowedBackwards


@dataclass(frozen=True)
class Settings:
    """What `watch` was asked for.

    Attributes
    ----------
    every : int
        Steps 0, `every`, 2 `every` ... are recorded.
    optimizers : sequence of Optimizer, optional
        Whose steps count; by default those of every optimizer that has a parameter of the model.
    scaler : optional
        A loss scaler whose class is not torch's.
    compiled : weak references to modules
        Those that were handed to torch.compile.
    keep_snapshot : bool, optional
        Keep the memory for the weights before a step.
    updates : bool or "sampled"
        Whether to read how far steps move the weights, and of a sample of them alone.
    gradient : str, function or None
        Where the gradients of parameters are, as `Getter` takes it.
    cut : "shortcuts", "branches" or None
        What to cut in a second backward, on every `cut_every`-th step.
    cut_every : int
    """

    every: int = 1
    optimizers: Sequence[Optimizer] | None = None
    scaler: Any = None
    compiled: tuple[weakref.ref[nn.Module], ...] = ()
    keep_snapshot: bool | None = None
    updates: bool | str = True
    gradient: GradientGetter = None
    cut: str | None = None
    cut_every: int = 1


class Recorder:
    """Records the steps of one model.

    Parameters
    ----------
    model : nn.Module
        Held weakly.
    settings : Settings
    catalogue : Catalogue
        Numbers the layers and shortcuts that are met.
    emit : called with each closed row
    tell : called with a sentence about what cannot be recorded
    first, elapsed : int, float
        Number of the first step and seconds recorded before it, in a run that is resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        *,
        catalogue: Catalogue,
        emit: Callable[[Row], None],
        tell: Callable[[str], None],
        first: int = 0,
        elapsed: float = 0.0,
    ) -> None:
        check = torch_internals.self_check()
        faults = Faults(tell, [interface.name for interface in check.missing])
        if check.message:
            tell(check.message)
        modules = Modules(model)
        if scripted := modules.scripted():
            tell(
                f"{layers_named(scripted)}: compiled by torch.jit, in which hooks see nothing;"
                " of these there are readings of parameters only. Script the model after it was"
                " trained to have them all"
            )
        gpu_kernel.prepare(model.parameters())
        parameters = Parameters(settings.keep_snapshot, settings.updates, settings.gradient, tell)
        parameters.look_up(modules)  # as they are between steps
        try:
            alike = first == 0 and torch_internals.apart_from_modes(
                units_alike, parameters, modules
            )
            if alike:
                catalogue.set_fact("units_alike", alike)
        except Exception as error:
            faults.report("units that start alike", error)
        self._steps = Steps(
            modules, parameters, catalogue, settings.every, first, elapsed, emit, faults
        )

        def keeps(owners: set[int]) -> None:
            names = [modules.info(number).name for number in sorted(owners)]
            catalogue.set_fact("kept_gradients", names)

        kept = KeptGradients(parameters, keeps, faults)
        self._backwards = Backwards(self._steps, parameters, kept, faults)
        self._updates = Updates(
            self._steps, self._backwards, modules, parameters, kept, settings.optimizers, faults
        )
        self._calls = Calls(
            modules,
            catalogue,
            self._steps,
            self._backwards,
            self._updates,
            settings.cut,
            settings.cut_every,
            settings.compiled,
            faults,
        )
        self._steps.listener = self._calls
        self._handles: list[_Handle] = []
        try:
            self._calls.arm()
            self._handles.append(HiddenHooks())
            self._handles.append(FollowedHooks())
            self._handles.append(FollowedBackwards(self._backwards))
            self._handles += hook_optimizers(self._updates)
            self._handles.append(ScalerHook(self._updates, settings.scaler))
        except BaseException:
            self.detach()
            raise

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those of the model, as far as they are known."""
        return self._updates.optimizers

    @property
    def rows(self) -> int:
        """How many steps were recorded."""
        return self._steps.rows

    @property
    def step(self) -> int:
        """Number of the current step, the one that was made last or is being made."""
        return self._steps.current.number

    @property
    def saw_forward(self) -> bool:
        """Whether the model was called with gradients on."""
        return self._calls.saw_forward

    @property
    def saw_backward(self) -> bool:
        """Whether a backward that trains has reached it."""
        return self._backwards.ended > 0

    def log(self, scalars: dict[str, float | Tensor]) -> None:
        """Attach `scalars` to the current step, or to the next recorded one."""
        for name, value in scalars.items():
            torch_internals.apart_from_modes(self._steps.log, name, value)

    def end_step(self) -> None:
        """Close the step that was just made, if this is the thread that trains."""
        if self._handles:
            torch_internals.apart_from_modes(self._steps.close_if_made)

    def close(self) -> None:
        """Emit what is left and take out every hook."""
        if not self._handles:
            return
        torch_internals.apart_from_modes(self._updates.look_for_last_step)
        torch_internals.apart_from_modes(self._steps.tell_of_backwards, self._backwards.ended)
        torch_internals.apart_from_modes(self._steps.finish)
        self.detach()

    def detach(self) -> None:
        """Take out every hook, record nothing more, and hold on to nothing of the training."""
        self._calls.detach()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._backwards.is_open = False
        self._steps.let_go()
