"""The site that Sphinx builds of docs/: without a warning, and with nothing of other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradscope import schema

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site."""
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name, reason=f"{name} is not installed: it is of the extra [docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", folder / "kept"]
    done = subprocess.run(
        [*command, ROOT / "docs", folder / "site"], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.glob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]*)", text)
        loaded += re.findall(r"<link[^>]*\shref=\"([^\"]*)", text)
        assert [where for where in loaded if re.match(r"(https?:)?//", where)] == [], page.name
    for sheet in (site / "_static").rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet.name


@pytest.mark.slow
def test_the_page_of_the_data_has_every_column(site):
    text = re.sub(r"<[^>]+>", "", (site / "data.html").read_text())
    tables = (
        schema.LAYERS, schema.SHORTCUTS, schema.EDGES, schema.HEADS, schema.STEPS,
        schema.LAYER_READINGS, schema.SHORTCUT_READINGS, schema.DERIVED_METRICS,
    )  # fmt: skip
    for column in (column for table in tables for column in table):
        assert column.name in text
        assert column.meaning.split("`")[0].split("'")[0].split("<")[0][:40] in text, column.name
