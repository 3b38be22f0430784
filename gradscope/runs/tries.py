"""What was tried beside a run: each remedy's numbers, in `<run>/what-if/tried.json`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradscope.errors import GradscopeError
from gradscope.wording import number, setting

FOLDER = "what-if"
"""Folder within that of a run: a run of each change that was tried, and the table of all."""

UNCHANGED = "unchanged"

_FILE = "tried.json"


def tried_file(run: Path) -> Path:
    """Return the file that holds what was tried beside the run in `run`."""
    return run / FOLDER / _FILE


@dataclass(frozen=True)
class Tried:
    """One change that was tried on copies of a net, or none: the copy that was left as it was.

    Attributes
    ----------
    change : str
        In words; `unchanged` for none.
    folder : str
        Name of its run within `<run>/what-if`; empty for the unchanged copy where that is the run.
    against : tuple of str
        Verdicts that it is meant for.
    helps : bool
        Whether the loss fell further than the unchanged copy's by more than the spread of both,
        and either what was found is cured or the loss fell at least half as far again.
    cures : bool
        Whether what was found of the unchanged copy is not found here.
    verdict : str
        Of its run.
    decades : float
        log10(early / late gradient), the median over its run.
    early_speed : float, 1/step
        Update speed, ||dW|| / ||W||, of the first third of the weight layers, their median.
    first_loss, loss : float
        At the first step, and after the last one; means over the seeds.
    slope : float, loss/step
        Of the training loss over the second half of the steps, mean over the seeds.
    spread : float
        Largest less smallest `loss` over the seeds.
    cost : float
        Time of a step over the unchanged copy's, a rough figure where others use the machine; NaN
        where it was trained once, and watched.
    parameters : int
        Trainable ones.
    steps, seeds : int
    """

    change: str
    folder: str
    against: tuple[str, ...]
    helps: bool
    cures: bool
    verdict: str
    decades: float
    early_speed: float
    first_loss: float
    loss: float
    slope: float
    spread: float
    cost: float
    parameters: int
    steps: int
    seeds: int


def write_tried(run: Path, tried: Sequence[Tried]) -> None:
    """Write what was tried beside the run in `run`: the unchanged copy first, then the best first.

    Raises
    ------
    GradscopeError
        If it cannot be written.
    """
    file = tried_file(run)
    temporary = file.with_name(f".{_FILE}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps([asdict(row) for row in tried], indent=1))
        os.replace(temporary, file)
    except OSError as error:
        raise GradscopeError(f"{file}: cannot be written, {error.strerror or error}") from error


def read_tried(run: Path) -> list[Tried]:
    """Return what was tried beside the run in `run`, as it was written; nothing if that is broken.

    Parameters
    ----------
    run : folder of the run
    """
    with suppress(OSError, ValueError, TypeError, RecursionError, AttributeError):
        return [_row(row) for row in json.loads(tried_file(run).read_bytes())]
    return []


def remedy(tried: Tried, unchanged: Tried) -> str:
    """Return a change that was tried and its numbers in words."""
    told = "" if tried.helps else " (does not help)"
    return (
        f"tried{told}: {tried.change}: D {signed(unchanged.decades)} -> {signed(tried.decades)},"
        f" loss {setting(unchanged.loss)} -> {setting(tried.loss)} in {tried.steps} steps"
    )


HEADS = ("change", "D", "verdict", "early speed", "loss", "slope", "step time", "")
"""Of a table's columns, as `cells` fills them."""


def cells(row: Tried, unchanged: Tried) -> tuple[str, ...]:
    """Return a row of the table as text; the loss with half its spread over the seeds."""
    told = ("", "") if row is unchanged else (_times(row.cost), _helps(row))
    decades = signed(row.decades)
    if row is not unchanged:
        decades = f"{signed(unchanged.decades)} -> {decades}"
    # of three digits of the loss the last is told
    told_to = math.isfinite(row.loss) and row.spread / 2 >= 5e-4 * abs(row.loss)
    spread = f" ± {setting(row.spread / 2, 1)}" if row.seeds > 1 and told_to else ""
    return (
        row.change,
        decades,
        row.verdict.partition(":")[0],
        number(row.early_speed, 1),
        f"{setting(row.loss)}{spread}",
        f"{'+' * (row.slope > 0)}{number(row.slope)}",
        *told,
    )


def _times(cost: float) -> str:
    return "" if math.isnan(cost) else f"x {cost:.2f}"


def _helps(row: Tried) -> str:
    return "helps" if row.helps else "does not help"


def signed(decades: float) -> str:
    """Return decades as a table shows them, `-11.9`; `?` where they could not be told."""
    return "?" if math.isnan(decades) else f"{decades:+.1f}"


def _row(row: dict[str, Any]) -> Tried:
    kinds = {"change": str, "folder": str, "verdict": str, "helps": bool, "cures": bool}
    kinds |= {"parameters": int, "steps": int, "seeds": int}
    fields: dict[str, Any] = {
        name: kinds.get(name, float)(row[name])
        for name in Tried.__dataclass_fields__
        if name != "against"
    }
    return Tried(**fields, against=tuple(str(verdict) for verdict in row["against"]))
