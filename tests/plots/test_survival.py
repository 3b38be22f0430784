"""How much of the signal survives to the first layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradscope.diagnosis.verdict import diagnose
from gradscope.plots.survival import survival_caption, survival_info
from gradscope.runs.run import Run
from synthetic import write_with


def test_survival_is_the_what_the_verdict_says_at_every_step(plain: Run) -> None:
    (line,) = survival_info(plain)
    assert line.steps.tolist() == list(range(60))
    # from the second layer, behind whose input the first one ends, to the last
    np.testing.assert_allclose(line.ratio, 10 ** (-12 * 0.9), rtol=1e-5)
    assert np.median(line.ratio) == pytest.approx(10 ** diagnose(plain).decades)


def test_survival_says_what_it_left_out(tmp_path: Path) -> None:
    signal = np.ones((5000, 3))
    signal[2345, 0] = 1e-8
    lines = survival_info(write_with(tmp_path / "long", 3, 5000, signal_norm=signal))
    assert 2345 in lines[0].steps
    assert len(lines[0].steps) < 1300
    assert "5,000 steps" in survival_caption(lines)
