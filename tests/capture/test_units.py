"""`dead_fraction` and `sample_spread`, against counts over whole tensors and a closed form."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.capture.reading import units


def record(model, inputs, path, every=1, lr=0.0):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with gradscope.watch(model, path, every=every) as scope:
        for x in inputs:
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert scope.run.notes == []
    return scope.run


def read(run, column, name):
    """Return the readings of one layer, those that were taken."""
    steps, values = run.matrix(column)
    values = values[:, run.layers.name.tolist().index(name)]
    return dict(zip(steps[~np.isnan(values)].tolist(), values[~np.isnan(values)], strict=True))


def kill(layer, dead):
    """Make the first `dead` units of a layer negative, whatever comes in."""
    with torch.no_grad():
        layer.weight[:dead] = 0
        layer.bias[:dead] = -1


def with_dead_units(activation, dead=16):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), activation, nn.Linear(20, 2))
    kill(model[0], dead)
    return model


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.ELU()]
)
def test_units_that_are_never_on_are_dead(activation, tmp_path):
    run = record(with_dead_units(activation), torch.randn(9, 32, 8), tmp_path / "run")
    assert read(run, "dead_fraction", "1") == {0: pytest.approx(0.8), 8: pytest.approx(0.8)}
    assert read(run, "dead_fraction", "0") == read(run, "dead_fraction", "2") == {}


def test_sparse_units_are_not_dead(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 400), nn.ReLU(), nn.Linear(400, 2))
    with torch.no_grad():
        model[0].bias -= 0.7
    run = record(model, torch.randn(17, 64, 8), tmp_path / "run")
    found = read(run, "dead_fraction", "1")
    assert read(run, "zero_fraction", "1")[16] > 0.8
    assert found[16] < found[0]
    assert found[16] < 0.15


class Called(nn.Module):
    """Calls its activation as a function, on maps of channels."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 10, 3, padding=1), nn.Linear(10, 2)
        self.function = function
        kill(self.conv, 7)

    def forward(self, x):
        return self.head(self.function(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("function", [F.relu, F.gelu, F.silu])
def test_functions_are_read_by_channels_at_the_layer_that_they_are_called_on(function, tmp_path):
    run = record(Called(function), torch.randn(2, 4, 3, 6, 6), tmp_path / "run")
    assert read(run, "dead_fraction", "conv") == {0: pytest.approx(0.7)}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv1d(4, 10, 3), (6, 4, 30)),
        (lambda: nn.Conv2d(4, 10, 3), (6, 4, 9, 9)),
        (lambda: nn.Conv3d(4, 10, 1), (6, 4, 3, 3, 3)),
        (lambda: nn.Linear(4, 10), (6, 4)),
        (lambda: nn.Linear(4, 10), (6, 5, 4)),
        (lambda: nn.Linear(4, 10), (6, 5, 5, 4)),
    ],
)
def test_units_are_channels_of_convolutions_and_features_of_others(layer, shape, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(layer(), nn.ReLU())
    kill(model[0], 4)
    run = record(model, torch.randn(1, *shape), tmp_path / "run")
    assert read(run, "dead_fraction", "1") == {0: pytest.approx(0.4)}


def test_large_maps_are_read_in_places_that_change(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 10, 1), nn.ReLU())
    kill(model[0], 4)
    run = record(model, torch.randn(9, 40, 3, 33, 35), tmp_path / "run")
    assert list(read(run, "dead_fraction", "1").values()) == pytest.approx([0.4, 0.4])


def test_a_unit_that_died_is_dead_once_the_window_has_passed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = units.EVERY * (3 * units.WINDOW) + 1
    with gradscope.watch(model, tmp_path / "run") as scope:
        for step in range(steps):
            if step == 2:
                kill(model[0], 20)
            model(torch.randn(64, 8)).sum().backward()
            optimizer.step()
    found = read(scope.run, "dead_fraction", "1")
    assert found[0] == found[units.EVERY] == 0
    assert found[steps - 1] == 1


