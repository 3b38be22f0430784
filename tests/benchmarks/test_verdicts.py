"""The benchmark of verdicts: records once, judges from disk, and tells right from wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from verdicts import __main__ as command
from verdicts import judging, recording, trainings

HEALTHY, BROKEN = "2-layer Tanh SGD MLP", "12 sigmoid layers SGD"


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    cache = tmp_path_factory.mktemp("cache")
    out = cache / "looks.json"
    command.main(
        ["--cache", str(cache), "--only", HEALTHY, BROKEN, "--json", str(out), "--jobs", "1"]
    )
    read = json.loads(out.read_text())
    return {name: [look for look in read if look["name"] == name] for name in (HEALTHY, BROKEN)}


@pytest.mark.slow
def test_a_training_is_judged_as_it_was_after_each_look(looks: dict[str, list[dict]]) -> None:
    for own in looks.values():
        assert [look["steps"] for look in own] == list(trainings.LOOKS)
    assert [look["verdict"] for look in looks[HEALTHY]] == ["healthy"] * 4
    assert [look["verdict"] for look in looks[BROKEN]] == ["vanishing"] * 4
    assert all(look["cause"] and look["remedy"] for look in looks[BROKEN])


def test_every_training_has_a_name_a_half_and_a_folder_of_its_own(tmp_path: Path) -> None:
    known = trainings.load()
    folders = {recording.folder_of(tmp_path, training, True) for training in known.values()}
    assert len(folders) == len(known)
    healthy = [t for t in known.values() if t.fault is None]
    sick = [t for t in known.values() if t.fault is not None]
    assert len(healthy) >= 80 and len(sick) >= 60
    assert len({t.fault.kind for t in sick if t.fault}) >= 40
    for some in (healthy, sick):
        halves = [t.half for t in some if t.half in "AB"]
        assert 0.35 < halves.count("A") / len(halves) < 0.65
    assert sum(t.half == "D" for t in healthy) >= 70
    assert sum(t.half == "C" for t in healthy) >= 50
    assert sum(t.half == "C" for t in sick) >= 24
    assert sum(t.half == "D" for t in sick) >= 60
    assert sum(t.half == "E" for t in healthy) >= 90
    assert sum(t.half == "E" for t in sick) >= 60


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        (judging.Finding("dead", "critical", "a.1 is off.", ("a.1",), (0, 0), {}, ()), True),
        (judging.Finding("dead", "critical", "Layer a.1 is off.", (), (0, 0), {}, ()), True),
        (judging.Finding("dead", "critical", "Layer a.12 is off.", (), (0, 0), {}, ()), False),
        (judging.Finding("dead", "critical", "b is off.", ("b",), (0, 0), {}, ()), False),
        (judging.Finding("dead", "information", "a.1", ("a.1",), (0, 0), {}, ()), False),
        (judging.Finding("saturated", "critical", "a.1", ("a.1",), (0, 0), {}, ()), False),
    ],
)
def test_a_fault_is_named_with_its_layer_and_not_for_information(finding, expected) -> None:
    fault = trainings.Fault("dead units", frozenset({"dead"}), ("a.1",))
    assert judging.names(finding, fault) is expected


def test_a_loss_that_rises_or_breaks_is_not_learning() -> None:
    assert recording.learnt([2.0] * 50 + [1.0] * 50)
    assert not recording.learnt([2.0] * 50 + [1.9] * 50)
    assert not recording.learnt([2.0] * 50 + [float("nan")] * 50)
    assert not recording.learnt([1.0] * 50 + [2.0] * 50)
