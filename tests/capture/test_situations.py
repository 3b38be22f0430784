"""Trainings that people run, as they were reported: every reading against torch's own hooks."""

from __future__ import annotations

import pytest

import situations
from truth import hold

SITUATIONS = situations.found()


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("every", [1, 2])
def test_readings_are_those_of_plain_autograd_in_the_same_loop(name, every, tmp_path):
    hold(SITUATIONS[name], tmp_path / "run", every)
