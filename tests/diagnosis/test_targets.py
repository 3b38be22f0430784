"""Losses that start far above a guess, stay far away, or stand still."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from small_trainings import net, sgd, the, train


def test_logits_that_are_large_at_the_start_are_told_with_the_loss_they_make(tmp_path):
    torch.manual_seed(0)
    model = net(16, 32, 32, 4)
    with torch.no_grad():
        model[4].weight *= 300
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01), steps=1)
    finding = the(diagnosis, "output")
    assert finding.layers == ("4",)
    assert finding.evidence["first_loss"] > 20 > 2 * math.log(4)


def test_a_sum_over_samples_is_not_taken_for_large_logits(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 1e-3),
        loss_of=lambda out, y: F.cross_entropy(out, y, reduction="sum"),
    )
    assert diagnosis.run and "output" not in [f.verdict for f in diagnosis.findings]


@pytest.mark.parametrize(("scale", "told"), [(250_000.0, True), (1.0, False)])
def test_targets_of_another_size_than_the_output_are_told(scale, told, tmp_path):
    model = net(16, 32, 32, 1)
    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.Adam(model.parameters(), 1e-3),
        loss_of=F.mse_loss,
        targets=lambda x: scale * (1 + 0.1 * x[:, :1]),
    )
    found = [f for f in diagnosis.findings if f.verdict == "output"]
    assert bool(found) == told
    if told:
        assert diagnosis.verdict == "output" and "normalise the targets" in found[0].remedies[0]
        assert found[0].evidence["error_over_output"] > 1000


@pytest.mark.parametrize(("most", "told"), [(255.0, True), (1.0, False)])
def test_a_binary_cross_entropy_below_zero_has_targets_out_of_range(most, told, tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 1e-5),
        loss_of=F.binary_cross_entropy_with_logits,
        targets=lambda x: most * (x[:, :4] > 0).float(),
    )
    assert (diagnosis.verdict == "output") == told
    if told:
        assert "0 to 1" in the(diagnosis, "output").remedies[0]


def test_a_loss_that_stands_still_for_no_reason_in_the_net_is_told_for_information(tmp_path):
    drawn = torch.Generator().manual_seed(0)
    model = net(16, 32, 32, 4)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 0.01),
        steps=80,
        targets=lambda x: torch.randint(4, (len(x),), generator=drawn),
    )
    finding = the(diagnosis, "no-progress")
    assert (diagnosis.verdict, finding.severity) == ("healthy", "information")
    assert "same sample" in finding.remedies[0]


def test_a_loss_that_falls_is_not(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.3), steps=80)
    assert "no-progress" not in [f.verdict for f in diagnosis.findings]


def test_clipping_to_next_to_nothing_is_told_where_the_loss_stands_still(tmp_path):
    model = net(16, 32, 32, 4)

    def clip() -> None:
        for parameter in model.parameters():
            nn.utils.clip_grad_norm_([parameter], 1e-4)

    diagnosis = train(tmp_path / "run", model, sgd(model, 0.5), steps=80, after_backward=clip)
    finding = the(diagnosis, "update-speed")
    assert diagnosis.verdict == "update-speed" and "Clipping leaves" in finding.sentence


def test_a_rate_that_still_rises_is_told_for_information_where_the_loss_stands_still(tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    rising = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10_000)

    def before(step, x):
        if step:
            rising.step()
        return x

    diagnosis = train(tmp_path / "run", model, optimizer, steps=80, before=before)
    finding = the(diagnosis, "update-speed")
    assert (diagnosis.verdict, finding.severity) == ("healthy", "information")
    assert "still rises" in finding.sentence and "warm-up" in finding.remedies[0]
