"""Backwards that go through no layer that was called: penalties on weights, single parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradscope


def loss_of(model):
    return model(torch.randn(8, 6)).square().mean()


def penalty_on(model):
    weight = model[0].weight
    return (weight @ weight.T - torch.eye(len(weight))).square().sum()


def norm(*parameters):
    return torch.stack([p.grad.norm() for p in parameters]).norm().item()


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("order", [(loss_of, penalty_on), (penalty_on, loss_of)])
def test_gradients_of_a_penalty_with_a_backward_of_its_own_are_read(tmp_path, order, clipped):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    whole, first = [], []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(9):
            optimizer.zero_grad()
            for of in order:
                of(model).backward()
            whole.append(norm(*model.parameters()))
            first.append(norm(*model[0].parameters()))
            if clipped:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    run = scope.run
    assert run.notes == [] and len(run.steps) == 9
    np.testing.assert_allclose(run.steps.grad_norm, whole, rtol=1e-5)
    read = run.frame().query("name == '0'")
    np.testing.assert_allclose(read.grad_norm, first, rtol=1e-5)
    assert read.signal_norm.notna().all()
    after = np.full(9, 0.1) if clipped else whole
    np.testing.assert_allclose(run.steps.clipped_grad_norm, after, rtol=1e-4)
    assert "accumulated" not in str(gradscope.diagnose(run).verdict)


def test_a_penalty_after_gradients_were_thrown_away_is_all_of_its_step(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    right = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(4):
            loss_of(model).backward()
            optimizer.zero_grad()
            penalty_on(model).backward()
            right.append(norm(model[0].weight))
            optimizer.step()
            optimizer.zero_grad()
    read = scope.run.frame().query("name == '0'")
    np.testing.assert_allclose(read.grad_norm, right, rtol=1e-5)
    assert read.signal_norm.isna().all()


class Agent(nn.Module):
    """As of SAC: the temperature is a parameter of the model, with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.policy = nn.Linear(4, 4)
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.policy(x)


def test_a_parameter_with_a_loss_and_an_optimizer_of_its_own_makes_steps_of_its_own(tmp_path):
    torch.manual_seed(0)
    model = Agent()
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=0.01)
    of_alpha = torch.optim.Adam([model.log_alpha], lr=0.01)
    right = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(6):
            loss = model(torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            right.append(norm(*model.policy.parameters()))
            optimizer.step()
            of_alpha.zero_grad()
            (model.log_alpha.exp() * loss.detach()).backward()
            right.append(norm(model.log_alpha))
            of_alpha.step()
    run = scope.run
    assert run.notes == []
    np.testing.assert_allclose(run.steps.grad_norm, right, rtol=1e-5)
    np.testing.assert_allclose(run.steps.clipped_grad_norm, right, rtol=1e-5)


@pytest.mark.parametrize("every", [1, 3, 5])
def test_parts_that_are_called_one_by_one_make_the_same_steps_at_any_every(tmp_path, every):
    torch.manual_seed(0)
    parts = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abcd"})
    optimizers = {n: torch.optim.Adam(part.parameters(), lr=0.01) for n, part in parts.items()}
    order, right = list("abcd") * 5, []
    with gradscope.watch(parts, tmp_path / "run", every=every) as scope:
        for name in order:
            optimizers[name].zero_grad()
            parts[name](torch.randn(8, 4)).square().mean().backward()
            right.append(norm(*parts[name].parameters()))
            optimizers[name].step()
    run = scope.run
    assert run.steps.step.tolist() == list(range(0, 20, every))
    np.testing.assert_allclose(run.steps.grad_norm, right[::every], rtol=1e-5)
    trained = run.frame().dropna(subset=["grad_norm", "signal_norm"])
    assert trained.name.tolist() == order[::every]


def test_backwards_of_others_are_no_steps_of_the_model(tmp_path):
    torch.manual_seed(0)
    model, other = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    right = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            right.append(norm(*model.parameters()))
            optimizer.step()
            other(torch.randn(8, 4)).sum().backward()
            torch.autograd.grad(penalty_on([model]), [model.weight])
    assert scope.run.notes == []
    np.testing.assert_allclose(scope.run.steps.grad_norm, right, rtol=1e-5)


def test_backward_is_as_it_was_once_nobody_watches(tmp_path):
    def step(model):
        model(torch.randn(2, 4)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    before = torch.autograd._engine_run_backward
    models = [nn.Linear(4, 4) for _ in range(2)]
    scopes = [gradscope.watch(model, tmp_path / str(i)) for i, model in enumerate(models)]
    assert torch.autograd._engine_run_backward is not before
    step(models[0])
    scopes[0].close()
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.ones(()).backward()
    step(models[1])
    scopes[1].close()
    assert torch.autograd._engine_run_backward is before
