"""Bad input: one sentence each, and nothing of the user's changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
import learners

CROSS_ENTROPY = nn.CrossEntropyLoss()


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lock = nn.Linear(8, 4), __import__("threading").Lock()

    def forward(self, x):
        return self.fc(x)


def fails(model):
    raise RuntimeError("no such layer")


def out_of_memory(x, y):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


CASES = {
    "no module": (dict(model=nn.Linear), "needs a torch.nn.Module, got type"),
    "no loss function": (dict(loss_fn=3), "loss_fn must be callable"),
    "no optimizer": (dict(optimizer=3), "needs a torch.optim.Optimizer, got int"),
    "another's optimizer": (
        dict(optimizer=learners.momentum(nn.Linear(2, 2))),
        "this SGD has none of the parameters of Sequential",
    ),
    "no steps": (dict(steps=0), r"steps=0\): needs a whole number, 2 or more"),
    "a batch for batches": (dict(batches=learners.batches()[0]), r"a batch is a pair"),
    "a number for batches": (dict(batches=3), "batches are a list, a DataLoader or an iterator"),
    "batches that ran out": (dict(batches=iter([])), "no batch came; if the iterator ran out"),
    "a model without copy": (dict(model=Locked()), "Locked cannot be copied"),
    "a detached loss": (
        dict(loss_fn=lambda x, y: F.cross_entropy(x.detach(), y)),
        "the loss does not depend on the model",
    ),
    "another loss": (
        dict(loss_fn=lambda x, y: torch.ones(1, requires_grad=True).sum()),
        "the loss does not depend on the model",
    ),
    "a loss for each sample": (
        dict(loss_fn=nn.CrossEntropyLoss(reduction="none")),
        r"loss_fn must return one number, got shape \(32,\)",
    ),
    "a loss that fails": (
        dict(loss_fn=nn.BCELoss()),
        "the model or loss_fn failed on the first batch: ValueError",
    ),
    "out of memory": (dict(loss_fn=out_of_memory), "out of memory; it takes one copy"),
    "an unknown change": (dict(changes=["shortcut"]), "no change; did you mean 'shortcuts'"),
    "no change at all": (dict(changes=[3]), "takes names, functions from model to model"),
    "a change that fits nowhere": (
        dict(changes=["recurrent"]),
        "orthogonal recurrent weights: the net has no recurrent layer",
    ),
    "a change that fails": (dict(changes=[fails]), "fails: RuntimeError: no such layer"),
    "a change of something else": (
        dict(changes=[lambda model: 3]),
        "must return a model, or None where it changed the one it got; it returned int",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_and_changes_nothing(tmp_path, case):
    given, sentence = CASES[case]
    model = given.get("model", learners.plain(5))
    weights = [] if isinstance(model, type) else [p.clone() for p in model.parameters()]
    arguments = {
        "model": model,
        "loss_fn": CROSS_ENTROPY,
        "batches": learners.batches(),
        "optimizer": learners.momentum(model) if weights else None,
        **given,
    }
    numbers = torch.get_rng_state()
    with pytest.raises(gradscope.GradscopeError, match=sentence) as caught:
        gradscope.what_if(**{"steps": 4, "run": tmp_path / "run", **arguments})
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), numbers)
    for parameter, before in zip(model.parameters() if weights else [], weights, strict=True):
        assert torch.equal(parameter, before) and parameter.grad is None


def test_a_loss_that_reaches_for_the_model_itself_is_refused_before_it_gets_a_gradient(tmp_path):
    model = learners.plain(4)

    def decayed(output, target):
        return F.cross_entropy(output, target) + 0.01 * sum(p.norm() for p in model.parameters())

    with pytest.raises(gradscope.GradscopeError, match="uses the parameters of the model itself"):
        gradscope.what_if(
            model, decayed, learners.batches(), learners.momentum(model), run=tmp_path / "run"
        )
    assert all(p.grad is None for p in model.parameters())


def test_what_is_refused_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = learners.plain(4)
    optimizer = learners.momentum(model)
    with pytest.raises(gradscope.GradscopeError, match="out of memory"):
        gradscope.what_if(model, out_of_memory, learners.batches(), optimizer)
    assert not list(tmp_path.glob("runs/*"))


def test_a_change_that_a_net_does_not_bear_is_told_of_and_the_others_are_tried(tmp_path):
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = learners.plain(12)

        def forward(self, x):  # samples one by one: no BatchNorm can train on that
            return torch.cat([self.net(sample[None]) for sample in x[:2]])

    def narrower(model):
        model.net.last = nn.Linear(3, 4)

    def vain(model):
        return model

    model = Squeezed()
    data = [(x, y[:2]) for x, y in learners.batches()]
    what = gradscope.what_if(
        model, CROSS_ENTROPY, data, learners.momentum(model),
        changes=[narrower, vain], steps=3, run=tmp_path / "run",
    )  # fmt: skip
    assert [row.change for row in what.tried] == ["vain"]
    (note,) = [note for note in what.notes if "narrower" in note]
    assert "could not be tried, RuntimeError: " in note


def test_a_scope_without_an_optimizer_or_closed_says_what_to_call(tmp_path):
    model = learners.plain(3)
    scope = gradscope.watch(model, tmp_path / "run")
    with pytest.raises(gradscope.GradscopeError, match="knows 0 optimizers; call"):
        scope.what_if(CROSS_ENTROPY, learners.batches())
    with pytest.warns(gradscope.GradscopeWarning):
        scope.close()
    with pytest.raises(gradscope.GradscopeError, match="this scope is closed; call"):
        scope.what_if(CROSS_ENTROPY, learners.batches())


def test_few_batches_are_used_again_and_that_is_said(tmp_path):
    model = learners.plain(3)
    what = gradscope.what_if(
        model, CROSS_ENTROPY, learners.batches(2), learners.momentum(model),
        changes=["lr/3"], steps=5, run=tmp_path / "run",
    )  # fmt: skip
    assert "2 batches for 5 steps: used again and again" in "".join(what.notes)
    assert what.unchanged.steps == 5


def test_time_that_is_over_ends_the_tries_and_names_those_that_are_left(tmp_path):
    model = learners.plain(3)
    what = gradscope.what_if(
        model, CROSS_ENTROPY, learners.batches(), learners.momentum(model),
        changes=["lr/3", "he"], steps=3, seconds=0, run=tmp_path / "run",
    )  # fmt: skip
    assert what.tried == ()
    assert "0 s were over: not tried: learning rate x 1/3, He weights" in "".join(what.notes)
