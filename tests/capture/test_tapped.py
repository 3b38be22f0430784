"""Compiled models whose recorded steps are read within their graph: by plain autograd, right."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradscope
from reference import Reference
from releases import compiles_twice
from ways import interpreted  # noqa: F401

OUTPUTS = ("activation_norm", "activation_mean", "activation_std")


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    monkeypatch.setattr("gradscope.capture.compiled.tapped.EAGER_DEVICES", ())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self, width, layer=nn.Linear):
        super().__init__()
        self.norm, self.fc1 = nn.LayerNorm(width), layer(width, width)
        self.act, self.fc2 = nn.GELU(), layer(width, width)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class Net(nn.Module):
    """Blocks of two layers between a stem that activates by a function, and a head."""

    def __init__(self, blocks=2, width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.into = nn.Linear(5, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.relu, self.head = nn.ReLU(), nn.Linear(width, 2)

    def forward(self, x):
        x = self.into(torch.tanh(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.relu(x))


class ConvNet(nn.Module):
    """BatchNorm, activations in place, one of them shared, a sum in place, a projection."""

    class Block(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
            self.act = nn.ReLU(inplace=True)
            self.project = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

        def forward(self, x):
            y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
            y += self.project(x)
            return self.act(y)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)
        self.one, self.two, self.head = self.Block(4, 4), self.Block(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.two(self.one(self.pool(torch.tanh(self.stem(x)))))
        return self.head(x.mean((2, 3)))


def batches(n, size=6, shape=(5,)):
    torch.manual_seed(1)
    return [(torch.randn(size, *shape), torch.randint(0, 2, (size,))) for _ in range(n)]


def step(call, optimizer, *micro_batches):
    optimizer.zero_grad()
    for x, y in micro_batches:
        F.cross_entropy(call(x), y).backward()
    optimizer.step()


def recorded(model, call, data, path, micro=1, **settings):
    """Train, and return the run, and a copy of the model as it was before each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    copies = []
    with gradscope.watch(call, path, **settings) as scope:
        for i in range(0, len(data), micro):
            copies.append(copy.deepcopy(model))
            step(call, optimizer, *data[i : i + micro])
    return scope.run, copies


def assert_read(run, number, model, data, rel=1e-5):
    """Compare one step of `run` with plain autograd in `model`, as it was before the step."""
    model = copy.deepcopy(model)
    references = [Reference(model, lambda m, b=b: F.cross_entropy(m(b[0]), b[1])) for b in data]
    frame = run.frame()
    frame = frame[frame.step == number].set_index("name")
    assert len(frame) > 3
    for name in frame.index:
        signals = [reference.signal(name) for reference in references]
        assert frame.signal_norm[name] == pytest.approx(np.linalg.norm(signals), rel=rel), name
        outputs = torch.cat([o.flatten() for r in references for o in r.outputs[name]]).double()
        expected = outputs.norm(), outputs.mean(), outputs.std(correction=0)
        for column, value in zip(OUTPUTS, expected, strict=True):
            assert frame[column][name] == pytest.approx(value.item(), rel=rel, abs=1e-7), name
    return frame, references


def test_readings_within_the_graph_are_those_of_plain_autograd(tmp_path):
    model, data = Net(), batches(3)
    run, copies = recorded(model, torch.compile(model, backend="aot_eager"), data, tmp_path / "run")
    assert run.notes == []
    for number in range(3):
        frame, (reference,) = assert_read(run, number, copies[number], data[number : number + 1])
        for name in frame.index.drop("stem"):  # the first input has no gradient
            expected = reference.input_signal(name)
            assert frame.input_signal_norm[name] == pytest.approx(expected, rel=1e-5), name
        slope = 1 - torch.tanh(reference.outputs["stem"][0]).square()
        assert frame.derivative_mean["stem"] == pytest.approx(slope.mean().item(), rel=1e-5)
        off = (reference.outputs["relu"][0] == 0).double().mean().item()
        assert frame.zero_fraction["relu"] == pytest.approx(off)
        assert frame.saturated_fraction["relu"] == pytest.approx(off)
        z = reference.inputs["blocks.0.act"][0].detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.gelu(z).sum(), z)
        steep = frame.derivative_mean["blocks.0.act"]
        assert steep == pytest.approx(slope.abs().mean().item(), rel=1e-5)


