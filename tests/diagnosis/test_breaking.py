"""What broke first: values that are not finite, losses that rise or jump."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from small_trainings import Last, net, sgd, the, train


class Breaks(nn.Module):
    """Layers a, b and c; between a and b something that breaks at a step."""

    def __init__(self, broken: Callable[[Tensor], Tensor], at: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.broken, self.at, self.step = broken, at, 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = self.broken(h) if self.step == self.at else h
        self.step += 1
        return self.c(self.b(h).relu())


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("at", [0, 12])
@pytest.mark.parametrize(
    ("broken", "phase", "words", "layer"),
    [
        (lambda h: (h - 1).log(), "forward", "the forward pass became not a number", "b"),
        (lambda h: h / 0.0, "forward", "the forward pass became", "b"),
        (lambda h: (h * 0).sqrt() + h, "backward", "the backward pass became not a number", "a"),
    ],
    ids=["log", "division", "root"],
)
def test_what_broke_first_is_found(broken, phase, words, layer, at, log, tmp_path):
    model = Breaks(broken, at)
    diagnosis = train(tmp_path / "run", model, sgd(model), log=log)
    finding = the(diagnosis, "exploding")
    assert diagnosis.verdict == diagnosis.end == "exploding"
    assert finding.sentence.startswith(f"Step {at}: {words}")
    assert finding.layers == (layer,)
    place = finding.place
    assert place is not None
    assert (place.step, "abc"[place.layer or 0], place.phase) == (at, layer, phase)
    if at:
        assert "Nothing announced it" in finding.sentence


@pytest.mark.parametrize("at", [0, 12])
@pytest.mark.parametrize("log", [True, False])
def test_a_nan_in_the_batch_is_its_fault_and_no_layer_s(at, log, tmp_path):
    def before(step: int, x: Tensor) -> Tensor:
        if step == at:
            x[3, 5] = math.nan
        return x

    model = net(16, 32, 32, 4)
    diagnosis = train(tmp_path / "run", model, sgd(model), before=before, log=log)
    finding = the(diagnosis, "exploding")
    assert finding.layers == ("0",) and "so was what it got, the batch" in finding.sentence
    assert "isfinite" in finding.remedies[0]


class Reciprocal(nn.Module):
    """Of numbers that are 0 at step 12; a module of one's own, without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return ((1 + x.abs()) * (self.calls != 13)).reciprocal()


@pytest.mark.parametrize("place", [0, 1])
def test_a_module_of_one_s_own_between_two_layers_is_named(place, tmp_path):
    model = net(16, 32, 32, 4).insert(place, Reciprocal()).insert(place, nn.Flatten())
    run = tmp_path / "run"
    diagnosis = train(run, model, sgd(model), before=lambda _, x: x.abs())
    layer = str(place + 2)
    assert gradscope.load(run).facts["between"] == {layer: [str(place + 1)]}
    finding = the(diagnosis, "exploding")
    assert finding.layers == (layer,) and f"({place + 1} runs there)" in finding.sentence
    assert any("logarithm" in remedy for remedy in finding.remedies)


@pytest.mark.parametrize(
    ("broken", "at"),
    [
        (lambda out: (out - 100).log().mean(), 0),  # its gradient is finite
        (lambda out: (out * 0).log().mean(), 0),
        (lambda out: (out * 0).log().mean(), 12),
    ],
)
def test_a_loss_that_breaks_is_no_layer_s_fault(broken, at, tmp_path):
    model = net(16, 32, 32, 4)
    steps: list[int] = []

    def loss_of(out: Tensor, y: Tensor) -> Tensor:
        steps.append(0)
        return broken(out) if len(steps) > at else F.cross_entropy(out, y)

    diagnosis = train(tmp_path / "run", model, sgd(model), loss_of=loss_of)
    finding = the(diagnosis, "exploding")
    assert finding.steps[0] == at and "it happened in the loss" in finding.sentence
    assert finding.place is not None and finding.place.phase == "loss"


def test_weights_that_something_else_made_nan_are_told_from_a_step_that_did(tmp_path):
    model = net(16, 32, 32, 4)

    def before(step: int, x: Tensor) -> Tensor:
        if step == 12:
            with torch.no_grad():
                model[2].weight[0, 0] = math.nan
        return x

    finding = the(train(tmp_path / "run", model, sgd(model), before=before), "exploding")
    assert finding.layers == ("2",) and "something else wrote them" in finding.sentence


