"""The views of the dashboard, in the order of their tabs.

A view is a module with `NAME` (in the address), `LABEL` (on the tab), `CONTROLS` (which
of "metric" and "step" it heeds), `layout()`, `register(app,
library, names)`, which adds its callbacks, and `CLICKS`: graph -> what a click on a point changes.
To add one, write its module and put it in this list.
"""

from gradscope_dashboard.views import depth, flow, layers_steps, speed

VIEWS = [depth, flow, layers_steps, speed]
