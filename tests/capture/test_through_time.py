"""`time_decades`: the gradient at the first time step over that at the last, by plain autograd."""

from __future__ import annotations

import copy
import math
from functools import partial

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
    "two layers in two directions": (
        lambda: nn.GRU(3, 5, 2, bidirectional=True),
        lambda model, x: model(x)[0].square().mean(),
    ),
    "dropout between two layers": (
        lambda: nn.GRU(3, 5, 2, dropout=0.1),
        lambda model, x: model(x)[0].square().mean(),
    ),
    "a state that is given by name": (
        lambda: nn.GRU(3, 5),
        lambda model, x: model(x, hx=torch.ones(1, T, 5))[0].square().mean(),
    ),
    "one sequence": (lambda: nn.GRU(3, 5), lambda model, x: model(x[0])[0].square().mean()),
    "an activation shared by many layers": (
        lambda: nn.Sequential(nn.Linear(3, 3), (act := nn.ReLU()), nn.Linear(3, 3), act, act, act),
        last_step,
    ),
    "a tower of several inputs": (
        lambda: nn.Linear(3, 3),
        lambda model, x: nn.Sequential(model)(x).square().mean(),
    ),
    "few steps": (lambda: Cells(nn.GRUCell(3, 5)), lambda model, x: last_step(model, x[:, :3])),
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

    model, x = Learned(), torch.randn(T, 4, 3)
    found = decades(model, x, tmp_path / "run", last_step)
    expected = two_ends(model.recurrent, x, all_outputs, model.state.detach())
    assert found == {"recurrent": pytest.approx(expected, rel=1e-4)}


