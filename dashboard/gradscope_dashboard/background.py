"""What takes long is worked out beside the page: it shows the newest result that there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

PAUSE = 10
"""A result for data that have grown is worked out anew after this many times its own duration."""

PATIENCE_SECONDS = 0.4
"""Whoever asks first waits so long, as most results take less."""


@dataclass(frozen=True)
class _Result:
    mark: Hashable
    value: Any
    ended: float
    seconds: float


class Background:
    """Results by key, worked out one after the other in a thread of its own.

    Attributes
    ----------
    finished : int
        How many results there have been: it changes when there is something new to show.
    """

    def __init__(self) -> None:
        self.finished = 0
        self._results: dict[Hashable, _Result] = {}
        self._waiting: set[Hashable] = set()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gradscope-background")

    def get(
        self, key: Hashable, mark: Hashable, work: Callable[[], Any], *, patient: bool = True
    ) -> Any:
        """Return the newest result under `key`, None if the first takes its time.

        Parameters
        ----------
        key : hashable
        mark : hashable
            State of the data; `work` is called in the background if it is another than the
            newest result's.
        work : callable
        patient : bool
            Wait a moment for a first result.
        """
        with self._lock:
            result = self._results.get(key)
            rested = result is None or time.monotonic() > result.ended + PAUSE * result.seconds
            if key not in self._waiting and rested and (result is None or result.mark != mark):
                self._waiting.add(key)
                started = self._thread.submit(self._run, key, mark, work)
            else:
                started = None
        if result is None and started is not None and patient:
            wait([started], timeout=PATIENCE_SECONDS)
            result = self._results.get(key)
        return None if result is None else result.value

    def newest(self, key: Hashable) -> Any:
        """Return the newest result under `key`, None before the first."""
        result = self._results.get(key)
        return None if result is None else result.value

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, key: Hashable, mark: Hashable, work: Callable[[], Any]) -> None:
        began = time.monotonic()
        try:
            value = work()
            ended = time.monotonic()
            with self._lock:
                self._results[key] = _Result(mark, value, ended, ended - began)
                self.finished += 1
        finally:
            with self._lock:
                self._waiting.discard(key)
