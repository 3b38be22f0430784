"""What goes wrong between input and output: vanishing, gates, branches, time, units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from small_trainings import Last, net, sgd, the, train


@pytest.mark.parametrize(
    ("optimizer", "compensated"),
    [
        (lambda p: torch.optim.AdamW(p, 1e-3), True),
        (lambda p: torch.optim.SGD(p, 1e-2), False),
        (lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9), False),
    ],
    ids=["AdamW", "SGD", "momentum"],
)
def test_vanishing_that_the_optimizer_makes_up_for_is_for_information(
    optimizer, compensated, tmp_path
):
    model = net(16, *[32] * 9, 4)
    diagnosis = train(tmp_path / "run", model, optimizer(model.parameters()), steps=10)
    finding = the(diagnosis, "vanishing")
    assert -4 < finding.evidence["decades"] < -2
    assert ("compensated by the optimizer" in finding.sentence) is compensated
    assert (diagnosis.verdict == "healthy") is compensated


def test_gates_may_be_saturated(tmp_path):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.gate, self.open = nn.Linear(16, 16), nn.Linear(16, 16), nn.Sigmoid()
            nn.init.constant_(self.gate.bias, 8.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).relu() * self.open(self.gate(x))

    model = nn.Sequential(Gated(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    assert train(tmp_path / "run", model, sgd(model)).verdict == "healthy"
    model = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Linear(16, 4))
    nn.init.constant_(model[0].bias, 8.0)
    assert "saturated" in train(tmp_path / "flat", model, sgd(model)).verdicts


class Block(nn.Module):
    def __init__(self, start: str) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(16, 16), nn.Linear(16, 16), nn.ReLU()
        self.scale = nn.Parameter(torch.zeros(1)) if start == "rezero" else 1.0
        if start == "zero":
            nn.init.zeros_(self.b.weight)
            nn.init.zeros_(self.b.bias)
        self.drop = 0.5 if start == "stochastic depth" else 0.0

    def forward(self, x: Tensor) -> Tensor:
        if torch.rand(()) < self.drop:
            return x
        return x + self.scale * self.b(self.act(self.a(x)))


@pytest.mark.parametrize("steps", [1, 4, 24])
@pytest.mark.parametrize("start", ["zero", "rezero", "stochastic depth"])
def test_branches_that_start_at_zero_or_are_left_out_are_no_fault(start, steps, tmp_path):
    model = nn.Sequential(nn.Linear(16, 16), *(Block(start) for _ in range(5)), nn.Linear(16, 4))
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01), steps=steps)
    assert diagnosis.verdict == "healthy"


def test_a_head_that_starts_at_zero_is_no_fault(tmp_path):
    model = net(16, 32, 32, 4)
    nn.init.zeros_(model[4].weight)
    for steps in (1, 8):
        diagnosis = train(tmp_path / str(steps), model, sgd(model), steps=steps)
        assert diagnosis.verdict.split(":")[0] in ("healthy", "cannot tell")


@pytest.mark.parametrize(("length", "found"), [(6, False), (60, True)])
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.LSTM, nn.GRU, nn.RNN])
def test_a_gradient_that_is_lost_over_time_steps_is_told(cell, length, found, tmp_path):
    torch.manual_seed(0)
    whole = {"batch_first": True} if issubclass(cell, nn.RNNBase) else {}
    model = Last(cell(4, 8, **whole), length)
    diagnosis = train(tmp_path / "run", model, sgd(model, 1e-3), steps=4)
    assert diagnosis.flow == ("vanishing-through-time" if found else "healthy")
    if found:
        finding = the(diagnosis, "vanishing-through-time")
        assert finding.layers == ("rnn",) and "the first time step gets" in finding.sentence
        assert ("an LSTM" if cell in (nn.RNNCell, nn.RNN) else "gate's bias") in finding.remedies[0]


class Cut(nn.Module):
    """A cell whose state loses its graph, or does not, between two calls."""

    def __init__(self, cell, how):
        super().__init__()
        self.cell, self.head, self.how = cell, nn.Linear(8, 4), how

    def forward(self, x: Tensor) -> Tensor:
        new = state = None
        for t in range(12):
            new = self.cell(x, state)
            state = tuple(map(self.handed(t), new)) if isinstance(new, tuple) else None
            state = self.handed(t)(new) if state is None else state
        return self.head(new[0] if isinstance(new, tuple) else new)

    def handed(self, t: int):
        return {
            "as it is": lambda h: h,
            "detached": Tensor.detach,
            "data": lambda h: h.data,
            "detached now and then": lambda h: h.detach() if t % 4 == 3 else h,
            "a fresh one": torch.zeros_like,
        }[self.how]


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("as it is", False),
        ("detached", True),
        ("data", True),
        ("detached now and then", False),
        ("a fresh one", False),
    ],
)
def test_a_state_that_loses_its_graph_at_each_call_takes_no_gradient_back(
    cell, how, found, tmp_path
):
    model = Cut(cell(16, 8), how)
    run = tmp_path / "run"
    diagnosis = train(run, model, sgd(model, 1e-3), steps=4)
    assert gradscope.load(run).facts.get("cut_states", {}) == ({"cell": 12} if found else {})
    assert diagnosis.flow == ("vanishing-through-time" if found else "healthy")
    if found:
        finding = the(diagnosis, "vanishing-through-time")
        assert finding.layers == ("cell",) and "at each of its 12 calls" in finding.sentence
        assert "as the cell returned it" in finding.remedies[0]
        assert not any("time step to time step" in note for note in diagnosis.notes)


def test_a_last_step_that_the_loss_takes_nothing_of_is_no_explosion(tmp_path):
    class Early(nn.Module):
        """Predicts from all states but the last ones, as of a future that is known."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.reshape(len(x), 8, 4))[0][:, :6].mean(1))

    torch.manual_seed(0)
    model = Early()
    run = tmp_path / "run"
    diagnosis = train(run, model, sgd(model, 0.1), before=lambda _, x: x.repeat(1, 2))
    assert np.isposinf(gradscope.load(run).frame().time_decades.max())
    assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize(("off", "found"), [(28, True), (8, False)])
