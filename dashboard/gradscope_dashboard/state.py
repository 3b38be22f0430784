"""What the page shows, and its address: one is the other, so a link shows the same to everyone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlencode

from gradscope.plots import METRICS
from gradscope.plots.layer_table import SHOWN

FIRST_METRIC = next(iter(METRICS))
SHOWN_AT_FIRST = 4
"""So many runs, if there are no more, are all shown until somebody selects."""
ALL = "*"
"""In place of the names of all runs."""
ROWS, MOST_ROWS = 25, 1000
TABLE_COLUMNS = ("run", "number", "name", *SHOWN, "kind", "parameters")


@dataclass(frozen=True)
class State:
    """What the page shows.

    Parameters
    ----------
    view : str
    runs : tuple of str
        Names of the selected runs, or `ALL`; empty until somebody selects, which shows all of a
        few, or the newest and the worst of many.
    metric : str
    step : int or None
        None follows the latest.
    layer : str or None
        Name of the layer whose history is open.
    theme : str or None
        "light" or "dark"; None is what the system prefers.
    sort : str or None
        Column by which the table of layers is sorted, descending after a minus; None is the
        worst first.
    rows : int
        How many layers the table shows.
    log : bool
        Scalars are drawn on a logarithmic scale.
    """

    view: str
    runs: tuple[str, ...] = ()
    metric: str = FIRST_METRIC
    step: int | None = None
    layer: str | None = None
    theme: str | None = None
    sort: str | None = None
    rows: int = ROWS
    log: bool = False

    def but(self, **changes: Any) -> State:
        """Return this state with `changes`."""
        return replace(self, **changes)

    def selected(self, names: Sequence[str], worst: str | None = None) -> list[str]:
        """Return the runs to show among `names`, in their order; `worst` is the worst off."""
        if ALL in self.runs:
            return list(names)
        chosen = [name for name in names if name in self.runs]
        if chosen or len(names) <= SHOWN_AT_FIRST:
            return chosen or list(names)
        return [name for name in names if name in (worst, names[-1])]

    def choosing(self, chosen: Collection[str], names: Sequence[str]) -> State:
        """Return the state that shows the runs `chosen` of `names`; none is the default."""
        known = tuple(name for name in names if name in chosen)
        return self.but(runs=(ALL,) if known and len(known) == len(names) else known)

    def toggled(self, name: str, shown: Sequence[str], names: Sequence[str]) -> State:
        """Return the state with the run `name` hidden if it is among those `shown`, else shown.

        The last shown run stays.
        """
        left = [run for run in shown if run != name]
        if name not in shown:
            left = [run for run in names if run in shown or run == name]
        return self.choosing(left or list(shown), names)

    def search(self, first_view: str) -> str:
        """Return the query part of the address; what is as at first is left out."""
        pairs: list[tuple[str, Any]] = []
        if self.view != first_view:
            pairs.append(("view", self.view))
        pairs += [("run", name) for name in self.runs]
        if self.metric != FIRST_METRIC:
            pairs.append(("metric", self.metric))
        for key, at_first in (
            ("step", None),
            ("layer", None),
            ("theme", None),
            ("sort", None),
            ("rows", ROWS),
        ):
            value = getattr(self, key)
            if value != at_first:
                pairs.append((key, value))
        if self.log:
            pairs.append(("log", 1))
        return f"?{urlencode(pairs)}" if pairs else ""


def parse(search: str | None, views: Sequence[str], runs: Collection[str]) -> State:
    """Return the state of an address; values that are unknown or make no sense are dropped."""
    query = parse_qs((search or "").lstrip("?"), max_num_fields=1000)

    def last(key: str) -> str:
        return query.get(key, [""])[-1]

    def number(key: str, default: int | None) -> int | None:
        text = last(key)
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else default

    return State(
        view=last("view") if last("view") in views else views[0],
        runs=tuple(
            name for name in dict.fromkeys(query.get("run", [])) if name in runs or name == ALL
        ),
        metric=last("metric") if last("metric") in METRICS else FIRST_METRIC,
        step=number("step", None),
        layer=last("layer") or None,
        theme=last("theme") if last("theme") in ("light", "dark") else None,
        sort=last("sort") if last("sort").removeprefix("-") in TABLE_COLUMNS else None,
        log=last("log") == "1",
        rows=min(number("rows", ROWS) or ROWS, MOST_ROWS),
    )
