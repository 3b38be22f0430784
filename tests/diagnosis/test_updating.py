"""What keeps weights from learning: no path, no optimizer, no step; each told with what to do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from handmade import make_run
from small_trainings import net, sgd, the, train


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


class WithToken(UnderNoGrad):
    """One with a parameter of its own, as a class token."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__(between)
        self.token = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.token


CUTS = {
    "detach": Halves(lambda h: h.detach()),
    "data": Halves(lambda h: h.data),
    "numpy": Halves(lambda h: torch.tensor(h.detach().numpy())),
    "argmax": Halves(lambda h: F.one_hot(h.argmax(1), 32).float()),
    "no_grad": UnderNoGrad(lambda h: h),
    "no_grad, and a token": WithToken(lambda h: h),
}


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("model", CUTS.values(), ids=CUTS)
def test_first_layers_without_a_path_from_the_loss_are_disconnected(model, steps, tmp_path):
    diagnosis = train(tmp_path / "run", model, sgd(model), steps=steps)
    finding = the(diagnosis, "disconnected")
    assert diagnosis.verdict == "disconnected" and finding.severity == "critical"
    assert finding.layers == ("body.0", "body.2")
    assert "head.0 (Linear)" in finding.sentence
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


class Reads(nn.Module):
    """What a large encoder, whose output is taken without its graph, adds to a small net."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.encoder = net(16, 64, 64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu() + self.encoder(x).detach())


def test_many_parameters_that_never_get_a_gradient_are_told_though_the_first_layer_does(tmp_path):
    torch.manual_seed(0)
    model = Reads()
    finding = the(train(tmp_path / "run", model, sgd(model)), "disconnected")
    assert finding.severity == "warning" and "encoder.4" in finding.layers
    part = sum(p.numel() for p in model.encoder.parameters())
    share = part / sum(p.numel() for p in model.parameters())
    assert f"{share:.0%} of all parameters" in finding.sentence
    assert "detach()" in finding.remedies[1]


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


def test_gradients_that_adam_is_given_again_are_told_though_they_grow_no_more(tmp_path):
    model = net(16, 32, 32, 4)
    diagnosis = train(
        tmp_path / "run", model, torch.optim.Adam(model.parameters(), 0.03), zero=False
    )
    assert diagnosis.verdict == "accumulated"
    assert "its last step again" in the(diagnosis, "accumulated").sentence


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


def test_a_scaler_that_skips_every_step_is_told(tmp_path):
    model = net(16, 32, 4)
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(10):
            optimizer.zero_grad()
            loss = 1e3 * model(torch.randn(8, 16)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)  # and no scaler.update()
            scaler.update(2.0**127)
    finding = the(gradscope.diagnose(scope.run), "not-updated")
    assert finding.severity == "critical" and "skipped all of 10 steps" in finding.sentence
    assert "scaler.update()" in finding.remedies[0]


@pytest.mark.parametrize(("factor", "found"), [(0.1, True), (0.97, False)])
def test_a_rate_that_falls_with_each_batch_is_told(factor, found, tmp_path):
    model = net(16, 32, 4)
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, factor)
    diagnosis = train(tmp_path / "run", model, optimizer, steps=60, after_backward=schedule.step)
    assert ("not-updated" in diagnosis.verdicts) is found
    if found:
        finding = the(diagnosis, "not-updated")
        assert "or less from step" in finding.sentence
        assert "scheduler" in finding.remedies[0]


def test_the_end_of_a_long_cosine_is_none(tmp_path):
    model = net(16, 8, 4)
    optimizer = sgd(model)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1.0 if step < 240 else 1e-7 if step < 262 else 0.0
    )
    diagnosis = train(tmp_path / "run", model, optimizer, steps=264, after_backward=cosine.step)
    assert "not-updated" not in diagnosis.verdicts


def test_decay_alone_is_told_from_clipping(tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    diagnosis = train(tmp_path / "run", model, optimizer, after_backward=optimizer.zero_grad)
    told = [f for f in diagnosis.findings if f.verdict in ("update-speed", "not-updated")]
    assert any("zero_grad()" in remedy for finding in told for remedy in finding.remedies)
    assert not any("lipping" in finding.sentence for finding in told)


def test_a_parameter_of_the_model_itself_that_is_not_used_is_no_first_layer(tmp_path):
    class Leftover(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.body = nn.Parameter(torch.randn(16)), net(16, 32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = Leftover()
    diagnosis = train(tmp_path / "run", model, sgd(model, 0.01))
    assert diagnosis.verdict == "healthy"
    assert the(diagnosis, "disconnected").severity == "information"


@pytest.mark.parametrize(
    ("share", "losses", "severity"),
    [(0.05, (1, 1), "warning"), (0.05, (2, 1), "information"), (0.6, (1, 1), None)],
)
def test_steps_that_rounding_takes_are_told(share, losses, severity, tmp_path):
    layers = [{"layer": 0, "name": "fc", "kind": "Linear", "depth": 1, "parameters": 40}]
    moved = np.full((40, 1), np.nan)
    moved[::8] = share
    readings = {
        "signal_norm": 1.0,
        "grad_norm": 1.0,
        "clipped_grad_norm": 1.0,
        "weight_norm": 1.0,
        "update_norm": 1e-3,
        "moved_fraction": moved,
    }
    loss = {"loss": np.linspace(*losses, 40)}
    diagnosis = gradscope.diagnose(make_run(tmp_path / "run", layers, readings, steps=loss))
    found = [f for f in diagnosis.findings if "rounding" in f.sentence]
    assert [f.severity for f in found] == [severity] * (severity is not None)
    for finding in found:
        assert "changes 5.0% of the weights" in finding.sentence and finding.layers == ("fc",)
        assert "float32" in finding.remedies[0]


def test_steps_of_a_learning_rate_of_0_are_not_lost_in_rounding(tmp_path):
    layers = [{"layer": 0, "name": "fc", "kind": "Linear", "depth": 1, "parameters": 40}]
    moved = np.full((40, 1), np.nan)
    moved[::8, 0] = [0.9, 0.8, 0.7, 0, 0]  # the schedule is over by then
    rate = np.where(np.arange(40) < 20, 0.1, 0.0)
    readings = {"signal_norm": 1.0, "grad_norm": 1.0, "moved_fraction": moved}
    run = make_run(tmp_path / "run", layers, readings, steps={"learning_rate": rate})
    assert not any("rounding" in f.sentence for f in gradscope.diagnose(run).findings)


def test_weights_parametrised_after_the_optimizer_are_not_updated_and_do_not_pile_up(tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = sgd(model)
    for layer in model[::2]:
        nn.utils.parametrizations.weight_norm(layer)
    diagnosis = train(tmp_path / "run", model, optimizer)
    finding = the(diagnosis, "not-updated")
    assert diagnosis.verdict == "not-updated" and finding.layers == ("0", "2", "4")
    assert "parametrizations.weight.original0" in finding.sentence
    assert "accumulated" not in diagnosis.verdicts


def test_parameters_made_anew_in_each_forward_pass_are_not_updated(tmp_path):
    class Pruned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            kept = self.body.weight.abs() > 0.01
            self.body.weight = nn.Parameter(self.body.weight.detach() * kept)
            return self.head(self.body(x).relu())

    model = Pruned()
    finding = the(train(tmp_path / "run", model, sgd(model)), "not-updated")
    assert finding.layers == ("body",) and "holds weight of layer" in finding.sentence


@pytest.mark.parametrize("clears", [True, False])
def test_backward_passes_without_a_step_are_told(clears, tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = sgd(model)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(12):
            F.cross_entropy(model(torch.randn(8, 16)), torch.randint(4, (8,))).backward()
            if clears:
                optimizer.zero_grad()
    with pytest.warns(gradscope.GradscopeWarning, match="no step is recorded"):
        diagnosis = gradscope.diagnose(gradscope.load(tmp_path / "run"))
    finding = the(diagnosis, "not-updated")
    assert diagnosis.verdict == "not-updated" and finding.evidence["backwards"] == 12
    assert "optimizer.step()" in finding.remedies[0]
    assert scope.run.facts["backwards_without_step"] == 12


def test_many_backward_passes_before_the_first_step_are_told_until_it_comes(tmp_path):
    model = net(16, 32, 32, 4)
    optimizer = sgd(model)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for number in range(40):
            F.cross_entropy(model(torch.randn(8, 16)), torch.randint(4, (8,))).backward()
            if number == 38:
                scope.flush()
                assert scope.run.facts["backwards_without_step"] == 32
        optimizer.step()
    assert scope.run.facts["backwards_without_step"] == 0
    assert "not-updated" not in gradscope.diagnose(scope.run).verdicts


def test_an_optimizer_whose_layers_never_have_a_gradient_is_told_and_nothing_is_called_nan(
    tmp_path,
):
    torch.manual_seed(0)
    model = nn.ModuleDict({"critic": net(18, 32, 1), "actor": net(16, 32, 2)})
    rates, moves = sgd(model["critic"], 0.01), sgd(model["actor"], 0.01)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(12):
            x = torch.randn(32, 16)
            rates.zero_grad()
            tried = torch.randn(32, 2)
            model["critic"](torch.cat([x, tried], 1)).square().mean().backward()
            rates.step()
            moves.zero_grad()
            tried = torch.from_numpy(model["actor"](x).detach().numpy())
            (-model["critic"](torch.cat([x, tried], 1)).mean()).backward()
            moves.step()
            scope.log(loss=0.0)
    diagnosis = gradscope.diagnose(scope.run)
    finding = the(diagnosis, "disconnected")
    assert diagnosis.verdict == "disconnected" and finding.layers == ("actor.0", "actor.2")
    assert "an optimizer of their own" in finding.sentence


def test_weights_that_the_loss_makes_small_are_not_called_decayed(tmp_path):
    """AdamW's first steps are as large as its rate, whatever the gradient is."""

    def verdicts(decay: float) -> list[str]:
        model = net(16, 32, 32, 4)
        optimizer = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=decay)
        loss_of = lambda out, y: out.square().mean()  # noqa: E731
        return [
            f.sentence
            for f in train(tmp_path / str(decay), model, optimizer, loss_of=loss_of).findings
            if "weight decay" in f.sentence
        ]

    assert verdicts(2.0) and not verdicts(0.0)


@pytest.mark.parametrize("steps", [40, 80])
def test_vanishing_is_not_made_up_for_where_the_loss_stands_still(steps, tmp_path):
    drawn = torch.Generator().manual_seed(0)
    model = net(16, *[32] * 9, 4, act=nn.Sigmoid)
    with torch.no_grad():
        for layer in model[:-1:2]:
            layer.weight *= 3  # some decades are left: few enough for Adam to make up for
    diagnosis = train(
        tmp_path / "run",
        model,
        torch.optim.Adam(model.parameters(), 1e-4),
        steps=steps,
        targets=lambda x: torch.randint(4, (len(x),), generator=drawn),
    )
    finding = the(diagnosis, "vanishing")
    assert -5 < finding.evidence["decades"] < -2
    assert finding.severity == ("information" if steps < 60 else "critical")
