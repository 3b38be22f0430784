"""The summary that is kept beside a run: it says what a look at the run would say."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
import synthetic
from gradscope import cli
from gradscope.diagnosis import kept
from gradscope.diagnosis.summary import summarise
from gradscope.errors import GradscopeError, GradscopeWarning
from gradscope.runs.loading import load
from gradscope.session import scope as session_scope
from gradscope.storage.writer import RunWriter


def as_text(summary) -> str:
    """Return a summary so that two can be compared: NaN is NaN."""
    return json.dumps(asdict(summary), default=lambda values: values.tolist())


def broken_run(path: Path) -> Path:
    """Write a run whose gradient explodes, and is NaN for a while."""
    signal = np.tile(np.geomspace(1e6, 1, 9), (40, 1))
    signal[20:30] = np.nan
    synthetic.write_with(path, 9, 40, signal_norm=signal, grad_norm=signal)
    return path


def was_read_from_disk(path: Path, monkeypatch) -> bool:
    """Whether the summary of a run is had without a look at its readings."""
    with monkeypatch.context() as patched:
        looks = []
        patched.setattr(kept, "summarise", lambda run: looks.append(run) or summarise(run))
        kept.summary_of(path)
    return not looks


@pytest.mark.parametrize("write", [broken_run, synthetic.write_run])
def test_what_was_kept_says_what_a_look_at_the_run_says(tmp_path, monkeypatch, write) -> None:
    path = write(tmp_path / "run")
    fresh = summarise(load(path))
    assert fresh.diagnosis.findings
    assert as_text(kept.summary_of(path)) == as_text(fresh)
    json.loads((path / kept.FILE).read_text(), parse_constant=pytest.fail)  # as others read it
    assert was_read_from_disk(path, monkeypatch)
    assert (
        as_text(kept.summary_of(path)) == as_text(kept.known_summary(load(path))) == as_text(fresh)
    )


def test_a_copy_of_a_run_keeps_its_summary_and_has_its_own_name(tmp_path, monkeypatch) -> None:
    kept.summary_of(synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30))
    copy = tmp_path / "other"
    shutil.copytree(tmp_path / "run", copy)
    os.utime(copy / "run.json", (0, 0))
    assert was_read_from_disk(copy, monkeypatch)
    assert kept.summary_of(copy).diagnosis.run == "other"


def test_a_run_that_went_on_is_judged_anew(tmp_path, monkeypatch) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30)
    before = load(path)
    kept.summary_of(path)
    writer = RunWriter(path, {}, resume=True)
    synthetic.extend(writer, np.arange(30, 60))
    writer.flush()
    assert not was_read_from_disk(path, monkeypatch)  # while it is being written
    assert not was_read_from_disk(path, monkeypatch)
    assert kept.known_summary(before).steps == 30
    writer.close()
    assert kept.summary_of(path).steps == 60
    assert was_read_from_disk(path, monkeypatch)


def test_other_rules_judge_anew(tmp_path, monkeypatch) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30)
    kept.summary_of(path)
    monkeypatch.setattr(kept, "_rules", lambda: b"others")
    assert not was_read_from_disk(path, monkeypatch)


def damaged(text: str, *keys: str, value: object) -> str:
    held = json.loads(text)
    inner = held
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(held)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: damaged(text, "flow", "tone", value="<script>"),
        lambda text: damaged(text, "diagnosis", "decades", value="many"),
        lambda text: damaged(text, "diagnosis", "findings", value=3),
        lambda text: damaged(text, "steps", value=None),
        lambda text: damaged(text, "spark", value={}),
    ],
)
def test_a_summary_of_any_content_fails_no_reader(tmp_path, damage) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30)
    whole = as_text(kept.summary_of(path))
    file = path / kept.FILE
    file.write_text(damage(file.read_text()))
    assert as_text(kept.summary_of(path)) == whole


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_its_place_is_not_waited_for(tmp_path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30)
    os.mkfifo(path / kept.FILE)
    assert kept.summary_of(path).steps == 30


def test_a_link_in_its_place_is_not_written_through(tmp_path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30)
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in (kept.FILE, f".{kept.FILE}.tmp"):
        (path / name).symlink_to(mine)
    kept.summary_of(path)
    assert mine.read_text() == "mine"


def test_where_nothing_can_be_written_it_is_judged_each_time(tmp_path, monkeypatch) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30)
    (path / kept.FILE).mkdir()
    assert not was_read_from_disk(path, monkeypatch)
    assert kept.summary_of(path).steps == 30


def test_what_was_warned_of_is_warned_of_again(tmp_path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30, flush=10)
    part = sorted((path / "layers").iterdir())[1]
    part.write_bytes(b"damaged" + part.read_bytes()[7:])
    said = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", GradscopeWarning)
            kept.summary_of(path)
        said.append([str(warning.message) for warning in caught])
    assert said[0] == said[1]


def test_runs_are_listed_alike_from_summaries(tmp_path, capsys) -> None:
    broken_run(tmp_path / "broken")
    synthetic.write_run(tmp_path / "plain", n_layers=5, n_steps=30)
    listed = []
    for _ in range(2):
        assert cli.main(["runs", str(tmp_path)]) == 0
        listed.append(capsys.readouterr())
    assert listed[0] == listed[1]
    assert "exploding" in listed[0].out


@pytest.mark.parametrize("others", [3, 120])
def test_who_closes_a_run_among_many_keeps_its_summary(tmp_path, others) -> None:
    for number in range(others):
        (tmp_path / f"{number}").mkdir()
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            model(torch.ones(5, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (scope.path / kept.FILE).exists() == (others >= session_scope._MANY)
    assert kept.summary_of(scope.path).steps == 3


def test_a_run_that_cannot_be_read_has_none(tmp_path) -> None:
    path = synthetic.write_run(tmp_path / "run", n_layers=5, n_steps=30)
    (path / "run.json").write_text("{")
    with pytest.raises(GradscopeError, match="broken"):
        kept.summary_of(path)
    assert not (path / kept.FILE).exists()
