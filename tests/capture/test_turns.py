"""Optimizers that take turns, recorded every so manieth step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as loss_of

import gradscope
from reference import root_sum_square


def nets():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
    critic = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    return nn.ModuleDict({"generator": generator, "critic": critic})


def train(folder, every, rounds=40, critic_steps=1, reuses=True):
    """Train the critic, then the generator, on the critic's images if it `reuses` them."""
    model = nets()
    generator, critic = model["generator"], model["critic"]
    of_critic = torch.optim.Adam(critic.parameters(), 1e-3)
    of_generator = torch.optim.Adam(generator.parameters(), 1e-3)
    real, made_up = torch.ones(6, 1), torch.zeros(6, 1)
    with gradscope.watch(model, folder, every=every) as scope:
        for _ in range(rounds):
            for _ in range(critic_steps):
                of_critic.zero_grad()
                images = generator(torch.randn(6, 4))
                loss_of(critic(torch.randn(6, 8)), real).backward()
                loss_of(critic(images.detach()), made_up).backward()
                of_critic.step()
            of_generator.zero_grad()
            if not reuses:
                images = generator(torch.randn(6, 4))
            loss_of(critic(images), real).backward()
            of_generator.step()
    return scope.run


def told(run):
    return [note for note in run.notes if "optimizer" in note]


@pytest.mark.parametrize(("critic_steps", "every", "better"), [(1, 10, 11), (5, 10, 11), (5, 3, 5)])
def test_an_optimizer_none_of_whose_steps_is_recorded_is_told_of(
    critic_steps, every, better, tmp_path
):
    run = train(tmp_path / "run", every, critic_steps=critic_steps)
    (note,) = told(run)
    assert note.startswith("layers 'generator.0', 'generator.2': no step of their optimizer is")
    assert f"watch(every={better})" in note
    frame = run.frame()
    assert frame.grad_norm[frame.name == "generator.0"].isna().all()
    assert frame.grad_norm[frame.name == "critic.0"].notna().all()
    assert gradscope.diagnose(run).verdict == "healthy"
    frame = train(tmp_path / "better", better, critic_steps=critic_steps).frame()
    read = frame.dropna(subset=["grad_norm"]).name
    assert {"generator.0", "critic.0"} <= set(read)


def test_forwards_of_steps_that_are_not_recorded_are_told_of(tmp_path):
    run = train(tmp_path / "run", every=3)
    (note,) = told(run)
    assert note.startswith("layers 'generator.0', 'generator.2': steps of their optimizer go back")
    frame = run.frame()
    of_generator = frame[frame.name == "generator.0"]
    assert of_generator.grad_norm.notna().sum() > 10
    assert of_generator.signal_norm.isna().all()
    assert not told(train(tmp_path / "anew", every=3, reuses=False))
    assert not told(train(tmp_path / "all", every=1))


@pytest.mark.parametrize("every", [2, 3])
def test_gradients_that_are_thrown_away_between_recorded_steps_are_not_kept(every, tmp_path):
    for reuses in (False, True):
        run = train(tmp_path / f"{reuses}", every, reuses=reuses)
        assert "kept_gradients" not in run.facts


def test_parameters_that_no_call_of_a_module_is_of_are_of_no_other_step(tmp_path):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(4, 4) for _ in range(3)])

        def forward(self, x):
            for weight in self.weights:
                x = torch.tanh(x @ weight)
            return x

    model = Listed()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.watch(model, tmp_path / "run", every=2) as scope:
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(6, 4)).mean().backward()
            optimizer.step()
    assert not told(scope.run)


@pytest.mark.parametrize("every", [2, 5])
def test_optimizers_that_step_together_take_no_turns(every, tmp_path):
    model = nets()
    optimizers = [torch.optim.SGD(model[name].parameters(), 0.1) for name in model]
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for i in range(60):
            for optimizer in optimizers[: 1 + (i >= 13)]:  # one begins late
                optimizer.zero_grad()
            model["critic"](model["generator"](torch.randn(6, 4))).mean().backward()
            for optimizer in optimizers[: 1 + (i >= 13)]:
                optimizer.step()
    assert not told(scope.run)


