"""The walk over an autograd graph, and what is looked up in it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

from gradscope.autograd.graph import Call, Graph, Origins, fingerprint, walk
from residual_zoo import ZOO, prepare, record


def graph_of(tensor: Tensor, *inputs: Tensor) -> Graph:
    return walk([(tensor.grad_fn, tensor.output_nr)], {get_gradient_edge(x).node for x in inputs})


def reference(tensor: Tensor) -> set[Any]:
    """Return the nodes below a tensor, by plain recursion."""
    found: set[Any] = set()

    def visit(node: Any) -> None:
        if node is not None and node not in found:
            found.add(node)
            for below, _ in node.next_functions:
                visit(below)

    visit(tensor.grad_fn)
    return found


def test_walk_reads_every_node_and_edge_once() -> None:
    for case in ZOO:
        model, inputs = prepare(case)
        (output, *_) = model(*inputs).values() if "dict" in case.name else [model(*inputs)]
        if not isinstance(output, Tensor) or case.name == "residual_on_the_input":
            continue
        graph = graph_of(output)
        assert set(graph.nodes) == reference(output)
        assert len(graph.nodes) == len(set(graph.nodes)) == len(graph.names) == len(graph.edges)
        for node, name, edges in zip(graph.nodes, graph.names, graph.edges, strict=True):
            assert name in node.name()
            assert [
                (None if index < 0 else graph.nodes[index], slot) for index, slot in edges
            ] == list(node.next_functions)


def test_walk_does_not_read_below_the_inputs_of_the_model() -> None:
    outside = nn.Linear(4, 4)
    inside = nn.Linear(4, 4)
    x = torch.tanh(outside(torch.randn(2, 4)))
    leaf = torch.randn(2, 4, requires_grad=True)
    graph = graph_of(inside(x) + inside(leaf), x, leaf)
    variables = [node.variable for node in graph.nodes if hasattr(node, "variable")]
    assert graph.names.count("TanhBackward0") == 1
    assert graph.edges[graph.names.index("TanhBackward0")] == ()
    assert {id(v) for v in variables} == {id(inside.weight), id(inside.bias), id(leaf)}


def test_constants_are_edges_to_no_node() -> None:
    graph = graph_of(nn.Linear(4, 4)(torch.randn(2, 4)))
    assert graph.names[0] == "AddmmBackward0"
    assert graph.edges[0][1][0] == -1


def test_walk_that_expects_a_structure_reads_the_same_as_one_that_expects_none() -> None:
    x, y = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    a, b = x.tanh(), x.sigmoid()
    small = [a * a, a * b, b * a, x.tanh() * x.tanh(), x.tanh() * 2, 2 * x.tanh(), x.tanh().tanh()]
    small += [a * x, a + a, torch.stack([a, b]), torch.stack([a, b, a]), a * y, 2 * a.chunk(2)[0]]
    small += [2 * a.chunk(2)[1], x.tanh().detach() * x, torch.stack([x, y]).unbind()[1]]
    roots = [[(tensor.grad_fn, tensor.output_nr)] for tensor in small]
    roots += [[*roots[0], *roots[1]], [*roots[1], *roots[0]], [*roots[0], *roots[0]]]
    recordings = []
    for case in ZOO:
        model, inputs = prepare(case)
        recordings += [record(model, *inputs) for _ in range(2)]  # kept: so is what they lead to
    roots += [list(recording.calls[0].outputs) for recording in recordings]
    graphs = [walk(some) for some in roots]
    for i, (some, plain) in enumerate(zip(roots, graphs, strict=True)):
        for other in (*graphs[: len(small) + 3], *graphs[max(i - 3, 0) : i + 3]):
            found = walk(some, (), other.structure)
            assert found.nodes == plain.nodes and found.index == plain.index
            assert (found.names, found.edges) == (plain.names, plain.edges)
            same = (other.names, other.edges) == (plain.names, plain.edges)
            assert (found.structure is other.structure) == same


def test_order_puts_producers_before_consumers() -> None:
    for case in ZOO:
        model, inputs = prepare(case)
        graph = record(model, *inputs).graph
        place = {node: place for place, node in enumerate(graph.order())}
        assert sorted(place) == list(range(len(graph.nodes)))
        for consumer, values in enumerate(graph.edges):
            assert all(place[node] < place[consumer] for node, _ in values if node >= 0)


def test_consumers_are_the_edges_turned_round() -> None:
    x = torch.randn(2, 6, requires_grad=True)
    a, b = x.chunk(2, 1)
    graph = graph_of(a * b + a)
    split = graph.names.index("SplitBackward0")
    turned = {
        (value, (consumer, position))
        for consumer, values in enumerate(graph.edges)
        for position, value in enumerate(values)
    }
    consumers = graph.consumers()
    assert {(v, edge) for v, edges in consumers.items() for edge in edges} == turned
    assert len(consumers[split, 0]) == 2
    assert len(consumers[split, 1]) == 1
    assert graph.shape((split, 1)) == (2, 3)


def test_fingerprint_is_equal_across_batches_and_differs_across_structures() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def of(x: Tensor) -> int:
        return fingerprint(graph_of(x))

    assert of(model(torch.randn(2, 4))) == of(model(torch.randn(5, 4)))
    assert of(model(torch.randn(2, 4))) != of(model(torch.randn(2, 4)) + 1)
    assert of(model(model(torch.randn(2, 4)))) != of(model(torch.randn(2, 4)))


def test_fingerprint_tells_which_of_two_equal_modules_ran() -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)

        def forward(self, x: Tensor, first: bool) -> Tensor:
            return self.a(x) if first else self.b(x)

    model, x = Either(), torch.randn(2, 4)
    one, two = record(model, x, True), record(model, x, False)
    assert fingerprint(one.graph) == fingerprint(two.graph)
    assert fingerprint(one.graph, one.made) != fingerprint(two.graph, two.made)


def test_nodes_are_named_after_the_innermost_call_that_made_them() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    recording = record(model, torch.randn(2, 4))
    origins = Origins(recording.graph, recording.calls)
    names = {}
    for node, kind in enumerate(recording.graph.names):
        call = origins.maker(node)
        names.setdefault(kind, []).append(call.name if call else None)
    assert names["ReluBackward0"] == ["1.1"]
    assert sorted(names["AddmmBackward0"]) == ["0", "1.0"]
    assert set(names["AccumulateGrad"]) == {None}
    holder = origins.holder(
        node for node, kind in enumerate(recording.graph.names) if kind == "AddmmBackward0"
    )
    assert holder is not None and holder.name == ""


def test_reentrant_checkpoint_hides_the_call_that_it_made() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.body = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, self.stem(x), use_reentrant=True)

    recording = record(Model(), torch.randn(2, 4))
    origins = Origins(recording.graph, recording.calls)
    node = recording.graph.names.index("CheckpointFunctionBackward")
    hidden = origins.hidden(node)
    assert hidden is not None and hidden.name == "body"


def test_graph_keeps_the_forward_alive_no_longer_than_itself() -> None:
    held: list[weakref.ref[Any]] = []

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            held.append(weakref.ref(self))

    x = torch.randn(2, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        y = (x * x).sin()
    graph = graph_of(y)
    del y
    assert len(graph.nodes) == 3
    assert held and all(saved() is not None for saved in held)
    del graph
    gc.collect()
    assert all(saved() is None for saved in held)


def test_calls_of_another_model_do_not_matter() -> None:
    graph = graph_of(nn.Linear(4, 4)(torch.randn(2, 4)))
    call = Call("other", "Linear", True, 10**9, 10**9 + 5, (), (), False)
    assert Origins(graph, [call]).maker(0) is None
