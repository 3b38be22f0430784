"""Layers by steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import handmade
import synthetic
from gradscope.plots.heatmap import heatmap_caption, heatmap_figure, heatmap_info
from gradscope.runs.loading import load
from gradscope.runs.run import Run
from synthetic import write_with


def test_the_heatmap_holds_layers_by_steps(plain: Run, residual: Run) -> None:
    info = heatmap_info([plain, residual])
    assert [panel.values.shape for panel in info.panels] == [(11, 60), (11, 60)]
    expected = 10.0 ** np.linspace(-synthetic.PLAIN_DECADES, 0, 11) / 0.9
    np.testing.assert_allclose(info.panels[0].values[:, 7], expected, rtol=1e-5)


def test_zooming_bins_again(tmp_path: Path) -> None:
    run = load(synthetic.write_run(tmp_path / "long", n_layers=3, n_steps=3000, flush=3000))
    whole = heatmap_info(run, bins=100)
    assert len(whole.panels[0].steps) == 100
    assert "most extreme of about 30 recorded steps (3,000 in 100 cells)" in heatmap_caption(whole)
    zoomed = heatmap_info(run, first=500, last=549, bins=100)
    assert zoomed.panels[0].steps.tolist() == list(range(500, 550))
    assert "zoom in" not in heatmap_caption(zoomed)


def test_cells_without_a_logarithm_are_drawn_apart(tmp_path: Path) -> None:
    signal = np.array([0.0, 1, np.inf, 1, np.nan, 1, 1])
    info = heatmap_info(write_with(tmp_path / "odd", 7, 3, signal_norm=signal))
    hovers = [trace["hovertemplate"] for trace in heatmap_figure(info)["data"]]
    assert [said for hover in hovers for said in ("exactly 0", "inf", "NaN") if said in hover] == [
        "exactly 0",
        "inf",
        "NaN",
    ]
    assert "ends with 1 of 4 layers exactly 0, 1 inf, 1 NaN (grey)" in heatmap_caption(info)


def test_all_panels_share_one_scale(plain: Run, residual: Run) -> None:
    figure = heatmap_figure(heatmap_info([plain, residual]))
    assert {trace["coloraxis"] for trace in figure["data"]} == {"coloraxis"}
    assert (figure["layout"]["coloraxis"]["cmin"], figure["layout"]["coloraxis"]["cmax"]) == (
        -12,
        12,
    )


def test_the_heatmap_of_a_run_that_grew_is_that_of_the_whole_run(tmp_path: Path) -> None:
    writer = synthetic.start(tmp_path / "run", n_layers=5)
    synthetic.extend(writer, np.arange(5000))
    writer.flush()
    run = load(tmp_path / "run")
    heatmap_info(run, first=10, last=4000)
    assert heatmap_info(run).panels[0].total == 5000
    synthetic.extend(writer, np.arange(5000, 9000))
    writer.close()
    run.refresh()
    for where in ({}, {"first": 10, "last": 4000}):
        (panel,), (expected,) = (heatmap_info(r, **where).panels for r in (run, load(run.path)))
        np.testing.assert_array_equal(panel.steps, expected.steps)
        np.testing.assert_array_equal(panel.values, expected.values)


def test_stripes_are_explained_where_roles_have_levels_of_their_own(tmp_path: Path) -> None:
    names = [f"h.{i}.{role}" for i in range(4) for role in ("attn", "mlp")]
    layers = [{**row, "name": names[i], "layer": i} for i, row in enumerate(handmade.chain(8)[::2])]
    for path, signal, said in (
        ("striped", np.tile([1.0, 0.03], 4), True),
        ("falling", np.logspace(-5, 0, 8), False),
    ):
        run = handmade.make_run(tmp_path / path, layers, {"signal_norm": signal}, n_steps=3)
        assert ("Stripes" in heatmap_caption(heatmap_info(run))) == said
