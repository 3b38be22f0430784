"""Trainings that people break: the verdict, the layer, where to look, and a remedy that fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from gradscope.diagnosis.findings import Diagnosis, Finding

Loss = Callable[[Tensor, Tensor], Tensor]


def net(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for i in range(len(widths) - 2):
        modules += [nn.Linear(widths[i], widths[i + 1]), act()]
    return nn.Sequential(*modules, nn.Linear(*widths[-2:]))


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def train(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 24,
    loss_of: Loss = F.cross_entropy,
    before: Callable[[int, Tensor], Tensor | None] = lambda step, x: x,
    after_backward: Callable[[], None] = lambda: None,
    zero: bool = True,
    log: bool = True,
    targets: Callable[[Tensor], Tensor] = lambda x: x[:, :4].argmax(1),
) -> Diagnosis:
    torch.manual_seed(1)
    with gradscope.watch(model, path) as scope:
        for step in range(steps):
            x = torch.randn(32, 16)
            y = targets(x)
            x = before(step, x)
            if zero:
                optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            after_backward()
            optimizer.step()
            if log:
                scope.log(train_loss=loss.detach())
    return gradscope.diagnose(scope.run)


def the(diagnosis: Diagnosis, verdict: str) -> Finding:
    (finding,) = [f for f in diagnosis.findings if f.verdict == verdict]
    return finding


class Halves(nn.Module):
    """A body and a head, with something in between."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head = net(16, 32, 32), net(32, 32, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


class UnderNoGrad(Halves):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
        return self.head(h)


CUTS = {
    "detach": Halves(lambda h: h.detach()),
    "data": Halves(lambda h: h.data),
    "numpy": Halves(lambda h: torch.tensor(h.detach().numpy())),
    "argmax": Halves(lambda h: F.one_hot(h.argmax(1), 32).float()),
    "no_grad": UnderNoGrad(lambda h: h),
}


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("model", CUTS.values(), ids=CUTS)
def test_first_layers_without_a_path_from_the_loss_are_disconnected(model, steps, tmp_path):
    diagnosis = train(tmp_path / "run", model, sgd(model), steps=steps)
    finding = the(diagnosis, "disconnected")
    assert diagnosis.verdict == "disconnected" and finding.severity == "critical"
    assert finding.layers == ("body.0", "body.2")
    assert "3 · head.0 (Linear)" in finding.sentence
    assert "detach()" in finding.remedies[0]


def test_a_head_that_the_loss_does_not_use_is_for_information(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.other = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x).relu()
            return self.one(h), self.other(h)

    model = Two()
    diagnosis = train(
        tmp_path / "run", model, sgd(model), loss_of=lambda out, y: F.cross_entropy(out[0], y)
    )
    assert diagnosis.verdict == "healthy"
    assert the(diagnosis, "disconnected").layers == ("other",)


def test_frozen_layers_are_for_information(tmp_path):
    model = net(16, 32, 32, 4)
    model[0].requires_grad_(False)
    learn = [p for p in model.parameters() if p.requires_grad]
    diagnosis = train(tmp_path / "run", model, torch.optim.AdamW(learn, 1e-3))
    finding = the(diagnosis, "not-updated")
    assert (diagnosis.verdict, finding.severity) == ("healthy", "information")
    assert finding.sentence == (
        "Layer 0 · 0 (Linear) is frozen (requires_grad is False), 544 parameters of 1.7 thousand."
    )
    assert "not-updated" not in diagnosis.verdicts


