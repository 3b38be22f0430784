"""Numbers and names in words."""

from __future__ import annotations

import numpy as np
import pytest

from gradscope.plots.lettering import fitting, number, raised, safe, specials, spread, tail, times
from gradscope.plots.theme import LIGHT, axis
from gradscope.wording import setting

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
        (4.2e9, "4.2e+9"),
        (0.00668, "0.0067"),
    ],
)
def test_numbers_keep_two_digits_and_name_what_is_no_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("blocks.4.fc", "blocks.4.fc"),
        ("transformer.h.0.attn.c_attn", "…h.0.attn.c_attn"),
        ("transformer.h.0.mlp.c_fc", "…h.0.mlp.c_fc"),
        ("transformer.h.0.mlp.c_proj", "…h.0.mlp.c_proj"),
        ("encoder.a_name_without_any_end.fc", "…thout_any_end.fc"),
    ],
)
def test_a_long_name_ends_with_whole_parts(name: str, end: str) -> None:
    assert tail(name) == end


def test_a_factor_is_told_as_the_verdicts_tell_it() -> None:
    said = [times(value) for value in (0.5, 1.0, 3.12, 0.0, float("nan"), 1e-21, 4e4)]
    assert said == [
        *("2.0 × less", "1.0 ×", "3.1 × more", "exactly 0", "NaN", "10²¹ × less"),
        "40 thousand × more",
    ]
    assert raised("grown 10^28 times, to 2.5e+25") == "grown 10²⁸ times, to 2.5e+25"


def test_all_that_shows_a_number_has_one_notation() -> None:
    assert [setting(value) for value in (0.05, 1e-4, 0.000285, 128, 0.0, 2e25)] == [
        *("0.05", "1e-4", "2.85e-4", "128", "0", "2e+25"),
    ]
    assert number(2.888e25, 3) == "2.89e+25"
    assert axis(LIGHT)["exponentformat"] == "e"  # plotly's name of it


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


def test_what_fits_is_whole_sentences_one_at_least() -> None:
    text = "Layer 2.fc gets less. It is lost in fc. See there."
    assert fitting(text, 0) == ("Layer 2.fc gets less.", "It is lost in fc. See there.")
    assert fitting(text, 40) == ("Layer 2.fc gets less. It is lost in fc.", "See there.")
    assert fitting(text, 400) == (text, "")
    assert fitting("Layers 3 · fc ... 9 · fc get less. So it is.", 0)[1] == "So it is."
