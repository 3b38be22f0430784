"""`attention_logit_max`, against the logits that the same attention computes in the open."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.capture.reading import attention as capture

HEADS, WIDTH, T = 2, 8, 6


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention whose softmax is taken in one of many ways; `logits` are left in the open."""

    def __init__(self, way, groups=HEADS):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (
            nn.Linear(WIDTH, WIDTH // HEADS * count) for count in (HEADS, groups, groups)
        )
        self.out, self.way, self.groups = nn.Linear(WIDTH, WIDTH), way, groups

    def forward(self, x):
        q = heads(3 * self.query(x))
        k, v = (heads(layer(x), self.groups) for layer in (self.key, self.value))
        scale = q.shape[-1] ** -0.5
        self.logits = q.detach() @ k.detach().repeat_interleave(HEADS // self.groups, 1).mT * scale
        return self.out(self.way(q, k, v, self).transpose(1, 2).flatten(-2))


def causal() -> Tensor:
    return torch.ones(T, T, dtype=torch.bool).tril()


def mask(module):
    module.logits = module.logits.masked_fill(~causal(), -math.inf)


def kernel(q, k, v, module):
    return F.scaled_dot_product_attention(q, k, v)


def kernel_causal(q, k, v, module):
    mask(module)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def kernel_masked(q, k, v, module):
    mask(module)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=causal())


def kernel_biased(q, k, v, module):
    mask(module)
    bias = torch.zeros(T, T).masked_fill(~causal(), torch.finfo().min) + 0.3
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def kernel_scaled(q, k, v, module):
    module.logits *= 5 * q.shape[-1] ** 0.5
    return F.scaled_dot_product_attention(q, k, v, scale=5.0)


def kernel_dropout(q, k, v, module):
    mask(module)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1)


def eager(q, k, v, module):
    mask(module)
    logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~causal(), -math.inf)
    return logits.softmax(-1) @ v


def eager_added(q, k, v, module):
    mask(module)
    logits = q @ k.mT * q.shape[-1] ** -0.5
    logits = logits + torch.zeros(T, T).masked_fill(~causal(), torch.finfo().min)
    return F.dropout(logits.softmax(-1, dtype=torch.float32), 0.1) @ v


def eager_learned(q, k, v, module):
    if not hasattr(module, "position"):
        module.position = nn.Linear(T, T)
    logits = q @ k.mT * q.shape[-1] ** -0.5
    return (logits + module.position(torch.eye(T))).softmax(-1) @ v


