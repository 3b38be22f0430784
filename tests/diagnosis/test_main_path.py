"""Which layers are compared in depth: those on one path, in nets whose flow is known."""

from __future__ import annotations

import numpy as np
import pytest

from gradscope.diagnosis.main_path import main_paths


def paths(
    edges: list[tuple[int, int]],
    points: list[int],
    carried: dict[int, float] | None = None,
    elements: dict[int, float] | None = None,
) -> list[list[int]]:
    count = 1 + max([*points, *(layer for edge in edges for layer in edge)])
    given, sizes = np.ones(count), np.ones(count)
    for layer, value in (carried or {}).items():
        given[layer] = value
    for layer, value in (elements or {}).items():
        sizes[layer] = value
    pairs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    return [p.tolist() for p in main_paths(pairs, np.array(points), given, sizes)]


def test_a_chain_is_one_path_past_its_activations():
    assert paths([(0, 1), (1, 2), (2, 3), (3, 4)], [0, 2, 4]) == [[0, 2, 4]]


@pytest.mark.parametrize(("actor", "critic", "expected"), [(9, 1, [0, 1, 2]), (1, 9, [0, 3, 4])])
def test_of_two_heads_the_one_that_the_gradient_comes_from_counts(actor, critic, expected):
    edges = [(0, 1), (1, 2), (0, 3), (3, 4)]
    assert paths(edges, [0, 1, 2, 3, 4], {1: actor, 3: critic}) == [expected]


def test_two_towers_are_two_paths():
    assert paths([(0, 1), (1, 2), (3, 4), (4, 5)], list(range(6))) == [[0, 1, 2], [3, 4, 5]]


def test_a_short_tower_is_not_judged_by_itself():
    assert paths([(0, 1), (1, 2), (2, 3)], [0, 1, 2, 3, 4]) == [[0, 1, 2, 3]]


def test_a_path_leads_through_residual_blocks_not_past_them():
    edges = [(0, 1), (1, 2), (0, 3), (2, 3), (3, 4), (0, 5), (2, 5), (4, 5)]
    assert paths(edges, list(range(6)), {5: 100}) == [[0, 1, 2, 3, 4, 5]]


def test_a_side_input_that_is_much_smaller_begins_no_path():
    time, image, block, out = (0, 1), 2, 3, 4
    edges = [(time[0], time[1]), (time[1], block), (image, block), (block, out)]
    sizes = {0: 32, 1: 32, 2: 4096, 3: 4096, 4: 1024}
    assert paths(edges, [0, 1, 2, 3, 4], elements=sizes) == [[2, 3, 4]]
    encoder_and_decoder = dict.fromkeys(range(5), 100)
    assert paths(edges, [0, 1, 2, 3, 4], elements=encoder_and_decoder) == [[0, 1, 3, 4]]


def test_a_cell_that_reads_its_own_state_is_no_circle():
    assert paths([(0, 1), (1, 1), (1, 0), (1, 2)], [0, 1, 2]) == [[0, 1, 2]]


def test_a_way_leads_through_an_activation_that_is_called_again():
    conv1, relu, conv2, conv3 = 0, 1, 2, 3
    edges = [(conv1, relu), (relu, conv2), (conv2, relu), (relu, conv3)]
    assert paths(edges, [conv1, conv2, conv3]) == [[conv1, conv2, conv3]]


def test_experts_count_by_the_one_that_most_gradient_comes_from():
    edges = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)]
    assert paths(edges, list(range(5)), {1: 1, 2: 5, 3: 1})[0][0::2] == [0, 4]


def test_of_ways_of_one_length_that_with_more_gradient_counts():
    query, value = (1, 3), (2, 4)
    edges = [(0, 1), (0, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 5), (4, 5)]
    carried = dict.fromkeys(query, 1e-9) | dict.fromkeys(value, 1.0)
    assert paths(edges, list(range(6)), carried) == [[0, *value, 5]]


def test_without_edges_each_layer_is_a_path():
    assert paths([], [0, 1, 2]) == [[0], [1], [2]]
