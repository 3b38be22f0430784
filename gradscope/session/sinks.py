"""Readings sent on to trackers while a model trains: one call a recorded step, off the hot path.

A sink is anything that can be called with a step and its readings:

>>> def sink(step: int, values: dict[str, float]) -> None:
...     print(step, values["steps/grad_norm"], values["grad_norm/layer1.conv"])
>>> scope.send_to(sink)

Names are `<metric>/<layer>` or `<metric>/<block>` (a block's second shortcut is `<block>-2`), and
`steps/<metric>` for readings of the whole step. A reading that was not taken, or is NaN, is left
out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gradscope import schema
from gradscope.arithmetic import ratio, relative
from gradscope.errors import GradscopeError
from gradscope.session.trackers import mlflow, tensorboard, wandb

TRACKERS: tuple[Any, ...] = (tensorboard, wandb, mlflow)
"""Modules that tell the objects of a tracker, and make a sink of one."""

DEFAULT_METRICS = ("grad_norm", "update_ratio", "relative_signal")

_STEP_METRICS = [c.name for c in schema.STEPS if c.name not in ("step", "time")]
_LAYER_METRICS = [*schema.names(schema.LAYER_METRICS), "update_ratio", "relative_signal"]
_SHORTCUT_METRICS = schema.names(schema.SHORTCUT_METRICS)

Tables = Mapping[str, Mapping[str, np.ndarray]]
"""Table of `schema.TABLES` -> its columns, every layer and shortcut in every step's turn."""


class Sink(Protocol):
    """Where readings go; a function of these two arguments is one."""

    def __call__(self, step: int, values: dict[str, float], /) -> None:
        """Take the readings of one step, those that are no NaN, by their names.

        Called on gradscope's own thread, in order of steps. An exception is told once, and ends
        the sending to this sink.
        """


class Subscription:
    """A sink, and what it is to be sent.

    Parameters
    ----------
    target : Sink, SummaryWriter, wandb run or MLflow run
    metrics : names of metrics
    every : int
        Steps that are no multiple of it are not sent.

    Raises
    ------
    GradscopeError
        If `target` is none of these, or there is no such metric.
    """

    def __init__(self, target: object, metrics: str | Sequence[str], every: int) -> None:
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        known = dict.fromkeys([*_LAYER_METRICS, *_SHORTCUT_METRICS, *_STEP_METRICS])
        for metric in self.metrics:
            if metric not in known:
                raise GradscopeError(
                    f"send_to(metrics=...): there is no metric {metric!r}; there are"
                    f" {', '.join(known)}"
                )
        self.name = getattr(target, "__name__", type(target).__name__)
        self._sink = _sink_of(target)
        self._every = every

    def send(
        self,
        columns: Tables,
        layers: Sequence[Mapping[str, Any]],
        shortcuts: Sequence[Mapping[str, Any]],
    ) -> None:
        """Send the steps of `columns`, whose layers and shortcuts are the first of those given."""
        for step, values in _steps(columns, self.metrics, layers, shortcuts):
            if step % self._every == 0 and values:
                self._sink(step, values)


def _sink_of(target: object) -> Sink:
    for tracker in TRACKERS:
        if tracker.recognises(target):
            sink: Sink = tracker.TrackerSink(target)
            return sink
    if not callable(target):
        raise GradscopeError(
            f"send_to(): cannot send to {type(target).__name__} {target!r:.80}; give a"
            " SummaryWriter, a run of wandb or MLflow, or a function of (step, values)"
        )
    return target


def _steps(
    columns: Tables,
    metrics: Sequence[str],
    layers: Sequence[Mapping[str, Any]],
    shortcuts: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each step with its readings by name."""
    steps = columns["steps"]["step"]
    names: list[str] = []
    values = [np.empty((steps.size, 0))]

    def add(metric: str, owners: Sequence[str], readings: np.ndarray) -> None:
        names.extend(f"{metric}/{owner}" for owner in owners[: readings.shape[1]])
        values.append(readings)

    for metric in metrics:
        if metric in _STEP_METRICS:
            names.append(f"steps/{metric}")
            values.append(columns["steps"][metric][:, None])
        if metric in _LAYER_METRICS:
            owners = [str(layer["name"]) for layer in layers]
            add(metric, owners, _of_layers(metric, columns["layers"], steps.size))
        if metric in _SHORTCUT_METRICS:
            readings = columns["shortcuts"][metric].reshape(steps.size, -1)
            add(metric, _distinct([str(s["name"]) for s in shortcuts]), readings)
    table = np.concatenate(values, axis=1)
    for step, row in zip(steps.tolist(), table.tolist(), strict=True):
        yield step, {n: v for n, v in zip(names, row, strict=True) if v == v}


def _of_layers(metric: str, columns: Mapping[str, np.ndarray], n_steps: int) -> np.ndarray:
    """Return a metric, or what follows from others, as steps x layers."""
    if metric == "update_ratio":
        values = ratio(columns["update_norm"], columns["weight_norm"])
    elif metric == "relative_signal":
        return relative(columns["signal_norm"].reshape(n_steps, -1))
    else:
        values = columns[metric]
    return values.reshape(n_steps, -1)


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, those that come again with a number: `h.0`, `h.0-2`."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result
