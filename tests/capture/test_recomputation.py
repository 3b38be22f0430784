"""Checkpointing of any callable: what is computed again is read once, as without checkpointing."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import gradscope
from gradscope import schema


class Own(torch.autograd.Function):
    """Computes again within its backward, and takes the gradients by autograd.grad."""

    @staticmethod
    def forward(ctx, body, x, *parameters):
        ctx.body, ctx.x, ctx.parameters = body, x, parameters
        with torch.no_grad():
            return body(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.body(x)
        return None, *torch.autograd.grad(output, (x, *ctx.parameters), gradient)


class Block(nn.Module):
    """A pre-norm block that may compute its body again, or its two halves, or all of itself."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.norm, self.up, self.act, self.down = (
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.GELU(),
            nn.Linear(16, 8),
        )
        self.way = way

    def body(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(self.norm(x))))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "method":
            return x + again(self.body, x)
        if self.way == "own":
            return x + Own.apply(self.body, x, *self.parameters())
        if self.way == "functions":
            h = again(lambda v: self.up(self.norm(v)), x)
            return x + again(lambda v: self.down(self.act(v)), h)
        return x + self.body(x)


again = partial(checkpoint, use_reentrant=False)


class Net(nn.Module):
    def __init__(self, way: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.blocks = nn.Sequential(*[Block(way) for _ in range(4)])
        self.way = way

    def layers(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.way == "sequential":
            x = checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)
        elif self.way == "blocks":
            for block in self.blocks:
                x = again(block, x)
        elif self.way == "nested":
            x = again(lambda v: again(self.layers, v), x)
        elif self.way == "loop":
            x = again(self.layers, x)
        elif self.way == "re-entrant blocks":
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=True)
        elif self.way == "re-entrant sequential":
            x = checkpoint_sequential(self.blocks, 2, x, use_reentrant=True)
        else:
            x = self.layers(x)
        return self.head(x)


def record(way: str, path, micro_batches: int = 1) -> gradscope.Run:
    model = Net(way).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    with gradscope.watch(model, path) as scope:
        for _ in range(3):
            for _ in range(micro_batches):
                x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
                model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return scope.run


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(
    "way", ["method", "functions", "sequential", "blocks", "nested", "loop", "re-entrant blocks"]
)
def test_every_reading_is_that_without_checkpointing(way, micro_batches, tmp_path):
    whole = record("plain", tmp_path / "plain", micro_batches)
    run = record(way, tmp_path / "run", micro_batches)
    assert run.notes == []
    assert run.layers.name.tolist() == whole.layers.name.tolist()
    for column in schema.names(schema.LAYER_METRICS):
        np.testing.assert_allclose(
            run.frame()[column], whole.frame()[column], rtol=1e-9, err_msg=column
        )
    # re-entrant checkpointing meets the blocks from the last to the first
    assert run.shortcuts.name.tolist() == whole.shortcuts.name.tolist()
    np.testing.assert_allclose(run.shortcuts.position, whole.shortcuts.position)
    read, expected = (
        r.shortcut_readings.merge(r.shortcuts[["shortcut", "name"]]).sort_values(["step", "name"])
        for r in (run, whole)
    )
    for column in ("total_norm", "shortcut_norm", "branch_norm", "cosine"):
        np.testing.assert_allclose(read[column], expected[column], rtol=1e-9, err_msg=column)


def test_re_entrant_checkpointing_of_a_function_is_read_and_what_it_hides_is_told(tmp_path):
    whole = record("plain", tmp_path / "plain")
    with pytest.warns(gradscope.GradscopeWarning, match="use_reentrant=False"):
        run = record("re-entrant sequential", tmp_path / "run")
    assert len(run.notes) == 1
    for column in ("grad_norm", "update_norm", "signal_norm", "activation_norm", "activation_mean"):
        np.testing.assert_allclose(
            run.frame()[column], whole.frame()[column], rtol=1e-9, err_msg=column
        )


def test_what_is_computed_within_a_backward_of_ones_own_is_nan_and_told_by_name(tmp_path):
    whole = record("plain", tmp_path / "plain").frame()
    with pytest.warns(gradscope.GradscopeWarning, match="within a backward"):
        run = record("own", tmp_path / "run")
    read = run.frame()
    assert len(run.notes) == 1
    assert "'blocks.0.norm', 'blocks.0.up' ... 'blocks.3.act', 'blocks.3.down' (16" in run.notes[0]
    whole = whole.set_index(["step", "name"]).loc[read.set_index(["step", "name"]).index]
    for column in ("grad_norm", "clipped_grad_norm", "weight_norm", "update_norm"):
        np.testing.assert_allclose(read[column], whole[column], rtol=1e-9, err_msg=column)
    inside = read.name.str.startswith("blocks")
    for column in ("signal_norm", "input_signal_norm", "activation_norm"):
        np.testing.assert_allclose(read[column][~inside], whole[column][~inside.to_numpy()])
        assert read[column][inside].isna().all()
    # blocks themselves are outside
    assert run.shortcuts.form.tolist() == ["identity"] * 4
    assert (run.shortcut_readings.branch_norm > 0).all()


def test_tiny_llama_with_gradient_checkpointing_is_read_as_without(tmp_path):
    transformers = pytest.importorskip("transformers", reason="an extra of the examples")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip

    def train(path, checkpointing):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).double()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        words = torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(1))
        with gradscope.watch(model, path) as scope:
            for _ in range(2):
                model(input_ids=words, labels=words).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return scope.run

    whole, run = train(tmp_path / "plain", False), train(tmp_path / "run", True)
    assert run.notes == []
    assert len(run.shortcuts) == len(whole.shortcuts) == 6
    for column in ("grad_norm", "signal_norm", "input_signal_norm", "activation_norm"):
        np.testing.assert_allclose(
            run.frame()[column], whole.frame()[column], rtol=1e-9, err_msg=column
        )


@pytest.mark.parametrize("adds", [True, False])
def test_a_shortcut_around_the_one_module_of_a_reentrant_checkpoint_is_told_of(adds, tmp_path):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

        def inner(self, x):
            out = self.body(x).tanh()
            return x + out if adds else out

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=True)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Branch(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()
    assert len(scope.run.shortcuts) == 0
    assert ["re-entrant checkpointing" in note for note in scope.run.notes] == [True] * adds
