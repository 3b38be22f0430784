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
    "a slice": lambda h: h[1:],
    "a slice of all": lambda h: h[:],
    "a slice with gaps": lambda h: h[::2],
    "a part": lambda h: h.narrow(0, 1, 3),
    "a split": lambda h: h.split([2, 3])[1],
    "a choice": lambda h: h[[0, 2]],
    "rows": lambda h: torch.stack(h.unbind(0)[:3]),
    "a gather": lambda h: h.gather(0, torch.zeros(2, 4, dtype=torch.long)),
    "a transposition": lambda h: h[:4].t(),
    "an expansion": lambda h: h[:1].expand(5, 4),
    "a mask": lambda h: h.masked_fill(h > 1, 0.0),
    "an interpolation": lambda h: torch.lerp(h, h.tanh(), 0.3),
    "a fused product": lambda h: torch.addcmul(h, h, h),
    "a gate": lambda h: h * h.sigmoid(),
    "a shortcut": lambda h: h + h.tanh(),
    "a sum in place": lambda h: h.clone().add_(1),
    "a write in place": lambda h: h.clone().index_fill_(0, torch.tensor([1]), 0.0),
    "a running sum": lambda h: h.cumsum(0),
    "padding": lambda h: F.pad(h[:, :2], (1, 1)),
    "the largest": lambda h: h.max(0, keepdim=True).values,
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.fc(x).tanh()


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_what_is_made_between_two_parts_hinders_no_reading(between, tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "block": Residual(), "last": nn.Linear(4, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    expected, through = [], []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            given = between(model["first"](torch.randn(5, 4)))
            x = model["block"](given)
            out = model["last"](x)
            out.retain_grad()
            x.retain_grad()
            (out.square().sum() + given.square().sum()).backward()
            expected.append(float(out.grad.norm()))
            through.append(float(x.grad.norm()))
            optimizer.step()
            optimizer.zero_grad()
    assert scope.run.notes == []
    read = scope.run.frame().pivot(index="step", columns="name", values="signal_norm")
    assert read["last"].to_list() == pytest.approx(expected)
    assert scope.run.shortcuts[["name", "form"]].values.tolist() == [["block", "identity"]]
    assert scope.run.shortcut_matrix("shortcut_norm")[1][:, 0] == pytest.approx(through)


class Chain(nn.Module):
    """Blocks whose order of definition is not that of their calls; the model has a weight, too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out, self.blocks = nn.Linear(4, 1), nn.ModuleList(Residual() for _ in range(3))
        self.scale, self.stem = nn.Parameter(torch.ones(4)), nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x) * self.scale
        for block in reversed(self.blocks):
            x = block(x)
        return self.out(x)


def test_shortcuts_of_parts_stand_in_the_order_and_at_the_places_that_they_have_in_the_model(
    tmp_path,
):
    def shortcuts(forward, path):
        model = Chain()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, path) as scope:
            for _ in range(3):
                optimizer.zero_grad()
                forward(model)(torch.ones(5, 4)).square().mean().backward()
                optimizer.step()
        return scope.run.shortcuts.set_index("name").position

    whole = shortcuts(lambda model: model, tmp_path / "whole")
    parts = shortcuts(lambda model: model.forward, tmp_path / "parts")
    assert list(parts.index) == list(whole.index) == ["blocks.2", "blocks.1", "blocks.0"]
    assert parts.is_monotonic_increasing
    # the model's own weight makes it a layer, which the parts do not call
    assert (parts * 5).round(6).tolist() == [2, 3, 4]
    assert (whole * 6).round(6).tolist() == [2, 3, 4]
