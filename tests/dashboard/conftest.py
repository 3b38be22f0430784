"""A server of the synthetic pair of runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gradscope_dashboard import Server


@pytest.fixture(scope="module")
def server(pair: Path) -> Iterator[Server]:
    with pytest.importorskip("gradscope_dashboard").start(pair) as running:
        yield running
