"""No softmax or sigmoid before a loss that takes a softmax itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gradscope.kinds import canonical
from gradscope.probes.changes.activation import substitute
from gradscope.probes.changes.change import ALWAYS, MISTAKE, Change, Copy, DoesNotFit

_KINDS = frozenset({"softmax", "sigmoid"})


@dataclass(frozen=True)
class BareHead(Change):
    """The model returns what its last layer gives, not a softmax of it."""

    def apply(self, copy: Copy) -> None:
        """Take the module out, or the function."""
        chain = copy.chain
        if not chain.squashed or not chain.units:
            raise DoesNotFit(f"{self.name}: the loss takes no softmax of a softmax")
        last = chain.units[-1].last
        if canonical(type(copy.model.get_submodule(last)).__name__) in _KINDS:
            copy.replace(last, nn.Identity())
        else:
            substitute(copy.model, [last], _KINDS, lambda x: x)


BARE_HEAD = BareHead("no softmax before the loss, which takes its own", ALWAYS, MISTAKE)
