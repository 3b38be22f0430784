"""A report of runs: one HTML file with verdicts and figures, which opens offline."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from string import Template

import plotly.graph_objects as go

from gradscope._version import __version__
from gradscope.diagnosis.summary import summarise
from gradscope.errors import GradscopeError
from gradscope.plots import (
    depth_profile,
    flow_map,
    heatmap,
    ledger,
    plotlyjs,
    scalars,
    speed,
    survival,
    training,
)
from gradscope.plots.drawn import as_runs
from gradscope.plots.theme import DARK, LIGHT
from gradscope.runs.run import Run

FIGURES = (depth_profile, survival, flow_map, heatmap, speed, ledger, training, scalars)

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
  style-src 'unsafe-inline'; img-src data: blob:">
<title>gradscope report</title>
<style>
:root { --page: #f4f6f9; --card: #fff; --text: #1f2933; --muted: #52606d; --line: #d5dbe3;
  --bad: #b3261e; --good: #0b6b4b; --unsure: #8a5a00; color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #0b1015; --card: #11181f;
  --text: #e6edf3; --muted: #9aa7b4; --line: #2b3642; --bad: #ff8a80; --good: #5fd3a5;
  --unsure: #f0c24b; } }
body { margin: 0 auto; max-width: 1300px; padding: 16px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { display: grid; grid-template-columns: minmax(0, 1fr); gap: 10px; }
article, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 16px; min-width: 0; overflow: hidden; overflow-wrap: anywhere; }
article { border-left: 6px solid; }
article.bad { border-left-color: var(--bad); } article.good { border-left-color: var(--good); }
article.unsure { border-left-color: var(--unsure); }
section { overflow-x: auto; }
section > div { min-width: 800px; } /* a phone scrolls sideways: the figures are drawn for a page */
h1, h2, p, ul { margin: 0; }
h2 { font-size: 17px; }
i { display: inline-block; width: 26px; margin-right: 8px; vertical-align: middle;
  border-top: 3px solid; }
.chip { margin-right: 16px; font-weight: 600; }
.chip.bad { color: var(--bad); } .chip.good { color: var(--good); }
.chip.unsure { color: var(--unsure); }
footer, .detail { color: var(--muted); font-size: 14px; }
@page { size: A4; margin: 10mm; }
@media print {
  body { background: none; padding: 0; max-width: none; }
  article, section { break-inside: avoid; border-radius: 0; }
  section > div { min-width: 0; }
}
</style>
<script>$plotly</script>
<script>
// Each figure is there in light and dark; on paper it is light and as wide as the page.
const figures = {};
function draw(id, paper) {
  const { light, dark, config } = figures[id];
  const night = !paper && matchMedia("(prefers-color-scheme: dark)").matches;
  const { data, layout } = JSON.parse(JSON.stringify(night ? dark : light));
  if (paper) layout.width = 680;
  Plotly.react(id, data, layout, Object.assign({}, config, { responsive: !paper }));
}
function show(id, light, dark, config) {
  figures[id] = { light, dark, config };
  draw(id, false);
}
addEventListener("beforeprint", () => Object.keys(figures).forEach((id) => draw(id, true)));
addEventListener("afterprint", () => Object.keys(figures).forEach((id) => draw(id, false)));
</script>
</head>
<body>
<h1>gradscope report</h1>
<p class="detail">Written on $date.</p>
<main>
$cards
$figures
</main>
<footer>Written by gradscope $version. Long runs are drawn by the extremes of stretches of steps.
</footer>
</body>
</html>
""")


Draw = Callable[..., go.Figure]
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
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _card(run: Run, place: int) -> str:
    """Return what is judged of a run, with its findings and remedies, as HTML."""
    summary = summarise(run)
    diagnosis = summary.diagnosis
    escape = html.escape
    chips = "".join(
        f'<span class="chip {part.tone}">{escape(part.words)}</span>' for part in summary.parts
    )
    items = "".join(
        f"<li><b>{escape(f.verdict)}</b> ({f.severity}, steps {f.steps[0]}–{f.steps[1]}):"
        f" {escape(f.sentence)}<ul>"
        + "".join(f"<li>try: {escape(remedy)}</li>" for remedy in f.remedies)
        + "</ul></li>"
        for f in diagnosis.findings
    )
    notes = dict.fromkeys([*diagnosis.notes, *run.notes])
    items += "".join(f"<li>note: {escape(text)}</li>" for text in notes)
    facts = [
        f"{run.meta.get('model', '')}, {len(run.layers)} layers, {len(run.shortcuts)} shortcuts",
        f"{len(run.steps)} recorded steps, {run.status}",
        f"made {run.meta.get('created', '?')}",
        ", ".join(f"{key} = {value}" for key, value in run.config.items()),
    ]
    facts = [fact for fact in facts if fact]
    return (
        f'<article class="{summary.tone}"><h2><i style="color: {LIGHT.color(place)}"></i>'
        f"{escape(run.name)}</h2><p>{chips}</p>"
        f"<p>{escape(' '.join([diagnosis.summary, *diagnosis.beside]))}</p>"
        f'<p class="detail">{escape("; ".join(facts))}</p>'
        f'<ul class="detail">{items}</ul></article>'
    )


def _figures(runs: list[Run], track: Track) -> Iterator[str]:
    """Yield each figure as HTML that draws itself."""
    config = json.dumps({**plotlyjs.PRIVATE, "responsive": True, "displaylogo": False})
    for draw in track(FIGURES):
        figure: go.Figure = draw(runs)
        dark: go.Figure = draw(runs, theme=DARK)
        heading = _taken_out(figure)
        _taken_out(dark)
        height = int(figure.layout.height)
        # plotly's JSON escapes what would end the script.
        yield (
            f'<section tabindex="0">{heading}<div id="{draw.__name__}" class="figure"'
            f' style="height: {height}px"></div><script>show("{draw.__name__}",'
            f" {figure.to_json()}, {dark.to_json()}, {config})</script></section>"
        )


def _taken_out(figure: go.Figure) -> str:
    """Take title and caption out of a figure, and return them as HTML, which wraps on a page."""
    title = figure.layout.title
    said, caption = (_plain(text) for text in (title.text, title.subtitle.text))
    room = 56 + 16 * (title.subtitle.text.count("<br>") + 1)  # as `titled` made it
    figure.update_layout(
        title=None,
        height=figure.layout.height - room,
        margin_t=figure.layout.margin.t - room,
        paper_bgcolor="rgba(0,0,0,0)",
    )
    return f'<h2>{said}</h2><p class="detail">{caption}</p>'


def _plain(text: str) -> str:
    """Return plotly's text without its markup, as HTML."""
    for mark in ("<b>", "</b>"):
        text = text.replace(mark, "")
    return html.escape(html.unescape(text.replace("<br>", " ")))
