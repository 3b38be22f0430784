"""Training loops that people write: each reading against plain autograd in the same loop."""

from __future__ import annotations

import copy
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradscope
from loops import batches, loss_of, net, step_frame
from reference import Reference, root_sum_square


def train(model, scope_settings, tmp_path, loop, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run", **scope_settings) as scope:
        loop(model, optimizer, scope)
    return scope.run


def test_accumulated_gradients_are_what_the_optimizer_gets(tmp_path):
    model, data = net(), batches(4)
    references = [Reference(model, lambda m, b=b: loss_of(m, b) / 4) for b in data]
    summed = copy.deepcopy(model)
    sum(loss_of(summed, b) / 4 for b in data).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for b in data:
            (loss_of(model, b) / 4).backward()
        optimizer.step()
    assert len(scope.run.steps) == 1
    read = step_frame(scope.run, 0)
    for name in ("0", "2", "4"):
        expected = root_sum_square(p.grad for p in summed.get_submodule(name).parameters())
        assert read.grad_norm[name] == pytest.approx(expected, rel=1e-12)
        assert read.clipped_grad_norm[name] == pytest.approx(expected, rel=1e-12)
    for name in read.index:  # root of the sum of squares over the micro-batches
        expected = sum(r.signal(name) ** 2 for r in references) ** 0.5
        assert read.signal_norm[name] == pytest.approx(expected, rel=1e-12)
        outputs = torch.cat([r.outputs[name][0] for r in references])
        assert read.activation_norm[name] == pytest.approx(outputs.norm().item(), rel=1e-12)
        assert read.activation_mean[name] == pytest.approx(outputs.mean().item(), rel=1e-9)
        deviation = outputs.std(correction=0).item()
        assert read.activation_std[name] == pytest.approx(deviation, rel=1e-9)


def test_two_losses_over_one_retained_graph(tmp_path):
    model, (batch,) = net(), batches(1)
    summed = copy.deepcopy(model)
    (loss_of(summed, batch) + summed(batch[0]).square().mean()).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        out = model(batch[0])
        F.cross_entropy(out, batch[1]).backward(retain_graph=True)
        out.square().mean().backward()
        optimizer.step()
    read = step_frame(scope.run, 0)
    expected = root_sum_square(p.grad for p in summed[0].parameters())
    assert read.grad_norm["0"] == pytest.approx(expected, rel=1e-12)


def test_a_gradient_penalty_trains_and_is_read(tmp_path):
    def penalised(model, batch):
        x = batch[0].clone().requires_grad_()
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return F.cross_entropy(out, batch[1]) + slope.square().sum(1).mean()

    model, (batch,) = net(), batches(1)
    reference = Reference(model, lambda m: penalised(m, batch))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        penalised(model, batch).backward()
        optimizer.step()
    read = step_frame(scope.run, 0)
    for name in read.index:  # the penalty's own autograd.grad does not count
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-9)
    assert read.grad_norm["0"] == pytest.approx(reference.gradient("0"), rel=1e-9)


def test_a_backward_into_inputs_only_does_not_count(tmp_path):
    model, (batch,) = net(), batches(1)
    reference = Reference(model, lambda m: loss_of(m, batch))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        x = batch[0].clone().requires_grad_()
        out = model(x)
        out.sum().backward(inputs=[x], retain_graph=True)
        F.cross_entropy(out, batch[1]).backward()
        optimizer.step()
    read = step_frame(scope.run, 0)
    assert read.signal_norm["2"] == pytest.approx(reference.signal("2"), rel=1e-12)


def test_passes_that_do_not_train_leave_no_trace(tmp_path):
    def plain(model, optimizer, scope):
        for batch in batches(3):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()

    def disturbed(model, optimizer, scope):
        for batch in batches(3):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            with torch.no_grad():
                model(batch[0] * 2)
            with torch.inference_mode():
                model(batch[0] * 3)
            model.eval()
            model(batch[0] * 4)  # with a graph that nobody uses
            model.train()
            with pytest.raises(RuntimeError):
                model(batch[0][:, :2])  # a forward that raises
            with torch.no_grad():
                torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(batch[0])
            weights = {name: p.detach() for name, p in model.named_parameters()}
            torch.func.grad(lambda w, x=batch[0]: torch.func.functional_call(model, w, (x,)).sum())(
                weights
            )
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model(batch[0])

    first = train(net(), {}, tmp_path / "a", plain).frame()
    second = train(net(), {}, tmp_path / "b", disturbed).frame()
    pd.testing.assert_frame_equal(first, second)


