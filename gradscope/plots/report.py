"""A report of runs: one HTML file with verdicts and figures, which opens offline."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import Template

import plotly.graph_objects as go

from gradscope._version import __version__
from gradscope.diagnosis.verdict import diagnose
from gradscope.errors import GradscopeError
from gradscope.plots import (
    depth_profile,
    flow_map,
    heatmap,
    ledger,
    plotlyjs,
    speed,
    survival,
    training,
)
from gradscope.plots.drawn import as_runs
from gradscope.plots.theme import LIGHT
from gradscope.runs.run import Run

FIGURES = (depth_profile, survival, flow_map, heatmap, speed, ledger, training)

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
  style-src 'unsafe-inline'; img-src data: blob:">
<title>gradscope report</title>
<style>
body { margin: 0 auto; max-width: 1300px; padding: 16px; background: #f4f6f9; color: #1f2933;
  font: 15px/1.5 system-ui, sans-serif; }
main { display: flex; flex-wrap: wrap; gap: 10px; }
article, section { background: #fff; border: 1px solid #d5dbe3; border-radius: 10px;
  padding: 12px 16px; min-width: 0; overflow: hidden; }
article { border-left-width: 6px; flex: 1 1 280px; }
section { flex: 1 1 100%; overflow-x: auto; }
section > div { min-width: 800px; } /* a phone scrolls sideways: the figures are drawn for a page */
h1, h2, p { margin: 0; }
h2 { font-size: 16px; }
strong { font-size: 19px; }
footer, .detail { color: #52606d; font-size: 14px; }
</style>
<script>$plotly</script>
</head>
<body>
<h1>gradscope report</h1>
<main>
$cards
$figures
</main>
<footer>Written by gradscope $version. Long runs are drawn by the extremes of stretches of steps.
</footer>
</body>
</html>
""")


Draw = Callable[[list[Run]], go.Figure]
Track = Callable[[Sequence[Draw]], Iterable[Draw]]


def report_html(runs: Run | Sequence[Run], track: Track = iter) -> str:
    """Return a report of the runs as one HTML page that loads nothing.

    Parameters
    ----------
    runs : Run or sequence of Run
    track : called with the figures to draw, returns them one by one; may show progress

    Returns
    -------
    str
        About 2 MB, most of it plotly.js. The figures are binned, so that it hardly grows with
        the length of the runs. Names of layers and runs are text in it, never markup.

    Raises
    ------
    GradscopeError
        If there is no run, or something else than a run among them.
    """
    listed = as_runs(runs)
    if not listed:
        raise GradscopeError("there is no run to report; give one, or several")
    return _PAGE.substitute(
        plotly=plotlyjs.source(),
        cards="\n".join(_card(run, place) for place, run in enumerate(listed)),
        figures="\n".join(_figures(listed, track)),
        version=__version__,
    )


def _card(run: Run, place: int) -> str:
    """Return a run's verdict, with its findings, as HTML."""
    diagnosis = diagnose(run)
    escape = html.escape
    findings = [f"{f.verdict} ({f.severity}): {f.sentence}" for f in diagnosis.findings]
    details = [*findings, *diagnosis.notes, *run.notes]
    items = "".join(f"<li>{escape(text)}</li>" for text in details)
    return (
        f'<article style="border-left-color: {LIGHT.color(place)}"><h2>{escape(run.name)}</h2>'
        f"<p><strong>{escape(diagnosis.verdict.capitalize())}</strong></p>"
        f"<p>{escape(diagnosis.summary)}</p>"
        f'<p class="detail">{escape(str(run.meta.get("model", "")))}, {len(run.layers)} layers,'
        f" {len(run.shortcuts)} shortcuts, {len(run.steps)} recorded steps, {run.status}</p>"
        f'<ul class="detail">{items}</ul></article>'
    )


def _figures(runs: list[Run], track: Track) -> Iterator[str]:
    """Yield each figure as HTML that draws itself."""
    config = json.dumps({**plotlyjs.PRIVATE, "responsive": True, "displaylogo": False})
    for draw in track(FIGURES):
        figure: go.Figure = draw(runs)
        height = int(figure.layout.height)
        # plotly's JSON escapes what would end the script.
        yield (
            f'<section tabindex="0"><div id="{draw.__name__}" style="height: {height}px"></div>'
            "<script>"
            f'Plotly.newPlot("{draw.__name__}", {figure.to_json()}, {config})</script></section>'
        )
