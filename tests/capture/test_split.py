"""The split of a recorded run, against nets that give each way a copy of the block's input."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope import autograd
from gradscope.capture.forwards import plan
from residual_zoo import ZOO, Case, prepare
from residual_zoo.harness import tensors


class Ways:
    """What a net asks for the input of each way, and shows S(x) and F(x) to."""

    def __call__(self, x: Tensor, ways: int = 3) -> tuple[Tensor, ...]:
        return (x,) * ways

    def show(self, shortcut: Tensor, branch: Tensor) -> None:
        """Take note of S(x) and F(x)."""


class Shown(Ways):
    """Keeps the ratio of the norms of F(x) and S(x)."""

    def __init__(self) -> None:
        self.ratios: list[float] = []

    def show(self, shortcut: Tensor, branch: Tensor) -> None:
        with torch.no_grad():
            self.ratios.append((branch.norm() / shortcut.norm()).item())


class Copies(Shown):
    """Gives each way a copy of its own, so that plain autograd tells their gradients apart."""

    def __init__(self) -> None:
        super().__init__()
        self.splits: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def __call__(self, x: Tensor, ways: int = 3) -> tuple[Tensor, ...]:
        copies = tuple(x.clone() for _ in range(ways))
        self.splits.append((x, copies))
        return copies


class Net(nn.Module):
    """A forward function over a stem, a few branches and a head."""

    def __init__(self, function: Callable[..., Tensor], width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        for name in ("f", "g"):
            hidden = nn.Linear(width, 2 * width)
            setattr(self, name, nn.Sequential(hidden, nn.Tanh(), nn.Linear(2 * width, width)))
        for name in ("p", "q", "k", "v"):
            setattr(self, name, nn.Linear(width, width))
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ways = Ways()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, self.stem(x), self.ways))


def identity(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    f = m.f(b)
    ways.show(s, f)
    return s + f


def projection(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    p, f = m.p(s), m.f(b)
    ways.show(p, f)
    return p + f


def subtraction(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    f = m.f(b)
    ways.show(s, f)
    return s - f


def in_place(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    y = m.f(b)
    ways.show(s, y)
    y += s
    return F.relu(y, inplace=True)


def chain(m: Net, x: Tensor, ways: Ways) -> Tensor:
    for f in (m.f, m.g, m.f):
        s, b, _ = ways(x)
        y = f(b)
        ways.show(s, y)
        x = s + y
    return x


def transformer(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    y = m.n1(b)
    f = m.p((m.q(y) @ m.k(y).transpose(-2, -1)).softmax(-1) @ m.v(y))
    ways.show(s, f)
    s, b, _ = ways(s + f)
    f = m.f(m.n2(b))
    ways.show(s, f)
    return s + f


def attention_on_the_input(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)  # queries, keys and values: three edges of one branch
    f = m.p((m.q(b) @ m.k(b).transpose(-2, -1)).softmax(-1) @ m.v(b))
    ways.show(s, f)
    return s + f


def two_branches(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    f, g = m.f(b), m.g(b)
    ways.show(s, f - g)
    return s + f - g


def reader_elsewhere(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, o = ways(x)
    f = m.f(b)
    ways.show(s, f)
    return (s + f) * m.g(o).sigmoid()


def scaled(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    s, f = 0.5 * s, m.f(b) / 3
    ways.show(s, f)
    return s + f


def highway(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, o = ways(x)
    t = torch.sigmoid(m.g(o))
    s, f = (1 - t) * s, t * m.f(b)
    ways.show(s, f)
    return f + s


def layer_scale(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    f = 0.1 * (m.n1.weight * m.f(b))
    ways.show(s, f)
    return s + f


# The sum itself scales a term, so that no tensor is S(x) or F(x): no forward ratio.


def scaled_by_the_addition(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    return torch.add(s, m.f(b), alpha=0.3)


def interpolated(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    return torch.lerp(s, m.f(b), 0.3)


def fused_layer_scale(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, _ = ways(x)
    return torch.addcmul(s, m.f(b), m.n1.weight)


def coupled_highway(m: Net, x: Tensor, ways: Ways) -> Tensor:
    s, b, o = ways(x)
    return s + torch.sigmoid(m.g(o)) * (m.f(b) - s)


SEEN = (
    identity, projection, subtraction, in_place, chain, transformer, attention_on_the_input,
    two_branches, reader_elsewhere, scaled, highway, layer_scale,
)  # fmt: skip
UNSEEN = (scaled_by_the_addition, interpolated, fused_layer_scale, coupled_highway)


def record(model, x, path, steps=1, loss=None, **settings):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with gradscope.watch(model, path, **settings) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            (loss or weighted)(model(x)).backward()
            optimizer.step()
    return scope.run


def weighted(output: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype)
    return (output * weights.view_as(output)).sum()


def expected_of(model: Net, x: Tensor) -> tuple[Copies, list[tuple[Tensor, list[Tensor]]]]:
    """Return for each split the gradient at the value and at its copies, by plain autograd."""
    twin = copy.deepcopy(model)
    ways = twin.ways = Copies()
    loss = weighted(twin(x))
    found = []
    for value, copies in ways.splits:
        total, *parts = torch.autograd.grad(
            loss, [value, *copies], retain_graph=True, allow_unused=True
        )
        found.append((total, [torch.zeros_like(total) if p is None else p for p in parts]))
    return ways, found


def check(row, total: Tensor, s: Tensor, b: Tensor, o: Tensor, rel: float = 1e-12) -> None:
    cosine = F.cosine_similarity(s.flatten(), b.flatten(), dim=0).item()
    assert row.total_norm == pytest.approx(total.norm().item(), rel=rel)
    assert row.shortcut_norm == pytest.approx(s.norm().item(), rel=rel)
    assert row.branch_norm == pytest.approx(b.norm().item(), rel=rel)
    assert row.other_norm == pytest.approx(o.norm().item(), rel=rel)
    assert row.cosine == pytest.approx(cosine, abs=rel)
    share = (s.norm() ** 2 / (s.norm() ** 2 + b.norm() ** 2)).item()
    assert row.energy_share == pytest.approx(share, rel=rel)


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5)], ids=["2d", "3d"])
@pytest.mark.parametrize("function", SEEN + UNSEEN, ids=lambda f: f.__name__)
def test_the_split_is_that_of_a_net_with_a_copy_for_each_way(function, shape, tmp_path):
    model = Net(function).double()
    x = torch.randn(shape, dtype=torch.float64)
    ways, expected = expected_of(model, x)
    run = record(model, x, tmp_path / "run", steps=2)
    rows = run.shortcut_readings.query("step == 0")
    assert len(rows) == len(expected)
    for row, (total, parts) in zip(rows.itertuples(), expected, strict=True):
        check(row, total, *parts)
    if function is two_branches:  # the terms of F(x) are held from the second step on
        assert rows.branch_ratio.isna().all()
    elif function in SEEN:
        np.testing.assert_allclose(rows.branch_ratio, ways.ratios, 1e-12)
    else:
        assert run.shortcut_readings.branch_ratio.isna().all()


def test_the_forward_norm_of_a_branch_of_two_terms_is_that_of_their_sum(tmp_path):
    model, x = Net(two_branches).double(), torch.randn(4, 5).double()
    ways = model.ways = Shown()
    run = record(model, x, tmp_path / "run", steps=3)
    np.testing.assert_allclose(run.shortcut_readings.branch_ratio, [math.nan, *ways.ratios[1:]])


@pytest.mark.parametrize(
    "function",
    [f for f in (*SEEN, *UNSEEN) if f not in (reader_elsewhere, highway, coupled_highway)],
    ids=lambda f: f.__name__,
)
def test_two_parts_obey_the_law_of_cosines(function, tmp_path):
    run = record(Net(function).double(), torch.randn(4, 5).double(), tmp_path / "run", 3)
    r = run.shortcut_readings
    whole = r.shortcut_norm**2 + r.branch_norm**2 + 2 * r.shortcut_norm * r.branch_norm * r.cosine
    np.testing.assert_allclose(whole, r.total_norm**2, rtol=1e-12)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.f = nn.Linear(5, 8), nn.Linear(8, 8)
        self.ways = Ways()

    def forward(self, x: Tensor) -> Tensor:
        outer, inner, branch = self.ways(self.stem(x))
        return outer + torch.relu(inner + self.f(branch))


def test_nested_shortcuts_of_one_value_each_have_their_own_split(tmp_path):
    model, x = Nested().double(), torch.randn(4, 5).double()
    _, [(total, [outer, inner, branch])] = expected_of(model, x)
    run = record(model, x, tmp_path / "run")
    assert run.shortcuts.form.tolist() == ["identity", "nested"]
    of_inner, of_outer = run.shortcut_readings.itertuples()
    check(of_inner, total, inner, branch, outer)
    check(of_outer, total, outer, inner + branch, torch.zeros_like(total))


@pytest.mark.parametrize("reentrant", [False, True])
def test_forward_ratios_compute_nothing_again_that_a_checkpoint_has_dropped(reentrant, tmp_path):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.net, self.calls = nn.Linear(5, 5), Net(highway), 0

        def inner(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.net(x)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, self.stem(x), use_reentrant=reentrant)

    model = Checkpointed()
    run = record(model, torch.randn(4, 5), tmp_path / "run", steps=2)
    assert model.calls == 4  # forward and recomputed, twice
    assert run.notes == []
    assert run.shortcut_readings.branch_ratio.isna().all() == (not reentrant)


# --- gradient that comes from elsewhere ----------------------------------------------------------


class Features(nn.Module):
    """Returns the block's input beside its output, as models do that return hidden states."""

    def __init__(self, attention=False) -> None:
        super().__init__()
        self.body = Net(attention_on_the_input if attention else identity)
        self.ways = self.body.ways = Ways()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.body.stem(x)
        hidden, inner = self.ways(stem, 2)
        return self.body.head(self.body.function(self.body, inner, self.body.ways)), hidden


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_of_an_output_of_the_model_is_the_other_part(attention, dtype, tmp_path):
    model, x = Features(attention).to(dtype), torch.randn(2, 4, 5).to(dtype)

    def loss(output: tuple[Tensor, Tensor]) -> Tensor:
        return weighted(output[0]) + 3 * output[1].square().sum()

    twin = copy.deepcopy(model)
    twin.body.ways, twin.ways = Copies(), Copies()
    value = loss(twin(x))
    [(stem, [hidden, _])], [(_, [s, b, _])] = twin.ways.splits, twin.body.ways.splits
    total, o, s, b = torch.autograd.grad(value, [stem, hidden, s, b])
    (row,) = record(model, x, tmp_path / "run", loss=loss).shortcut_readings.itertuples()
    rel = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    check(row, *[t.double() for t in (total, s, b, o)], rel=rel)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_output_that_the_loss_ignores_leaves_no_other_part(dtype, tmp_path):
    model, x = Features(attention=True).to(dtype), torch.randn(2, 4, 5).to(dtype)
    run = record(model, x, tmp_path / "run", loss=lambda output: weighted(output[0]))
    (row,) = run.shortcut_readings.itertuples()
    assert row.other_norm == 0 and row.total_norm > 0


