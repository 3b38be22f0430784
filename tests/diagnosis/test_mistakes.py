"""Mistakes of the loop and of the model's code: each is told by what it does, and told apart."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from gradscope.diagnosis.findings import Diagnosis
from small_trainings import Last, net, sgd, the, train


class Listed(nn.Module):
    """Layers in the middle, in a container of any kind."""

    def __init__(self, middle: list[nn.Linear] | nn.ModuleList) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(16, 16), middle, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for layer in self.middle:
            x = layer(x).relu()
        return self.last(x)


def test_layers_in_a_python_list_are_told(tmp_path):
    model = Listed([nn.Linear(16, 16), nn.Linear(16, 16)])
    finding = the(train(tmp_path / "run", model, sgd(model)), "not-updated")
    assert finding.severity == "critical" and "16 x 16" in finding.sentence
    assert finding.evidence == {"parameters": 4, "elements": 2 * (16 * 16 + 16)}
    assert "kept in a Python list or dict, middle, " in finding.sentence
    assert "ModuleList" in finding.remedies[0]


@pytest.mark.parametrize("kind", ["dict", "tuple of dicts", "parameters", "hidden"])
def test_where_they_are_kept_is_named(kind, tmp_path):
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.Linear(16, 16)
            self._kept = {
                "dict": {"a": layer},
                "tuple of dicts": ({}, {"a": layer}),
                "parameters": [layer.weight],
                "hidden": lambda: layer,
            }[kind]
            self.layer, self.last = lambda x: F.linear(x, layer.weight), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(x).relu())

    model, run = nn.Sequential(Keeps()), tmp_path / "run"
    train(run, model, sgd(model))
    assert gradscope.load(run).facts["outside_in"] == ([] if kind == "hidden" else ["0._kept"])


@pytest.mark.parametrize("kind", ["module list", "own optimizer", "frozen"])
def test_layers_that_are_listed_held_or_frozen_are_not(kind, tmp_path):
    layers = [nn.Linear(16, 16), nn.Linear(16, 16)]
    model = Listed(nn.ModuleList(layers) if kind == "module list" else layers)
    optimizer = sgd(model)
    for layer in layers if kind != "module list" else ():
        if kind == "frozen":
            layer.requires_grad_(False)
        else:
            optimizer.add_param_group({"params": layer.parameters()})
    assert train(tmp_path / "run", model, optimizer).verdict == "healthy"


def test_a_loss_that_does_not_depend_on_the_model_is_told(tmp_path):
    model = net(16, 32, 4)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model),
        loss_of=lambda out, y: (out.argmax(1) != y).float().mean().requires_grad_(),
    )
    assert diagnosis.verdict == diagnosis.start == "disconnected"
    assert the(diagnosis, "disconnected").evidence == {"steps": 24}
    assert "argmax" in the(diagnosis, "disconnected").remedies[0]


def test_an_optimizer_of_another_model_is_told(tmp_path):
    first = net(16, 32, 4)
    model = copy.deepcopy(first)
    diagnosis = train(tmp_path / "run", model, sgd(first))
    assert diagnosis.verdict == "not-updated"
    assert the(diagnosis, "not-updated").evidence == {"steps": 24}


def test_optimizers_of_others_beside_the_model_s_own_are_no_fault(tmp_path):
    model, other = net(16, 32, 4), net(16, 32, 4)
    beside = sgd(other)

    def step_beside() -> None:
        beside.zero_grad()
        other(torch.ones(2, 16)).sum().backward()
        beside.step()

    own = sgd(model)
    assert train(tmp_path / "run", model, own, after_backward=step_beside).verdict == "healthy"


def overwriting(how: str) -> tuple[nn.Module, Callable[[int, Tensor], None]]:
    model = net(16, 32, 32, 4)
    saved, average = copy.deepcopy(model.state_dict()), copy.deepcopy(model)

    def between(step: int, x: Tensor) -> None:
        with torch.no_grad():
            if how == "loaded":
                model.load_state_dict(saved)
            elif how == "started anew":
                nn.init.normal_(model[4].weight, std=0.2)
            elif how == "averaged":
                for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                    weight.copy_(mean.lerp_(weight, 1e-4))
            elif how == "projected":
                for layer in model[::2]:
                    layer.weight *= 3 / layer.weight.norm()

    return model, between


@pytest.mark.parametrize("how", ["loaded", "averaged", "started anew"])
@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_weights_that_something_else_writes_are_told(how, scale, tmp_path):
    model, between = overwriting(how)

    def before(step: int, x: Tensor) -> Tensor:
        between(step, x)
        return x

    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.AdamW(model.parameters(), 2e-3),
        before=before,
        loss_of=lambda out, y: scale * F.cross_entropy(out, y),
        steps=40,
    )
    finding = the(diagnosis, "not-updated")
    assert diagnosis.verdict == "not-updated" and finding.severity == "critical"
    assert finding.layers == (("4",) if how == "started anew" else ("0", "2", "4"))


def test_weights_that_are_projected_after_each_step_are_not(tmp_path):
    model, between = overwriting("projected")

    def before(step: int, x: Tensor) -> Tensor:
        between(step, x)
        return x

    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    diagnosis = train(tmp_path / "run", model, optimizer, before=before, steps=60)
    assert "not-updated" not in diagnosis.verdicts


@pytest.mark.parametrize(("decay", "found"), [(0.1, False), (20.0, True)])
def test_weights_that_decay_takes_are_told(decay, found, tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=decay)
    diagnosis = train(tmp_path / "run", model, optimizer, steps=40)
    assert ("update-speed" in diagnosis.verdicts) is found
    if found:
        finding = the(diagnosis, "update-speed")
        assert "weight decay" in finding.sentence and "19 or more" in finding.remedies[0]
        assert finding.evidence["weights_left"] == pytest.approx((1 - 2e-3 * 20) ** 20, abs=0.05)


@pytest.mark.parametrize(("share", "found"), [(0.5, False), (0.95, True)])
def test_a_dropout_that_leaves_next_to_nothing_is_told(share, found, tmp_path):
    model = net(16, 64, 64, 4)
    model.insert(2, nn.Dropout(share))
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01))
    assert ("dropout" in diagnosis.verdicts) is found
    if found:
        assert the(diagnosis, "dropout").layers == ("2",)
        assert "0.95" in the(diagnosis, "dropout").remedies[0]


@pytest.mark.parametrize(("share", "found"), [(0.5, False), (0.95, True)])
def test_so_is_one_that_is_called_as_a_function(share, found, tmp_path):
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = net(16, 64, 64), net(64, 64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(self.body(x), share))

    model = Dropped()
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01))
    assert gradscope.load(tmp_path / "run").facts["dropout"] == {"(root)": share}
    assert ("dropout" in diagnosis.verdicts) is found
    if found:
        assert "95% of the units in training, at (root)," in the(diagnosis, "dropout").sentence


def test_a_product_with_a_mask_of_other_numbers_is_no_dropout(tmp_path):
    mask = (torch.rand(32, 64) < 0.05).float()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = net(16, 64, 64), net(64, 64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) * mask * (3 * mask) * torch.full((32, 64), 2.0))

    model = Masked()
    train(tmp_path / "run", model, sgd(model, 0.01))
    assert "dropout" not in gradscope.load(tmp_path / "run").facts


def test_an_eps_may_be_a_whole_number(tmp_path):
    model = net(16, 64, 4)
    train(tmp_path / "run", model, torch.optim.Adam(model.parameters(), 1e-3, eps=1), steps=2)
    assert gradscope.load(tmp_path / "run").facts["eps"] == {"Adam": 1.0}


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_an_eps_that_swallows_the_gradient_is_told_for_information(kind, tmp_path):
    model = net(16, 64, 64, 4)
    diagnosis = train(tmp_path / "run", model, kind(model.parameters(), 1e-3, eps=1.0))
    run = gradscope.load(tmp_path / "run")
    assert run.facts["eps"] == {kind.__name__: 1.0}
    finding = the(diagnosis, "update-speed")
    assert finding.severity == "information" and finding.layers == ("0", "2", "4")
    size = run.matrix("clipped_grad_norm")[1][:20, ::2] / np.sqrt([1088, 4160, 260])
    middle = np.median(np.median(size, axis=0))
    assert finding.evidence["eps_over_gradient"] == pytest.approx(1 / middle, rel=1e-4)
    assert f"The eps of {kind.__name__}, 1, is" in finding.sentence


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda of: torch.optim.Adam(of, 1e-3),
        lambda of: torch.optim.AdamW(of, 1e-3, eps=1e-5),
        lambda of: torch.optim.Adadelta(of, eps=1.0),  # divides by something else
        lambda of: torch.optim.SGD(of, 0.05),
    ],
)
def test_others_are_not(optimizer, tmp_path):
    model = net(16, 64, 64, 4)
    diagnosis = train(tmp_path / "run", model, optimizer(model.parameters()))
    assert "eps" not in "".join(finding.sentence for finding in diagnosis.findings)


def test_a_dropout_of_a_model_in_eval_is_off(tmp_path):
    model = net(16, 64, 64, 4)
    model.insert(2, nn.Dropout(0.95))
    assert train(tmp_path / "run", model.eval(), sgd(model, 0.01)).verdict == "healthy"


def game(path, rate: float) -> Diagnosis:
    torch.manual_seed(0)
    model = nn.ModuleDict({"maker": net(4, 16, 8), "judge": net(8, 32, 1)})
    slow = torch.optim.Adam(model["maker"].parameters(), 1e-5)
    quick = torch.optim.Adam(model["judge"].parameters(), rate)
    with gradscope.watch(model, path) as scope:
        for _ in range(60):
            real = torch.randn(32, 8) + 3
            made = model["maker"](torch.randn(32, 4)).detach()
            quick.zero_grad()
            (F.softplus(-model["judge"](real)) + F.softplus(model["judge"](made))).mean().backward()
            quick.step()
            slow.zero_grad()
            won = model["judge"](model["maker"](torch.randn(32, 4)))
            (-F.softplus(won)).mean().backward()
            slow.step()
    return gradscope.diagnose(scope.run)


def test_a_player_that_gets_no_gradient_through_the_other_is_told(tmp_path):
    finding = the(game(tmp_path / "run", 0.1), "vanishing")
    assert finding.layers == ("maker.0", "maker.2")
    assert "'maker' learns through 'judge'" in finding.sentence
    assert game(tmp_path / "fair", 1e-4).verdict == "healthy"


def test_a_softmax_over_one_class_is_told(tmp_path):
    model = net(16, 32, 1).append(nn.Softmax(1))
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model),
        loss_of=lambda p, y: F.binary_cross_entropy(p[:, 0], (y > 1).float()),
    )
    finding = the(diagnosis, "disconnected")
    assert diagnosis.verdict == "disconnected" and "one class" in finding.sentence
    assert "sigmoid" in finding.remedies[0]


@pytest.mark.parametrize(("steps", "found"), [(8, True), (40, False)])
def test_a_schedule_that_is_over_is_told(steps, found, tmp_path):
    model = net(16, 32, 4)
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: max(0.0, 1 - n / steps))
    done = iter(range(100))

    def step_schedule() -> None:
        if next(done):
            schedule.step()

    diagnosis = train(tmp_path / "run", model, optimizer, steps=40, after_backward=step_schedule)
    assert ("not-updated" in diagnosis.verdicts) is found
    if found:
        assert the(diagnosis, "not-updated").steps == (8, 39)


@pytest.mark.parametrize(("size", "found"), [(1.0, False), (200.0, True)])
def test_states_of_a_recurrent_layer_on_raw_input_are_saturated(size, found, tmp_path):
    torch.manual_seed(0)
    model = Last(nn.RNN(4, 8, batch_first=True), 4)
    diagnosis = train(
        tmp_path / "run", model, sgd(model, 1e-3), before=lambda step, x: size * (x + 1)
    )
    assert ("saturated" in diagnosis.verdicts) is found


def test_outputs_that_a_loss_pulls_together_have_collapsed(tmp_path):
    def apart(out: Tensor, y: Tensor) -> Tensor:
        return (out - out.roll(1, 0)).square().mean()

    model = net(16, 64, 64, 8)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    finding = the(train(tmp_path / "run", model, optimizer, loss_of=apart, steps=80), "collapsed")
    assert "hold samples apart" in finding.remedies[0] and finding.layers[-1] == "4"
