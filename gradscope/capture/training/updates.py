"""What optimizers do to the model: gradients as they get them, weights before and after a step.

Optimizers and loss scalers report here. An optimizer that reports nothing is found by what it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from gradscope import measure
from gradscope.autograd.torch_internals import handed_by_scaler, is_capturing, scale_of
from gradscope.capture.faults import Faults, guarded
from gradscope.capture.net.modules import Modules
from gradscope.capture.training.backward import Backwards
from gradscope.capture.training.by_hand import BY_HAND, ByHand
from gradscope.capture.training.kept_gradients import KeptGradients
from gradscope.capture.training.learning_rate import learning_rate
from gradscope.capture.training.parameters import Parameters, all_optimizers
from gradscope.capture.training.steps import Steps
from gradscope.capture.training.turns import Turns
from gradscope.capture.training.weak_table import WeakTable

_REMEDY = "make it a subclass of torch.optim.Optimizer that holds the model's parameters"

_PUT_TOGETHER = (
    "an optimizer got gradients that the program has put together of several backwards, with"
    " zero_grad() between them: clipped_grad_norm is of these; grad_norm and signals are NaN then,"
    " as those of the last backward alone are known. Train on the sum of the losses to see them"
)


class Updates:
    """Reads what the model's optimizers get and do, and ends the steps that they make.

    Parameters
    ----------
    steps, backwards, modules, parameters, kept
        Of the model.
    optimizers : sequence of Optimizer, optional
        Whose steps count; by default those of every optimizer that has a parameter of the model.
    faults : Faults
    """

    def __init__(
        self,
        steps: Steps,
        backwards: Backwards,
        modules: Modules,
        parameters: Parameters,
        kept: KeptGradients,
        optimizers: Sequence[Optimizer] | None,
        faults: Faults,
    ) -> None:
        self.faults = faults
        self._steps = steps
        self._kept = kept
        self._backwards = backwards
        self._modules = modules
        self._parameters = parameters
        self._given: WeakTable[Optimizer, None] | None = None
        if optimizers is not None:
            self._given = WeakTable()
            self._given.update(dict.fromkeys(optimizers))
        self._known: WeakTable[Optimizer, tuple[int, bool]] = WeakTable()
        self._idle: WeakTable[Optimizer, None] = WeakTable()  # whose step is none
        self._ended_before_step = 0
        self._before_other = 0  # backwards before the latest step that was none of the model's
        self._hookless = False
        self._by_hand = ByHand(parameters)
        self._turns = Turns(modules, parameters, steps.every, faults)
        backwards.look_for_step = self.look_for_step

    # --- optimizers -----------------------------------------------------------------------------

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those whose steps count: that were given, or have stepped."""
        if self._given is not None:
            return list(self._given)
        return [optimizer for optimizer, (_, updates) in self._known.items() if updates]

    def before_step(self, optimizer: Optimizer, has_closure: bool) -> None:
        """Read what any optimizer in this process, if it is one of the model's, is about to use."""
        if is_capturing():
            return
        if not self._concern(optimizer):
            if self._backwards.is_here():
                self._look_at_other()
                self._note_other()
            return
        self._idle.pop(optimizer, None)  # that step may have raised
        if not has_closure and not self._is_due(optimizer) and _is_idle(optimizer):
            self._idle[optimizer] = None
            if self._steps.current.forwarded:
                self._steps.count("steps_without_gradient")
            return
        if self._steps.current.was_made_by(optimizer):
            self._steps.close()  # no forward was seen since it stepped last
        self._steps.begin_to_make()
        self._ended_before_step = self._backwards.ended
        if self._steps.current.recorded:
            self._read_weights(optimizer)

    def _note_other(self) -> None:
        """Count a step of an optimizer that holds nothing of the model, where one of it is due."""
        if self._given is not None or self.optimizers:
            return
        backwards = sum(self._steps.current.backwards.values())
        if backwards > self._before_other:
            self._before_other = backwards
            self._steps.count("steps_of_others")

    def _look_at_other(self) -> None:
        """Read what a getter has as an optimizer steps that has no parameter of the model.

        But others in their place, of more digits or in one tensor: what it does to them shows.
        """
        step = self._steps.current
        if (
            self._parameters.gradient.is_given
            and not self._steps.told_by_hooks
            and step.recorded
            and not step.is_over
            and any(step.backwards.values())
        ):
            self._read_gradients_for_other()

    @guarded("the gradients that watch(gradient=...) has", alone=True)
    def _read_gradients_for_other(self) -> None:
        self._steps.parameter_readings().read_clipped(None)

    @guarded("weights and clipped gradients", alone=True)
    def _read_weights(self, optimizer: Optimizer) -> None:
        self._backwards.settle()
        for name, value in handed_by_scaler(optimizer).items():
            self._steps.log(name, value)
        readings = self._steps.parameter_readings()
        self._steps.meet(optimizer)
        readings.before_step(optimizer)
        step = self._steps.current
        if step.has_dropped and readings.were_put_together(optimizer):
            readings.forget_gradients()
            step.is_doubtful, step.is_mixed = True, False
            self.faults.tell(_PUT_TOGETHER)
        self._steps.note_learning_rate(
            learning_rate([g for g in optimizer.param_groups if self._parameters.holds(g)])
        )

    def after_step(self, optimizer: Optimizer) -> None:
        """Read what a step of an optimizer of the model has changed."""
        if is_capturing() or not self._concern(optimizer):
            return
        if optimizer in self._idle:
            del self._idle[optimizer]
            return
        self._steps.end(optimizer)
        step = self._steps.current
        if step.recorded:
            self._read_updates(optimizer)
        self._kept.after_step(optimizer, step.recorded)
        self._turns.after_step(optimizer, step)
        self._follow(optimizer)

    @guarded("weight updates", alone=True)
    def _read_updates(self, optimizer: Optimizer) -> None:
        if self._backwards.ended > self._ended_before_step:  # its closure went backward
            self._steps.parameter_readings().read_clipped(optimizer)
        self._steps.parameter_readings().after_step(optimizer)

    @guarded("steps that are made by hand", alone=True)
    def _follow(self, optimizer: Optimizer) -> None:
        if not self._parameters.gradient.is_given and not self._parameters.may_be_gathered:
            self._by_hand.after_step(optimizer)

    @guarded("steps that are made by hand", alone=True)
    def _look_for_step_by_hand(self) -> None:
        if self._by_hand.was_made():
            self.faults.tell(BY_HAND)

    def _concern(self, optimizer: Optimizer) -> bool:
        """Whether the steps of `optimizer` are steps of the model."""
        if self._given is not None:
            return optimizer in self._given
        groups, updates = self._known.get(optimizer, (-1, False))
        recorded = self._steps.current.recorded
        if groups != len(optimizer.param_groups) or (recorded and not updates):
            self._steps.look_up_parameters()
            updates = bool(self._parameters.of(optimizer))
            self._known[optimizer] = len(optimizer.param_groups), updates
        return updates

    def _is_due(self, optimizer: Optimizer) -> bool:
        """Whether something led to a step since `optimizer` made its last one, as far as is seen.

        Between recorded steps forwards alone are.
        """
        step = self._steps.current
        led = any(step.backwards.values()) if step.recorded else bool(step.forwarded)
        return led and not step.was_made_by(optimizer)

    def _has_optimizer(self) -> bool:
        """Whether some torch.optim.Optimizer holds parameters of the model: looked for once.

        One that perturbs the weights before it steps, as for sharpness-aware minimisation, is none
        without hooks.
        """
        return any(self._parameters.of(optimizer) for optimizer in all_optimizers())

    # --- loss scalers ---------------------------------------------------------------------------

    @guarded("the loss scale")
    def before_scaled_step(self, scaler: Any, optimizer: Optimizer) -> None:
        """Read the factor that the gradients carry, or carried until they were unscaled."""
        if self._concern(optimizer) and self._steps.current.recorded:
            self._steps.log("loss_scale", scale_of(scaler))

    @guarded("steps that the scaler skips")
    def after_scaled_step(self, scaler: Any, optimizer: Optimizer) -> None:
        """Note a step that the scaler skipped: then no optimizer hook has told of it."""
        if self._concern(optimizer) and not self._steps.current.was_made_by(optimizer):
            self._steps.current.skipped = True
            self._steps.end(optimizer)

    # --- an optimizer without hooks ---------------------------------------------------------------

    def look_for_step(self) -> None:
        """Find a step of an optimizer without hooks, if none with hooks was seen so far."""
        if not self._steps.told_by_hooks:
            self._look_for_step(False)
        elif not self._steps.is_being_made:  # a line search tries weights within one
            self._look_for_step_by_hand()

    def look_for_last_step(self) -> None:
        """Find it where nothing comes after it, and the device may be waited for."""
        if not self._steps.told_by_hooks:
            self._look_for_step(True)

    @guarded("steps of an optimizer without hooks")
    def _look_for_step(self, is_last: bool) -> None:
        """Tell a step by what it did to weights and gradients.

        A torch.optim.Optimizer reports by hooks; a class that merely looks like one does not.
        """
        step = self._steps.current
        readings = step.parameters
        if readings is None or step.is_over:
            return
        if not readings.was_updated(self._hookless, may_wait=is_last):
            return
        if not self._hookless and self._has_optimizer():
            self._steps.told_by_hooks = True  # it has moved weights, and will tell of its step
            return
        backwards = sum(step.backwards.values())
        if is_last and not self._hookless and backwards > 1 and not readings.compares_always:
            self.faults.tell(
                "weights have changed, and no optimizer has told of a step. On an accelerator one"
                " that is no torch.optim.Optimizer and writes to p.data is seen only where it drops"
                f" the gradients after its step (p.grad = None): do so, or {_REMEDY}"
            )
            return
        if not self._hookless:
            self._hookless = True
            self._steps.every = 1
            self.faults.tell(
                "the optimizer is no torch.optim.Optimizer, or holds copies of the parameters, and"
                " reports no steps: they are told by the change of the weights, and every step is"
                " recorded. What it made of the gradients before it took them is not known:"
                f" clipped_grad_norm is NaN. To have it, {_REMEDY}"
                if not readings.has_gradients
                else "the optimizer has no parameter of the model itself: its steps are told by the"
                " change of the weights, and every step is recorded"
            )
        readings.after_update()
        self._steps.end(None)


def _is_idle(optimizer: Optimizer) -> bool:
    """Whether a step of `optimizer`, to which no backward led, makes its state and nothing else.

    As torch.distributed.checkpoint makes one, with gradients of 0 and a learning rate of 0, to
    have the state of an optimizer that has none. On an accelerator the rate alone is looked at.
    """
    groups = optimizer.param_groups
    gradients = [g for group in groups for p in group["params"] if (g := p.grad) is not None]
    if not gradients:  # code of others may keep gradients elsewhere
        return str(type(optimizer).step.__module__).startswith("torch.")
    if optimizer.state:
        return False
    if all(g.is_cpu for g in gradients):
        return not any(bool(measure.dense(g).any()) for g in gradients)
    rates = [group.get("lr", 1) for group in groups]
    return all(not isinstance(r, torch.Tensor) or r.is_cpu for r in rates) and not any(rates)
