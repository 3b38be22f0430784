"""What hooks keep of a graph, as checkpointing does, where the saved tensor itself tells nothing.

So it is before torch 2.10; here it is made silent in any torch.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope import schema
from gradscope.autograd.torch_internals import Unavailable, nodes
from gradscope.autograd.torch_internals.saved_hooks import FollowedHooks, is_kept_elsewhere

OWN = torch._C._autograd


@pytest.fixture
def silent(monkeypatch):
    """Saved tensors tell of no hook."""
    read = nodes.of_node

    def of_node(node: object, attribute: str, interface: str) -> object:
        if attribute == "unpack_hook":
            raise Unavailable(interface)
        return read(node, attribute, interface)

    monkeypatch.setattr(nodes, "of_node", of_node)


@pytest.fixture
def followed(silent):
    follower = FollowedHooks()
    yield
    follower.remove()


def product() -> Tensor:
    return torch.ones(2, requires_grad=True) * torch.ones(2)


def hooks() -> saved_tensors_hooks:
    return saved_tensors_hooks(lambda x: x, lambda x: x)


def kept(x: Tensor) -> bool:
    return is_kept_elsewhere(x.grad_fn, "other")


def test_what_was_made_while_hooks_were_on_is_kept_by_them(followed):
    before = product()
    with hooks():
        within = product()
        with hooks():
            nested = product()
        again = product()
        assert kept(within) and kept(nested)
    after = product()
    assert [kept(x) for x in (before, within, nested, again, after)] == [False, *[True] * 3, False]


def test_hooks_that_were_on_before_anybody_followed_are_noticed(silent):
    with hooks():
        follower = FollowedHooks()
        within = product()
    after = product()
    assert kept(within) and not kept(after)
    follower.remove()


def test_hooks_of_another_thread_do_not_hide_what_this_one_keeps(followed):
    made = []

    def work() -> None:
        with hooks():
            made.append(product())

    for _ in range(10):
        product()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert kept(made[0])


def test_an_error_within_hooks_ends_them(followed):
    with pytest.raises(ZeroDivisionError), hooks():
        raise ZeroDivisionError
    assert not kept(product())


def test_torch_is_as_it_was_once_nobody_follows(silent):
    before = OWN._push_saved_tensors_default_hooks, OWN._pop_saved_tensors_default_hooks
    first, second = FollowedHooks(), FollowedHooks()
    first.remove()
    assert OWN._push_saved_tensors_default_hooks is not before[0]
    second.remove()
    second.remove()
    assert (OWN._push_saved_tensors_default_hooks, OWN._pop_saved_tensors_default_hooks) == before
    with pytest.raises(Unavailable):
        kept(product())


class Net(nn.Module):
    """Blocks that are checkpointed, and count how often they run."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.gain, self.runs = nn.Parameter(torch.full((8,), 0.5)), 0

    def block(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x + self.gain * self.two(torch.relu(self.one(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = checkpoint(self.block, x, use_reentrant=False)
        return self.block(x).square()


def recorded(path, around):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    with gradscope.watch(model, path) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            with around():
                model(torch.randn(4, 5)).sum().backward()
            optimizer.step()
    return model, scope.run


@pytest.mark.parametrize("around", [torch.enable_grad, save_on_cpu])
def test_a_training_is_read_as_where_saved_tensors_tell(around, tmp_path, request):
    if not hasattr(OWN.SavedTensor, "unpack_hook"):
        pytest.skip("saved tensors of this torch do not tell: there is nothing to compare with")
    told, whole = recorded(tmp_path / "told", around)
    request.getfixturevalue("silent")
    model, run = recorded(tmp_path / "silent", around)
    assert model.runs == told.runs and run.notes == []
    for name in schema.names(schema.LAYER_METRICS):
        np.testing.assert_array_equal(run.frame()[name], whole.frame()[name], err_msg=name)
    for name in schema.names(schema.SHORTCUT_METRICS):
        np.testing.assert_array_equal(run.shortcut_readings[name], whole.shortcut_readings[name])
