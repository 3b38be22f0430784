"""On a CUDA device: nothing waits for it, and the readings are those of the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.measure import gpu_kernel
from reference import Reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = (
            nn.LayerNorm(64),
            nn.Linear(64, 64),
            nn.GELU(),
            nn.Linear(64, 64),
        )

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), *[Block() for _ in range(4)], nn.Linear(64, 4)).cuda()


def batches(n):
    torch.manual_seed(1)
    x = [torch.randn(32, 16) for _ in range(n)]
    return [(b.cuda(), torch.randint(0, 4, (32,)).cuda()) for b in x]


def train(model, optimizer, data, scope=None):
    for x, y in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if scope is not None:
            scope.log(train_loss=loss)


def test_two_hundred_steps_never_wait_for_the_device(tmp_path):
    model, data = net(), batches(200)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    train(model, optimizer, data[:1])
    with gradscope.watch(model, tmp_path / "run", cut="shortcuts") as scope:
        torch.cuda.set_sync_debug_mode("error")
        try:
            train(model, optimizer, data, scope)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert scope.run.notes == []
    assert len(scope.run.steps) == 200
    assert scope.run.steps.train_loss.notna().all()


def test_readings_equal_plain_autograd_on_the_device(tmp_path):
    model, data = net(), batches(1)
    reference = Reference(model, lambda m: F.cross_entropy(m(data[0][0]), data[0][1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        train(model, optimizer, data)
    read = scope.run.frame().set_index("name")
    for name in read.index:
        assert read.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-5)
        if reference.gradient(name):
            assert read.grad_norm[name] == pytest.approx(reference.gradient(name), rel=1e-5)


class Convolutions(nn.Module):
    """Residual, normalised, its activations in place: most outputs are overwritten at once."""

    def __init__(self, width=64):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(self.block(width) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, 4)

    @staticmethod
    def block(width):
        convolution = lambda: nn.Conv2d(width, width, 3, padding=1, bias=False)  # noqa: E731
        return nn.Sequential(
            convolution(),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            convolution(),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = self.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def images(n):
    torch.manual_seed(1)
    x = [torch.randn(16, 3, 24, 24).to(memory_format=torch.channels_last) for _ in range(n)]
    return [(b.cuda(), torch.randint(0, 4, (16,)).cuda()) for b in x]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_read_what_plain_autograd_has_at_once_and_together(dtype, tmp_path):
    torch.manual_seed(0)
    model = Convolutions().cuda().to(memory_format=torch.channels_last)
    data = images(6)
    seen: dict[str, list[float]] = {}
    for name, layer in model.named_modules():
        if name and not list(layer.children()):
            keep = seen.setdefault(name, [])
            layer.register_forward_hook(
                lambda _, __, out, keep=keep: keep.append(out.double().norm().item())
            )

    def step(x, y):
        with torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
            return F.cross_entropy(model(x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, (x, y) in enumerate(data):
            optimizer.zero_grad()
            junk = [torch.randn(2**18, device="cuda") for _ in range(8)]
            loss = step(x, y)
            del junk
            loss.backward()
            grads = [float(p.grad.double().norm()) for p in model.head.parameters()]
            optimizer.step()
            if i == 2:  # by now the kernels are there, and what may wait is known
                kernel = gpu_kernel.kernel(x.device)
                assert kernel.wait(60), kernel.problem
            scope.flush()
    run = scope.run
    assert run.notes == []
    read = run.frame().pivot(index="step", columns="name", values="activation_norm")
    for name, norms in seen.items():
        calls = len(norms) // len(data)
        expected = np.sqrt(np.square(np.reshape(norms, (len(data), calls))).sum(1))
        np.testing.assert_allclose(read[name], expected, rtol=1e-5, err_msg=name)
    last = run.frame().query("step == 5").set_index("name")
    assert last.grad_norm["head"] == pytest.approx(np.hypot(*grads), rel=1e-5)
    assert len(run.shortcuts) == 3
    split = run.shortcut_readings.query("step == 5")
    energy = split.shortcut_norm**2 + split.branch_norm**2
    both = energy + 2 * split.cosine * split.shortcut_norm * split.branch_norm
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2  # the sum is rounded as the net's tensors
    np.testing.assert_allclose(np.sqrt(both), split.total_norm, rtol=tolerance)
    assert (split.other_norm == 0).all()


def test_a_captured_training_goes_on_as_without_us_and_is_told_of(tmp_path):
    def captured(watched):
        model, (x, y) = net(), batches(1)[0]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = gradscope.watch(model, tmp_path / "run") if watched else None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        if scope is not None:  # a compiler at work on another thread would spoil the capture
            assert gpu_kernel.kernel(x.device).wait(60)
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        for _ in range(5):
            graph.replay()
        if scope is not None:
            scope.close()
            assert scope.run.steps.step.tolist() == [0, 1, 2]
            assert any("CUDA graph" in str(note) for note in scope.run.notes)
        return [p.detach().clone() for p in model.parameters()]

    for bare, watched in zip(captured(False), captured(True), strict=True):
        assert torch.equal(bare, watched)


def test_weights_are_the_same_to_the_bit(tmp_path):
    bare, watched = net(), net()
    train(bare, torch.optim.AdamW(bare.parameters(), lr=1e-3), batches(10))
    with gradscope.watch(watched, tmp_path / "run"):
        train(watched, torch.optim.AdamW(watched.parameters(), lr=1e-3), batches(10))
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fused", [False, True])
def test_half_precision_with_a_scaler_reads_unscaled(fused, tmp_path):
    model, data = net(), batches(3)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i, (x, y) in enumerate(data):
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = F.cross_entropy(model(x), y) * (float("inf") if i == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    run = scope.run
    assert run.steps.skipped.tolist() == [False, True, False]
    assert run.steps.loss_scale.tolist() == [2.0**14, 2.0**14, 2.0**13]
    reference = Reference(twin, lambda m: F.cross_entropy(m(data[0][0]), data[0][1]))
    first = run.frame().query("step == 0").set_index("name")
    assert first.grad_norm["0"] == pytest.approx(reference.gradient("0"), rel=0.02)


def test_training_on_a_side_stream_is_read_in_order(tmp_path):
    model, data = net(), batches(20)
    expected = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with (
        gradscope.watch(model, tmp_path / "run", flush_every=3) as scope,
        torch.cuda.stream(stream),
    ):
        for x, y in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            expected.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
            optimizer.step()
    norms = torch.stack(expected).cpu().numpy()
    np.testing.assert_allclose(scope.run.steps.grad_norm, norms, rtol=1e-5)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_is_read_within_its_graph(mode, tmp_path):
    model, data = net(), batches(13)
    call = torch.compile(model, mode=mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(call, tmp_path / "run") as scope:
        train(call, optimizer, data[:6], scope)
        frames = torch._dynamo.utils.counters["frames"]["ok"]
        if mode == "default":  # CUDA graphs are captured later, and wait while they are
            torch.cuda.set_sync_debug_mode("error")
        try:
            train(call, optimizer, data[6:12], scope)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch._dynamo.utils.counters["frames"]["ok"] == frames
        last = copy.deepcopy(model)
        train(call, optimizer, data[12:], scope)
    assert scope.run.notes == []
    x, y = data[12]
    reference = Reference(last, lambda m: F.cross_entropy(m(x), y))
    frame = scope.run.frame()
    frame = frame[frame.step == 12].set_index("name")
    for name in frame.index:
        assert frame.signal_norm[name] == pytest.approx(reference.signal(name), rel=1e-3), name
    assert scope.run.shortcut_readings.query("step == 12").cosine.notna().all()
