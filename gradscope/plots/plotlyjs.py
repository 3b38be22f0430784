"""plotly.js for pages of our own: its cartesian bundle, a third of the whole.

`plotly-cartesian-*.min.js.gz` is `plotly-cartesian.min.js` of the npm package
plotly.js-cartesian-dist-min at that version, MIT licence beside it, compressed by `gzip -9n`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

VERSION = "4.1.1"

PRIVATE = {"showSendToCloud": False, "showEditInChartStudio": False, "plotlyServerURL": ""}
"""Configuration of every figure: nothing that plotly offers sends it to another machine."""


def compressed() -> bytes:
    """Return plotly.js as gzip packed it."""
    return Path(__file__).with_name(f"plotly-cartesian-{VERSION}.min.js.gz").read_bytes()


def source() -> str:
    """Return plotly.js, to stand within a page."""
    return gzip.decompress(compressed()).decode("utf-8")
