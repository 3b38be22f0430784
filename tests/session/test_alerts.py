"""`scope.on`: calls back once, off the training's thread, when a verdict appears."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope


def deep(activation: type[nn.Module] = nn.Sigmoid) -> nn.Module:
    torch.manual_seed(0)
    hidden = [m for _ in range(8) for m in (nn.Linear(16, 16), activation())]
    return nn.Sequential(*hidden, nn.Linear(16, 3))


def train(model: nn.Module, steps: int, scale: float = 1.0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * model(torch.randn(32, 16)).square().mean()).backward()
        optimizer.step()


def test_a_verdict_calls_back_once_while_training_goes_on(tmp_path: Path) -> None:
    calls = []
    model = deep()
    with gradscope.watch(model, tmp_path / "run") as scope:
        scope.on("vanishing", lambda found: calls.append((found, threading.current_thread())))
        train(model, 25)
        scope.flush()
        assert len(calls) == 1
        train(model, 25)
    ((diagnosis, thread),) = calls
    assert diagnosis.verdict == "vanishing"
    assert thread is not threading.current_thread()


def test_a_verdict_that_does_not_appear_calls_nobody(tmp_path: Path) -> None:
    calls: list[gradscope.Diagnosis] = []
    model = deep()
    with gradscope.watch(model, tmp_path / "run") as scope:
        scope.on("exploding", calls.append)
        scope.on("healthy", calls.append)
        train(model, 40)
    assert calls == []


def test_few_steps_are_judged_at_the_close_only(tmp_path: Path) -> None:
    calls: list[gradscope.Diagnosis] = []
    model = deep()
    scope = gradscope.watch(model, tmp_path / "run")
    scope.on("vanishing", calls.append)
    train(model, 5)
    scope.flush()
    assert calls == []
    scope.close()
    assert [found.verdict for found in calls] == ["vanishing"]


def test_every_finding_calls_back_not_only_the_gravest(tmp_path: Path) -> None:
    calls: list[str] = []
    model = deep()
    with gradscope.watch(model, tmp_path / "run") as scope:
        for verdict in ("vanishing", "exploding"):
            scope.on(verdict, lambda _, verdict=verdict: calls.append(verdict))
        train(model, 30)
        train(model, 30, scale=float("nan"))
    assert sorted(calls) == ["exploding", "vanishing"]


def test_a_callback_may_close_the_scope_and_read_the_run(tmp_path: Path) -> None:
    seen = []
    model = deep()
    scope = gradscope.watch(model, tmp_path / "run")

    def stop(_: gradscope.Diagnosis) -> None:
        seen.append(len(scope.run.steps))
        scope.close()

    scope.on("vanishing", stop)
    train(model, 25)
    scope.flush()
    assert seen == [25]
    train(model, 5)
    scope.flush()  # waits for the thread, which closes the run
    assert gradscope.load(tmp_path / "run").status == "closed"


def test_a_callback_that_raises_is_told_of_once_and_stops_nothing(tmp_path: Path) -> None:
    def fails(_: gradscope.Diagnosis) -> None:
        raise KeyError("gone")

    model = deep()
    failed = pytest.warns(gradscope.GradscopeWarning, match="'vanishing' failed: KeyError")
    with failed as told, gradscope.watch(model, tmp_path / "run") as scope:
        scope.on("vanishing", fails)
        train(model, 25)
        scope.flush()
        train(model, 25)
    assert len(told) == 1
    run = gradscope.load(tmp_path / "run")
    assert len(run.steps) == 50
    assert [note for note in run.notes if "KeyError" in note]


@pytest.mark.parametrize("verdict", ["vanish", "shattered", "", None])
def test_a_verdict_that_no_recording_has_is_refused(tmp_path: Path, verdict: str) -> None:
    model = deep()
    with gradscope.watch(model, tmp_path / "run") as scope:
        with pytest.raises(gradscope.GradscopeError, match="needs a verdict") as caught:
            scope.on(verdict, print)
        train(model, 1)
    assert "\n" not in str(caught.value)


def test_what_is_no_function_and_a_closed_scope_are_refused(tmp_path: Path) -> None:
    model = deep()
    with gradscope.watch(model, tmp_path / "run") as scope:
        with pytest.raises(gradscope.GradscopeError, match="needs a function of a Diagnosis"):
            scope.on("vanishing", "print")  # type: ignore[arg-type]
        train(model, 2)
    with pytest.raises(gradscope.GradscopeError, match="the scope is closed"):
        scope.on("vanishing", print)
