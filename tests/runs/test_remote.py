"""Runs read by URL."""

from __future__ import annotations

import gc

import numpy as np
import pandas as pd
import pytest

import gradscope
from gradscope.storage import parts
from gradscope.storage.writer import RunWriter

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
