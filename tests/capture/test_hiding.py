"""Nothing of ours goes with the model: into pickles, copies, scripts, traces and exports."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from releases import exports_with_hooks


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Counting(Net):
    """A class that pickles itself, and has a hook of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.register_forward_hook(passed)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "note": "kept"}


def passed(module: nn.Module, args: object, output: Tensor) -> None:
    """A hook of the user's."""


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tmp_path):
    model = Net()
    scope = gradscope.watch(model, tmp_path / "run")
    yield model
    scope.close()


def hooks(model: nn.Module) -> list[object]:
    return [
        hook
        for module in model.modules()
        for held in (module._forward_hooks, module._forward_pre_hooks)
        for hook in held.values()
    ]


def test_a_saved_model_loads_with_weights_only(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.serialization.safe_globals([Net, nn.Linear, nn.Tanh]):
        loaded = torch.load(file, weights_only=True)
    assert hooks(loaded) == []
    torch.testing.assert_close(loaded(X), model(X))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_a_copy_is_not_watched_and_the_original_still_is(copied, model, tmp_path):
    other = copied(model)
    assert [h for m in [other] for h in m._forward_hooks] == [] and hooks(model) != []
    with gradscope.watch(copy.deepcopy(other), tmp_path / "other"):
        pass


def test_hooks_of_the_user_go_with_the_model(tmp_path):
    model = Counting()
    with gradscope.watch(model, tmp_path / "run"):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert hooks(other) == [passed] and other.note == "kept"
            assert other.fc1._forward_hooks_with_kwargs == {}


def test_a_pickle_loads_where_there_is_no_gradscope(model, tmp_path):
    model = nn.Sequential(nn.Linear(3, 2))
    with gradscope.watch(model, tmp_path / "other"):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    script = (
        "import sys; sys.modules['gradscope'] = None; import pickle, torch;"
        "model = pickle.load(open(sys.argv[1], 'rb')); print(tuple(model(torch.ones(1, 3)).shape))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model.pkl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 2)"


@pytest.mark.parametrize(
    "made",
    [
        torch.jit.script,
        lambda m: torch.jit.trace(m, X),
        pytest.param(lambda m: torch.export.export(m, (X,)).module(), marks=exports_with_hooks),
        torch.fx.symbolic_trace,
    ],
    ids=["script", "trace", "export", "fx"],
)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_is_made_of_a_watched_model_computes_the_same(made, model, tmp_path):
    torch.testing.assert_close(made(model)(X), model(X))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()  # what is made of it does not end the recording
    optimizer.step()
    gradscope.unwatch(model)
    run = gradscope.load(tmp_path / "run")
    assert len(run.steps) == 1 and run.notes == []
    assert run.frame().signal_norm.notna().all()


def test_a_graph_goes_to_tensorboard(model, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="an extra of the tests")
    with tensorboard.SummaryWriter(str(tmp_path / "logs")) as writer:
        writer.add_graph(model, X)


def test_afterwards_torch_is_as_it_was(tmp_path):
    ask = torch.jit._recursive.get_hook_stubs
    one, other = Net(), Net()
    with gradscope.watch(one, tmp_path / "a"), gradscope.watch(other, tmp_path / "b"):
        assert "__reduce_ex__" in vars(nn.Module)
    assert "__reduce_ex__" not in vars(nn.Module)
    assert torch.jit._recursive.get_hook_stubs is ask


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_scripted_part_has_readings_of_parameters_and_is_named(tmp_path):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.second = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x)))

    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(gradscope.GradscopeWarning, match="layer 'second': compiled by torch.jit"):
        scope = gradscope.watch(model, tmp_path / "run")
    model(X).square().sum().backward()
    norms = {
        name: np.sqrt(sum(p.grad.square().sum().item() for p in module.parameters(recurse=False)))
        for name, module in model.named_modules()
    }
    optimizer.step()
    scope.close()
    frame = scope.run.frame().set_index("name")
    for name in ("first", "second.0", "last"):
        assert frame.grad_norm[name] == pytest.approx(norms[name], rel=1e-5)
    assert frame.signal_norm[["first", "last"]].notna().all()
    assert frame.signal_norm[["second.0"]].isna().all()


class Unreadable(nn.Module):
    """Its submodules cannot be hooked."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def register_forward_hook(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("no hooks, please")


def test_what_watch_raises_leaves_nothing_behind(tmp_path):
    model = Unreadable()
    path = tmp_path / "run"
    for _ in range(2):  # the folder is free, the lock is released
        with pytest.raises(RuntimeError, match="no hooks, please"):
            gradscope.watch(model, path)
        assert hooks(model) == [] and not Path(path).exists()
        assert "__reduce_ex__" not in vars(nn.Module)
    with gradscope.watch(model.fc, path):
        pass


def test_unwatch_ends_what_has_lost_its_scope(tmp_path):
    model = Net()
    gradscope.watch(model, tmp_path / "lost")
    with pytest.raises(gradscope.GradscopeError, match=r"call gradscope\.unwatch\(model\)"):
        gradscope.watch(model, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    gradscope.unwatch(model)
    assert hooks(model) == [] and gradscope.load(tmp_path / "lost").status == "closed"
    gradscope.unwatch(model)  # it is not watched: nothing to do
    with gradscope.watch(model, tmp_path / "second"):
        gradscope.unwatch(nn.parallel.DataParallel(nn.Linear(2, 2)))
        assert hooks(model) != []
    with pytest.raises(gradscope.GradscopeError, match="unwatch"):
        gradscope.unwatch("model")
