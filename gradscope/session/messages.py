"""What one process tells another: its rows, as numbers behind JSON that says what they are.

No pickle: whatever connects to a port of this machine is given no objects to make.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np

from gradscope.capture.catalogue import ShortcutInfo
from gradscope.capture.rows import Key, Layout, OfLayer, OfParameter, OfShortcut, OfStep
from gradscope.session.derived import HostSegment
from gradscope.session.tape import HostRow


class Message(NamedTuple):
    """Rows of one process, whether it has no more, and shortcuts that it has met since the last."""

    rows: list[HostRow]
    closing: bool
    shortcuts: list[ShortcutInfo]

    def packed(self) -> bytes:
        """Return the message as bytes."""
        layouts: dict[Layout, int] = {}
        values = [v for row in self.rows for _, v in row.segments]
        rows = [
            {
                **{name: getattr(row, name) for name in ("step", "time", "skipped", "wide")},
                "scalars": row.scalars,
                "segments": [
                    layouts.setdefault(layout, len(layouts)) for layout, _ in row.segments
                ],
            }
            for row in self.rows
        ]
        written = [[[[_KINDS.index(type(k)), *k] for k in keys] for keys in x] for x in layouts]
        shortcuts = [astuple(info) for info in self.shortcuts]
        head = {
            "closing": self.closing,
            "shortcuts": shortcuts,
            "rows": rows,
            "layouts": written,
        }
        numbers = np.concatenate([np.empty(0), *values]).astype(np.float64)
        return json.dumps(head).encode() + b"\n" + numbers.tobytes()

    @classmethod
    def unpacked(cls, data: bytes) -> Message:
        """Return the message of `packed` bytes."""
        text, _, numbers = data.partition(b"\n")
        head = json.loads(text)
        values = np.frombuffer(numbers, np.float64)
        layouts = [tuple(tuple(map(_key, keys)) for keys in x) for x in head["layouts"]]
        rows = []
        for row in head["rows"]:
            segments: list[HostSegment] = []
            for layout in (layouts[number] for number in row.pop("segments")):
                segments.append((layout, values[: len(layout)]))
                values = values[len(layout) :]
            rows.append(HostRow(**row, segments=segments))
        return cls(rows, head["closing"], [ShortcutInfo(*info) for info in head["shortcuts"]])

    def renumbered(self, numbers: Sequence[int]) -> list[HostRow]:
        """Return the rows with the number of each shortcut taken from `numbers`."""
        if list(numbers) == list(range(len(numbers))):
            return self.rows
        known: dict[int, Layout] = {}  # layouts repeat, as one object

        def renumber(layout: Layout) -> Layout:
            if id(layout) not in known:
                known[id(layout)] = tuple(
                    tuple(
                        k._replace(shortcut=numbers[k.shortcut]) if isinstance(k, OfShortcut) else k
                        for k in keys
                    )
                    for keys in layout
                )
            return known[id(layout)]

        return [
            row._replace(segments=[(renumber(x), values) for x, values in row.segments])
            for row in self.rows
        ]


_KINDS: list[type[Key]] = [OfLayer, OfParameter, OfShortcut, OfStep]


def _key(written: Sequence[Any]) -> Key:
    kind, *fields = written
    key: Key = _KINDS[kind](*(tuple(f) if isinstance(f, list) else f for f in fields))
    return key
