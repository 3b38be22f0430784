"""Attention whose logits are large from the start, or have grown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradscope
from handmade import make_run
from small_trainings import sgd, the, train


class Attending(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(4, 16) for _ in range(3))
        self.head, self.size = nn.Linear(16, 4), size

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (4, 4))
        q, k, v = (layer(x)[:, None] for layer in (self.query, self.key, self.value))
        return self.head(F.scaled_dot_product_attention(self.size * q, k, v)[:, 0].mean(1))


def test_logits_that_are_large_from_the_start_are_told_with_their_size(tmp_path):
    model = Attending(600.0)
    finding = the(train(tmp_path / "run", model, sgd(model, 1e-4)), "attention-logits")
    assert finding.severity == "warning" and finding.layers == ("query",)
    assert finding.steps == (0, 23) and finding.place.column == "attention_logit_max"
    assert "1/sqrt" in finding.remedies[0] and "QK-norm" in finding.remedies[1]


def test_logits_that_grew_are_told_with_where_they_began(tmp_path):
    model = Attending(1.0)

    def grow(step: int, x: Tensor) -> Tensor:
        model.size = 4.0**step
        return x

    finding = the(train(tmp_path / "run", model, sgd(model, 1e-6), before=grow), "attention-logits")
    assert finding.steps == (8, 23) and "have grown from" in finding.sentence
    assert "QK-norm" in finding.remedies[0] and "learning rate" in finding.remedies[1]


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_usual_logits_are_healthy(size, scale, tmp_path):
    model = Attending(size)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 1e-2 / scale),
        loss_of=lambda out, y: scale * F.cross_entropy(out, y),
    )
    assert diagnosis.verdict == "healthy"


def test_logits_that_were_large_at_one_look_are_not(tmp_path):
    model = Attending(1.0)

    def once(step: int, x: Tensor) -> Tensor:
        model.size = 1000.0 if step == 8 else 1.0
        return x

    diagnosis = train(tmp_path / "run", model, sgd(model, 1e-4), before=once)
    assert "attention-logits" not in {finding.verdict for finding in diagnosis.findings}


@pytest.mark.parametrize(
    ("first", "last", "severity"),
    [(135, 150, None), (135, 900, "information"), (40, 900, "information"), (350, 800, "warning")],
)
def test_logits_that_start_large_are_told_though_the_loss_falls(first, last, severity, tmp_path):
    """By what other paths learn; those that have grown by then are told for information."""
    steps = 100
    logits = np.full((steps, 1), np.nan)
    logits[::8] = np.geomspace(first, last, len(logits[::8]))[:, None]
    layers = [{"layer": 0, "name": "fc", "kind": "Linear", "depth": 1, "parameters": 4}]
    readings = {"signal_norm": 1.0, "attention_logit_max": logits}
    falling = {"loss": np.linspace(2, 1, steps)}
    run = make_run(tmp_path / "run", layers, readings, n_steps=steps, steps=falling)
    found = {f.verdict: f.severity for f in gradscope.diagnose(run).findings}
    assert found.get("attention-logits") == severity


@pytest.mark.parametrize("skipped", [False, True])
def test_looks_are_found_in_a_long_run(skipped, tmp_path):
    steps = 9000
    logits = np.full((steps, 1), np.nan)
    logits[::8] = np.linspace(1, 1000, len(logits[::8]))[:, None]
    layers = [{"layer": 0, "name": "fc", "kind": "Linear", "depth": 1, "parameters": 4}]
    marks = np.zeros(steps, bool)
    marks[3] = skipped
    readings = {"signal_norm": 1.0, "attention_logit_max": logits}
    run = make_run(tmp_path / "run", layers, readings, n_steps=steps, steps={"skipped": marks})
    assert the(gradscope.diagnose(run), "attention-logits").layers == ("fc",)
