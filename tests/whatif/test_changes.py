"""What each change makes of a net, beside the same net made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import learners
from gradscope.probes.changes.catalogue import CHANGES
from gradscope.probes.changes.change import Change, Copy, DoesNotFit, Recorded
from gradscope.whatif.batches import Batches
from gradscope.whatif.trial import Subject, changed

CROSS_ENTROPY = nn.CrossEntropyLoss()


def made(
    change: str | Change, model: nn.Module, optimizer=None, loss_fn=CROSS_ENTROPY, **known
) -> Copy:
    """A copy of `model` with a change."""
    optimizer = optimizer or learners.momentum(model)
    subject = Subject(model, optimizer, loss_fn, Batches(learners.batches(), 12), 12)
    return changed(subject, CHANGES[change] if isinstance(change, str) else change, 0, **known)


def x() -> torch.Tensor:
    return learners.batches(1, 64)[0][0]


@pytest.mark.parametrize(("name", "variance"), [("he", 2 / 400), ("xavier", 1 / 400)])
def test_drawn_weights_have_the_variance_of_the_paper_and_biases_are_zero(name, variance):
    model = nn.Sequential(
        nn.Linear(8, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4)
    )
    if name == "xavier":
        model[3] = nn.Tanh()
    copy = made(name, model).model
    assert copy[2].weight.var().item() == pytest.approx(variance, rel=0.03)
    assert not copy[2].bias.any()
    assert not torch.equal(copy[0].weight, model[0].weight)


def test_orthogonal_weights_keep_lengths_and_lsuv_gives_outputs_variance_one():
    weight = made("orthogonal", learners.plain(4)).model.body[0].fc.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(learners.WIDTH))
    copy = made("lsuv", learners.plain(6))
    values = copy.batch[0]
    for layer in copy.model[:2]:
        values = layer(values)
    assert copy.model.body[0].fc(values).std().item() == pytest.approx(1, rel=1e-5)


def test_units_that_are_all_alike_get_weights_of_their_own():
    model = learners.plain(4)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    weight = made("break-symmetry", model).model.body[0].fc.weight
    assert len(weight.unique()) == weight.numel()
    with pytest.raises(DoesNotFit, match="the units of each layer differ"):
        made("break-symmetry", learners.plain(4))


def test_the_optimizer_forgets_what_was_of_other_weights():
    model = learners.plain(4)
    optimizer = learners.momentum(model)
    learners.steps(model, optimizer, learners.batches(2))
    assert not made("he", model, optimizer).optimizer.state
    assert made("lr/10", model, optimizer).optimizer.state


@pytest.mark.parametrize(
    "model", [learners.plain(5, nn.Sigmoid), learners.Functional(5)], ids=["modules", "functions"]
)
def test_activations_are_exchanged_be_they_modules_or_functions(model):
    copy = made("relu", model).model
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    values = x()
    for layer in layers[:-1]:
        values = F.relu(layer(values))
    torch.testing.assert_close(copy(x()), layers[-1](values), rtol=0, atol=0)
    assert type(copy).__name__ == type(model).__name__


def test_a_gate_stays():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act = nn.Linear(8, 8), nn.Linear(8, 4), nn.Tanh()

        def forward(self, x):
            h = self.act(self.one(x))
            return self.two(h * torch.sigmoid(h.mean(-1, keepdim=True)))

    model = Gated()
    copy = made("relu", model).model
    hidden = F.relu(model.one(x()))
    expected = model.two(hidden * torch.sigmoid(hidden.mean(-1, keepdim=True)))
    torch.testing.assert_close(copy(x()), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "model", [learners.plain(7), learners.Functional(7, "tanh")], ids=["modules", "functions"]
)
def test_shortcuts_go_around_every_two_hidden_layers(model):
    copy = made("shortcuts", model).model
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    first, *inner, last = layers
    assert len(inner) == 5  # the odd one stays alone

    def layer(module, values):
        return torch.tanh(module(values))

    values = layer(first, x())
    for a, b in zip(inner[0:4:2], inner[1:4:2], strict=True):
        if isinstance(model, learners.Functional):  # a sum before the function, which is no module
            values = torch.tanh(values + b(layer(a, values)))
        else:
            values = values + layer(b, layer(a, values))
    expected = last(layer(inner[4], values))
    torch.testing.assert_close(copy(x()), expected)


def test_a_projection_stands_in_where_shapes_change_and_is_trained():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    images = [(torch.randn(6, 1, 8, 8), torch.randint(4, (6,)))]
    subject = Subject(model, learners.momentum(model), CROSS_ENTROPY, Batches(images, 1), 1)
    copy = changed(subject, CHANGES["shortcuts"], 0)
    projection = copy.model[5].shortcut
    assert isinstance(projection, nn.Conv2d)
    values = copy.model[:2](images[0][0])
    expected = model[8](model[6:8](model[2:6](values) + projection(values)))
    torch.testing.assert_close(copy.model(images[0][0]), expected)
    held = {id(p) for group in copy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in copy.model.parameters()}


def test_a_net_with_shortcuts_gets_none():
    with pytest.raises(DoesNotFit, match="has shortcuts already"):
        made("shortcuts", learners.residual(2), recorded=BLOCKS)


BLOCKS = Recorded(blocks=[[f"{i}.one", f"{i}.two"] for i in (1, 2, 3, 4)])


@pytest.mark.parametrize(
    ("name", "scale"), [("branch-scale", 1 / 2), ("rezero", 0), ("zero-branches", 0)]
)
def test_branches_are_scaled(name, scale):
    model = learners.residual(4)
    copy = made(name, model, recorded=BLOCKS).model
    values = model[0](x())
    for block in model[1:5]:
        values = values + scale * (block(values) - values)
    torch.testing.assert_close(copy(x()), model[5](values), rtol=1e-5, atol=1e-6)
    learned = [p for p in copy.parameters() if p.dim() == 0]
    assert len(learned) == (4 if name == "rezero" else 0)


@pytest.mark.parametrize("name", ["batch-norm", "layer-norm", "rms-norm"])
def test_hidden_layers_get_a_normalisation_before_their_activation(name):
    model = learners.plain(4, nn.ReLU)
    copy = made(name, model).model
    before = []
    copy.body[0].act.register_forward_pre_hook(lambda module, args: before.append(args[0]))
    copy(x())
    square = before[0].square().mean(0 if name == "batch-norm" else 1)
    torch.testing.assert_close(square, torch.ones_like(square), rtol=0.02, atol=0)
    assert copy.body[0].fc.weight is copy.body[0].fc.layer.weight  # still asked for by its name
    assert isinstance(copy.last, nn.Linear)


def test_settings_of_the_optimizer_change_in_every_group():
    model = learners.plain(4)
    groups = [{"params": model.first.parameters(), "lr": 0.3}, {"params": model.last.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.03, weight_decay=0.1)
    rates = [group["lr"] for group in made("lr/10", model, optimizer).optimizer.param_groups]
    assert rates == pytest.approx([0.03, 0.003])
    adam = made("adam", model, optimizer).optimizer
    assert isinstance(adam, torch.optim.AdamW)
    assert [len(group["params"]) for group in adam.param_groups] == [2, 2]
    assert adam.param_groups[0]["weight_decay"] == 0.1
    warm = made("warm-up", model, optimizer)
    seen = []
    for step in range(8):
        warm.before_step[0](step)
        seen.append(warm.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.3, 0.3])


def test_a_rate_is_raised_by_what_the_recorded_speed_lacks():
    copy = made("lr-by-speed", learners.plain(4), recorded=Recorded(update_speed=1e-4))
    assert copy.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 100)
    for speed in (2e-3, 0.0, math.nan):
        with pytest.raises(DoesNotFit):
            made("lr-by-speed", learners.plain(4), recorded=Recorded(update_speed=speed))


def test_clipping_is_at_a_quantile_of_the_norms_recorded():
    copy = made(
        "clip", learners.plain(4), recorded=Recorded([1.0, 2.0, 3.0, 4.0, 5.0, math.inf, math.nan])
    )
    for parameter in copy.parameters:
        parameter.grad = torch.ones_like(parameter)
    copy.before_step[0](0)
    norm = torch.stack([p.grad.norm() for p in copy.parameters]).norm()
    assert norm.item() == pytest.approx(2.0, rel=1e-4)


def test_a_shallower_net_keeps_the_first_of_its_hidden_layers():
    model = learners.plain(14)
    copy = made("shallower", model).model
    expected = model.last(model.body[:3](model.start(model.first(x()))))
    torch.testing.assert_close(copy(x()), expected)


def test_frozen_unheld_and_listed_layers_are_trained():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
            self.frozen, self.last = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 4)

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return self.last(torch.tanh(self.frozen(x)))

    model = Listed()
    copy = made("train-all", model)
    held = {id(p) for group in copy.optimizer.param_groups for p in group["params"]}
    assert len(held) == len(list(copy.model.parameters())) == 8
    assert all(p.requires_grad for p in copy.model.parameters())
    torch.testing.assert_close(copy.model(x()), model(x()), rtol=0, atol=0)
    with pytest.raises(DoesNotFit, match="every layer is trained already"):
        made("train-all", learners.plain(4))


def test_dropout_mode_and_softmax_are_mended_where_they_are():
    model = nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.95), nn.Linear(8, 4), nn.Softmax(1)
    )
    model[1].eval()
    assert made("less-dropout", model).model[2].p == 0.1
    assert made("train-mode", model).model[1].training
    bare = made("no-softmax", model).model.eval()
    torch.testing.assert_close(bare(x()), model[:4].eval()(x()))
    for name in ("less-dropout", "train-mode", "no-softmax"):
        with pytest.raises(DoesNotFit):
            made(name, learners.plain(4))

    class Function(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return F.softmax(self.fc(x), dim=1)

    function = Function()
    torch.testing.assert_close(made("no-softmax", function).model(x()), function.fc(x()))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell, nn.GRU, nn.RNN], ids=lambda k: k.__name__)
def test_recurrent_weights_are_orthogonal_and_gates_keep_for_the_length_of_a_sequence(kind):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(2, 6, **({} if kind is nn.LSTMCell else {"batch_first": True}))
            self.last = nn.Linear(6, 4)

        def forward(self, x):
            x = x.reshape(len(x), 4, 2)
            if kind is not nn.LSTMCell:
                return self.last(self.rnn(x)[0][:, -1])
            state = None
            for step in range(4):
                state = self.rnn(x[:, step], state)
            return self.last(state[0])

    rnn = made("recurrent", Reader()).model.rnn
    values = {name.removesuffix("_l0"): value for name, value in rnn.named_parameters()}
    for gate in values["weight_hh"].split(6):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), rtol=0, atol=1e-5)
    bias = (values["bias_ih"] + values["bias_hh"]).split(6)
    if kind is nn.RNN:
        assert not bias[0].any()
    else:
        assert ((bias[1] >= 0) & (bias[1] <= math.log(3))).all() and bias[1].unique().numel() == 6
    if len(bias) == 4:
        torch.testing.assert_close(bias[0], -bias[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["he", "xavier", "orthogonal", "lsuv"])
def test_shared_embeddings_lengths_of_normalised_weights_and_half_precision_are_heeded(name):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.letters, self.last = nn.Embedding(4, 8), nn.Linear(8, 4)
            self.last.weight = self.letters.weight
            self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

        def forward(self, x):
            return self.last(torch.tanh(self.norm(x)))

    model = Tied()
    copy = made(name, model).model
    torch.testing.assert_close(copy.letters.weight, model.letters.weight, rtol=0, atol=0)
    if name != "lsuv":  # which scales them
        made_of, was = (net.norm.parametrizations.weight.original0 for net in (copy, model))
        torch.testing.assert_close(made_of, was, rtol=0, atol=0)
    half = learners.plain(4).bfloat16()
    data = [(x.bfloat16(), y) for x, y in learners.batches(1)]
    subject = Subject(half, learners.momentum(half), CROSS_ENTROPY, Batches(data, 1), 1)
    assert changed(subject, CHANGES[name], 0).model.first.weight.dtype == torch.bfloat16