@pytest.mark.parametrize("steps", [1, 24])
def test_layers_that_no_optimizer_holds_are_not_updated(steps, tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = sgd(model[:4])
    diagnosis = train(tmp_path / "run", model, optimizer, steps=steps)
    finding = the(diagnosis, "not-updated")
    assert diagnosis.verdict == "not-updated" and finding.layers == ("4",)
    assert "No optimizer holds the weights of layer 4 · 4 (Linear)" in finding.sentence
    assert finding.place is not None and finding.place.layer == 4


@pytest.mark.parametrize("to_none", [True, False])
def test_a_gradient_that_is_zeroed_before_the_step_is_told(to_none, tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = sgd(model)
    diagnosis = train(
        tmp_path / "run",
        model,
        optimizer,
        after_backward=lambda: optimizer.zero_grad(set_to_none=to_none),
    )
    finding = the(diagnosis, "not-updated")
    assert "zero_grad() before the backward pass" in finding.remedies[0]


def test_a_learning_rate_of_zero_is_told_but_not_of_a_warm_up(tmp_path):
    model = net(16, 32, 32, 4)
    assert train(tmp_path / "zero", model, sgd(model, 0.0), steps=8).verdict == "not-updated"
    optimizer = sgd(model, 0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 8, 1))
    for steps in (1, 8):
        path = tmp_path / f"warm-{steps}"
        diagnosis = train(path, model, optimizer, steps=steps, after_backward=lambda: None)
        assert diagnosis.verdict in ("healthy", "not-updated" if steps > 2 else "healthy")
        for _ in range(8):
            schedule.step()
    assert train(tmp_path / "warmed", model, optimizer, steps=8).verdict == "healthy"


def test_steps_below_half_precision_are_told(tmp_path):
    model = net(16, 32, 32, 4).bfloat16()
    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.SGD(model.parameters(), 1e-6),
        before=lambda step, x: x.bfloat16(),
        loss_of=lambda out, y: F.cross_entropy(out.float(), y),
    )
    assert diagnosis.verdict == "not-updated"
    assert any("float32" in remedy for remedy in the(diagnosis, "not-updated").remedies)


