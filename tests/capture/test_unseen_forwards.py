"""Gradients that no forward led to: compiled code is told from what only looks like it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import gradscope


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 2)


def called_by_name(model: nn.Module, x: torch.Tensor) -> None:
    model.forward(x).square().sum().backward()


def by_hand(model: nn.Module, x: torch.Tensor) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)


@pytest.mark.parametrize("with_teacher", [False, True], ids=["alone", "beside a compiled teacher"])
@pytest.mark.parametrize("step", [called_by_name, by_hand])
def test_what_is_not_compiled_is_not_said_to_be(step, with_teacher, tmp_path):
    model, teacher = net(), nn.Linear(5, 2)
    compiled = torch.compile(teacher, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch._dynamo.reset()  # or nothing is compiled here
    with (
        warnings.catch_warnings(record=True) as told,
        gradscope.watch(model, tmp_path / "run") as scope,
    ):
        warnings.simplefilter("always")
        for _ in range(5):
            x = torch.randn(4, 5)
            if with_teacher:
                compiled(x)
            optimizer.zero_grad()
            step(model, x)
            optimizer.step()
        stance = torch._dynamo.eval_frame._stance.stance if with_teacher else "default"
        assert stance == "default"  # the teacher runs compiled again
    run = scope.run
    assert len(run.steps) == 5
    assert any("readings of parameters only" in str(warning.message) for warning in told)
    assert "Call model(x), not model.forward(x)" in run.notes[-1]
    if not with_teacher:
        assert len(run.notes) == 1 and "compiled" not in run.notes[0]
    frame = run.frame()
    assert frame.update_norm.notna().all() and frame.signal_norm.isna().all()


def test_a_model_of_functions_is_not_said_not_to_have_been_called(tmp_path):
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(3, 5), torch.randn(2, 3)])

        def forward(self, x):
            for weight in self.weights:
                x = nn.functional.linear(x, weight).tanh()
            return x

    model = Functions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            model(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(scope.run.notes) == 1 and "was called in step 0" in scope.run.notes[0]
    assert scope.run.frame().grad_norm.notna().all()
