"""Runs read by URL, and part files read by DuckDB and Polars as they stand."""

from __future__ import annotations

import ast
import gc
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gradscope
import synthetic
from gradscope.storage import parts
from gradscope.storage.writer import RunWriter

README = Path(__file__).parents[2] / "README.md"
fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")


@pytest.fixture
def memory():
    """The root of an empty file system in memory, as an object store has one."""
    store = fsspec.filesystem("memory")
    yield store
    for path in store.ls("/", detail=False):
        store.rm(path, recursive=True)


def same_run(one, other):
    for frame in ("layers", "shortcuts", "steps", "layer_readings", "shortcut_readings"):
        pd.testing.assert_frame_equal(getattr(one, frame), getattr(other, frame))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_run_is_loaded_by_url(kind, pair, memory):
    url = f"file://{pair}/plain-50/"
    if kind == "memory":
        memory.put(str(pair / "plain-50"), "/bucket/plain-50", recursive=True)
        url = "memory://bucket/plain-50"
    run, local = gradscope.load(url), gradscope.load(pair / "plain-50")
    assert (run.name, run.status) == ("plain-50", "closed")
    same_run(run, local)
    assert not run.refresh()


def test_all_runs_below_an_url_are_loaded(pair, memory):
    memory.put(str(pair), "/bucket/runs", recursive=True)
    names = [run.name for run in gradscope.load_all("memory://bucket/runs")]
    assert names == ["plain-50", "residual-50"]
    assert [run.name for run in gradscope.load_all(pair)] == names


def test_refresh_copies_what_was_written_and_forgets_what_was_merged(tmp_path, memory):
    writer = RunWriter(tmp_path / "run", {"model": "Net"})

    def write(steps):
        for step in steps:
            writer.add_rows("steps", step_row(step))
            writer.flush()
        memory.put(f"{tmp_path}/run/", "/run/", recursive=True)
        for path in memory.find("/run"):  # `put` removes nothing
            if not (tmp_path / path.lstrip("/")).exists():
                memory.rm(path)

    write(range(parts.PARTS_PER_MERGE - 1))
    run = gradscope.load("memory://run")
    assert len(run.steps) == parts.PARTS_PER_MERGE - 1
    assert run.status == "running"
    write([parts.PARTS_PER_MERGE - 1])
    assert len(memory.ls("/run/steps")) == 1
    assert run.refresh() and not run.refresh()
    assert run.steps.step.tolist() == list(range(parts.PARTS_PER_MERGE))
    assert len(list((run.path / "steps").iterdir())) == 1
    writer.close()
    write([])
    assert run.refresh() and run.status == "closed"


def step_row(step):
    columns = {"time": 0.1 * step, "grad_norm": 1.0, "clipped_grad_norm": 1.0, "loss_scale": 1.0}
    return {
        "step": np.array([step]),
        "skipped": np.array([False]),
        **{name: np.array([value]) for name, value in columns.items()},
    }


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nowhere/run", "memory://nowhere/run: no run, or a part of it is missing"),
        ("ftq://host/run", "ftq://host/run: cannot be opened, ValueError: Protocol not known"),
    ],
)
def test_an_url_without_a_run_is_an_error_of_one_line(url, said):
    with pytest.raises(gradscope.GradscopeError) as refused:
        gradscope.load(url)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_the_copy_goes_with_the_run(pair):
    run = gradscope.load(f"file://{pair}/plain-50")
    path = run.path
    assert path.is_dir()
    del run
    gc.collect()
    assert not path.parent.exists()


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
    """Run the block of README.md that holds `words` in a folder; return its last expression."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if words in block)
    *statements, last = ast.parse(block).body
    assert isinstance(last, ast.Expr)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(ast.Module(statements, []), "README.md", "exec"), names)
        return eval(compile(ast.Expression(last.value), "README.md", "eval"), names)


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
