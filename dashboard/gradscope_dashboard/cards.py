"""A strip for each shown run: what is to be said of it, the worst first, and what to try."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dash import Dash, Input, Output, State, html
from dash.exceptions import PreventUpdate

from gradscope.diagnosis.findings import Finding
from gradscope.diagnosis.summary import Judged, Summary
from gradscope.plots import Theme
from gradscope.plots.lettering import fitting, raised
from gradscope.runs.run import Run
from gradscope_dashboard.library import Library, silence, state_of
from gradscope_dashboard.page import mark_of, read_page

FEW = 3
"""So many runs have a sentence and a remedy each; more have a line each, the worst first."""
ORDER = ("bad", "unsure", "waiting", "good")
IN_VAIN = "tried (does not help)"
ROOM = (170, 380)
"""Letters of two lines of a strip: of several side by side, and of one alone."""
SIGNS = {"good": "✔", "unsure": "◆", "bad": "▲"}


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the callback that writes the strips."""

    @app.callback(
        Output("cards", "children"),
        Output("cards", "className"),
        Output("cards-drawn", "data"),
        Input("url", "search"),
        Input("library", "data"),
        Input("screen", "data"),
        State("cards-drawn", "data"),
    )
    def write(search: str, _: Any, screen: dict[str, Any] | None, drawn: str | None) -> Any:
        if screen is None:
            raise PreventUpdate
        strips, kind = draw(search, screen)
        mark = mark_of(strips)
        if mark == drawn:  # to draw them again takes a browser longer than a figure
            raise PreventUpdate
        return strips, kind, mark

    def draw(search: str, screen: dict[str, Any]) -> tuple[list[Any], str]:
        page = read_page(search, screen, library, views)
        shown = library.shown(page.state)
        if not shown:
            return [_invitation(library)], ""
        places = {name: page.theme.slot(place) for place, name in enumerate(page.names)}
        slots = {name: places.get(name, library.slot(name)) for name in shown}
        few = len(shown) <= FEW
        room = 0 if screen["narrow"] else ROOM[len(shown) == 1]
        strips = [card(name, library, page.theme, slots[name], few, room) for name in shown]
        if few:
            return strips, ""
        ranks = {name: rank for rank, name in enumerate(sorted(shown, key=library.badness))}
        worst_first = sorted(
            zip(strips, shown, strict=True), key=lambda pair: (_urgency(pair[0]), -ranks[pair[1]])
        )
        counted = html.P(_counted(shown, library), className="caption")
        return [counted, *(strip for strip, _ in worst_first)], "many"


def _counted(shown: Sequence[str], library: Library) -> str:
    """Return how many of the runs have each verdict: of many strips only the worst are in sight."""
    known = [library.summary(name, patient=False) for name in shown]
    verdicts = Counter(one.diagnosis.verdict.partition(":")[0] for one in known if one is not None)
    healthy = verdicts.pop("healthy", 0)
    parts = [f"{count} {verdict}" for verdict, count in verdicts.most_common()]
    parts += [f"{healthy} with a healthy gradient flow"] * bool(healthy)
    unknown = known.count(None)
    parts += [f"{unknown} not looked at yet"] * bool(unknown)
    return f"Of {len(shown)} runs: {', '.join(parts)}. The worst first:"


def _urgency(strip: Any) -> int:
    return ORDER.index(strip.className.removeprefix("is-"))


def swatch(slot: int, theme: Theme) -> html.Span:
    """Return a short sample of the line of the run at the place `slot`."""
    style = {"solid": "solid", "dash": "dashed", "dot": "dotted"}.get(theme.dash(slot), "dashed")
    return html.Span(className="swatch", style={"borderTop": f"3px {style} {theme.color(slot)}"})


def card(
    name: str, library: Library, theme: Theme, slot: int, patient: bool, room: int
) -> html.Article:
    """Return the strip of the run called `name`, with sentences of `room` letters, one at least."""
    title = html.H2([swatch(slot, theme), name])
    if (problem := library.problem(name)) is not None:
        content = [html.Strong("▲ Unreadable", className="bad"), html.P(problem)]
        return html.Article([title, *content], className="is-bad")
    summary = library.summary(name, patient=patient)
    if summary is None:
        said = html.P("… looking at the whole run.", className="caption")
        return html.Article([title, said], className="is-waiting")
    runs = library.get([name])
    layers = [str(layer) for run in runs for layer in run.layers["name"]]
    notes = [*summary.diagnosis.notes, *(note for run in runs for note in run.notes)]
    notes = list(dict.fromkeys([*notes, *library.notes(name)]))
    parts = [*(part for run in runs if (part := _ended(run)) is not None), *summary.parts]
    tone = min((part.tone for part in parts), key=ORDER.index)
    end = "now" if any(run.status == "running" for run in runs) else "at the end"
    return html.Article(
        [
            html.Div([title, *map(_chip, parts)], className="head"),
            *_words(summary, name, notes, layers, end, room),
        ],
        className=f"is-{tone}",
    )


