"""What a training pays for being recorded: no error, no memory that grows, no wait."""

from __future__ import annotations

import contextlib
import gc
import itertools
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import gradscope
from injected import Injected
from loops import batches, loss_of, net


@pytest.mark.parametrize(
    "target",
    [
        "gradscope.capture.forwards.forward.Forward.enter",
        "gradscope.capture.forwards.forward.Forward.leave",
        "gradscope.capture.forwards.forward.Forward.graph",
        "gradscope.capture.forwards.structures.find_joins",
        "gradscope.capture.forwards.gradients.Gradients.tap",
        "gradscope.capture.forwards.gradients.Gradients._read_values",
        "gradscope.capture.training.parameter_readings.ParameterReadings.after_backward",
        "gradscope.capture.training.parameter_readings.ParameterReadings.before_step",
        "gradscope.capture.training.parameter_readings.ParameterReadings.after_step",
        "gradscope.measure.norm",
        "gradscope.measure.norms",
        "gradscope.measure.census",
        "gradscope.session.tape.Tape.put",
        "gradscope.session.columns.Decoder.decoded",
        "gradscope.capture.training.steps.Steps.close",
        "gradscope.capture.training.backward.Backwards.arrives",
        "gradscope.capture.training.updates.Updates._concern",
    ],
)
def test_an_error_of_ours_is_told_once_and_training_goes_on(target, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("injected")

    def run(watched):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scope = gradscope.watch(model, tmp_path / "run") if watched else None
            if watched:
                monkeypatch.setattr(target, broken)
            for batch in batches(4):
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                optimizer.step()
            if scope:
                scope.close()
        return model.state_dict(), [str(w.message) for w in caught]

    (bare, _), (watched, told) = run(False), run(True)
    for name in bare:
        assert torch.equal(bare[name], watched[name])
    injected = [message for message in told if "injected" in message]
    assert injected and len(injected) == len(set(injected))


GUARDS = {"faults", "__call__", "apart_from_modes", "before", "after", "_guard", "<lambda>"}
GUARDS |= {"backward_calls", "_keep", "_read_and_keep", "current_backward"}
"""Functions, and a module, that have nothing of their own to fail: what they call is in a try."""


def test_an_error_at_any_line_of_ours_costs_readings_and_makes_none_wrong(tmp_path):
    def run(folder, injected):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, tmp_path / folder) as scope:
            for i, batch in enumerate(batches(5)):
                with injected.on() if i == 2 else contextlib.nullcontext():
                    optimizer.zero_grad()
                    loss_of(model, batch).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                    optimizer.step()
                scope.log(batch=i)
        recorded = scope.run
        frame = recorded.frame().merge(recorded.steps.reindex(columns=["step", "batch"]), on="step")
        return list(model.parameters()), frame.set_index(["batch", "name"]), recorded

    weights, whole, plain = run("whole", Injected(10**9, ZeroDivisionError))
    # a tanh whose module has failed is read at the layer before, as one without a module is
    columns = whole.columns.difference(
        ["step", "time", "relative_signal", "derivative_mean", "saturated_fraction"]
    )
    columns = whole[columns].select_dtypes("number").columns.difference(["zero_fraction"])
    injected, at, stride = None, 0, 113
    while injected is None or injected.is_done:
        injected = Injected(at * stride, ZeroDivisionError, GUARDS)
        at += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, read, recorded = run(str(at), injected)
        assert all(map(torch.equal, found, weights))
        read = read.reindex(whole.index)
        for column in columns:
            known = read[column].notna()
            np.testing.assert_allclose(
                read[column][known], whole[column][known], rtol=1e-6, err_msg=f"{at} {column}"
            )
        if read[columns].isna().sum().sum() > whole[columns].isna().sum().sum():
            assert set(recorded.notes) > set(plain.notes)
    assert at > 30


