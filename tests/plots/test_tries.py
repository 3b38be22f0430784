"""The figure of what was tried beside a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gradscope.plots as plots
import handmade
from gradscope.plots.tries import NOTHING, tries_caption, tries_figure, tries_info
from gradscope.runs.run import Run
from gradscope.runs.tries import cells, read_tried
from with_tries import LOSSES, with_tries


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return with_tries(tmp_path / "run")


def test_the_loss_of_every_try_is_drawn_the_unchanged_one_dashed(run: Run) -> None:
    curves = tries_info([run])
    assert [curve.tried.folder for curve in curves] == ["", "shortcuts", "own"]
    np.testing.assert_array_equal(curves[1].values, LOSSES["shortcuts"])
    data = tries_figure(curves)["data"]
    assert [trace["line"]["dash"] for trace in data] == ["dash", "solid", "solid"]
    assert data[1]["y"] == pytest.approx(LOSSES["shortcuts"].tolist())
    assert "1 of 2 changes help" in tries_caption(curves)


def test_a_loss_that_explodes_leaves_the_others_their_room(run: Run) -> None:
    assert tries_figure(tries_info([run]))["layout"]["yaxis"]["range"][1] < 5


def test_a_name_stands_at_the_end_of_its_line(run: Run) -> None:
    figure = tries_figure(tries_info([run]))
    (label,) = [n for n in figure["layout"]["annotations"] if "shortcuts" in n["text"]]
    assert label["y"] == LOSSES["shortcuts"][-1]
    assert label["xanchor"] == "right"


@pytest.mark.parametrize(
    ("loss", "spread", "said"),
    [
        (1e30, 0.01, "1e+30"),
        (2.3, 0.01, "2.3 ± 0.005"),
        (0.1, 0.3, "0.1 ± 0.1"),
        (np.inf, 0.1, "inf"),
    ],
)
def test_a_spread_that_the_loss_is_not_told_to_is_left_out(
    run: Run, loss: float, spread: float, said: str
) -> None:
    unchanged, row = read_tried(run.path)[:2]
    assert cells(replace(row, loss=loss, spread=spread), unchanged)[4] == said


def test_names_are_text_and_a_run_without_tries_says_how_to_try(run: Run, tmp_path: Path) -> None:
    hostile = with_tries(tmp_path / "hostile", "<b>own</b>")
    names = [trace["name"] for trace in tries_figure(tries_info([hostile]))["data"]]
    assert "own" in names[2]
    assert "<b>" not in names[2]
    other = handmade.make_run(tmp_path / "other", handmade.chain(3), {"signal_norm": 1.0})
    assert tries_info([other]) == []
    texts = [note["text"] for note in plots.tries(other).layout.annotations]
    assert any("Nothing was tried" in text for text in texts), NOTHING
    assert len(tries_info([other, run])) == 3


def test_a_try_that_was_removed_or_a_broken_table_is_left_out(run: Run) -> None:
    (run.path / "what-if" / "own" / "run.json").unlink()
    assert [curve.tried.folder for curve in tries_info(run)] == ["", "shortcuts"]
    (run.path / "what-if" / "tried.json").write_text("[{")
    assert tries_info(run) == []


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
def test_plotly_accepts_the_figure(run: Run, theme: plots.Theme) -> None:
    figure = plots.tries(run, theme=theme)
    assert len(figure.data) == 3
    assert figure.layout.title.text
