"""Everything that a user meets is explained: public names, commands, columns, verdicts."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path

import pytest

import gradscope
import gradscope.integrations
import gradscope.plots
from gradscope import cli, schema
from gradscope.kinds import BOUNDS
from gradscope.measure import activations

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages() -> str:
    """README.md and the pages of docs/, one after the other."""
    return "\n".join(
        path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    )


def commands() -> dict[str, ArgumentParser]:
    """The commands of `gradscope`, by name."""
    (found,) = (a for a in cli.parser()._actions if isinstance(a, _SubParsersAction))
    return found.choices


def columns() -> list[schema.Column]:
    tables = (
        schema.LAYERS, schema.SHORTCUTS, schema.STEPS, schema.LAYER_READINGS,
        schema.SHORTCUT_READINGS, schema.FRAME,
    )  # fmt: skip
    return [column for table in tables for column in table]


def code(text: str) -> str:
    """What stands in backticks, inline or fenced, or is indented."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`|^ {4}[^\n]*", text, re.DOTALL | re.MULTILINE))


def missing(names: list[str], text: str) -> list[str]:
    """Those of `names` that `text` does not have as words of their own."""
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]


def test_the_pages_name_every_public_name(pages):
    names = [name for name in gradscope.__all__ if not name.startswith("__")]
    assert missing(names, code(pages)) == []


def test_the_pages_name_every_integration(pages):
    names = [module.name for module in pkgutil.iter_modules(gradscope.integrations.__path__)]
    assert missing(names, pages.lower()) == []


def test_the_pages_show_every_command(pages):
    assert [name for name in commands() if f"gradscope {name}" not in code(pages)] == []


def test_every_command_and_option_has_a_help_text():
    assert [
        f"{name} {action.dest}"
        for name, parser in commands().items()
        for action in parser._actions
        if not action.help
    ] == []


def test_the_readme_decides_in_a_minute():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_every_column_has_a_meaning_and_every_norm_a_unit():
    assert [column.name for column in columns() if not column.meaning] == []
    assert [c.name for c in columns() if c.name.endswith("_norm") and not c.unit] == []


def test_the_columns_of_activations_say_which_are_read_from_a_sample_and_how_large_it_is():
    of = {column.name: column.meaning for column in schema.LAYER_METRICS}
    _, sampling = of["derivative_mean"].split(". Of ")
    whole, others = sampling.lower().split(" over all elements, of others ")
    assert {name.strip() for name in re.split(",| and ", whole)} == {
        kind for kind in BOUNDS if activations.whole_rule(kind) is not None
    }
    assert f"{activations.SAMPLE:,}" in others
    assert (
        "derivative_mean" in of["zero_fraction"] and "derivative_mean" in of["saturated_fraction"]
    )


def test_the_page_of_verdicts_lists_exactly_the_verdicts():
    """They are the rows of the table whose head begins with `verdict`."""
    page = (ROOT / "docs" / "verdicts.md").read_text()
    table = re.search(r"^\| *verdict.*\n\|[-| :]+\n((?:\|.*\n)+)", page, re.MULTILINE | re.I)
    assert table, "docs/verdicts.md has no table that begins with | verdict |"
    listed = re.findall(r"^\| *[`*]*([\w-]+)", table[1], re.MULTILINE)
    assert sorted(listed) == sorted(schema.VERDICTS)


def public_things():
    names = [name for name in gradscope.__all__ if not name.startswith("__")]
    yield from (getattr(gradscope, name) for name in names)
    plots = (getattr(gradscope.plots, name) for name in gradscope.plots.__all__)
    yield from filter(inspect.isfunction, plots)


@pytest.mark.parametrize("thing", list(public_things()), ids=lambda thing: thing.__qualname__)
def test_help_is_a_manual(thing):
    """Every parameter of a public function, or of a class's public methods, is described."""
    assert inspect.getdoc(thing)
    for function in [thing] if inspect.isfunction(thing) else public_methods(thing):
        text = inspect.getdoc(function)
        assert text, f"{function.__qualname__} has no docstring"
        parameters = [p for p in inspect.signature(function).parameters if p != "self"]
        assert missing(parameters, text) == [], function.__qualname__


def public_methods(cls: type) -> list[object]:
    return [
        member
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and not name.startswith("_")
    ]


def test_every_module_says_what_it_is_for():
    modules = [
        module.name
        for module in pkgutil.walk_packages(gradscope.__path__, "gradscope.")
        if not module.name.endswith("__main__") and ".integrations." not in module.name
    ]
    assert [name for name in modules if not importlib.import_module(name).__doc__] == []
