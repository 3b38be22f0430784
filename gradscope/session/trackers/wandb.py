"""Readings to a Weights & Biases run, online or offline."""

from __future__ import annotations

from typing import Any

STEP = "gradscope/step"
"""Name of the x-axis: readings arrive some seconds late, when wandb's own step has moved on."""


def recognises(target: object) -> bool:
    """Whether `target` is what `wandb.init` returns, or the module, which logs to its run."""
    return hasattr(target, "define_metric") and hasattr(target, "log")


class TrackerSink:
    """Logs the readings of a step in one call, drawn over `gradscope/step`.

    Parameters
    ----------
    target : wandb run
        Stays the caller's: close the scope before `run.finish()`. wandb counts every call of its
        `log`, so leave out `step=` in calls of your own: it drops what comes with an older step.
    """

    def __init__(self, target: Any) -> None:
        self._run = target
        self._run.define_metric(STEP, hidden=True)
        self._defined: set[str] = set()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Log the readings of one step."""
        for metric in {name.partition("/")[0] for name in values} - self._defined:
            self._run.define_metric(f"{metric}/*", step_metric=STEP)
            self._defined.add(metric)
        self._run.log({STEP: step, **values})
