"""Clipping of gradients that carry the loss scale is found; clipping as it is meant is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.diagnosis.findings import Diagnosis

SCALE = 2.0**16


def trained(
    path: Path,
    clip: Callable[[nn.Module], object],
    *,
    unscale: bool,
    scales: list[float],
    factor: float = 1.0,
    overflow: bool = False,
) -> Diagnosis:
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(8, 8), nn.Tanh())))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=scales[0])
    with gradscope.watch(model, path) as scope:
        for step, after in enumerate([*scales[1:], scales[-1]]):
            x = torch.randn(16, 8)
            loss = factor * (model(x) - x).square().sum()
            if overflow and step % 4 == 0:
                loss = loss * 1e38
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            clip(model)
            scaler.step(optimizer)
            scaler.update(after)
            optimizer.zero_grad()
    return gradscope.diagnose(scope.run)


def to_norm(most: float) -> Callable[[nn.Module], object]:
    return lambda model: nn.utils.clip_grad_norm_(model.parameters(), most)


CONSTANT = [SCALE] * 24
CHANGING = [SCALE] * 8 + [SCALE / 2] * 8 + [SCALE * 2] * 8


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("scales", [CONSTANT, CHANGING], ids=["constant", "changing"])
@pytest.mark.parametrize("most", [0.25, 1.0, 5.0])
def test_clipping_before_unscale_is_found(most, scales, factor, tmp_path):
    diagnosis = trained(
        tmp_path / "run", to_norm(most), unscale=False, scales=scales, factor=factor
    )
    (finding,) = [f for f in diagnosis.findings if f.verdict == "scaled-clipping"]
    assert diagnosis.verdict == "scaled-clipping" == diagnosis.end
    assert finding.severity == "critical" and finding.steps == (0, 23)
    assert finding.evidence["threshold"] == pytest.approx(most, rel=1e-3)
    assert finding.evidence["loss_scale"] == np.median(scales)
    assert "unscale_" in finding.remedies[0]


def test_it_is_found_beside_steps_that_are_skipped(tmp_path):
    diagnosis = trained(
        tmp_path / "run", to_norm(1.0), unscale=False, scales=CHANGING, overflow=True
    )
    assert "scaled-clipping" in diagnosis.verdicts


@pytest.mark.parametrize(
    "clip",
    [
        to_norm(1.0),
        to_norm(1e-3),
        to_norm(0.37),
        to_norm(1e9),
        lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
        lambda model: [to_norm(0.1)(layer) for layer in model[::2]],
    ],
    ids=["norm", "small norm", "odd norm", "nothing", "value", "layer by layer"],
)
@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("scales", [CONSTANT, CHANGING, [1.0] * 24, [8.0] * 24])
def test_clipping_after_unscale_is_not(clip, scales, overflow, tmp_path):
    diagnosis = trained(tmp_path / "run", clip, unscale=True, scales=scales, overflow=overflow)
    assert "scaled-clipping" not in diagnosis.verdicts


def test_clipping_without_a_scale_is_not(tmp_path):
    diagnosis = trained(tmp_path / "run", to_norm(1.0), unscale=False, scales=[1.0] * 24)
    assert "scaled-clipping" not in diagnosis.verdicts