def test_an_activation_that_is_called_in_many_places_is_the_mean_of_them(tmp_path):
    class Reuses(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.act = nn.Linear(8, 20), nn.Linear(20, 20), nn.ReLU()
            kill(self.a, 10)
            nn.init.constant_(self.b.bias, 9.0)

        def forward(self, x):
            return self.act(self.b(self.act(self.a(x))))

    run = record(Reuses(), torch.randn(1, 64, 8), tmp_path / "run")
    assert read(run, "dead_fraction", "act") == {0: pytest.approx(0.25)}


def test_other_activations_have_no_dead_units(tmp_path):
    model = with_dead_units(nn.Tanh())
    assert read(record(model, torch.randn(1, 9, 8), tmp_path / "run"), "dead_fraction", "1") == {}


def test_nan_is_not_dead(tmp_path):
    x = torch.randn(1, 9, 8)
    x[0, 3] = torch.nan
    run = record(with_dead_units(nn.ReLU()), x, tmp_path / "run")
    assert read(run, "dead_fraction", "1") == {0: 0}


def spread(x):
    x = x.double().flatten(1)
    return (x.var(0, correction=0).mean() / x.var(correction=0)).sqrt().item()


@pytest.mark.parametrize("shape", [(12, 8), (12, 5, 8), (16, 8)])
def test_the_spread_between_samples_is_their_share_of_the_variance(shape, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 4))
    x = torch.randn(shape)
    twin = copy.deepcopy(model)
    run = record(model, x[None], tmp_path / "run")
    expected = x
    for name, layer in twin.named_children():
        expected = layer(expected)
        if expected[0].numel() <= units.ELEMENTS:  # all of it is read
            assert read(run, "sample_spread", name)[0] == pytest.approx(spread(expected), rel=1e-4)


def test_what_overwrites_an_output_in_place_does_not_change_its_spread(tmp_path):
    def spreads(inplace):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 30), nn.ReLU(inplace), nn.Linear(30, 4))
        run = record(model, torch.randn(20, 100, 8), tmp_path / f"run{inplace}")
        return read(run, "sample_spread", "0")

    kept, overwritten = spreads(False), spreads(True)
    assert list(kept) == [0, 8, 16]
    assert overwritten == kept


def test_samples_that_all_look_alike_have_no_spread_though_their_elements_differ(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 200), nn.Linear(200, 200))
    with torch.no_grad():
        model[0].weight *= 1e-4
    run = record(model, torch.randn(1, 64, 8), tmp_path / "run")
    frame = run.frame()
    assert frame.activation_std.min() > 0.05
    assert max(read(run, "sample_spread", name)[0] for name in "01") < 0.01


def test_one_sample_and_a_constant_have_none(tmp_path):
    model = with_dead_units(nn.ReLU(), 20)
    assert read(record(model, torch.randn(1, 1, 8), tmp_path / "a"), "sample_spread", "0") == {}
    assert read(record(model, torch.randn(1, 9, 8), tmp_path / "b"), "sample_spread", "1") == {}


def test_a_look_is_taken_at_every_eighth_recorded_step(tmp_path):
    run = record(with_dead_units(nn.ReLU()), torch.randn(50, 9, 8), tmp_path / "run", every=3)
    assert list(read(run, "dead_fraction", "1")) == [0, 24, 48]
    assert list(read(run, "sample_spread", "1")) == [0, 24, 48]


def test_on_a_device_nothing_waits_and_few_operations_are_added(tmp_path):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Count.calls += (
                not torch._C._dispatch_has_kernel_for_dispatch_key(
                    function.name(), "CompositeImplicitAutograd"
                )
                and not function.is_view
            )
            return function(*args, **(kwargs or {}))

    model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(8, 8), nn.ReLU()))).to(
        "meta"
    )
    from gradscope.capture.faults import Faults
    from gradscope.capture.net.modules import Modules
    from gradscope.capture.reading.readings import Readings

    told = []
    looks = units.Units(Faults(told.append))
    modules = Modules(model)
    x = torch.empty(64, 8, device="meta")
    for number in (0, 8):
        Count.calls = 0
        looks.begin(number)
        with Count():
            for layer, _ in list(modules)[1:]:
                looks.take(modules.info(layer), x)
            readings = Readings()
            looks.read(readings)
    assert told == []
    assert len(readings) == 24
    assert Count.calls <= 2 * 16 + 8 * 3 + 2
