"""What an undisturbed training records."""

from __future__ import annotations

import pandas as pd
import pytest

import gradscope
import trainings


@pytest.fixture(scope="session")
def reference(warm: trainings.Warm, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return what 80 undisturbed steps recorded."""
    path = tmp_path_factory.mktemp("reference") / "run"
    assert warm.run("whole", path) == (0, "")
    return gradscope.load(path).frame()