def test_updates_that_cannot_be_read_cost_no_other_reading_and_no_row(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("injected")

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = pytest.warns(gradscope.GradscopeWarning, match="could not read weight updates")
    with told, gradscope.watch(model, tmp_path / "run") as scope:
        for i, batch in enumerate(batches(4)):
            if i == 1:
                monkeypatch.setattr("gradscope.measure.difference_norms", broken)
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    read = scope.run.frame().dropna(subset=["grad_norm"])
    assert sorted(set(read.step)) == [0, 1, 2, 3]
    assert read[["weight_norm", "signal_norm"]].notna().all(axis=None)
    assert read.update_norm[read.step == 0].notna().all()
    assert read.update_norm[read.step > 0].isna().all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    (batch,) = batches(1)

    def count():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    with gradscope.watch(model, tmp_path / "run", flush_every=50) as scope:
        for i in range(2000):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            if i == 200:
                scope.flush()
                before = count()
        scope.flush()
        assert count() <= before + 5
    assert len(scope.run.steps) == 2000


def test_a_step_is_let_go_of_without_help_of_the_garbage_collector(tmp_path):
    """Else what the user has let go of, activations and all, takes memory until it comes round."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(batch):
        optimizer.zero_grad()
        output, loss = model(batch[0]), loss_of(model, batch)
        loss.backward()
        optimizer.step()
        return weakref.ref(output), weakref.ref(loss)

    gc.collect()
    gc.disable()
    try:
        with gradscope.watch(model, tmp_path / "run"):
            for i, batch in enumerate(batches(20)):
                left = [one() for one in step(batch)]
                assert left == [None] * len(left), f"step {i}"
    finally:
        gc.enable()


class Failing(nn.Module):
    error = None

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return x


class Added(nn.Module):
    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x):
        return x + self.inner(x)


@pytest.mark.parametrize(
    "body",
    [
        lambda: [nn.Linear(4, 4), nn.Tanh()],
        lambda: [Added(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4)) for _ in range(2)],
        lambda: [nn.Linear(4, 4) if i % 2 else nn.GELU() for i in range(140)],
        lambda: [nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)],
    ],
    ids=["plain", "residual", "deep", "transformer"],
)
@pytest.mark.parametrize("every", [1, 2])
def test_a_forward_that_raised_leaves_nothing_to_the_garbage_collector(body, every, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), *body(), Failing(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    outputs = []
    for module in model:
        module.register_forward_hook(
            lambda _, args, output: outputs.append(StorageWeakRef(output.untyped_storage()))
        )
    gc.collect()
    gc.disable()
    try:
        with gradscope.watch(model, tmp_path / "run", every=every):
            for i in range(8):
                model[-2].error = RuntimeError("out of memory") if i % 3 == 2 else None
                optimizer.zero_grad()
                with contextlib.suppress(RuntimeError):
                    model(torch.randn(5, 3, 4)).square().mean().backward()
                    optimizer.step()
                model[-2].error = None
                assert all(output.expired() for output in outputs), i
    finally:
        gc.enable()


def test_a_closed_scope_holds_on_to_nothing_that_was_trained(tmp_path):
    """In a notebook it is a variable like others, and lives on when the model is dropped."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scope = gradscope.watch(model, tmp_path / "run")
    for batch in batches(3):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    state = optimizer.state[next(model.parameters())]["exp_avg"]
    left = [weakref.ref(x) for x in (model, *model.parameters(), optimizer, state)]
    gc.collect()
    gc.disable()
    try:
        scope.close()
        del model, optimizer, state
        assert [one() for one in left] == [None] * len(left)
    finally:
        gc.enable()
    assert "closed" in repr(scope) and len(scope.run.steps) == 3


@pytest.mark.parametrize("calls", [5, 50])
def test_what_waits_for_the_flush_is_few_objects_however_often_a_layer_is_called(calls, tmp_path):
    """Else Python looks for garbage among them again and again, at much cost."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.act, self.head = nn.LSTMCell(5, 8), nn.GELU(), nn.Linear(8, 2)

        def forward(self, x):
            h = c = x.new_zeros(len(x), 8)
            for _ in range(calls):
                h, c = self.cell(x, (self.act(h), c))
            return self.head(h)

    model, steps = Loop(), 32  # units are looked at at each eighth step
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train():
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()

    with gradscope.watch(model, tmp_path / "run", flush_every=10_000) as scope:
        train()
        scope.flush()
        gc.collect()
        before = len(gc.get_objects())
        train()
        gc.collect()
        kept = len(gc.get_objects()) - before
    assert kept / steps < 60


def test_a_whole_step_on_the_meta_device_shows_that_nothing_waits(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return x + self.fc2(self.act(self.fc1(self.norm(x))))

    model = nn.Sequential(nn.Linear(5, 8), Block(), nn.ReLU(), Block(), nn.Linear(8, 2)).to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.empty(4, 5, device="meta")).square().sum()
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), 1.0)
            optimizer.step()
            scope.log(train_loss=loss)
    assert scope.run.notes == []
    assert len(scope.run.steps) == 3 and len(scope.run.shortcuts) == 2


class Changing(nn.Module):
    """Runs its blocks as `ways` says, in each forward as it did not before."""

    def __init__(self, blocks, ways):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
        self.double()
        self.ways = ways(self.blocks)

    def forward(self, x):
        x = self.stem(x)
        for block in next(self.ways):
            x = x + torch.tanh(block(x))
        return self.head(x)


@pytest.mark.parametrize(
    ("blocks", "ways"),
    [
        pytest.param(6, itertools.permutations, id="other_order"),
        pytest.param(
            11,
            lambda blocks: itertools.combinations(blocks, 5),
            id="other_blocks",
        ),
    ],
)
def test_a_structure_that_changes_all_the_time_costs_bounded_memory(blocks, ways, tmp_path):
    model = Changing(blocks, ways)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    (batch,) = batches(1)

    def count():
        gc.collect()
        return sum(str(type(o).__module__).startswith("gradscope.") for o in gc.get_objects())

    with gradscope.watch(model, tmp_path / "run") as scope:
        for step in range(400):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            if step == 150:
                scope.flush()
                before = count()
        scope.flush()
        assert count() < 1.1 * before


def test_a_structure_that_changes_all_the_time_costs_bounded_time(tmp_path, monkeypatch):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.fc, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.double()
            self.depth = 0

        def forward(self, x):
            x, self.depth = self.stem(x), self.depth + 1
            for _ in range(self.depth):
                x = x + torch.tanh(self.fc(x))
            return self.head(x)

    model = Unrolled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clock = itertools.count(0.0, 10.0)  # who looks at it twice has taken 10 s in between
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    scope = gradscope.watch(model, tmp_path / "run")
    with pytest.warns(gradscope.GradscopeWarning, match="changes all the time"):
        for batch in batches(8):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    scope.close()
    assert 0 < len(scope.run.shortcuts) < 8  # a deeper net has more of them
    assert scope.run.frame().signal_norm.notna().all()  # the layers are read all the same


@pytest.mark.filterwarnings("ignore::gradscope.GradscopeWarning")
def test_of_a_forward_that_cannot_be_followed_no_clipped_gradient_is_taken_for_the_whole(
    tmp_path, monkeypatch
):
    from gradscope.capture.forwards.forward import Forward

    def broken(self, *args):
        raise ZeroDivisionError("injected")

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr(Forward, "leave", broken)
    clipped = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(5, 3)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            clipped.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
            optimizer.step()
    np.testing.assert_allclose(scope.run.steps.clipped_grad_norm, clipped, rtol=1e-5)
    taken = scope.run.steps.grad_norm
    assert not (taken < 2e-3).any(), taken
