"""torch's private interfaces: without each of them training goes on, and the rest is still read."""

from __future__ import annotations

import ast
import pydoc
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradscope
from gradscope import schema
from gradscope.autograd import torch_internals
from gradscope.autograd.torch_internals import (
    INTERFACES,
    Unavailable,
    backward_calls,
    node_names,
    nodes,
)

SOURCE = Path(gradscope.__file__).parent

SIGNALS = {"signal_norm", "input_signal_norm"}
OUTPUTS = {
    "activation_norm",
    "activation_mean",
    "activation_std",
    "sample_spread",
    "output_elements",
}
SLOPES = {"derivative_mean", "zero_fraction", "saturated_fraction", "dead_fraction"}
SHORTCUTS = set(schema.names(schema.SHORTCUT_METRICS))

BACKWARDS = {"grad_norm"} | SIGNALS | OUTPUTS | SLOPES | SHORTCUTS
LOST: dict[str, set[str]] = {
    "torch._C._current_graph_task_id": BACKWARDS,
    "torch._C._will_engine_execute_node": BACKWARDS - {"grad_norm"},
    "torch.autograd.Variable._execution_engine.queue_callback": {"grad_norm"},
    "torch._C._autograd._get_sequence_nr": {"input_signal_norm"} | SLOPES | SHORTCUTS,
    "Node._sequence_nr": {"input_signal_norm"} | SLOPES | SHORTCUTS,
    "Node._input_metadata": SHORTCUTS,
    "Node._saved_*": SLOPES | SHORTCUTS,
    "Node._raw_saved_*": SLOPES | {"branch_ratio"},
    "SavedTensor.unpack_hook": SLOPES | {"branch_ratio"},
    node_names.NAMES: SLOPES | SHORTCUTS,
    "torch.autograd.function.BackwardCFunction": SHORTCUTS,
}
"""Interface -> metrics that are NaN without it; without the others there are all."""


class Block(nn.Module):
    """A residual block whose branch is scaled, and whose activation is called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gain = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.fc2(F.relu(self.fc1(x)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), Block(), Block(), nn.Linear(8, 2)).double()


def train(model: nn.Module) -> None:
    """Three steps, with clipping by half."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 5, dtype=torch.float64)).square().sum().backward()
        for parameter in model.parameters():
            parameter.grad.mul_(0.5)
        optimizer.step()


def record(path: Path) -> tuple[nn.Module, gradscope.Run, list[str]]:
    model = net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with gradscope.watch(model, path) as scope:
            train(model)
    return model, scope.run, [str(w.message) for w in caught]


class Engine:
    """An engine that runs backwards and calls nobody back."""

    def __init__(self) -> None:
        self.run_backward = torch.autograd.Variable._execution_engine.run_backward


def remove(name: str, patch: pytest.MonkeyPatch) -> None:
    """Take an interface away, as a release of torch might."""
    owner, _, attribute = name.rpartition(".")
    if name == node_names.NAMES:
        for where in (nodes, torch_internals):
            patch.setattr(where, "kind_name", lambda kind: kind.__name__.replace("Add", "Plus"))
        patch.setattr(node_names, "strange_names", node_names.strange_names.__wrapped__)
    elif owner in ("Node", "SavedTensor"):
        pattern = re.compile(attribute.replace("*", r"\w+"))
        read = nodes.of_node

        def of_node(node: object, asked: str, interface: str) -> object:
            if pattern.fullmatch(asked):
                raise Unavailable(interface)
            return read(node, asked, interface)

        patch.setattr(nodes, "of_node", of_node)
        if name == "SavedTensor.unpack_hook":
            patch.delattr(torch._C._autograd, "_push_saved_tensors_default_hooks")
    elif name == "Tensor._version":

        def gone(_: Tensor) -> int:
            raise AttributeError("_version")

        patch.setattr(Tensor, "_version", property(gone), raising=False)
    elif attribute == "queue_callback":
        patch.setattr(torch.autograd.Variable, "_execution_engine", Engine())
    elif name == "torch.autograd.function.BackwardCFunction":
        patch.delattr(torch.autograd.function, "BackwardCFunction")
    elif name == "torch.autograd._engine_run_backward":  # without which torch goes nowhere
        patch.setattr(backward_calls, "_RUN", "of_another_name")
    else:
        patch.delattr(pydoc.locate(owner), attribute, raising=False)  # older ones never had some


BY_OBJECT = {
    "Module._parameters",
    "Module._modules",
    "Module._compiled_call_impl",
    "OptimizedModule.dynamo_ctx",
    "RemovableHandle.hooks_dict_ref",
    "GradScaler._scale",
    "Optimizer.grad_scale",
    "FSDPModule._get_fsdp_state",
    "_ToTorchTensor.dtensor_spec",
}
"""What single objects have, or have not."""

