"""What one process tells another: its sums, as numbers behind JSON that says what they are.

No pickle: whatever connects to a port of this machine is given no objects to make.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from gradscope.session.partial_rows import Ints, Kind, PartialRow

_FIELDS = ("step", "time", "skipped", "wide", "processes", "scalars")


class Message(NamedTuple):
    """Rows that are complete, and what is new since the last message.

    Attributes
    ----------
    complete : float
        Of steps up to this one nothing more will come; infinity of one that has no more.
    rows : list of PartialRow
    slots : list of (Kind, array)
        What sums are of that no message has had yet, by the sender's numbers.
    told : dict or None
        Its layers and shortcuts, where they have changed.
    """

    complete: float
    rows: list[PartialRow]
    slots: list[tuple[Kind, Ints]]
    told: dict[str, Any] | None

    def packed(self) -> bytes:
        """Return the message as bytes."""
        head = {
            "complete": self.complete,
            "rows": [{name: getattr(row, name) for name in _FIELDS} for row in self.rows],
            "sizes": [row.sums.shape[1] for row in self.rows],
            "slots": [[*kind, numbers.tolist()] for kind, numbers in self.slots],
            "told": self.told,
        }
        sums = [row.sums.tobytes() for row in self.rows]
        return b"".join([json.dumps(head).encode(), b"\n", *sums])

    @classmethod
    def unpacked(cls, data: bytes) -> Message:
        """Return the message of `packed` bytes."""
        text, _, numbers = data.partition(b"\n")
        head = json.loads(text)
        values = np.frombuffer(numbers, np.float64)
        ends = np.cumsum([2 * size for size in head["sizes"]])[:-1]
        sums = np.split(values, ends) if head["sizes"] else []
        rows = [
            PartialRow(**row, sums=some.reshape(2, -1))
            for row, some in zip(head["rows"], sums, strict=True)
        ]
        slots = [(Kind(*kind), np.array(of, np.int64)) for *kind, of in head["slots"]]
        return cls(head["complete"], rows, slots, head["told"])
