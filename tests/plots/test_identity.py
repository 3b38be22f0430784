"""What layers are called, and which belong together."""

from __future__ import annotations

import numpy as np

from gradscope.plots.identity import groups, roles, roles_apart, title

GPT = [
    "wte",
    *(f"transformer.h.{i}.{role}" for i in range(3) for role in ("attn.qkv", "attn.proj", "mlp")),
    "head",
]


def test_a_layer_is_told_by_number_name_and_class() -> None:
    assert title(19, "blocks.4.fc1", "Linear") == "19 · blocks.4.fc1 (Linear)"


def test_neighbours_of_a_numbered_block_are_a_group() -> None:
    assert [tuple(group) for group in groups(GPT)] == [
        ("transformer.h.0", 1, 3),
        ("transformer.h.1", 4, 6),
        ("transformer.h.2", 7, 9),
    ]


def test_layers_that_repeat_from_block_to_block_have_a_role() -> None:
    assert roles(GPT) == {"attn.qkv": [1, 4, 7], "attn.proj": [2, 5, 8], "mlp": [3, 6, 9]}


def test_a_chain_of_equal_layers_has_no_roles() -> None:
    assert roles([f"blocks.{i}.fc" for i in range(9)]) == {}


def test_roles_lie_apart_where_each_has_a_level_of_its_own() -> None:
    levels = np.array([0.0, *[-1.0, 0.5, -0.5] * 3, 0.0])
    assert roles_apart(GPT, levels) == roles(GPT)
    assert roles_apart(GPT, np.linspace(0, 20, len(GPT))) == {}
    levels[4] = np.nan
    assert roles_apart(GPT, levels) == roles(GPT)