def test_what_trains_within_torch_func_is_told_of(tmp_path):
    def loop(model, optimizer, scope):
        for batch in batches(3):
            optimizer.zero_grad()
            slopes = torch.func.vmap(torch.func.grad(lambda x: model(x).sum()))(batch[0])
            (loss_of(model, batch) + slopes.square().mean()).backward()
            optimizer.step()

    run = train(net(), {}, tmp_path / "run", loop)
    (note,) = run.notes
    assert note.startswith("layers '0', '2', '4': called within torch.func")
    frame = run.frame().query("name in ['0', '2', '4']")
    assert frame[["signal_norm", "activation_norm", "output_elements"]].isna().all(axis=None)
    assert frame[["grad_norm", "update_norm"]].notna().all(axis=None)


class Interrupted(nn.Module):
    error = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
def test_a_step_after_a_forward_that_was_cut_short_is_read_as_any_other(error, tmp_path):
    def cut_short(model, batch):
        model[2].error = error()
        with pytest.raises(error):
            model(batch[0])
        model[2].error = None

    model = nn.Sequential(*net()[:2], Interrupted(), *net()[2:])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    references, left = [], []
    model[0].register_forward_hook(lambda _, args, output: left.append(weakref.ref(output)))
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, batch in enumerate(batches(5)):
            optimizer.zero_grad()
            if i in (0, 3):
                cut_short(model, batch)
                before = left[-1]
            references.append(Reference(model, lambda m, batch=batch: loss_of(m, batch)))
            loss = loss_of(model, batch)
            assert before() is None
            loss.backward()
            optimizer.step()
    for step, reference in enumerate(references):
        read = step_frame(scope.run, step)
        for name in read.index:
            (output,) = reference.outputs[name]
            assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-9)
            assert read.activation_norm[name] == pytest.approx(output.norm().item(), rel=1e-9)
            assert read.output_elements[name] == output.numel()


def test_a_step_made_before_the_forward_returns_has_no_signals_and_a_note(tmp_path):
    class Learning(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

        def forward(self, batch, within):
            self.optimizer.zero_grad()
            loss = loss_of(self.inner, batch)
            if within:
                loss.backward()
                self.optimizer.step()
            return loss

    model = Learning()
    with (
        pytest.warns(gradscope.GradscopeWarning, match="before a forward of the model returned"),
        gradscope.watch(model, tmp_path / "run") as scope,
    ):
        for i, batch in enumerate(batches(4)):
            loss = model(batch, i == 2)
            if i != 2:
                loss.backward()
                model.optimizer.step()
    assert len(scope.run.notes) == 1
    for column in ("signal_norm", "activation_norm"):
        missing = np.isnan(scope.run.matrix(column)[1]).any(axis=1)
        assert missing.tolist() == [False, False, True, False], column


def test_a_module_that_calls_itself_goes_on_with_its_own_forward(tmp_path):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(5, 5).double()

        def forward(self, x, depth=3):
            return torch.tanh(self.fc(x if not depth else self(x, depth - 1)))

    model = Nested()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    references = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for x, _ in batches(3):
            optimizer.zero_grad()
            references.append(Reference(model, lambda m, x=x: m(x).square().mean()))
            model(x).square().mean().backward()
            optimizer.step()
    for step, reference in enumerate(references):
        read = step_frame(scope.run, step)
        assert read.signal_norm["fc"] == pytest.approx(reference.signal("fc"), rel=1e-9)
        assert read.output_elements["fc"] == 4 * 12 * 5


def test_several_optimizers_share_a_step(tmp_path):
    model = net()
    parts = [
        torch.optim.SGD(model[:2].parameters(), lr=0.1),
        torch.optim.Adam(model[2:].parameters(), lr=0.01),
    ]
    with gradscope.watch(model, tmp_path / "run") as scope:
        for batch in batches(3):
            loss_of(model, batch).backward()
            for part in parts:
                part.step()
            for part in parts:
                part.zero_grad()
    assert scope.run.steps.step.tolist() == [0, 1, 2]
    assert scope.run.frame().query("parameters > 0").update_norm.gt(0).all()


def test_a_gan_s_two_models_keep_their_readings_apart(tmp_path):
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 5).double(), net()
    steps_g = torch.optim.Adam(generator.parameters(), lr=0.01)
    steps_c = torch.optim.Adam(critic.parameters(), lr=0.01)
    with (
        gradscope.watch(generator, tmp_path / "g") as g,
        gradscope.watch(critic, tmp_path / "c") as c,
    ):
        for _ in range(3):
            noise = torch.randn(4, 3, dtype=torch.float64)
            steps_c.zero_grad()
            critic(generator(noise).detach()).mean().backward()
            expected_c = root_sum_square(p.grad for p in critic.parameters())
            steps_c.step()
            steps_g.zero_grad()
            critic(generator(noise)).mean().neg().backward()
            expected_g = root_sum_square(p.grad for p in generator.parameters())
            steps_g.step()
    assert g.run.steps.step.tolist() == [0, 1, 2]
    assert g.run.steps.grad_norm.iloc[-1] == pytest.approx(expected_g, rel=1e-12)
    assert c.run.steps.step.tolist() == [0, 1, 2]
    assert c.run.steps.clipped_grad_norm.iloc[-1] == pytest.approx(expected_c, rel=1e-12)