def test_optimizers_that_are_gone_after_their_last_step_had_their_parameters(tmp_path):
    """A function that trains makes its own: those of the critic are not left over for a row."""
    model = nets()
    generator, critic = model["generator"], model["critic"]

    def task():
        of_critic = torch.optim.Adam(critic.parameters(), 1e-3)
        of_generator = torch.optim.Adam(generator.parameters(), 1e-3)
        for _ in range(3):
            of_critic.zero_grad()
            critic(generator(torch.randn(6, 4)).detach()).square().mean().backward()
            of_critic.step()
            of_generator.zero_grad()
            critic(generator(torch.randn(6, 4))).square().mean().backward()
            of_generator.step()

    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(2):
            task()
    read = scope.run.frame().pivot(index="step", columns="name", values="grad_norm")
    read = read.filter(regex=r"\.[02]$").notna()
    for step, were_read in read.iterrows():
        expected = "critic" if step % 2 == 0 else "generator"
        assert set(were_read.index[were_read]) == {f"{expected}.0", f"{expected}.2"}, step
    trained = scope.run.layers.set_index("name").training.filter(regex=r"\.[02]$")
    assert set(trained) == {"trained"}


class Actor(nn.Module):
    """One part trained through another, and a temperature that goes through no layer."""

    def __init__(self):
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.value = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.temperature = nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize("other", ["step", "new"])
@pytest.mark.parametrize("thawed", ["before the step", "after it"])
def test_readings_stay_with_the_layers_that_they_are_of(thawed, other, tmp_path):
    """Whatever is frozen or trained again meanwhile, and whatever optimizer steps beside."""
    torch.manual_seed(0)
    model, x = Actor(), torch.randn(4, 3)
    model = nn.ModuleDict({"value": model.value, "policy": model.policy})  # the frozen one first
    aside = nn.Linear(3, 3)
    of_policy = torch.optim.SGD(model["policy"].parameters(), 0.01)
    of_aside = torch.optim.SGD(aside.parameters(), 0.01)
    expected = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(4):
            weights = [p.detach().clone() for p in model["policy"].parameters()]
            model["value"].requires_grad_(False)
            of_policy.zero_grad()
            model["value"](model["policy"](x)).mean().backward()
            if thawed == "before the step":
                model["value"].requires_grad_(True)
            if other == "new":
                of_aside = torch.optim.SGD(aside.parameters(), 0.01)
            aside(x).square().mean().backward()
            of_aside.step()
            of_policy.step()
            model["value"].requires_grad_(True)
            of_aside.step()
            now = zip(model["policy"].parameters(), weights, strict=True)
            expected.append(
                [
                    root_sum_square([p - was for p, was in now]),
                    root_sum_square([p.grad for p in model["policy"].parameters()]),
                ]
            )
    frame = scope.run.frame().set_index("name")
    read = frame.loc["policy.0", ["update_norm", "grad_norm"]]
    np.testing.assert_allclose(read, expected, rtol=1e-5)
    assert frame.loc[["value.0", "value.2"], ["update_norm", "grad_norm"]].isna().all(axis=None)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("order", ["tpvpvpv", "pvpvpvp", "tvptvptv", "ttvptv", "vvptpt"])
def test_each_step_of_optimizers_that_take_turns_counts_as_one(order, every, tmp_path):
    torch.manual_seed(0)
    model, x = Actor(), torch.randn(4, 3)
    parts = {"p": "policy.0", "v": "value.0", "t": "(root)"}
    held = {"p": model.policy.parameters(), "v": model.value.parameters(), "t": [model.temperature]}
    optimizers = {part: torch.optim.SGD(some, 0.01) for part, some in held.items()}
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for part in order:
            optimizers[part].zero_grad()
            if part == "t":
                (model.temperature * 2 - model.temperature.exp()).backward()
            elif part == "v":
                model.value(x).square().mean().backward()
            else:
                model.value.requires_grad_(False)
                model.value(model.policy(x)).mean().backward()
            optimizers[part].step()
            model.value.requires_grad_(True)
    frame = scope.run.frame()
    frame = frame[frame.name.isin(parts.values())].dropna(subset=["update_norm"])
    expected = [(step, parts[part]) for step, part in enumerate(order) if step % every == 0]
    assert list(zip(frame.step, frame.name, strict=True)) == expected
