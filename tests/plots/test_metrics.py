"""The quantities that figures show, in words."""

from __future__ import annotations

from gradscope.plots.metrics import METRICS


def test_a_metric_is_told_in_a_sentence_with_its_unit() -> None:
    for metric in METRICS.values():
        assert metric.sentence[0].isupper()
        assert metric.sentence.endswith(".")
        assert "_" not in metric.definition
    assert METRICS["weight_norm"].definition.endswith(" Unit: weight.")
    assert METRICS["update_ratio"].definition.endswith(" Unit: none, a ratio.")
