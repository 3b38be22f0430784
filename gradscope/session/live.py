"""A scope in a notebook: a cell that follows the recording, and closes with it."""

from __future__ import annotations

import html
import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradscope.errors import GradscopeError
from gradscope.wording import number

REFRESH_SECONDS = 1.0


class LiveCell:
    """The cell of a notebook that shows a scope: a sink of what it records.

    Parameters
    ----------
    describe : returns what to show, as HTML, given the last step and its readings by name
    """

    def __init__(self, describe: Callable[[Mapping[str, float]], str]) -> None:
        self._describe = describe
        self._last: dict[str, float] = {}
        self._next = 0.0
        # only a notebook shows it, and has IPython
        self._display: Any = importlib.import_module("IPython.display")
        self._handle = self._display.display(self._html(), display_id=True)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Take the readings of a step, and show them if it is time."""
        self._last = {"step": step, **values}
        if time.monotonic() >= self._next:
            self.refresh()

    def refresh(self) -> None:
        """Bring the cell up to date, if its notebook is still there."""
        self._next = time.monotonic() + REFRESH_SECONDS
        with suppress(Exception):
            self._handle.update(self._html())

    def _html(self) -> Any:
        return self._display.HTML(self._describe(self._last))


def described(
    path: Path,
    rows: int,
    notes: Sequence[str],
    last: Mapping[str, float],
    *,
    is_closed: bool,
) -> str:
    """Return a small table about a recording; what it holds is text, never markup.

    Parameters
    ----------
    path, rows, notes
        Folder of the run, recorded steps, what could not be recorded.
    last : the last step that is known, and its readings by name
    is_closed : bool
        Then the verdict is told, too.
    """
    facts: dict[str, object] = {"state": "closed" if is_closed else "recording"}
    if is_closed:
        with suppress(GradscopeError):  # the folder is gone
            from gradscope.diagnosis.headline import headline
            from gradscope.runs.loading import load  # pandas is not needed to record

            facts["verdict"] = headline(load(path))
    facts |= {"folder": path, "recorded steps": rows}
    if last:
        facts["last step"] = f"{last['step']:.0f}"
        facts["its gradient norm"] = number(last.get("steps/grad_norm", math.nan), 3)
    if notes:
        facts["note"] = notes[-1]
    lines = "".join(
        f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items()
    )
    return f"<table><caption>{html.escape(path.name)}</caption>{lines}</table>"
