"""Nothing of the user's changes: weights, gradients, state, random numbers, data, the recording."""

from __future__ import annotations

import copy
import itertools
import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradscope
import learners

CROSS_ENTROPY = nn.CrossEntropyLoss()
FEW = {"changes": ["shortcuts", "lr/10", "he"], "steps": 4}


def net() -> nn.Module:
    model = learners.plain(6)
    model.body[1].append(nn.BatchNorm1d(learners.WIDTH))
    model.body[2].append(nn.Dropout(0.3))
    return model


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every tensor of a training: weights, buffers, gradients, the optimizer's own."""
    found = [*model.state_dict().values()]
    found += [torch.zeros(0) if p.grad is None else p.grad for p in model.parameters()]
    for values in optimizer.state_dict()["state"].values():
        found += [torch.as_tensor(value) for value in values.values() if value is not None]
    return [tensor.clone() for tensor in found]


def random_numbers() -> list[object]:
    kind, keys, *place = np.random.get_state()
    return [torch.get_rng_state().tolist(), kind, keys.tolist(), place, random.getstate()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("make", [learners.momentum, lambda m: torch.optim.AdamW(m.parameters())])
def test_model_optimizer_gradients_and_random_numbers_stay_to_the_bit(tmp_path, make):
    model, data = net(), learners.batches()
    optimizer = make(model)
    learners.steps(model, optimizer, data[:3])  # in the midst of a training, gradients there
    versions = [tensor._version for tensor in itertools.chain(*data)]
    kept = copy.deepcopy(data)
    before, numbers = state_of(model, optimizer), random_numbers()
    gradscope.what_if(model, CROSS_ENTROPY, data, optimizer, run=tmp_path / "run", **FEW)
    assert same(before, state_of(model, optimizer))
    assert numbers == random_numbers()
    assert [tensor._version for tensor in itertools.chain(*data)] == versions
    assert same([*itertools.chain(*data)], [*itertools.chain(*kept)])


def test_a_watched_training_goes_on_as_if_nothing_had_been_asked(tmp_path):
    results = []
    for ask in (False, True):
        torch.manual_seed(1)
        model = net()
        optimizer = learners.momentum(model)
        data = learners.batches()
        with gradscope.watch(model, tmp_path / f"run{ask}") as scope:
            losses = learners.steps(model, optimizer, data[:6])
            if ask:
                what = scope.what_if(CROSS_ENTROPY, data, **FEW)
            losses += learners.steps(model, optimizer, data[6:])
        results.append((losses, state_of(model, optimizer), scope.run.frame()))
    (losses, state, frame), (losses_asked, state_asked, frame_asked) = results
    assert losses == losses_asked
    assert same(state, state_asked)
    pd.testing.assert_frame_equal(frame, frame_asked)
    assert what.run == tmp_path / "runTrue"


def test_a_loader_gives_the_same_afterwards_and_an_iterator_goes_on_behind_what_was_drawn(tmp_path):
    x = torch.arange(64.0).reshape(64, 1).repeat(1, 8)
    y = torch.arange(64) % 4

    def loader():
        generator = torch.Generator().manual_seed(5)
        return DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=generator)

    model = learners.plain(4)
    optimizer = learners.momentum(model)
    twin, asked = loader(), loader()
    begun, begun_asked = iter(twin), iter(asked)  # both are in the middle of an epoch
    assert torch.equal(next(begun)[0], next(begun_asked)[0])
    gradscope.what_if(model, CROSS_ENTROPY, asked, optimizer, run=tmp_path / "a", **FEW)
    assert same([b[0] for b in begun], [b[0] for b in begun_asked])
    assert same([b[0] for b in twin], [b[0] for b in asked])

    drawn = iter(learners.batches())
    what = gradscope.what_if(model, CROSS_ENTROPY, drawn, optimizer, run=tmp_path / "b", **FEW)
    assert torch.equal(next(drawn)[0], learners.batches()[4][0])
    assert any("4 batches drawn from the iterator" in note for note in what.notes)


def test_hooks_of_a_watched_model_do_not_come_along(tmp_path):
    model = net()
    optimizer = learners.momentum(model)
    hooks = []

    def look(copied: nn.Module) -> None:
        hooks.append(
            sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in copied.modules())
        )

    with gradscope.watch(model, tmp_path / "run", optimizer=optimizer) as scope:
        scope.what_if(CROSS_ENTROPY, learners.batches(), changes=[look], steps=2)
        own = sum(len(m._forward_hooks) for m in model.modules())
    assert own > 0
    assert set(hooks) == {0}


def test_there_is_one_copy_at_a_time(tmp_path):
    import gc
    import weakref

    seen, alive = [], []

    def count(copied: nn.Module) -> None:
        gc.collect()
        alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(copied))

    model = net()
    optimizer = learners.momentum(model)
    changes = [count, "shortcuts", ["he", count], [count, "lr/10"]]
    data = learners.batches()
    gradscope.what_if(
        model, CROSS_ENTROPY, data, optimizer, changes=changes, steps=3, run=tmp_path / "run"
    )
    assert len(alive) >= 6
    assert set(alive) == {0}
