"""Figures of recorded runs: the same in a notebook, in a report, and in the dashboard.

In: a `Run`, or several. Out: a plotly figure, or a report of all as one HTML file.
Each plot is one module: an `info` function that computes what is drawn, a `figure` function that
turns it into plotly's dict, and a function of the plot's own name that composes the two.
"""

from gradscope.plots.depth_profile import depth_profile
from gradscope.plots.derivatives import derivatives
from gradscope.plots.flow_map import flow_map
from gradscope.plots.heatmap import heatmap
from gradscope.plots.history import history
from gradscope.plots.ledger import ledger
from gradscope.plots.metrics import METRICS, Metric
from gradscope.plots.scalars import scalars
from gradscope.plots.speed import speed
from gradscope.plots.survival import survival
from gradscope.plots.sweep_map import sweep_map
from gradscope.plots.theme import DARK, LIGHT, Theme
from gradscope.plots.training import training
from gradscope.plots.tries import tries

__all__ = [
    "DARK",
    "LIGHT",
    "METRICS",
    "Metric",
    "Theme",
    "depth_profile",
    "derivatives",
    "flow_map",
    "heatmap",
    "history",
    "ledger",
    "scalars",
    "speed",
    "survival",
    "sweep_map",
    "training",
    "tries",
]
