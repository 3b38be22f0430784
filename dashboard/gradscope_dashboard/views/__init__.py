"""The views of the dashboard, in the order of their tabs.

A view is a module with

- `NAME` in the address, `LABEL` on the tab,
- `CONTROLS`, which of "metric" and "step" it heeds,
- `layout(page)`, and `register(app, library, views)`, which adds its callbacks,
- `table(page)`, what it shows as a frame,
- `CLICKS`, graph -> what a click on one of its points changes.

To add one, write its module and put it in this list.
"""

from gradscope_dashboard.views import (
    depth,
    flow,
    layers,
    layers_steps,
    net,
    speed,
    sweep,
    training,
    what_if,
    why,
)

VIEWS = [depth, net, flow, layers_steps, speed, why, training, sweep, what_if, layers]
