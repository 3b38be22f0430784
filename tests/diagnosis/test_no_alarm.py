"""Healthy nets with what looks like a fault: rare, small, zero, flat or constant for a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from gradscope.diagnosis.findings import Diagnosis
from small_trainings import net, sgd, the, train


def watched(
    path: object,
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float = 0.02,
) -> Diagnosis:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    with gradscope.watch(model, path) as scope:
        for step in range(steps):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = loss_of(step)
            loss.backward()
            optimizer.step()
            scope.log(loss=loss.detach(), best_val_loss=float("inf"))
    return gradscope.diagnose(scope.run)


def biased(bias: float) -> nn.Sequential:
    """Return a net whose output starts at a bias, next to which the rest is nothing."""
    model = net(16, 32, 1)
    nn.init.normal_(model[2].weight, std=1e-4)
    nn.init.constant_(model[2].bias, bias)
    return model


@pytest.mark.parametrize("steps", [1, 24])
def test_an_output_that_starts_at_the_targets_mean_is_no_fault(steps, tmp_path):
    model = biased(50.0).append(nn.Softplus())

    def loss_of(step: int) -> Tensor:
        x = torch.randn(32, 16)
        return F.mse_loss(model(x), 50 + x[:, :1])

    assert watched(tmp_path / "run", model, loss_of, steps=steps).verdict == "healthy"


@pytest.mark.parametrize(("loss", "found"), [("log", False), ("squares", True)])
def test_a_saturated_output_is_one_where_the_loss_takes_no_logarithm(loss, found, tmp_path):
    model = biased(-4.6).append(nn.Sigmoid())

    def loss_of(step: int) -> Tensor:
        x = torch.randn(256, 16)
        y, p = (x[:, :1] > (2.3 if loss == "log" else 0)).float(), model(x)
        each = -(y * p.log() + (1 - y) * (1 - p).log()) if loss == "log" else (p - y).square()
        return each.mean()

    diagnosis = watched(tmp_path / "run", model, loss_of, steps=3, lr=1e-3)
    assert ("saturated" in diagnosis.verdicts) is found


class Beside(nn.Module):
    """A factor that starts as next to the same number for all, beside what it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.factor, self.last = nn.Linear(16, 32), nn.Linear(16, 1), nn.Linear(32, 4)
        nn.init.normal_(self.factor.weight, std=1e-4)
        nn.init.constant_(self.factor.bias, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() * self.factor(x))


def test_a_factor_beside_what_varies_may_be_constant(tmp_path):
    model = Beside()
    assert train(tmp_path / "run", model, sgd(model), steps=1).verdict == "healthy"
    model = nn.Sequential(nn.Linear(16, 1), nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 4))
    nn.init.normal_(model[0].weight, std=1e-4)
    nn.init.constant_(model[0].bias, 1.0)
    assert train(tmp_path / "alone", model, sgd(model), steps=1).verdict == "collapsed"


@pytest.mark.parametrize("bias", [40.0, -90.0])
@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_activations_that_are_flat_for_all_units_are_told(bias, scale, tmp_path):
    model = net(16, 32, 32, 1)
    if bias > 0:
        model[1] = nn.ReLU6()
        nn.init.constant_(model[0].bias, bias)
    else:
        model.append(nn.Softplus())
        nn.init.constant_(model[4].bias, bias)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 0.01 / scale),
        steps=3,
        loss_of=lambda out, y: scale * F.mse_loss(out[:, 0], y.float()),
    )
    assert diagnosis.verdict == "saturated"
    assert the(diagnosis, "saturated").layers == (("1",) if bias > 0 else ("5",))
    assert "bias of 0" in the(diagnosis, "saturated").remedies[0]


@pytest.mark.parametrize(("steps", "severity"), [(8, "information"), (24, "critical")])
def test_a_loss_of_0_is_waited_with(steps, severity, tmp_path):
    model = net(16, 32, 1)  # each is on its side of the margin already
    nn.init.constant_(model[2].bias, 9.0)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model),
        steps=steps,
        loss_of=lambda out, y: F.relu(1 - out).mean(),
    )
    finding = the(diagnosis, "disconnected")
    assert finding.severity == severity and "loss itself is 0" in finding.sentence
    assert (diagnosis.verdict == "disconnected") is (severity == "critical")


def test_logits_that_a_softmax_rounds_to_one_class_are_told(tmp_path):
    model = net(16, 32, 4)
    model[2].bias.data[1] = 200.0

    def loss_of(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, torch.full_like(y, 1))

    diagnosis = train(tmp_path / "run", model, sgd(model), steps=8, loss_of=loss_of)
    assert diagnosis.verdict == "disconnected"
    assert "smaller weights" in the(diagnosis, "disconnected").remedies[0]


