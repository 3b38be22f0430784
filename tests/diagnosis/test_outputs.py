"""Outputs that do not fit their loss, experts that starve, batches that are too small."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from small_trainings import net, sgd, the, train


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize(
    ("last", "loss_of"),
    [
        (nn.Softmax(1), F.cross_entropy),
        (
            nn.Sigmoid(),
            lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, 4).float()),
        ),
    ],
    ids=["softmax", "sigmoid"],
)
def test_an_activation_that_the_loss_applies_again_is_told(last, loss_of, scale, tmp_path):
    model = nn.Sequential(*net(16, 32, 32, 4), last)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 0.01 / scale),
        loss_of=lambda o, y: scale * loss_of(o, y),
    )
    assert diagnosis.verdict == "output" and "logits" in the(diagnosis, "output").remedies[0]


@pytest.mark.parametrize("function", [F.softmax, lambda out, dim: out.sigmoid()])
def test_a_function_that_the_loss_applies_again_is_told(function, tmp_path):
    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(16, 32, 32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return function(self.net(x), dim=1)

    model = Probabilities()
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01))
    assert diagnosis.verdict == "output" and "logits" in the(diagnosis, "output").remedies[0]


@pytest.mark.parametrize(
    ("last", "loss_of"),
    [
        (nn.Softmax(1), lambda out, y: F.nll_loss(out.log(), y)),
        (nn.Softmax(1), lambda out, y: F.mse_loss(out, F.one_hot(y, 4).float())),
        (nn.Sigmoid(), lambda out, y: F.binary_cross_entropy(out, F.one_hot(y, 4).float())),
        (nn.Sigmoid(), lambda out, y: F.mse_loss(out, F.one_hot(y, 4).float())),
        (nn.Sigmoid(), lambda out, y: F.l1_loss(out, F.one_hot(y, 4).float(), reduction="sum")),
        (nn.Tanh(), lambda out, y: F.mse_loss(out, F.one_hot(y, 4).float())),
        (nn.LogSoftmax(1), F.nll_loss),
    ],
    ids=["nll", "brier", "bce", "sigmoid mse", "sigmoid l1 sum", "tanh mse", "log softmax"],
)
def test_an_activation_that_fits_its_loss_is_not(last, loss_of, tmp_path):
    model = nn.Sequential(*net(16, 32, 32, 4), last)
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01), loss_of=loss_of)
    assert diagnosis.verdict == "healthy"


def test_targets_out_of_reach_are_told(tmp_path):
    model = nn.Sequential(*net(16, 32, 32, 1), nn.Tanh())
    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.Adam(model.parameters(), 1e-3),
        loss_of=F.mse_loss,
        targets=lambda x: 50 + x[:, :1],
    )
    finding = the(diagnosis, "output")
    assert "cannot reach its targets" in finding.sentence and finding.layers == ("5",)


def test_so_are_such_as_the_output_has_come_as_near_to_as_it_can(tmp_path):
    class Ranged(nn.Module):
        """Whose ReLUs are called as functions."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(16, 32), nn.Linear(32, 1), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.b(self.a(x).relu()))

    torch.manual_seed(0)
    model = Ranged()
    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.Adam(model.parameters(), 1e-2),
        steps=100,
        loss_of=F.mse_loss,
        targets=lambda x: 8 + 4 * x[:, :1],
    )
    finding = the(diagnosis, "output")
    assert "does not fall any more" in finding.sentence and finding.layers == ("act",)


@pytest.mark.parametrize(("far", "found"), [(2.0, True), (0.2, False)])
def test_an_output_that_has_come_to_the_end_of_its_range_asks_for_more(far, found, tmp_path):
    model = nn.Sequential(*net(16, 32, 1), nn.Sigmoid())
    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.Adam(model.parameters(), 3e-2),
        steps=100,
        loss_of=F.mse_loss,
        targets=lambda x: far * (1.5 + 0.2 * x[:, :1]),
    )
    assert ("output" in diagnosis.verdicts) is found
    if found:
        finding = the(diagnosis, "output")
        assert "end of what sigmoid can give" in finding.sentence
        assert "remove the last activation" in finding.remedies[0]


