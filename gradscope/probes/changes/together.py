"""A change of the user's own, and several changes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from gradscope.errors import GradscopeError
from gradscope.probes.changes.activation import GELU, RELU
from gradscope.probes.changes.change import EXCHANGE, STRUCTURE, Change, Copy
from gradscope.probes.changes.initialisation import HE


@dataclass(frozen=True)
class Own(Change):
    """A function from model to model; what it changes in place it need not return."""

    function: Callable[[nn.Module], nn.Module | None]

    def apply(self, copy: Copy) -> None:
        """Call it."""
        changed = self.function(copy.model)
        if changed is not None and not isinstance(changed, nn.Module):
            raise GradscopeError(
                f"{self.name}: must return a model, or None where it changed the one it got; it"
                f" returned {type(changed).__name__}"
            )
        copy.model = copy.model if changed is None else changed


@dataclass(frozen=True)
class Together(Change):
    """Several changes, one after the other."""

    parts: tuple[Change, ...]

    def apply(self, copy: Copy) -> None:
        """Make each of them, of the net as the last one left it."""
        for part in self.parts:
            vars(copy).pop("chain", None)
            part.apply(copy)


def own(function: Callable[[nn.Module], nn.Module | None]) -> Own:
    """Return the user's function as a change of its name."""
    name = getattr(function, "__name__", type(function).__name__).replace("_", " ")
    return Own(name, frozenset(), STRUCTURE, function)


def together(parts: Sequence[Change]) -> Together:
    """Return several changes as one, which takes what the largest of them takes."""
    against = frozenset().union(*(part.against for part in parts))
    name = " + ".join(part.name for part in parts)
    return Together(name, against, max(part.takes for part in parts), tuple(parts))


_FLAT = frozenset({"vanishing", "saturated"})

# another activation needs the weights that fit it
RELU_HE = Together("ReLU activations, He weights", _FLAT, EXCHANGE, (RELU, HE))
GELU_HE = Together("GELU activations, He weights", _FLAT, EXCHANGE, (GELU, HE))
