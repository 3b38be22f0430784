"""The CSV of a run, and names that somebody means harm with."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import synthetic
from gradscope import schema
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from gradscope.storage.writer import RunWriter
from synthetic import span


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return synthetic.write_run(tmp_path / "runs" / "net", n_layers=11, n_steps=40, residual=True)


def test_csv_holds_the_frame_with_all_digits(path: Path, tmp_path: Path) -> None:
    run = load(path)
    run.to_csv(tmp_path / "report.csv")
    read = pd.read_csv(tmp_path / "report.csv", dtype=str)
    read = read.astype(run.frame().dtypes)
    pd.testing.assert_frame_equal(read, run.frame(), check_exact=True)


def test_csv_of_a_run_longer_than_a_piece_is_whole(tmp_path: Path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=300, n_steps=1000, flush=300)
    chunks = list(load(path).csv_chunks())
    assert len(chunks) > 2
    read = pd.read_csv(io.BytesIO(b"".join(chunks)), usecols=["step", "layer", "signal_norm"])
    frame = load(path).frame()
    pd.testing.assert_frame_equal(
        read, frame[list(read.columns)].astype(read.dtypes), check_exact=False, rtol=1e-7
    )


def test_csv_keeps_inf_and_zero_and_leaves_nan_empty(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=4)
    rows = synthetic.layer_rows(4, span(0, 0), decades=1.0)
    rows["signal_norm"] = np.float32([np.inf, -np.inf, 0.0, np.nan])
    writer.add_rows("layers", rows)
    writer.add_rows("steps", synthetic.step_rows(span(0, 0), loss_floor=0.0))
    writer.close()
    load(tmp_path / "run").to_csv(tmp_path / "r.csv")
    cells = pd.read_csv(tmp_path / "r.csv", dtype=str, keep_default_na=False)["signal_norm"]
    assert cells.tolist() == ["inf", "-inf", "0", ""]


def test_csv_of_a_run_without_steps_is_its_header(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", {}).close()
    with pytest.warns(GradscopeWarning, match="no step is recorded"):
        load(tmp_path / "run").to_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text() == ",".join(schema.names(schema.FRAME)) + "\n"


def test_csv_is_not_overwritten_unless_told_to(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.csv"
    target.write_text("mine")
    with pytest.raises(GradscopeError, match=r"report\.csv: exists already.*overwrite=True"):
        load(path).to_csv(target)
    assert target.read_text() == "mine"
    load(path).to_csv(target, overwrite=True)
    assert len(pd.read_csv(target)) == 440
    with pytest.raises(GradscopeError, match="not a file"):
        load(path).to_csv(tmp_path, overwrite=True)


def test_csv_that_cannot_be_written_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="cannot be written, no such file or directory"):
        load(path).to_csv(tmp_path / "missing" / "r.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


HOSTILE = [
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    'a"b,c\nd',
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "x" * 10_000,
    "\x1b[31m",
    "日本語 😀 é",
    "\ud800 lone",
]


def hostile_run(path: Path) -> Run:
    table = synthetic.layer_table(len(HOSTILE))
    for row, name in zip(table, HOSTILE, strict=True):
        row["name"] = row["kind"] = name
    writer = RunWriter(path, {"model": HOSTILE[7]})
    writer.update(layers=table)
    writer.add_rows("layers", synthetic.layer_rows(len(HOSTILE), span(0, 2), decades=1.0))
    writer.add_rows("steps", synthetic.step_rows(span(0, 2), loss_floor=0.0))
    writer.close()
    return load(path)


def test_names_come_back_whatever_they_hold(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run")
    assert run.layers["name"].tolist() == [*HOSTILE[:-1], "? lone"]  # no UTF-8 for a surrogate
    assert run.frame()["kind"].tolist() == [*HOSTILE[:-1], "? lone"] * 3


def test_csv_defuses_formulas_in_names(tmp_path: Path) -> None:
    hostile_run(tmp_path / "run").to_csv(tmp_path / "r.csv")
    with open(tmp_path / "r.csv", encoding="utf-8", newline="") as file:
        read = pd.read_csv(file, lineterminator="\n")
    names = read["name"][: len(HOSTILE)].tolist()
    assert names == [f"'{name}" for name in HOSTILE[:6]] + [*HOSTILE[6:-1], "? lone"]


def test_the_html_of_a_run_escapes_its_names(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run <b>")
    page = run._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<b>" not in page and "run &lt;b&gt;" in page