@pytest.mark.parametrize("zero", [True, False])
def test_a_critic_has_no_part_in_the_step_that_is_made_through_it_while_it_is_frozen(
    zero, tmp_path
):
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 5).double(), net()
    steps_g = torch.optim.Adam(generator.parameters(), lr=0.01)
    steps_c = torch.optim.Adam(critic.parameters(), lr=0.01)
    expected = []
    with gradscope.watch(critic, tmp_path / "c") as scope:
        for _ in range(3):
            noise = torch.randn(4, 3, dtype=torch.float64)
            critic.requires_grad_(False)
            critic(generator(noise)).mean().neg().backward()
            steps_g.step()
            critic.requires_grad_(True)
            steps_c.zero_grad(set_to_none=zero)
            out = critic(generator(noise).detach())
            out.retain_grad()
            out.mean().backward()
            before = [p.detach().clone() for p in critic[4].parameters()]
            steps_c.step()
            pairs = zip(critic[4].parameters(), before, strict=True)
            expected.append(
                {
                    "signal_norm": out.grad.norm().item(),
                    "activation_norm": out.norm().item(),
                    "grad_norm": root_sum_square(p.grad for p in critic[4].parameters()),
                    "weight_norm": root_sum_square(before),
                    "update_norm": root_sum_square(p - q for p, q in pairs),
                }
            )
    for step, row in enumerate(expected):
        read = step_frame(scope.run, step)
        for metric, value in row.items():
            assert read[metric]["4"] == pytest.approx(value, rel=1e-9), (step, metric)
    assert scope.run.notes == []


