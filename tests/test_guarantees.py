"""SECURITY.md promises nothing that no test holds it to."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def promises() -> list[str]:
    """Return the items of the lists of SECURITY.md, each in one line."""
    text = (ROOT / "SECURITY.md").read_text()
    items = re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)
    return [" ".join(item.split()) for item in items]


def collected() -> set[str]:
    """Return the names of all tests that pytest collects."""
    return {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_promise_names_tests_that_exist() -> None:
    items = promises()
    assert len(items) > 25
    known = collected()
    for item in items:
        named = re.findall(r"`(test_\w+)`", item)
        assert named, f"no test backs: {item}"
        assert not set(named) - known, f"no such test: {set(named) - known}"


def test_every_promise_ends_with_its_tests() -> None:
    for item in promises():
        assert re.search(r"\.\s\((`test_\w+`(, )?)+\)$", item), item


def test_every_list_item_is_read() -> None:
    lines = (ROOT / "SECURITY.md").read_text().splitlines()
    assert sum(line.lstrip().startswith("- ") for line in lines) == len(promises())