def test_a_layer_most_of_whose_units_are_off_is_dead(off, found, tmp_path):
    model = net(16, 32, 32, 4)
    with torch.no_grad():
        model[2].bias[:off] = -100
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01))
    assert ("dead" in diagnosis.verdicts) is found
    if found:
        finding = the(diagnosis, "dead")
        assert finding.layers == ("3",) and finding.evidence["dead_fraction"] >= off / 32
        assert "units of layer 3 · 3 (ReLU) are never on" in finding.sentence


def test_few_units_may_be_off_by_chance(tmp_path):
    model = net(16, 32, 4, 32, 4)
    with torch.no_grad():
        model[2].bias[:3] = -100
    assert train(tmp_path / "run", model, sgd(model, 0.01)).verdict == "healthy"


def test_a_sparse_layer_is_not_dead(tmp_path):
    model = net(16, 128, 4)
    with torch.no_grad():
        model[0].bias -= 0.8
    assert train(tmp_path / "run", model, sgd(model, 0.01)).verdict == "healthy"


def test_an_input_that_does_not_vary_has_collapsed_from_the_start(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(tmp_path / "run", model, sgd(model), before=lambda step, x: 0 * x + 1)
    finding = the(diagnosis, "collapsed")
    assert any("input varies" in remedy for remedy in finding.remedies)


def test_units_that_start_alike_and_stay_so_are_told(tmp_path):
    model = net(16, 32, 32, 32, 4)
    for layer in model[::2]:
        nn.init.constant_(layer.weight, 0.05)
        nn.init.constant_(layer.bias, 0.02)
    finding = the(train(tmp_path / "run", model, sgd(model, 1e-3)), "collapsed")
    assert finding.layers == ("0", "2", "4") and "random weights" in finding.remedies[0]


def test_channels_that_start_alike_are_told_though_places_differ(tmp_path):
    layers = [nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.Flatten()]
    model = nn.Sequential(nn.Unflatten(1, (1, 6, 6)), *layers, nn.Linear(24, 4))
    for parameter in model[:4].parameters():
        nn.init.constant_(parameter, 0.1)
    scaled = sgd(model, 0.01)
    diagnosis = train(tmp_path / "run", model, scaled, before=lambda _, x: x[:, :6].repeat(1, 6))
    found = the(diagnosis, "collapsed")
    assert found.layers == ("1", "3") and "stay one unit" in found.sentence


def test_centred_units_and_single_ones_are_not_alike(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32),
        nn.Linear(32, 1), nn.Tanh(), nn.Linear(1, 4),
    )  # fmt: skip
    assert "collapsed" not in train(tmp_path / "run", model, sgd(model, 1e-3)).verdicts