def two_ends(module, x, loss_of_outputs, state=None):
    """Return log10 of the gradient of an input that is made to need one, first over last step."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of_outputs(*module(x, state)), x)
    dim = int(module.batch_first)
    return math.log10(gradient.select(dim, 0).norm() / gradient.select(dim, -1).norm())


class Raw(nn.Module):
    """A recurrent layer on an input that needs no gradient."""

    def __init__(self, recurrent, state=None):
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.state = recurrent, state

    def forward(self, x):
        return self.recurrent(x) if self.state is None else self.recurrent(x, self.state)


def last_output(out, state):
    return out[:, -1].square().mean()


def all_outputs(out, state):
    return out.square().mean()


def last_state(out, state):
    return (state[0] + state[1] if isinstance(state, tuple) else state).square().mean()


def all_that_there_is(out, state):
    return last_output(out, state) + last_state(out, state)


KINDS = [nn.RNN, partial(nn.RNN, nonlinearity="relu"), nn.LSTM, nn.GRU]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [last_output, all_outputs, last_state, all_that_there_is])
@pytest.mark.parametrize("layers", [1, 2])
def test_an_input_that_needs_no_gradient_is_no_obstacle(kind, loss, layers, tmp_path):
    model, x = Raw(kind(3, 5, layers, batch_first=True)), torch.randn(6, T, 3)
    found = decades(model, x, tmp_path / "run", lambda model, x: loss(*model(x)))
    expected = two_ends(model.recurrent, x, loss)
    assert found == {"recurrent": pytest.approx(expected, rel=1e-4)}


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 5, proj_size=4, batch_first=True),
        nn.GRU(3, 5, bias=False, batch_first=True),
        nn.GRU(3, 5, dropout=0.0, batch_first=True).double(),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_so_it_is_with_a_given_state_of_any_size_and_kind(module, given, tmp_path):
    torch.manual_seed(0)
    dtype = module.weight_hh_l0.dtype
    x, state = torch.randn(6, T, 3, dtype=dtype), None
    if given:
        widths = (getattr(module, "proj_size", 0) or 5, 5)
        parts = tuple(torch.randn(1, 6, width, dtype=dtype) for width in widths)
        state = parts if isinstance(module, nn.LSTM) else parts[1]
    model = Raw(module, state)
    found = decades(model, x, tmp_path / "run", lambda model, x: last_output(*model(x)))
    expected = two_ends(module, x, last_output, state)
    assert found == {"recurrent": pytest.approx(expected, rel=1e-4)}


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_of_two_directions_each_goes_from_its_own_first_step(kind, embedded, tmp_path):
    class Both(Raw):
        def __init__(self):
            super().__init__(kind(3, 5, bidirectional=True))
            self.embed = nn.Linear(3, 3)

        def forward(self, x):
            out, _ = self.recurrent(self.embed(x) if embedded else x)
            return out[-1, :, :5].square().mean() + 2 * out[0, :, 5:].square().mean()

    model, x = Both(), torch.randn(T, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(x).backward()
        optimizer.step()
    x = (model.embed(x) if embedded else x).detach().requires_grad_()
    out, _ = model.recurrent(x)
    forth = torch.autograd.grad(out[-1, :, :5].square().mean(), x, retain_graph=True)[0]
    back = torch.autograd.grad(2 * out[0, :, 5:].square().mean(), x)[0]
    first = math.hypot(forth[0].norm(), back[-1].norm())
    last = math.hypot(forth[-1].norm(), back[0].norm())
    found = scope.run.frame().set_index("name").time_decades["recurrent"]
    assert found == pytest.approx(math.log10(first / last), rel=1e-4)


@pytest.mark.parametrize("lengths", [[T] * 6, [5, T, 7, T, T, 6]])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("by_state", [True, False])
def test_of_packed_sequences_the_longest_are_read(lengths, kind, by_state, tmp_path):
    class Packed(Raw):
        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(
                x, torch.tensor(lengths), batch_first=True, enforce_sorted=False
            )
            out, state = self.recurrent(packed)
            if by_state:
                return last_state(out, state)
            out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
            return out[torch.arange(6), torch.tensor(lengths) - 1].square().mean()

    model, x = Packed(kind(3, 5, batch_first=True)), torch.randn(6, T, 3)
    found = decades(model, x, tmp_path / "run", lambda model, x: model(x))
    longest = [i for i, length in enumerate(lengths) if length == T]
    expected = two_ends(model.recurrent, x[longest], last_state if by_state else last_output)
    assert found == {"recurrent": pytest.approx(expected, rel=1e-4)}


def test_of_a_large_batch_some_samples_are_read_now_and_then(tmp_path):
    model, x = Raw(nn.GRU(3, 5, batch_first=True)), torch.randn(20, T, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(34):
            last_output(*model(x)).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = scope.run.frame().set_index("step").time_decades.dropna()
    expected = two_ends(model.recurrent, x[:8], last_output)
    assert found.to_dict() == {step: pytest.approx(expected, rel=1e-4) for step in (0, 32)}


def test_to_run_it_again_changes_neither_training_nor_random_numbers(tmp_path):
    def train(watched):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.LSTM(3, 5, 2), nn.GRU(5, 4, bidirectional=True), nn.Dropout(0.1)])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        with gradscope.watch(model, tmp_path / "run") if watched else torch.enable_grad():
            for _ in range(3):
                out, _ = model[0](torch.randn(T, 6, 3))
                out, _ = model[1](model[2](out).detach())
                out.square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [*model.parameters(), torch.get_rng_state()]

    for bare, watched in zip(train(False), train(True), strict=True):
        assert torch.equal(bare, watched)


def test_weights_that_were_changed_in_the_backward_are_not_run_again(tmp_path):
    model, x = Raw(nn.GRU(3, 5, batch_first=True)), torch.randn(6, T, 3)
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        parameter.register_post_accumulate_grad_hook(lambda p, step=optimizer.step: step() and None)
    with gradscope.watch(model, tmp_path / "run") as scope:
        for _ in range(2):
            last_output(*model(x)).backward()
    assert scope.run.frame().time_decades.isna().all()


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_nothing_waits_where_a_layer_is_run_again(kind, tmp_path):
    """Tensors on meta have no values to wait for."""
    with torch.device("meta"):
        model, x = Raw(kind(3, 5, bidirectional=True)), torch.randn(T, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, tmp_path / "run") as scope:
        model(x)[0].square().mean().backward()
        optimizer.step()
    assert scope.run.notes == []


class Decoder(nn.Module):
    """Hands one word after the other to a recurrent layer, as torch's own tutorial does."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.recurrent, self.head = nn.Linear(3, 4), kind(4, 5), nn.Linear(5, 2)
        self.kept = []

    def forward(self, x, state=None):
        out, state = self.recurrent(self.embed(x)[None], state)
        self.kept.append([out, *(state if isinstance(state, tuple) else (state,))])
        return self.head(out[0]), state


class Whole(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x):
        return decoded(self.decoder, x)


