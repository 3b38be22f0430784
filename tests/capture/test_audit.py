"""`training` of `run.layers`: which parameters are trained, and what keeps the others from it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

import gradscope
from loops import batches, loss_of, net


def training_of(model, path, steps=3, between=lambda step: None, optimizers=None, **settings):
    """Return layer name -> `training`, of a model trained by all its parameters by default."""
    optimizers = optimizers or [SGD(model.parameters(), lr=0.1)]
    with gradscope.watch(model, path, **settings) as scope:
        for step, batch in enumerate(batches(steps)):
            between(step)
            loss_of(model, batch).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return dict(zip(scope.run.layers.name, scope.run.layers.training, strict=True))


def test_layers_that_learn_are_trained_and_those_without_parameters_say_nothing(tmp_path):
    found = training_of(net(), tmp_path / "run")
    assert found == {"0": "trained", "1": "", "2": "trained", "3": "", "4": "trained"}


def test_frozen_layers_are_told_and_a_frozen_bias_by_its_name(tmp_path):
    model = net()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    found = training_of(model, tmp_path / "run")
    assert found["0"] == "frozen"
    assert found["2"] == "trained (weight), frozen (bias)"


def test_layers_that_no_optimizer_holds_are_told(tmp_path):
    model = net()
    optimizer = SGD([*model[0].parameters(), model[2].weight], lr=0.1)
    found = training_of(model, tmp_path / "run", optimizers=[optimizer])
    assert found["0"] == "trained"
    assert found["2"] == "trained (weight), no optimizer (bias)"
    assert found["4"] == "no optimizer"


def test_layers_that_never_had_a_gradient_are_told(tmp_path):
    model = net()
    model[1].register_forward_hook(lambda module, args, output: output.detach())
    found = training_of(model, tmp_path / "run")
    assert found["0"] == "no gradient"
    assert found["2"] == found["4"] == "trained"


def test_a_layer_that_is_neither_used_nor_held_is_told_to_be_both(tmp_path):
    model = net()
    model.spare = nn.Linear(3, 3).double()
    model.forward = lambda x: nn.Sequential(*list(model)[:5])(x)
    optimizer = SGD([p for n, p in model.named_parameters() if "spare" not in n], lr=0.1)
    found = training_of(model, tmp_path / "run", optimizers=[optimizer])
    assert found["spare"] == "no optimizer, no gradient"


def test_one_recorded_step_with_a_gradient_is_enough(tmp_path):
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.step = nn.Linear(5, 2), nn.Linear(5, 2), 0
            self.double()

        def forward(self, x):
            self.step += 1
            return self.a(x) if self.step < 3 else self.b(x)

    assert training_of(Turns(), tmp_path / "run", steps=3) == {"a": "trained", "b": "trained"}
    assert training_of(Turns(), tmp_path / "short", steps=2) == {"a": "trained", "b": "no gradient"}


def test_unfreezing_and_a_group_that_is_added_are_followed(tmp_path):
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD(model[4].parameters(), lr=0.1)

    def between(step):
        if step == 2:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": [*model[0].parameters(), *model[2].parameters()]})

    early = training_of(model, tmp_path / "early", 2, between, [optimizer])
    assert [early[n] for n in "024"] == ["frozen", "no optimizer", "trained"]
    late = training_of(model, tmp_path / "late", 4, between, [optimizer])
    assert [late[n] for n in "024"] == ["trained", "trained", "trained"]


def test_an_optimizer_that_has_not_stepped_yet_holds_its_parameters(tmp_path):
    model = net()
    first = SGD(model[4].parameters(), lr=0.1)
    second = SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    found = training_of(model, tmp_path / "run", optimizers=[first])
    assert set(found.values()) == {"trained", ""}
    assert second.param_groups


def test_what_a_handwritten_optimizer_holds_is_not_judged(tmp_path):
    model = net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        for batch in batches(3):
            loss_of(model, batch).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
    layers = scope.run.layers
    assert set(layers.training[layers.parameters > 0]) == {"trained"}


def test_it_is_known_while_the_training_runs(tmp_path):
    model = net()
    optimizer = SGD(model[:3].parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for batch in batches(2):
            loss_of(model, batch).backward()
            optimizer.step()
        scope.flush()
        assert gradscope.load(tmp_path / "run").layers.training[4] == "no optimizer"


def test_tied_weights_are_trained_under_both_names(tmp_path):
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    model[2].weight = model[0].weight
    assert set(training_of(model, tmp_path / "run").values()) == {"trained", ""}


def test_runs_of_gradscope_0_1_say_nothing(tmp_path):
    training_of(net(), tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    meta = json.loads(file.read_bytes())
    for row in meta["layers"]:
        del row["training"]
    file.write_text(json.dumps(meta))
    with pytest.warns(gradscope.GradscopeWarning, match="checksum"):
        layers = gradscope.load(tmp_path / "run").layers
    assert set(layers.training) == {""}


def test_the_frame_and_the_csv_stay_without_it(tmp_path):
    training_of(net(), tmp_path / "run")
    assert "training" not in gradscope.load(tmp_path / "run").frame()


def recorded(model, path, size=(2, 4)):
    """Return the run of a short training on random inputs."""
    optimizer = SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, path) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(size)).square().mean().backward()
            optimizer.step()
    return scope.run


class Uncalled(nn.Module):
    """Of its layers one is called, and one is used otherwise."""

    def __init__(self, use):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.called = nn.Linear(4, 4), nn.Linear(4, 4)
        self.use = use

    def forward(self, x):
        return self.called(torch.relu(self.use(self, x)))


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: net.used.forward(x),
        lambda net, x: F.linear(x, net.used.weight, net.used.bias),
    ],
    ids=["forward", "function"],
)
def test_layers_whose_weights_are_used_without_a_call_are_told_of_once(use, tmp_path):
    net = Uncalled(use)
    with pytest.warns(gradscope.GradscopeWarning, match="layer 'used': weights are used without"):
        run = recorded(net, tmp_path / "run")
    assert len(run.notes) == 1
    read = run.frame().set_index("name")
    assert read.signal_norm["used"].isna().all() and read.signal_norm["called"].notna().all()
    assert read.grad_norm.notna().all()


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x: net.used(x) + F.linear(x, net.used.weight),
        lambda net, x: F.linear(x, net.called.weight) + net.used(x),  # of one called later
        lambda net, x: net.used(x) @ net.called.weight,
    ],
)
def test_layers_that_are_called_as_well_are_not_told_of(use, tmp_path):
    assert recorded(Uncalled(use), tmp_path / "run").notes == []


def test_what_torch_and_containers_hold_is_not_told_of_as_uncalled(tmp_path):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(4))])

        def forward(self, x):
            return self.attention(x, x, x)[0] * self.scales[0]

    assert recorded(Attending(), tmp_path / "run", (2, 3, 4)).notes == []
