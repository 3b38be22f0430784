"""The ledger, drawn."""

from __future__ import annotations

import numpy as np
import pytest

import synthetic
from gradscope.plots.ledger import ledger_info
from gradscope.runs.run import Run


def test_the_ledger_adds_up_to_the_decades(plain: Run) -> None:
    (panel,) = ledger_info(plain)
    hidden = 10.0 ** np.linspace(-synthetic.PLAIN_DECADES, 0, 11)[[0, -2]]
    assert panel.total == pytest.approx(np.log10(hidden[0] / hidden[1]), abs=1e-3)
    assert panel.step is None
    assert ledger_info(plain, step=7)[0].step == 7
