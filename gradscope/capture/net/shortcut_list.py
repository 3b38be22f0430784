"""The residual joins of one run: as they are met, and as rows, from input to output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradscope.capture.net import layers

Json = dict[str, Any]

_NAMES = ("name", "form", "split", "join", "branch")


@dataclass(frozen=True)
class ShortcutInfo:
    """A residual join as the recorder knows it; `occurrence` tells repeats in one graph apart."""

    name: str
    form: str
    split: str
    join: str
    branch: str
    occurrence: int
    position: float


class ShortcutList:
    """Numbers joins as they are met, which readings are told by, and gives them rows later.

    Parts of a model that are called one by one, or anew in the backward by re-entrant
    checkpointing, leave a graph each, in any order: where among all layers a join stands is known
    once all were called.

    Parameters
    ----------
    rows : rows of run.json
        Those of a run that is resumed.

    Attributes
    ----------
    rows : list of dict
        A row, once given, stays.
    row_of : dict of int to int
        Number as met -> row.
    """

    def __init__(self, rows: Iterable[Json] = ()) -> None:
        self.rows = list(rows)
        keys = [(*names, n) for names, n in _numbered(self.rows)]
        self._number_of: dict[tuple[Any, ...], int] = {key: i for i, key in enumerate(keys)}
        self.row_of = {i: int(row["shortcut"]) for i, row in enumerate(self.rows)}
        self._new: dict[int, tuple[ShortcutInfo, Collection[int]]] = {}

    def meet(self, infos: Sequence[ShortcutInfo], part: Collection[int] = ()) -> list[int]:
        """Return the number of each join of a graph, in their order there.

        Parameters
        ----------
        infos : sequence of ShortcutInfo
        part : collection of int
            Modules of the layers that were called, where not the model was, but a part of it.
        """
        numbers = []
        for info in infos:
            key = (*(getattr(info, name) for name in _NAMES), info.occurrence)
            if key not in self._number_of:
                number = self._number_of[key] = len(self._number_of)
                self._new[number] = info, part
            numbers.append(self._number_of[key])
        return numbers

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Return the names of joins, by their numbers as met."""
        known = list(self._number_of)
        return [known[number][0] for number in numbers]

    @property
    def are_new(self) -> bool:
        """Whether some have no row yet."""
        return bool(self._new)

    def settle(self, called: Mapping[int, str]) -> None:
        """Give rows to joins that have none.

        Parameters
        ----------
        called : mapping of int to str
            Module -> name of each layer that was called so far, in order.
        """
        new = {
            number: replace(info, position=_position(info, part, called))
            for number, (info, part) in self._new.items()
        }
        # in an order that an interrupt may cut short: what has a row, or is about to, goes first
        for number in sorted(new, key=lambda n: (n not in self.row_of, new[n].position)):
            row = self.row_of.setdefault(number, len(self.rows))
            if row == len(self.rows):
                told = {name: getattr(new[number], name) for name in (*_NAMES, "position")}
                self.rows.append({"shortcut": row, **told})
            del self._new[number]

    def infos(self) -> list[ShortcutInfo]:
        """Return those that have a row, in order; for any thread."""
        rows = list(self.rows)
        counts = [n for _, n in _numbered(rows)]
        return [
            ShortcutInfo(**{key: row[key] for key in (*_NAMES, "position")}, occurrence=n)
            for row, n in zip(rows, counts, strict=True)
        ]


def occurrences(names: Iterable[tuple[str, ...]]) -> list[int]:
    """Return how often each of `names` came before: what tells equal names apart."""
    seen: Counter[tuple[str, ...]] = Counter()
    result = []
    for name in names:
        result.append(seen[name])
        seen[name] += 1
    return result


def _numbered(rows: Sequence[Json]) -> list[tuple[tuple[str, ...], int]]:
    """Return the names of each row, and how often they came before."""
    names = [tuple(row[key] for key in _NAMES) for row in rows]
    return list(zip(names, occurrences(names), strict=True))


def _position(info: ShortcutInfo, part: Collection[int], called: Mapping[int, str]) -> float:
    """Return the share of all layers that have returned before the join."""
    inside = [module in part for module in called]
    if not any(inside):
        return info.position
    names = list(called.values())
    first = names[inside.index(True)]
    before = [n for n in names[: inside.index(True)] if not _is_around(n, first)]
    return min((len(before) + info.position * sum(inside)) / len(names), 1.0)


def _is_around(holder: str, name: str) -> bool:
    """Whether a layer holds the one called `name`: it returns after that."""
    return holder == layers.ROOT or name.startswith(f"{holder}.")
