"""What can be taken away from the page: tables as CSV."""

from __future__ import annotations

from dash import Dash
from flask import Response, abort, request

from gradscope_dashboard.library import Library


def register(app: Dash, library: Library, views: list[str]) -> None:
    """Add the addresses under /export/."""

    def whole_run() -> Response:
        """Stream all readings of the run `?run=NAME`."""
        runs = library.get([request.args.get("run", "")])
        if not runs:
            abort(404, "there is no such run")
        return _csv(runs[0].csv_chunks(), runs[0].name)

    app.server.add_url_rule("/export/run.csv", view_func=whole_run)


def _csv(chunks: object, name: str) -> Response:
    response = Response(chunks, mimetype="text/csv")  # type: ignore[arg-type]
    response.headers.set("Content-Disposition", "attachment", filename=f"{name}.csv")
    return response
