"""The ledger of a lost signal, on readings made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradscope.diagnosis.ledger import ledger
from gradscope.diagnosis.verdict import diagnose
from gradscope.errors import GradscopeError
from handmade import chain, falling, make_run

LAYERS = chain(6)  # 5 hidden weight layers with their activations, one output layer
N = len(LAYERS)


def test_the_ledger_adds_up_along_a_chain(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gains = rng.uniform(-1, 0.2, N)
    after = np.concatenate([np.cumsum(gains[::-1])[::-1][1:], [0]])  # log10 signal at each output
    readings = {"signal_norm": 10.0**after, "input_signal_norm": 10.0 ** (after + gains)}
    run = make_run(tmp_path / "r", LAYERS, readings)
    frame = ledger(run)
    path = frame[frame.on_path]
    # behind the activations of the first and last hidden layer, or before them: what says less
    decades = min(after[1] - after[9], after[0] - after[8], key=abs)
    assert path["gain"].sum() == pytest.approx(decades, abs=1e-5)
    assert diagnose(run).decades == pytest.approx(decades, abs=1e-5)
    assert frame["gain"].iloc[-1] == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(frame["gain"].iloc[:N], gains, atol=1e-5)
    assert frame["group"].iloc[:2].tolist() == ["weight", "activation"]


def test_what_happens_between_modules_is_told_as_the_remainder(tmp_path: Path) -> None:
    signal = falling(N, 4.0, 40)
    readings = {"signal_norm": signal, "input_signal_norm": signal}  # no module loses anything
    frame = ledger(make_run(tmp_path / "r", LAYERS, readings))
    assert frame["name"].iloc[-1] == "(remainder)"
    assert frame["gain"].iloc[-1] == pytest.approx(diagnose_decades(signal), abs=1e-4)


def diagnose_decades(signal: np.ndarray) -> float:
    return float(np.log10(signal[0, 0] / signal[0, 8]))


def test_a_step_that_was_not_recorded_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", LAYERS, {"signal_norm": 1.0})
    with pytest.raises(GradscopeError, match="step 99 was not recorded"):
        ledger(run, step=99)