def test_two_heads_called_apart_each_leave_the_other_head_to_the_other_part(tmp_path):
    """A head whose input is the split knows nothing of the second head on the same features."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.f = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(x)

    head, other = Head().double(), nn.Linear(5, 5).double()
    features = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    (expected,) = torch.autograd.grad(weighted(other(features)), features)
    with gradscope.watch(head, tmp_path / "run") as scope:
        (weighted(head(features)) + weighted(other(features))).backward()
        optimizer.step()
    (row,) = scope.run.shortcut_readings.itertuples()
    assert row.other_norm == pytest.approx(expected.norm().item(), rel=1e-12)


# --- numbers at the edge of their range ----------------------------------------------------------


class Linear(nn.Module):
    """y = x + w x: both parts of the gradient are known in closed form."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.scale, self.f = nn.Parameter(torch.ones(())), nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.f.weight, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale * x
        return x + self.f(x)


@pytest.mark.parametrize(
    "dtype, gradient, w",
    [
        (torch.float16, 6e4, 0.05),  # its square is infinite in fp16
        (torch.float16, 2e-7, 1.0),  # its square is 0
        (torch.bfloat16, 1e-30, 1.0),
        (torch.bfloat16, 1e30, 0.5),
        (torch.float32, 1e-30, 0.5),
    ],
)
def test_norms_of_parts_neither_overflow_nor_round_away(dtype, gradient, w, tmp_path):
    model, x = Linear(w).to(dtype), torch.ones(4096, 1, dtype=dtype)
    upstream = torch.full((4096, 1), gradient, dtype=dtype)
    one = upstream[0].double().item() * 64  # 4096 equal elements
    branch = (upstream[0] * model.f.weight[0]).double().item() * 64
    optimizer = torch.optim.SGD(model.f.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(x).backward(upstream)
        optimizer.step()
    (row,) = scope.run.shortcut_readings.itertuples()
    assert row.shortcut_norm == pytest.approx(one, rel=1e-5)
    assert row.branch_norm == pytest.approx(branch, rel=1e-5)
    assert row.cosine == pytest.approx(1, rel=1e-5)
    assert row.energy_share == pytest.approx(one**2 / (one**2 + branch**2), rel=1e-5)


def test_parts_in_half_precision_are_summed_in_full(tmp_path):
    """Three edges of one branch that cancel to a small rest must not be rounded in between."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(1, 1, bias=False)
            self.a, self.b, self.c = (nn.Linear(1, 1, bias=False) for _ in range(3))
            for layer, w in ((self.stem, 1.0), (self.a, 256.0), (self.b, 1.0), (self.c, -256.0)):
                nn.init.constant_(layer.weight, w)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + torch.cat([self.a(x), self.b(x), self.c(x)]).view(3, -1).sum(0)[:, None]

    model = Cancelling().bfloat16()
    x = torch.ones(4, 1, dtype=torch.bfloat16)
    run = record(model, x, tmp_path / "run", loss=lambda y: y.sum())
    (row,) = run.shortcut_readings.itertuples()
    assert row.branch_norm == pytest.approx(2.0)  # (256 + 1 - 256) for each of four elements


@pytest.mark.parametrize("function", SEEN + UNSEEN, ids=lambda f: f.__name__)
def test_nothing_waits_for_the_device(function, tmp_path):
    """On the meta device whatever would wait for a value raises, and would be noted."""
    model = Features()
    model.body.function = function
    run = record(
        model.to("meta"),
        torch.empty(4, 5, device="meta"),
        tmp_path / "run",
        steps=3,
        loss=lambda output: output[0].sum() + output[1].sum(),
    )
    notes = [note for note in run.notes if "weights are used without a call" not in note]
    assert len(run.steps) == 3 and notes == []
    assert len(run.shortcuts) > 0


# --- training loops ------------------------------------------------------------------------------


@pytest.mark.parametrize("function", SEEN + UNSEEN, ids=lambda f: f.__name__)
def test_gradients_are_the_same_to_the_bit_with_splits_and_cuts(function, tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        model, x = Net(function).to(dtype), torch.randn(2, 4, 5).to(dtype)
        bare = copy.deepcopy(model)
        for _ in range(2):
            bare.zero_grad()
            weighted(bare(x)).backward()
            torch.optim.SGD(bare.parameters(), lr=1e-3).step()
        path = tmp_path / str(dtype)
        run = record(model, x, path, steps=2, cut="shortcuts", cut_every=1)
        assert len(run.shortcut_readings) > 0
        for (name, a), b in zip(bare.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b), name
            assert (a.grad is None) == (b.grad is None), name
            assert a.grad is None or torch.equal(a.grad, b.grad), name


class Stack(nn.Module):
    def __init__(self, blocks=4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
        self.keep = [True] * blocks

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, keep in zip(self.blocks, self.keep, strict=True):
            x = x + torch.tanh(block(x)) if keep else x
        return x


def test_stochastic_depth_keeps_the_numbers_of_its_shortcuts(tmp_path):
    model = Stack().double()
    x = torch.randn(4, 5).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = [(1, 1, 1, 1), (1, 0, 1, 1), (0, 0, 0, 0), (1, 1, 0, 1), (1, 0, 1, 1), (1, 1, 1, 1)]
    branches = []
    with gradscope.watch(model, tmp_path / "run") as scope:
        for keep in kept:
            model.keep = [bool(k) for k in keep]
            optimizer.zero_grad()
            weighted(model(x)).backward()
            optimizer.step()
    run = scope.run
    assert run.notes == []
    branch = dict(zip(run.shortcuts.shortcut, run.shortcuts.branch, strict=True))
    for step, keep in enumerate(kept):
        read = run.shortcut_readings.query(f"step == {step}").dropna(subset="total_norm")
        branches = sorted(branch[number] for number in read.shortcut)
        assert branches == [f"blocks.{i}" for i, k in enumerate(keep) if k]
    same = run.shortcut_readings.dropna(subset="total_norm").groupby("step").shortcut.agg(set)
    assert same[0] == same[5] and same[1] == same[4]


def test_a_shared_block_has_a_shortcut_for_each_of_its_turns(tmp_path):
    model, x = Net(chain).double(), torch.randn(4, 5).double()
    model.g = model.f  # f three times
    ways, expected = expected_of(model, x)
    run = record(model, x, tmp_path / "run", steps=3)
    assert run.shortcuts.branch.tolist() == ["f.0"] * 3
    assert run.shortcuts.position.is_monotonic_increasing
    rows = run.shortcut_readings.query("step == 0")
    for row, (total, parts) in zip(rows.itertuples(), expected, strict=True):
        check(row, total, *parts)
    np.testing.assert_allclose(rows.branch_ratio, ways.ratios, 1e-12)


def test_micro_batches_are_combined_by_the_root_of_the_sum_of_squares(tmp_path):
    model = Net(identity).double()
    batches = [torch.randn(4, 5).double() for _ in range(3)]
    expected = [expected_of(model, x)[1][0] for x in batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for x in batches:
            weighted(model(x)).backward()
        optimizer.step()
    (row,) = scope.run.shortcut_readings.itertuples()

    def together(norms: list[Tensor]) -> float:
        return math.sqrt(sum(norm.item() ** 2 for norm in norms))

    assert row.total_norm == pytest.approx(together([t.norm() for t, _ in expected]), rel=1e-12)
    shortcut, branch = (together([parts[i].norm() for _, parts in expected]) for i in (0, 1))
    assert row.shortcut_norm == pytest.approx(shortcut, rel=1e-12)
    assert row.branch_norm == pytest.approx(branch, rel=1e-12)
    assert row.energy_share == pytest.approx(shortcut**2 / (shortcut**2 + branch**2), rel=1e-12)


def test_between_recorded_steps_no_graph_is_walked(tmp_path):
    room = str(Path(autograd.__file__).parent)
    walked: set[int] = set()
    step = 0

    def note(frame, event, argument):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(room) and "torch_internals" not in file:
            walked.add(step)

    model, x = Stack(), torch.randn(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run", every=4):
        sys.setprofile(note)
        try:
            while step < 9:
                optimizer.zero_grad()
                weighted(model(x)).backward()
                optimizer.step()
                step += 1
        finally:
            sys.setprofile(None)
    assert walked == {0, 4, 8}


# --- what is found ------------------------------------------------------------------------------


class FixedOrFrozen(nn.Module):
    """Mixes its input with a matrix that is fixed, or a parameter that is frozen."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.frozen = nn.Parameter(torch.randn(8, 8), requires_grad=False) if frozen else None
        self.fixed = torch.randn(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.fixed if self.frozen is None else self.frozen
        return self.scale * (x + torch.relu(x @ matrix))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_parameter_makes_a_branch_and_a_fixed_matrix_does_not(frozen, tmp_path):
    model = nn.Sequential(nn.Linear(5, 8), FixedOrFrozen(frozen))
    run = record(model, torch.randn(4, 5), tmp_path / "run")
    assert run.shortcuts.form.tolist() == ["identity"] * frozen


def test_a_branch_frozen_while_training_stays_the_same_shortcut(tmp_path):
    model, x = Net(identity), torch.randn(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for step in range(2):
            model.f.requires_grad_(step == 0)
            optimizer.zero_grad()
            weighted(model(x)).backward()
            optimizer.step()
    assert scope.run.shortcuts.form.tolist() == ["identity"]
    assert (scope.run.shortcut_readings.branch_norm > 0).tolist() == [True, True]


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_shortcuts_of_a_recorded_run_are_those_of_the_zoo(case: Case, tmp_path) -> None:
    model, inputs = prepare(case)

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    with gradscope.watch(model, tmp_path / "run") as scope:
        sum(t.sum() for t in tensors(model(*inputs))).backward()
        optimizer.step()
    rows = scope.run.shortcuts[["form", "name", "split", "join", "branch"]]
    assert [" ".join(row) for row in rows.itertuples(index=False)] == case.joins
    assert scope.run.notes == []


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        states = [(x.new_zeros(2, 4), x.new_zeros(2, 4))]
        for at in x:
            states.append(self.cell(at, states[-1]))
        return torch.stack([self.head(h) for h, _ in states])


def test_what_is_looked_up_grows_with_the_calls_and_not_with_their_square(tmp_path, monkeypatch):
    lookups, locate = [], plan.locate
    monkeypatch.setattr(plan, "locate", lambda *args: lookups.append(1) or locate(*args))
    counts = []
    for steps in (8, 16):
        lookups.clear()
        run = record(Cells(), torch.randn(steps, 2, 3), tmp_path / str(steps))
        assert run.shortcuts.form.tolist() == ["gated"] * (steps - 1)
        counts.append(len(lookups))
    assert counts[1] < 2.5 * counts[0]
