"""Less dropout."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gradscope.probes.changes.change import ALWAYS, MISTAKE, Change, Copy, DoesNotFit


@dataclass(frozen=True)
class LessDropout(Change):
    """Every dropout above `above` lowered to `share`."""

    above: float
    share: float

    def apply(self, copy: Copy) -> None:
        """Lower them."""
        kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
        found = [m for m in copy.model.modules() if isinstance(m, kinds) and m.p > self.above]
        if not found:
            raise DoesNotFit(f"{self.name}: no dropout drops more than {self.above:.0%}")
        for module in found:
            module.p = self.share


DROPOUT = LessDropout("dropout lowered to 0.1", ALWAYS, MISTAKE, 0.5, 0.1)
