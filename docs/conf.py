"""How the site is built: `sphinx-build -W docs site`.

Neither the build nor a page asks another host for anything.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "dashboard")]

import gradscope  # noqa: E402
from gradscope import schema  # noqa: E402

project = "gradscope"
author = "The gradscope developers"
release = gradscope.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"  # `name` in docstrings
myst_heading_anchors = 3

html_theme = "furo"
html_title = "gradscope"
html_show_sourcelink = html_copy_source = html_show_copyright = False
html_static_path, html_css_files = ["static"], ["site.css"]
html_theme_options = {"top_of_page_buttons": []}

autodoc_mock_imports = [name for name in ("lightning", "transformers") if find_spec(name) is None]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have them, in words
napoleon_google_docstring = False

TABLES = {
    "Run.layers": schema.LAYERS,
    "Run.shortcuts": schema.SHORTCUTS,
    "Run.edges": schema.EDGES,
    "Run.heads": schema.HEADS,
    "Run.steps, files under steps/": schema.STEPS,
    "Run.layer_readings, files under layers/": schema.LAYER_READINGS,
    "Run.shortcut_readings, files under shortcuts/": schema.SHORTCUT_READINGS,
    "What Run.frame() and the CSV have beside": schema.DERIVED_METRICS,
}
ROOT_PAGES = ("CONTRIBUTING", "SECURITY", "CHANGELOG")


def contract() -> str:
    """Return the tables of gradscope/schema.py as Markdown."""
    lines = []
    for title, table in TABLES.items():
        lines += ["", f"### {title}", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        for column in table:
            meaning = column.meaning.replace("|", "\\|")
            lines.append(f"| `{column.name}` | {column.dtype} | {column.unit} | {meaning} |")
    return "\n".join(lines)


def complete(app: object, name: str, source: list[str]) -> None:
    """Put the tables in, and lead links out of docs/ to pages of the site, or to nowhere."""
    text = source[0].replace("<!-- the tables of gradscope/schema.py -->", contract())
    for page in ROOT_PAGES:
        text = text.replace(f"](../{page}.md", f"]({page.lower()}.md")
    source[0] = re.sub(r"\[([^]]*)\]\(\.\./[^)]+\)", r"\1", text)


def setup(app: object) -> None:
    """Tell Sphinx of it."""
    app.connect("source-read", complete)  # type: ignore[attr-defined]
