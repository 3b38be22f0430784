"""What a change is, and what it is given to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from gradscope.errors import GradscopeError
from gradscope.probes.changes.chain import Chain, trace
from gradscope.probes.probe import LossFn

ALWAYS = frozenset({"*"})
"""A change that is tried whatever was found: it fits only where what it mends is there."""

MISTAKE, SETTING, OPTIMIZER, START, EXCHANGE, PARTS, STRUCTURE = range(7)
"""What a change takes: to mend a mistake, a setting, another optimizer, other weights at the start,
other modules for those that are there, more of them, another net. A mistake that is mended with
success comes first, as all else is to be judged without it; of two other changes that do as much
the one that takes less."""


class DoesNotFit(GradscopeError):
    """A change finds nothing in the net that it could change."""


class Recorded(NamedTuple):
    """What a recording of the net told.

    Attributes
    ----------
    gradients : sequence of float
        Global gradient norms.
    update_speed : float, 1/step
        ||dW|| / ||W||, the median over layers and steps; NaN where it is unknown.
    blocks : sequence of sequences of str
        Names of the layers of each residual block that lies within no other.
    """

    gradients: Sequence[float] = ()
    update_speed: float = math.nan
    blocks: Sequence[Sequence[str]] = ()


NOTHING_RECORDED = Recorded()


@dataclass
class Copy:
    """A copy of a model and of its optimizer, on which a change is tried.

    Attributes
    ----------
    model : nn.Module
    optimizer : Optimizer
        Holds the copy's parameters; those that a change adds are given to it afterwards.
    loss_fn : callable
        `loss_fn(model(x), y)` -> loss.
    batch : the first one, for what a change has to see of the net at work
    steps : int
        How many will be made.
    recorded : Recorded
        Of the unchanged copy.
    before_step : list of functions of the step's number
        Called between backward and the optimizer's step.
    """

    model: nn.Module
    optimizer: Optimizer
    loss_fn: LossFn
    batch: Any
    steps: int
    recorded: Recorded = NOTHING_RECORDED
    before_step: list[Callable[[int], object]] = field(default_factory=list)

    @cached_property
    def chain(self) -> Chain:
        """The layers in order of execution, as they were before the change."""
        return trace(self.model, self.loss_fn, self.batch)

    @property
    def parameters(self) -> list[Tensor]:
        """The trainable parameters of the model."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def replace(self, name: str, module: nn.Module) -> None:
        """Put `module` in the place of the one called `name`."""
        parent, _, own = name.rpartition(".")
        holder = self.model.get_submodule(parent)
        setattr(holder, own, module)  # also of Sequential and ModuleList, whose names are numbers


@dataclass(frozen=True)
class Change:
    """A change by name; sub-classes say what it does.

    Attributes
    ----------
    name : str
        In words, as a table and the remedies show it.
    against : frozenset of str
        Verdicts for which it is tried unasked; `ALWAYS` for any.
    takes : int
        One of MISTAKE, SETTING ... STRUCTURE.
    """

    name: str
    against: frozenset[str]
    takes: int

    def apply(self, copy: Copy) -> None:
        """Change `copy` in place.

        Parameters
        ----------
        copy : Copy

        Raises
        ------
        DoesNotFit
            If there is nothing that it could change; the copy is of no further use.
        """
        raise NotImplementedError


class Wrapper(nn.Module):
    """A module around `layer` that looks like it to whoever asks for its attributes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)
