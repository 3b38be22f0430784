"""Residual joins of the zoo: found as a reader would, their gradient divided without remainder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradscope.autograd.graph import Edge, fingerprint, walk
from gradscope.autograd.joins import find_joins
from residual_zoo import ZOO, Case, Net, Recording, prepare, record
from residual_zoo.harness import conv, lin, mlp, tensors

SPLIT = ("identity", "projection", "scaled", "gated", "nested")


def loss_of(output: Any) -> Tensor:
    """Return a loss that weighs every element of the outputs differently."""
    return sum(
        (tensor * torch.linspace(-1, 2, tensor.numel(), dtype=tensor.dtype).view_as(tensor)).sum()
        for tensor in tensors(output)
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def sum_of_edges(recording: Recording, edges: Iterable[Edge]) -> list[Tensor]:
    """Return a list that will hold, after backward, the gradient along each of `edges`."""
    found: list[Tensor] = []

    def read(position: int) -> Callable[..., None]:
        def hook(grad_inputs: tuple[Tensor | None, ...], _: Any) -> None:
            grad = grad_inputs[position]
            if grad is not None:
                found.append(grad.clone())

        return hook

    for node, position in edges:
        recording.graph.nodes[node].register_hook(read(position))
    return found


def cut(recording: Recording, edges: Iterable[Edge]) -> None:
    """Let no gradient pass along `edges`."""
    for node, position in edges:

        def hook(
            grad_inputs: tuple[Tensor | None, ...], _: Any, position: int = position
        ) -> tuple[Tensor | None, ...]:
            return (*grad_inputs[:position], None, *grad_inputs[position + 1 :])

        recording.graph.nodes[node].register_hook(hook)


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_joins_are_found_named_and_told_apart(case: Case) -> None:
    model, inputs = prepare(case)
    assert record(model, *inputs).lines == case.joins


@pytest.mark.parametrize(
    "case", [c for c in ZOO if any(j.split()[0] in SPLIT for j in c.joins)], ids=lambda c: c.name
)
def test_gradient_parts_sum_to_the_total_and_leave_it_untouched(case: Case) -> None:
    model, inputs = prepare(case, torch.float64)
    torch.manual_seed(1)
    loss_of(model(*inputs)).backward()
    expected = gradients(model)

    model, inputs = prepare(case, torch.float64)
    torch.manual_seed(1)
    recording = record(model, *inputs)
    readings = []
    for join in recording.joins:
        if join.form not in SPLIT:
            continue
        parts = [
            sum_of_edges(recording, edges)
            for edges in (join.shortcut_edges, join.branch_edges, join.other_edges)
        ]
        total: list[Tensor] = []
        node, slot = join.value

        def note(grads: Any, slot: int = slot, total: list[Tensor] = total) -> None:
            total.append(grads[slot].clone())

        recording.graph.nodes[node].register_prehook(note)
        readings.append((parts, total))
    loss_of(recording.output).backward()

    assert readings
    for parts, (total,) in readings:
        assert parts[0] and parts[1], "gradient comes through the shortcut and the branch"
        remainder = sum(grad for part in parts for grad in part) - total
        assert remainder.norm() <= 1e-12 * total.norm()
        assert total.norm() > 0
    assert same(gradients(model), expected)


def residual(m: Any, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    x = m.stem(x)
    return shortcut(x) + branch(m.f(x))


def highway(m: Any, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    x = m.stem(x)
    t = torch.sigmoid(m.g(x))
    return shortcut((1 - t) * x) + branch(t * m.f(x))


def coupled_highway(m: Any, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    x = m.stem(x)
    t, h = torch.sigmoid(m.g(x)), branch(m.f(x))
    return shortcut(x) + t * (h - shortcut(x))


def three_terms(m: Any, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    x = m.stem(x)
    return branch(m.g(x)) + shortcut(x) + branch(m.f(x))


def layer_scale(m: Any, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    x = m.stem(x)
    return torch.addcmul(shortcut(x), branch(m.scale), branch(m.f(x)))


def chain(m: Any, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    x = m.stem(x)
    for f in (m.f, m.g, m.f):
        x = torch.relu(shortcut(x) + branch(f(x)))
    return x


def in_place_on_a_view(m: Any, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    x = m.stem(x)
    y = branch(m.f(x))
    y += shortcut(x)
    return y


def stacked(m: Any, x: Tensor, shortcut: Any, branch: Any) -> Tensor:
    x = m.stem(x)
    return torch.stack([branch(m.f(x)), shortcut(x)]).mean(0)


@pytest.mark.parametrize("which", ["shortcut", "branch"])
@pytest.mark.parametrize(
    "forward",
    [
        residual,
        highway,
        coupled_highway,
        three_terms,
        layer_scale,
        chain,
        in_place_on_a_view,
        stacked,
    ],
)
def test_cut_equals_a_net_with_that_way_detached(
    forward: Callable[..., Tensor], which: str
) -> None:
    torch.manual_seed(0)
    modules = {"stem": lin(), "f": mlp(), "g": mlp(), "scale": nn.Parameter(torch.randn(8))}
    x = torch.randn(3, 4, 8, dtype=torch.float64)

    def same_way(way: Tensor) -> Tensor:
        return way

    ways = {"shortcut": same_way, "branch": same_way}
    whole = Net(forward, **modules).double()
    recording = record(whole, x, **ways)
    assert recording.joins
    for join in recording.joins:
        cut(recording, getattr(join, f"{which}_cut"))
    loss_of(recording.output).backward()

    detached = Net(forward, **modules).double()
    loss_of(detached(x, **{**ways, which: torch.Tensor.detach})).backward()
    found, expected = gradients(whole), gradients(detached)
    assert found.keys() >= expected.keys()
    for name, grad in found.items():  # what is cut off has no gradient, or one of zeros
        assert torch.equal(grad, expected.get(name, torch.zeros_like(grad))), name


def test_joins_of_functional_call_are_those_of_the_module() -> None:
    case = next(case for case in ZOO if case.name == "basic_blocks")
    model, inputs = prepare(case)
    values = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def run(*args: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, args)

    assert record(model, *inputs, run=run).lines == case.joins


def test_joins_are_found_again_for_another_batch_of_the_same_structure() -> None:
    for case in ZOO:
        model, inputs = prepare(case)
        first, second = record(model, *inputs), record(model, *inputs)
        assert fingerprint(first.graph, first.made) == fingerprint(second.graph, second.made)
        assert first.joins == second.joins


def test_a_skipped_block_is_a_new_structure() -> None:
    def forward(m: Any, x: Tensor, keep: tuple[bool, ...]) -> Tensor:
        x = m.stem(x)
        for block, kept in zip((m.a, m.b, m.c), keep, strict=True):
            x = x + block(x) if kept else x
        return x

    model = Net(forward, stem=lin(), a=lin(), b=lin(), c=lin())
    x = torch.randn(4, 8)
    seen = {
        fingerprint(recording.graph, recording.made): [join.branch for join in recording.joins]
        for keep in ((True, True, True), (True, False, True), (True, True, False))
        for recording in (record(model, x, keep), record(model, x, keep))
    }
    assert sorted(seen.values()) == [["a", "b"], ["a", "b", "c"], ["a", "c"]]


def test_joins_without_module_calls_are_named_after_the_root() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8, requires_grad=True)
    y = x + torch.relu(x @ weight)
    graph = walk([(y.grad_fn, 0)], {torch.autograd.graph.get_gradient_edge(x).node})
    (join,) = find_joins(graph)
    assert (join.form, join.name, join.branch) == ("identity", "(root)", "(root)")
    assert graph.nodes[join.value[0]].variable is x


def test_finding_joins_changes_no_gradient_and_leaves_no_hook() -> None:
    case = next(case for case in ZOO if case.name == "add_in_place_to_a_view")
    model, inputs = prepare(case)
    loss_of(model(*inputs)).backward()
    expected = gradients(model)
    model, inputs = prepare(case)
    recording = record(model, *inputs)
    assert recording.joins
    loss_of(recording.output).backward()
    assert same(gradients(model), expected)


def test_broadcast_over_a_batch_of_one_does_not_make_a_join() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x, bias = m.stem(x), m.bias(torch.arange(5))[None]
        for q, k in ((m.q, m.k), (m.q, m.k)):
            scores = q(x) @ k(x).transpose(1, 2) + bias
            x = scores.softmax(-1) @ m.v(x)
        return x

    model = Net(forward, stem=lin(), bias=nn.Embedding(5, 5), q=lin(), k=lin(), v=lin())
    assert record(model, torch.randn(1, 5, 8)).lines == []


def test_joins_on_the_meta_device_are_found_without_reading_values() -> None:
    case = next(case for case in ZOO if case.name == "basic_blocks")
    model, inputs = prepare(case)
    recording = record(model.to("meta"), *[x.to("meta") for x in inputs])
    assert recording.lines == case.joins


def test_finding_joins_computes_nothing_anew_that_checkpointing_dropped() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.f(x).flatten(0, 1)).view_as(x)
        y *= torch.sigmoid(m.g(x))
        y += x
        return y.tanh_()

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return checkpoint(body, m, x, use_reentrant=False)

    model = Net(forward, stem=lin(), f=lin(), g=lin(), norm=nn.BatchNorm1d(8))
    x = torch.randn(2, 5, 8)
    recording = record(model, x)
    seen = int(model.norm.num_batches_tracked)
    assert recording.lines == ["identity (root) stem (root) f"]
    assert model.norm.num_batches_tracked == seen
    loss_of(recording.output).backward()


def test_gate_in_front_of_the_shortcut_is_the_other_part() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        t = torch.sigmoid(m.t(x))
        return t * torch.tanh(m.h(x)) + (1 - t) * x

    recording = record(Net(forward, stem=lin(), h=lin(), t=lin()), torch.randn(4, 8))
    (join,) = recording.joins

    def reader(edges: Iterable[Edge]) -> list[str]:
        return [recording.graph.names[node] for node, _ in edges]

    assert reader(join.shortcut_edges) == ["MulBackward0"]
    assert reader(join.branch_edges) == ["AddmmBackward0"]
    assert reader(join.other_edges) == ["AddmmBackward0"]


def test_long_chains_need_no_recursion() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for _ in range(1500):
            x = x + F.relu(m.f(x))
        return x

    assert len(record(Net(forward, f=lin(2)), torch.randn(1, 2)).joins) == 1499


@pytest.mark.parametrize(
    ("last", "count"),
    [(lambda d: d * 0.7, 1), (lambda d: d / 1.4, 1), (lambda d: d * d, 0), (torch.square, 0)],
    ids=["scaled", "divided", "times itself", "squared"],
)
def test_a_difference_is_a_join_unless_it_is_squared(last: Any, count: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return last(x - m.f(x))

    recording = record(Net(forward, stem=lin(), f=mlp()), torch.randn(4, 8))
    assert len(recording.joins) == count


def test_unwatched_readers_of_the_split_are_other_edges() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = m.stem(x)
        return x + m.f(x), m.head(x)

    recording = record(Net(forward, stem=lin(), f=lin(), head=lin(8, 2)), torch.randn(4, 8))
    (join,) = recording.joins
    assert len(join.shortcut_edges) == len(join.branch_edges) == len(join.other_edges) == 1


def test_convolution_with_a_fixed_kernel_is_no_branch() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(x + F.conv2d(x, torch.ones(4, 4, 3, 3) / 36, padding=1))

    model = Net(forward, stem=conv(), head=conv())
    assert record(model, torch.randn(2, 4, 8, 8)).lines == []
