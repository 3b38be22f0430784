"""A learning rate that starts small."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.probes.changes.change import SETTING, Change, Copy


@dataclass(frozen=True)
class WarmUp(Change):
    """The learning rate grows evenly to what it is, over the first half of the steps tried."""

    def apply(self, copy: Copy) -> None:
        """Set it before each step."""
        groups = copy.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        length = max(copy.steps // 2, 1)

        def set_rate(step: int) -> None:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (step + 1) / length)

        copy.before_step.append(set_rate)


WARM_UP = WarmUp(
    "learning rate warmed up", frozenset({"exploding", "dead", "unstable", "none"}), SETTING
)
