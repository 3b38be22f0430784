"""Trainings that people run, as they were reported: every reading against torch's own hooks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscope
import situations
from truth import Truth

SITUATIONS = situations.found()


def train(situation: situations.Situation, watch) -> tuple[nn.Module, object]:
    """Train with what `watch` makes of the model around it; return both."""
    training = situation()
    model = next(training)
    with watch(model) as watching:
        for _ in training:
            pass
    return model, watching


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("every", [1, 2])
def test_readings_are_those_of_plain_autograd_in_the_same_loop(name, every, tmp_path):
    plain, truth = train(SITUATIONS[name], Truth)
    model, scope = train(
        SITUATIONS[name], lambda model: gradscope.watch(model, tmp_path / "run", every=every)
    )
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    run = scope.run
    assert run.notes == []
    rows = dict(list(enumerate(truth.rows))[::every])
    assert run.steps.step.tolist() == list(rows)
    frame = run.frame().set_index(["step", "name"])
    for step, row in rows.items():
        read = frame.loc[step]
        for metric, expected in row.items():
            found = read[metric].dropna().to_dict()
            expected = {name: value for name, value in expected.items() if name in read.index}
            assert found == pytest.approx(expected, rel=1e-9), (step, metric)
