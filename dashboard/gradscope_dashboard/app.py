"""The Dash application: the page, its callbacks, its routes, and who may talk to it."""

from __future__ import annotations

from dash import Dash, dcc, html
from flask import Response, request

from gradscope.plots import plotlyjs
from gradscope_dashboard import cards, controls, exports, history, security, timeline
from gradscope_dashboard.library import Library
from gradscope_dashboard.views import VIEWS

PLOTLY_JS = f"plotly-{plotlyjs.VERSION}.js"


def make_app(library: Library, *, trusted_hosts: list[str] | None = None) -> Dash:
    """Return the dashboard of the runs in `library`, for any WSGI server as `app.server`.

    Parameters
    ----------
    library : Library
    trusted_hosts : list of str, optional
        Names by which browsers may address the server; any without it.
    """
    app = Dash(
        "gradscope_dashboard",
        title="gradscope",
        update_title="",
        serve_locally=True,
        external_scripts=[PLOTLY_JS],  # with the page, and Dash asks for no other
        suppress_callback_exceptions=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    app.index_string = app.index_string.replace("<html>", '<html lang="en">')
    app.layout = _layout
    names = [view.NAME for view in VIEWS]
    controls.register(app, library)
    for view in VIEWS:
        view.register(app, library, names)
    cards.register(app, library, names)
    history.register(app, library, names)
    timeline.register(app, library, names)
    exports.register(app, library, names)
    app.server.add_url_rule(f"/{PLOTLY_JS}", view_func=_plotly_js)
    security.protect(app, trusted_hosts)
    return app


def _plotly_js() -> Response:
    """Send plotly.js, which a browser may keep: its address names its version."""
    if request.accept_encodings.quality("gzip"):
        response = Response(plotlyjs.compressed(), mimetype="text/javascript")
        response.headers["Content-Encoding"] = "gzip"
    else:
        response = Response(plotlyjs.source(), mimetype="text/javascript")
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


def _layout() -> html.Div:
    """Return the page; all that depends on the address is filled in by the callbacks."""
    return html.Div(
        [
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="poll", interval=1000 * controls.POLL_SECONDS),
            dcc.Store(id="names"),
            dcc.Store(id="clicks"),
            dcc.Store(id="handled"),
            dcc.Store(id="asked-runs"),
            dcc.Store(id="library"),
            dcc.Store(id="screen"),
            dcc.Store(id="shown-view"),
            dcc.Store(id="cards-drawn"),
            dcc.Store(id="timeline-drawn"),
            html.Button(id="resized", hidden=True),
            html.Div(
                "The dashboard's server does not answer: this is what it said last."
                " Is it still running?",
                id="offline",
                role="alert",
                hidden=True,
            ),
            controls.header(),
            html.Main(
                [
                    html.Div(id="cards"),
                    controls.controls(),
                    controls.tabs(),
                    html.Div(id="view"),
                    html.Div(id="drawer", hidden=True),
                ]
            ),
        ]
    )
