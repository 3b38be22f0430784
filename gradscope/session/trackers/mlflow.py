"""Readings to an MLflow run, in a local store or on a server."""

from __future__ import annotations

import re
import time
from typing import Any

_AT_ONCE = 1000  # metrics that an MLflow server takes in one request
_REFUSED = re.compile(r"[^/\w.\- ]")  # what MLflow has in no metric's name, on any platform


def recognises(target: object) -> bool:
    """Whether `target` is a run of MLflow, such as `mlflow.start_run()` returns."""
    return hasattr(getattr(target, "info", None), "run_id")


class TrackerSink:
    """Logs the readings of a step as metrics of one run; `(root)` becomes `_root_`.

    Parameters
    ----------
    target : mlflow.ActiveRun or mlflow.entities.Run
        At the tracking URI that is set now.
    """

    def __init__(self, target: Any) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._run_id = target.info.run_id

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Log the readings of one step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_REFUSED.sub("_", n), value, now, step) for n, value in values.items()]
        for start in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _AT_ONCE])
