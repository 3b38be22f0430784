"""`output_elements`: how much each layer, and so each expert, had to do."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

import gradscope


class Experts(nn.Module):
    """Sends each token to one of its experts."""

    def __init__(self, to):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))
        self.to = to

    def forward(self, x):
        x = self.stem(x)
        out = x.new_zeros(len(x), 6)
        for number, expert in enumerate(self.experts):
            mine = self.to == number
            if mine.any():
                out[mine] = expert(x[mine])
        return out


def read(model, path, steps, micro_batches=1, before=lambda step: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, path) as scope:
        for step in range(steps):
            before(step)
            for _ in range(micro_batches):
                model(torch.randn(10, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    steps, values = scope.run.matrix("output_elements")
    return dict(zip(scope.run.layers.name, values.T.tolist(), strict=True))


def test_the_share_of_an_expert_is_that_of_its_tokens(tmp_path):
    found = read(Experts(torch.tensor([0] * 7 + [1] * 3)), tmp_path / "run", 2, micro_batches=3)
    assert found["stem"] == [3 * 10 * 4] * 2
    assert found["experts.0"] == [3 * 7 * 6] * 2
    assert found["experts.1"] == [3 * 3 * 6] * 2
    assert all(map(math.isnan, found["experts.2"]))


def test_an_expert_that_gets_no_tokens_any_more_has_none(tmp_path):
    model = Experts(torch.tensor([0] * 7 + [1] * 3))

    def before(step):
        if step:
            model.to = torch.zeros(10)

    found = read(model, tmp_path / "run", 3, before=before)
    assert found["experts.0"] == [42, 60, 60]
    assert found["experts.1"] == [18, 0, 0]


def test_calls_are_added_up(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    np.testing.assert_array_equal(read(Twice(), tmp_path / "run", 1)["layer"], [80])