def test_shortcuts_are_split_within_the_graph(tmp_path):
    model, data = Net(), batches(3)
    run, copies = recorded(model, torch.compile(model, backend="aot_eager"), data, tmp_path / "run")
    table = run.shortcut_readings
    assert len(run.shortcuts) == 2
    for number in (1, 2):
        x, y = data[number]
        net = copies[number]
        value = net.into(torch.tanh(net.stem(x)))
        outs = [value]
        for block in net.blocks:
            outs.append(block(outs[-1]))
        loss = F.cross_entropy(net.head(net.relu(outs[-1])), y)
        gradients = torch.autograd.grad(loss, outs)
        for shortcut in range(2):
            total, through = gradients[shortcut], gradients[shortcut + 1]
            row = table[(table.step == number) & (table.shortcut == shortcut)].iloc[0]
            branch = total - through
            assert row.total_norm == pytest.approx(total.norm().item(), rel=1e-5)
            assert row.shortcut_norm == pytest.approx(through.norm().item(), rel=1e-5)
            assert row.branch_norm == pytest.approx(branch.norm().item(), rel=1e-4)
            cosine = F.cosine_similarity(through.flatten(), branch.flatten(), 0).item()
            assert row.cosine == pytest.approx(cosine, abs=1e-4)
            added = outs[shortcut + 1] - outs[shortcut]
            ratio = (added.norm() / outs[shortcut].norm()).item()
            assert row.branch_ratio == pytest.approx(ratio, rel=1e-4)
            assert row.other_norm == 0


def test_batchnorm_activations_in_place_and_projections_are_read(tmp_path):
    model, data = ConvNet(), batches(3, shape=(3, 8, 8))
    plain = copy.deepcopy(model)
    run, _ = recorded(model, torch.compile(model, backend="aot_eager"), data, tmp_path / "run")
    eager, _ = recorded(plain, plain, data, tmp_path / "eager")
    assert run.notes == []
    for ours, theirs in (
        (run.frame(), eager.frame()),
        (run.shortcut_readings, eager.shortcut_readings),
    ):
        numbers = theirs.select_dtypes("float").columns
        np.testing.assert_allclose(ours[numbers], theirs[numbers], rtol=1e-3, atol=1e-4)


def test_slopes_that_are_lost_in_place_are_told_by_name(tmp_path):
    torch.manual_seed(0)
    one = nn.Linear(5, 8), nn.LayerNorm(8), nn.SiLU(inplace=True)
    other = nn.Linear(8, 8), nn.LayerNorm(8), nn.ELU(inplace=True)
    model = nn.Sequential(*one, *other, nn.Linear(8, 2))
    call = torch.compile(model, backend="aot_eager")
    with pytest.warns(gradscope.GradscopeWarning, match="derivative_mean .* in place .*'2'\\)"):
        run, _ = recorded(model, call, batches(3), tmp_path / "run")
    assert len(run.notes) == 1
    read = run.frame().pivot(index="step", columns="name", values="derivative_mean")
    assert read["2"].notna().tolist() == [True, False, False]
    assert read["5"].notna().all()


def test_micro_batches_are_combined(tmp_path):
    model, data = Net(), batches(3) + batches(3, size=4)
    data = [data[0], data[3], data[1], data[4], data[2], data[5]]  # of two sizes
    call = torch.compile(model, backend="aot_eager", dynamic=True)
    run, copies = recorded(model, call, data, tmp_path / "run", micro=2)
    for number in (1, 2):
        assert_read(run, number, copies[number], data[2 * number : 2 * number + 2])


@compiles_twice
def test_there_are_two_graphs_and_no_more(tmp_path):
    model, backend = Net(), CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, backend=backend)
    recorded(model, call, batches(13), tmp_path / "run", every=3)
    assert backend.frame_count == 2
    step(call, torch.optim.SGD(model.parameters(), lr=0.1), *batches(1))
    assert backend.frame_count == 2


