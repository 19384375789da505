"""Laws of the counter-based randomness: a pure function of its key, and uniform."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from givens.optim import Randomness

CPU = torch.device("cpu")

keys = st.tuples(*[st.integers(-(2**63), 2**64)] * 3)
highs = st.integers(1, 2**40)


def randomness(seed: int = 0, step: int = 0, number: int = 0) -> Randomness:
    return Randomness(seed, step, number, device=CPU)


def assert_uniform(cells: np.ndarray, num_cells: int) -> None:
    """Chi-square. The draws are fixed, so this cannot fail by chance; one in 10⁴ fails at first."""
    counts = np.bincount(cells, minlength=num_cells)
    assert counts.shape == (num_cells,)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4, counts


@given(keys, highs, st.lists(st.integers(0, 4), max_size=3))
def test_integers_lie_below_high_in_the_shape_asked_for(key, high, size):
    drawn = randomness(*key).integers(high, *size)
    assert drawn.shape == tuple(size)
    assert drawn.dtype == torch.int64
    assert bool(((drawn >= 0) & (drawn < high)).all())


@given(keys, highs)
def test_equal_keys_give_equal_numbers(key, high):
    first, second = randomness(*key), randomness(*key)
    for _ in range(3):
        assert torch.equal(first.integers(high, 5), second.integers(high, 5))
    k = min(high, 7)
    assert torch.equal(first.distinct(high, k, 2), second.distinct(high, k, 2))


@given(keys, st.integers(0, 2), st.integers(1, 2**32))
def test_keys_that_differ_in_one_part_give_other_numbers(key, part, by):
    other = list(key)
    other[part] += by
    assert not torch.equal(
        randomness(*key).integers(2**62, 4), randomness(*other).integers(2**62, 4)
    )


@given(keys)
def test_the_parts_of_a_key_have_each_its_place(key):
    """(seed, step, number) in another order is another key."""
    for order in itertools.permutations(key):
        same = torch.equal(
            randomness(*key).integers(2**62, 4), randomness(*order).integers(2**62, 4)
        )
        assert same == (order == key)


@given(keys)
def test_every_call_gives_new_numbers(key):
    source = randomness(*key)
    first = source.integers(2**62, 4)
    assert not torch.equal(first, source.integers(2**62, 4))
    assert not torch.equal(source.distinct(1000, 20), source.distinct(1000, 20))


@given(keys, st.sampled_from([torch.float32, torch.float64]), st.integers(0, 3))
def test_reals_are_new_ones_between_minus_one_and_one(key, dtype, n):
    source = randomness(*key)
    drawn = source.reals(n, 500, dtype=dtype)
    assert drawn.shape == (n, 500)
    assert drawn.dtype == dtype
    assert bool((drawn.abs() < 1).all())
    assert bool((drawn != 0).all())
    again = randomness(*key)
    assert torch.equal(drawn, again.reals(n, 500, dtype=dtype))
    assert n == 0 or not torch.equal(drawn, source.reals(n, 500, dtype=dtype))


def test_reals_are_uniform():
    drawn = randomness(3).reals(40_000, dtype=torch.float64)
    cells = ((drawn + 1) * 20).floor().to(torch.int64)
    assert_uniform(cells.numpy(), 40)
    # … and independent of their neighbours.
    assert_uniform((cells[:-1:2] // 10 * 4 + cells[1::2] // 10).numpy(), 16)


@given(keys, st.integers(0, 3), st.integers(1, 3))
def test_reals_of_a_part_are_a_part_of_the_reals(key, first, n):
    whole = Randomness(*key, CPU, (6,)).reals(6, 2, dtype=torch.float64)
    part = Randomness(*key, CPU, (n,), first).reals(n, 2, dtype=torch.float64)
    assert torch.equal(part, whole[first : first + n])


@given(keys, st.integers(1, 2**63 - 1), st.integers(0, 12))
def test_a_few_numbers_are_the_first_of_many(key, high, n):
    """A few are made without tensors."""
    few, many = randomness(*key).integers(high, n), randomness(*key).integers(high, 100)
    assert few.dtype == many.dtype
    assert torch.equal(few, many[:n])


@given(keys, st.integers(1, 50), st.integers(2, 4))
def test_the_numbers_do_not_depend_on_how_they_are_shaped(key, n, m):
    """A batch of matrices draws what a list of them would."""
    assert torch.equal(
        randomness(*key).integers(1000, n, m).flatten(), randomness(*key).integers(1000, n * m)
    )


@pytest.mark.parametrize("high", [2, 3, 7, 10, 100, 1000])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_integers_are_uniform(high, seed):
    assert_uniform(randomness(seed).integers(high, 50_000).numpy(), high)


def test_integers_below_a_large_bound_are_uniform():
    high = 3 * 2**38  # no power of two: a mask in place of the remainder would show
    drawn = randomness(7).integers(high, 50_000)
    assert_uniform((drawn // (high // 96)).numpy(), 96)


def test_neighbours_in_one_draw_are_independent():
    drawn = randomness(3).integers(8, 100_000).numpy()
    assert_uniform(drawn[:-1:2] * 8 + drawn[1::2], 64)


@pytest.mark.parametrize("part", ["seed", "step", "number"])
def test_draws_of_consecutive_keys_are_uniform_and_independent(part):
    drawn = np.array([int(randomness(**{part: n}).integers(8, 1)) for n in range(5_000)])
    assert_uniform(drawn, 8)
    assert_uniform(drawn[:-1] * 8 + drawn[1:], 64)


def test_the_draws_of_two_parameters_are_independent():
    pairs = [
        int(randomness(0, step, 0).integers(8, 1)) * 8 + int(randomness(0, step, 1).integers(8, 1))
        for step in range(4_000)
    ]
    assert_uniform(np.array(pairs), 64)


def test_consecutive_calls_are_independent():
    source = randomness()
    drawn = np.array([int(source.integers(8, 1)) for _ in range(5_000)])
    assert_uniform(drawn[:-1] * 8 + drawn[1:], 64)


@pytest.mark.parametrize(("batch", "largest"), [((), 200), ((3,), 40)])
def test_distinct_numbers_of_a_whole_range_are_a_permutation_of_it(batch, largest):
    for high in range(1, largest + 1):
        drawn = randomness(high).distinct(high, high, *batch)
        assert drawn.shape == (*batch, high)
        assert torch.equal(drawn.sort(-1).values, torch.arange(high).expand(*batch, high))


@given(keys, st.integers(1, 10**9), st.integers(1, 200), st.sampled_from([(), (1,), (4,), (2, 3)]))
def test_distinct_numbers_are_distinct(key, high, k, batch):
    k = min(k, high)
    drawn = randomness(*key).distinct(high, k, *batch)
    assert drawn.shape == (*batch, k)
    assert bool(((drawn >= 0) & (drawn < high)).all())
    assert bool((drawn.sort(-1).values.diff(dim=-1) > 0).all())


@given(keys, st.integers(1, 60), st.data())
def test_fewer_distinct_numbers_are_the_first_of_more(key, high, data):
    k = data.draw(st.integers(1, high))
    whole = randomness(*key).distinct(high, high, 2)
    assert torch.equal(randomness(*key).distinct(high, k, 2), whole[:, :k])


@pytest.mark.parametrize("high", [2, 3, 4, 5, 6, 9])
def test_pairs_of_distinct_numbers_are_uniform(high):
    drawn = randomness(high).distinct(high, 2, 200_000).numpy()
    ordered = drawn[:, 0] * (high - 1) + drawn[:, 1] - (drawn[:, 1] > drawn[:, 0])
    assert_uniform(ordered, high * (high - 1))


def test_pairs_of_distinct_numbers_are_uniform_over_steps():
    drawn = np.array([randomness(0, step).distinct(4, 2).tolist() for step in range(700)])
    assert_uniform(drawn[:, 0] * 3 + drawn[:, 1] - (drawn[:, 1] > drawn[:, 0]), 12)


@pytest.mark.parametrize("high", [3, 5])
def test_whole_permutations_are_uniform(high):
    drawn = randomness(1).distinct(high, high, 100_000).numpy()
    number = {p: n for n, p in enumerate(itertools.permutations(range(high)))}
    assert_uniform(np.array([number[tuple(row)] for row in drawn.tolist()]), len(number))


def test_the_points_of_a_batch_draw_independently():
    drawn = randomness(2).distinct(6, 2, 20_000, 2).numpy()
    assert_uniform(drawn[:, 0, 0] * 6 + drawn[:, 1, 0], 36)


def test_torch_s_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    source = randomness(5)
    source.integers(10, 3)
    source.distinct(10, 3)
    assert torch.equal(torch.get_rng_state(), before)
