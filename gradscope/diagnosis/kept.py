"""The summary of a run, kept beside it: a folder of thousands is listed without being read.

`summary.json` says which state of the run it is about, and by which rules. After a change of either
it is worked out anew, as it is for a run that is being written. Who closes a run among many keeps
one, else who first asks for it, where that may be written.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np

from gradscope import schema
from gradscope._version import __version__
from gradscope.diagnosis.findings import Diagnosis, Finding, Place, Severity
from gradscope.diagnosis.summary import Judged, Summary, Tone, summarise
from gradscope.errors import GradscopeWarning
from gradscope.runs import frames
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from gradscope.runs.tries import tried_file
from gradscope.storage import files
from gradscope.storage.lock import is_live
from gradscope.storage.parts import new_file
from gradscope.storage.run_json import META_NAME

FILE = "summary.json"
LONGEST = 2**20
"""Readings of a metric; a longer run is judged by who looks at it, not by who closes it."""


def summary_of(path: Path) -> Summary:
    """Return the summary of the run in `path`: the one that was kept, or a new one, kept now.

    What reading the run warned about is warned of again.

    Raises
    ------
    GradscopeError
        If the run cannot be read.
    """
    mark = _mark(path)
    known = _read(path, mark)
    if known is None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", GradscopeWarning)
            summary = summarise(load(path))
        known = summary, [str(warning.message) for warning in caught]
        _write(path, mark, *known)
    summary, told = known
    for message in told:
        warnings.warn(message, GradscopeWarning, stacklevel=2)
    return summary


def known_summary(run: Run) -> Summary:
    """Return the summary of `run` as it was loaded or last refreshed; no new one is kept."""
    known = _read(run.path, _mark(run.path))
    if known is not None and known[0].steps == len(run.steps):
        return known[0]
    return summarise(run)


def keep_closed(path: Path) -> None:
    """Keep the summary of a run that was just closed, if it is not too long."""
    mark = _mark(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GradscopeWarning)
        run = load(path)
        if len(run.steps) * len(run.layers) > LONGEST:
            return
        summary = summarise(run)
    _write(path, mark, summary, [str(warning.message) for warning in caught])


def _read(path: Path, mark: str) -> tuple[Summary, list[str]] | None:
    """Return the summary that is kept with the run, and its warnings; None if of other data."""
    file = path / FILE
    with suppress(
        OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError
    ):
        if not os.path.isfile(file):  # to open a pipe would wait for ever
            return None
        held = frames.cleaned(json.loads(file.read_bytes()))
        if held.pop("of") == mark:
            told = [str(message) for message in held.pop("told")]
            return _summary(held, frames.clean(path.resolve().name)), told
    return None


def _write(path: Path, mark: str, summary: Summary, told: list[str]) -> None:
    """Keep what was said of a run, unless that is being written."""
    if is_live(path):
        return
    held = {"of": mark, "told": told, **asdict(summary)}
    temporary = path / f".{FILE}.tmp"
    with suppress(OSError):
        text = json.dumps(_valid(held), allow_nan=False)
        with new_file(temporary) as file:
            file.write(text.encode("ascii"))
        files.replace(temporary, path / FILE)


def _mark(path: Path) -> str:
    """Return what differs once there is something else to say of the run in `path`."""
    digest = hashlib.sha256(_rules())
    for file in (path / META_NAME, tried_file(path)):
        with suppress(OSError):
            digest.update(file.read_bytes())
    for table in schema.TABLES:
        with suppress(OSError):  # the name of a part holds a checksum
            digest.update("/".join(sorted(os.listdir(path / table))).encode())
    return digest.hexdigest()


@functools.cache
def _rules() -> bytes:
    """Return what differs once other things may be said of the same readings."""
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def _summary(held: Mapping[str, Any], name: str) -> Summary:
    """Return what JSON held; whatever that was, each field is of its type, or an error raised."""
    said = held["diagnosis"]
    diagnosis = Diagnosis(
        run=name,
        verdict=str(said["verdict"]),
        summary=str(said["summary"]),
        start=str(said["start"]),
        end=str(said["end"]),
        decades=_number(said["decades"]),
        early_signal=_number(said["early_signal"]),
        late_signal=_number(said["late_signal"]),
        findings=tuple(map(_finding, said["findings"])),
        notes=_texts(said["notes"]),
        beside=_texts(said["beside"]),
        settings=_texts(said["settings"]),
    )
    flow = _judged(held["flow"])
    spark = held["spark"]
    if flow is None or not isinstance(spark, list):
        raise ValueError("no word on the flow, or no picture of the loss")
    return Summary(
        diagnosis,
        flow,
        verdict=_judged(held["verdict"]),
        loss=_judged(held["loss"]),
        speed=_judged(held["speed"]),
        last_loss=_number(held["last_loss"]),
        logged_loss=_number(held["logged_loss"]),
        shortcuts=str(held["shortcuts"]),
        spark=np.array(list(map(_number, spark))),
        steps=int(held["steps"]),
    )


def _finding(held: Mapping[str, Any]) -> Finding:
    first, last = held["steps"]
    place = held["place"]
    return Finding(
        verdict=str(held["verdict"]),
        severity=_one_of(get_args(Severity), held["severity"]),
        sentence=str(held["sentence"]),
        layers=_texts(held["layers"]),
        steps=(int(first), int(last)),
        evidence={str(key): _number(value) for key, value in held["evidence"].items()},
        remedies=_texts(held["remedies"]),
        place=None
        if place is None
        else Place(
            int(place["step"]),
            None if place["layer"] is None else int(place["layer"]),
            str(place["column"]),
            _one_of(("forward", "backward", "update", "loss"), place["phase"]),
        ),
    )


def _judged(held: Mapping[str, Any] | None) -> Judged | None:
    if held is None:
        return None
    layer = None if held["layer"] is None else int(held["layer"])
    tone = _one_of(get_args(Tone), held["tone"])
    return Judged(str(held["words"]), tone, layer, _number(held["size"]))


def _valid(value: Any) -> Any:
    """Return `value` in what JSON has: null for NaN, and text for what is infinite."""
    if isinstance(value, dict):
        return {key: _valid(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_valid(entry) for entry in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(float(value))


def _number(held: Any) -> float:
    return math.nan if held is None else float(held)


def _texts(held: Iterable[object]) -> tuple[str, ...]:
    return tuple(map(str, held))


def _one_of(words: Sequence[str], word: object) -> Any:
    if word not in words:
        raise ValueError(f"unknown word {word!r}")
    return word
