"""Modes that a program has on while it trains neither see nor change what is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import gradscope
from gradscope import schema
from releases import RELEASE


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.act, self.fc2 = (
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.GELU(),
            nn.Linear(8, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.relu(self.act(self.fc1(self.norm(x)))))


class Net(nn.Module):
    def __init__(self, context_fn=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.context_fn = context_fn

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.context_fn is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=False, context_fn=self.context_fn)
        return self.head(x)


def train(model: nn.Module, dtype: torch.dtype) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    generator = torch.Generator(device="cpu").manual_seed(1)
    for _ in range(3):
        x = torch.randn(4, 5, generator=generator, dtype=dtype, device="cpu")
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


class Seen(TorchDispatchMode):
    """Notes each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


KEPT = "tensors saved on the CPU"

MODES = {
    "dispatch": Seen,
    "function": SeenFunctions,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    KEPT: lambda: torch.autograd.graph.save_on_cpu(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_step_is_read_under_a_mode_as_without(mode, dtype, tmp_path):
    if mode == "default device" and RELEASE < (2, 7):
        pytest.skip("in torch 2.6 AdamW reads its count of steps from the default device: meta")

    def record(path, context):
        model = Net().to(dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Anomaly Detection")
            with gradscope.watch(model, path) as scope, context:
                train(model, dtype)
        return model.state_dict(), scope.run

    plain, whole = record(tmp_path / "plain", nullcontext())
    weights, run = record(tmp_path / "under", MODES[mode]())
    for name in plain:
        assert torch.equal(plain[name], weights[name])
    assert run.notes == []
    # what saved-tensor hooks keep elsewhere is not computed anew: relu's slope is not read
    unread = {"derivative_mean", "zero_fraction", "saturated_fraction"} if mode == KEPT else set()
    for column in set(schema.names(schema.LAYER_METRICS)) - unread:
        np.testing.assert_array_equal(run.frame()[column], whole.frame()[column], err_msg=column)
    for column in schema.names(schema.SHORTCUT_METRICS):
        np.testing.assert_array_equal(
            run.shortcut_readings[column], whole.shortcut_readings[column], err_msg=column
        )


@pytest.mark.parametrize("kind", [Seen, SeenFunctions])
def test_a_mode_sees_the_same_operations_with_and_without_watching(kind, tmp_path):
    def operations(watched):
        model = Net().double()
        scope = gradscope.watch(model, tmp_path / "run") if watched else nullcontext()
        with scope, kind() as mode:
            train(model, torch.float64)
        return mode.seen

    assert operations(watched=True) == operations(watched=False)


def save_products(ctx, op, *args, **kwargs):
    saved = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "policy",
    [
        [torch.ops.aten.mm.default, torch.ops.aten.addmm.default],
        [torch.ops.aten.gelu.default],
        save_products,
    ],
    ids=["products", "activations", "policy"],
)
def test_selective_checkpointing_trains_on_and_is_read_as_without(policy, dtype, tmp_path):
    contexts = partial(create_selective_checkpoint_contexts, policy)

    def record(context_fn, path=None):
        model = Net(context_fn).to(dtype)
        scope = nullcontext() if path is None else gradscope.watch(model, path)
        with scope:
            train(model, dtype)
        return model.state_dict(), scope.run if path else None

    bare, _ = record(contexts)
    weights, run = record(contexts, tmp_path / "run")
    _, whole = record(None, tmp_path / "whole")
    for name in bare:
        assert torch.equal(bare[name], weights[name])
    assert run.notes == []
    assert run.shortcuts.name.tolist() == ["blocks.0", "blocks.1"]
    tolerance = {"rtol": 1e-5} if dtype is not torch.bfloat16 else {"rtol": 0.02, "atol": 1e-3}
    for column in ("grad_norm", "update_norm", "signal_norm", "input_signal_norm"):
        np.testing.assert_allclose(
            run.frame()[column], whole.frame()[column], err_msg=column, **tolerance
        )
