"""Who may talk to the dashboard, and what a page of it may load: itself and nothing else."""

from __future__ import annotations

from urllib.parse import urlsplit

from dash import Dash
from dash.exceptions import DependencyException
from flask import Response, abort, request
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError, NotFound

LARGEST_REQUEST = 2**20
CALLBACK = "_dash-update-component"


def protect(app: Dash, trusted_hosts: list[str] | None) -> None:
    """Set the limits and headers; call it when all callbacks are there.

    Parameters
    ----------
    app : Dash
    trusted_hosts : list of str or None
        Names by which browsers may address the server. They keep other sites from reaching a
        local dashboard through a name that they resolve to this machine (DNS rebinding).
    """
    app.server.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST
    scripts = " ".join(["'self'", *app.csp_hashes()])
    policy = "; ".join(
        [
            "default-src 'self'",
            f"script-src {scripts}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*",
        ]
    )

    def add_headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    def refuse_other_hosts() -> None:
        # Flask's own TRUSTED_HOSTS knows no IPv6 addresses.
        try:
            asked = urlsplit(f"//{request.headers.get('Host', '')}").hostname
        except ValueError:
            asked = None
        if trusted_hosts is not None and asked not in trusted_hosts:
            abort(400, "this dashboard is not to be asked under that name")

    def refuse(error: Exception) -> HTTPException:
        """Answer a request that fails with a status and no word of why; the terminal has that."""
        if isinstance(error, HTTPException):
            return error
        if isinstance(error, DependencyException):  # a file that no component has
            return NotFound()
        app.server.logger.error("cannot answer %s", request.path, exc_info=error)
        # what a page asks for is answered, so this was not asked for by a page
        return BadRequest() if request.path.endswith(CALLBACK) else InternalServerError()

    app.server.before_request(refuse_other_hosts)
    app.server.after_request(add_headers)
    app.server.register_error_handler(Exception, refuse)
