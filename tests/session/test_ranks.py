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
import pytest
import torch

import gradscope
from ranks_training import STEPS, Dropping, batch_of, net
from releases import shards_on_the_cpu

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


def trained(kind: str, path: Path) -> gradscope.Run:
    ended = run_two(kind, path)
    assert [code for code, *_ in ended] == [0, 0], ended
    return load(path)


def test_steps_of_one_number_that_are_not_the_same_are_not_put_together(tmp_path):
    """Uneven inputs: after an epoch one process has made a step less than the other."""
    run = trained("uneven", tmp_path / "run")
    read = run.frame()[run.frame().parameters > 0].groupby("step")
    columns = ["grad_norm", "clipped_grad_norm", "update_norm", "signal_norm"]
    known = read[columns].agg(lambda values: values.notna().all())
    assert known.loc[:1].all().all() and not known.loc[2:].any().any()
    assert np.isnan(run.steps.grad_norm[2:]).all()
    apart, *_ = run.notes
    assert "from step 2 on" in apart and 'ranks="all"' in apart


def test_a_step_that_one_process_does_not_record_is_not_that_of_all(tmp_path):
    run = trained("every", tmp_path / "run")
    assert run.steps.step.tolist() == list(range(STEPS))
    signal = run.matrix("signal_norm")[1]
    assert np.isfinite(signal[::2]).all() and np.isnan(signal[1::2]).all()
    (note,) = run.notes
    assert "from step 1 on not every process" in note


@pytest.mark.parametrize(
    "which",
    ["reduced by hand", pytest.param("biases reduced by hand", marks=shards_on_the_cpu)],
)
def test_gradients_that_are_reduced_after_the_backward_are_not_put_together_before(tmp_path, which):
    run = trained(which, tmp_path / "run")
    model = net()
    expected = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generators = [torch.Generator().manual_seed(rank) for rank in range(2)]
    for _ in range(STEPS):
        optimizer.zero_grad()
        for generator in generators:
            (model(torch.randn(4, 5, generator=generator)).square().sum() / 2).backward()
        expected.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        optimizer.step()
    np.testing.assert_allclose(run.steps.clipped_grad_norm, expected, rtol=1e-5)
    assert np.isnan(run.steps.grad_norm).all() and np.isnan(run.frame().grad_norm).all()
    (note,) = run.notes
    assert note.startswith("grad_norm of layers '0', '2' differs between processes")


def test_a_model_watched_before_there_is_a_group_has_no_readings_of_a_part_of_the_batch(tmp_path):
    ended = run_two("watched before", tmp_path / "run")
    assert [code for code, *_ in ended] == [0, 0], ended
    first, second = (load(tmp_path / f"run-{rank}") for rank in range(2))
    for run in first, second:
        read = run.frame()
        assert read[["signal_norm", "activation_norm"]].isna().all().all()
        (note,) = run.notes
        assert "after watch()" in note and "init_process_group()" in note
    np.testing.assert_array_equal(first.steps.grad_norm, second.steps.grad_norm)
    assert np.isfinite(first.steps.grad_norm).all()


def test_layers_that_each_process_leaves_out_for_itself_are_read_by_their_names(tmp_path):
    run = trained("layers left out", tmp_path / "run")
    assert run.notes == []
    model = Dropping()
    read = run.shortcut_readings.merge(run.shortcuts, on="shortcut").dropna(subset="total_norm")
    for step in range(STEPS):
        expected = {}
        for x, without in (batch_of(rank, step) for rank in range(2)):
            values = model.values(x, without)
            gradients = torch.autograd.grad(values[-1].square().sum() / 2, values)
            used = [i for i in range(3) if i != without]
            for i, total, shortcut in zip(used, gradients[:-1], gradients[1:], strict=True):
                parts = total, shortcut, total - shortcut
                split = "stem" if i == used[0] else "(root)"
                known = expected.setdefault((split, f"blocks.{i}.0"), np.zeros(3))
                known += [part.square().sum().item() for part in parts]
        found = {
            (row.split, row.branch): [row.total_norm, row.shortcut_norm, row.branch_norm]
            for row in read[read.step == step].itertuples()
        }
        assert len(found) == len(expected)
        for (split, branch), squares in expected.items():
            assert found[split, branch] == pytest.approx(np.sqrt(squares).tolist(), rel=1e-9)
