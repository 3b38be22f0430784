"""Finding runs, and what is wrong with a path or a `run.json`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import synthetic
from gradscope import schema
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.loading import discover, load, load_all
from gradscope.storage.writer import RunWriter


def edit_meta(path: Path, **fields: object) -> None:
    """Change run.json as a user with an editor would."""
    file = path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return synthetic.write_run(tmp_path / "runs" / "net", n_layers=11, n_steps=40, residual=True)


def test_discover_lists_runs_two_folders_deep(path: Path, tmp_path: Path) -> None:
    other = synthetic.write_run(tmp_path / "runs" / "sweep" / "a", n_steps=3)
    synthetic.write_run(tmp_path / "runs" / "one" / "two" / "three", n_steps=3)
    synthetic.write_run(tmp_path / "runs" / ".trash" / "gone", n_steps=3)
    assert discover(tmp_path / "runs") == [path, other]
    assert discover(path) == [path]
    assert discover(str(path / "layers")) == []
    with pytest.raises(GradscopeError, match="nowhere: there is no such folder"):
        discover(tmp_path / "nowhere")


def test_discover_reads_no_parts(path: Path) -> None:
    for part in path.rglob("*.parquet"):
        part.write_bytes(b"")
    assert discover(path.parent) == [path]


def test_load_all_opens_every_run_and_tells_of_broken_ones(path: Path, tmp_path: Path) -> None:
    broken = synthetic.write_run(tmp_path / "runs" / "broken", n_steps=3)
    (broken / "run.json").write_text("{")
    synthetic.write_run(tmp_path / "runs" / "other", n_steps=3)
    with pytest.warns(GradscopeWarning, match=r"broken/run\.json: broken, not JSON"):
        runs = load_all(tmp_path / "runs")
    assert [run.name for run in runs] == ["net", "other"]


def test_load_guesses_which_folder_was_meant(path: Path, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match=r"not a run, .* did you mean \S+/runs/net\?"):
        load(path.parent)
    for name in "abc":
        shutil.copytree(path, path.with_name(name))
    with pytest.raises(GradscopeError, match=r"did you mean one of \S+/a, .* or 1 more\?"):
        load(path.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GradscopeError, match=r"not a run, it holds no run\.json$"):
        load(tmp_path / "empty")


def test_load_refuses_what_is_no_folder(path: Path, tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="there is no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(GradscopeError, match=r"run\.json: not a folder"):
        load(path / "run.json")
    with pytest.raises(GradscopeError, match="there is no such folder"):
        load("x" * 5000)


def test_load_refuses_a_newer_format(path: Path) -> None:
    edit_meta(path, format=schema.FORMAT_VERSION + 1)
    with pytest.raises(GradscopeError, match=r"run\.json: format 2 is newer .* pip install -U"):
        load(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": "1"}', '{"format": true}', "[" * 100_000, "\ufffe"],
)
def test_load_refuses_a_broken_run_json(path: Path, text: str) -> None:
    (path / "run.json").write_text(text)
    with pytest.raises(GradscopeError, match=r"run\.json: "):
        load(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": 3},
        {"layers": [1, 2]},
        {"layers": [{"layer": 0}]},
        {"layers": [{**synthetic.layer_table(1)[0], "layer": 1}]},
        {"layers": [{**synthetic.layer_table(1)[0], "name": 7}]},
        {"layers": [{**synthetic.layer_table(1)[0], "parameters": 10**30}]},
        {"layers": [{**synthetic.layer_table(1)[0], "depth": 1.5}]},
        {"shortcuts": [{**synthetic.shortcut_table(1)[0], "position": "first"}]},
        {"notes": "x"},
        {"lost": {}},
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not match its checksum")
def test_load_refuses_lists_that_are_broken(path: Path, fields: dict[str, object]) -> None:
    edit_meta(path, **fields)
    with pytest.raises(GradscopeError, match=r"run\.json: broken, "):
        load(path)


def test_an_edited_run_json_is_read_with_a_warning(path: Path) -> None:
    edit_meta(path, model="Better")
    with pytest.warns(GradscopeWarning, match=r"run\.json: does not match its checksum"):
        assert load(path).meta["model"] == "Better"


def test_load_tells_of_lost_steps(path: Path) -> None:
    writer = RunWriter(path, {}, resume=True)
    writer.update(lost=[{"first": 1200, "last": 1350, "why": "no space left on device"}])
    writer.close()
    with pytest.warns(GradscopeWarning, match="lost steps 1200-1350: no space left on device"):
        load(path)