def einsum_permuted(q, k, v, module):
    logits = torch.einsum("bhid,bhjd->bihj", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bihj,bhjd->bhid", logits.softmax(-1), v)


def einsum(q, k, v, module):
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bhjd->bhid", logits.softmax(-1), v)


def batched(q, k, v, module):
    mask(module)
    flat = [part.flatten(0, 1) for part in (q, k, v)]
    added = torch.zeros(1, T, T).masked_fill(~causal(), -1e9)
    logits = torch.baddbmm(added, flat[0], flat[1].mT, alpha=q.shape[-1] ** -0.5)
    return (logits.softmax(-1) @ flat[2]).unflatten(0, q.shape[:2])


WAYS = [
    kernel,
    kernel_causal,
    kernel_masked,
    kernel_biased,
    kernel_scaled,
    kernel_dropout,
    eager,
    eager_added,
    eager_learned,
    einsum,
    batched,
]


def read(model, path, x, steps=1):
    """Return the readings by layer, those that there are, and what was noted."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, path) as scope:
        for _ in range(steps):
            out = model(x)
            (out[0] if isinstance(out, tuple) else out).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert scope.run.notes == []
    frame = scope.run.frame().dropna(subset="attention_logit_max")
    return {name: values.tolist() for name, values in frame.groupby("name").attention_logit_max}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [(), (nn.Linear(WIDTH, WIDTH),)])
def test_the_largest_logit_is_that_of_what_is_not_masked(way, before, tmp_path):
    model = nn.Sequential(*before, Attention(way))
    found = read(model, tmp_path / "run", torch.randn(3, T, WIDTH))
    expected = model[-1].logits.max().item()
    assert found == {f"{len(before)}.query": [pytest.approx(expected, rel=1e-5)]}


@pytest.mark.parametrize("way", [kernel_causal, eager])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-12), (torch.bfloat16, 1e-2)])
def test_it_is_as_precise_as_the_model(way, dtype, precision, tmp_path):
    model = Attention(way).to(dtype)
    found = read(model, tmp_path / "run", torch.randn(3, T, WIDTH, dtype=dtype))
    assert found == {"query": [pytest.approx(model.logits.max().item(), rel=precision)]}


@pytest.mark.parametrize("way", [kernel_causal, eager])
def test_autocast_is_no_obstacle(way, tmp_path):
    class Cast(Attention):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    model = Cast(way)
    found = read(model, tmp_path / "run", torch.randn(3, T, WIDTH))
    assert found == {"query": [pytest.approx(model.logits.max().item(), rel=2e-2)]}


def test_queries_share_keys(tmp_path):
    def grouped(q, k, v, module):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    model = Attention(grouped, groups=1)
    found = read(model, tmp_path / "run", torch.randn(3, T, WIDTH))
    assert found == {"query": [pytest.approx(model.logits.max().item(), rel=1e-5)]}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_that_of_multihead_attention_is_its_own(need_weights, masked, tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm = nn.LayerNorm(WIDTH)
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)

        def forward(self, x):
            x = self.norm(x)
            here = ~causal() if masked else None
            return self.attention(x, x, x, attn_mask=here, need_weights=need_weights)

    model, x = Model(), 5 * torch.randn(3, T, WIDTH)
    found = read(model, tmp_path / "run", x)
    own = model.attention
    q, k, _ = F.linear(model.norm(x), own.in_proj_weight, own.in_proj_bias).chunk(3, -1)
    logits = heads(q) @ heads(k).mT * (WIDTH // HEADS) ** -0.5
    if masked:
        logits = logits.masked_fill(~causal(), -math.inf)
    assert found == {"attention": [pytest.approx(logits.max().item(), rel=1e-5)]}


def test_it_is_read_at_every_eighth_step_and_the_largest_call_counts(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(kernel)

        def forward(self, x):
            first = self.attention(x)
            self.logits = self.attention.logits
            return self.attention(5 * x) + first

    model, x = Twice(), torch.randn(3, T, WIDTH)
    found = read(model, tmp_path / "run", x, steps=9)
    expected = max(model.logits.max().item(), model.attention.logits.max().item())
    assert found == {"attention.query": [pytest.approx(expected, rel=1e-5)] * 2}


@pytest.mark.parametrize("way", [kernel_causal, eager])
def test_of_many_logits_a_part_is_read_whose_queries_meet_all_keys(way, tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "LOGITS", 3 * HEADS * T * 2)
    model = Attention(way)
    found = read(model, tmp_path / "run", torch.randn(3, T, WIDTH))["query"][0]
    rows = model.logits.amax(-1).flatten()
    assert np.isclose(rows, found, rtol=1e-5).any() and found <= rows.max() * (1 + 1e-6)


def own_softmax(q, k, v, module):
    weights = (q @ k.mT).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def capped(q, k, v, module):
    return (50 * torch.tanh(q @ k.mT / 50)).softmax(-1) @ v


def recomputed(q, k, v, module):
    return checkpoint(lambda *args: kernel(*args, module), q, k, v, use_reentrant=False)


def offloaded(q, k, v, module):
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, never):
        return kernel_masked(q, k, v, module)


unpacked: list[Tensor] = []


def never(x):
    unpacked.append(x)
    return x


@pytest.mark.parametrize("way", [own_softmax, capped, einsum_permuted, recomputed, offloaded])
def test_where_it_cannot_be_read_it_is_nan_and_nothing_is_unpacked(way, tmp_path, monkeypatch):
    unpacked.clear()
    seen = []
    real = capture.read_attention
    monkeypatch.setattr(
        "gradscope.capture.calls.read_attention",
        lambda *args: (real(*args), seen.append(len(unpacked))),
    )
    assert read(Attention(way), tmp_path / "run", torch.randn(3, T, WIDTH)) == {}
    assert seen == [0]


def test_a_softmax_of_what_a_layer_returns_is_no_attention(tmp_path):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.randn(3, WIDTH, 5))
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            return self.head((x @ self.weights).softmax(-1))

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Gate())
    assert read(model, tmp_path / "run", torch.randn(3, T, WIDTH)) == {}


@pytest.mark.parametrize("made", ["weights", "logits"])
def test_what_is_computed_before_the_part_that_is_called_is_left_alone(made, tmp_path):
    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Linear(WIDTH, WIDTH)

        def forward(self, given, x):
            weights = given if made == "weights" else given.softmax(-1)
            return weights @ self.value(x)

    model = nn.ModuleDict({"key": nn.Linear(WIDTH, WIDTH), "mix": Mix()}).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, T, WIDTH, dtype=torch.float64)
    with gradscope.watch(model, tmp_path / "run") as scope:
        key = model["key"](x)
        logits = key @ key.mT
        model["mix"](logits.softmax(-1) if made == "weights" else logits, x).sum().backward()
        optimizer.step()
    assert scope.run.notes == []
    assert scope.run.frame().attention_logit_max.isna().all()


def test_the_training_is_the_same_to_the_bit(tmp_path):
    def train(watched):
        torch.manual_seed(0)
        model = nn.Sequential(Attention(kernel_dropout), Attention(eager_added))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(3, T, WIDTH)
        with gradscope.watch(model, tmp_path / "run") if watched else torch.enable_grad():
            for _ in range(10):
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [*model.parameters(), torch.get_rng_state()]

    for bare, watched in zip(train(False), train(True), strict=True):
        assert torch.equal(bare, watched)


@pytest.mark.parametrize("way", [kernel_masked, eager])
def test_nothing_waits(way, tmp_path):
    """Tensors on meta have no values to wait for."""
    with torch.device("meta"):
        model, x = Attention(way), torch.randn(3, T, WIDTH)
        assert read(model, tmp_path / "run", x) == {}