@pytest.mark.parametrize(("weight", "found"), [(0.0, False), (1000.0, True)])
def test_a_layer_that_a_penalty_empties_is_told(weight, found, tmp_path):
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.code = nn.Linear(16, 32), nn.Linear(32, 8)
            self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            code = self.code(self.encoder(x).relu())
            return self.decoder(code), code

    torch.manual_seed(0)
    model = Coded()
    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.Adam(model.parameters(), 1e-2),
        loss_of=lambda out, y: (
            nn.functional.cross_entropy(out[0], y) + weight * out[1].square().mean()
        ),
        steps=120,
    )
    assert ("collapsed" in diagnosis.verdicts) is found
    if found:
        assert the(diagnosis, "collapsed").layers == ("code",)


def test_what_was_far_too_large_may_become_small(tmp_path):
    model = net(16, 32, 32, 4)
    with torch.no_grad():
        model[0].weight *= 1e4
    optimizer = torch.optim.SGD(model.parameters(), 0.0)

    def shrink() -> None:
        with torch.no_grad():
            model[0].weight *= 0.9

    diagnosis = train(tmp_path / "run", model, optimizer, steps=60, after_backward=shrink)
    assert "collapsed" not in diagnosis.verdicts


def test_an_explosion_over_time_that_has_passed_is_told(tmp_path):
    torch.manual_seed(0)
    model = Last(nn.RNNCell(4, 8, nonlinearity="relu"), 40)
    nn.init.normal_(model.rnn.weight_hh, std=0.8)
    with torch.no_grad():
        model.rnn.weight_hh.abs_()

    def before(step: int, x: Tensor) -> Tensor:
        if step == 12:
            with torch.no_grad():
                model.rnn.weight_hh.mul_(0.22)
        return x

    diagnosis = train(tmp_path / "run", model, sgd(model, 0.0), steps=100, before=before)
    finding = the(diagnosis, "exploding-through-time")
    assert finding.severity == "warning" and finding.steps == (0, 9)
    assert "no longer so much after step 9" in finding.sentence


class Located(nn.Module):
    """A spatial transformer in small: where to look starts as what a bias says."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.read = net(16, 32, 4)
        nn.init.normal_(self.locate[2].bias)
        with torch.no_grad():
            self.locate[2].weight *= 0.0 if zero else 3e-3

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x * self.locate(x))


@pytest.mark.parametrize("zero", [True, False])
def test_weights_that_are_zero_behind_a_bias_start_at_zero(zero, tmp_path):
    torch.manual_seed(0)
    model = Located(zero)
    diagnosis = train(tmp_path / "run", model, torch.optim.SGD(model.parameters(), 1e-3))
    assert diagnosis.verdict == ("healthy" if zero else "vanishing")
    if zero:
        assert "started at zero" in the(diagnosis, "vanishing").sentence


def test_units_of_a_gate_may_be_off(tmp_path):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
            self.squeeze, self.act, self.excite = nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32)
            self.gate = nn.Sigmoid()
            self.squeeze.bias.data[:7] = -50

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x).relu()
            return self.head(x * self.gate(self.excite(self.act(self.squeeze(x)))))

    torch.manual_seed(0)
    model = Gated()
    assert train(tmp_path / "run", model, sgd(model, 1e-3)).verdict == "healthy"
