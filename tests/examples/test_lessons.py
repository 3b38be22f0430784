"""The lessons, in a small setting: what they measure, beside what was published or follows."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

LESSONS = Path(__file__).parents[2] / "examples" / "lessons"
NAMES = sorted(path.stem for path in LESSONS.glob("*.py") if path.stem != "lesson")


@pytest.fixture
def lesson(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(LESSONS))
    return importlib.import_module(request.param)


def use(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("lesson", [name], indirect=True, ids=[name])


@use("nielsen_speeds")
def test_early_layers_of_a_sigmoid_net_learn_slowest(lesson: ModuleType) -> None:
    table = lesson.measure(seeds=3)
    for _, net in table.groupby("net"):
        assert net["measured"].is_monotonic_increasing
    four = table[table["net"] == "4 hidden layers"]["measured"]
    assert 50 < four.iloc[-1] / four.iloc[0] < 300
    ratio = table["measured"] / table["published"]
    assert ratio.between(1 / 3, 3).all()
    assert lesson.draw(table).data and "slower" in lesson.sentence(table)


@use("activation_slopes")
def test_the_gradient_lost_in_a_layer_is_that_of_mean_field_theory(lesson: ModuleType) -> None:
    table = lesson.measure(depth=12, seeds=2)
    np.testing.assert_allclose(table["measured"], table["decades a layer, predicted"], atol=0.02)
    sigmoid = table[table["net"].str.startswith("sigmoid")]
    assert (sigmoid["mean derivative"] <= 0.25).all()
    assert lesson.draw(table).data and "decades" in lesson.sentence(table)


@use("plain_residual_highway")
def test_shortcuts_and_gates_keep_the_gradient_that_plain_nets_lose(lesson: ModuleType) -> None:
    table = lesson.measure(depths=(6, 34))
    deep = table[table["depth"] == 34].set_index("net")
    assert deep.loc["plain", "early / late"] < 1e-6
    assert deep["verdict"].to_dict() == {
        "plain": "vanishing",
        "residual": "healthy",
        "highway": "healthy",
    }
    assert deep.loc["residual", "early / late"] > 0.1
    assert deep.loc["highway", "early / late"] > 0.1
    carried = deep.loc["highway"]
    assert carried["measured"] == pytest.approx(carried["carry path, predicted"], rel=1e-4)
    assert lesson.draw(table).data and "34 layers" in lesson.sentence(table)


@use("shortcut_kinds")
def test_scaled_shortcuts_pass_a_power_of_their_scale(lesson: ModuleType) -> None:
    table = lesson.measure(depths=(5, 10))
    exact = table[table["shortcut"] != "projection"]
    np.testing.assert_allclose(exact["measured"], exact["shortcuts alone, predicted"], rtol=1e-6)
    projection = table[table["shortcut"] == "projection"]
    ratio = projection["measured"] / projection["shortcuts alone, predicted"]
    assert ratio.between(0.5, 2).all()
    assert lesson.draw(table).data and "0.5^10" in lesson.sentence(table)


@use("one_or_two_layers")
def test_one_layer_blocks_are_plain_layers(lesson: ModuleType) -> None:
    table = lesson.measure(blocks=5)
    assert lesson.difference(table) < 1e-12
    assert table.groupby("block")["flagged as plain"].first().to_dict() == {
        "one layer": True,
        "plain, W + I": False,
        "two layers": False,
    }
    assert lesson.draw(table).data and "same gradients" in lesson.sentence(table)


@use("basic_or_bottleneck")
def test_both_kinds_of_block_cost_alike_and_pass_the_gradient(lesson: ModuleType) -> None:
    table = lesson.measure(blocks=1, widths=(8, 16)).set_index("block")
    assert (table["weights"] == table["weights, by definition"]).all()
    # every weight is used once for each of the 56 x 56 pixels
    cost = table["million multiply-adds at 56x56"]
    np.testing.assert_allclose(cost, table["weights"] * 56**2 / 1e6)
    assert (table["verdict"] == "healthy").all()
    assert lesson.draw(table.reset_index()).data
    assert "fewer weights" in lesson.sentence(table.reset_index())


@pytest.mark.slow
@use("degradation")
def test_depth_degrades_plain_nets_though_their_gradient_flows(lesson: ModuleType) -> None:
    table, comparisons = lesson.measure(seeds=3)
    error = table.pivot(index="seed", columns="net", values="training error")
    assert (error["plain-32"] - error["plain-8"] >= 0.15).all()
    assert (error["residual-32"] <= 0.02).all()
    for comparison in comparisons:
        (degradation,) = [o for o in comparison.observations if o.kind == "degradation"]
        assert degradation.runs == ("plain-8", "plain-32")
        assert "Vanishing is not" in degradation.sentence
    assert lesson.draw(table).data
    assert "deeper net trains worse" in lesson.sentence(table, comparisons)


@use("initialisation")
def test_the_start_decides_how_much_gradient_a_deep_net_loses(lesson: ModuleType) -> None:
    table = lesson.measure(depth=20, steps=2, width=128)
    relu = table[table["activation"] == "ReLU"]
    # a law for wide nets: what one net of width 128 does differs by a few tenths of a decade
    np.testing.assert_allclose(relu["measured"], relu["decades, predicted"], atol=0.5)
    assert relu["verdict"].tolist() == ["vanishing", "vanishing", "healthy"]
    assert lesson.draw(table).data and "decades" in lesson.sentence(table)


@use("batchnorm_at_init")
def test_batchnorm_explodes_at_the_start_only(lesson: ModuleType) -> None:
    table = lesson.measure(depth=32, width=64, steps=40)
    plain = table.set_index("net").loc["plain"]
    assert plain["at the start"] == pytest.approx(lesson.PUBLISHED, abs=0.02)
    assert math.isclose(lesson.PUBLISHED, math.log10(1.211), abs_tol=1e-3)
    assert (plain["start"], plain["end"]) == ("exploding", "healthy")
    assert lesson.draw(table).data and "explosion that passes" in lesson.sentence(table)


@use("one_step_at_a_time")
def test_each_remedy_does_what_its_theory_says(lesson: ModuleType) -> None:
    table = lesson.measure(depth=24, steps=12).set_index("net")
    lost = table["decades"]
    layers = 24 - 3  # activations and weights between the first and the last hidden layer's outputs
    assert lost["ReLU"] / layers == pytest.approx(-0.5 * math.log10(6), abs=0.06)
    assert lost["sigmoid"] < lost["ReLU"] - 8
    assert abs(lost["ReLU, He"]) < 1
    assert abs(lost["ReLU, shortcuts"]) < 1
    assert lost["ReLU, He, shortcuts"] > 1
    assert table["verdict"].tolist()[:3] == ["vanishing", "vanishing", "healthy"]
    assert table["loss"].idxmin() == "ReLU, shortcuts"
    assert lesson.draw(table.reset_index()).data
    assert "He's weights the rest" in lesson.sentence(table.reset_index())


def test_every_lesson_is_tested() -> None:
    tested = {
        mark.args[1][0]
        for function in list(globals().values())
        for mark in getattr(function, "pytestmark", [])
        if mark.args[:1] == ("lesson",)
    }
    assert tested == set(NAMES)


@pytest.mark.slow
def test_a_lesson_runs_as_a_script_and_writes_its_figure(tmp_path: Path) -> None:
    figure = tmp_path / "figure.html"
    script = LESSONS / "basic_or_bottleneck.py"
    done = subprocess.run(
        [sys.executable, script, "--no-browser", "--html", figure],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "bottleneck" in done.stdout and "multiply-adds" in done.stdout
    assert "plotly" in figure.read_text()
