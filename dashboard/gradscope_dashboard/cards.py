"""A card for each shown run: the verdict about the whole of it, in words."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, html
from dash.exceptions import PreventUpdate

from gradscope.diagnosis.findings import Diagnosis
from gradscope.plots import DARK, LIGHT, Theme
from gradscope.runs.run import Run
from gradscope_dashboard import state
from gradscope_dashboard.library import Library

SIGNS = {"healthy": "✔", "vanishing": "▼", "exploding": "▲"}


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that writes the cards."""

    @app.callback(
        Output("cards", "children"),
        Input("url", "search"),
        Input("library", "data"),
        Input("screen", "data"),
    )
    def write(search: str, _: Any, screen: dict[str, Any] | None) -> list[html.Article]:
        if screen is None:
            raise PreventUpdate
        theme = DARK if screen["theme"] == "dark" else LIGHT
        shown = state.parse(search, views, library.names).selected(library.names)
        return [card(name, library, theme) for name in shown]


def swatch(slot: int, theme: Theme) -> html.Span:
    """Return a short sample of the line of the run at the place `slot`."""
    style = {"solid": "solid", "dash": "dashed", "dot": "dotted"}.get(theme.dash(slot), "dashed")
    return html.Span(className="swatch", style={"borderTop": f"3px {style} {theme.color(slot)}"})


def card(name: str, library: Library, theme: Theme) -> html.Article:
    """Return the card of the run called `name`."""
    slot = library.slot(name)
    title = html.H2([swatch(slot, theme), name])
    if (problem := library.problem(name)) is not None:
        content = [html.P([html.Strong("● Unreadable", className="bad"), problem])]
    else:
        content = _words(library.diagnosis(name), library.get([name]), library.notes(name))
    return html.Article([title, *content], style={"borderLeftColor": theme.color(slot)})


def _words(diagnosis: Diagnosis | None, runs: list[Run], warnings: list[str]) -> list[Any]:
    """Return the verdict, the sentence for it, and what there is to open."""
    if diagnosis is None:
        return [html.P("…", className="verdict"), html.P("Looking at the whole run.")]
    verdict = diagnosis.verdict.split(":")[0]
    tone = {"healthy": "good", "cannot tell": "unsure"}.get(verdict, "bad")
    sign = SIGNS.get(verdict, "●")
    content: list[Any] = [
        html.P(html.Strong(f"{sign} {verdict.capitalize()}", className=tone), className="verdict"),
        html.P(diagnosis.summary, className="summary"),
    ]
    if diagnosis.start != diagnosis.end:
        content.append(
            html.P(
                f"At the start: {diagnosis.start}; at the end: {diagnosis.end}.",
                className="caption",
            )
        )
    notes = [*diagnosis.notes, *(note for run in runs for note in run.notes), *warnings]
    if diagnosis.findings or notes:
        content.append(_details(diagnosis, notes))
    return content


def _details(diagnosis: Diagnosis, notes: list[str]) -> html.Details:
    """Return all findings, what to try, and the notes, folded away."""
    count = len(diagnosis.findings)
    parts = [f"{count} finding{'s' * (count != 1)}"] if count else []
    parts += [f"{len(notes)} note{'s' * (len(notes) != 1)}"] if notes else []
    items: list[Any] = []
    for finding in diagnosis.findings:
        first, last = finding.steps
        items.append(
            html.Li(
                [
                    html.Strong(finding.verdict),
                    f" ({finding.severity}, steps {first}–{last}): {finding.sentence}",
                    html.Ul([html.Li(f"try: {remedy}") for remedy in finding.remedies]),
                ]
            )
        )
    items += [html.Li(f"note: {note}") for note in notes]
    words = " and ".join(parts) + (", what to try" if count else "")
    return html.Details([html.Summary(words), html.Ul(items)])
