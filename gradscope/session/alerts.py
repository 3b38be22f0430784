"""Callbacks that wait for a verdict on the run that is being recorded."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope.errors import GradscopeError
from gradscope.schema import RECORDED_VERDICTS

if TYPE_CHECKING:
    from gradscope.diagnosis.findings import Diagnosis
    from gradscope.runs.run import Run

SHARE = 0.02
"""Share of the time that diagnoses may take: the longer one lasts, the later the next."""


class Alerts:
    """Diagnoses a run now and then, and calls back once for each verdict that appears.

    Parameters
    ----------
    path : Path
        Folder of the run.
    tell : called with a sentence about a callback or a diagnosis that failed
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        # imported now, as later it would hold up the training
        for module in ("gradscope.diagnosis.verdict", "gradscope.runs.loading"):
            importlib.import_module(module)
        self._path = path
        self._tell = tell
        self._run: Run | None = None
        self._waiting: list[tuple[str, Callable[[Diagnosis], object]]] = []
        self._next = 0.0

    def add(self, verdict: str, callback: Callable[[Diagnosis], object]) -> None:
        """Call back once `verdict` appears."""
        self._waiting.append((verdict, callback))

    def look(self, *, last: bool = False) -> None:
        """Diagnose what is on disk, if it is time for that or this is the `last` look."""
        begun = time.monotonic()
        if not self._waiting or (begun < self._next and not last):
            return
        try:
            found = self._diagnose(last)
        except Exception as error:
            self._waiting.clear()
            self._tell(f"no verdict is waited for any more: {type(error).__name__}: {error}")
            return
        if found is None:
            return
        self._next = time.monotonic() + (time.monotonic() - begun) / SHARE
        for entry in [entry for entry in self._waiting if entry[0] in found.verdicts]:
            self._waiting.remove(entry)
            verdict, callback = entry
            try:
                callback(found)
            except (Exception, SystemExit) as error:  # exit() ends no training from here
                self._tell(f"the callback for {verdict!r} failed: {type(error).__name__}: {error}")

    def _diagnose(self, last: bool) -> Diagnosis | None:
        """Return the diagnosis; None while there are too few steps to be sure of it."""
        from gradscope.diagnosis.evidence import WINDOW
        from gradscope.diagnosis.verdict import diagnose
        from gradscope.runs.loading import load

        if self._run is None:
            self._run = load(self._path)
        else:
            self._run.refresh()
        return diagnose(self._run) if last or len(self._run.steps) >= WINDOW else None


def check(verdict: str, callback: object) -> None:
    """Refuse what can never be called back.

    Raises
    ------
    GradscopeError
        If there is no such verdict, readings never give it, or `callback` is no function.
    """
    if verdict not in RECORDED_VERDICTS:
        raise GradscopeError(
            f"on({verdict!r}): needs a verdict that a recording can have:"
            f" {', '.join(RECORDED_VERDICTS)}"
        )
    if not callable(callback):
        raise GradscopeError(
            f"on({verdict!r}, ...): needs a function of a Diagnosis, got {type(callback).__name__}"
        )
