"""Weights that are computed, and layers that are replaced, added or removed in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import gradscope


def x_of(n: int = 16, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def plain(depth: int = 5, width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width, bias=False), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 2)).double()


class Symmetric(nn.Module):
    """A parametrization without parameters of its own."""

    def forward(self, w: Tensor) -> Tensor:
        return (w + w.T) / 2

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


def symmetric(module: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", Symmetric())
    return module


KINDS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "one's own": symmetric,
    "old weight norm": nn.utils.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_computed_weights_is_that_layer(kind, tmp_path):
    model, twin = plain(), plain()
    for layer in (*model, *twin):
        if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
            torch.manual_seed(0)
            KINDS[kind](layer)
    twin.load_state_dict(model.state_dict())
    outputs: dict[str, Tensor] = {}
    for name, module in twin.named_children():
        module.register_forward_hook(lambda m, a, out, name=name: outputs.__setitem__(name, out))
    loss = twin(x_of()).square().sum()
    signals = torch.autograd.grad(loss, list(outputs.values()), retain_graph=True)
    loss.backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(x_of()).square().sum().backward()
        optimizer.step()
    run = scope.run
    assert run.notes == []
    assert run.layers.name.tolist() == [str(i) for i in range(11)]
    assert run.layers.kind.tolist() == ["Linear", "ReLU"] * 5 + ["Linear"]
    assert run.layers.depth.iloc[-1] == 6
    frame = run.frame().set_index("name")
    for name, signal in zip(outputs, signals, strict=True):
        assert frame.signal_norm[name] == pytest.approx(signal.norm().item(), rel=1e-9)
        grads = [p.grad for p in twin.get_submodule(name).parameters()]
        if grads:
            norm = torch.cat([g.flatten() for g in grads]).norm().item()
            assert frame.grad_norm[name] == pytest.approx(norm, rel=1e-9), name


def test_the_same_function_has_the_same_verdict_parametrized(tmp_path):
    def decades(path, wrap):
        torch.manual_seed(0)
        layers = [m for _ in range(14) for m in (wrap(nn.Linear(32, 32, bias=False)), nn.ReLU())]
        model = nn.Sequential(*layers, nn.Linear(32, 2)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        with gradscope.watch(model, path) as scope:
            for _ in range(3):
                optimizer.zero_grad()
                model(x_of(16, 32)).square().sum().backward()
                optimizer.step()
        return gradscope.diagnose(scope.run)

    bare = decades(tmp_path / "plain", lambda m: m)
    normed = decades(tmp_path / "normed", parametrizations.weight_norm)
    assert normed.verdict == bare.verdict == "vanishing"
    assert normed.decades == pytest.approx(bare.decades, abs=0.01)


def train(model: nn.Module, steps: int, optimizer=None) -> list[list[float]]:
    """Return the norm of the gradient at the output of the last layer, and of its weight."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(x_of())
        out.square().sum().backward()
        norms.append([(2 * out).norm().item(), model[-1].weight.grad.norm().item()])
        optimizer.step()
    return norms


@pytest.mark.parametrize("kept", [False, True], ids=["gone", "kept by somebody"])
@pytest.mark.parametrize("outputs", [2, 3])
def test_a_replaced_layer_is_read_under_its_name(outputs, kept, tmp_path):
    model = plain(2)
    with gradscope.watch(model, tmp_path / "run") as scope:
        expected = train(model, 3)
        old = model[-1] if kept else None
        model[len(model) - 1] = nn.Linear(6, outputs).double()
        with pytest.warns(gradscope.GradscopeWarning, match="layer '4': replaced before step 3"):
            expected += train(model, 3)
    run = scope.run
    assert run.layers.name.tolist() == [str(i) for i in range(5)]
    assert run.layers.parameters.iloc[-1] == 7 * outputs
    signal = run.matrix("signal_norm")[1][:, -1]
    grad = run.matrix("grad_norm")[1][:, -1]
    np.testing.assert_allclose(signal, [s for s, _ in expected], rtol=1e-9)
    assert np.isfinite(grad).all()
    assert old is None or not old._forward_hooks


def test_layers_may_be_added_and_removed(tmp_path):
    model = plain(2)
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 2)
        model.insert(4, nn.Linear(6, 6).double())  # what was '4' is '5' now
        train(model, 2)
        del model[0]  # and '4'
        train(model, 2)
    run = scope.run
    assert run.notes == [] and len(run.steps) == 6
    assert run.layers.name.tolist() == ["0 (removed)", "0", "1", "2", "4", "3"]
    read = run.matrix("signal_norm")[1]
    assert np.isfinite(read).tolist() == [
        *[[True, True, True, True, True, False]] * 2,
        *[[True] * 6] * 2,
        *[[False, False, True, True, True, True]] * 2,  # a ReLU on the input gets no gradient
    ]


def test_a_layer_that_took_another_s_place_keeps_its_name_as_others_come(tmp_path):
    model = plain(2)
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 2)
        for _ in range(2):
            model[0] = nn.Linear(6, 6).double()
            with pytest.warns(gradscope.GradscopeWarning, match=r"layer '0': replaced before"):
                train(model, 2)
            model.insert(4, nn.Linear(6, 6).double())
            train(model, 2)
    run = scope.run
    assert not run.layers.name.str.contains("removed").any()
    assert run.layers.name.iloc[0] == "0" and run.layers.name.is_unique
    assert np.isfinite(run.matrix("grad_norm")[1][:, 0]).all()


class Gained(nn.Module):
    """What is no layer, until it is given a parameter."""

    def __init__(self, at_step, within):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.at_step, self.within, self.step = nn.Linear(6, 6), at_step, within, 0
        self.double()

    def gain(self):
        if self.step == self.at_step:
            self.scale = nn.Parameter(torch.full((6,), 2.0, dtype=torch.float64))

    def forward(self, x):
        if self.within:
            self.gain()
        x = torch.relu(self.fc(x))
        return x * self.scale if hasattr(self, "scale") else x


@pytest.mark.parametrize("at_step", [0, 3])
@pytest.mark.parametrize("within", [False, True], ids=["between steps", "in a forward"])
@pytest.mark.parametrize("is_root", [False, True])
def test_a_module_that_is_given_its_first_parameter_is_a_layer_from_then_on(
    at_step, within, is_root, tmp_path
):
    part = Gained(at_step, within)
    model = part if is_root else nn.Sequential(nn.Linear(6, 6).double(), part)
    name = "(root)" if is_root else "1"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients, signals = {}, {}
    with gradscope.watch(model, tmp_path / "run") as scope:
        for part.step in range(8):
            if not within:
                part.gain()
            out = model(x_of())
            out.retain_grad()
            if part.step == at_step:
                optimizer.add_param_group({"params": [part.scale]})
            optimizer.zero_grad()
            out.square().mean().backward()
            if part.step >= at_step:
                gradients[part.step] = part.scale.grad.norm().item()
                signals[part.step] = out.grad.norm().item()
            optimizer.step()
    assert scope.run.notes == [] and scope.run.steps.step.tolist() == list(range(8))
    frame = scope.run.frame()
    read = frame[frame.name == name].set_index("step")
    own = read.grad_norm.dropna()
    assert own.to_dict() == pytest.approx(gradients, rel=1e-9)
    seen = read.signal_norm.dropna().to_dict()
    assert seen == pytest.approx({step: signals[step] for step in seen}, rel=1e-9)
    # not of the forward that it was made in, nor of one that was followed before it was
    assert seen.keys() >= set(range(at_step + (within or at_step == 0), 8))
