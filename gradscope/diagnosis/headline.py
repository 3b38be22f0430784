"""The verdict of a run in a few words, for where a run is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradscope.runs.run import Run


def headline(run: Run) -> str:
    """Return the verdict of `run`, `cannot tell: ...` where there is none."""
    from gradscope.diagnosis.verdict import diagnose  # takes time that not every reader needs

    return diagnose(run).verdict


def put_into_notebooks() -> None:
    """Have runs shown with their verdict from now on."""
    from gradscope.runs.run import Run

    Run.headline = headline
