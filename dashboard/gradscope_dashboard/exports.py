"""What can be taken away from the page: CSV of what is shown, of a whole run, and a report."""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import quote

from dash import Dash, html
from flask import Response, abort, request

from gradscope.plots.report import report_html
from gradscope.runs.export import csv_lines, defused
from gradscope_dashboard import state
from gradscope_dashboard.library import Library
from gradscope_dashboard.page import read_page
from gradscope_dashboard.views import VIEWS

PLAIN = {"theme": "light", "narrow": False}


def links(search: str | None, shown: list[str]) -> html.Details:
    """Return the menu of what can be taken away from the page at the address `search`."""
    search = search or ""
    rows = [
        html.A("Report of these runs (HTML)", href=f"export/report.html{search}"),
        html.A("What this view shows (CSV)", href=f"export/view.csv{search}"),
        *(
            html.A(f"All of {name} (CSV)", href=f"export/run.csv?run={quote(name, safe='')}")
            for name in shown
        ),
    ]
    return html.Details([html.Summary("Export", className="button"), html.Div(rows)])


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the addresses under /export/."""

    def run_csv() -> Response:
        """Stream all readings of the run `?run=NAME`."""
        runs = library.get([request.args.get("run", "")])
        if not runs:
            abort(404, "there is no such run")
        return _download(runs[0].csv_chunks(), "text/csv", f"{runs[0].name}.csv")

    def view_csv() -> Response:
        """Send what the view at the page's address shows."""
        with library.lock:
            page = read_page(request.query_string.decode("utf-8", "replace"), PLAIN, library, views)
            rows = VIEWS[views.index(page.state.view)].table(page)
        for column in rows.select_dtypes(["object", "string"]):
            rows[column] = rows[column].map(lambda text: defused(str(text)))
        head = ",".join(rows.columns).encode() + b"\n"
        return _download([head, csv_lines(rows)], "text/csv", f"{page.state.view}.csv")

    def rows() -> Response:
        """Send the rows of the table of runs."""
        return Response(json.dumps(library.rows()), mimetype="application/json")

    def report() -> Response:
        """Send a report of the selected runs."""
        search = request.query_string.decode("utf-8", "replace")
        wanted = state.parse(search, views, library.names)
        runs = library.get(library.shown(wanted))
        if not runs:
            abort(404, "there is no run to report")
        return _download([report_html(runs).encode()], "text/html", "gradscope-report.html")

    for address, answer in (
        ("run.csv", run_csv),
        ("view.csv", view_csv),
        ("report.html", report),
        ("runs.json", rows),
    ):
        app.server.add_url_rule(f"/export/{address}", view_func=answer)


def _download(chunks: Iterable[bytes], mimetype: str, name: str) -> Response:
    """Return a file that the browser stores instead of showing it."""
    response = Response(chunks, mimetype=mimetype)
    response.headers.set("Content-Disposition", "attachment", filename=name)
    return response
