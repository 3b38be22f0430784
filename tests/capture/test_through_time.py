"""`time_decades`: the gradient at the first time step over that at the last, by plain autograd."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import gradscope

T = 12


def decades(model, x, path, loss_of, **settings):
    """Return `time_decades` of every layer that has it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, path, **settings) as scope:
        loss_of(model, x).backward()
        optimizer.step()
    assert scope.run.notes == []
    frame = scope.run.frame().set_index("name").time_decades.dropna()
    return frame.to_dict()


def last_step(model, x):
    return model(x).square().mean()


class Sequence(nn.Module):
    def __init__(self, recurrent, batch_first=True, every_step=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.recurrent = nn.Linear(3, 4), recurrent
        self.head = nn.Linear(5, 2)
        self.batch_first, self.every_step = batch_first, every_step

    def forward(self, x):
        self.kept = self.embed(x)
        out, _ = self.recurrent(self.kept)
        last = out if self.every_step else out[:, -1] if self.batch_first else out[-1]
        return self.head(last)


def expected(model, x, dim):
    value = last_step(model, x)  # the rate is 0: its weights are as they were
    (gradient,) = torch.autograd.grad(value, model.kept)
    first, last = gradient.select(dim, 0).norm(), gradient.select(dim, -1).norm()
    return math.log10(first / last)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("every_step", [True, False])
def test_recurrent_layers_are_read_at_their_input(kind, batch_first, every_step, tmp_path):
    model = Sequence(kind(4, 5, 2, batch_first=batch_first), batch_first, every_step)
    x = torch.randn(6, T, 3) if batch_first else torch.randn(T, 6, 3)
    found = decades(model, x, tmp_path / "run", last_step)
    assert found == {"recurrent": pytest.approx(expected(model, x, int(batch_first)), rel=1e-4)}


class Cells(nn.Module):
    """Unrolls a cell by hand."""

    def __init__(self, cell):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = cell, nn.Linear(5, 2)

    def forward(self, x):
        state, self.kept = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            self.kept.append(state if isinstance(state, tuple) else (state,))
        return self.head(self.kept[-1][0])


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells_are_read_at_the_outputs_of_their_first_and_last_call(kind, tmp_path):
    model, x = Cells(kind(3, 5)), torch.randn(6, T, 3)
    twin = copy.deepcopy(model)
    value = last_step(twin, x)
    ends = [
        sum(
            g.square().sum()
            for g in torch.autograd.grad(value, kept, retain_graph=True, allow_unused=True)
            if g is not None
        ).sqrt()
        for kept in (twin.kept[0], twin.kept[-1])
    ]
    found = decades(model, x, tmp_path / "run", last_step)
    assert found == {"cell": pytest.approx(math.log10(ends[0] / ends[1]), rel=1e-4)}


class Handmade(nn.Module):
    """A cell of layers: all of them go through time; the head at every step does not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.of_input, self.of_state = nn.Linear(3, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        state, outputs = torch.zeros(len(x), 5), []
        for t in range(x.shape[1]):
            state = torch.tanh(self.of_input(x[:, t]) + self.of_state(state))
            outputs.append(self.head(state))
        return torch.stack(outputs, 1)


def test_of_a_handmade_cell_only_what_depends_on_its_own_past_goes_through_time(tmp_path):
    found = decades(Handmade(), torch.randn(6, T, 3), tmp_path / "run", last_step)
    assert set(found) == {"of_state"}


def test_a_gradient_that_does_not_reach_the_first_step_is_minus_infinity(tmp_path):
    class Forgets(Cells):
        def forward(self, x):
            state = None
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], None if state is None else state * (t != T // 2))
            return self.head(state)

    found = decades(Forgets(nn.GRUCell(3, 5)), torch.randn(6, T, 3), tmp_path / "run", last_step)
    assert found == {"cell": -math.inf}


def test_micro_batches_are_put_together_before_the_ratio_is_taken(tmp_path):
    model, x = Cells(nn.GRUCell(3, 5)), torch.randn(6, T, 3)

    def halves(model, x):
        (last_step(model, x[:3]) / 2).backward()
        return last_step(model, x[3:]) / 2

    whole = decades(model, x, tmp_path / "whole", last_step)
    assert decades(model, x, tmp_path / "halves", halves) == {
        "cell": pytest.approx(whole["cell"], rel=1e-4)
    }


NOT_SEEN = {
    "an input that needs no gradient": (
        lambda: nn.LSTM(3, 5, batch_first=True),
        lambda model, x: model(x)[0].square().mean(),
    ),
    "two directions": (
        lambda: Sequence(nn.GRU(4, 5, bidirectional=True)),
        lambda model, x: model.recurrent(model.embed(x))[0].square().mean(),
    ),
    "an activation shared by many layers": (
        lambda: nn.Sequential(nn.Linear(3, 3), (act := nn.ReLU()), nn.Linear(3, 3), act, act, act),
        last_step,
    ),
    "a tower of several inputs": (
        lambda: nn.Linear(3, 3),
        lambda model, x: nn.Sequential(model)(x).square().mean(),
    ),
    "few steps": (lambda: Cells(nn.GRUCell(3, 5)), lambda model, x: last_step(model, x[:, :3])),
    "packed": (
        lambda: Sequence(nn.GRU(4, 5, batch_first=True)),
        lambda model, x: (
            model.recurrent(
                nn.utils.rnn.pack_padded_sequence(model.embed(x), torch.full((6,), T), True)
            )[0]
            .data.square()
            .mean()
        ),
    ),
}


@pytest.mark.parametrize("name", NOT_SEEN)
def test_where_it_cannot_be_seen_or_there_is_no_time_it_is_nan(name, tmp_path):
    make, loss_of = NOT_SEEN[name]
    torch.manual_seed(0)
    assert decades(make(), torch.randn(6, T, 3), tmp_path / "run", loss_of) == {}


def test_the_first_state_does_not_stand_in_for_the_input(tmp_path):
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.state, self.recurrent = nn.Parameter(torch.randn(6, 4, 5)), nn.GRU(3, 5, 6)

        def forward(self, x):
            return self.recurrent(x, self.state)[0]

    found = decades(Learned(), torch.randn(T, 4, 3), tmp_path / "run", last_step)
    assert found == {}
