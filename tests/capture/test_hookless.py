"""Optimizers that report nothing: master weights, steps on `p.data`, here and on an accelerator."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture.training import parameter_readings
from reference import root_sum_square

STEPS = 4


def net(place):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).to(place, torch.float64)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


class Master:
    """Weights of more digits beside the model's, as apex and ZeRO keep them."""

    def __init__(self, model):
        self.model = model
        self.weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
        self.optimizer = torch.optim.Adam(self.weights, lr=0.05)

    def step(self):
        for p, q in zip(self.model.parameters(), self.weights, strict=True):
            q.grad = p.grad.clone()
        self.optimizer.step()
        for p, q in zip(self.model.parameters(), self.weights, strict=True):
            p.data.copy_(q.data)


class OnData:
    """Stochastic gradient descent by hand."""

    def __init__(self, model):
        self.model = model

    def step(self):
        for p in self.model.parameters():
            p.data.add_(p.grad.data, alpha=-0.05)


class Replacing(OnData):
    def step(self):
        for p in self.model.parameters():
            p.data = p.data - 0.05 * p.grad.data


def drop(model):
    for p in model.parameters():
        p.grad = None


def zero(model):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()


def zero_unseen(model):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()


def train(model, optimizer, clear, when, each):
    """Train, and report each step to `each`, with the weights before; `clear` the gradients."""
    for x in batches():
        x = x.to(model[0].weight.device)
        if when == "first":
            clear(model)
        outputs = [model(part) for part in x.split(3)]
        if when == "after the forward":
            clear(model)
        for output in outputs:
            output.square().sum().backward()
        before = copy.deepcopy(model)
        optimizer.step()
        each(before, model, 2 * torch.cat(outputs).detach())
        if when == "last":
            clear(model)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(
    params=["cpu", "as an accelerator", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
)
def device(request, monkeypatch):
    """Where the values cannot be had without waiting for it, or the CPU."""
    if request.param == "as an accelerator":
        monkeypatch.setattr(parameter_readings, "_on_host", lambda tensors: False)
        return "cpu", True
    return request.param, request.param == "cuda"


@pytest.mark.parametrize("when", ["first", "after the forward", "last"])
@pytest.mark.parametrize("clear", [drop, zero, zero_unseen])
@pytest.mark.parametrize("make", [Master, OnData, Replacing])
@pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")
def test_every_step_is_seen_or_said_not_to_be(make, clear, when, device, tmp_path):
    (place, is_accelerator), expected = device, []
    model = net(place)

    def each(before, after, signal):
        pairs = zip(before[0].parameters(), after[0].parameters(), strict=True)
        expected.append(
            (
                root_sum_square(p.grad for p in after.parameters()),
                root_sum_square(before[0].parameters()),
                root_sum_square(q.detach() - p.detach() for p, q in pairs),
                signal.norm().item(),
            )
        )

    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, make(model), clear, when, each)
    run = scope.run
    (note, *others) = run.notes
    if is_accelerator and clear is zero_unseen and make is not Replacing:
        assert len(run.steps) == 0
        assert "p.grad = None" in note and "torch.optim.Optimizer" in note
        return
    assert not others and "reports no steps" in note
    gradients, weights, updates, signals = np.transpose(expected)
    assert run.steps.step.tolist() == list(range(STEPS))
    np.testing.assert_allclose(run.steps.grad_norm, gradients, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("weight_norm")[1][:, 0], weights, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("update_norm")[1][:, 0], updates, rtol=1e-9)
    np.testing.assert_allclose(run.matrix("signal_norm")[1][:, 2], signals, rtol=1e-9)


class Told(torch.optim.Optimizer):
    """What the notes advise: a subclass, with the model's parameters."""

    def __init__(self, model):
        super().__init__(model.parameters(), {})
        self.inner = Master(model)

    def step(self):
        self.inner.step()


