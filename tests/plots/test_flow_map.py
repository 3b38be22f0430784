"""The flow map: a road for each run, with a fork at each block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import synthetic
from gradscope.plots.flow_map import flow_map_caption, flow_map_info
from gradscope.plots.flow_map_picture import width
from gradscope.runs.loading import load
from gradscope.runs.run import Run


def test_a_plain_net_is_one_road_that_narrows(plain: Run) -> None:
    (road,) = flow_map_info(plain)
    assert road.forks == []
    signal = [station.signal for station in road.stations]
    np.testing.assert_allclose(signal, 10.0 ** np.linspace(-12, 0, 11), rtol=1e-5)
    assert road.arrives == pytest.approx(1e-12, rel=1e-5)
    widths = [width(value) for value in signal]
    assert widths == sorted(widths)
    assert widths[0] == 1.0


def test_a_residual_net_forks_at_its_blocks(residual: Run) -> None:
    (road,) = flow_map_info(residual)
    assert len(road.forks) == len(residual.shortcuts)
    scale = 1.0 / (1.0 + 59 / 500.0)
    fork = road.forks[3]
    np.testing.assert_allclose(
        [fork.shortcut * scale, fork.branch * scale, fork.share, fork.ratio],
        [0.4 * scale, 0.3 * scale, 0.64, 0.25],
        rtol=1e-5,
    )
    for fork in road.forks:
        inside = [s for s in road.stations if fork.start < s.x < fork.stop]
        assert inside
        assert all(station.on_branch for station in inside)


def test_deep_nets_are_grouped(tmp_path: Path) -> None:
    plain = load(synthetic.write_run(tmp_path / "plain", n_layers=301, n_steps=2))
    deep = load(synthetic.write_run(tmp_path / "deep", n_layers=301, n_steps=2, residual=True))
    roads = flow_map_info([plain, deep])
    assert [station.layers for station in roads[0].stations] == [3] * 50 + [1]
    assert len(roads[1].stations) <= len(roads[1].forks) + 2
    assert "a group of layers" in flow_map_caption(roads)


def test_no_road_leads_through_zero_or_nan() -> None:
    assert [width(value) for value in (0.0, np.nan)] == [0.0, 0.0]
    assert width(np.inf) == width(1e30) > width(1.0)
