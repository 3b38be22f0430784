"""The net as a graph of its modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradscope.plots.net_graph import Module, net_graph_info
from gradscope.runs.run import Run
from handmade import make_run
from synthetic import write_with


def named(modules: list[Module]) -> dict[str, Module]:
    found = {module.name: module for module in modules}
    for module in modules:
        found |= named(module.children)
    return found


def test_modules_hold_their_layers_in_order(plain: Run) -> None:
    (graph,) = net_graph_info(plain)
    assert [module.name for module in graph.modules] == ["blocks", "head"]
    blocks = graph.modules[0]
    assert [child.name for child in blocks.children] == [f"blocks.{i}" for i in range(10)]
    assert all(child.is_block for child in blocks.children)
    assert (blocks.children[3].first, blocks.children[3].last) == (6, 7)
    assert [leaf.name for leaf in blocks.children[3].children] == ["blocks.3.fc", "blocks.3.act"]


def test_a_module_has_the_gradient_of_its_first_layer(plain: Run) -> None:
    modules = named(net_graph_info(plain)[0].modules)
    _, signal = plain.matrix("signal_norm")
    late = plain.matrix("input_signal_norm")[1][-1, -1]  # behind the last hidden activation
    assert modules["blocks.3"].value == pytest.approx(signal[-1, 6] / late)
    assert modules["blocks.3.act"].value == pytest.approx(signal[-1, 7] / late)


def test_where_least_arrives_is_named_with_the_number_of_its_box(plain: Run, residual: Run) -> None:
    plain_graph, residual_graph = net_graph_info([plain, residual])
    assert plain_graph.little
    assert (
        plain_graph.words == "At step 59 the least arrives at blocks.0.fc: 900 billion × less."
    )  # 0.9e12
    assert named(plain_graph.modules)["blocks.0.fc"].as_dict()["said"] == "900 billion × less"
    assert not residual_graph.little
    assert residual_graph.words.startswith("At step 59 the least arrives at ")
    assert "; up to 100 × less is normal." in residual_graph.words


def test_the_shares_in_words_are_those_on_the_arcs(residual: Run) -> None:
    (graph,) = net_graph_info(residual, step=0)
    known = [arc.share for arc in graph.ways.arcs if not np.isnan(arc.share)]
    low, high = (f"{end(known) * 100:.0f}" for end in (min, max))
    span = low if low == high else f"{low}–{high}"
    assert "At step 0 " in graph.words and f"Shortcuts carry {span}% in it;" in graph.words


def test_of_layers_that_get_nothing_the_one_is_named_where_it_ends(tmp_path: Path) -> None:
    signal = np.array([0.0, 0, 0, 0, 0, 1, 1, 1, 1])
    run = write_with(tmp_path / "dead", 9, 2, signal_norm=signal)
    assert net_graph_info(run)[0].least == "blocks.2.fc"


def test_where_most_arrives_is_said_if_that_is_much(tmp_path: Path) -> None:
    signal = 10.0 ** np.arange(8, -1, -1)
    run = write_with(tmp_path / "grown", 9, 2, signal_norm=signal)
    assert "The most arrives at blocks.0.fc: 1.0 million × more." in net_graph_info(run)[0].words


def test_shortcuts_go_around_their_layers(residual: Run) -> None:
    (graph,) = net_graph_info(residual)
    assert len(graph.ways.arcs) == 10
    arc = graph.ways.arcs[3]
    assert (arc.name, arc.first, arc.last) == ("blocks.3", 6, 7)
    assert arc.share == pytest.approx(0.64)


def test_zero_inf_and_nan_are_no_decades(tmp_path: Path) -> None:
    signal = np.array([0.0, 1, np.inf, 1, np.nan, 1, 1, 1, 1])
    modules = named(
        net_graph_info(write_with(tmp_path / "odd", 9, 2, signal_norm=signal))[0].modules
    )
    said = [modules[f"blocks.{i}.fc"].as_dict()["decades"] for i in range(3)]
    assert said == ["zero", "inf", None]


def test_a_concatenation_is_an_arc_whose_share_is_not_known(tmp_path: Path) -> None:
    layers = [
        {"layer": i, "name": name, "kind": "Linear", "depth": i + 1, "parameters": 9}
        for i, name in enumerate(["down", "middle", "up", "head"])
    ]
    concat = {"shortcut": 0, "name": "(root)", "form": "concat", "split": "down"}
    concat |= {"join": "(root)", "branch": "middle", "position": 0.75}
    run = make_run(tmp_path / "unet", layers, {"signal_norm": 1.0}, shortcuts=[concat])
    (arc,) = net_graph_info(run)[0].ways.arcs
    assert (arc.form, arc.first, arc.last) == ("concat", 1, 2)
    assert np.isnan(arc.share) and arc.as_dict()["share"] is None
