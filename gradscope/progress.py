"""A progress bar on stderr; there is none where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_WIDTH = 30  # characters
_CLEAR_LINE = "\r\x1b[K"


def tracked(
    items: Iterable[Item], what: str, total: int, size: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """Yield `items`, and show how far the work on them is.

    Parameters
    ----------
    items : iterable
    what : str
        Is being done, such as "merging".
    total : int
        Sum of the sizes of all items.
    size : of an item; 1 by default
    """
    if not sys.stderr.isatty():
        yield from items
        return
    done = 0
    try:
        _show(what, done, total)
        for item in items:
            yield item
            done += size(item)
            _show(what, done, total)
    finally:
        print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)


def _show(what: str, done: int, total: int) -> None:
    share = min(done / total, 1.0) if total else 1.0
    filled = round(share * _WIDTH)
    bar = "#" * filled + "." * (_WIDTH - filled)
    print(f"\r{what} [{bar}] {share:4.0%}", end="", file=sys.stderr, flush=True)
