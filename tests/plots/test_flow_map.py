"""The flow map: a path for each run, split at each block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import synthetic
from gradscope.plots.flow_map import flow_map_caption, flow_map_info
from gradscope.plots.flow_map_picture import width
from gradscope.runs.loading import load
from gradscope.runs.run import Run


def test_a_plain_net_is_one_path_that_narrows(plain: Run) -> None:
    (lane,) = flow_map_info(plain)
    assert lane.blocks == []
    signal = [square.signal for square in lane.squares]
    np.testing.assert_allclose(signal, 10.0 ** np.linspace(-12, 0, 11) / 0.9, rtol=1e-5)
    assert lane.arrives == pytest.approx(10 ** (-12 * 0.9), rel=1e-5)
    widths = [width(value) for value in signal]
    assert widths == sorted(widths)
    assert widths[0] == 1.0


def test_a_residual_net_splits_at_its_blocks(residual: Run) -> None:
    (lane,) = flow_map_info(residual)
    assert len(lane.blocks) == len(residual.shortcuts)
    block = lane.blocks[3]
    np.testing.assert_allclose(
        [block.shortcut, block.branch, block.share, block.ratio],
        [1, 3 / 4, 0.64, 0.25],  # over what passes the last block's shortcut
        rtol=1e-5,
    )
    for block in lane.blocks:
        inside = [s for s in lane.squares if block.start < s.x < block.stop]
        assert inside
        assert all(square.on_branch for square in inside)


def test_deep_nets_are_grouped(tmp_path: Path) -> None:
    plain = load(synthetic.write_run(tmp_path / "plain", n_layers=301, n_steps=2))
    deep = load(synthetic.write_run(tmp_path / "deep", n_layers=301, n_steps=2, residual=True))
    lanes = flow_map_info([plain, deep])
    assert [square.layers for square in lanes[0].squares] == [3] * 50 + [1]
    assert len(lanes[1].squares) <= len(lanes[1].blocks) + 2
    assert "a group of layers" in flow_map_caption(lanes)


def test_no_path_leads_through_zero_or_nan() -> None:
    assert [width(value) for value in (0.0, np.nan)] == [0.0, 0.0]
    assert width(np.inf) == width(1e30) > width(1.0)
