"""Activation functions called without a module, found on the graph, against autograd."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.measure.activations import steepest

METRICS = ["derivative_mean", "zero_fraction", "saturated_fraction"]

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
    "celu": (lambda x: F.celu(x, 0.7), nn.CELU(0.7)),
    "celu in place": (lambda x: F.celu_(x, 0.7), nn.CELU(0.7)),
    "elu": (lambda x: F.elu(x, 1.5), nn.ELU(1.5)),
    "elu in place": (lambda x: F.elu_(x, 1.5), nn.ELU(1.5)),
    "gelu": (F.gelu, nn.GELU()),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")),
    "hardshrink": (lambda x: F.hardshrink(x, 0.3), nn.Hardshrink(0.3)),
    "hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid()),
    "hardswish": (F.hardswish, nn.Hardswish()),
    "hardtanh": (lambda x: F.hardtanh(x, -0.4, 0.2), nn.Hardtanh(-0.4, 0.2)),
    "hardtanh in place": (lambda x: F.hardtanh_(x, -0.4, 0.2), nn.Hardtanh(-0.4, 0.2)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.3), nn.LeakyReLU(0.3)),
    "leaky_relu in place": (lambda x: F.leaky_relu_(x, 0.3), nn.LeakyReLU(0.3)),
    "logsigmoid": (F.logsigmoid, nn.LogSigmoid()),
    "mish": (F.mish, nn.Mish()),
    "relu": (F.relu, nn.ReLU()),
    "relu in place": (F.relu_, nn.ReLU()),
    "relu6": (F.relu6, nn.ReLU6()),
    "selu": (F.selu, nn.SELU()),
    "sigmoid": (torch.sigmoid, nn.Sigmoid()),
    "sigmoid in place": (torch.sigmoid_, nn.Sigmoid()),
    "silu": (F.silu, nn.SiLU()),
    "silu in place": (lambda x: F.silu(x, inplace=True), nn.SiLU()),
    "softplus": (lambda x: F.softplus(x, 3.0), nn.Softplus(3.0)),
    "softshrink": (lambda x: F.softshrink(x, 0.3), nn.Softshrink(0.3)),
    "softsign": (F.softsign, nn.Softsign()),
    "tanh": (torch.tanh, nn.Tanh()),
    "tanh in place": (torch.tanh_, nn.Tanh()),
}


class Net(nn.Module):
    """A layer, what is made of its output, and an output layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 40), nn.Linear(40, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def inputs() -> Tensor:
    torch.manual_seed(1)
    return 2 * torch.randn(50, 6)


def recorded(path: Path, model: nn.Module) -> dict[str, dict[str, float]]:
    """Return the readings of activations of each layer in one recorded step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, path) as scope:
        for _ in range(2):  # the second step goes by the plan of the first
            optimizer.zero_grad()
            model(inputs()).square().mean().backward()
            optimizer.step()
    frame = gradscope.load(path).frame()
    assert scope.run.notes == []
    return frame[frame.step == 0].set_index("name")[METRICS].to_dict("index")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_read_at_the_layer_whose_output_it_is_given(
    tmp_path: Path, name: str
) -> None:
    function, module = FUNCTIONS[name]
    model = Net(function)
    z = model.first(inputs()).detach().requires_grad_()
    output = module(z)
    (slope,) = torch.autograd.grad(output.sum(), z)
    readings = recorded(tmp_path / "run", model)
    assert readings["first"] == {
        "derivative_mean": pytest.approx(slope.abs().mean().item(), rel=1e-5),
        "zero_fraction": pytest.approx((output == 0).float().mean().item(), abs=1e-6),
        "saturated_fraction": pytest.approx(
            (slope.abs() < 0.1 * steepest(module)).float().mean().item(), abs=1e-6
        ),
    }
    assert np.isnan(list(readings["last"].values())).all()


def test_a_function_reads_as_its_module_does_at_every_step(tmp_path: Path) -> None:
    frames = []
    for name, activation in (("function", torch.tanh), ("module", nn.Tanh())):
        model = Net(activation)
        recorded(tmp_path / name, model)
        frames.append(gradscope.load(tmp_path / name).frame())
    functional, modular = (f[f.derivative_mean.notna()][["step", *METRICS]] for f in frames)
    assert functional["step"].tolist() == [0, 1]
    np.testing.assert_array_equal(functional.to_numpy(), modular.to_numpy())


def test_functions_that_change_places_are_read_each_at_its_own_layer(tmp_path: Path) -> None:
    class Swapping(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.other, self.last = nn.Linear(6, 40), nn.Linear(6, 40), nn.Linear(40, 2)
            self.off: list[list[float]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            swapped = self.calls % 3 == 0
            first, second = (self.other, self.one) if swapped else (self.one, self.other)
            on = F.relu(first(x))
            self.off.append([0.0, 0.0])
            self.off[-1][swapped] = (on == 0).float().mean().item()
            return self.last(on + torch.tanh(second(x)))

    model = Swapping()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(9):
            optimizer.zero_grad()
            model(torch.randn(50, 6)).square().mean().backward()
            optimizer.step()
    read = scope.run.frame().pivot(index="step", columns="name", values="zero_fraction")
    np.testing.assert_allclose(read[["one", "other"]], model.off, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(x),
        lambda x: F.relu(x + 1),
        lambda x: F.softmax(x, -1),
        lambda x: F.relu(x[:, :20]).repeat(1, 2),
        lambda x: torch.tanh(x).detach() + x,
        lambda x: x / (1 + x.square()),
        F.tanhshrink,
    ],
    ids=["swish by hand", "sum", "softmax", "part", "detached", "division", "tanhshrink"],
)
def test_what_is_no_activation_of_a_layers_output_is_left_out(
    tmp_path: Path, function: Callable[[Tensor], Tensor]
) -> None:
    readings = recorded(tmp_path / "run", Net(function))
    assert np.isnan([list(row.values()) for row in readings.values()]).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.relu(x.view(50, 8, 5)).flatten(1),
        lambda x: F.relu(x.t()).t(),
        lambda x: F.relu(x.unsqueeze(0).clone())[0],
    ],
    ids=["view", "transposed", "cloned"],
)
def test_a_function_on_a_view_belongs_to_the_layer(
    tmp_path: Path, function: Callable[[Tensor], Tensor]
) -> None:
    model = Net(function)
    on = (model.first(inputs()) > 0).float().mean().item()
    readings = recorded(tmp_path / "run", model)
    assert readings["first"]["derivative_mean"] == pytest.approx(on, rel=1e-5)


def test_several_functions_of_one_output_are_averaged(tmp_path: Path) -> None:
    model = Net(lambda x: torch.tanh(x) + torch.sigmoid(x))
    z = model.first(inputs()).detach()
    slopes = torch.cat([1 - torch.tanh(z) ** 2, torch.sigmoid(z) * (1 - torch.sigmoid(z))])
    readings = recorded(tmp_path / "run", model)
    assert readings["first"]["derivative_mean"] == pytest.approx(slopes.mean().item(), rel=1e-5)


def test_a_result_that_was_changed_afterwards_is_left_to_the_backward(tmp_path: Path) -> None:
    model = Net(lambda x: torch.tanh(x).add_(1))
    with gradscope.watch(model, tmp_path / "run") as scope:
        output = model(inputs())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
        model.zero_grad()  # what it has left by then
        model.function = torch.tanh
        model(inputs()).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert scope.run.notes == []


def test_checkpointed_functions_are_not_computed_again_for_a_reading(tmp_path: Path) -> None:
    calls = []

    def tanh(x: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return torch.tanh(x)

    model = Net(lambda x: checkpoint(tanh, x, use_reentrant=False))
    readings = recorded(tmp_path / "run", model)
    assert len(calls) == 4  # two steps, forward and backward
    assert np.isnan(readings["first"]["derivative_mean"])


def test_gradients_are_the_same_with_and_without_a_recorder(tmp_path: Path) -> None:
    gradients = []
    for watched in (False, True):
        model = Net(F.relu_)
        if watched:
            recorded(tmp_path / "run", model)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                model(inputs()).square().mean().backward()
                optimizer.step()
        gradients.append([p.grad for p in model.parameters()])
    for plain, seen in zip(*gradients, strict=True):
        assert torch.equal(plain, seen)


def test_functions_that_are_all_off_are_found_dead(tmp_path: Path) -> None:
    model = Net(F.relu)
    with torch.no_grad():
        model.first.bias.fill_(-100.0)
    recorded(tmp_path / "run", model)
    diagnosis = gradscope.diagnose(gradscope.load(tmp_path / "run"))
    assert diagnosis.verdict == "dead"
    assert diagnosis.findings[0].layers == ("first",)


class Deep(nn.Module):
    """Six hidden layers and an output layer, with activations as modules or as functions."""

    def __init__(self, functional: bool, gain: float) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.hidden = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))
        self.activations = nn.ModuleList(nn.Tanh() for _ in range(0 if functional else 6))
        self.last = nn.Linear(6, 2)
        self.functional = functional
        for layer in self.hidden:
            nn.init.normal_(layer.weight, std=gain)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.hidden):
            x = torch.tanh(layer(x)) if self.functional else self.activations[i](layer(x))
        return self.last(x)


@pytest.mark.parametrize(("gain", "verdict"), [(0.15, "vanishing"), (3.0, "saturated")])
def test_a_net_of_functions_is_diagnosed_as_the_same_net_of_modules(
    tmp_path: Path, gain: float, verdict: str
) -> None:
    diagnoses, sums = [], []
    for functional in (False, True):
        path = tmp_path / str(functional)
        recorded(path, Deep(functional, gain))
        run = gradscope.load(path)
        diagnoses.append(gradscope.diagnose(run))
        ledger = gradscope.ledger(run)
        sums.append(ledger[ledger["on_path"]].groupby("group")["gain"].sum())
        assert ledger["gain"].iloc[-1] == pytest.approx(0, abs=1e-5)  # the remainder
    modular, functional = diagnoses
    assert modular.verdict == functional.verdict == verdict
    assert functional.decades == pytest.approx(modular.decades, abs=1e-5)
    # modules are layers, functions are none: the same layer has another number
    functional_remedies, modular_remedies = (
        [re.sub(r"layer \d+ · ", "layer ", remedy) for remedy in diagnosis.findings[0].remedies]
        for diagnosis in (functional, modular)
    )
    assert functional_remedies == modular_remedies
    assert sums[1].to_dict() == pytest.approx(sums[0].to_dict(), abs=1e-5)
    assert run.functions == dict.fromkeys(range(6), "Tanh")


def test_a_gate_is_not_read_as_an_activation(tmp_path: Path) -> None:
    class Highway(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            nn.init.constant_(self.gate.bias, -9.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            gate = torch.sigmoid(self.gate(x))
            return gate * torch.tanh(self.fc(x)) + (1 - gate) * x

    model = Highway()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    read = scope.run.frame().set_index("name").saturated_fraction
    assert read.isna()["gate"] and read["fc"] < 1


def test_layers_that_change_places_in_the_graph_keep_their_readings(tmp_path):
    """Called in the same order, so that only where their outputs go tells the structures apart."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.turn = nn.Linear(4, 8), nn.Linear(4, 8), 0

        def forward(self, x):
            one, other = self.a(x), self.b(x)
            first, second = (other, one) if self.turn % 2 else (one, other)
            self.turn += 1
            y = torch.relu(first) + 3 * torch.tanh(second)
            one.register_hook(lambda g: signals.append(g.norm().item()))
            zeros.append(((first <= 0).float().mean().item(), self.turn % 2))
            return y

    signals, zeros = [], []
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    frame = scope.run.frame()
    read = {name: frame[frame.name == name].reset_index() for name in "ab"}
    np.testing.assert_allclose(read["a"].signal_norm, signals, rtol=1e-5)
    for step, (share, is_a) in enumerate(zeros):
        of_relu, of_tanh = ("a", "b") if is_a else ("b", "a")
        assert read[of_relu].zero_fraction[step] == pytest.approx(share, rel=1e-5)
        assert read[of_tanh].zero_fraction[step] == 0
