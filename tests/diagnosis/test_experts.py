"""Experts: told by the tokens that a router sends to each, not by how often each is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from small_trainings import sgd, the, train

STEPS = 40


class Mixture(nn.Module):
    """A router that sends tokens to experts as `shares` says, to each one at least; `top` each."""

    def __init__(self, shares: list[float], name: str = "experts", top: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.head = nn.Linear(16, len(shares)), nn.Linear(16, 4)
        self.add_module(name, nn.ModuleList(nn.Linear(16, 16) for _ in shares))
        self.name, self.shares, self.top = name, torch.tensor(shares), top
        self.least = 1

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(8, 1)  # tokens
        weights = self.router(x).softmax(-1)
        out = x
        for _ in range(self.top):
            to = torch.multinomial(self.shares, len(x), replacement=True)
            to[: len(self.shares) * self.least] = torch.arange(len(self.shares) * self.least)
            for number, expert in enumerate(self.get_submodule(self.name)):
                rows = (to == number).nonzero()[:, 0]
                out = out.index_add(0, rows, weights[rows, number, None] * expert(x[rows]))
        return self.head(out.unflatten(0, (8, -1)).mean(0))


def diagnosed(path, model, steps=STEPS):
    return train(path, model, sgd(model, 1e-2), steps=steps)


def test_one_that_gets_nearly_all_tokens_is_told_though_all_are_called_at_each_step(tmp_path):
    finding = the(diagnosed(tmp_path / "run", Mixture([1e-3, 1.0, 1e-3, 1e-3])), "experts")
    assert finding.severity == "warning" and finding.layers == (
        "experts.0",
        "experts.2",
        "experts.3",
    )
    assert "xpert 1 of 'experts' gets 9" in finding.sentence and "balances" in finding.remedies[0]
    assert finding.evidence["largest_token_share"] > 0.95


def test_that_no_gradient_reaches_those_that_get_no_token_is_no_finding_of_its_own(tmp_path):
    model = Mixture([0.0, 1.0, 0.0, 0.0])
    model.least = 0
    diagnosis = diagnosed(tmp_path / "run", model)
    assert diagnosis.verdict == "experts"
    assert "disconnected" not in {finding.verdict for finding in diagnosis.findings}


def test_some_that_get_them_all_are_told_by_number(tmp_path):
    finding = the(diagnosed(tmp_path / "run", Mixture([0.5, 0.5] + [1e-4] * 6)), "experts")
    assert "xperts 0, 1 of" in finding.sentence and len(finding.layers) == 6


def test_parts_of_a_list_that_a_router_sends_tokens_to_are_experts_by_any_name(tmp_path):
    finding = the(diagnosed(tmp_path / "run", Mixture([1e-3, 1e-3, 1.0], "parts")), "experts")
    assert finding.layers == ("parts.0", "parts.1")


@pytest.mark.parametrize(
    ("shares", "top"), [([1.0] * 4, 1), ([1.0] * 8, 2), ([8, 4, 2, 1], 1), ([8, 1], 1)]
)
@pytest.mark.parametrize("name", ["experts", "parts"])
def test_shares_that_merely_differ_are_healthy(shares, top, name, tmp_path):
    diagnosis = diagnosed(tmp_path / "run", Mixture([float(s) for s in shares], name, top))
    assert "experts" not in {finding.verdict for finding in diagnosis.findings}


def test_a_few_steps_are_no_collapse(tmp_path):
    diagnosis = diagnosed(tmp_path / "run", Mixture([1e-3, 1.0, 1e-3, 1e-3]), steps=8)
    assert diagnosis.verdict != "experts"


def test_layers_of_a_stack_are_no_experts(tmp_path):
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gates = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            for number, gate in enumerate(self.gates):
                x = x + gate(x[: 8 if number else len(x)]).mean(0)
            return self.head(x)

    diagnosis = diagnosed(tmp_path / "run", Stack())
    assert "experts" not in {finding.verdict for finding in diagnosis.findings}
