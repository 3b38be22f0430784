"""The life of a scope: what it refuses, what it leaves behind, what it logs."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import gradscope
from gradscope import schema
from gradscope.session.opening import folder


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()


@pytest.fixture
def model():
    return net()


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def watch_one_step(model, path=None, **settings):
    with gradscope.watch(model, path, **settings) as scope:
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    return scope


def refused(match, *args, **kwargs):
    with pytest.raises(gradscope.GradscopeError, match=match) as caught:
        gradscope.watch(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_what_is_no_module_is_refused():
    refused(r"needs a torch.nn.Module, got list", [1, 2])
    refused(r"Linear.*did you mean to pass an instance", nn.Linear)


def test_a_model_without_trainable_parameters_is_refused(model):
    refused("ReLU has no trainable parameters", nn.ReLU())
    refused("Sequential has no trainable parameters", model.requires_grad_(False))


@pytest.mark.parametrize("every", [0, -1, 2.5, "2", True])
def test_every_below_one_is_refused(model, every):
    refused(rf"every={every!r}", model, every=every)


@pytest.mark.parametrize("seconds", [0, 11, "1"])
def test_flushing_less_often_than_every_ten_seconds_is_refused(model, seconds):
    refused("flush_seconds", model, flush_seconds=seconds)


def test_a_run_folder_that_exists_is_refused(model, tmp_path):
    watch_one_step(model, tmp_path / "run")
    refused("there is a run already", net(), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    refused("not empty", net(), tmp_path / "full")


def test_a_run_folder_that_cannot_be_written_is_refused(model, tmp_path):
    (tmp_path / "file").touch()
    refused("cannot be written", model, tmp_path / "file" / "run")


def test_watching_the_same_model_twice_is_refused(model, tmp_path):
    with gradscope.watch(model, tmp_path / "run"):
        refused("watched already, into .*run", model, tmp_path / "again")
        step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    watch_one_step(model, tmp_path / "again")


def test_an_optimizer_of_another_model_is_refused(model):
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    refused("SGD has none of the parameters of Sequential", model, optimizer=other)
    refused("needs a torch.optim.Optimizer, got", model, optimizer=[0.1])


def test_a_refused_watch_leaves_neither_hooks_nor_folder(model, tmp_path):
    refused("every", model, tmp_path / "run", every=0)
    assert not (tmp_path / "run").exists()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "wrap, instead",
    [(nn.DataParallel, "DistributedDataParallel"), (torch.jit.script, "before it is scripted")],
)
def test_wrappers_that_hide_the_gradient_are_refused(model, wrap, instead):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        wrapped = wrap(model)
    refused(instead, wrapped)


def test_a_forward_captured_as_a_cuda_graph_is_refused(model):
    def replay(*args):
        raise AssertionError("not called")

    replay.__module__ = "torch.cuda.graphs"  # where make_graphed_callables defines its own
    model[0].forward = replay
    refused("'0' was captured by torch.cuda.make_graphed_callables", model)


def test_the_default_folder_names_the_time_and_the_class(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watch_one_step(model)
    watch_one_step(model)
    names = sorted(os.listdir("runs"))
    assert len(names) == 2
    assert all("-Sequential" in name for name in names)


def test_programs_that_start_together_take_a_folder_each(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "now")

    class My_Net(nn.Sequential):
        pass

    net = My_Net(model)
    with ThreadPoolExecutor(8) as pool:  # of which none writes its run yet
        found = set(pool.map(lambda _: folder(net, None, False), range(24)))
    numbers = [f"now-My_Net_{i}" for i in range(2, 25)]
    assert sorted(path.name for path in found) == sorted(["now-My_Net", *numbers])


def test_a_default_folder_that_cannot_be_made_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to("nowhere")
    refused("the run cannot be written", model)


def test_after_close_everything_is_as_it_was(model, optimizer, tmp_path):
    step(model, optimizer)
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    scaler_step = torch.amp.GradScaler.step
    global_hooks = len(_global_optimizer_pre_hooks)
    scope = gradscope.watch(model, tmp_path / "run")
    step(model, optimizer)
    scope.close()
    for name, module in model.named_modules():
        assert set(vars(module)) == attributes[name]
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._forward_hooks_always_called
        assert not module._forward_pre_hooks_with_kwargs
    assert torch.amp.GradScaler.step is scaler_step
    assert len(_global_optimizer_pre_hooks) == global_hooks
    step(model, optimizer)
    assert len(scope.run.steps) == 1
    scope.close()  # a second close does nothing


def test_a_closed_scope_keeps_no_model_alive(tmp_path):
    model = net()
    scope = watch_one_step(model, tmp_path / "run")
    out = model(torch.ones(3, 4)).sum()
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    assert scope.path.exists() and out.grad_fn is not None


def test_a_model_that_goes_closes_its_scope(tmp_path):
    model = net()
    scope = gradscope.watch(model, tmp_path / "run")
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    assert gradscope.load(tmp_path / "run").status == "closed"
    assert len(scope.run.steps) == 1


def test_logged_scalars_stand_beside_their_step(model, optimizer, tmp_path):
    with gradscope.watch(model, tmp_path / "run") as scope:
        for i in range(3):
            step(model, optimizer)
            scope.log(train_loss=torch.tensor(float(i)), note=np.float32(7))
        with torch.no_grad():
            model(torch.ones(3, 4))  # validation does not begin a step
        scope.log(val_loss=0.5)
    steps = scope.run.steps
    assert steps.train_loss.tolist() == [0, 1, 2]
    assert steps.note.tolist() == [7, 7, 7]
    np.testing.assert_array_equal(steps.val_loss, [np.nan, np.nan, 0.5])


def test_scalars_logged_between_recorded_steps_are_kept_for_the_next(model, optimizer, tmp_path):
    with gradscope.watch(model, tmp_path / "run", every=3) as scope:
        for i in range(5):
            step(model, optimizer)
            scope.log(train_loss=i)
    steps = scope.run.steps
    assert steps.step.tolist() == [0, 3, 4]  # the last value has no recorded step to wait for
    assert steps.train_loss.tolist() == [0, 3, 4]
    last = scope.run.layer_readings.query("step == 4")
    assert len(last) == 3 and last.signal_norm.isna().all()


@pytest.mark.parametrize(
    "scalars, match",
    [
        ({"grad_norm": 1.0}, "grad_norm"),
        ({"loss": torch.ones(2)}, r"one number, got Tensor of shape \(2,\)"),
        ({"loss": "low"}, "one number, got str"),
    ],
)
def test_what_is_no_scalar_cannot_be_logged(model, optimizer, tmp_path, scalars, match):
    with gradscope.watch(model, tmp_path / "run") as scope:
        step(model, optimizer)
        with pytest.raises(gradscope.GradscopeError, match=match):
            scope.log(**scalars)


def test_the_run_can_be_read_at_any_time(model, optimizer, tmp_path):
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(3):
            step(model, optimizer)
        assert scope.run.status == "running"
        assert scope.run.steps.step.tolist() == [0, 1, 2]
        step(model, optimizer)
    assert scope.run.steps.step.tolist() == [0, 1, 2, 3]


def test_run_json_exists_from_the_start(model, tmp_path):
    scope = gradscope.watch(model, tmp_path / "run")
    assert (tmp_path / "run" / "run.json").exists()
    with pytest.warns(gradscope.GradscopeWarning):
        scope.close()


def forward_only(model, optimizer):
    model(torch.ones(3, 4))


def backward_only(model, optimizer):
    model(torch.ones(3, 4)).sum().backward()


def without_gradients(model, optimizer):
    with torch.no_grad():
        model(torch.ones(3, 4))


@pytest.mark.parametrize(
    "loop, why",
    [
        (without_gradients, "no forward with gradients"),
        (forward_only, "no backward reached the model"),
        (backward_only, "no optimizer that has a parameter of the model made a step"),
    ],
)
def test_a_run_without_steps_says_why(model, optimizer, tmp_path, loop, why):
    scope = gradscope.watch(model, tmp_path / "run")
    loop(model, optimizer)
    with pytest.warns(gradscope.GradscopeWarning, match=why):
        scope.close()
    with pytest.warns(gradscope.GradscopeWarning, match=why):
        frame = scope.run.frame()
    assert len(frame) == 0
    assert frame.columns.tolist() == schema.names(schema.FRAME)


def test_a_copy_of_a_watched_model_has_no_working_hooks(model, optimizer, tmp_path):
    with gradscope.watch(model, tmp_path / "run") as scope:
        step(model, optimizer)
        twin = copy.deepcopy(model)
        step(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
        step(model, optimizer)
    assert len(scope.run.steps) == 2


def test_a_model_saved_while_watched_loads_without_gradscope(model, optimizer, tmp_path):
    with gradscope.watch(model, tmp_path / "run"):
        step(model, optimizer)
        torch.save(model, tmp_path / "model.pt")
        pickled = io.BytesIO(pickle.dumps(model))
    assert pickle.load(pickled)(torch.ones(1, 4)).shape == (1, 2)
    script = f"""
        import sys
        sys.modules["gradscope"] = None  # importing it fails
        import torch
        model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
        assert model(torch.ones(1, 4)).shape == (1, 2)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


@pytest.mark.slow
def test_an_unclosed_scope_is_closed_at_exit(tmp_path):
    script = f"""
        import torch, gradscope
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        gradscope.watch(model, {str(tmp_path / "run")!r})
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    run = gradscope.load(tmp_path / "run")
    assert run.status == "closed"
    assert run.steps.step.tolist() == [0, 1, 2]


def test_closed_steps_are_on_disk_before_the_scope_is_closed(model, optimizer, tmp_path):
    with gradscope.watch(model, tmp_path / "run", flush_every=2) as scope:
        for _ in range(6):
            step(model, optimizer)
        scope.flush()
        assert len(gradscope.load(tmp_path / "run").steps) == 6
