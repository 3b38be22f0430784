"""What is left of a training when its process is killed, told to end, exits, or forks."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import gradscope
import trainings
from disk import full_disk
from gradscope.session.process_end import open_scopes
from trainings import check_steps, wait_for


def told(words: str) -> AbstractContextManager[object]:
    return pytest.warns(gradscope.GradscopeWarning, match=words)


@pytest.mark.slow
@pytest.mark.parametrize("training", ["by_rows", "by_seconds"])
def test_a_training_killed_at_any_moment_loses_at_most_the_unflushed_tail(
    warm: trainings.Warm, reference: pd.DataFrame, tmp_path: Path, training: str
) -> None:
    chance = random.Random(training)
    for moment in range(15):
        path = tmp_path / str(moment)
        progress = trainings.Progress(path)
        after = chance.randrange(60)
        process = warm.start(training, path)
        wait_for(lambda: progress.made >= after)  # noqa: B023
        for _ in range(chance.randrange(50_000)):
            pass
        flushed = trainings.flushed(path)
        os.kill(process, signal.SIGKILL)
        assert warm.wait() == -signal.SIGKILL
        made = progress.made
        assert warm.run("resumed", path) == (0, "")
        run = gradscope.load(path)
        count = len(run.steps) - 3
        assert run.steps.step.tolist() == list(range(count + 3))
        assert count >= flushed
        assert made - count <= trainings.FLUSH_EVERY + 1  # the last step was not closed yet
        frame = run.frame()
        before = frame[frame.step < count]
        pd.testing.assert_frame_equal(before, reference[: len(before)])
        after = frame[frame.step >= count].assign(step=lambda rows: rows.step - count)  # noqa: B023
        looks = ["dead_fraction", "sample_spread"]  # taken at every eighth step of a run
        pd.testing.assert_frame_equal(
            after.reset_index(drop=True).drop(columns=looks),
            reference[: len(after)].drop(columns=looks),
        )


def test_a_killed_run_is_told_from_a_live_and_a_closed_one(
    warm: trainings.Warm, reference: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    process = warm.start("by_rows", path)
    wait_for(lambda: trainings.flushed(path) >= 5)
    assert gradscope.load(path).status == "running"
    os.kill(process, signal.SIGKILL)
    warm.wait()
    run = gradscope.load(path)
    assert run.status == "crashed"
    assert check_steps(run, reference) >= 5
    warm.run("resumed", path)
    assert gradscope.load(path).status == "closed"


def test_sigterm_flushes_and_ends_the_process_as_ever(
    warm: trainings.Warm, reference: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    progress = trainings.Progress(path)
    process = warm.start("until_terminated", path)
    wait_for(lambda: progress.made >= 20)
    os.kill(process, signal.SIGTERM)
    assert warm.wait() == -signal.SIGTERM
    assert trainings.errors(path) == ""
    steps = gradscope.load(path).steps.step.tolist()
    assert steps == list(range(len(steps)))
    assert progress.made - 1 <= len(steps) <= progress.made


def test_an_interrupt_flushes_and_shows_the_user_s_traceback_alone(
    warm: trainings.Warm, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    progress = trainings.Progress(path)
    process = warm.start("until_terminated", path)
    wait_for(lambda: progress.made >= 20)
    os.kill(process, signal.SIGINT)
    assert warm.wait() != 0
    said = trainings.errors(path)
    assert said.count("Traceback") == 1
    assert said.endswith("KeyboardInterrupt\n")
    run = gradscope.load(path)
    assert run.status == "closed"
    steps = run.steps.step.tolist()
    assert steps == list(range(len(steps)))
    assert progress.made <= len(steps) <= progress.made + 1  # it struck within a step


def test_a_program_s_own_handler_of_sigterm_stays(warm: trainings.Warm, tmp_path: Path) -> None:
    path = tmp_path / "run"
    progress = trainings.Progress(path)
    process = warm.start("with_handler", path)
    wait_for(lambda: progress.made >= 5)
    os.kill(process, signal.SIGTERM)
    assert warm.wait() == 0
    assert trainings.errors(path) == "ended by itself\n"
    run = gradscope.load(path)
    assert run.status == "closed"
    assert len(run.steps) == progress.made


def test_a_later_handler_of_sigterm_may_call_ours_to_flush_and_go_on(
    warm: trainings.Warm, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    progress = trainings.Progress(path)
    process = warm.start("with_later_handler", path)
    wait_for(lambda: progress.made >= 5)
    os.kill(process, signal.SIGTERM)
    assert warm.wait() == 0
    count = int(trainings.errors(path).removesuffix(" steps on disk\n"))
    assert count >= 4
    run = gradscope.load(path)
    assert run.steps.step.tolist() == list(range(progress.made))
    assert run.status == "closed"


def test_wherever_a_signal_strikes_the_rows_so_far_reach_the_disk(tmp_path: Path) -> None:
    """Its handler waits for the drain: the training thread may hold no lock that this one needs."""
    model = trainings.net()
    optimizer = trainings.learner(model)
    struck: set[tuple[str, int]] = set()
    waited: list[str] = []
    package = str(Path(gradscope.__file__).parent)

    def strike(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        name = frame.f_code.co_filename
        if not name.startswith(package):
            return None
        if event == "line" and (name, frame.f_lineno) not in struck:
            struck.add((name, frame.f_lineno))
            if not open_scopes[id(model)].drain.request_flush().wait(2):
                waited.append(f"{name}:{frame.f_lineno}")
        return strike

    with gradscope.watch(model, tmp_path / "run"):
        sys.settrace(strike)
        try:
            trainings.train(model, optimizer, range(3))
        finally:
            sys.settrace(None)
    assert any(name.endswith("tape.py") for name, _ in struck)
    assert waited == []


def test_sigterm_is_as_it_was_after_the_last_scope_closed(tmp_path: Path) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    scopes = [gradscope.watch(model, tmp_path / str(i)) for i, model in enumerate(models)]
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    for scope in scopes:
        with told("no step was recorded"):
            scope.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_scope_of_another_thread_leaves_sigterm_alone(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    scopes: list[gradscope.Scope] = []
    thread = threading.Thread(target=lambda: scopes.append(gradscope.watch(model, tmp_path / "a")))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with told("no step was recorded"):
        scopes[0].close()


class Interrupted(nn.Module):
    """Raises a KeyboardInterrupt when it is told to."""

    due = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.due:
            raise KeyboardInterrupt
        return x


def test_recording_goes_on_after_an_interrupt_within_a_forward(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), Interrupted(), nn.Linear(6, 2))
    optimizer = trainings.learner(model)
    with gradscope.watch(model, tmp_path / "run") as scope:
        trainings.train(model, optimizer, range(2))
        model[1].due = True
        with pytest.raises(KeyboardInterrupt):
            trainings.train(model, optimizer, range(1))
        model[1].due = False
        trainings.train(model, optimizer, range(3))
    signal_norm = scope.run.matrix("signal_norm")[1]
    assert len(signal_norm) == 5
    assert np.isfinite(signal_norm).all()
    assert np.isfinite(scope.run.matrix("grad_norm")[1]).all()
    assert scope.run.notes == []


def test_exit_while_rows_are_flushed_loses_nothing_and_shows_no_traceback(
    warm: trainings.Warm, reference: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    assert warm.run("without_close", path) == (0, "")
    run = gradscope.load(path)
    assert run.status == "closed"
    assert check_steps(run, reference) == 80


def test_a_program_may_change_its_folder(
    tmp_path: Path, reference: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    model = trainings.net()
    optimizer = trainings.learner(model)
    with gradscope.watch(model, "run") as scope:
        trainings.train(model, optimizer, range(10))
        scope.flush()
        monkeypatch.chdir(tmp_path / "elsewhere")
        trainings.train(model, optimizer, range(10, 20))
    assert check_steps(scope.run, reference) == 20
    assert os.listdir() == []


def broken_sink(step: int, values: dict[str, float]) -> None:
    raise OSError("no route to host")


def test_a_training_whose_standard_error_is_closed_goes_on(
    tmp_path: Path, reference: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull, "w") as closed:
        pass
    monkeypatch.setattr("sys.stderr", closed)
    model = trainings.net()
    optimizer = trainings.learner(model)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr("warnings.showwarning", lambda *_, **__: closed.write("x"))
        with gradscope.watch(model, tmp_path / "run") as scope:
            scope.send_to(broken_sink)
            trainings.train(model, optimizer, range(10))
            with full_disk():
                scope.flush()
            trainings.train(model, optimizer, range(10, 20))
    run = gradscope.load(tmp_path / "run")
    assert check_steps(run, reference) == 20
    assert run.notes == ["nothing is sent to broken_sink any more: OSError: no route to host"]


@pytest.mark.slow
def test_forked_workers_neither_record_nor_flush_nor_hang(
    warm: trainings.Warm, reference: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    assert warm.run("forking", path) == (0, "")
    run = gradscope.load(path)
    assert check_steps(run, reference) == 20
    assert run.status == "closed"
    assert run.notes == []


@pytest.mark.parametrize("training", ["with_a_forked_worker", "with_a_spawned_worker"])
def test_workers_of_a_data_loader_do_not_record(
    warm: trainings.Warm, tmp_path: Path, training: str
) -> None:
    assert warm.run("with_no_worker", tmp_path / "none") == (0, "")
    assert warm.run(training, tmp_path / "one") == (0, "")
    alone, run = gradscope.load(tmp_path / "none"), gradscope.load(tmp_path / "one")
    assert len(run.steps) == len(trainings.Data(nn.Identity()))
    pd.testing.assert_frame_equal(run.frame(), alone.frame())
    assert run.notes == []


@pytest.mark.slow
def test_ten_readers_of_a_live_training_never_fail_and_see_whole_rows(
    warm: trainings.Warm, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    wrong: list[BaseException] = []
    seen: list[pd.DataFrame] = []
    warm.start("until_stopped", path)
    wait_for(lambda: trainings.flushed(path))

    def poll() -> None:
        try:
            run = gradscope.load(path)
            for _ in range(12):
                run.refresh()
                for reader in (run, gradscope.load(path)):
                    steps, grad_norm = reader.matrix("grad_norm")
                    assert steps.tolist() == list(range(len(steps)))
                    total = np.sqrt(np.nansum(grad_norm.astype(float) ** 2, axis=1))
                    np.testing.assert_allclose(total, reader.steps.grad_norm, rtol=1e-6)
                assert run.status == "running"
            seen.append(run.frame())
        except BaseException as error:
            wrong.append(error)

    readers = [threading.Thread(target=poll) for _ in range(10)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    Path(f"{path}.stop").touch()
    assert warm.wait() == 0
    assert wrong == []
    final = gradscope.load(path).frame()
    for frame in seen:
        pd.testing.assert_frame_equal(frame, final[: len(frame)])
