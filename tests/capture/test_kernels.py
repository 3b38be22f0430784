"""As on a GPU: sums by Triton's kernels, interpreted; at once and, once that is proven, late."""

from __future__ import annotations

import copy
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.capture import calls
from gradscope.capture.training import updates
from gradscope.measure import gpu_compiler, gpu_kernel
from reference import Reference
from ways import interpreted  # noqa: F401

pytestmark = pytest.mark.usefixtures("interpreted")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2, self.out = (
            nn.Linear(6, 6),
            nn.GELU(),
            nn.Linear(6, 6),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x + self.out(self.fc2(self.act(self.fc1(x))))


class Silent(nn.Module):
    """Overwrites what it is given, as a kernel does of which autograd knows nothing."""

    def __init__(self, steps=()):
        super().__init__()
        self.when, self.calls = steps, 0

    def forward(self, x):
        y = x * 1.0
        if self.calls in self.when:
            x.data.mul_(3)
        self.calls += 1
        return y


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Block(), nn.ReLU(), Block(), nn.Linear(6, 3))


def train(model, steps, data_of=None, scope=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(steps):
        torch.manual_seed(i)
        x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if scope is not None:
            scope.flush()


def prepared():
    kernel = gpu_kernel.kernel(torch.device("cpu"))
    kernel.prepare([torch.float32])
    assert kernel.wait(60)
    return kernel


def launches(kernel):
    """Count what is launched from now on, by the name of the function."""
    counts = {"one": 0, "many": 0}
    for made_for, launch in list(kernel._compiler._ready.items()):

        def counted(programs, arguments, launch=launch, name=made_for[0]):
            counts[name] += 1
            launch(programs, arguments)

        kernel._compiler._ready[made_for] = counted
    return counts


def test_readings_at_once_and_late_are_those_of_plain_autograd(tmp_path):
    model, twin = net(), net()
    kernel = prepared()
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 4, scope=scope)
        kernel.wait(60)
        counts = launches(kernel)
        train(model, 1, scope=scope)
    assert counts["one"] == 0, "all tensors are small, and proven by now"
    assert 0 < counts["many"] < 12
    run = scope.run
    assert run.notes == []
    train(twin, 4)
    torch.manual_seed(0)
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    reference = Reference(twin, lambda m: F.cross_entropy(m(x), y))
    read = run.frame().query("step == 4").set_index("name")
    for name in read.index:
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-5)
        if reference.gradient(name):
            assert read.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-5)
    by_torch = tmp_path / "torch"
    model = net()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_kernel, "by_interpreter", False)
        with gradscope.watch(model, by_torch) as scope:
            train(model, 4)
            train(model, 1)
    for table in ("layer_readings", "shortcut_readings"):
        expected, found = getattr(scope.run, table), getattr(run, table)
        for column in expected.columns:
            np.testing.assert_allclose(
                found[column], expected[column], rtol=1e-4, atol=1e-6, err_msg=column
            )


def test_what_is_too_large_to_wait_is_read_by_launches_of_its_own(tmp_path, monkeypatch):
    """Channels last, too, and once its place is known, which takes a step."""
    monkeypatch.setattr(gpu_kernel.Kernel, "small", 8)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten()
    ).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    kernel = prepared()
    images = [torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last) for _ in range(4)]

    def loss_of(net, x):
        return net(x).square().mean()

    def train_on(net, scope=None):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for x in images[:3] if scope is None else images:
            optimizer.zero_grad()
            loss_of(net, x).backward()
            optimizer.step()

    with gradscope.watch(model, tmp_path / "run") as scope:
        counts = launches(kernel)
        train_on(model, scope)
    assert counts["one"] >= 4 * 5
    assert scope.run.notes == []
    train_on(twin)
    read = scope.run.frame().query("step == 3").set_index("name")
    reference = Reference(twin, lambda m: loss_of(m, images[3]))
    for name in ("0", "2"):
        assert read.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-5)
    assert read.signal_norm["2"] == pytest.approx(reference.signal("2"), rel=1e-5)
    output = twin[1](twin[0](images[3]))
    assert read.activation_norm["1"] == pytest.approx(output.norm().item(), rel=1e-5)
    assert read.zero_fraction["1"] == pytest.approx((output == 0).double().mean().item(), rel=1e-5)


def test_what_is_overwritten_is_read_at_once_in_place_or_unseen(tmp_path):
    model = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), Silent(range(99)), nn.Linear(5, 3)
    )
    kernel = prepared()
    norms = []
    for layer in (model[0], model[2]):
        layer.register_forward_hook(lambda _, __, out: norms.append(out.norm().item()))
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 3, scope=scope)
        kernel.wait(60)
        train(model, 3, scope=scope)
    run = scope.run
    assert run.notes == []
    read = run.frame().pivot(index="step", columns="name", values="activation_norm")
    np.testing.assert_allclose(read[["0", "2"]], np.reshape(norms, (-1, 2)), rtol=1e-5)


