"""In which order the runs of a sweep lie beside each other, and which of them are comparable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gradscope.runs.run import Run
from gradscope.wording import setting


class Order(NamedTuple):
    """The places of the runs in their order, and of each the other settings in which they differ.

    `groups` has words such as `depth = 8`, all the same where only `key` differs, or nothing in
    it, where hardly two runs are alike but for `key`.
    """

    key: str
    places: list[int]
    values: list[Any]
    groups: list[str]


def sweep_key(runs: Sequence[Run]) -> str | None:
    """Return the setting with the most values among `runs`, or None.

    A number comes before a word, both before a seed.
    """
    counts = {
        key: ("seed" not in key.lower(), not any(isinstance(v, str) for v in values), len(values))
        for key, values in _values(runs).items()
        if len(values) > 1
    }
    return max(counts, key=lambda key: counts[key], default=None)


def sweep_order(runs: Sequence[Run], key: str | None) -> Order:
    """Return the order of `runs`: by their other settings, then by `key`; by name without one."""
    if key is None:
        names = [run.name for run in runs]
        places = sorted(range(len(runs)), key=lambda i: names[i])
        return Order("run", places, [names[i] for i in places], [])
    others = [other for other, held in _values(runs).items() if other != key and len(held) > 1]
    values = [run.config.get(key, "none") for run in runs]
    rest = [tuple(_sortable(run.config.get(other, "none")) for other in others) for run in runs]
    alike = 2 * len(set(rest)) <= len(runs)
    if not alike:  # as in a random search
        rest = [()] * len(runs)
    places = sorted(range(len(runs)), key=lambda i: (rest[i], _sortable(values[i])))
    words = [
        ", ".join(f"{other} = {said(run.config.get(other, 'none'))}" for other in others)
        for run in runs
    ]
    groups = [words[i] for i in places] if alike else []
    return Order(key, places, [values[i] for i in places], groups)


def said(value: Any) -> str:
    """Return a setting's value in words."""
    return setting(value) if isinstance(value, float) else str(value)


def _values(runs: Sequence[Run]) -> dict[str, set[Any]]:
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return {key: {run.config[key] for run in runs if key in run.config} for key in keys}


def _sortable(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value
