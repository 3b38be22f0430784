"""Serving the dashboard: on this machine's loopback unless told otherwise, on a free port."""

from __future__ import annotations

import logging
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from werkzeug.serving import BaseWSGIServer, make_server

from gradscope.errors import GradscopeError
from gradscope.runs.run import Run
from gradscope_dashboard.app import make_app
from gradscope_dashboard.library import Library
from gradscope_dashboard.starting import Starter

LOOPBACK = ("127.0.0.1", "localhost", "::1")
WILDCARDS = ("0.0.0.0", "::", "")


class Server:
    """A running dashboard; a notebook shows it in place.

    Attributes
    ----------
    url : str
    """

    def __init__(self, server: BaseWSGIServer, host: str, library: Library) -> None:
        self._server = server
        self._library = library
        self._host = host
        shown = "127.0.0.1" if host in WILDCARDS else _in_address(host)
        self.url = f"http://{shown}:{server.server_port}/"
        self._thread = threading.Thread(
            target=server.serve_forever, name="gradscope-dashboard", daemon=True
        )
        self._thread.start()

    def attend(self, *, open_browser: bool = True) -> None:
        """Print the address, open it in a browser, and wait until Ctrl-C.

        Parameters
        ----------
        open_browser : bool
            A machine without a display only prints the address.
        """
        if self._host not in LOOPBACK:
            print(
                f"warning: everybody who can reach this machine on {self._host} can read these"
                " runs; there is no password",
                file=sys.stderr,
            )
        print(f"gradscope dashboard: {self.url} (Ctrl-C ends it)", flush=True)
        if open_browser and has_display():
            webbrowser.open(self.url)
        self.wait()

    def wait(self) -> None:
        """Wait until the server ends; Ctrl-C ends it."""
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """End the server and free its port; a second call does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._library.close()

    def _repr_html_(self) -> str:
        """Show the dashboard within a notebook, and a link for where frames are not shown."""
        return (
            f'<iframe src="{self.url}" width="100%" height="820" style="border: 0"></iframe>'
            f'<a href="{self.url}" target="_blank">{self.url}</a>'
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start(
    source: Run | Sequence[Run] | str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    what_if: str | None = None,
) -> Server:
    """Serve runs from a thread of this process and return at once; see `gradscope.dashboard`.

    `what_if` names a function of a script, `train.py:setup`, on which the page may start
    `gradscope what-if`: on this machine alone.
    """
    if what_if is not None and (host not in LOOPBACK or not isinstance(source, (str, os.PathLike))):
        raise GradscopeError(
            f"{what_if} can be started from the page of this machine's own dashboard alone: serve a"
            " folder of runs, without --host"
        )
    # Behind a wildcard the names by which others know this machine are unknown.
    trusted = None if host in WILDCARDS else [*LOOPBACK, host.lower()]
    library = Library(source)
    if what_if is not None:
        library.starter = Starter(what_if, Path(os.fspath(source)))  # type: ignore[arg-type]
    app = make_app(library, trusted_hosts=trusted)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        server = make_server(host, port, app.server, threaded=True)
    except (OSError, OverflowError, SystemExit) as error:
        raise GradscopeError(
            f"cannot listen on {host}, port {port}: {error}; choose another host or port"
        ) from error
    return Server(server, host, library)


def has_display() -> bool:
    """Return whether a window can be opened: on Linux only under a display server."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _in_address(host: str) -> str:
    """Return `host` as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
