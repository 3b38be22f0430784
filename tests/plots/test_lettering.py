"""Numbers and names in words."""

from __future__ import annotations

import numpy as np
import pytest

from gradscope.plots.lettering import factor, number, safe, specials, spread

HOSTILE = '<a href="javascript:alert(1)">x</a><script>alert(2)</script>'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "exactly 0"),
        (float("nan"), "NaN"),
        (float("inf"), "inf"),
        (3.04e-7, "3.0e-7"),
        (0.2149, "0.21"),
        (6.24, "6.2"),
        (123.4, "123"),
        (4.2e9, "4.2e9"),
    ],
)
def test_numbers_keep_two_digits_and_name_what_is_no_number(value: float, text: str) -> None:
    assert number(value) == text


def test_a_factor_has_its_sign_only_where_it_is_one() -> None:
    assert [factor(0.5), factor(0.0), factor(float("nan"))] == ["0.50 ×", "exactly 0", "NaN"]


def test_layers_that_are_no_number_are_counted_in_words() -> None:
    values = np.array([0, 0, np.inf, np.nan, 1.0])
    assert specials(values) == "2 of 5 layers exactly 0, 1 inf, 1 NaN"
    assert specials(values, zeros=False) == "1 of 5 layers inf, 1 NaN"
    assert specials(np.ones(3)) == ""


def test_markup_in_a_name_is_inert() -> None:
    assert "<" not in safe(HOSTILE, limit=1000)
    assert len(safe("x" * 500)) <= 60


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    assert spread(np.array([0.0, 100.0]), 10).tolist() == [0, 100]
    assert spread(np.array([5.0, 5.0, 50.0]), 10).tolist() == [0, 10, 50]
    moved = np.sort(spread(np.array([1.0, 2.0, 3.0, 12.0]), 10))
    assert np.diff(moved).min() >= 10 - 1e-9
    assert moved.mean() == pytest.approx(4.5)