def test_a_graph_that_thrown_away_gradients_came_from_has_no_signals_of_the_next(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for x, y in batches(3):
            optimizer.zero_grad()
            out = model(x)
            out.square().mean().backward(retain_graph=True)
            optimizer.zero_grad()
            nn.functional.cross_entropy(out, y).backward()
            expected.append(root_sum_square(p.grad for p in model[4].parameters()))
            optimizer.step()
    frame = scope.run.frame().set_index(["step", "name"])
    assert frame.signal_norm.isna().all()
    assert frame.grad_norm.xs("4", level="name").tolist() == pytest.approx(expected, rel=1e-9)
    assert len(scope.run.notes) == 1 and "retain_graph" in scope.run.notes[0]


@pytest.mark.parametrize("retained", [True, False])
def test_gradients_put_together_of_several_backwards_are_taken_for_none_of_them(retained, tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = list(model.parameters())
    with gradscope.watch(model, tmp_path / "run") as scope:
        for x, y in batches(3):
            outs = [model(x)] * 2 if retained else [model(x), model(x)]
            losses = [nn.functional.cross_entropy(outs[0], y), outs[1].square().mean()]
            found = []
            for loss in losses:
                optimizer.zero_grad()
                loss.backward(retain_graph=True)
                found.append([p.grad.clone() for p in parameters])
            for p, one, other in zip(parameters, *found, strict=True):
                p.grad = (one + other) / 2
            optimizer.step()
    read = scope.run.frame().query("step == 2").set_index("name")
    assert read.signal_norm.isna().all() and read.grad_norm.isna().all()
    expected = root_sum_square(p.grad for p in model[4].parameters())
    assert read.clipped_grad_norm["4"] == pytest.approx(expected, rel=1e-9)
    assert len(scope.run.notes) == 1 and "put together" in scope.run.notes[0]


def by_norm(gradient):
    return gradient * min(1.0, 0.01 / gradient.norm().item())


def by_value(gradient):
    return gradient.clamp(-0.003, 0.003)


def to_one(gradient):
    return gradient / gradient.norm()


@pytest.mark.parametrize("clip", [by_norm, by_value, to_one])
@pytest.mark.parametrize("every_time", [False, True])
def test_clipping_into_new_tensors_after_a_batch_that_was_skipped_is_clipping(
    clip, every_time, tmp_path
):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for step, batch in enumerate(batches(4)):
            if every_time or step == 2:
                loss_of(model, batch).backward()
            optimizer.zero_grad()
            for part in zip(*[values.split(6) for values in batch], strict=True):
                loss_of(model, part).backward()
            norms = [root_sum_square(p.grad for p in model[4].parameters())]
            for p in model.parameters():
                p.grad = clip(p.grad)
            expected.append([*norms, root_sum_square(p.grad for p in model[4].parameters())])
            optimizer.step()
            optimizer.zero_grad()
    run = scope.run
    assert run.notes == []
    for metric, norms in zip(
        ("grad_norm", "clipped_grad_norm"), np.transpose(expected), strict=True
    ):
        np.testing.assert_allclose(run.matrix(metric)[1][:, 4], norms, rtol=1e-9)
    assert np.isfinite(run.matrix("signal_norm")[1][:, 4]).all()


def test_parameters_frozen_and_added_later_are_followed(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model[:3].parameters(), lr=0.1)
    data = batches(3)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, batch in enumerate(data):
            if i == 1:
                model[0].requires_grad_(False)
            if i == 2:
                optimizer.add_param_group({"params": model[4].parameters()})
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    first, second, third = (step_frame(scope.run, i) for i in range(3))
    assert first.update_norm["0"] > 0 and np.isnan(second.grad_norm["0"])
    assert np.isnan(second.update_norm["4"]) and second.grad_norm["4"] > 0
    assert third.update_norm["4"] > 0


def test_a_module_added_while_training_is_recorded(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, batch in enumerate(batches(4)):
            if i == 1:
                model.append(nn.Linear(2, 2).double())
                optimizer.add_param_group({"params": model[-1].parameters()})
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    assert scope.run.layers.name.tolist()[-1] == "5"
    read = step_frame(scope.run, 3)
    assert read.signal_norm["5"] > 0 and read.update_norm["5"] > 0
    assert np.isnan(step_frame(scope.run, 0).signal_norm["5"])


def test_lazy_modules_are_described_once_they_have_a_shape(tmp_path):
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(2)).double()
    with gradscope.watch(model, tmp_path / "run") as scope:
        optimizer = None
        for batch in batches(2):
            loss = loss_of(model, batch)
            optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert scope.run.layers.kind.tolist() == ["Linear", "Tanh", "Linear"]
    assert scope.run.layers.parameters.tolist() == [24, 0, 10]
    assert step_frame(scope.run, 1).update_norm["0"] > 0


def test_sparse_gradients_are_read(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(torch.tensor([1, 1, 3])).square().sum().backward()
        expected = model[0].weight.grad.to_dense().norm().item()
        optimizer.step()
    assert step_frame(scope.run, 0).grad_norm["0"] == pytest.approx(expected, rel=1e-12)
    assert step_frame(scope.run, 0).update_norm["0"] == pytest.approx(0.1 * expected, rel=1e-9)


def test_complex_parameters_are_read(tmp_path):
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex128))
            self.fc = nn.Linear(5, 5).double()

        def forward(self, x):
            return torch.fft.irfft(torch.fft.rfft(self.fc(x)) * self.filter, n=5)

    model = Fourier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        loss_of(model, batches(1)[0]).backward()
        expected = model.filter.grad.abs().square().sum().sqrt().item()
        optimizer.step()
    read = step_frame(scope.run, 0)
    assert read.grad_norm["(root)"] == pytest.approx(expected, rel=1e-12)
    assert read.update_norm["(root)"] == pytest.approx(0.1 * expected, rel=1e-9)


def test_lbfgs_with_its_closure_is_one_step(tmp_path):
    model, (batch,) = net(), batches(1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    changes = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step(closure)
            changes.append(
                [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
            )
            last = root_sum_square(p.grad for p in model.parameters())
    assert scope.run.steps.step.tolist() == [0, 1, 2]
    assert scope.run.steps.clipped_grad_norm.iloc[-1] == pytest.approx(last, rel=1e-12)
    read = step_frame(scope.run, 2)
    assert read.update_norm["0"] == pytest.approx(root_sum_square(changes[2][:2]), rel=1e-9)


def test_a_closure_that_clips_is_read_after_clipping(tmp_path):
    model, data = net(), batches(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    raw = []

    def closure(batch):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        raw.append(root_sum_square(p.grad for p in model.parameters()))
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        return loss

    with gradscope.watch(model, tmp_path / "run") as scope:
        for batch in data:
            optimizer.step(lambda batch=batch: closure(batch))
    np.testing.assert_allclose(scope.run.steps.grad_norm, raw, rtol=1e-12)
    np.testing.assert_allclose(scope.run.steps.clipped_grad_norm, 1e-3, rtol=1e-3)


class HandMade:
    """Looks like an optimizer, and is none."""

    def __init__(self, parameters, lr, behind_autograd):
        self.parameters, self.lr, self.behind = list(parameters), lr, behind_autograd

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def step(self):
        for p in self.parameters:
            if self.behind:
                p.data = p.data - self.lr * p.grad
            else:
                with torch.no_grad():
                    p.sub_(p.grad, alpha=self.lr)


@pytest.mark.parametrize("behind_autograd", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_an_optimizer_without_hooks_is_told_by_its_updates(behind_autograd, every, tmp_path):
    model = net()
    optimizer = HandMade(model.parameters(), 0.1, behind_autograd)
    scope = gradscope.watch(model, tmp_path / "run", every=every)
    with pytest.warns(gradscope.GradscopeWarning, match="reports no steps"):
        for a, b in zip(batches(3), batches(3), strict=True):
            optimizer.zero_grad()
            (loss_of(model, a) / 2).backward()
            (loss_of(model, b) / 2).backward()  # accumulation is not a step
            expected = root_sum_square(p.grad for p in model[0].parameters())
            optimizer.step()
        optimizer.zero_grad()
        scope.close()
    steps = scope.run.steps
    assert steps.step.tolist() == [0, 1, 2]
    frame = scope.run.frame()
    last = frame[(frame.step == 2) & (frame.name == "0")].iloc[0]
    assert last.grad_norm == pytest.approx(expected, rel=1e-12)
    assert last.update_norm == pytest.approx(0.1 * expected, rel=1e-9)


def test_an_optimizer_step_within_the_backward(tmp_path):
    model = net()
    reference = Reference(model, lambda m: loss_of(m, batches(1)[0]))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step_now(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step_now)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for batch in batches(3):
            loss_of(model, batch).backward()
    assert scope.run.steps.step.tolist() == [0, 1, 2]
    read = step_frame(scope.run, 0)
    for name in ("0", "2", "4"):
        assert read.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-12)
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-12)
        assert read.update_norm[name] == pytest.approx(0.1 * reference.gradient(name), rel=1e-9)


def test_an_explicit_optimizer_narrows_whose_steps_count(tmp_path):
    model = net()
    main = torch.optim.SGD(model[:3].parameters(), lr=0.1)
    side = torch.optim.SGD(model[3:].parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run", optimizer=main) as scope:
        for batch in batches(2):
            loss_of(model, batch).backward()
            side.step()
            main.step()
    read = step_frame(scope.run, 0)
    assert scope.run.steps.step.tolist() == [0, 1]
    assert read.update_norm["0"] > 0 and np.isnan(read.update_norm["4"])


def test_clipping_by_value_shows_in_the_second_norm(tmp_path):
    model, (batch,) = net(), batches(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        loss_of(model, batch).backward()
        before = root_sum_square(p.grad for p in model.parameters())
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
        after = root_sum_square(p.grad for p in model.parameters())
        optimizer.step()
    (row,) = scope.run.steps.itertuples()
    assert row.grad_norm == pytest.approx(before, rel=1e-12)
    assert row.clipped_grad_norm == pytest.approx(after, rel=1e-12)


def test_bf16_autocast_reads_like_its_own_reference(tmp_path):
    model, (batch,) = net(torch.float32), batches(1, torch.float32)

    def loss(m):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(m(batch[0]).float(), batch[1])

    reference = Reference(model, loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        loss(model).backward()
        optimizer.step()
    read = step_frame(scope.run, 0)
    for name in read.index:
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-5)
    assert read.grad_norm["0"] == pytest.approx(reference.gradient("0"), rel=1e-5)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(3)
        )
        self.use_reentrant = use_reentrant
        self.double()

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            if self.use_reentrant is None:
                x = x + block(x)
            else:
                x = x + checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.head(x)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks_read_like_plain_ones(use_reentrant, tmp_path):
    def loop(model, optimizer, scope):
        for batch in batches(2):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()

    plain = train(Checkpointed(), {}, tmp_path / "a", loop)
    again = train(Checkpointed(use_reentrant), {}, tmp_path / "b", loop)
    columns = ["name", "grad_norm", "update_norm", "signal_norm", "activation_norm"]
    first = plain.frame()[["step", *columns]]
    second = again.frame()[["step", *columns]]
    assert first.name.tolist() == second.name.tolist()
    np.testing.assert_allclose(
        first[columns[1:]].to_numpy(), second[columns[1:]].to_numpy(), rtol=1e-12
    )
    assert len(again.shortcuts) == 3


def test_a_part_that_is_called_again_on_a_retained_encoding_counts_once(tmp_path):
    torch.manual_seed(0)
    parts = nn.ModuleDict({"encoder": nn.Linear(6, 8), "head": nn.Linear(8, 2)})
    encoder, head = (torch.optim.SGD(part.parameters(), lr=0.05) for part in parts.values())
    right = []
    with gradscope.watch(parts, tmp_path / "run") as scope:
        for _ in range(4):
            encoder.zero_grad()
            z = parts["encoder"](torch.randn(8, 6))
            for target in range(2):
                head.zero_grad()
                y = parts["head"](z)
                y.retain_grad()
                (y - target).square().mean().backward(retain_graph=target == 0)
                right.append(y.grad.norm().item())
                head.step()
            encoder.step()
    read = scope.run.frame().query("name == 'head'")
    np.testing.assert_allclose(read.signal_norm, right, rtol=1e-5)
    assert (read.output_elements == 16).all()


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_blocks_of_a_net_that_learns_how_to_learn_are_those_of_all_its_calls(
    second_order, steps, tmp_path
):
    """MAML: a step within, whose weights the model is called with, is no part of its blocks."""
    arrived = {}

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            if x.requires_grad:
                x.register_hook(arrived.setdefault(self, []).append)
            return x + self.fc2(torch.tanh(self.fc1(x)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Block(), Block(), nn.Linear(6, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    expected = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(4):
            optimizer.zero_grad()
            x, total = torch.randn(2, 16, 4, dtype=torch.float64), 0
            for task in x:
                weights = dict(model.named_parameters())
                for _ in range(steps):
                    loss = torch.func.functional_call(model, weights, (task,)).square().mean()
                    slopes = torch.autograd.grad(
                        loss, list(weights.values()), create_graph=second_order
                    )
                    weights = {
                        k: w - 0.1 * g for (k, w), g in zip(weights.items(), slopes, strict=True)
                    }
                total = total + torch.func.functional_call(model, weights, (task,)).abs().mean()
            for gradients in arrived.values():
                gradients.clear()  # what came in the steps within does not train
            total.backward()
            optimizer.step()
            expected.append([root_sum_square(arrived[block]) for block in (model[1], model[2])])
    assert scope.run.shortcuts.name.tolist() == ["1", "2"]
    _, read = scope.run.shortcut_matrix("total_norm")
    np.testing.assert_allclose(read, expected, rtol=1e-6)
    assert scope.run.notes == []


def test_blocks_are_found_whose_weights_another_net_makes_of_the_data(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            x.register_hook(arrived.append)
            return x + self.fc2(torch.tanh(self.fc1(x)))

    class Hypernetwork(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), Block(), nn.Linear(6, 1))
            self.maker = nn.Linear(4, sum(p.numel() for p in self.net.parameters()))

        def forward(self, x):
            own = dict(self.net.named_parameters())
            parts = self.maker(x.mean(0)).split([p.numel() for p in own.values()])
            weights = {
                k: p + part.view_as(p) for (k, p), part in zip(own.items(), parts, strict=True)
            }
            return torch.func.functional_call(self.net, weights, (x,))

    torch.manual_seed(0)
    model, arrived = Hypernetwork().double(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(16, 4, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
    assert scope.run.shortcuts[["name", "form", "branch"]].values.tolist() == [
        ["net.1", "identity", "net.1.fc1"]
    ]
    _, read = scope.run.shortcut_matrix("total_norm")
    np.testing.assert_allclose(read[:, 0], [g.norm().item() for g in arrived], rtol=1e-6)
