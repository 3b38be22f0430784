"""What was tried, as a table: best first, with what each change did and what it costs."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gradscope.runs.tries import HEADS, Tried, cells, signed
from gradscope.wording import number


@dataclass(frozen=True)
class WhatIf:
    """Changes that were tried on copies of a net, the best first; print it, or take it as a frame.

    Attributes
    ----------
    run : Path
        The run beside which the tries lie, each a run of its own in `<run>/what-if/<change>`.
    unchanged : Tried
        The copy that was left as it was.
    tried : tuple of Tried
        The changes: first those that help, in each part the better first.
    notes : tuple of str
        What else is to be known: what could not be tried, and why.
    """

    run: Path
    unchanged: Tried
    tried: tuple[Tried, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Tried | None:
        """The first change that helps; None if none does."""
        return next((row for row in self.tried if row.helps), None)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a change, that without any last.

        Returns
        -------
        DataFrame
            The fields of `gradscope.runs.tries.Tried`; `against` with commas between.
        """
        rows = pd.DataFrame([vars(row) for row in (*self.tried, self.unchanged)])
        rows["against"] = rows["against"].map(", ".join)
        return rows

    def __str__(self) -> str:
        """Return the table as text for a terminal."""
        table = [HEADS, *(cells(row, self.unchanged) for row in (*self.tried, self.unchanged))]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([self.sentence, "", *lines, *(f"note: {note}" for note in self.notes)])

    @property
    def sentence(self) -> str:
        """The table in one sentence."""
        base, best = self.unchanged, self.best
        found = base.verdict.partition(":")[0]
        if best is None:
            count = f"none of {len(self.tried)} changes helps" if self.tried else "nothing to try"
            return (
                f"Nothing helps: {count}; unchanged, the net is {found} and its loss goes from"
                f" {number(base.first_loss, 3)} to {number(base.loss, 3)} in {base.steps} steps."
            )
        return (
            f"Best: {best.change}. D {signed(base.decades)} -> {signed(best.decades)}, {found} ->"
            f" {best.verdict.partition(':')[0]}; the loss after {base.steps} steps"
            f" {number(base.loss, 3)} -> {number(best.loss, 3)}."
        )

    def _repr_html_(self) -> str:
        """Return the table for a notebook; names are text there, never markup."""
        rows = [cells(row, self.unchanged) for row in (*self.tried, self.unchanged)]
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        )
        head = "".join(f"<th>{cell}</th>" for cell in HEADS)
        notes = "".join(f"<p><i>note: {html.escape(note)}</i></p>" for note in self.notes)
        return f"<p>{html.escape(self.sentence)}</p><table><tr>{head}</tr>{body}</table>{notes}"