OF_TORCH_ITSELF = {"torch._C._get_tracing_state"}
"""What `nn.Module.__call__` uses, too: without it there is no training."""


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.name)
def test_without_it_training_goes_on_and_what_is_lost_is_told_once(interface, tmp_path):
    if interface.name in BY_OBJECT | OF_TORCH_ITSELF:
        assert not interface.loses
        return
    bare = net()
    train(bare)
    _, whole, _ = record(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        remove(interface.name, patch)
        model, run, told = record(tmp_path / "run")
    for name, weight in bare.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    assert told.count(f"gradscope: {torch_internals.sentence(interface)}") == bool(interface.loses)
    assert len(told) == len(run.notes) == bool(interface.loses)
    lost = LOST.get(interface.name, set())
    assert run.steps.step.tolist() == [0, 1, 2]
    compare(run.frame(), whole.frame(), schema.LAYER_METRICS, lost)
    if lost >= SHORTCUTS and "signal_norm" not in lost:
        assert run.shortcuts.empty
    else:
        compare(run.shortcut_readings, whole.shortcut_readings, schema.SHORTCUT_METRICS, lost)


def compare(read: pd.DataFrame, whole: pd.DataFrame, metrics: schema.Table, lost: set[str]) -> None:
    for name in schema.names(metrics):
        if name in lost:
            assert read[name].isna().all(), name
            assert whole[name].notna().any(), name
        else:
            np.testing.assert_array_equal(read[name], whole[name], err_msg=name)


def test_what_several_of_them_lose_is_one_message(tmp_path, monkeypatch):
    for name in ("Node._saved_*", "torch._C._current_autograd_node", node_names.NAMES):
        remove(name, monkeypatch)
    _, run, told = record(tmp_path / "run")
    (message,) = told
    for part in ("_saved_*", "_current_autograd_node", "names of nodes", "may count twice"):
        assert message.count(part) == 1
    assert run.notes == [message.removeprefix("gradscope: ")]
    assert run.shortcuts.empty and run.frame().derivative_mean.isna().all()
    assert run.frame().grad_norm.notna().all()


@pytest.mark.parametrize("name", LOST)
def test_without_it_no_compiled_code_is_suspected_though_torch_has_compiled(name, tmp_path):
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        remove(name, patch)
        _, _, told = record(tmp_path / "run")
    assert len(told) == 1 and "compiled" not in told[0]


def test_a_look_at_torch_draws_no_random_number_and_runs_no_backward():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    node_names.strange_names.cache_clear()
    with torch.profiler.profile() as profile:
        torch_internals.self_check()
    assert torch.equal(torch.get_rng_state(), state)
    assert not [event.name for event in profile.events() if "evaluate_function" in event.name]


def test_nothing_is_missing_from_this_torch():
    assert torch_internals.self_check() == ((), "")


def test_a_module_without_its_dict_of_parameters_is_asked_for_them():
    class Plain:
        def named_parameters(self, recurse: bool) -> list[tuple[str, int]]:
            assert not recurse
            return [("weight", 1)]

    assert torch_internals.parameters_of(Plain()) == {"weight": 1}


def test_a_scaler_without_its_scale_is_asked_for_it():
    class Scaler:
        def get_scale(self) -> int:
            return 8

    assert torch_internals.scale_of(Scaler()) == 8.0


@pytest.mark.parametrize("error", [ZeroDivisionError("injected"), AttributeError("injected")])
def test_a_search_for_joins_that_fails_costs_the_shortcuts_alone(error, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise error

    _, whole, _ = record(tmp_path / "whole")
    monkeypatch.setattr("gradscope.autograd.joins.sums", broken)
    _, run, told = record(tmp_path / "run")
    assert len(told) == 1 and "could not read shortcuts" in told[0] and "injected" in told[0]
    assert run.shortcuts.empty
    compare(run.frame(), whole.frame(), schema.LAYER_METRICS, set())


PRIVATE = re.compile(
    r"_C|_(raw_)?saved_\w+|_input_metadata|_sequence_nr|_execution_engine|_version|_foreach_\w+"
    r"|_parameters|_modules|_buffers|_compiled_call_impl|_compiler_ctx|_orig_mod|_functorch"
)


def test_nobody_else_knows_the_private_parts_of_torch():
    """Attributes of other objects than `self`, by their names."""
    found = [
        f"{file.relative_to(SOURCE)}: {ast.unparse(node)}"
        for file in SOURCE.rglob("*.py")
        if file.parent.name != "torch_internals"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and PRIVATE.fullmatch(node.attr)
        and ast.unparse(node.value) != "self"
    ]
    assert found == []


def test_every_interface_says_what_it_is_for() -> None:
    assert [interface.name for interface in INTERFACES if not interface.purpose] == []
    assert len({interface.name for interface in INTERFACES}) == len(INTERFACES)
