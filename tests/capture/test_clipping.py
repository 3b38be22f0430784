"""What the optimizer gets is measured, however the gradients were changed before."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import gradscope
from releases import shards_on_the_cpu


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def grads(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters()]


def replace(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = p.grad * 0.1


def clip_data(model: nn.Module) -> None:
    for g in grads(model):
        g.data.clamp_(-0.01, 0.01)


def through_numpy(model: nn.Module) -> None:
    for g in grads(model):
        g.numpy()[...] *= 0.25


CLIPS = {
    "norm": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01),
    "norm, foreach": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.01, foreach=True),
    "value": lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01),
    "in place": lambda m: [g.mul_(0.1) for g in grads(m)],
    "data": clip_data,
    "foreach on data": lambda m: torch._foreach_mul_([g.data for g in grads(m)], 0.1),
    "replaced": replace,
    "numpy": through_numpy,
    "not at all": lambda m: None,
    "noise": lambda m: [g.data.add_(torch.ones_like(g)) for g in grads(m)],
}


@pytest.mark.parametrize("clip", CLIPS)
def test_clipped_norms_are_those_that_the_optimizer_gets(clip, tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, after = [], []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().sum().backward()
            before.append([[g.norm().item() for g in grads(m)] for m in (model[0], model[2])])
            CLIPS[clip](model)
            after.append([[g.norm().item() for g in grads(m)] for m in (model[0], model[2])])
            optimizer.step()
    for column, norms in (("grad_norm", before), ("clipped_grad_norm", after)):
        expected = np.sqrt(np.square(norms).sum(axis=2))
        read = scope.run.matrix(column)[1][:, [0, 2]]
        np.testing.assert_allclose(read, expected, rtol=1e-5, err_msg=column)
        total = np.sqrt(np.square(expected).sum(axis=1))
        np.testing.assert_allclose(scope.run.steps[column], total, rtol=1e-5)


@shards_on_the_cpu
def test_sharded_gradients_are_read_as_clipped(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        model = net()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradscope.watch(model, tmp_path / "run") as scope:
            model(torch.randn(4, 5)).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
        (step,) = scope.run.steps.itertuples()
        assert step.clipped_grad_norm == pytest.approx(0.01, rel=1e-4)
        assert step.grad_norm > 0.1
    finally:
        dist.destroy_process_group()


class ByHand:
    """A hand-written SGD, no torch.optim.Optimizer, that clips by itself."""

    def __init__(self, model: nn.Module, way: str) -> None:
        self.parameters, self.way = list(model.parameters()), way

    def step(self) -> None:
        for p in self.parameters:
            if self.way == "data":
                p.data -= 0.1 * p.grad.data.clamp(-0.05, 0.05)
            elif self.way == "copied":
                p.data.copy_(p.data - 0.1 * p.grad)
            else:
                with torch.no_grad():
                    p.sub_(0.1 * p.grad)

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None


@pytest.mark.parametrize("zero", [True, False], ids=["zeroed", "replaced by the next"])
@pytest.mark.parametrize("way", ["data", "copied", "no_grad"])
def test_each_step_of_a_hand_written_optimizer_is_seen(way, zero, tmp_path):
    model = net()
    optimizer = ByHand(model, way)
    moved = []
    told = pytest.warns(gradscope.GradscopeWarning, match="reports no steps")
    with told, gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(6):
            if not zero:
                for p in model.parameters():
                    p.grad = None if p.grad is None else torch.zeros_like(p.grad)
            model(torch.randn(4, 5)).square().sum().backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            moved.append(
                [(p - b).norm().item() for p, b in zip(model.parameters(), before, strict=True)]
            )
            if zero:
                optimizer.zero_grad()
    run = scope.run
    assert len(run.steps) == 6
    expected = np.sqrt(np.square(moved).reshape(6, 2, 2).sum(axis=2))
    np.testing.assert_allclose(run.matrix("update_norm")[1][:, [0, 2]], expected, rtol=1e-4)
    assert run.steps.clipped_grad_norm.isna().all()  # it may have clipped: nobody knows
    assert run.steps.grad_norm.notna().all()


def test_accumulation_before_the_first_step_is_no_step(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i in range(8):
            model(torch.randn(4, 5)).square().sum().backward()
            if i % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    assert len(scope.run.steps) == 2 and scope.run.notes == []