def test_gradients_below_half_precision_are_told_with_what_mends_them(tmp_path):
    model = net(16, 32, 4).bfloat16().half()
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model),
        steps=8,
        before=lambda step, x: x.half(),
        loss_of=lambda out, y: 1e-7 * F.cross_entropy(out.float(), y),
    )
    assert diagnosis.verdict == "disconnected"
    assert "GradScaler" in the(diagnosis, "disconnected").remedies[0]


class Arms(nn.Module):
    """Heads of which one is asked at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.arms = nn.Linear(16, 32), nn.ModuleList(nn.Linear(32, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([arm(self.body(x).relu()) for arm in self.arms], 1)


def test_heads_that_were_not_chosen_yet_are_for_information(tmp_path):
    model = Arms()

    def loss_of(step: int) -> Tensor:
        x = torch.randn(32, 16)
        return F.mse_loss(model(x)[:, 2], x[:, 0])

    diagnosis = watched(tmp_path / "run", model, loss_of, steps=8)
    assert diagnosis.verdict == "healthy"
    assert the(diagnosis, "disconnected").layers == ("arms.0", "arms.1", "arms.3")


class Attends(nn.Module):
    """Attention with a softmax over the keys, or over one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.inlet = dim, nn.Linear(4, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x.view(-1, 4, 4))
        logits = (self.query(x)[:, :, None] * self.key(x)[:, None]).sum(-1)[..., None]
        weights = logits.softmax(self.dim)[..., 0]
        return self.last((weights @ self.value(x)).mean(1))


def test_a_softmax_over_one_key_is_told_with_its_dim(tmp_path):
    model = Attends(-1)
    finding = the(train(tmp_path / "run", model, sgd(model), steps=8), "disconnected")
    assert finding.layers == ("query", "key") and "softmax" in finding.remedies[0]
    model = Attends(-2)
    assert train(tmp_path / "right", model, sgd(model), steps=8).verdict == "healthy"


@pytest.mark.parametrize("noise", [1.0, 1e-5])
def test_a_generator_without_noise_is_told(noise, tmp_path):
    maker, judge = net(8, 32, 32, 16), net(16, 32, 1, act=nn.SiLU)
    model = nn.ModuleDict({"maker": maker, "judge": judge})
    optimizers = [torch.optim.Adam(part.parameters(), 1e-3) for part in (judge, maker)]
    with gradscope.watch(model, tmp_path / "run") as scope:
        for step in range(10):
            torch.manual_seed(step)
            made = maker(noise * torch.randn(32, 8))
            for optimizer, loss_of in zip(
                optimizers,
                (
                    lambda made=made: (
                        F.softplus(-judge(torch.randn(32, 16) + 1)).mean()
                        + F.softplus(judge(made.detach())).mean()
                    ),
                    lambda made=made: F.softplus(-judge(made)).mean(),
                ),
                strict=True,
            ):
                optimizer.zero_grad()
                loss_of().backward()
                optimizer.step()
    diagnosis = gradscope.diagnose(scope.run)
    assert diagnosis.verdict == ("healthy" if noise == 1 else "collapsed")
    if noise < 1:
        assert the(diagnosis, "collapsed").layers == ("maker.0", "maker.2", "maker.4")


@pytest.mark.parametrize("over", [1, 4096])
def test_a_mean_over_many_places_is_no_vanishing(over, tmp_path):
    each, rest = net(2, 16, 16), net(16, 16, 16, 1)
    model = nn.ModuleDict({"each": each, "rest": rest})

    def loss_of(step: int) -> Tensor:
        size = torch.rand(8, 1, 1) + 0.5
        return F.mse_loss(rest(each(size * torch.randn(8, over, 2)).mean(1)), size[:, 0])

    diagnosis = watched(tmp_path / "run", model, loss_of, steps=3, lr=1e-4)
    assert diagnosis.verdict == "healthy"
    assert ("vanishing" in {f.verdict for f in diagnosis.findings}) is (over > 1)


def test_scores_that_are_compared_with_each_other_are_no_broadcast_mistake(tmp_path):
    model = net(16, 32, 1)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(32, 16)
        score, order = model(x), (x[:, :1] - x[:, :1].T).sign()
        return F.softplus(-(score - score.mT) * order).mean()

    assert watched(tmp_path / "run", model, loss_of, steps=3).verdict == "healthy"


