"""What a training is told of itself: its settings, and marks on its time line."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeError


def steps(model: nn.Module, scope: gradscope.Scope, count: int, *marks: tuple[int, str]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(count):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        for at, text in marks:
            if at == number:
                scope.mark(text)


def test_numbers_and_words_are_kept_as_they_are(tmp_path: Path) -> None:
    config = {"lr": 0.1, "depth": 50, "norm": True, "act": "relu", "clip": math.inf}
    with gradscope.watch(nn.Linear(3, 1), tmp_path / "run", config=config):
        pass
    assert gradscope.load(tmp_path / "run").config == config


def test_groups_and_other_values_become_names_and_text(tmp_path: Path) -> None:
    config = {
        "optim": {"lr": np.float32(0.5), "betas": (0.9, 0.99)},
        "seed": torch.tensor(3),
        "none": None,
    }
    with gradscope.watch(nn.Linear(3, 1), tmp_path / "run", config=config):
        pass
    assert gradscope.load(tmp_path / "run").config == {
        "optim.lr": 0.5,
        "optim.betas": "(0.9, 0.99)",
        "seed": 3,
        "none": "None",
    }


def test_the_arguments_of_a_program_are_a_config(tmp_path: Path) -> None:
    arguments = argparse.Namespace(lr=0.1, epochs=3)
    with gradscope.watch(nn.Linear(3, 1), tmp_path / "run", config=arguments):
        pass
    assert gradscope.load(tmp_path / "run").config == {"lr": 0.1, "epochs": 3}


def test_what_is_no_config_is_refused_before_a_run_begins(tmp_path: Path) -> None:
    with pytest.raises(GradscopeError, match="needs a dict"):
        gradscope.watch(nn.Linear(3, 1), tmp_path / "run", config=[1, 2])
    assert not (tmp_path / "run").exists()


def test_marks_have_the_step_that_was_made_last_and_outlive_a_resume(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    with gradscope.watch(model, tmp_path / "run", config={"lr": 0.1}) as scope:
        steps(model, scope, 5, (2, "unfroze the backbone"))
    with gradscope.watch(model, tmp_path / "run", resume=True) as scope:
        steps(model, scope, 3, (1, "halved lr"))
    run = gradscope.load(tmp_path / "run")
    assert run.marks == [(2, "unfroze the backbone"), (6, "halved lr")]
    assert run.config == {"lr": 0.1}


def test_a_closed_scope_takes_no_mark(tmp_path: Path) -> None:
    scope = gradscope.watch(nn.Linear(3, 1), tmp_path / "run")
    scope.close()
    with pytest.raises(GradscopeError, match="closed"):
        scope.mark("late")
