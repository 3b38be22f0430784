"""Readings under a loss scaler."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from loops import batches, loss_of, net, step_frame
from reference import Reference, root_sum_square


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscale_"])
def test_under_a_loss_scaler_readings_are_unscaled_and_skipped_steps_marked(
    fused, unscale, tmp_path
):
    model = net(torch.float32)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
    data = batches(4, torch.float32)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, batch in enumerate(data):
            optimizer.zero_grad()
            factor = float("inf") if i == 1 else 1.0
            if i == 2:
                twin.load_state_dict(model.state_dict())
            scaler.scale(loss_of(model, batch) * factor).backward()
            if unscale:
                scaler.unscale_(optimizer)
                if i != 1:
                    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
            scaler.step(optimizer)
            scaler.update()
            scope.log(loss=1.0)
    run = scope.run
    assert run.notes == []
    assert run.steps.step.tolist() == [0, 1, 2, 3]
    assert run.steps.skipped.tolist() == [False, True, False, False]
    assert run.steps.loss_scale.tolist() == [1024, 1024, 512, 512]
    reference = Reference(twin, lambda m: loss_of(m, data[2]))
    read = step_frame(run, 2)
    for name in read.index:
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-4)
    total = root_sum_square(p.grad for p in reference.model.parameters())
    row = run.steps.iloc[2]
    assert row.grad_norm == pytest.approx(total, rel=1e-4)
    assert row.clipped_grad_norm == pytest.approx(1e-2 if unscale else total, rel=1e-3)
    assert np.isinf(run.steps.grad_norm[1]) or np.isnan(run.steps.grad_norm[1])


def test_a_disabled_scaler_changes_nothing(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for batch in batches(2):
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scope.run.steps.loss_scale.tolist() == [1, 1]
    assert not scope.run.steps.skipped.any()
