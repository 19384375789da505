"""Rotations of pairs of columns."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, Noise, batch_shapes, defect, dims, dtypes, error, layouts, noises

from givens.manifolds import columns
from givens.manifolds.pairs import number_to_pair
from givens.manifolds.rotations import rotate_columns, rotate_columns_


def plane_rotations(d, j, l, angle):
    """The matrix ∏ G_jl(φ) of the paper's equation (13), entry by entry."""
    g = torch.eye(d, dtype=torch.float64)
    for a, b, phi in zip(j.tolist(), l.tolist(), angle.tolist(), strict=True):
        g[a, a] = g[b, b] = math.cos(phi)
        g[a, b] = math.sin(phi)
        g[b, a] = -math.sin(phi)
    return g


def disjoint_pairs(noise, batch, d, k):
    return noise.permutations(batch, d)[..., : 2 * k].unflatten(-1, (k, 2)).unbind(-1)


angles = st.one_of(
    st.floats(-10, 10), st.floats(-1e-6, 1e-6), st.floats(-1e4, 1e4), st.just(0.0), st.just(-0.0)
)


@given(dims, st.integers(1, 9), dtypes, noises, st.data())
def test_rotation_is_the_product_with_the_rotation_matrix(d, m, dtype, noise: Noise, data):
    k = data.draw(st.integers(0, d // 2))
    angle = torch.tensor(data.draw(st.lists(angles, min_size=k, max_size=k)), dtype=torch.float64)
    j, l = disjoint_pairs(noise, (), d, k)
    x = noise.normal(m, d, dtype=dtype)
    expected = x.double() @ plane_rotations(d, j, l, angle)
    # Radians lose digits as they grow: 1e4 carries an error of 1e-12.
    tolerance = 20 * torch.finfo(dtype).eps + 1e-15 * float(angle.abs().sum())
    for y in layouts(x):
        kept = y.clone()
        outside = rotate_columns(y, j, l, angle)
        assert torch.equal(y, kept)
        assert rotate_columns_(y, j, l, angle) is y
        assert torch.equal(outside, y)
        assert error(y, expected) <= tolerance


@given(batch_shapes, dims, dtypes, noises)
def test_a_batch_is_a_loop(batch, d, dtype, noise: Noise):
    j, l = disjoint_pairs(noise, batch, d, d // 2)
    angle = noise.uniform(*batch, d // 2, low=-7, high=7)
    x = noise.normal(*batch, d, d, dtype=dtype)
    together = rotate_columns_(x.clone(), j, l, angle)
    for at in product(*map(range, batch)):
        assert torch.equal(together[at], rotate_columns_(x[at].clone(), j[at], l[at], angle[at]))


@given(dims, dtypes, noises)
def test_other_columns_stay_bit_for_bit(d, dtype, noise: Noise):
    j, l = disjoint_pairs(noise, (), d, 1)
    x = noise.normal(d, d, dtype=dtype)
    y = rotate_columns_(x.clone(), j, l, noise.uniform(1))
    others = [c for c in range(d) if c not in (int(j), int(l))]
    assert torch.equal(y[:, others], x[:, others])
    assert not torch.equal(y, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quarters", range(-9, 10))
def test_quarter_turns_are_exact(quarters, dtype):
    x = Noise(0).normal(4, 4, dtype=dtype)
    angle = torch.tensor([quarters * (math.pi / 2)], dtype=torch.float64)
    y = rotate_columns_(x.clone(), torch.tensor([3]), torch.tensor([1]), angle)
    first, second = x[:, 3], x[:, 1]
    for _ in range(quarters % 4):
        first, second = -second, first
    assert torch.equal(y[:, 3], first)
    assert torch.equal(y[:, 1], second)


@given(dtypes, noises, st.floats(-20, 20), st.floats(-20, 20))
def test_angles_add_and_the_opposite_angle_is_the_inverse(dtype, noise: Noise, first, second):
    x = noise.normal(3, 6, dtype=dtype)
    j, l = disjoint_pairs(noise, (), 6, 3)

    def rotated(y, angle):
        return rotate_columns_(y.clone(), j, l, torch.full((3,), angle, dtype=torch.float64))

    tolerance = 40 * torch.finfo(dtype).eps + 1e-15 * (abs(first) + abs(second))
    assert error(rotated(rotated(x, first), second), rotated(x, first + second)) <= tolerance
    assert error(rotated(rotated(x, first), -first), x) <= tolerance
    swapped = rotate_columns_(x.clone(), l, j, torch.full((3,), -first, dtype=torch.float64))
    assert error(swapped, rotated(x, first)) <= tolerance


@given(dims, noises)
def test_float32_follows_float64(d, noise: Noise):
    x = noise.normal(d, d, dtype=torch.float32)
    j, l = disjoint_pairs(noise, (), d, d // 2)
    angle = noise.uniform(d // 2, low=-4, high=4)
    single = rotate_columns_(x.clone(), j, l, angle)
    double = rotate_columns_(x.double(), j, l, angle)
    assert single.dtype == torch.float32
    # The sine, which may be four numbers away, and the rounding of the increments and of the result.
    assert error(single, double) <= 7 * torch.finfo(torch.float32).eps * float(x.abs().max())


@pytest.mark.parametrize("angle", [1e-4, 0.001, 0.01, 0.1, 3.0])
def test_columns_do_not_grow_where_the_cosine_rounds(angle):
    # In the plain form of a rotation the defect is 9e-6 to 2e-4, and at 3 rad without quarter turns 1e-4.
    noise = Noise(1)
    x = noise.point(32, 32, dtype=torch.float32)
    for _ in range(2000):
        j, l = disjoint_pairs(noise, (), 32, 16)
        rotate_columns_(x, j, l, torch.full((16,), angle, dtype=torch.float64))
    assert defect(x) <= 3e-6


def test_gradients_flow_through_a_rotation():
    noise = Noise(2)
    x = noise.normal(3, 4).requires_grad_()
    angle = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    j, l = torch.tensor([0, 3]), torch.tensor([2, 1])
    torch.autograd.gradcheck(lambda x, angle: rotate_columns(x, j, l, angle), (x, angle))


@given(batch_shapes, st.integers(2, 9), st.integers(1, 7), dtypes, noises)
def test_panels_change_no_bits(batch, d, rows, dtype, noise: Noise):
    matching = noise.matching(batch, d)
    x = noise.normal(*batch, rows, d, dtype=dtype)
    j, l = number_to_pair(matching.index, d)
    angle = noise.normal(*matching.index.shape)
    expected = rotate_columns(x, j, l, angle)
    for size in (1, 3 * rows, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(columns, "CACHE", size)
            for layout in layouts(x):
                assert torch.equal(rotate_columns_(layout, j, l, angle), expected)