def test_the_remedy_that_is_told_works(device, tmp_path):
    model, clipped = net(device[0]), []
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(
            model,
            Told(model),
            zero_unseen,
            "first",
            lambda _, after, __: clipped.append(
                root_sum_square(p.grad for p in after.parameters())
            ),
        )
    assert scope.run.notes == []
    np.testing.assert_allclose(scope.run.steps.clipped_grad_norm, clipped, rtol=1e-12)


class Signs(OnData):
    """A class of one's own, for the matrices alone; the rest is left to one of torch's."""

    def __init__(self, weights, hidden):
        self.weights, self.hidden = list(weights), hidden

    @torch.no_grad()
    def step(self):
        for p in self.weights:
            (p.data if self.hidden else p).sub_(p.grad.sign(), alpha=0.01)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"updates": "sampled"}])
@pytest.mark.parametrize("hidden", [False, True], ids=["weights", "data"])
@pytest.mark.parametrize("first", ["its own", "torch's"])
def test_weights_that_a_class_of_ones_own_updates_beside_torch_s_count(
    first, hidden, settings, every, tmp_path
):
    model, bare = net("cpu"), net("cpu")

    def optimizers_of(some):
        return (
            Signs([p for p in some.parameters() if p.dim() == 2], hidden),
            torch.optim.AdamW([p for p in some.parameters() if p.dim() == 1], lr=0.01),
        )

    expected = []
    told = pytest.warns(gradscope.GradscopeWarning, match="layers '0', '2': something that is no")
    with told, gradscope.watch(model, tmp_path / "run", every=every, **settings) as scope:
        pairs = [(model, optimizers_of(model)), (bare, optimizers_of(bare))]
        for x in batches():
            for some, optimizers in pairs:
                some.zero_grad()
                for part in x.split(3):
                    some(part).square().sum().backward()
                before = copy.deepcopy(some[0])
                for optimizer in optimizers if first == "its own" else optimizers[::-1]:
                    optimizer.step()
            both = zip(before.parameters(), bare[0].parameters(), strict=True)
            expected.append(
                (
                    root_sum_square(p.grad for p in bare.parameters()),
                    root_sum_square(before.parameters()),
                    root_sum_square(q.detach() - p.detach() for p, q in both),
                )
            )
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    run = scope.run
    gradients, weights, updates = np.transpose(expected[::every])
    np.testing.assert_allclose(run.steps.grad_norm, gradients, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("weight_norm")[1][:, 0], weights, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("update_norm")[1][:, 0], updates, rtol=1e-9)
    assert np.isnan(run.matrix("clipped_grad_norm")[1]).all()
    assert run.steps.clipped_grad_norm.isna().all()
    assert len(run.notes) == 1 + len(settings)
    assert set(run.layers.training) == {"trained", ""}


def test_weights_that_it_updates_only_later_are_nan_as_that_begins(tmp_path):
    model = net("cpu")
    own = Signs([model[0].weight], hidden=False)
    optimizer = torch.optim.SGD([model[0].bias, *model[2].parameters()], lr=0.01)
    weights, of_biases = [], []
    told = pytest.warns(gradscope.GradscopeWarning, match="weight_norm and update_norm of the step")
    with told, gradscope.watch(model, tmp_path / "run") as scope:
        for step, x in enumerate(batches()):
            model.zero_grad()
            model(x).square().sum().backward()
            weights.append(root_sum_square(model[0].parameters()))
            of_biases.append(root_sum_square([model[0].bias]))
            optimizer.step()
            if step >= 2:
                own.step()
    run = scope.run
    read = run.matrix("weight_norm")[1][:, 0]
    np.testing.assert_allclose(read, [*of_biases[:2], np.nan, weights[3]], rtol=1e-12)
    assert np.isnan(run.matrix("update_norm")[1][:, 0]).tolist() == [False, False, True, False]
    got = np.isnan(run.matrix("clipped_grad_norm")[1])
    assert got[:, 0].tolist() == [False, False, True, True] and not got[:, 2].any()
    assert len(run.notes) == 1


