"""The runs that most figures are tested with."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradscope.runs.loading import load
from gradscope.runs.run import Run


@pytest.fixture(scope="module")
def plain(pair: Path) -> Run:
    return load(pair / "plain-50")


@pytest.fixture(scope="module")
def residual(pair: Path) -> Run:
    return load(pair / "residual-50")
