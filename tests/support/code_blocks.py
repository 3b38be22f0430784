"""The code blocks of README.md and of docs/: what a reader would copy.

A fence with a language is code. ```text is output, ```{name} belongs to the site's builder. Code
that cannot run in a test has a comment before it that says why: `<!-- not run: ... -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(
    r"^(?P<heading>#+ [^\n]*)$"
    r"|^(?:<!-- not run: (?P<reason>.*?) -->\n+)?```(?P<language>\S*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code, the heading that it stands under, and why it is not run, if so."""

    page: Path
    line: int
    heading: str
    language: str
    code: str
    reason: str

    def run(self, names: dict[str, object]) -> None:
        """Execute it with `names`; errors point to the line of the page."""
        exec(compile("\n" * self.line + self.code, str(self.page), "exec"), names)


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text, heading, found = page.read_text(), "", []
    for match in _BLOCK.finditer(text):
        if match["heading"]:
            heading = match["heading"].lstrip("# ").strip("`")
        else:
            line = text[: match.start("code")].count("\n")
            reason = " ".join((match["reason"] or "").split())
            found.append(Block(page, line, heading, match["language"], match["code"], reason))
    return found
