"""Several processes of which one fails, leaves, or comes alone: nobody waits for it without end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import gradscope

SCRIPT = Path(__file__).parents[1] / "support" / "ranks_training.py"


def run_two(kind: str, path: Path) -> list[tuple[int, str, str, float]]:
    """Return the exit code, output, errors and seconds of both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    ended = []
    for process in processes:
        out, errors = process.communicate(timeout=120)
        ended.append((process.returncode, out, errors, time.monotonic() - start))
    return ended


def load(path: Path) -> gradscope.Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gradscope.GradscopeWarning)
        return gradscope.load(path)


def test_an_exception_on_one_process_is_seen_at_once(tmp_path):
    (code, _, errors, _), _ = run_two("exception", tmp_path / "run")
    assert code == 1 and 'KeyError: "the user\'s"' in errors
    assert "timed out" not in errors.lower()
    run = load(tmp_path / "run")
    # all that both have sent is there; 60 s of the collective's own time were not waited for
    assert len(run.steps) >= 6 and run.status == "closed"


def test_a_group_that_is_destroyed_before_the_close_loses_nothing(tmp_path):
    ended = run_two("destroyed", tmp_path / "run")
    assert [code for code, *_ in ended] == [0, 0], ended
    run = load(tmp_path / "run")
    assert run.steps.step.tolist() == list(range(6)) and run.notes == []
    assert run.frame().signal_norm.notna().all()


def test_one_process_that_watches_alone_is_told_and_goes_on(tmp_path):
    ended = run_two("alone", tmp_path / "run")
    assert [code for code, *_ in ended] == [0, 0], ended
    run = load(tmp_path / "run")
    assert len(run.steps) == 6
    (note,) = run.notes
    assert "process 1 of 2 did not call watch()" in note and "on every process" in note


def test_what_one_process_refuses_the_others_are_told_at_once(tmp_path):
    for rank, (code, out, errors, _) in enumerate(run_two("refused", tmp_path / "run")):
        assert code == 0, errors
        assert out.startswith(f"{rank} watch(every=0)")
    assert not (tmp_path / "run").exists()


def test_steps_that_not_all_have_sent_have_no_number_of_all(tmp_path):
    run_two("fewer steps", tmp_path / "run")
    run = load(tmp_path / "run")
    assert len(run.steps) == 8
    frame = run.frame()
    whole, partial = frame[frame.step < 5], frame[frame.step >= 5]
    assert whole.signal_norm.notna().all() and partial.signal_norm.isna().all()
    owners = partial[partial.parameters > 0]
    assert np.isfinite(owners.weight_norm).all()  # both hold the same weights
    assert any("from step 5 on not every process" in note for note in run.notes)