def test_what_is_overwritten_for_once_is_nan_with_one_note(tmp_path):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    prepared()
    overwrite = []

    def hook(_, args):
        if overwrite:
            with torch.no_grad():
                args[0].mul_(1.0)

    model[1].register_forward_pre_hook(hook)
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 3, scope=scope)
        overwrite.append(True)
        train(model, 2, scope=scope)
    read = scope.run.frame().pivot(index="step", columns="name", values="activation_norm")
    assert np.isnan(read.loc[3, "0"])
    assert read.drop(index=3).notna().all(axis=None)
    assert read.loc[3, ["1", "2"]].notna().all()
    (note,) = scope.run.notes
    assert note.startswith("in step 3 an activation or a gradient was overwritten")


def test_memory_that_is_gone_is_not_read(tmp_path):
    """As pipelines do, which free an output once it is sent on."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model[1:].parameters(), lr=0.1)
    prepared()
    frees, outputs = [], []

    def free(*_):
        if frees:
            outputs[-1].untyped_storage().resize_(0)

    model[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    model[1].register_forward_hook(free)
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 3, scope=scope)
        frees.append(True)
        model(torch.randn(8, 4))
        frees.clear()
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    read = scope.run.frame().pivot(index="step", columns="name", values="activation_norm")
    assert read.drop(index=3).notna().all(axis=None)
    assert "in step 3 an activation or a gradient was overwritten, or its memory freed" in str(
        scope.run.notes[0]
    )


def test_while_a_cuda_graph_is_captured_nothing_is_read_and_that_is_said(tmp_path, monkeypatch):
    capturing = []
    for module in (calls, updates, gradscope.capture.training.backward):
        monkeypatch.setattr(module, "is_capturing", lambda: bool(capturing))
    model = net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 2)
        capturing.append(True)
        train(model, 3)
        capturing.clear()
        train(model, 1)
    assert scope.run.steps.step.tolist() == [0, 1, 2]
    assert scope.run.frame().signal_norm.notna().all()
    (note,) = scope.run.notes
    assert "a CUDA graph is being captured" in str(note)


def test_without_a_working_compiler_torch_reads_and_one_note_says_why(tmp_path, monkeypatch):
    def broken(self, made_for):
        raise OSError("no space left on device")

    monkeypatch.setattr(gpu_compiler.Compiler, "_compile", broken)
    model = net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        gpu_kernel.kernel(torch.device("cpu")).wait(60)
        train(model, 2)
    assert scope.run.frame()[["signal_norm", "activation_norm"]].notna().all(axis=None)
    (note,) = scope.run.notes
    assert "no space left on device" in str(note)
    assert "read by torch" in str(note)


def test_one_dtype_that_cannot_be_compiled_leaves_the_others_to_their_kernels(monkeypatch):
    compiled = gpu_compiler.Compiler._compile

    def without_halves(self, made_for):
        if made_for.x is torch.bfloat16:
            raise RuntimeError("bf16 is not supported on this card")
        return compiled(self, made_for)

    monkeypatch.setattr(gpu_compiler.Compiler, "_compile", without_halves)
    kernel = gpu_kernel.kernel(torch.device("cpu"))
    kernel.prepare([torch.float32, torch.bfloat16])
    assert not kernel.wait(60)
    x = torch.randn(7)
    assert kernel.square_sums([x]).item() == pytest.approx(float(x.double().square().sum()))
    assert kernel.square_sums([x.bfloat16()]) is None
    (sentence,) = gpu_kernel.problems()
    assert "bf16 is not supported" in sentence and "bfloat16" in sentence


def test_what_is_read_before_its_kernel_is_compiled_is_right(tmp_path, monkeypatch):
    """Samples of activations, which wait from the first step on, and tensors at odd addresses."""
    may_compile = threading.Event()
    compiled = gpu_compiler.Compiler._compile

    def late(self, made_for):
        assert may_compile.wait(60)
        return compiled(self, made_for)

    runs = []
    with monkeypatch.context() as patch:
        patch.setattr(gpu_compiler.Compiler, "_compile", late)
        try:
            model = net()
            with gradscope.watch(model, tmp_path / "late") as scope:
                train(model, 2, scope=scope)
            runs.append(scope.run.frame())
        finally:
            may_compile.set()
    monkeypatch.setattr(gpu_kernel, "by_interpreter", False)
    model = net()
    with gradscope.watch(model, tmp_path / "torch") as scope:
        train(model, 2)
    runs.append(scope.run.frame())
    read, expected = runs
    for column in ("derivative_mean", "zero_fraction", "saturated_fraction", "activation_norm"):
        np.testing.assert_allclose(read[column], expected[column], rtol=1e-5, err_msg=column)


def test_without_triton_torch_reads_and_one_note_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradscope.measure.triton_kernels", None)
    monkeypatch.delattr(gradscope.measure, "triton_kernels", raising=False)
    monkeypatch.setattr(gpu_kernel, "_missing", {})
    model = net()
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, 2)
    assert scope.run.frame()[["signal_norm", "activation_norm"]].notna().all(axis=None)
    (note,) = scope.run.notes
    assert "Triton cannot be used" in str(note)
