"""The share of half-precision weights that a step changes, against a clone of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradscope


class Other(torch.optim.SGD):
    """An optimizer of one's own: it might keep what rounding takes."""


def record(path, dtype, make, every=1, steps=18, **options):
    """Train, and return the run and the expected shares: of each layer at each recorded look."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)
    with torch.no_grad():
        model[0].bias[:8] = -100  # units that are off: no gradient comes to their weights
    optimizer = make(model.parameters())
    expected = {}
    with gradscope.watch(model, path, every=every, **options) as scope:
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, 8).to(dtype)).float().square().mean().backward()
            before = [p.detach().clone() for p in model.parameters()]
            pulled = [p.grad != 0 for p in model.parameters()]
            optimizer.step()
            shares = [
                (((p != b) & g).sum() / g.sum()).item()
                for p, b, g in zip(model.parameters(), before, pulled, strict=True)
            ]
            sizes = [p.numel() for p in model.parameters()]
            if step % (8 * every) == 0:
                expected[step] = [
                    np.average(shares[:2], weights=sizes[:2]),
                    np.nan,
                    np.average(shares[2:], weights=sizes[2:]),
                ]
    return scope.run, expected


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_share_of_weights_that_a_step_changes_is_read_at_looks(dtype, every, tmp_path):
    run, expected = record(
        tmp_path / "run", dtype, lambda p: torch.optim.SGD(p, lr=0.05), every, steps=18 * every
    )
    assert run.notes == []
    steps, values = run.matrix("moved_fraction")
    for step, row in zip(steps.tolist(), values, strict=True):
        np.testing.assert_allclose(row, expected.get(step, [np.nan] * 3), rtol=1e-3)
    assert 0 < expected[0][0] < 0.9


@pytest.mark.parametrize(
    ("dtype", "make", "options"),
    [
        (torch.float32, torch.optim.SGD, {}),
        (torch.bfloat16, Other, {}),
        (torch.bfloat16, torch.optim.SGD, {"gradient": lambda p: p.grad}),
        (torch.bfloat16, torch.optim.SGD, {"updates": "sampled"}),
    ],
    ids=["float32", "own optimizer", "gradient given", "updates sampled"],
)
def test_it_is_not_read_where_it_could_mislead(dtype, make, options, tmp_path):
    run, _ = record(tmp_path / "run", dtype, lambda p: make(p, lr=0.05), **options)
    assert np.isnan(run.matrix("moved_fraction")[1]).all()
    assert (run.matrix("weight_norm")[1][:, [0, 2]] > 0).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_of_large_parameters_a_sample_tells(channels_last, tmp_path):
    torch.manual_seed(0)
    model = nn.Conv2d(128, 128, 3, bias=False).bfloat16()  # 147,456 elements
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-5)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(torch.randn(2, 128, 5, 5).bfloat16()).float().square().mean().backward()
        before, pulled = model.weight.detach().clone(), model.weight.grad != 0
        optimizer.step()
    share = ((model.weight != before) & pulled).sum() / pulled.sum()
    assert 0.02 < share < 0.9
    assert scope.run.matrix("moved_fraction")[1][0, 0] == pytest.approx(share.item(), abs=0.02)