def test_experts_that_are_never_asked_are_told(tmp_path):
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.experts[0](x) + self.experts[2](x))

    model = Experts()
    finding = the(train(tmp_path / "run", model, sgd(model)), "experts")
    assert finding.layers == ("experts.1", "experts.3")


@pytest.mark.parametrize(("size", "found"), [(2, True), (8, False)])
def test_a_batchnorm_over_two_samples_is_told(size, found, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 1e-3),
        before=lambda step, x: x[:size],
        loss_of=lambda out, y: F.cross_entropy(out, y[: len(out)]),
    )
    assert ("tiny-batch" in diagnosis.verdicts) is found


LOSSES_OF_TWO_SHAPES = {
    "by hand": (lambda out, y: (out - y).square().mean(), True),
    "mse_loss": (F.mse_loss, True),
    "the other way round": (lambda out, y: (y - out).abs().mean(), True),
    "one shape": (lambda out, y: F.mse_loss(out[:, 0], y), False),
    "each with each, meant": (
        lambda out, y: (out[:, 0].unsqueeze(1) - y).square().mean() + F.mse_loss(out[:, 0], y),
        False,
    ),
}


def test_micro_batches_do_not_add_up_to_a_batch_for_batchnorm(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = sgd(model, 0.01)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(8):
            optimizer.zero_grad()
            for x in torch.randn(32, 16).split(2):
                (F.cross_entropy(model(x), x[:, :4].argmax(1)) / 16).backward()
            optimizer.step()
    finding = the(gradscope.diagnose(scope.run), "tiny-batch")
    assert finding.layers == ("1",) and "over 2 values a channel" in finding.sentence
    assert "accumulating" in finding.remedies[0]


def test_a_small_batch_at_first_is_not_taken_for_all(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 0.01),
        before=lambda step, x: x[: 32 if step else 2],
        loss_of=lambda out, y: F.cross_entropy(out, y[: len(out)]),
    )
    assert gradscope.load(tmp_path / "run").facts["batchnorm_values"] == {"1": 32}
    assert "tiny-batch" not in diagnosis.verdicts


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("loss_of", "found"), LOSSES_OF_TWO_SHAPES.values(), ids=LOSSES_OF_TWO_SHAPES
)
def test_predictions_that_are_broadcast_against_targets_are_told(loss_of, found, tmp_path):
    model = net(16, 32, 1)
    diagnosis = train(
        tmp_path / "run", model, sgd(model, 1e-3), loss_of=loss_of, targets=lambda x: x.sum(1)
    )
    assert ("output" in diagnosis.verdicts) is found
    if found:
        assert "squeeze" in the(diagnosis, "output").remedies[0]


def normalised() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32),
        nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("size", [0.1, 40.0])
def test_a_batchnorm_in_eval_is_told(size, scale, tmp_path):
    model = normalised()
    diagnosis = train(
        tmp_path / "run",
        model.eval(),
        sgd(model, 1e-6),
        before=lambda step, x: size * x,
        loss_of=lambda out, y: scale * F.cross_entropy(out, y),
    )
    finding = the(diagnosis, "batchnorm-eval")
    assert diagnosis.verdict == "batchnorm-eval" and "train()" in finding.remedies[0]


def test_running_statistics_that_fit_are_for_information(tmp_path):
    model = normalised()
    for _ in range(100):
        model(torch.randn(64, 16))
    diagnosis = train(tmp_path / "run", model.eval(), sgd(model, 1e-3))
    assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_batchnorm_in_training_is_not(size, tmp_path):
    model = normalised()
    diagnosis = train(
        tmp_path / "run", model, sgd(model, 1e-3), before=lambda step, x: size * x, steps=12
    )
    assert all(finding.verdict != "batchnorm-eval" for finding in diagnosis.findings)


@pytest.mark.parametrize("last", [None, nn.LogSoftmax(1)])
def test_an_nll_loss_of_logits_is_told_once_it_is_negative(last, tmp_path):
    model = net(16, 32, 4)
    if last is not None:
        model.append(last)
    diagnosis = train(tmp_path / "run", model, sgd(model), loss_of=F.nll_loss)
    assert ("output" in diagnosis.verdicts) is (last is None)
    if last is None:
        finding = the(diagnosis, "output")
        assert "logarithms of probabilities" in finding.sentence
        assert "cross_entropy" in finding.remedies[0]