@pytest.mark.parametrize("settings", [{}, {"updates": False}, {"updates": "sampled"}])
def test_weights_that_are_left_out_of_the_optimizer_are_of_no_norm_of_weights(settings, tmp_path):
    """Neither frozen nor trained: of a layer the norms are of what an optimizer holds."""
    model = net("cpu")
    optimizer = torch.optim.SGD([model[0].bias], lr=0.01)
    expected = []
    with gradscope.watch(model, tmp_path / "run", **settings) as scope:
        for x in batches():
            model.zero_grad()
            model(x).square().sum().backward()
            expected.append(
                (
                    root_sum_square([model[0].bias]),
                    root_sum_square([model[0].bias.grad]),
                    root_sum_square(p.grad for p in model[0].parameters()),
                )
            )
            optimizer.step()
    run = scope.run
    assert len(run.notes) == len(settings)  # which are said to be so
    weights, got, gradients = np.transpose(expected)
    np.testing.assert_allclose(run.matrix("weight_norm")[1][:, 0], weights, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("clipped_grad_norm")[1][:, 0], got, rtol=1e-12)
    np.testing.assert_allclose(run.matrix("grad_norm")[1][:, 0], gradients, rtol=1e-12)
    assert np.isnan(run.matrix("weight_norm")[1][:, 2]).all()
    if settings.get("updates", True):
        moved = run.matrix("update_norm")[1][:, 0]
        np.testing.assert_allclose(moved, 0.01 * got, rtol=1e-9)


def test_an_optimizer_that_is_made_for_each_step_is_torch_s_all_the_same(tmp_path):
    model = net("cpu")
    with gradscope.watch(model, tmp_path / "run") as scope:
        for x in batches():
            model.zero_grad()
            model(x).square().sum().backward()
            torch.optim.SGD(model.parameters(), lr=0.01).step()
    run = scope.run
    assert run.notes == []
    moved, got = run.matrix("update_norm")[1], run.matrix("clipped_grad_norm")[1]
    np.testing.assert_allclose(moved, 0.01 * got, rtol=1e-9)


def test_gradients_of_weights_that_it_has_updated_already_are_of_no_step(tmp_path):
    """As of a critic beside its generator: they wait for the critic's next turn."""
    model = net("cpu")
    critic = Signs(model[2].parameters(), hidden=False)
    actor = torch.optim.SGD(model[0].parameters(), lr=0.01)
    expected = []
    told = pytest.warns(gradscope.GradscopeWarning, match="layer '2': something that is no")
    with told, gradscope.watch(model, tmp_path / "run") as scope:
        for x in batches():
            for optimizer in critic, actor:
                model.zero_grad()
                model(x).square().sum().backward()
                optimizer.step()
            expected.append(root_sum_square(p.grad for p in model[0].parameters()))
    np.testing.assert_allclose(scope.run.steps.grad_norm, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("every", "when"),
    [(1, "first"), (1, "after the forward"), (1, "last"), (10, "first"), (10, "last")],
)
@pytest.mark.parametrize("clear", [drop, zero])
def test_steps_by_hand_that_follow_an_optimizer_s_are_said_not_to_be_recorded(
    clear, when, every, tmp_path
):
    model = net("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with (
        pytest.warns(gradscope.GradscopeWarning, match="made by hand"),
        gradscope.watch(model, tmp_path / "run", every=every) as scope,
    ):
        for step, x in enumerate(4 * batches()):
            if when == "first":
                clear(model)
            loss = model(x).square().sum()
            if when == "after the forward":
                clear(model)
            loss.backward()
            if step < 6:
                optimizer.step()
            else:
                with torch.no_grad():
                    for p in model.parameters():
                        p.sub_(p.grad, alpha=0.05)
            if when == "last":
                clear(model)
    assert len(scope.run.steps) == len(range(0, 6, every))
    assert len(scope.run.notes) == 1


@pytest.mark.parametrize("every", [1, 2])
def test_weights_that_are_masked_before_each_micro_batch_are_none_of_those(every, tmp_path):
    model = net("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for x in batches():
            for part in x.split(1):
                with torch.no_grad():
                    for p in model.parameters():
                        p.mul_(p.abs() > 0.01)
                model(part).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(scope.run.steps) == STEPS // every and scope.run.notes == []