def test_gradients_that_pile_up_are_told(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(tmp_path / "run", model, sgd(model, 1e-3), zero=False)
    assert diagnosis.verdict == "accumulated"
    assert "zero_grad" in the(diagnosis, "accumulated").remedies[0]
    model = net(16, 32, 32, 4)
    assert train(tmp_path / "zeroed", model, sgd(model, 1e-3)).verdict == "healthy"


class Breaks(nn.Module):
    """Layers a, b and c; between a and b something that breaks at a step."""

    def __init__(self, broken: Callable[[Tensor], Tensor], at: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.broken, self.at, self.step = broken, at, 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = self.broken(h) if self.step == self.at else h
        self.step += 1
        return self.c(self.b(h).relu())


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("at", [0, 12])
@pytest.mark.parametrize(
    ("broken", "phase", "words", "layer"),
    [
        (lambda h: (h - 1).log(), "forward", "the forward pass became not a number", "b"),
        (lambda h: h / 0.0, "forward", "the forward pass became", "b"),
        (lambda h: (h * 0).sqrt() + h, "backward", "the backward pass became not a number", "a"),
    ],
    ids=["log", "division", "root"],
)
def test_what_broke_first_is_found(broken, phase, words, layer, at, log, tmp_path):
    model = Breaks(broken, at)
    diagnosis = train(tmp_path / "run", model, sgd(model), log=log)
    finding = the(diagnosis, "exploding")
    assert diagnosis.verdict == diagnosis.end == "exploding"
    assert finding.sentence.startswith(f"Step {at}: {words}")
    assert finding.layers == (layer,)
    place = finding.place
    assert place is not None
    assert (place.step, "abc"[place.layer or 0], place.phase) == (at, layer, phase)
    if at:
        assert "Nothing announced it" in finding.sentence


@pytest.mark.parametrize("at", [0, 12])
@pytest.mark.parametrize("log", [True, False])
def test_a_nan_in_the_batch_is_its_fault_and_no_layer_s(at, log, tmp_path):
    def before(step: int, x: Tensor) -> Tensor:
        if step == at:
            x[3, 5] = math.nan
        return x

    model = net(16, 32, 32, 4)
    diagnosis = train(tmp_path / "run", model, sgd(model), before=before, log=log)
    finding = the(diagnosis, "exploding")
    assert finding.layers == ("0",) and "so was its input, the batch" in finding.sentence
    assert "isfinite" in finding.remedies[0]


@pytest.mark.parametrize(
    ("broken", "at"),
    [
        (lambda out: (out - 100).log().mean(), 0),  # its gradient is finite
        (lambda out: (out * 0).log().mean(), 0),
        (lambda out: (out * 0).log().mean(), 12),
    ],
)
def test_a_loss_that_breaks_is_no_layer_s_fault(broken, at, tmp_path):
    model = net(16, 32, 32, 4)
    steps: list[int] = []

    def loss_of(out: Tensor, y: Tensor) -> Tensor:
        steps.append(0)
        return broken(out) if len(steps) > at else F.cross_entropy(out, y)

    diagnosis = train(tmp_path / "run", model, sgd(model), loss_of=loss_of)
    finding = the(diagnosis, "exploding")
    assert finding.steps[0] == at and "it happened in the loss" in finding.sentence
    assert finding.place is not None and finding.place.phase == "loss"


def test_weights_that_something_else_made_nan_are_told_from_a_step_that_did(tmp_path):
    model = net(16, 32, 32, 4)

    def before(step: int, x: Tensor) -> Tensor:
        if step == 12:
            with torch.no_grad():
                model[2].weight[0, 0] = math.nan
        return x

    finding = the(train(tmp_path / "run", model, sgd(model), before=before), "exploding")
    assert finding.layers == ("2",) and "something else wrote them" in finding.sentence


def test_growth_before_a_break_is_told(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(tmp_path / "run", model, sgd(model, 1.0), steps=60, loss_of=F.mse_loss,
                      targets=lambda x: 9 * x[:, :4])  # fmt: skip
    finding = next(f for f in diagnosis.findings if f.verdict == "exploding")
    assert "had grown" in finding.sentence and "lower the learning rate" in finding.remedies[0]


def test_infinity_that_is_meant_is_none(tmp_path):
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(16, 32, 32, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).masked_fill(torch.arange(6) >= 4, -math.inf)

    model = Policy()
    assert train(tmp_path / "run", model, sgd(model)).verdict == "healthy"


def test_a_loss_that_rises_under_large_steps_is_unstable(tmp_path):
    model = net(16, 32, 32, 4, act=nn.Tanh)
    diagnosis = train(tmp_path / "run", model, sgd(model, 20.0))
    finding = the(diagnosis, "unstable")
    assert finding.severity == "critical" and finding.place is not None
    assert "changed the weights of" in finding.sentence and "learning rate" in finding.remedies[0]


def test_a_spike_names_the_step_and_the_layer_in_which_it_began(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(
        tmp_path / "run",
        model,
        sgd(model, 1e-3),
        before=lambda step, x: x * (1000 if step == 20 else 1),
        steps=30,
    )
    finding = the(diagnosis, "unstable")
    assert finding.steps == (20, 20) and finding.layers == ("0",)
    assert "the output of layer 0 · 0 (Linear)" in finding.sentence


def test_clipping_to_next_to_nothing_is_told_with_a_norm_that_fits(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.SGD(model.parameters(), 0.05),
        after_backward=lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e-6),  # type: ignore[arg-type, return-value]
    )
    finding = the(diagnosis, "update-speed")
    assert "Clipping leaves" in finding.sentence and "90th percentile" in finding.remedies[0]


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


@pytest.mark.parametrize(
    ("optimizer", "compensated"),
    [
        (lambda p: torch.optim.AdamW(p, 1e-3), True),
        (lambda p: torch.optim.SGD(p, 1e-2), False),
        (lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9), False),
    ],
    ids=["AdamW", "SGD", "momentum"],
)
def test_vanishing_that_the_optimizer_makes_up_for_is_for_information(
    optimizer, compensated, tmp_path
):
    model = net(16, *[32] * 9, 4)
    diagnosis = train(tmp_path / "run", model, optimizer(model.parameters()), steps=10)
    finding = the(diagnosis, "vanishing")
    assert -4 < finding.evidence["decades"] < -2
    assert ("compensated by the optimizer" in finding.sentence) is compensated
    assert (diagnosis.verdict == "healthy") is compensated


def test_gates_may_be_saturated(tmp_path):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.gate, self.open = nn.Linear(16, 16), nn.Linear(16, 16), nn.Sigmoid()
            nn.init.constant_(self.gate.bias, 8.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).relu() * self.open(self.gate(x))

    model = nn.Sequential(Gated(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    assert train(tmp_path / "run", model, sgd(model)).verdict == "healthy"
    model = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Linear(16, 4))
    nn.init.constant_(model[0].bias, 8.0)
    assert "saturated" in train(tmp_path / "flat", model, sgd(model)).verdicts


class Block(nn.Module):
    def __init__(self, start: str) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(16, 16), nn.Linear(16, 16), nn.ReLU()
        self.scale = nn.Parameter(torch.zeros(1)) if start == "rezero" else 1.0
        if start == "zero":
            nn.init.zeros_(self.b.weight)
            nn.init.zeros_(self.b.bias)
        self.drop = 0.5 if start == "stochastic depth" else 0.0

    def forward(self, x: Tensor) -> Tensor:
        if torch.rand(()) < self.drop:
            return x
        return x + self.scale * self.b(self.act(self.a(x)))


@pytest.mark.parametrize("steps", [1, 4, 24])
@pytest.mark.parametrize("start", ["zero", "rezero", "stochastic depth"])
def test_branches_that_start_at_zero_or_are_left_out_are_no_fault(start, steps, tmp_path):
    model = nn.Sequential(nn.Linear(16, 16), *(Block(start) for _ in range(5)), nn.Linear(16, 4))
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01), steps=steps)
    assert diagnosis.verdict == "healthy"


def test_a_head_that_starts_at_zero_is_no_fault(tmp_path):
    model = net(16, 32, 32, 4)
    nn.init.zeros_(model[4].weight)
    for steps in (1, 8):
        diagnosis = train(tmp_path / str(steps), model, sgd(model), steps=steps)
        assert diagnosis.verdict.split(":")[0] in ("healthy", "cannot tell")


def test_a_teacher_that_learns_by_no_gradient_is_no_fault(tmp_path):
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = net(16, 32, 4), net(16, 32, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                target = self.teacher(x)
            return self.student(x) - target

    model = Pair()
    adam = torch.optim.AdamW(model.parameters(), 1e-3)
    diagnosis = train(tmp_path / "run", model, adam, loss_of=lambda d, y: d.square().mean())
    assert diagnosis.verdict == "healthy"
    assert the(diagnosis, "disconnected").severity == "information"


class Last(nn.Module):
    """The last state of a recurrent layer, and a head."""

    def __init__(self, rnn: nn.Module, length: int) -> None:
        super().__init__()
        self.rnn, self.length, self.head = rnn, length, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat(1, self.length)[:, : 4 * self.length].view(len(x), self.length, 4)
        if not isinstance(self.rnn, nn.RNNCellBase):
            return self.head(self.rnn(x)[0][:, -1])
        state = None
        for now in x.unbind(1):
            state = self.rnn(now, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize(("length", "found"), [(6, False), (60, True)])
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_a_gradient_that_is_lost_over_time_steps_is_told(cell, length, found, tmp_path):
    torch.manual_seed(0)
    model = Last(cell(4, 8), length)
    diagnosis = train(tmp_path / "run", model, sgd(model, 1e-3), steps=4)
    assert diagnosis.flow == ("vanishing-through-time" if found else "healthy")
    if found:
        finding = the(diagnosis, "vanishing-through-time")
        assert finding.layers == ("rnn",) and f"Over {length} time steps" in finding.sentence
        assert "gate's bias" in finding.remedies[0]


def test_a_recurrent_layer_is_noted_where_its_steps_are_not_seen(tmp_path):
    model = Last(nn.RNN(4, 8, batch_first=True), 4)
    notes = train(tmp_path / "run", model, sgd(model)).notes
    assert any("time step" in note and "0 · rnn (RNN)" in note for note in notes)
