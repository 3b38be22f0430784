"""Gradients that no call led to which was seen: of the model, whose forward may have run compiled,
or of layers of it.
"""

from __future__ import annotations

from gradscope.capture import sentences
from gradscope.capture.compiled.eager import Eager, compiled_frames, has_compiled
from gradscope.capture.faults import Faults
from gradscope.capture.net.modules import Modules
from gradscope.capture.net.outside import Outside
from gradscope.capture.training.steps import Step
from gradscope.wording import layers_named


class Unseen:
    """Says that gradients came which no forward led to, and finds out if compiled code made them.

    Compiled code calls no modules, nor does `model.forward()`, and gradients may be set by hand:
    what compiled code has done shows once it is put aside. Where there is none, layers whose
    weights graphs compute with, and that nobody calls, are told of.

    Parameters
    ----------
    modules : Modules
    outside : Outside
        What graphs have computed with.
    eager : Eager
    is_compiled : bool
        Whether modules were handed to torch.compile.
    faults : Faults

    Attributes
    ----------
    is_compiled : bool
        Whether compiled code is put aside in recorded steps.
    gave_up : bool
        On forwards: what was not seen is no sign of compiled code.
    """

    def __init__(
        self, modules: Modules, outside: Outside, eager: Eager, is_compiled: bool, faults: Faults
    ) -> None:
        self.is_compiled = is_compiled
        self.gave_up = False
        self.faults = faults
        self._modules = modules
        self._outside = outside
        self._looked = 0  # at what was met there
        self._uncalled: set[int] = set()  # as far as the step before has shown
        self._told: set[int] = set()
        self._eager = eager
        self._frames = compiled_frames()
        self._has_read = False  # gradients that came to outputs of layers
        self._tried = -1  # number of the step after which compiled code was put aside
        self._was_read = False  # of that step some layers
        self._missing: set[int] = set()  # layers with gradients that were not called in it

    def look(self, step: Step) -> None:
        """Look at a step that was made."""
        if step.parameters is None or not step.parameters.has_gradients or step.is_doubtful:
            return
        is_new = not self.is_compiled and has_compiled(self._frames)
        tried, self._tried = self._tried, -1
        missing: set[int] = set()
        if is_new or tried >= 0:
            missing = step.parameters.reached() - step.forwarded
        if step.gradients:
            self._has_read = True
            if tried >= 0:
                self._judge(tried, missing)
            elif is_new and missing:
                self._put_aside(step, missing)
            elif not is_new:
                self._look_for_uncalled()
        elif tried >= 0:  # compiled code was put aside, and made no difference
            self._put_back()
            if not self._is_of_no_layer(step):
                self._give_up(sentences.UNSEEN, step)
        elif is_new:
            self._put_aside(step, missing)
            if not self._is_of_no_layer(step):
                self.faults.tell(sentences.COMPILED.format(step=step.number))
        elif not self.is_compiled and not self._is_of_no_layer(step):
            self._give_up(sentences.UNREACHED if step.forwarded else sentences.UNSEEN, step)

    def _look_for_uncalled(self) -> None:
        """Say which layers are not called though graphs compute with their weights.

        Nor in the recorded step after that: one that was made in a forward had no hooks in it.
        """
        found = self._uncalled - self._modules.executed.keys()
        self._uncalled = set()
        self._told |= found
        if found:
            self.faults.tell(layers_named(self._modules.names(found)) + sentences.UNCALLED)
        if self._looked != self._outside.news:
            self._looked = self._outside.news
            self._uncalled = self._modules.uncalled(self._outside) - self._told

    def _is_of_no_layer(self, step: Step) -> bool:
        """Whether no layer may have made the loss, such as one of a single parameter."""
        return self._has_read and step.has_untapped

    def _put_aside(self, step: Step, missing: set[int]) -> None:
        self.is_compiled = True
        self._tried, self._was_read, self._missing = step.number, bool(step.gradients), missing
        if step.parameters is not None:
            step.parameters.doubt_late()
        if self._was_read:  # else nothing is known of any layer
            step.leave_unknown(self._modules.executed.keys() - step.forwarded, self._modules)

    def _judge(self, tried: int, missing: set[int]) -> None:
        """Find out whether layers that were missing are called now."""
        called = self._missing - missing
        if not self._was_read:
            self.faults.tell(sentences.COMPILED.format(step=tried))
        elif called:
            named = layers_named(self._modules.names(called))
            self.faults.tell(named + sentences.PARTS.format(step=tried))
        else:
            self._put_back()

    def _put_back(self) -> None:
        self.is_compiled = False
        self._frames = compiled_frames()
        self._eager.switch_off()

    def _give_up(self, sentence: str, step: Step) -> None:
        self.gave_up = True
        self.faults.tell(sentence.format(step=step.number))
