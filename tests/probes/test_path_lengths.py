"""The gradient divided by the lengths of its paths."""

from __future__ import annotations

import copy
from math import comb

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from detachable import net


def test_paths_of_all_lengths_add_up_to_the_gradient(batch):
    model = net(blocks=6)
    frame = gradscope.path_lengths(model, F.cross_entropy, batch)
    assert frame.branches.tolist() == list(range(7))
    assert frame.paths.tolist() == [comb(6, k) for k in range(7)]
    assert frame.share.sum() == pytest.approx(1, rel=1e-12)


def test_the_shortest_path_is_the_gradient_with_branches_cut(batch):
    model = net(blocks=5)
    twin = copy.deepcopy(model)
    for block in twin[1:-1]:
        block.detached = "branches"
    x = batch[0].clone().requires_grad_()
    F.cross_entropy(twin(x), batch[1]).backward()
    frame = gradscope.path_lengths(model, F.cross_entropy, batch)
    assert frame.norm[0] == pytest.approx(x.grad.norm().item(), rel=1e-9)


def test_the_longest_path_is_the_gradient_with_shortcuts_cut(batch):
    model = net(blocks=5)
    twin = copy.deepcopy(model)
    for block in twin[1:-1]:
        block.detached = "shortcuts"
    x = batch[0].clone().requires_grad_()
    F.cross_entropy(twin(x), batch[1]).backward()
    frame = gradscope.path_lengths(model, F.cross_entropy, batch)
    assert frame.norm.iloc[-1] == pytest.approx(x.grad.norm().item(), rel=1e-9)


def test_linear_scalar_blocks_have_binomial_path_lengths():
    # y = x + w x, n times: the gradient is (1 + w)^n, its part over k branches comb(n, k) w^k
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.fc.weight, 0.5)

        def forward(self, x):
            return x + self.fc(x)

    model = nn.Sequential(*[Scalar() for _ in range(8)]).double()
    batch = torch.ones(1, 1, dtype=torch.float64), None
    frame = gradscope.path_lengths(model, lambda out, _: out.sum(), batch)
    expected = [comb(8, k) * 0.5**k for k in range(9)]
    np.testing.assert_allclose(frame.norm, expected, rtol=1e-12)
    np.testing.assert_allclose(frame.share, np.array(expected) / 1.5**8, rtol=1e-12)


def test_a_plain_net_has_no_paths_to_count(batch):
    with pytest.raises(gradscope.GradscopeError, match="no residual block"):
        gradscope.path_lengths(nn.Linear(5, 3).double(), F.cross_entropy, batch)
