"""Parts of a model that are called on their own, on what an operation outside of them has made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradscope

BETWEEN = {
    "a quotient": lambda h: h / (1 + h.square()),
    "a quotient by a number": lambda h: h / 3,
    "a product": lambda h: h * 2,
    "softsign": F.softsign,
    "dropout": lambda h: F.dropout(h, 0.5),
    "softmax": lambda h: h.softmax(-1),
    "attention": lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None])[0],
    "a matrix product": lambda h: h @ torch.ones(4, 4),
    "an activation": F.gelu,
    "an absolute value": torch.abs,
    "a sum": lambda h: h + 1,
    "a difference": lambda h: 1 - h,
    "a concatenation": lambda h: torch.cat([h[:, :2], h[:, 2:]], 1),
    "a norm": lambda h: F.layer_norm(h, (4,)),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_what_is_made_between_two_parts_hinders_no_reading(between, tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            given = between(model["first"](torch.randn(5, 4)))
            out = model["second"](given)
            out.retain_grad()
            (out + given).square().sum().backward()
            expected.append(float(out.grad.norm()))
            optimizer.step()
            optimizer.zero_grad()
    assert scope.run.notes == []
    assert scope.run.matrix("signal_norm")[1][:, 1] == pytest.approx(expected)