def decoded(decoder, x):
    decoder.kept.clear()
    state = None
    for t in range(T):
        out, state = decoder(x[:, t], state)
    return out.square().mean()


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("in_one", [True, False])
def test_recurrent_layers_that_are_called_for_each_step_go_through_time(kind, in_one, tmp_path):
    decoder, x = Decoder(kind), torch.randn(6, T, 3)
    if in_one:
        model, loss_of = Whole(decoder), lambda model, x: model(x)
    else:
        model, loss_of = decoder, decoded
    found = decades(model, x, tmp_path / "run", loss_of)
    value = decoded(decoder, x)
    first, last = (
        math.hypot(
            *(
                g.norm()
                for g in torch.autograd.grad(value, some, retain_graph=True, allow_unused=True)
                if g is not None
            )
        )
        for some in (decoder.kept[0], decoder.kept[-1])
    )
    assert found == {
        "decoder.recurrent" if in_one else "recurrent": pytest.approx(
            math.log10(first / last), rel=1e-4
        )
    }


class Tutorial(nn.Module):
    """Called once for each character, with the state that it has returned, as in torch's own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.to_state, self.to_output = nn.Linear(3 + 5, 5), nn.Linear(5, 2)
        self.kept = []

    def forward(self, x, state):
        self.kept.append(self.to_state(torch.cat([x, state], 1)))
        state = torch.tanh(self.kept[-1])
        return self.to_output(state), state


def step_by_step(model, x, every_step=False, detached_at=None):
    model.kept, state, losses = [], torch.zeros(6, 5), []
    for t in range(x.shape[1]):
        out, state = model(x[:, t], state.detach() if t == detached_at else state)
        losses.append(out.square().mean())
    return sum(losses) if every_step else losses[-1]


@pytest.mark.parametrize("every_step", [True, False])
@pytest.mark.parametrize("detached_at", [None, T - 5])
def test_a_model_that_is_handed_its_state_at_each_call_goes_through_time(
    every_step, detached_at, tmp_path
):
    model, x = Tutorial(), torch.randn(6, T, 3)
    loss_of = partial(step_by_step, every_step=every_step, detached_at=detached_at)
    found = decades(model, x, tmp_path / "run", loss_of)
    value = loss_of(model, x)
    ends = [[detached_at or 0, T - 1]]
    if every_step and detached_at:
        ends.append([0, detached_at - 1])
    first, last = (
        torch.stack(torch.autograd.grad(value, [model.kept[i] for i in some], retain_graph=True))
        .square()
        .sum()
        .sqrt()
        for some in zip(*ends, strict=True)
    )
    assert found == {"to_state": pytest.approx(math.log10(first / last), rel=1e-4)}


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_so_do_cells_that_are_called_one_by_one(kind, tmp_path):
    model, x = nn.ModuleDict({"cell": kind(3, 5), "head": nn.Linear(5, 2)}), torch.randn(6, T, 3)
    kept = []

    def loss_of(model, x):
        kept.clear()
        state = None
        for t in range(T):
            state = model["cell"](x[:, t], state)
            kept.append(state if isinstance(state, tuple) else (state,))
        return model["head"](kept[-1][0]).square().mean()

    found = decades(model, x, tmp_path / "run", loss_of)
    value = loss_of(model, x)
    first, last = (
        sum(
            g.square().sum()
            for g in torch.autograd.grad(value, some, retain_graph=True, allow_unused=True)
            if g is not None
        ).sqrt()
        for some in (kept[0], kept[-1])
    )
    assert found == {"cell": pytest.approx(math.log10(first / last), rel=1e-4)}


def rollout(kept, model, x):
    kept.clear()
    for _ in range(T):
        kept.append(model(x))
        x = x + 0.1 * kept[-1]
    return x.square().mean()


def test_so_does_a_net_that_makes_steps_along_its_output(tmp_path):
    model, x, kept = nn.Linear(3, 3), torch.randn(6, 3), []
    found = decades(model, x, tmp_path / "run", partial(rollout, kept))
    ends = torch.autograd.grad(rollout(kept, model, x), [kept[0], kept[-1]])
    expected = math.log10(ends[0].norm() / ends[1].norm())
    assert found == {"(root)": pytest.approx(expected, rel=1e-4)}


def test_calls_that_hand_nothing_on_have_no_time(tmp_path):
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, T, 3)
    loss = lambda model, x: sum(model(x[:, t]).square().mean() for t in range(T))  # noqa: E731
    assert decades(model, x, tmp_path / "run", loss) == {}
