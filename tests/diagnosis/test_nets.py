"""The diagnosis of real trainings against plain autograd, and what must not change it."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
import zoo
from zoo import Spec

STEPS = 20
FRESH = [zoo.random_spec(random.Random(seed)) for seed in range(5000, 5040)]
"""Nets of no part in choosing the rules."""


def diagnosed(path: Path, spec: Spec) -> gradscope.Diagnosis:
    """Watch the net of `spec` at its initial weights for some batches."""
    torch.manual_seed(spec.seed)
    model = zoo.Net(spec)
    # slow, so that the net stays what it is at first, but not so slow that it does not move
    rate = 1e-7 if spec.init == "large" else 1e-4
    rate /= spec.scale * (spec.batch if spec.loss == "sum" else 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with gradscope.watch(model, run=path):
        for _ in range(STEPS):
            x, target = zoo.batch_of(spec)
            optimizer.zero_grad()
            zoo.loss_of(spec, model(x), target).backward()
            optimizer.step()
    return gradscope.diagnose(gradscope.load(path))


def by_autograd(spec: Spec) -> str:
    """Return what |D| >= 2 says of the same net and batches."""
    torch.manual_seed(spec.seed)
    model = zoo.Net(spec)
    decades = [zoo.decades_by_autograd(model, spec, *zoo.batch_of(spec)) for _ in range(STEPS)]
    middle = statistics.median(decades)
    return "vanishing" if middle <= -2 else "exploding" if middle >= 2 else "neither"


def flow(verdict: str) -> str:
    return verdict if verdict in ("vanishing", "exploding") else "neither"


@pytest.mark.slow
def test_verdicts_are_those_of_plain_autograd(tmp_path: Path) -> None:
    pairs = [
        (by_autograd(spec), flow(diagnosed(tmp_path / str(i), spec).verdict))
        for i, spec in enumerate(FRESH)
    ]
    expected = [want for want, _ in pairs]
    assert min(expected.count("vanishing"), expected.count("neither")) >= 5
    assert [got for want, got in pairs if want != "vanishing"].count("vanishing") == 0
    assert sum(want == got for want, got in pairs) >= 0.95 * len(pairs)


BASE = Spec("plain", 12, 64, "tanh", False, "none", "default", "cross-entropy", 64, 1.0, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "verdict"),
    [
        (BASE, "vanishing"),
        (replace(BASE, form="pre-activation"), "healthy"),
        (replace(BASE, init="xavier"), "healthy"),
        (replace(BASE, activation="linear", init="large"), "exploding"),
    ],
    ids=["vanishing", "residual", "xavier", "exploding"],
)
def test_scale_width_batch_and_reduction_do_not_change_a_verdict(
    tmp_path: Path, base: Spec, verdict: str
) -> None:
    variants = [
        base,
        replace(base, scale=1024.0),
        replace(base, scale=1 / 1024),
        replace(base, width=128),
        replace(base, width=32),
        replace(base, batch=256),
        replace(base, batch=16),
        replace(base, loss="sum"),
        replace(base, functional=True),
        replace(base, seed=99),
    ]
    verdicts = [diagnosed(tmp_path / str(i), spec).verdict for i, spec in enumerate(variants)]
    assert verdicts == [verdict] * len(variants)


def train(
    path: Path, model: nn.Module, steps: int = 30, lr: float = 0.01, width: int = 32
) -> gradscope.Run:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with gradscope.watch(model, run=path):
        for _ in range(steps):
            x, target = torch.randn(64, width), torch.randint(10, (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
    return gradscope.load(path)


def sigmoid_net(depth: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def test_the_ledger_of_a_sigmoid_net_adds_up_and_names_sigmoids_and_weights(tmp_path: Path) -> None:
    run = train(tmp_path / "r", sigmoid_net(8))
    diagnosis = gradscope.diagnose(run)
    frame = gradscope.ledger(run)
    path = frame[frame["on_path"]]
    assert path["gain"].sum() == pytest.approx(diagnosis.decades, abs=1e-4)
    assert frame["gain"].iloc[-1] == pytest.approx(0, abs=1e-4)
    activations = path[path["group"] == "activation"]["gain"]
    assert (activations <= -0.59).all()  # log10 of 1/4 is -0.602
    assert "activations (Sigmoid)" in diagnosis.summary
    assert any("Sigmoid" in remedy for f in diagnosis.findings for remedy in f.remedies)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Linear(32, 10)], "layer 0 · 0 (Linear) is the only layer"),
        (
            [nn.Linear(32, 9), nn.Tanh(), nn.Linear(9, 10)],
            "layer 0 · 0 (Linear) is the only hidden layer",
        ),
    ],
    ids=["one layer", "two layers"],
)
def test_a_layer_is_not_compared_with_itself(layers, expected, tmp_path: Path) -> None:
    run = train(tmp_path / "run", nn.Sequential(*layers))
    assert expected in gradscope.diagnose(run).summary


def test_units_pushed_below_zero_are_dead(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    nn.init.constant_(model[2].bias, -100)
    diagnosis = gradscope.diagnose(train(tmp_path / "r", model))
    assert diagnosis.verdict == "dead"
    assert diagnosis.findings[0].layers == ("3",)


class Cut(nn.Module):
    """A net whose author forgot a detach()."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.c(torch.tanh(self.b(0 * h + h.detach())))


