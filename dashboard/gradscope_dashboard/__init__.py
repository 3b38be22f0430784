"""The dashboard: recorded runs in a browser, live while they train.

`serve(path)` prints the address, opens the browser, and stays; `start(path)` returns at once.
"""

from gradscope_dashboard.server import Server, serve, start

__all__ = ["Server", "serve", "start"]
