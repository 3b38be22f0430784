"""What the command line prints: tables, JSON, and text that no terminal takes for commands."""

from __future__ import annotations

import math
from typing import Any

from gradscope.wording import setting


def plain(text: str) -> str:
    """Return `text` on one line, without what a terminal would take for a command."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def finite(value: Any) -> Any:
    """Return `value` with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_table(rows: list[dict[str, Any]]) -> str:
    """Return rows as columns of text under their names; paths are left out."""
    columns = [name for name in rows[0] if name != "path"]
    cells = [columns] + [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return setting(value, 4) if isinstance(value, float) else plain(str(value))
