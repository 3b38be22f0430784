"""Values by objects that are not kept alive."""

from __future__ import annotations

import pytest

from gradscope.capture.training.weak_table import WeakTable


class Thing:
    def __eq__(self, other: object) -> bool:
        return True  # told by itself, nevertheless

    __hash__ = None


def test_each_object_has_its_own_value_while_it_is_there():
    table: WeakTable[Thing, int] = WeakTable()
    one, other = Thing(), Thing()
    table[one], table[other] = 1, 2
    assert (table[one], table[other], len(table)) == (1, 2, 2)
    table[one] = 3
    assert [table[key] for key in table] == [3, 2]
    del one
    assert list(table.values()) == [2] and len(table) == 1
    assert table.pop(other) == 2 and other not in table
    with pytest.raises(KeyError):
        table[other]


def test_what_is_gone_is_not_taken_for_what_came_in_its_place_nor_kept():
    table: WeakTable[Thing, int] = WeakTable()
    for number in range(1000):  # at few addresses
        thing = Thing()
        assert thing not in table
        table[thing] = number
    assert len(table._entries) <= 2