def test_growth_before_a_break_is_told(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(tmp_path / "run", model, sgd(model, 1.0), steps=60, loss_of=F.mse_loss,
                      targets=lambda x: 9 * x[:, :4])  # fmt: skip
    finding = next(f for f in diagnosis.findings if f.verdict == "exploding")
    assert "had grown" in finding.sentence and "lower the learning rate" in finding.remedies[0]


def test_infinity_that_is_meant_is_none(tmp_path):
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(16, 32, 32, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).masked_fill(torch.arange(6) >= 4, -math.inf)

    model = Policy()
    assert train(tmp_path / "run", model, sgd(model)).verdict == "healthy"


@pytest.mark.parametrize("maximize", [True, False])
def test_a_loss_that_climbs_under_small_steps_goes_the_wrong_way(maximize, tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3, maximize=maximize)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    diagnosis = train(
        tmp_path / "run",
        model,
        optimizer,
        steps=60,
        before=lambda step, _: x,
        targets=lambda _: x[:, :4].argmax(1),
    )
    assert (diagnosis.verdict == "unstable") is maximize
    if maximize:
        assert "maximize=True" in the(diagnosis, "unstable").remedies[0]


def test_a_loss_that_rises_under_large_steps_is_unstable(tmp_path):
    model = net(16, 32, 32, 4, act=nn.Tanh)
    diagnosis = train(tmp_path / "run", model, sgd(model, 20.0))
    finding = the(diagnosis, "unstable")
    assert finding.severity == "critical" and finding.place is not None
    assert "changed the weights of" in finding.sentence and "learning rate" in finding.remedies[0]


def test_a_spike_names_the_step_and_the_layer_in_which_it_began(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 1e-3),
        before=lambda step, x: x * (1000 if step == 20 else 1),
        steps=30,
    )
    finding = the(diagnosis, "unstable")
    assert finding.steps == (20, 20) and finding.layers == ("0",)
    assert "the output of layer 0 · 0 (Linear)" in finding.sentence


def test_a_state_that_overflows_is_no_fault_of_the_batch(tmp_path):
    torch.manual_seed(0)
    model = Last(nn.RNN(4, 8, nonlinearity="relu", batch_first=True), 80)
    nn.init.normal_(model.rnn.weight_hh_l0, std=2.0)
    finding = the(train(tmp_path / "run", model, sgd(model, 1e-30), steps=4), "exploding")
    assert "batch" not in finding.sentence and finding.layers == ("rnn",)


def test_a_backward_that_is_nan_from_the_first_step_on_is_told(tmp_path):
    """Of that step the forward is known; the weights that it leaves are NaN."""
    model = net(16, 32, 4)

    def distances(out: Tensor, _: Tensor) -> Tensor:
        return (out - out.detach()).norm(dim=1).mean() + out.square().mean()

    root = train(
        tmp_path / "run", model, sgd(model), loss_of=lambda out, y: (0 * distances(out, y)).sqrt()
    )
    finding = the(root, "exploding")
    assert root.verdict == "exploding" and finding.steps[0] == 0
    assert "gradient of the loss" in finding.sentence


def test_where_the_rate_has_risen_until_it_broke_its_rise_is_told(tmp_path):
    model = net(16, 64, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)

    def before(step: int, x: Tensor) -> Tensor:
        optimizer.param_groups[0]["lr"] = 0.05 * 1.15**step
        return x

    diagnosis = train(tmp_path / "run", model, optimizer, steps=80, before=before)
    finding = the(diagnosis, "exploding")
    broke = 0.05 * 1.15 ** finding.evidence["first_step"]
    assert finding.remedies[0].startswith(f"let the learning rate rise less: it was {broke:.0f}")


def test_a_rate_that_overwrites_the_net_comes_before_what_it_leaves(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential()
    for width in (16, 32, 32):
        model.extend([nn.Linear(width, 32), nn.BatchNorm1d(32), nn.ReLU()])
    model.append(nn.Linear(32, 4))
    diagnosis = train(tmp_path / "run", model, sgd(model, 10.0), steps=60)
    assert diagnosis.verdict == "unstable" == diagnosis.findings[0].verdict
    assert "times their size" in diagnosis.summary
    assert "lower the learning rate" in diagnosis.findings[0].remedies[0]
    kinds = ("dead", "disconnected", "collapsed", "exploding")
    left = [f for f in diagnosis.findings if f.verdict in kinds and f.severity != "information"]
    assert left and not any(f.remedies or f.severity == "critical" for f in left)
    assert diagnosis.end in kinds


@pytest.mark.parametrize("lr", [1.0, 1e-3])
def test_a_step_that_overwrote_the_net_is_critical_where_nothing_came_of_it(lr, tmp_path):
    model = net(16, 64, 64, 4)
    diagnosis = train(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr), steps=80)
    found = [f for f in diagnosis.findings if f.verdict == "unstable"]
    assert [f.severity for f in found] == (["critical"] if lr == 1.0 else [])
