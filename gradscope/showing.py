"""Runs shown to people: as one HTML file, or as the dashboard in a browser.

Both need the packages of the extra `dashboard`, which are imported on use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.errors import extra_for

if TYPE_CHECKING:
    from gradscope.runs.run import Run
    from gradscope_dashboard import Server


def report(
    runs: Run | Sequence[Run],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> None:
    """Write verdicts and figures of runs to one HTML file that opens offline.

    >>> gradscope.report([plain, residual], "report.html")

    Parameters
    ----------
    runs : Run or sequence of Run
    path : of the file
    overwrite : bool
        Replace the file if it exists.
    track : callable
        Called with the figures to draw, returns them one by one; may show progress.

    Raises
    ------
    GradscopeError
        If there is no run, something else than a run is among them, the file exists or cannot be
        written, or plotly is not installed.
    """
    with extra_for("a report"):
        from gradscope.plots.report import report_html
    from gradscope.runs.export import write_whole

    write_whole(Path(path), [report_html(runs, track).encode()], overwrite=overwrite)


def dashboard(
    runs: Run | Sequence[Run] | str | os.PathLike[str], *, host: str = "127.0.0.1", port: int = 0
) -> Server:
    """Serve the dashboard for runs from a thread of this process, live while they are recorded.

    >>> server = gradscope.dashboard(scope.run)
    >>> print(server.url)

    Parameters
    ----------
    runs : Run, sequence of Run, or path
        A path is that of a folder of runs: those that come later are shown, too.
    host : str
        Address to listen on. Others than this machine can reach what is not loopback.
    port : int
        0 takes a free one.

    Returns
    -------
    Server
        With `.url` and `.stop()`; a notebook shows it in place.

    Raises
    ------
    GradscopeError
        If there is no run or no such folder, something else than a run is among them, the address
        cannot be listened on, or dash is not installed.
    """
    with extra_for("the dashboard"):
        from gradscope_dashboard import start
    return start(runs, host=host, port=port)
