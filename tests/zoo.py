"""Small nets with the residual joins that they have, and a collector of their module calls.

Each net is a forward function over a few modules. What is expected of it is one line a join:
``form name split join branch``, the columns of the shortcuts' table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradscope.graph import Call, Graph, sequence_number, walk
from gradscope.joins import Join, find_joins


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
        opened.append((len(calls), ends([args, kwargs]), sequence_number()))
        calls.append(None)  # type: ignore[arg-type]

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            place, inputs, start = opened.pop()
            owns = next(module.parameters(recurse=False), None) is not None
            kind = type(module).__name__
            stop = sequence_number()
            calls[place] = Call(name, kind, owns, start, stop, inputs, ends(output))

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
    model = case.build().to(dtype)
    inputs = [
        torch.randn(x, dtype=dtype) if isinstance(x, torch.Size) else copy.deepcopy(x)
        for x in case.inputs
    ]
    return model, inputs


def lin(width: int = 8, out: int | None = None) -> nn.Linear:
    return nn.Linear(width, out or width)


def mlp(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def conv(cin: int = 4, cout: int = 4, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)


IMAGE = (2, 4, 8, 8)
TEXT = (2, 5, 8)


# --- additions, however written -----------------------------------------------------------------


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def functional_add(m, x):
    x = m.stem(x)
    return x + m.f(x)


@net("identity (root) (root) (root) f", stem=lin(), f=lin())
def add_in_place(m, x):
    x = m.stem(x) * 1
    x += m.f(x)
    return x


@net("identity (root) stem (root) f", x=TEXT, stem=lin(), f=lin())
def add_in_place_to_a_view(m, x):
    x = m.stem(x)
    y = m.f(x)
    y += x
    return y


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def alpha_on_the_branch(m, x):
    x = m.stem(x)
    return torch.add(x, m.f(x), alpha=0.5)


@net("scaled (root) stem (root) f", stem=lin(), f=lin())
def alpha_on_the_shortcut(m, x):
    x = m.stem(x)
    return torch.add(m.f(x), x, alpha=0.5)


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def subtraction(m, x):
    x = m.stem(x)
    return x - m.f(x)


@net("scaled (root) stem (root) f", stem=lin(), f=lin())
def lerp(m, x):
    x = m.stem(x)
    return torch.lerp(x, m.f(x), 0.3)


@net("scaled (root) stem (root) f", stem=lin(), f=lin())
def lerp_by_hand(m, x):
    x = m.stem(x)
    return x + 0.3 * (m.f(x) - x)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), gamma=nn.Parameter(torch.ones(8)))
def addcmul_layer_scale(m, x):
    x = m.stem(x)
    return torch.addcmul(x, m.gamma, m.f(x))


@net("identity (root) stem (root) f", stem=lin(), f=lin())
def stack_and_sum(m, x):
    x = m.stem(x)
    return torch.stack([x, m.f(x)]).sum(0)


@net("identity (root) stem (root) f.0", stem=lin(), f=mlp(), w=nn.Parameter(torch.ones(8, 8)))
def addmm(m, x):
    x = m.stem(x)
    return torch.addmm(x, m.f(x), m.w)


@net("scaled (root) stem (root) f", stem=lin(), f=lin())
def scaled_shortcut(m, x):
    x = m.stem(x)
    return 0.5 * x + m.f(x)


@net("scaled (root) stem (root) f", stem=lin(), f=lin(), a=nn.Parameter(torch.ones(())))
def learned_scale_on_the_shortcut(m, x):
    x = m.stem(x)
    return m.a * x + m.f(x)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), a=nn.Parameter(torch.zeros(())))
def rezero(m, x):
    x = m.stem(x)
    return x + m.a * m.f(x)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), g=lin())
def parallel_branches(m, x):
    x = m.stem(x)
    return x + m.f(x) + m.g(x)


@net("identity (root) stem (root) f", stem=lin(), f=lin(), g=lin())
def parallel_branches_before_the_shortcut(m, x):
    x = m.stem(x)
    return m.f(x).tanh() + m.g(x).tanh() + x


# --- gates --------------------------------------------------------------------------------------


@net("gated (root) stem (root) h", stem=lin(), h=lin(), t=lin())
def highway(m, x):
    x = m.stem(x)
    t = torch.sigmoid(m.t(x))
    return t * torch.tanh(m.h(x)) + (1 - t) * x


@net("gated (root) stem (root) h", stem=lin(), h=lin(), t=lin())
def highway_coupled(m, x):
    x = m.stem(x)
    t = torch.sigmoid(m.t(x))
    return x + t * (torch.tanh(m.h(x)) - x)


@net("gated (root) stem (root) t", stem=lin(), h=lin(), t=lin(), c=lin())
def highway_with_its_own_carry_gate(m, x):
    x = m.stem(x)
    return torch.sigmoid(m.t(x)) * m.h(x) + torch.sigmoid(m.c(x)) * x


@net("gated (root) stem (root) h", stem=lin(), h=lin(), t=lin())
def highway_by_lerp(m, x):
    x = m.stem(x)
    return torch.lerp(x, m.h(x), torch.sigmoid(m.t(x)))


@net(*["gated cell cell cell cell"] * 2, cell=nn.GRUCell(8, 8), x=(4, 3, 8))
def gru_cell(m, x):
    h = x.new_zeros(len(x), 8)
    for t in range(3):
        h = m.cell(x[:, t], h)
    return h


# --- must not be flagged ------------------------------------------------------------------------


@net(f=lin(), g=lin())
def plain(m, x):
    return m.g(torch.relu(m.f(x)))


@net(f=lin(), g=lin())
def gelu_by_hand(m, x):
    x = m.f(x)
    return m.g(0.5 * x * (1 + torch.tanh(0.8 * (x + 0.0447 * x**3))))


@net(f=lin(), g=lin(), w=nn.Parameter(torch.ones(8)), b=nn.Parameter(torch.zeros(8)))
def layer_norm_by_hand(m, x):
    x = m.f(x)
    x = x - x.mean(-1, keepdim=True)
    return m.g(x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * m.w + m.b)
