"""The ways past layers in a row, of nets whose flow is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscope
from gradscope.plots.net_ways import Ways, find_ways


class Net(nn.Module):
    """Four linear layers, and how they are put together."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], inputs: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.d = nn.Linear(inputs, 4)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def ways(path: Path, model: nn.Module) -> Ways:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with gradscope.watch(model, path / "run") as scope:
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    return find_ways(scope.run, 0)


def seen(found: Ways) -> list[tuple[str, int, int]]:
    return [(arc.form, arc.first, arc.last) for arc in found.arcs]


def test_a_row_has_no_way_past_a_layer(tmp_path: Path) -> None:
    found = ways(tmp_path, Net(lambda net, x: net.d(net.c(net.b(net.a(x))))))
    assert found.arcs == []
    assert found.leaves == [False, True, True, True, True]
    assert found.enters == found.leaves


def test_a_concatenation_is_a_way_past_what_lies_between(tmp_path: Path) -> None:
    def unet(net: Net, x: Tensor) -> Tensor:
        low = net.a(x)
        return net.d(torch.cat([low, net.c(net.b(low))], 1))

    assert seen(ways(tmp_path, Net(unet, 8))) == [("concat", 1, 2)]


def test_layers_that_read_the_same_value_are_parallel(tmp_path: Path) -> None:
    def heads(net: Net, x: Tensor) -> Tensor:
        first = net.a(x)
        return net.d(net.b(first) * net.c(first))

    found = ways(tmp_path, Net(heads))
    assert seen(found) == [("parallel", 1, 1), ("branch", 2, 2)]
    assert found.arcs[1].name == "b"


def test_sums_of_a_stream_are_a_chain_of_shortcuts(tmp_path: Path) -> None:
    def stream(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        x = x + net.b(x)
        x = x + net.c(x)
        return net.d(x)

    found = ways(tmp_path, Net(stream))
    assert seen(found) == [("identity", 1, 1), ("identity", 2, 2)]
    assert all(0 < arc.share < 1 for arc in found.arcs)


def test_a_relu_that_is_called_again_leads_on_from_there(tmp_path: Path) -> None:
    def shared(net: Net, x: Tensor) -> Tensor:
        return net.d(net.c(net.relu(net.b(net.relu(net.a(x))))))

    model = Net(shared)
    model.relu = nn.ReLU()
    found = ways(tmp_path, model)
    assert found.arcs == []
    assert found.leaves == [False, *[True] * 5]


def test_a_deep_stream_needs_no_arc_for_each_edge(tmp_path: Path) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(60))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = x + layer(x).tanh()
            return x

    found = ways(tmp_path, Deep())
    assert [(arc.first, arc.last) for arc in found.arcs] == [(i, i) for i in range(1, 61)]