def _ended(run: Run) -> Judged | None:
    """Return that a run crashed or has fallen silent, if so."""
    status = state_of(run)
    if not len(run.steps) or status not in ("crashed", "stalled"):
        return None
    last = int(run.steps["step"].iloc[-1])
    if status == "crashed":
        ended = "its process ended without scope.close(), killed or by an error"
        return Judged(f"crashed after step {last:,}: {ended}", "bad")
    silent = silence(run)
    return Judged(f"no new step since step {last:,}{f', {silent} ago' * bool(silent)}", "unsure")


def _chip(part: Judged) -> html.Span:
    words = f" {_whole(part.words)}"
    return html.Span([html.B(SIGNS[part.tone]), words], className=f"chip {part.tone}")


def _whole(words: str) -> str:
    """Return `words` with numbers that no line ends within: `2e-5`, `3.5 thousand`."""
    words = re.sub(r"(?<=\de)-(?=\d)", "\u2011", raised(words).replace(" -> ", " → "))
    return re.sub(r"(?<=\d) (?=×|thousand|million|billion|trillion)", "\u00a0", words)


def _words(
    summary: Summary, name: str, notes: list[str], layers: list[str], end: str, room: int
) -> list[Any]:
    """Return what is said first, in whole sentences, and what there is to open."""
    diagnosis = summary.diagnosis
    said, rest = fitting(" ".join([diagnosis.summary, *diagnosis.beside]), room)
    content: list[Any] = [html.P(_whole(said), className="summary")]
    grave = [f for f in diagnosis.findings if f.severity != "information"]
    remedies = [r for f in grave for r in f.remedies if not r.startswith(IN_VAIN)]
    remedy = next(iter(remedies), None)
    if diagnosis.findings or notes or rest:
        content.append(_details(summary, name, notes, remedy, layers, end, rest))
    return content


def _details(
    summary: Summary,
    name: str,
    notes: list[str],
    remedy: str | None,
    layers: list[str],
    end: str,
    rest: str,
) -> html.Details:
    """Return the rest of what is said, all findings with ways to them, what to try, the notes."""
    diagnosis = summary.diagnosis
    count = len(diagnosis.findings)
    parts = [f"{count} finding{'s' * (count != 1)}"] if count else []
    parts += [f"{len(notes)} note{'s' * (len(notes) != 1)}"] if notes else []
    words = " and ".join(parts) or "more"
    tried = [html.Span([*_remedy(remedy), ". "], className="try")] if remedy else []
    items: list[Any] = [_finding(finding, name, layers) for finding in diagnosis.findings]
    if remedy:
        items.append(html.Li(_measured(name, diagnosis.findings)))
    items += [html.Li(_whole(sentence)) for sentence in diagnosis.settings]
    if diagnosis.start != diagnosis.end:
        items.append(html.Li(f"At the start: {diagnosis.start}; {end}: {diagnosis.end}."))
    items += [html.Li(f"note: {note}") for note in notes]
    opened = [html.P(_whole(rest))] * bool(rest) + [html.Ul(items)] * bool(items)
    return html.Details([html.Summary([*tried, html.Span(words)]), *opened])


def _finding(finding: Finding, name: str, layers: list[str]) -> html.Li:
    """Return a finding; its button opens the step and the layer where it shows first."""
    first, last = finding.steps
    layer, at = (finding.layers[0] if finding.layers else ""), first
    if finding.place is not None:
        at = finding.place.step
        layer = layer if finding.place.layer is None else layers[finding.place.layer]
    return html.Li(
        [
            html.Button(
                f"{finding.verdict} ({finding.severity}), steps {first}–{last}",
                id={"do": "finding", "to": f"{at},{layer}", "of": f"{name},{finding.verdict}"},
                className="link",
                title="Open the step and the layer where it shows first",
            ),
            f" {_whole(finding.sentence)}",
            html.Ul([html.Li(_remedy(remedy)) for remedy in finding.remedies]),
        ]
    )


def _remedy(remedy: str) -> list[Any]:
    """Return a remedy, or what it did where it was tried, its first word in bold."""
    first, rest = ("Tried", remedy[5:]) if remedy.startswith("tried") else ("Try", f": {remedy}")
    mark, _, said = rest.partition(": ")
    return [html.B(f"{first}{mark}: "), _whole(said)]


def _measured(name: str, findings: Sequence[Finding]) -> html.Button:
    """Return the way to what was tried, or to how it is."""
    known = any(remedy.startswith("tried") for f in findings for remedy in f.remedies)
    return html.Button(
        "See what was tried on copies of this net"
        if known
        else "Would it help? See how to try it on copies of this net",
        id={"do": "view", "to": "what-if", "of": name},
        className="link",
    )


def _invitation(library: Library) -> html.Article:
    """Return what to paste into a training, where there is no run yet."""
    place = library.folder
    code = f'scope = gradscope.watch(model, "{place}/first")' if place else "gradscope.watch(model)"
    return html.Article(
        [
            html.H2(f"No run in {place} yet" if place else "No run yet"),
            html.P("Put these lines into a training; the run appears here by itself:"),
            html.Pre(
                f"import gradscope\n{code}   # before the loop; the loop stays as it is",
                tabIndex=0,
            ),
        ],
        className="invitation",
    )
