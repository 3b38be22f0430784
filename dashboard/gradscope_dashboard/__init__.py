"""The dashboard: recorded runs in a browser, live while they train.

In: runs, or a folder of them. Out: a page that draws them with `gradscope.plots`, served by a
thread of this process: `start(...)`, which `gradscope.dashboard` and the command line call.
"""

from gradscope_dashboard.server import Server, start

__all__ = ["Server", "start"]
