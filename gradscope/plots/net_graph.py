"""The net as a graph of its modules, each with the gradient that reaches it at one step.

What a page draws of it is up to the page: here are the modules as a tree, and the ways past them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.diagnosis.summary import Summary
from gradscope.plots.drawn import ONE_LAYER, as_runs, at_the_first_layer, drawn_metric
from gradscope.plots.lettering import times
from gradscope.plots.metrics import METRICS
from gradscope.plots.net_alarms import Alarm, net_alarms
from gradscope.plots.net_ways import Ways, find_ways
from gradscope.runs.run import Run

TITLE = "Where in the net is the gradient lost?"
LITTLE = 0.01
"""What gets less than this share of the last hidden layer's gradient is pointed at."""

FEW = 8
"""Of fewer modules, those that hold more than layers are open at first."""


@dataclass
class Module:
    """A module, or a layer where it has no `children`.

    Attributes
    ----------
    name, kind : str
    first, last : int
        Indices in `Run.layers` of the layers that it holds.
    value : float
        What gradient reaches it, over that of the last hidden layer: its first layer's signal, or
        that at the input of its first residual block. NaN where none was read.
    open : bool
        Open at first, though no numbered blocks lie in it.
    """

    name: str
    kind: str
    first: int
    last: int
    value: float = np.nan
    children: list[Module] = field(default_factory=list)
    open: bool = False

    @property
    def is_block(self) -> bool:
        """Whether it is one of several of a kind: numbered, with layers in it."""
        return bool(self.children) and self.name.rpartition(".")[2].isdigit()

    @property
    def holds_blocks(self) -> bool:
        """Whether there are blocks below it."""
        return any(child.is_block or child.holds_blocks for child in self.children)

    def as_dict(self) -> dict[str, Any]:
        """Return it, and what is below, as JSON takes it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "first": self.first,
            "last": self.last,
            "decades": _decades(self.value),
            "said": times(self.value),
            "open": self.open or (self.holds_blocks and not self.is_block),
            "children": [child.as_dict() for child in self.children],
        }


@dataclass(frozen=True)
class NetGraph:
    """The modules of the `place`-th given run at `step`, from input to output, and its ways.

    `least` is the weight layer that gets the least gradient, empty if none was read, `said` how
    little that is, and `little` whether it is too little; `words` is a sentence of all that.
    `alarms` are the findings about layers, the worst first.
    """

    place: int
    run: str
    step: int
    modules: list[Module]
    ways: Ways
    least: str
    said: str
    little: bool
    words: str
    alarms: list[Alarm]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "run": self.run,
            "step": self.step,
            "modules": [module.as_dict() for module in self.modules],
            "arcs": [arc.as_dict() for arc in self.ways.arcs],
            "leaves": self.ways.leaves,
            "enters": self.ways.enters,
            "least": self.least,
            "said": self.said,
            "little": self.little,
            "words": self.words,
            "alarms": [alarm.as_dict() for alarm in self.alarms],
        }


def net_graph_info(
    runs: Run | Sequence[Run],
    *,
    step: int | None = None,
    summaries: Sequence[Summary | None] | None = None,
) -> list[NetGraph]:
    """Return the graph of each run at `step`; None is each run's latest.

    Runs without a recorded step are left out. The findings are those of `summaries`, one a run.
    """
    graphs = []
    listed = as_runs(runs)
    known = [None] * len(listed) if summaries is None else summaries
    for place, (run, summary) in enumerate(zip(listed, known, strict=True)):
        data = drawn_metric(run, METRICS["signal_norm"])
        if data.empty:
            continue
        row = data.row(step)
        recorded = int(data.steps[row])
        late = data.late(row, row + 1)
        signal = run.matrix("signal_norm", recorded, recorded)[1][0].astype(float)
        values = over_reference(signal, late)
        modules = _tree(run, values, _inputs(run, recorded, float(late[0])))
        weights = {int(layer) for layer in data.layers}
        worst = _worst(values, weights)
        name = said = ""
        if worst is not None and len(weights) > 1:
            name = str(run.layers["name"].iloc[worst])
            said = times(
                at_the_first_layer(data, row) if worst == min(weights) else float(values[worst])
            )
        little = worst is not None and bool(values[worst] < LITTLE)
        ways = find_ways(run, recorded)
        words = _words(run, recorded, values, weights, name, said, little) + _shares(ways)
        alarms = net_alarms(run, summary)
        graphs.append(
            NetGraph(place, run.name, recorded, modules, ways, name, said, little, words, alarms)
        )
    return graphs


def reach(graphs: Sequence[NetGraph]) -> int:
    """Return over how many decades the colours of `graphs` go, as all but odd modules need it."""

    def sizes(modules: Sequence[Module]) -> list[float]:
        own = [abs(np.log10(m.value)) for m in modules if 0 < m.value < np.inf]
        return own + [size for module in modules for size in sizes(module.children)]

    found = [size for graph in graphs for size in sizes(graph.modules)]
    return int(np.ceil(max(np.percentile(found, 97) if found else 0, 3)))


def _inputs(run: Run, step: int, late: float) -> dict[int, float]:
    """Return what arrives at the input of each residual block, by its first layer."""
    blocks = residual_blocks(run)
    if not blocks:
        return {}
    total = run.shortcut_matrix("total_norm", step, step)[1][0].astype(float)
    arrives = over_reference(total, np.array([late]))
    inputs: dict[int, float] = {}
    for block in blocks:
        inputs.setdefault(block.first, float(arrives[block.shortcut]))
    return inputs


def _tree(run: Run, values: np.ndarray[Any, Any], totals: dict[int, float]) -> list[Module]:
    """Return the modules of the first level, each with what it holds.

    A module that is called again after others stands where it was called first.
    """
    root = Module("", "", 0, -1)
    kinds = run.layers["kind"].astype(str).tolist()
    for layer, name in enumerate(map(str, run.layers["name"])):
        parts, at = name.split("."), root
        for end in range(1, len(parts)):
            path = ".".join(parts[:end])
            found = next((child for child in at.children if child.name == path), None)
            if found is None or (found.kind and not found.children):
                found = Module(path, "", layer, layer)
                at.children.append(found)
            found.last = max(found.last, layer)
            at = found
        at.children.append(Module(name, kinds[layer], layer, layer, float(values[layer])))
    _fill(root, values, totals)
    modules = root.children
    while len(modules) == 1 and modules[0].children:
        modules = modules[0].children
    if len(modules) < FEW and not any(module.holds_blocks for module in modules):
        for module in modules:
            module.open = any(child.children for child in module.children)
    return modules


def _fill(module: Module, values: np.ndarray[Any, Any], totals: dict[int, float]) -> None:
    for child in module.children:
        _fill(child, values, totals)
    if module.children and module.last >= module.first:
        inside = [totals[first] for first in totals if module.first <= first <= module.last]
        read = values[module.first : module.last + 1]
        known = read[~np.isnan(read)]
        if inside:
            module.value = inside[0]
        elif len(known):
            module.value = float(known[0])


def _worst(values: np.ndarray[Any, Any], weights: set[int]) -> int | None:
    """Return the weight layer that gets the least gradient; of equals where it comes first."""
    known = [i for i in sorted(weights, reverse=True) if np.isfinite(values[i])]
    return min(known, key=lambda i: values[i]) if known else None


def _words(
    run: Run,
    step: int,
    values: np.ndarray[Any, Any],
    weights: set[int],
    least: str,
    said: str,
    little: bool,
) -> str:
    """Return where least arrives, and where most, if that is much."""
    parts = []
    if len(weights) == 1:
        parts.append(ONE_LAYER)
    elif least:
        normal = "" if little else f"; up to {1 / LITTLE:.0f} × less is normal"
        parts.append(f"At step {step:,} the least arrives at {least}: {said}{normal}.")
    known = [i for i in sorted(weights) if np.isfinite(values[i])]
    most = max(known, key=lambda i: values[i], default=None)
    if most is not None and values[most] > 1 / LITTLE:
        name = str(run.layers["name"].iloc[most])
        parts.append(f"The most arrives at {name}: {times(float(values[most]))}.")
    return " ".join(parts)


def _shares(ways: Ways) -> str:
    """Return which shares are on the arcs, as those told of the run are medians."""
    known = [arc.share for arc in ways.arcs if not np.isnan(arc.share)]
    if not known:
        return ""
    low, high = f"{min(known) * 100:.0f}", f"{max(known) * 100:.0f}"
    span = low if low == high else f"{low}–{high}"
    return f" Shortcuts carry {span}% in it; a verdict tells medians over all steps."


def _decades(value: float) -> float | str | None:
    if np.isnan(value):
        return None
    if value == 0 or np.isinf(value):
        return "zero" if value == 0 else "inf"
    return round(float(np.log10(value)), 3)
