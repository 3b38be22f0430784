"""Small nets with the residual joins that they have, and a collector of their module calls.

Each net is a forward function over a few modules. What is expected of it is one line a join:
``form name split join branch``, the columns of the shortcuts' table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.autograd.graph import Call, Graph, Made, walk
from gradscope.autograd.joins import Join, find_joins
from gradscope.autograd.torch_internals import next_sequence_number


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors that require grad in nested arguments or results."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    return []


def ends(value: Any) -> tuple[Any, ...]:
    """Return (node, slot) of the tensors in `value`; a leaf stands for its accumulator."""
    return tuple(
        (torch.autograd.graph.get_gradient_edge(t).node, t.output_nr) for t in tensors(value)
    )


@dataclass
class Recording:
    """One forward pass: what came out, its graph, its calls, its joins."""

    output: Any
    graph: Graph
    calls: list[Call]

    @property
    def made(self) -> list[Made]:
        return [(call.name, call.start, call.stop, call.outputs) for call in self.calls]

    @property
    def joins(self) -> list[Join]:
        return find_joins(self.graph, self.calls)

    @property
    def lines(self) -> list[str]:
        return [f"{j.form} {j.name} {j.split} {j.join} {j.branch}" for j in self.joins]


def record(model: nn.Module, *args: Any, run: Callable[..., Any] | None = None, **kwargs: Any):
    """Run a forward pass under hooks that note every module's calls, and walk its graph."""
    calls: list[Call] = []
    opened: list[tuple[int, Any, int]] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        opened.append((len(calls), ends([args, kwargs]), next_sequence_number()))
        calls.append(None)  # type: ignore[arg-type]

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            place, inputs, start = opened.pop()
            own = list(module.parameters(recurse=False))
            frozen = any(not parameter.requires_grad for parameter in own)
            kind = type(module).__name__
            stop = next_sequence_number()
            calls[place] = Call(name, kind, bool(own), start, stop, inputs, ends(output), frozen)

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after(name), with_kwargs=True))
    output = (run or model)(*args, **kwargs)
    for handle in handles:
        handle.remove()
    root = calls[0]
    graph = walk(root.outputs, {node for node, _ in root.inputs})
    return Recording(output, graph, calls)


class Net(nn.Module):
    """Modules and a forward function over them."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module | nn.Parameter):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, copy.deepcopy(module))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


@dataclass
class Case:
    """A net, what it is called on, and its joins."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    joins: list[str]


ZOO: list[Case] = []


def net(*joins: str, x: Any = (4, 8), **modules: Any) -> Callable[..., Any]:
    """Add a net to the zoo; `x` is the shape of its input, or the inputs themselves."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        def build() -> nn.Module:
            return Net(function, **modules)

        inputs = (torch.Size(x),) if isinstance(x[0], int) else x
        ZOO.append(Case(function.__name__, build, inputs, list(joins)))
        return function

    return add


def prepare(case: Case, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[Any]]:
    """Build the net of a case and its inputs, always the same."""
    torch.manual_seed(0)

    def make(x: Any) -> Any:
        if isinstance(x, torch.Size):
            return torch.randn(x, dtype=dtype)
        if isinstance(x, dict):
            return {key: make(value) for key, value in x.items()}
        if isinstance(x, Tensor) and x.is_floating_point():
            return x.detach().to(dtype, copy=True).requires_grad_(x.requires_grad)
        return x

    return case.build().to(dtype), [make(x) for x in case.inputs]


def lin(width: int = 8, out: int | None = None) -> nn.Linear:
    return nn.Linear(width, out or width)


def mlp(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def conv(cin: int = 4, cout: int = 4, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)


IMAGE = (2, 4, 8, 8)
TEXT = (2, 5, 8)