def test_what_is_left_over_the_sum_of_each_row_of_all_pairs_is_no_broadcast_mistake(tmp_path):
    model = net(16, 32, 8)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(32, 16)
        z, y = F.normalize(model(x)), x[:, 0] > 0
        near = z @ z.T / 0.5
        share = near - near.logsumexp(1, keepdim=True)
        return -(share * (y[:, None] == y)).mean()

    assert watched(tmp_path / "run", model, loss_of, steps=3).verdict == "healthy"


def test_a_loss_that_rises_from_nothing_by_a_head_that_starts_small_is_no_fault(tmp_path):
    model = net(16, 32, 32, 1)
    nn.init.normal_(model[4].weight, std=1e-3)
    nn.init.zeros_(model[4].bias)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(64, 16)
        return F.mse_loss(model(x), 0.02 * (step + 1) * x[:, :1])

    diagnosis = watched(tmp_path / "run", model, loss_of, steps=30, lr=1e-3)
    assert "unstable" not in diagnosis.verdicts


class Exits(nn.Module):
    """A chain with an output after each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.exits = nn.ModuleList(nn.Linear(16, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for layer, leave in zip(self.body, self.exits, strict=True):
            x = layer(x).relu()
            outs.append(leave(x))
        return torch.cat(outs, 1)


def test_layers_behind_the_output_that_is_used_are_for_information(tmp_path):
    model = Exits()

    def loss_of(step: int) -> Tensor:
        x = torch.randn(32, 16)
        return F.mse_loss(model(x)[:, 0], x[:, 0])

    diagnosis = watched(tmp_path / "run", model, loss_of, steps=8)
    assert diagnosis.verdict == "healthy"
    assert set(the(diagnosis, "disconnected").layers) == {"body.1", "body.2", "exits.1", "exits.2"}


@pytest.mark.parametrize("gradient", [None, lambda parameter: parameter.grad])
def test_a_gradient_that_was_not_read_is_no_nan(tmp_path, gradient):
    """As where a function has it; nor is it where a parameter has a loss of its own."""
    model = nn.ModuleDict({"actor": net(16, 32, 4), "critic": net(16, 32, 1)})
    model.register_parameter("heat", nn.Parameter(torch.tensor(-1.0)))
    first, second, third = (
        torch.optim.Adam(some, 1e-3)
        for some in (model["critic"].parameters(), model["actor"].parameters(), [model.heat])
    )
    torch.manual_seed(1)
    with gradscope.watch(model, tmp_path / "run", gradient=gradient) as scope:
        for _ in range(10):
            x = torch.randn(32, 16)
            first.zero_grad()
            (model["critic"](x) - x[:, :1]).square().mean().backward()
            first.step()
            own = model["actor"](x)
            second.zero_grad()
            (own.square().mean() - model["critic"](x).mean() * own.mean()).backward()
            second.step()
            third.zero_grad()
            (model.heat * (own.detach().mean() - 2)).backward()
            third.step()
    steps = scope.run.steps
    assert steps.grad_norm.isna().all() == (gradient is not None)
    assert steps.clipped_grad_norm.notna().all()
    assert gradscope.diagnose(scope.run).verdict == "healthy"


class Padded(nn.Module):
    """Half of what comes in is zeros, and a branch works on that half, as in reversible nets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16, bias=False))
        self.body = net(32, 32, 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        other = torch.zeros_like(x)
        return self.body(torch.cat([x + self.inner(other), other], 1))


def test_an_activation_that_is_given_zeros_is_not_dead(tmp_path):
    model = Padded()
    diagnosis = train(tmp_path / "run", model, sgd(model))
    assert "dead" not in [finding.verdict for finding in diagnosis.findings]


@pytest.mark.parametrize(("low", "found"), [(0.0, False), (-0.3, True)])
def test_a_clip_at_0_is_a_rectifier_of_which_half_is_off(low, found, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential()
    for width in (16, 32):
        clip = nn.Hardtanh(low, 20.0 if low == 0 else -low)
        model.extend([nn.Linear(width, 32), nn.BatchNorm1d(32), clip])
    model.append(nn.Linear(32, 4))
    diagnosis = train(tmp_path / "run", model, sgd(model, 1e-3))
    assert ("saturated" in diagnosis.verdicts) is found


@pytest.mark.parametrize("below", [True, False])
def test_a_loss_that_falls_below_0_is_no_distance_that_has_risen(below, tmp_path):
    """As a policy's, which is as large as the advantages are."""
    torch.manual_seed(0)
    model = net(16, 32, 4)
    optimizer = sgd(model, 0.5)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for step in range(40):
            optimizer.zero_grad()
            model(torch.randn(32, 16)).square().mean().backward()
            optimizer.step()
            scope.log(loss=-0.1 if below and step == 5 else 0.1 + step / 20)
    assert ("unstable" in gradscope.diagnose(scope.run).verdicts) is not below
