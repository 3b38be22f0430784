"""Fewer points than steps."""

from __future__ import annotations

import numpy as np

from gradscope.plots.sampling import band, extremes, farthest_from_one


def test_sampling_keeps_the_ends_the_extremes_and_a_single_nan() -> None:
    values = np.sin(np.arange(10_000) / 100.0)
    values[[1234, 7777, 4321]] = [50.0, -50.0, np.nan]
    kept = extremes(values, 100)
    assert {0, 9999, 1234, 7777, 4321} <= set(kept.tolist())
    assert len(kept) <= 302
    assert (np.diff(kept) > 0).all()


def test_short_curves_are_kept_whole() -> None:
    assert extremes(np.arange(7.0), 100).tolist() == list(range(7))


def test_a_bin_holds_the_reading_farthest_from_even() -> None:
    values = np.ones((100, 5))
    values[17, 0], values[51, 1], values[99, 2] = 1e-9, np.inf, 0.0
    values[3, 3], values[4, 3], values[:, 4] = 1e3, 1e-2, np.nan
    expected = [1e-9, np.inf, 0.0, 1e3, np.nan]
    np.testing.assert_array_equal(farthest_from_one(values), expected)


def test_a_step_without_any_reading_shows_in_its_bin() -> None:
    values = np.ones((100, 3))
    values[55, 0] = np.nan
    assert farthest_from_one(values).tolist() == [1, 1, 1]
    values[21] = np.nan
    assert np.isnan(farthest_from_one(values)).all()


def test_a_long_curve_is_drawn_by_its_medians_and_extremes() -> None:
    values = np.tile([1.0, 2.0, 3.0, 10.0], 500)
    values[1000:1200] = np.nan
    found = band(np.arange(2000), values, bins=100)
    assert found is not None
    assert found.steps.tolist() == list(range(0, 2000, 20))
    assert found.middle[0] == 2.5 and found.low[0] == 1 and found.high[0] == 10
    assert np.isnan(found.middle[50:60]).all() and not np.isnan(found.middle[60:]).any()
    assert band(np.arange(300), values[:300], bins=100) is None
