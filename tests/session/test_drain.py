"""What is left of a training whose disk refuses its rows."""

from __future__ import annotations

import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import gradscope
import trainings
from disk import full_disk
from gradscope.session.columns import Decoder
from trainings import check_steps


def told(words: str) -> AbstractContextManager[object]:
    return pytest.warns(gradscope.GradscopeWarning, match=words)


def weights_without_gradscope(steps: int) -> list[torch.Tensor]:
    model = trainings.net()
    trainings.train(model, trainings.learner(model), range(steps))
    return list(model.parameters())


def check_training(model: nn.Module, steps: int) -> None:
    for mine, theirs in zip(model.parameters(), weights_without_gradscope(steps), strict=True):
        assert torch.equal(mine, theirs)


def test_a_training_on_a_full_disk_goes_on_and_its_lost_steps_are_told(
    tmp_path: Path, reference: pd.DataFrame
) -> None:
    model = trainings.net()
    optimizer = trainings.learner(model)
    scope = gradscope.watch(model, tmp_path / "run")
    trainings.train(model, optimizer, range(10))
    scope.flush()
    room = (tmp_path / "run" / "run.json").stat().st_size + 200  # for run.json, not for rows
    with full_disk(room), told("rows cannot be written"), told("lost steps 10-29"):
        trainings.train(model, optimizer, range(10, 30))
        scope.close()
    check_training(model, 30)
    with told("lost steps 10-29: file too large"):
        run = gradscope.load(tmp_path / "run")
    assert check_steps(run, reference) == 10


def test_a_training_writes_what_waited_once_the_disk_takes_it(
    tmp_path: Path, reference: pd.DataFrame
) -> None:
    model = trainings.net()
    optimizer = trainings.learner(model)
    scope = gradscope.watch(model, tmp_path / "run")
    with full_disk(), told("rows cannot be written"):
        trainings.train(model, optimizer, range(10))
        scope.flush()
    trainings.train(model, optimizer, range(10, 20))
    scope.close()
    check_training(model, 20)
    assert check_steps(gradscope.load(tmp_path / "run"), reference) == 20


def test_a_training_on_a_small_disk_tells_what_it_lost(
    small_disk: Path, reference: pd.DataFrame
) -> None:
    model = trainings.net()
    optimizer = trainings.learner(model)
    scope = gradscope.watch(model, small_disk / "run")
    trainings.train(model, optimizer, range(10))
    scope.flush()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(2**20))
    trainings.train(model, optimizer, range(10, 30))
    with told("rows cannot be written"), told("lost steps 10-29: no space left"):
        scope.close()
    check_training(model, 30)
    with told("lost steps 10-29: no space left"):
        run = gradscope.load(small_disk / "run")
    assert check_steps(run, reference) == 10


def test_a_training_whose_folder_is_removed_goes_on(tmp_path: Path) -> None:
    model = trainings.net()
    optimizer = trainings.learner(model)
    scope = gradscope.watch(model, tmp_path / "run")
    trainings.train(model, optimizer, range(10))
    scope.flush()
    subprocess.run(["rm", "-r", str(tmp_path / "run")], check=True)
    trainings.train(model, optimizer, range(10, 30))
    with told("rows cannot be written"), told("lost steps 10-29: no such file"):
        scope.close()
    check_training(model, 30)
    assert not (tmp_path / "run").exists()


def test_a_row_that_cannot_be_put_together_costs_that_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = Decoder.decoded

    def failing(self, rows):
        if any(row.step == 4 for row in rows):
            raise KeyError("made")
        return decoded(self, rows)

    monkeypatch.setattr(Decoder, "decoded", failing)
    model = trainings.net()
    scope = gradscope.watch(model, tmp_path / "run")
    trainings.train(model, trainings.learner(model), range(10))
    with told("lost steps 4-4: KeyError: 'made'"):
        scope.close()
    assert scope.run.steps.step.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
