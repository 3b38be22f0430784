"""Part files read by DuckDB, Polars and pandas as they stand."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gradscope
import synthetic
from gradscope.storage import parts

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")


PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def merging(tmp_path):
    """A run as it is for a moment: a merged part lies beside the parts it was made from."""
    runs = tmp_path / "runs"
    synthetic.write_run(runs / "plain", n_layers=7, n_steps=40)
    path = synthetic.write_run(runs / "resnet56", n_layers=7, n_steps=40, residual=True)
    for table in ("layers", "shortcuts", "steps"):
        (part,) = parts.list_parts(path / table)
        beside = part.path.name.replace("000039-0-", "000039-1-")
        (part.path.parent / beside).write_bytes(part.path.read_bytes())
    return path


def as_printed(words: str, folder: Path, **names: object) -> object:
    """Run the block of the page that holds `words` in a folder; return its last expression."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if words in block)
    *statements, last = ast.parse(block).body
    assert isinstance(last, ast.Expr)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(ast.Module(statements, []), PAGE.name, "exec"), names)
        return eval(compile(ast.Expression(last.value), PAGE.name, "eval"), names)


def test_duckdb_reads_each_reading_once_with_its_name(merging):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    read = as_printed("SELECT DISTINCT ON", merging.parents[1], duckdb=duckdb)
    expected = gradscope.load(merging).frame()[["step", "name", "grad_norm", "signal_norm"]]
    pd.testing.assert_frame_equal(read, expected, check_dtype=False)


def test_duckdb_reads_all_runs_at_once(merging):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    read = as_printed("GROUP BY run", merging.parents[1], duckdb=duckdb)
    runs = gradscope.load_all(merging.parent)
    assert dict(read.to_numpy()) == {run.name: run.steps.grad_norm.max() for run in runs}


def test_polars_reads_each_reading_once_with_its_name(merging):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    read = as_printed("pl.scan_parquet", merging.parents[1], pl=polars, json=json, Path=Path)
    expected = gradscope.load(merging).frame()
    assert read["name"].to_list() == expected.name.tolist()
    for column in ("step", "grad_norm", "signal_norm"):
        np.testing.assert_array_equal(read[column].to_numpy(), expected[column])


def test_pandas_reads_a_table_as_it_stands(pair: Path):
    read = pd.read_parquet(pair / "plain-50" / "layers")
    pd.testing.assert_frame_equal(
        read, gradscope.load(pair / "plain-50").layer_readings, check_dtype=False
    )
