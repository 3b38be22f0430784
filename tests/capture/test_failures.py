"""Trainings that go on after a backward or a step of the optimizer has raised."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import gradscope
from loops import batches, loss_of, net, step_frame
from reference import Reference, root_sum_square

ERRORS = [torch.OutOfMemoryError, KeyboardInterrupt]


class Raise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        if ctx.error is not None:
            raise ctx.error("injected")
        return gradient, None


class Failing(nn.Module):
    """Its backward raises `error`, if there is one."""

    error = None

    def forward(self, x):
        return Raise.apply(x, self.error)


def failing_net():
    model = net()
    return nn.Sequential(*model[:2], Failing(), *model[2:])


def fail(model, batch, error):
    """Go backward until it raises: some layers and parameters have had their gradients by then."""
    model[2].error = error
    with suppress(error):
        loss_of(model, batch).backward()
    model[2].error = None


def check(run, references):
    """Hold each step against plain autograd."""
    for step, reference in enumerate(references):
        read = step_frame(run, step)
        for name in read.index:
            (output,) = reference.outputs[name]
            assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-9)
            assert read.activation_norm[name] == pytest.approx(output.norm().item(), rel=1e-9)
            assert read.output_elements[name] == output.numel()
        for name in ("0", "3", "5"):
            expected = pytest.approx(reference.gradient(name), rel=1e-9)
            assert read.grad_norm[name] == read.clipped_grad_norm[name] == expected


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("zeroed", ["before the forward", "before the backward", "in place"])
def test_a_backward_that_raised_has_no_part_in_the_step_after_it(error, zeroed, tmp_path):
    model = failing_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    references = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, batch in enumerate(batches(5)):
            if i in (0, 2, 3):
                fail(model, batch, error)
            if zeroed != "before the backward":
                optimizer.zero_grad(set_to_none=zeroed != "in place")
            loss = loss_of(model, batch)
            optimizer.zero_grad(set_to_none=zeroed != "in place")
            references.append(Reference(model, lambda m, batch=batch: loss_of(m, batch)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    check(scope.run, references)


class Checkpointed(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=True)


def test_so_it_is_where_one_within_it_has_ended_before(tmp_path):
    frames = []
    for fails in (False, True):
        layers = net()
        model = nn.Sequential(*layers[:2], Failing(), Checkpointed(*layers[2:]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, tmp_path / str(fails)) as scope:
            for batch in batches(4):
                if fails:
                    fail(model, batch, MemoryError)
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
        frames.append(scope.run.frame())
    for name in ("signal_norm", "activation_norm", "output_elements", "grad_norm", "update_norm"):
        expected, read = (frame[name] for frame in frames)
        assert expected.notna().any()
        np.testing.assert_array_equal(read, expected, err_msg=name)


def test_a_backward_that_raised_is_none_within_which_the_next_one_runs(tmp_path):
    model = failing_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    references = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for first, second in zip(batches(3), batches(6)[3:], strict=True):
            model[2].error = MemoryError
            failing = loss_of(model, first)
            model[2].error = None
            references.append(Reference(model, lambda m, batch=second: loss_of(m, batch)))
            loss = loss_of(model, second)  # before the other's backward
            with pytest.raises(MemoryError):
                failing.backward()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    check(scope.run, references)


@pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")
@pytest.mark.parametrize("goes_on", [True, False])
def test_what_a_backward_that_raised_has_left_is_taken_for_no_signal(goes_on, tmp_path):
    model = failing_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, batch in enumerate(batches(4)):
            optimizer.zero_grad()
            if i == 2:
                fail(model, batch, MemoryError)
            if i != 2 or goes_on:
                loss_of(model, batch).backward()
            expected = root_sum_square(p.grad for p in model[5].parameters())
            optimizer.step()
            if i == 2:
                left = expected
    (note,) = scope.run.notes
    assert "backward raised" in note and "zero_grad()" in note
    for column in ("signal_norm", "activation_norm"):
        missing = np.isnan(scope.run.matrix(column)[1])
        assert missing[2].all() and not missing[[0, 1, 3]].any()
    frame = scope.run.frame().set_index(["step", "name"])
    assert frame.clipped_grad_norm[2, "5"] == pytest.approx(left, rel=1e-9)


def test_gradients_of_a_backward_that_raised_are_let_go_of_before_the_next_forward(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(5, 5).double(), Failing()

        def forward(self, x):
            return x + torch.tanh(self.one(self.other(x)))

    def note(gradient):
        arrived.append(StorageWeakRef(gradient.untyped_storage()))

    torch.manual_seed(0)
    first, last = nn.Linear(5, 5).double(), nn.Linear(5, 2).double()
    model = nn.Sequential(first, Block(), Block(), Block(), last)
    for module in model:
        module.register_forward_hook(lambda _, args, output: output.register_hook(note) and None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arrived = []
    gc.collect()
    gc.disable()
    try:
        with gradscope.watch(model, tmp_path / "run"):
            for i, batch in enumerate(batches(6)):
                model[1].other.error = MemoryError if i % 2 else None
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                assert all(gradient.expired() for gradient in arrived), i
                with suppress(MemoryError):
                    loss.backward()
                    optimizer.step()
                del loss
    finally:
        gc.enable()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("every", [1, 2])
def test_a_step_of_the_optimizer_that_raised_has_no_part_in_the_one_after_it(
    error, every, tmp_path
):
    class Failing(torch.optim.SGD):
        error = None

        def step(self, closure=None):
            if self.error is not None:
                with torch.no_grad():
                    model[0].weight.mul_(2)  # it has come as far as this
                raise self.error
            return super().step(closure)

    model = nn.Sequential(*net()[:2], nn.Identity(), *net()[2:])
    optimizer = Failing(model.parameters(), lr=0.1)
    references, moved = [], []
    with gradscope.watch(model, tmp_path / "run", every=every) as scope:
        for i, batch in enumerate(batches(8)):
            optimizer.zero_grad()
            reference = Reference(model, lambda m, batch=batch: loss_of(m, batch))
            before = model[0].weight.detach().clone(), model[0].bias.detach().clone()
            loss_of(model, batch).backward()
            optimizer.error = error("injected") if i in (0, 3, 4) else None
            with suppress(error):
                optimizer.step()
                references.append(reference)
                pairs = zip(model[0].parameters(), before, strict=True)
                moved.append((root_sum_square(before), root_sum_square(p - q for p, q in pairs)))
    assert scope.run.steps.step.tolist() == list(range(0, 5, every))
    check_every(scope.run, references, moved, every)


def check_every(run, references, moved, every):
    frame = run.frame().set_index(["step", "name"])
    for step in range(0, len(references), every):
        reference, (weight, update) = references[step], moved[step]
        read = frame.loc[step]
        for name in read.index:
            assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-9)
        assert read.grad_norm["0"] == pytest.approx(reference.gradient("0"), rel=1e-9)
        assert read.weight_norm["0"] == pytest.approx(weight, rel=1e-9)
        assert read.update_norm["0"] == pytest.approx(update, rel=1e-9)
    assert run.notes == []


@pytest.mark.parametrize("fails", ["the step", "a backward within a checkpoint"])
def test_a_scope_that_is_closed_after_a_failure_holds_on_to_nothing(fails, tmp_path):
    class Stopping(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.1)
            self.register_step_pre_hook(stop)

    def stop(*_):
        if fails == "the step":
            raise KeyboardInterrupt

    def train(model):
        optimizer = Stopping(model.parameters())
        with suppress(KeyboardInterrupt):
            for batch in batches(2):
                model[2].error = None if fails == "the step" else KeyboardInterrupt
                loss = loss_of(model, batch)
                loss.backward()
                optimizer.step()
        return [weakref.ref(x) for x in (optimizer, loss, model, *model.parameters())]

    layers = net()
    model = nn.Sequential(layers[0], layers[1], Failing(), Checkpointed(*layers[2:]))
    gc.collect()
    gc.disable()
    try:
        scope = gradscope.watch(model, tmp_path / "run")
        left = train(model)
        with pytest.warns(gradscope.GradscopeWarning, match="no step was recorded"):
            scope.close()
        del model, layers
        assert [one() for one in left] == [None] * len(left)
    finally:
        gc.enable()
