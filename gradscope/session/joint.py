"""The layers and shortcuts of several processes as one list, told apart by their names.

Processes that train alike have the same ones; stages of a pipeline have their own, and experts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.autograd.heads import Head
from gradscope.autograd.layer_flow import END
from gradscope.capture.net.catalogue import Catalogue
from gradscope.session.layer_order import merged_order

Json = dict[str, Any]
Ints = NDArray[np.int64]
Shortcut = tuple[Any, ...]

_OWN = -1  # number of this process among those that it hears of
_MOST_NOTES = 32
_NOBODY = 2**31  # that of the run that is resumed


def described(catalogue: Catalogue, experts: Collection[str] = ()) -> Json:
    """Return what a process tells of its layers and shortcuts, in its own numbers.

    A shortcut past one of several `experts`, which other processes have, is past what holds them.
    """
    edges = [[edge["source"], edge["target"]] for edge in catalogue.edge_rows()]
    infos = [dict(vars(info)) for info in catalogue.joins.infos()]
    rows = [dict(row) for row in catalogue.layers]  # after what speaks of them: they may grow
    for info in infos:
        for end in ("split", "join", "branch"):
            if info[end] in experts:
                info[end] = str(info[end]).rpartition(".")[0] or info[end]
    depth = 0
    for row in rows:
        row["depth"], depth = row["depth"] - depth, row["depth"]
    return {
        "layers": rows,
        "shortcuts": infos,
        "edges": edges,
        "heads": [list(head) for head in catalogue.heads],
        "orders": [list(range(len(rows)))],
    }


class Joint:
    """The union of what processes have told of; a number, once given, stays.

    Parameters
    ----------
    layers, shortcuts, edges : rows of run.json
        Those of a run that is resumed.

    Attributes
    ----------
    layers, shortcuts : list of dict
        Rows of run.json, in the run's order, which is settled when rows are to be written.
    heads : list of Head
    news : int
        How often somebody has told of something.
    notes : dict of str to None
        What could not be read, here and there; the first few.
    changes : int
        Of what run.json lists.
    """

    def __init__(
        self,
        layers: Sequence[Json] = (),
        shortcuts: Sequence[Json] = (),
        edges: Sequence[Json] = (),
    ) -> None:
        self.layers: list[Json] = []
        self.shortcuts: list[Json] = []
        self.heads: list[Head] = []
        self.news = 0
        self.changes = 0
        self.notes: dict[str, None] = {}
        self._numbers: dict[int, dict[str, list[int]]] = {}  # of those that tell
        self._told: dict[int, Json] = {}
        self._layer_rows: list[Json] = []  # by number in the union; `depth` is what each adds to it
        self._tellers: list[int] = []  # of each, the first that has told of it
        self._layer_of: dict[str, int] = {}
        self._shortcut_rows: list[Json] = []
        self._shortcut_of: dict[Shortcut, int] = {}
        self.places: dict[str, list[int]] = {"layers": [], "shortcuts": []}
        self._resumed = {(edge["source"], edge["target"]) for edge in edges}
        self._resume(layers, shortcuts)

    def _resume(self, layers: Sequence[Json], shortcuts: Sequence[Json]) -> None:
        depth = 0
        for row in layers:
            self._layer_of[row["name"]] = len(self._layer_rows)
            self._layer_rows.append({**row, "depth": row["depth"] - depth})
            self._tellers.append(_NOBODY)
            depth = row["depth"]
        for row in shortcuts:
            key = _identity(row)
            occurrence = sum(key == known[:-1] for known in self._shortcut_of)
            self._shortcut_of[(*key, occurrence)] = len(self._shortcut_rows)
            self._shortcut_rows.append(dict(row))
        self.layers = [dict(row) for row in layers]
        self.shortcuts = [dict(row) for row in shortcuts]
        self.places = {"layers": [*range(len(layers))], "shortcuts": [*range(len(shortcuts))]}

    def take(self, told: Json, teller: int = _OWN) -> None:
        """Take what a process tells; numbers it gave before mean the same as ever."""
        self.news += 1
        self._told[teller] = told
        left = _MOST_NOTES - len(self.notes)
        self.notes |= dict.fromkeys([n for n in told["notes"] if n not in self.notes][:left])
        numbers = self._numbers.setdefault(teller, {"layers": [], "shortcuts": []})
        own = numbers["layers"]
        for number, row in zip(own, told["layers"], strict=False):
            if self._tellers[number] >= teller:  # renamed, or trained otherwise
                self._name(number, row["name"])
                self._layer_rows[number] = row
        for row in told["layers"][len(own) :]:
            number = self._layer_of.get(row["name"], len(self._layer_rows))
            if number == len(self._layer_rows):
                self._layer_rows.append(row)
                self._tellers.append(teller)
                self._name(number, row["name"])
            elif self._tellers[number] > teller:
                self._tellers[number] = teller
                self._layer_rows[number] = {**self._layer_rows[number], **row}
            own.append(number)
        some = numbers["shortcuts"]
        for row in told["shortcuts"][len(some) :]:
            key = (*_identity(row), row["occurrence"])
            number = self._shortcut_of.setdefault(key, len(self._shortcut_rows))
            if number == len(self._shortcut_rows):
                self._shortcut_rows.append(row)
            some.append(number)

    def _name(self, number: int, name: str) -> None:
        before = self._layer_rows[number]["name"]
        if self._layer_of.get(before) == number:
            del self._layer_of[before]
        self._layer_of[name] = number

    def numbers(self, teller: int = _OWN) -> dict[str, Ints]:
        """Return the numbers in the union of the layers and shortcuts of a teller."""
        of = self._numbers.get(teller, {"layers": [], "shortcuts": []})
        return {table: np.array(some, np.int64) for table, some in of.items()}

    def described(self) -> Json:
        """Return the union, to be told to another process."""
        return {
            "layers": self._layer_rows,
            "shortcuts": self._shortcut_rows,
            "edges": sorted(map(list, self._edges())),
            "heads": [list(head) for head in self._find_heads()],
            "orders": self._orders(),
            "notes": list(self.notes),
        }

    # --- the run's own order, where it is written ---------------------------------------------

    def settle(self) -> None:
        """Put what is new behind what has its place in the run, in the order of execution."""
        self.changes += 1
        orders = self._orders()
        place = self.places["layers"]
        place += [-1] * (len(self._layer_rows) - len(place))
        self.places["shortcuts"] += [-1] * (
            len(self._shortcut_rows) - len(self.places["shortcuts"])
        )
        for number in merged_order(orders, [row["name"] for row in self._layer_rows]):
            if place[number] < 0:
                place[number] = len(self.layers)
                self.layers.append({})
        depth = 0
        for number in sorted((n for n, at in enumerate(place) if at >= 0), key=place.__getitem__):
            row = self._layer_rows[number]
            depth += row["depth"]
            self.layers[place[number]] = {**row, "layer": place[number], "depth": depth}
        new = [n for n, at in enumerate(self.places["shortcuts"]) if at < 0]
        if len(orders) > 1:  # positions are those in each process's own part
            for n in new:
                row = self._shortcut_rows[n]
                inside = f"{row['branch']}."
                first = [
                    m["name"] == row["branch"] or m["name"].startswith(inside) for m in self.layers
                ]
                if any(first):
                    self._shortcut_rows[n] = {**row, "position": first.index(True) / len(first)}
            new.sort(key=lambda n: float(self._shortcut_rows[n]["position"]))
        for n in new:
            self.places["shortcuts"][n] = len(self.shortcuts)
            row = self._shortcut_rows[n]
            left = {key: x for key, x in row.items() if key != "occurrence"}
            self.shortcuts.append({"shortcut": len(self.shortcuts), **left})
        self.heads = self._find_heads()

    def edge_rows(self) -> list[Json]:
        """Return the edges between the layers of the run; from stage to stage, too."""
        place = {END: END, **{n: at for n, at in enumerate(self.places["layers"]) if at >= 0}}
        found = [(s, t) for s, t in self._edges() if s in place and t in place]
        edges = {(place[source], place[target]) for source, target in found}
        orders = self._orders()
        if len(orders) > 1 and not set(orders[0]).intersection(*orders[1:]):
            edges = _chained(edges, [{place[n] for n in order if n in place} for order in orders])
        edges |= self._resumed
        return [{"source": source, "target": target} for source, target in sorted(edges)]

    # --- what all have told -------------------------------------------------------------------

    def _of_all(self) -> list[tuple[list[int], Json]]:
        """Return the numbers of layers and the rest that each teller has told, in order."""
        return [(self._numbers[t]["layers"], self._told[t]) for t in sorted(self._told)]

    def _edges(self) -> set[tuple[int, int]]:
        return {
            (of[source], target if target == END else of[target])
            for of, told in self._of_all()
            for source, target in told["edges"]
        }

    def _find_heads(self) -> list[Head]:
        return list(
            dict.fromkeys(Head(*head) for _, told in self._of_all() for head in told["heads"])
        )

    def _orders(self) -> list[list[int]]:
        """Return the different orders in which processes have met layers."""
        orders = [[of[n] for n in order] for of, told in self._of_all() for order in told["orders"]]
        return list(map(list, dict.fromkeys(map(tuple, orders))))


def _identity(row: Mapping[str, Any]) -> Shortcut:
    return tuple(row[key] for key in ("name", "form", "split", "join", "branch"))


def _chained(edges: set[tuple[int, int]], stages: Sequence[set[int]]) -> set[tuple[int, int]]:
    """Return `edges` of stages of a pipeline with those from the end of one to the next.

    A stage is what of one process's layers comes in a row.
    """
    stage_of = {number: i for i, stage in enumerate(stages) for number in stage}
    if not stage_of:
        return edges
    pieces: list[list[int]] = []
    for number in sorted(stage_of):
        if not pieces or stage_of[pieces[-1][0]] != stage_of[number]:
            pieces.append([])
        pieces[-1].append(number)
    entered = {target for _, target in edges}
    result = set(edges)
    for piece, after in pairwise(pieces):
        ends = {(s, t) for s, t in edges if t == END and s in piece}
        first = [number for number in after if number not in entered] or after[:1]
        result -= ends
        result |= {(source, number) for source, _ in ends for number in first}
    return result
