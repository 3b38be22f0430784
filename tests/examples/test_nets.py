"""The nets of the examples."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("nets")


def test_plain_and_residual_start_from_the_same_weights(nets: ModuleType) -> None:
    states = []
    for build in (nets.plain, nets.residual):
        torch.manual_seed(0)
        states.append([p.detach() for p in build(10).parameters()])
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("depth", [4, 8, 50])
def test_depth_counts_the_layers_with_weights(nets: ModuleType, depth: int) -> None:
    for build in (nets.plain, nets.residual):
        linears = [m for m in build(depth).modules() if isinstance(m, nn.Linear)]
        assert len(linears) == depth


def test_a_depth_that_does_not_fit_its_blocks_is_refused(nets: ModuleType) -> None:
    with pytest.raises(ValueError, match="depth 9"):
        nets.residual(9)


def test_residual_with_a_silent_branch_is_the_identity(nets: ModuleType) -> None:
    branch = nn.Linear(8, 8)
    nn.init.zeros_(branch.weight)
    nn.init.zeros_(branch.bias)
    x = torch.randn(3, 8)
    assert torch.equal(nets.Residual(branch)(x), x)


def test_a_highway_with_a_closed_gate_carries_its_input(nets: ModuleType) -> None:
    x = torch.randn(3, 8)
    torch.testing.assert_close(nets.Highway(8, gate_bias=-30)(x), x)


@pytest.mark.parametrize("branch", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcuts", [True, False])
def test_conv_nets_halve_the_image_with_each_stage(
    nets: ModuleType, branch: str, shortcuts: bool
) -> None:
    model = nets.conv_net(getattr(nets, branch), 2, (8, 16), shortcuts=shortcuts)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    projections = [
        m for m in model.modules() if isinstance(m, nets.Residual) and m.shortcut is not None
    ]
    assert len(projections) == shortcuts
