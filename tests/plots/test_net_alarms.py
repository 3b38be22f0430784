"""What the findings name in the picture of a net."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradscope.diagnosis.summary import summarise
from gradscope.plots.net_alarms import net_alarms
from gradscope.plots.net_graph import net_graph_info
from gradscope.runs.run import Run
from synthetic import write_with


def test_a_finding_is_marked_at_its_place_and_along_all_its_layers(tmp_path: Path) -> None:
    signal = np.r_[np.ones(4), 0, 0, 0, np.ones(12)]
    run = write_with(tmp_path / "cut", 19, 30, signal_norm=signal, update_norm=0.01)
    summary = summarise(run)
    finding = summary.diagnosis.findings[0]
    (graph,) = net_graph_info(run, summaries=[summary])
    alarm = graph.alarms[0]
    assert finding.verdict == alarm.verdict == "disconnected"
    assert alarm.bad
    assert alarm.words == "disconnected: blocks.2.fc and 1 more"
    assert [run.layers["name"][layer] for layer in alarm.layers] == list(finding.layers)
    assert alarm.as_dict()["stretches"] == [[4, 4], [6, 6]]


def test_a_layer_that_one_step_moved_too_far_is_marked(tmp_path: Path) -> None:
    moved = np.full((30, 19), 0.01)
    moved[0, 8] = 100.0
    run = write_with(tmp_path / "jump", 19, 30, update_norm=moved)
    found = [alarm for alarm in net_alarms(run, summarise(run)) if not alarm.verdict]
    assert [alarm.layer for alarm in found] == [8]
    assert found[0].words.startswith("step 0 moved blocks.4.fc by ")


def test_nothing_is_marked_without_a_diagnosis_or_in_a_healthy_net(residual: Run) -> None:
    assert net_alarms(residual, None) == []
    assert net_alarms(residual, summarise(residual)) == []
