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


DOCS = Path(__file__).parents[2] / "docs"


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


def as_printed(words: str, folder: Path, page: str = "data.md", **names: object) -> object:
    """Run the block of a page that holds `words` in a folder; return its last expression."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (block,) = (block for block in blocks if words in block)
    *statements, last = ast.parse(block).body
    assert isinstance(last, ast.Expr)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(ast.Module(statements, []), page, "exec"), names)
        return eval(compile(ast.Expression(last.value), page, "eval"), names)


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


def test_dask_reads_all_runs_at_once(tmp_path):
    dask = pytest.importorskip("dask", reason="dask is not installed")
    pytest.importorskip("dask.dataframe", reason="dask has no dataframes here")
    synthetic.write_pair(tmp_path / "runs", n_layers=5, n_steps=20)
    read = as_printed("dask.dataframe", tmp_path, "on-a-cluster.md", dask=dask)
    steps = pd.concat(run.steps for run in gradscope.load_all(tmp_path / "runs"))
    expected = steps.groupby("step")[["train_loss", "grad_norm"]].mean()
    pd.testing.assert_frame_equal(read[expected.columns].sort_index(), expected, check_dtype=False)


def test_spark_reads_all_runs_at_once(tmp_path, monkeypatch):
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    functions = pytest.importorskip("pyspark.sql.functions", reason="pyspark is not installed")
    synthetic.write_pair(tmp_path / "runs", n_layers=5, n_steps=20)
    monkeypatch.chdir(tmp_path)  # where its machine will look
    spark = sql.SparkSession.builder.master("local[1]").getOrCreate()
    try:
        read = as_printed("spark.read", tmp_path, "on-a-cluster.md", spark=spark, F=functions)
    finally:
        spark.stop()
    runs = gradscope.load_all(tmp_path / "runs")
    assert {name: loss for name, loss, _ in read.to_numpy()} == {
        run.name: run.steps.train_loss.min() for run in runs
    }
