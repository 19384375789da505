"""Pairs of axes, their numbers, and tournaments."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, noises

from givens.manifolds import OrthogonalGroup
from givens.manifolds.pairs import (
    entry_to_number,
    number_to_entry,
    number_to_pair,
    pair_to_number,
    round_robin,
)

LARGEST = 65_536


@pytest.mark.parametrize("d", range(2, 33))
def test_numbers_run_along_the_rows_of_the_upper_triangle(d):
    pairs = torch.tensor(list(combinations(range(d), 2)))  # in lexicographic order
    numbers = torch.arange(len(pairs))
    assert torch.equal(torch.stack(number_to_pair(numbers, d), -1), pairs)
    assert torch.equal(pair_to_number(*pairs.unbind(-1), d), numbers)


@pytest.mark.parametrize("d", range(1, 9))
def test_single_axes_are_numbered_after_the_pairs(d):
    entries = torch.tensor([*combinations(range(d), 2), *((j, j) for j in range(d))])
    numbers = torch.arange(len(entries))
    assert torch.equal(torch.stack(number_to_entry(numbers, d), -1), entries)
    assert torch.equal(entry_to_number(*entries.unbind(-1), d), numbers)


# Around the powers of two where a product or a root of too few bits would first be wrong.
@pytest.mark.parametrize("d", [2, 3, 2896, 4097, 32_769, 46_341, 65_535, LARGEST])
def test_every_row_starts_and_ends_where_it_should(d):
    j = torch.arange(d - 1)
    lengths = d - 1 - j
    ends = lengths.cumsum(0) - 1
    starts = ends - lengths + 1
    for numbers, l in [(starts, j + 1), (ends, torch.full_like(j, d - 1))]:
        row, column = number_to_pair(numbers, d)
        assert torch.equal(row, j)
        assert torch.equal(column, l)
        assert torch.equal(pair_to_number(j, l, d), numbers)


@given(st.integers(2, LARGEST), noises)
def test_pair_and_number_are_inverse_at_any_size(d, noise: Noise):
    numbers = noise.integers(d * (d - 1) // 2, 5, 400)
    j, l = number_to_pair(numbers, d)
    assert ((j >= 0) & (j < l) & (l < d)).all()
    assert torch.equal(pair_to_number(j, l, d), numbers)


@given(st.integers(2, LARGEST), st.data())
def test_the_number_is_the_formula_of_the_paper(d, data):
    j = data.draw(st.integers(0, d - 2))
    l = data.draw(st.integers(j + 1, d - 1))
    exact = j * d - j * (j + 1) // 2 + l - j - 1  # Python's integers
    assert int(pair_to_number(torch.tensor(j), torch.tensor(l), d)) == exact
    assert [int(axis) for axis in number_to_pair(torch.tensor(exact), d)] == [j, l]


@pytest.mark.parametrize("d", range(2, 33))
def test_in_a_tournament_every_pair_meets_once_and_no_axis_plays_twice_in_a_round(d):
    rounds = round_robin(d)
    assert rounds.shape == (d - 1 + d % 2, d // 2, 2)
    assert rounds.dtype == torch.int64
    for games in rounds:
        assert games.unique().numel() == games.numel()
    games = [tuple(game) for game in rounds.flatten(0, 1).tolist()]
    assert sorted(games) == list(combinations(range(d), 2))


@given(st.integers(2, 40), noises)
def test_axes_and_number_of_the_group_are_inverse(d, noise: Noise):
    group = OrthogonalGroup()
    x = torch.empty(3, d, d)
    index = noise.integers(group.num_coordinates(x), 3, 7)
    axes = group.axes(x, index)
    assert axes.shape == (3, 7, 2)
    assert group.num_axes(x) == d
    assert torch.equal(group.number(x, *axes.unbind(-1)), index)


def test_number_takes_plain_integers():
    x = torch.empty(5, 5)
    assert OrthogonalGroup().number(x, 1, 3).tolist() == [5]
