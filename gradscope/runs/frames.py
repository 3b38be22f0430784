"""Frames of a run with exactly the contract's columns and dtypes, from arrays and `run.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradscope import schema
from gradscope.arithmetic import ratio, relative
from gradscope.errors import GradscopeError


class Listed:
    """What `run.json` lists of one kind; its frame is made when it is asked for.

    Parameters
    ----------
    file : path of the run.json
    rows : what it lists
    table : its columns

    Raises
    ------
    GradscopeError
        If no frame can be made of it.
    """

    def __init__(self, file: Path, rows: Any, table: schema.Table) -> None:
        self._given = file, rows, table
        if not _is_well_formed(rows, table):  # most are, and a frame takes a millisecond
            _ = self.frame

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row each."""
        return listed(*self._given)


def _is_well_formed(rows: Any, table: schema.Table) -> bool:
    """Whether a glance tells that `listed` takes `rows`."""
    kinds = [(c.name, _KINDS.get(c.dtype)) for c in table if c.name != schema.TRAINING]
    numbered = table in (schema.LAYERS, schema.SHORTCUTS)
    for place, row in enumerate(rows):
        if type(row) is not dict or any(type(row.get(name)) is not kind for name, kind in kinds):
            return False
        if type(row.get(schema.TRAINING, "")) is not str or not 0 <= row.get("position", 0) <= 1:
            return False
        if any(abs(row[name]) >= 2**31 for name, kind in kinds if kind is int):
            return False
        if numbered and row[table[0].name] != place:
            return False
    return True


_KINDS = {"str": str, "int32": int, "int64": int, "float64": float}


def listed(file: Path, rows: Any, table: schema.Table) -> pd.DataFrame:
    """Return the layers, shortcuts, ... that `run.json` lists, with the columns of `table`."""
    try:
        if table is schema.LAYERS:
            rows = [{schema.TRAINING: "", **row} for row in rows]
        columns = {
            column.name: pd.Series(
                [
                    clean(row[column.name]) if column.dtype == "str" else row[column.name]
                    for row in rows
                ],
                dtype=column.dtype,
            )
            for column in table
        }
        frame = pd.DataFrame(columns)
        if table in (schema.LAYERS, schema.SHORTCUTS) and frame.iloc[:, 0].tolist() != list(
            range(len(frame))
        ):
            raise ValueError(f"`{table[0].name}` does not count from 0")
        if "position" in frame and not frame["position"].dropna().between(0, 1).all():
            raise ValueError("`position` is not between 0 and 1")
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise GradscopeError(
            f"{file}: broken, its list of {table[0].name}s cannot be read"
            f" ({type(error).__name__}: {error})"
        ) from error
    return frame


def clean(text: str) -> str:
    """Return `text` with what UTF-8 cannot hold (lone surrogates) replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def cleaned(value: Any) -> Any:
    """Return what a JSON file holds with `clean` text in it."""
    if isinstance(value, dict):
        return {clean(key): cleaned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [cleaned(entry) for entry in value]
    return clean(value) if isinstance(value, str) else value


@cache
def no_steps() -> pd.DataFrame:
    """Return the steps of a run that has none; not to be changed."""
    return pd.DataFrame({c.name: pd.Series([], dtype=c.dtype) for c in schema.STEPS})


def steps(pieces: Sequence[Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Return rows of the table of steps as a frame; a scalar that some lack is NaN there."""
    dtypes = {column.name: column.dtype for column in schema.STEPS}
    names = [*dtypes, *(name for rows in pieces for name in rows if name not in dtypes)]
    columns = {}
    for name in dict.fromkeys(names):
        values = [rows.get(name, np.full(rows["step"].size, np.nan)) for rows in pieces]
        joined = np.concatenate(values)
        columns[name] = joined.astype(dtypes.get(name, joined.dtype), copy=False)
    return pd.DataFrame(columns)


def readings(
    key: str, steps: np.ndarray, width: int, metrics: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Return steps x width arrays as a frame of one row a step and layer (or shortcut)."""
    return pd.DataFrame(
        {
            "step": np.repeat(steps, width),
            key: np.tile(np.arange(width, dtype=np.int32), steps.size),
            **{name: values.ravel() for name, values in metrics.items()},
        }
    )


def joined(layers: pd.DataFrame, steps: np.ndarray, metrics: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return the columns of `schema.FRAME` for `steps`."""
    metrics = {
        **metrics,
        "update_ratio": ratio(metrics["update_norm"], metrics["weight_norm"]),
        "relative_signal": relative(metrics["signal_norm"]),
    }
    frame = readings("layer", steps, len(layers), metrics)
    for place, column in enumerate(schema.names(schema.LAYERS)[1:-1], start=2):
        repeated = layers[column].take(frame["layer"].to_numpy())
        frame.insert(place, column, repeated.reset_index(drop=True))
    return frame
