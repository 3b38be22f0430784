"""What was measured, as `gradscope bench` prints it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of one watcher on one net, in step times of the bare net; NaN is not measured.

    Attributes
    ----------
    net, watcher : str
    threads : int
    rounds : int
    ratio, lower, upper : float
        Median and quartiles of the rounds' ratios, watched / bare.
    ms : float
        Median of the rounds' times of a step.
    peak : float
        Bytes by which watching lifts the peak of memory in a block: of the CUDA device, or of the
        process.
    memory : float
        The same, a parameter of the net.
    kernels, device_ms : float
        That a step runs on a CUDA device, copies among them, and the time that they take there.
    failure : str
        Why the net was not measured, or "".
    """

    net: str
    watcher: str
    threads: int
    rounds: int
    ratio: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    ms: float = math.nan
    peak: float = math.nan
    memory: float = math.nan
    kernels: float = math.nan
    device_ms: float = math.nan
    failure: str = ""


_COLUMNS: dict[str, tuple[Callable[[Cost], float], str]] = {
    "ms": (lambda cost: cost.ms, ".2f"),
    "kernels": (lambda cost: cost.kernels, ".0f"),
    "device ms": (lambda cost: cost.device_ms, ".2f"),
    "MiB above bare": (lambda cost: cost.peak / 2**20, ".0f"),
    "bytes a parameter": (lambda cost: cost.memory, ".1f"),
}
_MEMORY = ("MiB above bare", "bytes a parameter")  # later ones use what earlier ones have freed


@dataclass(frozen=True)
class Bench:
    """All costs that were measured, where, and on which nets: `str(bench)` is two tables."""

    machine: str
    nets: tuple[str, ...]
    costs: tuple[Cost, ...]

    def __str__(self) -> str:
        """Return two Markdown tables: of ratios, a column a net; of all else, a row a net."""
        threads = list(dict.fromkeys(cost.threads for cost in self.costs))
        return "\n".join(
            [
                self.machine,
                *self.nets,
                "",
                "Step time over that of the bare net: median of"
                f" {self.costs[0].rounds} rounds ± half the distance of their quartiles, with"
                f" {' / '.join(map(str, threads))} thread{'s' if threads != [1] else ''}.",
                "",
                *self._ratios(),
                "",
                "Of a step the time, and on a GPU the kernels (copies, too) and their time;"
                " of memory the peak.",
                "",
                *self._absolute(),
            ]
        )

    def _ratios(self) -> list[str]:
        nets = list(dict.fromkeys(cost.net for cost in self.costs))
        rows: dict[str, dict[str, list[Cost]]] = {}
        for cost in self.costs:
            rows.setdefault(cost.watcher, {}).setdefault(cost.net, []).append(cost)
        return _table(
            ["", *nets],
            [
                [watcher, *(" / ".join(map(_ratio, found[net])) for net in nets)]
                for watcher, found in rows.items()
            ],
        )

    def _absolute(self) -> list[str]:
        columns = {
            name: (number, form)
            for name, (number, form) in _COLUMNS.items()
            if not all(math.isnan(number(cost)) for cost in self.costs)
        }
        rows: dict[tuple[str, str], list[Cost]] = {}
        for cost in self.costs:
            rows.setdefault((cost.net, cost.watcher), []).append(cost)
        lines = []
        for key, found in rows.items():
            cells = [
                " / ".join(
                    _number(number(c), form) for c in (found[:1] if name in _MEMORY else found)
                )
                for name, (number, form) in columns.items()
            ]
            lines.append([*key, *cells])
        return _table(["net", "watcher", *columns], lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0].replace("|  |", "| |", 1), "|---" * len(head) + "|", *lines[1:]]


def _ratio(cost: Cost) -> str:
    return cost.failure or f"{cost.ratio:.2f} ± {(cost.upper - cost.lower) / 2:.2f}"


def _number(number: float, form: str) -> str:
    return "-" if math.isnan(number) else format(number, form)
