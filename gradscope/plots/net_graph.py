"""The net as a graph of its modules, each with the gradient that reaches it at one step.

What a page draws of it is up to the page: here are the modules as a tree, and the shortcuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradscope.arithmetic import over_reference
from gradscope.diagnosis.blocks import residual_blocks
from gradscope.plots.drawn import arrives, as_runs, drawn_metric
from gradscope.plots.lettering import times
from gradscope.plots.metrics import METRICS
from gradscope.runs.run import Run
from gradscope.schema import SPLIT_FORMS

TITLE = "Where in the net does the gradient starve?"
STARVES = 0.01
"""What gets less than this share of the last hidden layer's gradient is pointed at."""


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
    """

    name: str
    kind: str
    first: int
    last: int
    value: float = np.nan
    children: list[Module] = field(default_factory=list)

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
            "open": self.holds_blocks and not self.is_block,
            "children": [child.as_dict() for child in self.children],
        }


@dataclass(frozen=True)
class Arc:
    """A shortcut around the layers `first` to `last`; `share` of the energy, NaN if not split."""

    name: str
    form: str
    first: int
    last: int
    share: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        share = None if np.isnan(self.share) else round(self.share, 4)
        return {**self.__dict__, "share": share}


@dataclass(frozen=True)
class NetGraph:
    """The modules of the `place`-th given run at `step`, from input to output, and its arcs.

    `starves` is the layer that gets the least gradient, and `least` how little; else empty.
    """

    place: int
    run: str
    step: int
    modules: list[Module]
    arcs: list[Arc]
    starves: str
    least: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "run": self.run,
            "step": self.step,
            "modules": [module.as_dict() for module in self.modules],
            "arcs": [arc.as_dict() for arc in self.arcs],
            "starves": self.starves,
            "least": self.least,
        }


def net_graph_info(runs: Run | Sequence[Run], *, step: int | None = None) -> list[NetGraph]:
    """Return the graph of each run at `step`; None is each run's latest.

    Runs without a recorded step are left out.
    """
    graphs = []
    for place, run in enumerate(as_runs(runs)):
        data = drawn_metric(run, METRICS["signal_norm"])
        if data.empty:
            continue
        row = data.row(step)
        recorded = int(data.steps[row])
        late = data.late(row, row + 1)
        signal = run.matrix("signal_norm", recorded, recorded)[1][0].astype(float)
        values = over_reference(signal, late)
        arcs, totals = _arcs(run, recorded, float(late[0]))
        modules = _tree(run, values, totals)
        weights = {int(layer) for layer in data.layers}
        worst = _worst(values, weights)
        name = said = ""
        if worst is not None:
            name = str(run.layers["name"].iloc[worst])
            said = times(arrives(data, row) if worst == min(weights) else float(values[worst]))
        graphs.append(NetGraph(place, run.name, recorded, modules, arcs, name, said))
    return graphs


def _arcs(run: Run, step: int, late: float) -> tuple[list[Arc], dict[int, float]]:
    """Return the shortcuts, and what arrives at the input of each block, by its first layer."""
    arcs: list[Arc] = []
    totals: dict[int, float] = {}
    blocks = residual_blocks(run)
    if blocks:
        share = run.shortcut_matrix("energy_share", step, step)[1][0]
        total = run.shortcut_matrix("total_norm", step, step)[1][0].astype(float)
        arrives = over_reference(total, np.array([late]))
        for block in blocks:
            number = block.shortcut
            last = block.after - 1
            arcs.append(Arc(block.name, block.form, block.first, last, float(share[number])))
            totals.setdefault(block.first, float(arrives[number]))
    names = [str(name) for name in run.layers["name"]]
    for row in run.shortcuts.to_dict("records"):
        if row["form"] in SPLIT_FORMS:
            continue
        split = _last_under(names, str(row["split"]))
        after = float(row["position"]) * len(names) if row["position"] == row["position"] else 0
        if split is not None and round(after) > split + 1:
            form, last = str(row["form"]), min(round(after), len(names)) - 1
            arcs.append(Arc(str(row["name"]), form, split + 1, last, float("nan")))
    return arcs, totals


def _last_under(names: list[str], module: str) -> int | None:
    under = [i for i, name in enumerate(names) if name == module or name.startswith(f"{module}.")]
    return under[-1] if under else None


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
    """Return the weight layer that gets the least gradient, if that is little."""
    known = [i for i in sorted(weights) if np.isfinite(values[i])]
    if not known:
        return None
    worst = min(known, key=lambda i: values[i])
    return worst if values[worst] < STARVES else None


def _decades(value: float) -> float | str | None:
    if np.isnan(value):
        return None
    if value == 0 or np.isinf(value):
        return "zero" if value == 0 else "inf"
    return round(float(np.log10(value)), 3)