def test_a_layer_whose_gradient_is_cut_is_disconnected(tmp_path: Path) -> None:
    diagnosis = gradscope.diagnose(train(tmp_path / "r", Cut()))
    assert diagnosis.verdict == "disconnected"
    assert diagnosis.findings[0].layers == ("a",)


def test_a_deep_plain_net_that_underflows_vanishes(tmp_path: Path) -> None:
    assert gradscope.diagnose(train(tmp_path / "r", sigmoid_net(60))).verdict == "vanishing"


def test_large_weights_saturate_tanhs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    nn.init.normal_(model[0].weight, std=5)
    diagnosis = gradscope.diagnose(train(tmp_path / "r", model))
    assert diagnosis.verdict == "saturated"


def test_a_learning_rate_that_is_far_too_large_explodes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    diagnosis = gradscope.diagnose(train(tmp_path / "r", model, lr=1e30))
    assert diagnosis.verdict == diagnosis.end == "exploding"
    assert "not a number" in diagnosis.summary


def test_branches_that_start_at_zero_are_no_fault(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
            nn.init.zeros_(self.b.weight)
            nn.init.zeros_(self.b.bias)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(torch.relu(self.a(x)))

    model = nn.Sequential(nn.Linear(32, 32), *(Block() for _ in range(10)), nn.Linear(32, 10))
    diagnosis = gradscope.diagnose(train(tmp_path / "r", model, steps=1))
    assert diagnosis.verdict == "healthy"
    assert diagnosis.decades == pytest.approx(0, abs=1e-5)  # each block is the identity


def test_blocks_that_own_a_layer_scale_are_healthy(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
            self.scale = nn.Parameter(1e-6 * torch.ones(1, 32))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.b(torch.relu(self.a(x)))

    model = nn.Sequential(nn.Linear(32, 32), *(Block() for _ in range(10)), nn.Linear(32, 10))
    diagnosis = gradscope.diagnose(train(tmp_path / "r", model))
    assert diagnosis.verdict == "healthy"
    assert diagnosis.decades == pytest.approx(0, abs=1e-3)  # each block is nearly the identity


def test_a_transformer_is_healthy_and_an_attention_s_parts_are_not_missed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(nn.Unflatten(1, (4, 8)), nn.Linear(8, 32), body, nn.Flatten())
    diagnosis = gradscope.diagnose(train(tmp_path / "r", nn.Sequential(model, nn.Linear(128, 10))))
    assert diagnosis.verdict == "healthy"
    assert not [note for note in diagnosis.notes if "No signal" in note]


def test_the_attention_of_a_post_norm_transformer_is_no_plain_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0, batch_first=True)
    body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(nn.Unflatten(1, (4, 8)), nn.Linear(8, 32), body, nn.Flatten())
    diagnosis = gradscope.diagnose(train(tmp_path / "r", nn.Sequential(model, nn.Linear(128, 10))))
    assert "reparameterised" not in {finding.verdict for finding in diagnosis.findings}


def test_linear_one_layer_blocks_are_told_to_be_plain_layers(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self, activation: bool) -> None:
            super().__init__()
            self.fc, self.activation = nn.Linear(32, 32), activation

        def forward(self, x: Tensor) -> Tensor:
            return x + (torch.tanh(self.fc(x)) if self.activation else self.fc(x))

    for activation in (False, True):
        blocks = [Block(activation) for _ in range(4)]
        run = train(tmp_path / str(activation), nn.Sequential(*blocks, nn.Linear(32, 10)))
        found = {finding.verdict for finding in gradscope.diagnose(run).findings}
        assert ("reparameterised" in found) is not activation
