"""Shortcuts around pairs of layers, as He et al. 2015 put them around plain ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradscope.probes.changes.chain import Unit
from gradscope.probes.changes.change import STRUCTURE, Change, Copy, DoesNotFit, Wrapper


@dataclass(frozen=True)
class Shortcuts(Change):
    """y = x + branch(x) around every two hidden layers that follow one another.

    The first and the last layer stay outside. Where shapes change a projection stands in for x: a
    linear layer, or a convolution of 1x1 with the stride that it takes.

    Attributes
    ----------
    behind_activation : bool
        Whether the sum is taken behind the pair's last activation, which leaves the way through
        the shortcuts free (pre-activation, He et al. 2016), or before it (He et al. 2015).
    """

    behind_activation: bool = True

    def apply(self, copy: Copy) -> None:
        """Put a shortcut around each pair."""
        if copy.recorded.blocks:
            raise DoesNotFit(f"{self.name}: the net has shortcuts already")
        inner = copy.chain.units[1:-1]
        at, put = 0, 0
        while at + 1 < len(inner):
            first, second = inner[at], inner[at + 1]
            if second.follows and self._join(copy, first, second):
                at, put = at + 2, put + 1
            else:
                at += 1
        if not put:
            raise DoesNotFit(f"{self.name}: no two hidden layers follow one another")

    def _join(self, copy: Copy, first: Unit, second: Unit) -> bool:
        end, made = second.last, second.given
        if not self.behind_activation:
            if second.normalised or not second.activation_name:
                return False
            end, made = second.name, second.made
        projection = _projection(first, made)
        if projection is None:
            return False
        join = Join(copy.model.get_submodule(end), projection)
        some = next(first.layer.parameters())
        join.shortcut.to(some.device, some.dtype)
        first.layer.register_forward_pre_hook(join.keep)
        copy.replace(end, join)
        return True


class Join(Wrapper):
    """A module whose output the block's input is added to."""

    def __init__(self, layer: nn.Module, shortcut: nn.Module) -> None:
        super().__init__(layer)
        self.shortcut = shortcut
        self._input: list[Tensor] = []

    def keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep what goes into the block."""
        self._input = [args[0]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add it to what comes out."""
        output = self.layer(*args, **kwargs)
        return self.shortcut(self._input.pop()) + output


def _projection(first: Unit, made: tuple[int, ...]) -> nn.Module | None:
    """Return what makes the input of `first` one of the shape `made`; None if nothing simple."""
    taken = first.taken
    if taken == made:
        return nn.Identity()
    if len(taken) != len(made):
        return None
    if isinstance(first.layer, nn.Linear) and taken[:-1] == made[:-1]:
        return nn.Linear(taken[-1], made[-1], bias=False)
    if isinstance(first.layer, nn.Conv2d) and taken[2] % made[2] == 0:
        stride = taken[2] // made[2]
        if all(-(-a // stride) == b for a, b in zip(taken[2:], made[2:], strict=True)):
            return nn.Conv2d(taken[1], made[1], 1, stride, bias=False)
    return None


_VANISHING = frozenset({"vanishing"})

SHORTCUTS = Shortcuts("shortcuts around pairs of layers", _VANISHING, STRUCTURE)
POST_ACTIVATION = Shortcuts(
    "shortcuts around pairs, added before the activation", _VANISHING, STRUCTURE, False
)
