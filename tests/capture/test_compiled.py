"""torch.compile on the CPU: right on recorded steps, no storm of recompilations, never silence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import gradscope
from reference import Reference


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.fc, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.double()

    def forward(self, x):
        x = self.stem(torch.tanh(x))
        return self.head(x + self.fc(x))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batches(n):
    torch.manual_seed(1)
    return [(torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 2, (6,))) for _ in range(n)]


def train(callable_, model, data):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(callable_(x), y).backward()
        optimizer.step()


def compiled_first(model, path, backend, every):
    compiled = torch.compile(model, backend=backend)
    return compiled, gradscope.watch(compiled, path, every=every)


def compiled_in_place(model, path, backend, every):
    model.compile(backend=backend)
    return model, gradscope.watch(model, path, every=every)


def compiled_and_called_before(model, path, backend, every):
    compiled = torch.compile(model, backend=backend)
    compiled(batches(1)[0][0])
    return compiled, gradscope.watch(model, path, every=every)


@pytest.mark.parametrize(
    "prepare", [compiled_first, compiled_in_place], ids=["torch.compile", "Module.compile"]
)
def test_recorded_steps_of_a_compiled_model_are_complete(prepare, tmp_path):
    model, counter = Net(), CompileCounter()
    reference = Reference(Net(), lambda m: F.cross_entropy(m(batches(1)[0][0]), batches(1)[0][1]))
    compiled, scope = prepare(model, tmp_path / "run", counter, 3)
    with scope:
        train(compiled, model, batches(9))
    run = scope.run
    assert run.notes == []
    assert run.steps.step.tolist() == [0, 3, 6]
    first = run.frame().query("step == 0").set_index("name")
    for name in first.index:
        assert first.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-12)
        assert first.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-12)
    assert run.frame()[["signal_norm", "update_norm"]].notna().all(axis=None)
    assert len(run.shortcuts) == 1
    assert counter.frame_count == 1  # compiled once, for the steps between


def test_weights_are_those_of_the_unwatched_run(tmp_path):
    bare, watched = Net(), Net()
    train(torch.compile(bare, backend="aot_eager"), bare, batches(6))
    torch._dynamo.reset()
    compiled, scope = compiled_first(watched, tmp_path / "run", "aot_eager", 2)
    with scope:
        train(compiled, watched, batches(6))
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_model_that_is_compiled_after_watch_is_told_and_then_followed(tmp_path):
    model, counter = Net(), CompileCounter()
    scope = gradscope.watch(model, tmp_path / "run", every=2)
    compiled = torch.compile(model, backend=counter)
    with pytest.warns(gradscope.GradscopeWarning, match="seems to have run compiled"):
        train(compiled, model, batches(6))
    scope.close()
    frame = scope.run.frame()
    assert scope.run.steps.step.tolist() == [0, 2, 4]
    assert frame.grad_norm.notna().all() and frame.update_norm.notna().all()
    assert frame.query("step == 0").signal_norm.isna().all()
    assert frame.query("step > 0").signal_norm.notna().all()
    assert counter.frame_count <= 2


def test_a_model_compiled_and_called_before_watch_is_followed(tmp_path):
    model, counter = Net(), CompileCounter()
    compiled, scope = compiled_and_called_before(model, tmp_path / "run", counter, 2)
    with pytest.warns(gradscope.GradscopeWarning, match="seems to have run compiled"):
        train(compiled, model, batches(5))
    scope.close()
    assert scope.run.frame().query("step > 0").signal_norm.notna().all()
    assert counter.frame_count <= 2


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.block = Residual()
        self.double()

    def forward(self, x):
        return self.head(self.block(self.stem(x)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), nn.Tanh()

    def forward(self, x):
        return x + self.act(self.fc(x))


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("begins", [0, 4])
@pytest.mark.parametrize("every", [1, 2])
def test_a_block_that_is_compiled_behind_our_back_is_told_and_then_followed(
    every, begins, fullgraph, tmp_path
):
    model, data = Blocks(), batches(10)
    scope = gradscope.watch(model, tmp_path / "run", every=every)
    train(model, model, data[:begins])
    model.block.compile(backend="eager", fullgraph=fullgraph)
    with pytest.warns(
        gradscope.GradscopeWarning, match=f"'block.fc' ran compiled in step {begins}"
    ):
        train(model, model, data[begins:])
    scope.close()
    run = scope.run
    assert len(run.notes) == 1 and "block" in set(run.shortcuts.name)
    frame = run.frame().set_index(["name", "step"])
    elements = frame.output_elements
    for step in range(0, 10, every):
        seen = step != begins
        assert (elements["block.fc", step] == 48) == seen
        assert np.isnan(elements["block.act", step]) == (not seen)
        assert np.isfinite(frame.signal_norm["block.fc", step]) == seen
        assert np.isfinite(frame.signal_norm["stem", step])


def test_a_model_that_is_compiled_while_it_trains_is_told_and_then_followed(tmp_path):
    model, data = Net(), batches(8)
    scope = gradscope.watch(model, tmp_path / "run")
    train(model, model, data[:3])
    with pytest.warns(gradscope.GradscopeWarning, match="no forward was seen in step 3"):
        train(torch.compile(model, backend="eager", fullgraph=True), model, data[3:])
    scope.close()
    signals = scope.run.frame().groupby("step").signal_norm
    assert signals.apply(lambda column: column.notna().all()).tolist() == [
        step != 3 for step in range(8)
    ]


def test_a_backward_in_compiled_code_is_not_taken_for_what_the_optimizer_got_clipped(tmp_path):
    model, data, norms = Net(), batches(4), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend="eager")
    def backward(x, y):
        F.cross_entropy(model(x), y).backward()

    with gradscope.watch(model, tmp_path / "run") as scope:
        for x, y in data:
            optimizer.zero_grad()
            backward(x, y)
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1e-3).item())
            optimizer.step()
    read = scope.run.steps
    assert np.isnan(read.grad_norm[0])
    assert read.grad_norm[1:].tolist() == pytest.approx(norms[1:], rel=1e-6)
    assert read.clipped_grad_norm.tolist() == pytest.approx([1e-3] * 4, rel=1e-3)
    assert any("no forward was seen in step 0" in note for note in scope.run.notes)


def test_what_compiles_beside_the_model_changes_nothing(tmp_path):
    def run(folder, halve):
        model = Net()
        with gradscope.watch(model, tmp_path / folder) as scope:
            train(lambda x: model(halve(x)), model, batches(6))
        return scope.run

    compiled = run("compiled", torch.compile(lambda x: x / 2, backend="eager"))
    plain = run("plain", lambda x: x / 2)
    assert compiled.notes == []
    assert compiled.frame().equals(plain.frame())


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("eager_steps", [2, 7])
def test_a_stance_of_the_program_s_own_is_left_to_it(every, eager_steps, tmp_path):
    model, counter = Net(), CompileCounter()
    compiled, scope = compiled_first(model, tmp_path / "run", counter, every)
    with scope:
        for i, batch in enumerate(batches(7)):
            if i < eager_steps:
                with torch.compiler.set_stance("force_eager"):
                    train(compiled, model, [batch])
            else:
                train(compiled, model, [batch])
    assert scope.run.notes == []
    train(compiled, model, batches(1))
    assert counter.frame_count == 1  # the stance is that of before


def test_a_stance_that_is_set_for_good_stays(tmp_path):
    model, counter = Net(), CompileCounter()
    compiled, scope = compiled_first(model, tmp_path / "run", counter, 2)
    torch.compiler.set_stance("force_eager")
    try:
        with scope:
            train(compiled, model, batches(5))
        train(compiled, model, batches(1))
        assert counter.frame_count == 0
    finally:
        torch.compiler.set_stance("default")


def test_after_close_compiled_code_runs_again(tmp_path):
    model, counter = Net(), CompileCounter()
    compiled, scope = compiled_first(model, tmp_path / "run", counter, 1)
    with scope:
        train(compiled, model, batches(2))
    assert counter.frame_count == 0
    train(compiled, model, batches(2))
    assert counter.frame_count == 1


@pytest.mark.parametrize("prepare", [compiled_first, compiled_in_place])
def test_what_is_logged_before_the_backward_of_an_unrecorded_step_is_not_of_the_step_before(
    prepare, tmp_path
):
    model = Net()
    called, scope = prepare(model, tmp_path / "run", "eager", every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with scope:
        for step, (x, y) in enumerate(batches(5)):
            loss = F.cross_entropy(called(x), y)
            scope.log(number=step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert scope.run.steps.set_index("step").number.to_dict() == {0: 0, 2: 2, 4: 4}