@compiles_twice
def test_blocks_that_are_compiled_one_by_one_share_two_graphs(tmp_path):
    model, backend, data = Net(blocks=10), CompileCounterWithBackend("aot_eager"), batches(6)
    for block in model.blocks:
        block.compile(backend=backend)
    run, copies = recorded(model, model, data, tmp_path / "run", every=2)
    assert run.notes == []
    assert backend.frame_count == 2
    for number in (2, 4):
        assert_read(run, number, copies[number], data[number : number + 1])


@compiles_twice
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_weights_are_those_of_the_unwatched_run(backend, tmp_path):
    bare, watched, data = Net(), Net(), batches(6)
    call = torch.compile(bare, backend=backend)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    with torch.compiler.set_stance("force_eager"):  # as the first recorded step is
        step(call, optimizer, data[0])
    for batch in data[1:]:
        step(call, optimizer, batch)
    torch._dynamo.reset()
    recorded(watched, torch.compile(watched, backend=backend), data, tmp_path / "run", every=2)
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_inductor_fuses_the_same_readings(tmp_path):
    model, data = Net(), batches(3)
    run, copies = recorded(model, torch.compile(model), data, tmp_path / "run")
    assert run.notes == []
    for number in (1, 2):
        assert_read(run, number, copies[number], data[number : number + 1])


@pytest.mark.parametrize("size", [1e-25, 1e-10, 1e20])
def test_gradients_hold_over_the_whole_range(size, tmp_path):
    model, (x, y) = Net(), batches(1)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    call = torch.compile(model, backend="aot_eager")
    with gradscope.watch(call, tmp_path / "run") as scope:
        for _ in range(2):
            optimizer.zero_grad()
            (F.cross_entropy(call(x), y) * size).backward()
            optimizer.step()
    frame = scope.run.frame()
    first, second = (frame[frame.step == i].set_index("name").signal_norm for i in (0, 1))
    np.testing.assert_allclose(second, first, rtol=1e-5)
    assert first.min() > 0


def test_float64_beyond_the_range_of_its_squares(tmp_path):
    model, (x, y) = Net().double(), batches(1)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    call = torch.compile(model, backend="aot_eager")
    with gradscope.watch(call, tmp_path / "run") as scope:
        for size in (1.0, 1.0, 1e-220, 1e220):
            optimizer.zero_grad()
            (F.cross_entropy(call(x.double()), y) * size).backward()
            optimizer.step()
    signals = scope.run.frame().groupby("step").signal_norm.apply(np.array)
    np.testing.assert_allclose(signals[2] / 1e-220, signals[1], rtol=1e-12)
    np.testing.assert_allclose(signals[3] / 1e220, signals[1], rtol=1e-12)


def test_nan_and_infinity_are_seen(tmp_path):
    model, (x, _) = Net(), batches(1)[0]
    call = torch.compile(model, backend="aot_eager")
    with gradscope.watch(call, tmp_path / "run") as scope:
        for size in (1.0, 1.0, float("inf"), float("nan")):
            optimizer = torch.optim.SGD(model.parameters(), lr=0)
            optimizer.zero_grad()
            (call(x)[0, 0] * size).backward()
            model.zero_grad()  # else the weights are NaN from now on
            optimizer.step()
            scope._recorder.end_step()
    head = scope.run.frame().query("name == 'head'").set_index("step").signal_norm
    assert head[1] == 1 and np.isnan(head[3])


