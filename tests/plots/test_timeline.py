"""What happened when."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from gradscope.diagnosis.verdict import diagnose
from gradscope.plots.timeline import Event, gathered, timeline_info
from gradscope.runs.run import Run
from gradscope.storage.writer import RunWriter
from handmade import chain, falling, make_run


def run_with(path: Path, **steps: np.ndarray) -> Run:
    layers = chain(4)
    n_steps = len(next(iter(steps.values())))
    readings = {"signal_norm": falling(len(layers), 0.1, n_steps)}
    return make_run(path, layers, readings, n_steps=n_steps, steps=steps)


def told(events: list[Event]) -> list[tuple[int, str, str]]:
    return [(event.step, event.kind, event.words) for event in events]


def test_a_learning_rate_that_drops_is_told_where_it_does(tmp_path: Path) -> None:
    rate = np.r_[np.full(10, 0.1), np.full(10, 0.01)]
    assert told(timeline_info(run_with(tmp_path / "run", lr=rate))) == [
        (10, "rate", "learning rate 0.1 → 0.01")
    ]


def test_of_a_schedule_the_peak_is_told(tmp_path: Path) -> None:
    rate = np.r_[np.geomspace(1e-6, 0.1, 30), np.geomspace(0.1, 1e-6, 30)]
    (event,) = timeline_info(run_with(tmp_path / "run", lr=rate))
    assert (event.step, event.words) == (29, "learning rate at its peak, 0.1")


def test_skipped_and_clipped_steps_are_told_by_stretches(tmp_path: Path) -> None:
    skipped = np.isin(np.arange(20), [3, 4, 5, 12])
    clipped = np.where(np.arange(20) >= 15, 0.5, 1.0)
    events = timeline_info(run_with(tmp_path / "run", skipped=skipped, clipped_grad_norm=clipped))
    assert told(events) == [
        (3, "skipped", "skipped by the loss scaler to step 5"),
        (12, "skipped", "skipped by the loss scaler"),
        (15, "clipped", "gradient clipped to step 19"),
    ]


def test_marks_and_the_first_broken_step_are_told(tmp_path: Path) -> None:
    layers = chain(4)
    signal = falling(len(layers), 0.1, 30)
    signal[20:] = np.inf
    norms = np.where(np.arange(30) < 20, 1.0, np.inf)
    readings = {"signal_norm": signal, "grad_norm": signal}
    run = make_run(tmp_path / "run", layers, readings, n_steps=30, steps={"grad_norm": norms})
    writer = RunWriter(run.path, {}, resume=True)
    writer.update(marks=[{"step": 7, "text": "unfroze"}])
    writer.close()
    run.refresh()
    events = timeline_info(run, diagnose(run))
    assert (7, "mark", "unfroze") in told(events)
    assert [event.step for event in events if event.kind == "broken"] == [20]


@pytest.mark.filterwarnings("ignore:.*no step is recorded")
def test_nothing_happened_before_the_first_step(tmp_path: Path) -> None:
    assert timeline_info(make_run(tmp_path / "run", chain(2), {}, n_steps=0)) == []


def test_events_that_would_overlap_are_one_group() -> None:
    events = [Event(step, "mark", f"at {step}", str(step)) for step in (0, 1, 2, 40, 99, 100)]
    groups = gathered(events, 100, lambda some: 0.015 * len(some))
    assert [[event.step for event in group.events] for group in groups] == [
        [0, 1, 2],
        [40],
        [99, 100],
    ]
    assert [group.at for group in groups] == [0.0, 0.4, 0.99]
    assert all(
        later.at >= group.at + 0.015 * len(group.events)
        for group, later in itertools.pairwise(groups)
    )
    assert [len(group.events) for group in gathered(events, 100, lambda _: 0.0)] == [1] * 6
