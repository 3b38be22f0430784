"""What taps have sent, as readings: which row is of what, and what follows from its sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradscope.capture.compiled.tap_plan import TapPlace, TapPlan
from gradscope.capture.keys import Keys, Layout, activation_keys, output_keys
from gradscope.capture.net.taps import COLUMNS, Spot, Spots, norms, rows
from gradscope.capture.reading.rows import Segment, Sums

UNEVEN = 1e3
"""So much larger may one part of a gradient be than the other for their cosine to be told."""

_READ = ("gradient", "norm", "mean", "deviation", "slope", "zero", "flat", "nothing")
"""What is read of a row, in this order."""


class TapRows:
    """The rows that the taps of a model send to, one for each place.

    Attributes
    ----------
    nodes : what a backward runs through that reaches a tap
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._plans: list[TapPlan] = []
        self._places: dict[TapPlace, int] = {}
        self._rows: tuple[Tensor, ...] = ()
        self._layouts: dict[frozenset[int], tuple[Layout, Tensor, Layout, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def plan(
        self,
        plans: Sequence[TapPlan],
        device: torch.device,
        arrived: Callable[[tuple[Tensor | None, ...]], None],
    ) -> None:
        """Have a row for each place of `plans`; what one backward sends goes to `arrived`."""
        self._plans = list(plans)
        self._layouts.clear()
        places = dict.fromkeys(place for taps in plans for place in taps.places())
        if places and places.keys() != self._places.keys():
            self._places = {place: i for i, place in enumerate(places)}
            self._rows, node = rows(len(places), device, arrived)
            self.nodes = [node]

    def spots(self) -> dict[int, tuple[Spots, Spots]]:
        """Return what to tap of each module: of its input, of its output."""
        found: dict[int, dict[str, list[Spot]]] = {}
        plans = self._plans
        for place, row in self._places.items():
            is_read = any(place in taps.outputs or place in taps.values for taps in plans)
            slope = next((t.slopes[place] for t in plans if place in t.slopes), None)
            spot = Spot(place.position, self._rows[row], is_read, slope)
            sides = found.setdefault(place.module, {"in": [], "out": []})
            sides[place.side].append(spot)
        return {n: (tuple(sides["in"]), tuple(sides["out"])) for n, sides in found.items()}

    def layout(self, present: frozenset[int]) -> tuple[Layout, Tensor, Layout, Tensor]:
        """Return what `present` rows are of.

        The keys and the places, in what is read of all rows, of readings; those of cosines, and the
        rows of the whole gradients and of both their parts, shape (3, cosines).
        """
        if present not in self._layouts:
            keys: list[Keys] = []
            places: list[int] = []
            cosines: list[Keys] = []
            parts: list[list[int]] = [[], [], []]
            for taps in self._plans:
                for place, row in self._places.items():
                    if row in present:
                        read = _keys(taps, place)
                        keys += read.values()
                        places += [row * len(_READ) + _READ.index(name) for name in read]
                for cosine in taps.cosines:
                    of = [self._places[place] for place in cosine[1:]]
                    if present.issuperset(of):
                        cosines.append((cosine.key,))
                        for some, row in zip(parts, of, strict=True):
                            some.append(row)
                if taps.zeros:
                    keys.append(tuple(taps.zeros))
                    places.append(_READ.index("nothing"))
            where, parts_where = (
                torch.tensor(index, dtype=torch.int64).to(self._rows[0].device, non_blocking=True)
                for index in (places, parts)
            )
            self._layouts[present] = tuple(keys), where, tuple(cosines), parts_where
        return self._layouts[present]


def _keys(taps: TapPlan, place: TapPlace) -> dict[str, Keys]:
    """Return what each reading of a row is of."""
    found: dict[str, Keys] = {}
    if taps.gradients.get(place):
        found["gradient"] = tuple(taps.gradients[place])
    norms_of = tuple(taps.values.get(place, ()))
    if place in taps.outputs:
        norm, mean, deviation = output_keys(place.module, taps.outputs[place])
        found |= {"norm": norm + norms_of, "mean": mean, "deviation": deviation}
    elif norms_of:
        found["norm"] = norms_of
    if place in taps.slopes:
        of = activation_keys(place.module, taps.outputs[place])
        found |= dict(zip(("slope", "zero", "flat"), of, strict=True))
    return found


class TappedReadings:
    """What taps have read in the backwards of one step, added up on the device.

    Parameters
    ----------
    taps : TapRows
        Say which row is of what.
    """

    def __init__(self, taps: TapRows) -> None:
        self.leaves = taps.nodes
        self._taps = taps
        self._present: set[int] = set()
        self._total: Tensor | None = None
        self._gradients: list[Tensor] = []  # norms, of each backward

    @property
    def readings(self) -> TappedReadings:
        """Itself: it has `segments`, as `Readings` have."""
        return self

    def add(self, sent: Sequence[Tensor | None]) -> None:
        """Take what the taps have sent in one backward."""
        found = {i: x for i, x in enumerate(sent) if x is not None}
        if not found:
            return
        nothing = torch.zeros_like(next(iter(found.values())))
        matrix = torch.stack([found.get(i, nothing) for i in range(len(sent))])
        if self._total is not None and len(self._total) == len(matrix):
            self._total = self._total + matrix
        else:
            self._total = matrix
        self._present |= found.keys()
        self._gradients.append(norms(matrix[:, 0], matrix[:, 1], matrix[:, 2]))

    def segments(self) -> list[Segment]:
        """Return all readings, each with its keys."""
        if self._total is None:
            return []
        layout, where, cosines, parts_where = self._taps.layout(frozenset(self._present))
        read = _readings(self._total).reshape(-1)[where]
        parts, keys = [read], list(layout)
        for gradients in self._gradients if cosines else ():
            total, shortcut, branch = gradients[parts_where]
            parts.append(_cosines(total, shortcut, branch))
            keys += cosines
        return [(tuple(keys), torch.cat(parts))]

    def sums(self) -> list[Sums]:
        """Return nothing: what taps send is summed up already."""
        return []

    def release(self) -> None:
        """Nothing is held that would outlive the step."""

    def end_of_backward(self) -> None:
        """Nothing waits for it."""


def _readings(total: Tensor) -> Tensor:
    """Return what rows tell, shape (rows, len(_READ))."""
    column = dict(zip(COLUMNS, total.unbind(1), strict=True))
    count = column["count"]
    value = norms(column["value_low"], column["value"], column["value_high"])
    mean = column["sum"] / count
    variance = (value / count.sqrt()).square() - mean.square()
    return torch.stack(
        [
            norms(column["gradient_low"], column["gradient"], column["gradient_high"]),
            value,
            mean,
            variance.clamp(min=0).sqrt(),
            column["slopes"] / count,
            1 - column["nonzero"] / count,
            column["flat"] / count,
            torch.zeros_like(count),
        ],
        1,
    )


def _cosines(total: Tensor, shortcut: Tensor, branch: Tensor) -> Tensor:
    """Return the cosine between two parts of a gradient, from their norms and that of their sum.

    NaN where one part is so small beside the other that the sum's rounding would show.
    """
    one, other = total / shortcut, total / branch
    cosine = (one * other - shortcut / branch - branch / shortcut) / 2
    is_told = (shortcut > branch / UNEVEN) & (branch > shortcut / UNEVEN)
    return torch.where(is_told, cosine.clamp(-1, 1), torch.nan)
