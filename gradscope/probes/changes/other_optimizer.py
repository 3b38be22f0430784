"""Another optimizer for the same parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import SGD, AdamW

from gradscope.probes.changes.change import OPTIMIZER, Change, Copy, DoesNotFit


@dataclass(frozen=True)
class Adam(Change):
    """AdamW at its usual learning rate in the place of SGD."""

    rate: float

    def apply(self, copy: Copy) -> None:
        """Give it the same parameter groups."""
        if not isinstance(copy.optimizer, SGD):
            raise DoesNotFit(f"{self.name}: the optimizer is {type(copy.optimizer).__name__}")
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in copy.optimizer.param_groups
        ]
        copy.optimizer = AdamW(groups, lr=self.rate)


ADAM = Adam("AdamW at 1e-3", frozenset({"vanishing", "none"}), OPTIMIZER, 1e-3)
