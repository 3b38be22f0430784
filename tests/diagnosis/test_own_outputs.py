"""Nets whose loss is made of what they give themselves: views of a sample, players of a game."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from small_trainings import the


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16)
        )
        self.predictor = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return z, self.predictor(z)


def variance(z: Tensor) -> Tensor:
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


LOSSES = {
    "cosine": lambda z, p, other: -F.cosine_similarity(p, other).mean(),
    "cosine by hand": lambda z, p, other: (
        2 - 2 * (F.normalize(p, dim=1) * F.normalize(other, dim=1)).sum(1).mean()
    ),
    "squares": lambda z, p, other: 25 * F.mse_loss(p, other),
    "stop-gradient": lambda z, p, other: -F.cosine_similarity(p, other.detach()).mean(),
    "variance": lambda z, p, other: F.mse_loss(z, other) + variance(z) + variance(other),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_only_draws_outputs_together_is_told(loss, tmp_path):
    torch.manual_seed(0)
    model = Siamese()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(80):
            x = torch.randn(64, 16)
            (z, p), (other, _) = (model(x + 0.3 * torch.randn_like(x)) for _ in range(2))
            optimizer.zero_grad()
            value = LOSSES[loss](z, p, other)
            value.backward()
            optimizer.step()
            scope.log(loss=value.detach())
    diagnosis = gradscope.diagnose(scope.run)
    if loss in ("stop-gradient", "variance"):
        assert "collapsed" not in diagnosis.verdicts
        return
    finding = the(diagnosis, "collapsed")
    assert finding.severity == "critical" and "draws outputs together" in finding.sentence
    assert "stop-gradient" in finding.remedies[0] and "negatives" in finding.remedies[1]


@pytest.mark.parametrize("wins", [True, False])
def test_a_player_whose_weights_hardly_move_any_more_is_told(wins, tmp_path):
    """The discriminator has won before the generator's first turn: it only falls by a few tens."""
    torch.manual_seed(0)
    act = nn.LeakyReLU(0.2)
    parts = {
        "generator": nn.Sequential(nn.Linear(8, 48), act, nn.Linear(48, 16)),
        "discriminator": nn.Sequential(nn.Linear(16, 64), act, nn.Linear(64, 1), nn.Sigmoid()),
    }
    model = nn.ModuleDict(parts)
    slow = torch.optim.SGD(parts["generator"].parameters(), 0.02)
    fast = torch.optim.SGD(parts["discriminator"].parameters(), 0.5)
    with gradscope.watch(model, tmp_path / "run"):
        for _ in range(80):
            for _ in range(5 if wins else 1):
                real, made = 2 + torch.randn(64, 16), parts["generator"](torch.randn(64, 8))
                judged = [parts["discriminator"](x) for x in (real, made.detach())]
                fast.zero_grad()
                loss = -(judged[0] + 1e-8).log().mean() - (1 - judged[1] + 1e-8).log().mean()
                loss.backward()
                fast.step()
            judged[1] = parts["discriminator"](parts["generator"](torch.randn(64, 8)))
            slow.zero_grad()
            loss = (1 - judged[1] + 1e-8).log() if wins else -(judged[1] + 1e-8).log()
            loss.mean().backward()
            slow.step()
    diagnosis = gradscope.diagnose(gradscope.load(tmp_path / "run"))
    assert ("vanishing" in {f.verdict for f in diagnosis.findings if f.severity == "warning"}) is (
        wins
    )
