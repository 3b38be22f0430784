"""What is known of objects that are not kept alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, MutableMapping
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class WeakTable(MutableMapping[Key, Value]):
    """Values by objects, each told by itself, of those that are still there.

    Without the callbacks of `weakref.WeakKeyDictionary`: where an object has several and all end
    with it in one collection of garbage, Python 3.11 may free some while it calls them, and crash.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Key], Value]] = {}

    def __getitem__(self, key: Key) -> Value:
        reference, value = self._entries[id(key)]
        if reference() is not key:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Key, value: Value) -> None:
        if key not in self:
            left = {k: entry for k, entry in self._entries.items() if entry[0]() is not None}
            self._entries = left
        self._entries[id(key)] = weakref.ref(key), value

    def __delitem__(self, key: Key) -> None:
        self[key]
        del self._entries[id(key)]

    def __iter__(self) -> Iterator[Key]:
        for reference, _ in list(self._entries.values()):
            if (key := reference()) is not None:
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)