def test_a_loss_scaler_is_divided_out(tmp_path):
    model, (x, y) = Net(), batches(1)[0]
    call = torch.compile(model, backend="aot_eager")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    with gradscope.watch(call, tmp_path / "run") as scope:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(call(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scope.run.steps.loss_scale.tolist() == [1024, 1024]
    assert_read(scope.run, 1, model, [(x, y)])


def test_autocast_within_the_graph(tmp_path):
    model, data = Net(), batches(3)
    plain = copy.deepcopy(model)
    call = torch.compile(model, backend="aot_eager")
    runs = []
    for net, watched in ((model, call), (plain, plain)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0)
        with gradscope.watch(watched, tmp_path / str(len(runs))) as scope:
            for x, y in data:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(watched(x), y)
                loss.backward()
                optimizer.step()
        runs.append(scope.run.frame().select_dtypes("float"))
    np.testing.assert_allclose(*runs, rtol=0.02, atol=1e-3)


class Checkpointed(Net):
    def forward(self, x):
        x = self.into(torch.tanh(self.stem(x)))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(self.relu(x))


def test_checkpointing_within_the_graph_is_read_once(tmp_path):
    model, data = Checkpointed(), batches(3)
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    run, copies = recorded(model, call, data, tmp_path / "run")
    for number in (1, 2):
        plain = Net()
        plain.load_state_dict(copies[number].state_dict())
        assert_read(run, number, plain, data[number : number + 1])


def test_checkpointing_around_compiled_blocks_is_read_once(tmp_path):
    model, data = Checkpointed(), batches(3)
    for block in model.blocks:
        block.compile(backend="aot_eager")
    run, copies = recorded(model, model, data, tmp_path / "run")
    assert not any("could not read" in note for note in run.notes)
    for number in (1, 2):
        plain = Net()
        plain.load_state_dict(copies[number].state_dict())
        assert_read(run, number, plain, data[number : number + 1])


class Broken(Net):
    def forward(self, x):
        x = self.into(torch.tanh(self.stem(x)))
        torch._dynamo.graph_break()
        for block in self.blocks:
            x = block(x)
        return self.head(self.relu(x))


def test_a_graph_that_breaks_is_read_all_the_same(tmp_path):
    model, data = Broken(), batches(3)
    run, copies = recorded(model, torch.compile(model, backend="aot_eager"), data, tmp_path / "run")
    for number in (1, 2):
        plain = Net()
        plain.load_state_dict(copies[number].state_dict())
        assert_read(run, number, plain, data[number : number + 1])


def test_a_penalty_by_autograd_grad_does_not_count(tmp_path):
    model, data = Net(), batches(3)
    call = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0)
    with gradscope.watch(call, tmp_path / "run") as scope:
        for x, y in data:
            optimizer.zero_grad()
            loss = F.cross_entropy(call(x), y)
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            loss.backward()
            optimizer.step()
    assert_read(scope.run, 2, model, data[2:])


@compiles_twice
def test_evaluation_between_steps_changes_nothing(tmp_path):
    model, data = Net(), batches(4)
    backend = CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(call, tmp_path / "run") as scope:
        for x, y in data:
            with torch.no_grad():
                call(x)
            last = copy.deepcopy(model)
            step(call, optimizer, (x, y))
    assert_read(scope.run, 3, last, data[3:])
    assert backend.frame_count == 2  # one to evaluate, one with taps


@compiles_twice
def test_what_is_logged_belongs_to_its_step(tmp_path):
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    call = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(call, tmp_path / "run", every=2) as scope:
        for i, (x, y) in enumerate(batches(6)):
            optimizer.zero_grad()
            loss = F.cross_entropy(call(x), y)
            scope.log(before=float(i))
            loss.backward()
            optimizer.step()
            scope.log(after=float(i))
    steps = scope.run.steps
    assert steps.step[:3].tolist() == [0, 2, 4]
    assert steps.before[:3].tolist() == [0, 2, 4]
    assert steps.after[:3].tolist() == [0, 2, 4]


@compiles_twice
def test_an_alias_that_is_changed_later_stays_one(tmp_path):
    """A module returns what it was given; then one name is changed, and the other read."""

    class Twice(nn.Linear):
        def forward(self, x):
            return x.mul_(2)

    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.twice, self.head = nn.Linear(5, 4), Twice(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.fc(x) + 1
            y = self.twice(x)
            y.add_(3)
            return self.head(x)

    bare, watched, data = Aliased(), Aliased(), batches(4)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    for batch in data:
        step(bare, optimizer, batch)
    run, _ = recorded(watched, torch.compile(watched, backend="aot_eager"), data, tmp_path / "run")
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any("does not show" in note for note in run.notes)


@compiles_twice
def test_what_a_module_keeps_for_a_loss_is_not_taken_for_its_whole_signal(tmp_path):
    class Layer(nn.Linear):
        def forward(self, x):
            self.kept = super().forward(x)
            return self.kept

    model = nn.Sequential(Layer(5, 4), nn.Tanh(), nn.Linear(4, 2))
    call = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(call, tmp_path / "run") as scope:
        for x, y in batches(3):
            optimizer.zero_grad()
            (F.cross_entropy(call(x), y) + model[0].kept.square().mean()).backward()
            optimizer.step()
    signal = scope.run.frame().query("name == '0'").set_index("step").signal_norm
    assert np.isfinite(signal[0]) and signal[1:].isna().all()
    assert any("layer '0'" in note for note in scope.run.notes)


def test_several_tensors_at_once_are_read(tmp_path):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.attend = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = self.embed(x)
            found, weights = self.attend(x, x, x)
            return self.head(found).mean(1) + weights.mean()

    model, data = Recurrent(), batches(3, shape=(4, 5))
    plain = copy.deepcopy(model)
    run, _ = recorded(model, torch.compile(model, backend="aot_eager"), data, tmp_path / "run")
    eager, _ = recorded(plain, plain, data, tmp_path / "eager")
    numbers = eager.frame().select_dtypes("float").columns
    np.testing.assert_allclose(run.frame()[numbers], eager.frame()[numbers], rtol=1e-4, atol=1e-6)
    frame = run.frame().set_index(["step", "name"])
    for number in range(3):  # given three times, and to nothing else
        given = frame.signal_norm[number, "embed"]
        assert frame.input_signal_norm[number, "attend"] == pytest.approx(given, rel=1e-5)


@compiles_twice
def test_frozen_layers_stay_frozen(tmp_path):
    model, data = Net(), batches(3)
    model.stem.requires_grad_(False)
    before = model.stem.weight.clone()
    run, _ = recorded(model, torch.compile(model, backend="aot_eager"), data, tmp_path / "run")
    assert torch.equal(model.stem.weight, before) and model.stem.weight.grad is None
    assert any("no gradient reaches" in note and "stem" in note for note in run.notes)


def test_a_watched_compiled_model_is_saved_without_us(tmp_path):
    model = Net()
    call = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(call, tmp_path / "run"):
        for batch in batches(3):
            step(call, optimizer, batch)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        copied = copy.deepcopy(model)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for net in (copied, loaded):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not hasattr(call.forward, "gradscope_original")


@compiles_twice
def test_a_compiler_that_fails_is_told_and_left(tmp_path):
    calls = []

    def backend(graph, inputs):
        calls.append(1)
        if sum("autograd_function" in str(node.target) for node in graph.graph.nodes):
            raise RuntimeError("no such operation")
        return graph.forward

    model, data = Net(), batches(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run, copies = recorded(model, torch.compile(model, backend=backend), data, tmp_path / "run")
    assert any("compiled steps within their graphs" in note for note in run.notes)
    assert_read(run, 3, copies[3], data[3:])


def test_a_layer_that_is_replaced_is_read_on(tmp_path):
    model, data = Net(), batches(5)
    call = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(call, tmp_path / "run", optimizer=optimizer) as scope:
        for i, batch in enumerate(data):
            if i == 3:
                model.head = nn.Linear(8, 2)
                optimizer.add_param_group({"params": model.head.parameters()})
            last = copy.deepcopy(model)
            step(call, optimizer, batch)
    assert_read(scope.run, 4, last, data[4:])


def test_parts_that_are_called_one_by_one_are_read(tmp_path):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.encode, self.decode = nn.Linear(5, 4), nn.Linear(4, 2)
            self.extra, self.act = nn.Linear(4, 4), nn.Tanh()

    model, data = Parts(), batches(5)
    for part in model.children():
        part.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for x, y in data:
            optimizer.zero_grad()
            value = model.act(model.encode(x))
            value.retain_grad()
            F.cross_entropy(model.decode(value), y).backward()
            optimizer.step()
    frame = scope.run.frame().set_index(["step", "name"])
    assert frame.signal_norm[4, "act"] == pytest.approx(value.grad.norm().item(), rel=1e-5)
    assert frame.activation_norm[4, "act"] == pytest.approx(value.norm().item(), rel=1e-5)


def test_a_model_that_is_compiled_again_is_read_on(tmp_path):
    model, data = Net(), batches(5)
    model.compile(backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, batch in enumerate(data):
            if i == 2:
                model.compile(backend="eager")
            last = copy.deepcopy(model)
            step(model, optimizer, batch)
    assert_read(scope.run, 4, last, data[4:])


@compiles_twice
def test_compiled_code_that_no_tap_is_in_is_told_and_then_put_aside(tmp_path):
    model, data = Net(), batches(5)
    known, other = (torch.compile(model, backend=backend) for backend in ("aot_eager", "eager"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(other, optimizer, data[0])
    with gradscope.watch(known, tmp_path / "run") as scope:
        step(known, optimizer, data[0])
        step(known, optimizer, data[1])
        with pytest.warns(gradscope.GradscopeWarning, match="shows nothing to taps"):
            step(other, optimizer, data[2])
        last = copy.deepcopy(model)
        step(other, optimizer, data[3])
    unseen = scope.run.frame().query("step == 2")
    assert unseen.signal_norm.isna().all() and unseen.update_norm.notna().any()
    assert_read(scope.run, 3, last, data[3:4])


class TwoOutputs(nn.Module):
    """A layer that returns tensors of two sizes, between two others."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Parameter(torch.randn(8, 9)), nn.Parameter(torch.ones(8, 2))

        def forward(self, x):
            return x @ self.one, x @ self.other + 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.two, self.head = nn.Linear(5, 8), self.Layer(), nn.Linear(9, 2)

    def forward(self, x):
        one, other = self.two(torch.tanh(self.stem(x)))
        return self.head(one) + other


def assert_outputs_weigh_by_their_elements(path):
    model, data = TwoOutputs(), batches(3)
    run, copies = recorded(model, torch.compile(model, backend="aot_eager"), data, path)
    frame = run.frame().set_index(["step", "name"])
    assert run.notes == []
    for number in range(3):
        net = copies[number]
        outputs = net.two(torch.tanh(net.stem(data[number][0])))
        mean = torch.cat([x.flatten() for x in outputs]).mean().item()
        assert frame.activation_mean[number, "two"] == pytest.approx(mean, rel=1e-5)


def test_outputs_of_a_layer_weigh_by_their_elements(tmp_path):
    assert_outputs_weigh_by_their_elements(tmp_path / "run")


@pytest.mark.usefixtures("interpreted")
def test_the_structure_is_learnt_where_the_first_step_is_read_as_on_a_gpu(tmp_path):
    assert_outputs_weigh_by_their_elements(tmp_path / "outputs")
    model, data = Net(), batches(6)
    call = torch.compile(model, backend="aot_eager")
    run, copies = recorded(model, call, data, tmp_path / "run", micro=2)
    for number in range(3):
        assert_read(run, number, copies[number], data[2 * number : 2 * number + 2])


class Returning(Net):
    def forward(self, x):
        hidden = self.into(torch.tanh(self.stem(x)))
        return self.head(self.relu(hidden)), hidden


class Keeping(Net):
    def forward(self, x):
        self.hidden = self.into(torch.tanh(self.stem(x)))
        return self.head(self.relu(self.hidden)), None


@pytest.mark.parametrize("kind", [Returning, Keeping])
def test_what_a_loss_uses_too_is_read_through_the_layer_alone(kind, tmp_path):
    model = kind(blocks=0)
    call = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(call, tmp_path / "run") as scope:
        for x, y in batches(3):
            weights = copy.deepcopy(model.state_dict())
            optimizer.zero_grad()
            logits, hidden = call(x)
            hidden = model.hidden if hidden is None else hidden
            (F.cross_entropy(logits, y) + hidden.square().sum()).backward()
            optimizer.step()
    before = Net(blocks=0)
    before.load_state_dict(weights)
    hidden = before.into(torch.tanh(before.stem(x))).detach().requires_grad_()
    (alone,) = torch.autograd.grad(F.cross_entropy(before.head(before.relu(hidden)), y), hidden)
    frame = scope.run.frame().set_index(["step", "name"])
    assert frame.input_signal_norm[2, "relu"] == pytest.approx(alone.norm().item(), rel=1e-5)
    signal = (alone + 2 * hidden).norm().item()
    assert frame.signal_norm[2, "into"] == pytest.approx(signal, rel=1e-5)
