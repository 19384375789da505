"""Coordinates of the orthogonal group: basis, derivatives, moves, blocks, the steepest ones."""

import math
from itertools import combinations, product

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    DTYPES,
    Noise,
    batch_shapes,
    defect,
    dims,
    dtypes,
    error,
    layouts,
    noises,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from givens.manifolds import (
    All,
    CoordinateManifold,
    Coordinates,
    Groups,
    Lorentz,
    OrthogonalGroup,
    Stiefel,
    SymmetricPositiveDefinite,
    columns,
    rotation_coordinates,
)
from givens.manifolds.pairs import pair_to_number, round_robin

GROUP = OrthogonalGroup()
KINDS = ["matching", "overlapping", "groups", "all"]

kinds = st.sampled_from(KINDS)


def count(d):
    return d * (d - 1) // 2


def some_block(kind, noise, batch, d):
    """A block of a kind, and times of the shape that it prescribes."""
    if kind == "matching":
        block = noise.matching(batch, d, 1 + int(noise.integers(d // 2)))
        return block, noise.normal(*block.index.shape)
    if kind == "overlapping":  # some numbers occur twice
        block = Coordinates(noise.integers(count(d), *batch, d), disjoint=False)
        return block, noise.normal(*batch, d)
    if kind == "groups":
        block = noise.groups(batch, d, 2 + int(noise.integers(d - 1)))
        n, r = block.axes.shape[-2:]
        return block, noise.skew(*batch, n, r, r)
    return All(), noise.normal(*batch, count(d))


def dense(block, t, d):
    """Σ t_i H_i, H_jl = (e_j e_lᵀ − e_l e_jᵀ)/√2: the matrices of the paper's equation (5), one by one."""
    pairs = list(combinations(range(d), 2))
    if isinstance(block, All):
        numbers, times = torch.arange(len(pairs)).expand(t.shape), t
    elif isinstance(block, Coordinates):
        numbers, times = block.index.expand(t.shape), t
    batch = t.shape[:-3] if isinstance(block, Groups) else t.shape[:-1]
    h = torch.zeros(*batch, d, d, dtype=torch.float64)
    for at in product(*map(range, batch)):
        if isinstance(block, Groups):
            terms = [
                (int(axes[a]), int(axes[b]), float(s[a, b]))
                for axes, s in zip(block.axes.expand(*batch, -1, -1)[at], t[at], strict=True)
                for a, b in combinations(range(len(axes)), 2)
            ]
        else:
            terms = [
                (*pairs[i], s)
                for i, s in zip(numbers[at].tolist(), times[at].tolist(), strict=True)
            ]
        for j, l, s in terms:
            h[(*at, j, l)] += s / math.sqrt(2)
            h[(*at, l, j)] -= s / math.sqrt(2)
    return h


def expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.double().numpy()))


def at_place(block, at):
    """The block of one point of a batch."""
    if isinstance(block, Coordinates):
        return Coordinates(block.index[at], block.disjoint)
    return Groups(block.axes[at]) if isinstance(block, Groups) else block


def submatrices(a, axes):
    """The rows and columns of each group."""
    n, r = axes.shape[-2:]
    place = (axes.unsqueeze(-1) * a.shape[-1] + axes.unsqueeze(-2)).flatten(-3)
    return a.flatten(-2).gather(-1, place).unflatten(-1, (n, r, r))


def tolerance(dtype, *sizes):
    return 40 * torch.finfo(dtype).eps * (1 + sum(float(size.abs().max()) for size in sizes))


# The basis


@given(batch_shapes, dims, noises)
def test_the_basis_is_orthonormal_and_spans_the_tangent_space(batch, d, noise: Noise):
    x = noise.point(*batch, d, d)
    assert GROUP.num_coordinates(x) == count(d)
    basis = GROUP.direction(x, torch.arange(count(d)))
    assert basis.shape == (*batch, count(d), d, d)
    gram = (basis.unsqueeze(-3) * basis.unsqueeze(-4)).sum((-2, -1))
    assert error(gram, torch.eye(count(d))) <= 1e-13
    u = noise.tangent(x)
    coefficients = (basis * u.unsqueeze(-3)).sum((-2, -1))
    assert error((coefficients[..., None, None] * basis).sum(-3), u) <= 1e-12


@given(batch_shapes, dims, dtypes, noises)
def test_a_direction_is_the_velocity_of_its_move(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d)
    index = noise.integers(count(d), *batch, 3)
    directions = GROUP.direction(x, index)
    assert (
        error(
            directions,
            x.unsqueeze(-3)
            @ torch.stack(
                [
                    dense(Coordinates(index[..., [i]], True), torch.ones(*batch, 1), d)
                    for i in range(3)
                ],
                -3,
            ),
        )
        <= 1e-15
    )
    for i in range(3):
        block = Coordinates(index[..., [i]], disjoint=True)
        _, velocity = torch.func.jvp(
            lambda t, block=block: GROUP.move(x, block, t),
            (torch.zeros(*batch, 1).double(),),
            (torch.ones(*batch, 1).double(),),
        )
        assert error(directions[..., i, :, :], velocity) <= 1e-14
    assert float(GROUP.step_scale(x, All())) == 1.0
    assert GROUP.direction(x.to(dtype), index).dtype == dtype


# Derivatives


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, noises)
def test_derivatives_are_those_of_the_cost_along_the_moves(kind, batch, d, noise: Noise):
    x = noise.point(*batch, d, d)
    target = noise.like(x)
    block, t = some_block(kind, noise, batch, d)

    def cost(x):
        return ((x @ target).sin() * target).sum((-2, -1))

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(y).sum(), y)
    derivatives = GROUP.derivatives(x, egrad, block)
    assert derivatives.shape == t.shape
    # Along Σ t_i η_i, all at once: linear in t.
    along = (derivatives * t).flatten(len(batch)).sum(-1) / (2 if kind == "groups" else 1)
    _, expected = torch.func.jvp(
        lambda s: cost(GROUP.move(x, block, s)), (torch.zeros_like(t),), (t,)
    )
    assert error(along, expected) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, dtypes, noises)
def test_derivatives_are_the_coefficients_of_the_projected_gradient(
    kind, batch, d, dtype, noise: Noise
):
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(kind, noise, batch, d)
    # ⟨P(∇f), x H⟩ is the coefficient of H in xᵀP(∇f), for H_jl: √2 times its entry (j, l).
    entries = math.sqrt(2) * x.double().mT @ GROUP.proju(x.double(), egrad.double())
    if kind == "groups":
        expected = submatrices(entries, block.axes)
    else:
        index = torch.arange(count(d)) if kind == "all" else block.index
        j, l = GROUP.axes(x, index.expand(t.shape)).unbind(-1)
        expected = entries.flatten(-2).gather(-1, j * d + l)
    limit = 4 * d * tolerance(dtype, egrad)
    for y, g in product(layouts(x), layouts(egrad)):
        derivatives = GROUP.derivatives(y, g, block)
        assert derivatives.dtype == dtype
        assert error(derivatives, expected) <= limit


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, noises, st.floats(-3, 3))
def test_derivatives_are_linear_in_the_gradient(kind, batch, d, noise: Noise, factor):
    x = noise.point(*batch, d, d)
    first, second = noise.like(x), noise.like(x)
    block, _ = some_block(kind, noise, batch, d)
    together = GROUP.derivatives(x, first + factor * second, block)
    apart = GROUP.derivatives(x, first, block) + factor * GROUP.derivatives(x, second, block)
    assert error(together, apart) <= 1e-12


@given(dims, dtypes, noises)
def test_derivatives_of_many_coordinates_come_in_panels(d, dtype, noise: Noise):
    x = noise.point(2, d, d, dtype=dtype)
    egrad = noise.like(x)
    block = Coordinates(noise.integers(count(d), 2, 11), disjoint=False)
    at_once = GROUP.derivatives(x, egrad, block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "CACHE", 3 * d)  # three columns, or some rows, at a time
        by_rows = GROUP.derivatives(x, egrad, block)
        by_columns = GROUP.derivatives(x.mT.clone().mT, egrad, block)
    assert error(by_rows, at_once) <= 4 * d * torch.finfo(dtype).eps * float(egrad.abs().max())
    assert error(by_columns, by_rows) <= 4 * d * torch.finfo(dtype).eps * float(egrad.abs().max())


# Moves


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, dtypes, noises, st.floats(-7, 0.7))
def test_a_move_is_the_dense_exponential(kind, batch, d, dtype, noise: Noise, power):
    x = noise.point(*batch, d, d, dtype=dtype)
    block, t = some_block(kind, noise, batch, d)
    t = 10**power * t.to(dtype)
    expected = x.double() @ expm(dense(block, t, d))
    limit = d * tolerance(dtype, t)
    for y in layouts(x):
        kept = y.clone()
        outside = GROUP.move(y, block, t)
        assert torch.equal(y, kept)
        assert GROUP.move_(y, block, t) is y
        assert y.dtype == dtype
        assert torch.equal(outside, y)
        assert error(y, expected) <= limit


@given(dims, noises, st.floats(0.01, 4))
def test_the_angle_is_t_over_root_2_and_not_t(d, noise: Noise, t):
    """The paper's equation (12) leaves the √2 out, which its own normalization (5) puts in."""
    x = noise.point(d, d)
    number = int(noise.integers(count(d), 1))
    j, l = list(combinations(range(d), 2))[number]
    time = torch.tensor([t], dtype=torch.float64)
    y = GROUP.move(x, Coordinates(torch.tensor([number]), disjoint=True), time)
    for angle, same in ((t / math.sqrt(2), True), (t, False)):
        turned = x[:, j] * math.cos(angle) - x[:, l] * math.sin(angle)
        assert (error(y[:, j], turned) <= 1e-6) is same
    # The time is the arc length.
    if t / math.sqrt(2) < 3:
        assert abs(float(GROUP.dist(x, y)) - t) <= 1e-9


@given(batch_shapes, dims, dtypes, noises)
def test_coordinates_of_a_disjoint_block_commute(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    block = noise.matching(batch, d)
    k = d // 2
    t = noise.normal(*batch, k, dtype=dtype)
    together = GROUP.move(x, block, t)
    for order in (range(k), reversed(range(k)), noise.permutations((), k).tolist()):
        y = x.clone()
        for i in order:
            GROUP.move_(y, Coordinates(block.index[..., [i]], disjoint=True), t[..., [i]])
        assert torch.equal(y, together)
    order = noise.permutations((), k)
    shuffled = Coordinates(block.index[..., order], disjoint=True)
    assert torch.equal(GROUP.move(x, shuffled, t[..., order]), together)


def test_coordinates_that_share_an_axis_do_not_commute():
    x = torch.eye(3, dtype=torch.float64)
    t = torch.ones(1, dtype=torch.float64)
    first, second = (Coordinates(torch.tensor([i]), disjoint=True) for i in (0, 1))
    one = GROUP.move(GROUP.move(x, first, t), second, t)
    other = GROUP.move(GROUP.move(x, second, t), first, t)
    assert error(one, other) > 0.1


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, dtypes, noises, st.floats(-2, 2), st.floats(-2, 2))
def test_a_move_is_a_one_parameter_group(kind, batch, d, dtype, noise: Noise, first, second):
    x = noise.point(*batch, d, d, dtype=dtype)
    block, t = some_block(kind, noise, batch, d)
    t = t.to(dtype)

    def moved(y, factor):
        return GROUP.move(y, block, factor * t)

    limit = d * tolerance(dtype, first * t, second * t)
    assert error(moved(moved(x, first), second), moved(x, first + second)) <= limit
    assert error(moved(moved(x, first), -first), x) <= limit
    assert torch.equal(moved(x, 0.0), x)


@given(batch_shapes, dims, dtypes, noises)
def test_groups_of_two_are_a_matching(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    groups = noise.groups(batch, d, 2)
    pairs = Coordinates(pair_to_number(*groups.axes.unbind(-1), d), disjoint=True)
    t = noise.normal(*batch, d // 2, dtype=dtype)
    skew = t[..., None, None] * torch.tensor([[0, 1], [-1, 0]], dtype=dtype)
    limit = d * tolerance(dtype, egrad, t)
    assert error(GROUP.move(x, groups, skew), GROUP.move(x, pairs, t)) <= limit
    of_groups = GROUP.derivatives(x, egrad, groups)
    assert error(of_groups[..., 0, 1], GROUP.derivatives(x, egrad, pairs)) <= limit
    assert torch.equal(of_groups, -of_groups.mT)


@given(batch_shapes, dims, dtypes, noises)
def test_one_group_of_all_axes_is_everything(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    whole = Groups(torch.arange(d).expand(*batch, 1, d))
    numbered = Coordinates(torch.arange(count(d)), disjoint=False)
    t = noise.normal(*batch, count(d), dtype=dtype)
    j, l = torch.triu_indices(d, d, offset=1)
    skew = torch.zeros(*batch, 1, d, d, dtype=dtype)
    skew[..., 0, j, l] = t
    skew = skew - skew.mT
    u = (t[..., None, None] * GROUP.direction(x, torch.arange(count(d)))).sum(-3)
    limit = d * tolerance(dtype, egrad, t)
    expected = GROUP.expmap(x, u)
    for block, times in ((All(), t), (whole, skew), (numbered, t)):
        assert error(GROUP.move(x, block, times), expected) <= limit
    derivatives = GROUP.derivatives(x, egrad, All())
    assert error(GROUP.derivatives(x, egrad, whole)[..., 0, j, l], derivatives) <= limit
    assert error(GROUP.derivatives(x, egrad, numbered), derivatives) <= limit
    # The step along every coordinate is the step along the Riemannian gradient.
    rgrad = GROUP.egrad2rgrad(x, egrad)
    assert error(GROUP.move(x, All(), derivatives), GROUP.expmap(x, rgrad)) <= d * limit


@given(dims, noises, dtypes)
def test_a_number_that_occurs_twice_adds(d, noise: Noise, dtype):
    x = noise.point(d, d, dtype=dtype)
    i = noise.integers(count(d), 1)
    twice = Coordinates(torch.cat([i, i]), disjoint=False)
    t = noise.normal(2, dtype=dtype)
    once = GROUP.move(x, Coordinates(i, disjoint=True), t.sum(-1, keepdim=True))
    assert error(GROUP.move(x, twice, t), once) <= tolerance(dtype, t)


@pytest.mark.parametrize("kind", KINDS)
@given(st.sampled_from([(1,), (3,), (2, 3)]), dims, dtypes, noises)
def test_a_batch_is_a_loop(kind, batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(kind, noise, batch, d)
    t = t.to(dtype)
    derivatives, moved = GROUP.derivatives(x, egrad, block), GROUP.move(x, block, t)
    limit = d * tolerance(dtype, t, egrad)
    for at in product(*map(range, batch)):
        own = at_place(block, at)
        assert error(derivatives[at], GROUP.derivatives(x[at], egrad[at], own)) <= limit
        assert error(moved[at], GROUP.move(x[at], own, t[at])) <= limit


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, dtypes, noises)
def test_one_block_serves_a_whole_batch(kind, batch, d, dtype, noise: Noise):
    """Without leading dimensions, or expanded without memory, a block goes for every point."""
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(kind, noise, (), d)
    t = t.to(dtype).expand(*batch, *t.shape)
    if isinstance(block, Groups):
        expanded = Groups(block.axes.expand(*batch, *block.axes.shape))
    elif isinstance(block, Coordinates):
        expanded = Coordinates(block.index.expand(*batch, *block.index.shape), block.disjoint)
    else:
        expanded = block
    assert torch.equal(GROUP.move(x, block, t), GROUP.move(x, expanded, t))
    assert torch.equal(GROUP.derivatives(x, egrad, block), GROUP.derivatives(x, egrad, expanded))


@pytest.mark.parametrize("kind", KINDS)
@given(dims, noises)
def test_float32_follows_float64(kind, d, noise: Noise):
    x = noise.point(2, d, d, dtype=torch.float32)
    egrad = noise.like(x)
    block, t = some_block(kind, noise, (2,), d)
    t = t.float()
    single, double = ((x.to(dtype), egrad.to(dtype), t.to(dtype)) for dtype in DTYPES)
    limit = d * tolerance(torch.float32, t, egrad)
    assert (
        error(GROUP.move(single[0], block, single[2]), GROUP.move(double[0], block, double[2]))
        <= limit
    )
    assert (
        error(GROUP.derivatives(*single[:2], block), GROUP.derivatives(*double[:2], block)) <= limit
    )


@given(dims, dtypes, noises, st.floats(-1e4, 1e4))
def test_large_angles(d, dtype, noise: Noise, angle):
    x = noise.point(d, d, dtype=dtype)
    block = noise.matching((), d)
    t = torch.full((d // 2,), math.sqrt(2) * angle, dtype=torch.float64)
    reduced = math.sqrt(2) * math.remainder(angle, 2 * math.pi)
    expected = x.double() @ expm(dense(block, torch.full_like(t, reduced), d))
    # Times are float64 here: in float32 an angle of 1e4 is known to 5e-4.
    assert error(GROUP.move(x, block, t), expected) <= 10 * torch.finfo(dtype).eps + 1e-11


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, dtypes, noises, st.floats(0, 2))
def test_descend_is_the_three_verbs(kind, batch, d, dtype, noise: Noise, lr):
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    block, _ = some_block(kind, noise, batch, d)
    expected = GROUP.move(x, block, -lr * GROUP.derivatives(x, egrad, block))
    y = x.clone()
    assert GROUP.descend_(y, egrad, block, lambda f, norm: -lr * f / norm) is y
    assert torch.equal(y, expected)


@given(dims, dtypes, noises)
def test_an_empty_block_does_nothing(d, dtype, noise: Noise):
    x = noise.point(2, d, d, dtype=dtype)
    nothing = torch.empty(2, 0, dtype=torch.int64)
    for block, t in (
        (Coordinates(nothing, disjoint=True), torch.empty(2, 0, dtype=dtype)),
        (Coordinates(nothing, disjoint=False), torch.empty(2, 0, dtype=dtype)),
        (Groups(torch.empty(2, 0, 3, dtype=torch.int64)), torch.empty(2, 0, 3, 3, dtype=dtype)),
    ):
        assert torch.equal(GROUP.move(x, block, t), x)
        assert GROUP.derivatives(x, noise.like(x), block).shape == t.shape


def test_an_empty_batch():
    x = torch.empty(0, 4, 4)
    noise = Noise(0)
    for kind in KINDS:
        block, t = some_block(kind, noise, (0,), 4)
        assert GROUP.move(x, block, t.float()).shape == x.shape
        assert GROUP.derivatives(x, x, block).shape == t.shape


def test_a_single_axis_in_a_group_has_no_coordinate():
    x = Noise(0).point(4, 4)
    block = Groups(torch.tensor([[2], [0]]))
    assert torch.equal(GROUP.derivatives(x, x @ x, block), torch.zeros(2, 1, 1).double())
    assert torch.equal(GROUP.move(x, block, torch.zeros(2, 1, 1).double()), x)


@given(batch_shapes, st.integers(3, 12), dtypes, noises, st.integers(1, 40), st.data())
def test_panels_change_groups_by_rounding_only(batch, d, dtype, noise: Noise, size, data):
    """A pass in panels of rows, or of groups where columns lie together, is one pass."""
    r = data.draw(st.integers(3, d))
    x = noise.point(*batch, d, d, dtype=dtype)
    g, block = noise.like(x), noise.groups(batch, d, r)
    t = GROUP.derivatives(x, g, block)
    moved = GROUP.move(x, block, t)
    for layout in layouts(x):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(columns, "CACHE", size)
            slopes = GROUP.derivatives(layout, g, block)
            assert error(slopes, t) <= d * tolerance(dtype, g)
            assert error(GROUP.move_(layout, block, t), moved) <= 4 * tolerance(dtype, x)


# The steepest


def brute_force(x, egrad, k):
    derivatives = GROUP.derivatives(x, egrad, All())
    return derivatives.abs().sort(-1, descending=True).values[..., :k]


@pytest.mark.parametrize("panel", [1, 7, 40, rotation_coordinates.PANEL])
@given(batch_shapes, st.integers(2, 14), dtypes, noises, st.data())
def test_steepest_are_the_largest_derivatives(panel, batch, d, dtype, noise: Noise, data):
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    k = data.draw(st.integers(1, count(d)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotation_coordinates, "PANEL", panel)
        index, derivatives = GROUP.steepest(x, egrad, k)
    assert index.shape == derivatives.shape == (*batch, k)
    assert derivatives.dtype == dtype
    limit = d * tolerance(dtype, egrad)
    assert error(derivatives.abs(), brute_force(x, egrad, k)) <= limit
    # The numbers are those of the derivatives, no number twice.
    block = Coordinates(index, disjoint=False)
    assert error(derivatives, GROUP.derivatives(x, egrad, block)) <= limit
    numbers = index.sort(-1).values
    assert (numbers[..., 1:] > numbers[..., :-1]).all()


@pytest.mark.parametrize("panel", [1, 40, rotation_coordinates.PANEL])
@given(st.integers(2, 9), dtypes, noises)
def test_what_is_not_a_number_counts_as_the_largest(panel, d, dtype, noise: Noise):
    x = noise.point(d, d, dtype=dtype)
    egrad = noise.like(x)
    column = int(noise.integers(d, 1))
    egrad[0, column] = torch.nan
    for k in {1, min(3, count(d)), count(d)}:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rotation_coordinates, "PANEL", panel)
            index, derivatives = GROUP.steepest(x, egrad, k)
        first = min(k, d - 1)  # the coordinates that turn the column
        assert derivatives[:first].isnan().all()
        assert (GROUP.axes(x, index[:first]) == column).any(-1).all()
        assert derivatives[first:].isfinite().all()


@given(batch_shapes, dims, noises)
def test_the_general_rule_finds_the_same(batch, d, noise: Noise):
    x = noise.point(*batch, d, d)
    egrad = noise.like(x)
    k = 1 + int(noise.integers(count(d), 1))
    general = CoordinateManifold.steepest(GROUP, x, egrad, k)
    fast = GROUP.steepest(x, egrad, k)
    assert torch.equal(general[0], fast[0])
    assert error(general[1], fast[1]) <= 1e-12


@given(batch_shapes, st.integers(2, 14), dtypes, noises, st.data())
def test_candidates_in_the_type_of_the_points_are_the_steepest(batch, d, dtype, noise, data):
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    k = data.draw(st.integers(1, count(d)))
    assert torch.equal(GROUP.candidates(x, egrad, k, dtype), GROUP.steepest(x, egrad, k)[0])


@given(batch_shapes, st.integers(2, 30), dtypes, noises, st.data())
def test_candidates_are_steep_up_to_the_rounding_of_their_type(batch, d, dtype, noise, data):
    """Each is as steep as the one in its place should be, less what bfloat16 rounds: 8 bits of 2d terms."""
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    k = data.draw(st.integers(1, count(d)))
    index = GROUP.candidates(x, egrad, k, torch.bfloat16)
    assert index.shape == (*batch, k)
    assert (index.sort(-1).values.diff(dim=-1) > 0).all()
    slopes = GROUP.derivatives(x, egrad, Coordinates(index, disjoint=False)).abs()
    terms = (x.abs().mT @ egrad.abs()).amax((-2, -1)).unsqueeze(-1)
    least = brute_force(x, egrad, k)[..., -1:] - 2**-5 * terms
    assert (slopes >= least).all()


@given(batch_shapes, dims, dtypes, noises)
def test_coupling_is_the_size_of_the_derivative_of_every_pair(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    weight = GROUP.coupling(x, egrad)
    assert weight.dtype == dtype
    assert torch.equal(weight, weight.mT)
    limit = d * tolerance(dtype, egrad)
    general = CoordinateManifold.coupling(GROUP, x, egrad)
    diagonal = weight.diagonal(dim1=-2, dim2=-1)
    assert error(weight, general + torch.diag_embed(diagonal)) <= limit
    j, l = GROUP.axes(x, torch.arange(count(d))).unbind(-1)
    derivatives = GROUP.derivatives(x, egrad, All())
    assert error(weight[..., j, l], derivatives.abs()) <= limit
    rough = GROUP.coupling(x, egrad, dtype=torch.bfloat16)
    assert rough.dtype == dtype
    assert error(rough, weight) <= 2**-5 * float((x.abs().mT @ egrad.abs()).max())


@pytest.mark.parametrize("manifold", [Lorentz(), SymmetricPositiveDefinite()])
def test_a_geometry_without_such_products_says_so(manifold):
    x = manifold.random(4, 4).as_subclass(Tensor)
    with pytest.raises(NotImplementedError, match=r"leave out dtype=torch\.bfloat16"):
        manifold.candidates(x, x, 1, torch.bfloat16)
    with pytest.raises(NotImplementedError, match=r"leave out dtype=torch\.bfloat16"):
        manifold.coupling(x, x, dtype=torch.bfloat16)


# Staying on the manifold, and off the host


@pytest.mark.parametrize("angle", [0.001, 0.1, 0.7, 3.0])
def test_2000_moves_in_float32_stay_on_the_group(angle):
    """Restored once every coordinate has had its turn, on average."""
    d = 32
    noise = Noise(0)
    x = noise.point(d, d, dtype=torch.float32)
    t = torch.full((d // 2,), math.sqrt(2) * angle)
    worst = 0.0
    for step in range(1, 2001):
        GROUP.move_(x, noise.matching((), d), t)
        if step % (d - 1) == 0:
            worst = max(worst, defect(x))
            GROUP.restore_(x)
    assert worst <= 1e-6
    assert defect(x) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["matching", "one", "groups"])
def test_a_move_never_waits_for_the_device(kind, dtype):
    """A meta tensor has no data, so whatever reads any raises."""
    x = torch.empty(3, 64, 64, device="meta", dtype=dtype)
    if kind == "groups":
        block = Groups(torch.empty(3, 4, 16, device="meta", dtype=torch.int64))
        shape = (3, 4, 16, 16)
    else:
        k = 32 if kind == "matching" else 1
        block = Coordinates(
            torch.empty(3, k, device="meta", dtype=torch.int64), disjoint=kind == "matching"
        )
        shape = (3, k)
    t = GROUP.derivatives(x, torch.empty_like(x), block)
    assert (t.shape, t.dtype, t.device) == (shape, dtype, x.device)
    assert GROUP.move_(x, block, t) is x
    assert GROUP.descend_(x, torch.empty_like(x), block, lambda f, norm: -f / norm) is x
    index, derivatives = GROUP.steepest(x, torch.empty_like(x), 5)
    assert index.shape == derivatives.shape == (3, 5)
    assert GROUP.candidates(x, torch.empty_like(x), 5, torch.bfloat16).shape == (3, 5)
    assert GROUP.coupling(x, torch.empty_like(x), dtype=torch.bfloat16).shape == (3, 64, 64)
    assert GROUP.restore_(x) is x
    assert GROUP.axes(x, index).device == x.device


def flops(call, *args):
    """Floating-point operations in matrix products."""
    with FlopCounterMode(display=False) as counter:
        call(*args)
    return counter.get_total_flops()


@pytest.mark.parametrize("d", [16, 64])
def test_costs_are_what_the_documentation_says(d):
    noise = Noise(0)
    x = noise.point(d, d)
    egrad = noise.like(x)
    pairs = noise.matching((), d)
    assert flops(GROUP.derivatives, x, egrad, pairs) == 0  # no matrix product at all
    assert flops(GROUP.move_, x, pairs, torch.ones(d // 2)) == 0
    r = 8
    groups = noise.groups((), d, r)
    assert flops(GROUP.derivatives, x, egrad, groups) == 2 * r * d**2
    small = 1e-9 * noise.skew(d // r, r, r)  # whose exponential is one product of r×r matrices
    assert flops(GROUP.move_, x, groups, small) == 2 * r * d**2 + 2 * r**2 * d
    assert flops(GROUP.derivatives, x, egrad, All()) == 2 * d**3
    assert flops(GROUP.restore_, x) == 4 * d**3


# Bad input: an error of the right kind, and the point as it was


def refused(error_type, match, x, call):
    kept = x.clone()
    with pytest.raises(error_type, match=match):
        call()
    assert torch.equal(x, kept)


def pairs(*numbers, disjoint=True, dtype=torch.int64):
    return Coordinates(torch.tensor(numbers, dtype=dtype), disjoint)


BAD_BLOCKS = {
    "number too large": (IndexError, "coordinate 10 does not exist.*has 10", pairs(3, 10)),
    "number negative": (IndexError, "coordinate -1 does not exist", pairs(-1)),
    "number too large, overlapping": (IndexError, "coordinate 99", pairs(0, 99, disjoint=False)),
    "axis too large": (IndexError, "axis 5 does not exist.*has 5", Groups(torch.tensor([[0, 5]]))),
    "axis negative": (IndexError, "axis -2 does not exist", Groups(torch.tensor([[-2, 1]]))),
    "numbers of 32 bits": (TypeError, "int32.*expected torch.int64", pairs(0, dtype=torch.int32)),
    "axes that are no integers": (TypeError, "float32", Groups(torch.tensor([[0.0, 1.0]]))),
    "common axis": (ValueError, "axis 0 is in two places.*disjoint=False", pairs(0, 1)),
    "number twice": (ValueError, "axis 0 is in two places", pairs(0, 0)),
    "common axis in one of a batch": (
        ValueError,
        "axis 4 is in two places",
        Coordinates(torch.tensor([[0, 9], [3, 9]]), disjoint=True),
    ),
    "groups that overlap": (
        ValueError,
        "axis 1 is in two places",
        Groups(torch.tensor([[0, 1], [1, 2]])),
    ),
    "axis twice in a group": (ValueError, "must ascend", Groups(torch.tensor([[2, 2]]))),
    "group out of order": (ValueError, "must ascend", Groups(torch.tensor([[2, 1, 3]]))),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_blocks_that_cannot_be(name):
    error_type, match, block = BAD_BLOCKS[name]
    noise = Noise(0)
    given_ = block.index if isinstance(block, Coordinates) else block.axes
    batch = given_.shape[: -1 if isinstance(block, Coordinates) else -2]
    x = noise.point(*batch, 5, 5)
    shape = given_.shape if isinstance(block, Coordinates) else (*given_.shape, given_.shape[-1])
    t = torch.zeros(shape, dtype=torch.float64)
    refused(error_type, match, x, lambda: GROUP.move_(x, block, t))
    refused(error_type, match, x, lambda: GROUP.move(x, block, t))
    refused(error_type, match, x, lambda: GROUP.derivatives(x, x, block))
    refused(error_type, match, x, lambda: GROUP.descend_(x, x, block, lambda f, norm: f))


@pytest.mark.parametrize("block", [pairs(0, 9), Groups(torch.tensor([[0, 1]])), All()])
def test_gradients_that_cannot_be(block):
    x = Noise(0).point(5, 5)
    for egrad in (x.float(), x.long(), x[:, :4], torch.zeros(2, 5, 5).double()):
        for call in (
            lambda egrad=egrad: GROUP.derivatives(x, egrad, block),
            lambda egrad=egrad: GROUP.descend_(x, egrad, block, lambda f, norm: f),
            lambda egrad=egrad: GROUP.steepest(x, egrad, 1),
        ):
            refused(TypeError, "egrad is .* of shape .*expected those of x", x, call)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
@pytest.mark.parametrize("block", [pairs(0, 9), Groups(torch.tensor([[0, 1]])), All()])
def test_points_of_a_dtype_that_cannot_be(block, dtype):
    x = torch.eye(5).to(dtype)
    t = GROUP.derivatives(torch.eye(5), torch.eye(5), block)
    refused(TypeError, "float32 and float64", x, lambda: GROUP.move_(x, block, t))
    refused(TypeError, "float32 and float64", x, lambda: GROUP.derivatives(x, x, block))
    refused(TypeError, "float32 and float64", x, lambda: GROUP.steepest(x, x, 1))


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (pairs(0, 9), (3,)),
        (pairs(0, 9, disjoint=False), (3,)),
        (Groups(torch.tensor([[0, 1]])), (1, 3, 3)),
        (All(), (9,)),
        (pairs(0, 9), (4, 2)),
    ],
)
def test_times_of_another_shape(block, shape):
    x = Noise(0).point(5, 5)
    match = "times have shape .*expected one that broadcasts to"
    refused(ValueError, match, x, lambda: GROUP.move_(x, block, torch.ones(shape).double()))


def test_every_pair_of_a_tournament_is_a_block():
    """Rounds of disjoint pairs that together are all coordinates: a sweep."""
    x = Noise(0).point(6, 6)
    seen: list[Tensor] = []
    for games in round_robin(6):
        block = Coordinates(pair_to_number(*games.unbind(-1), 6), disjoint=True)
        GROUP.move_(x, block, torch.ones(3).double())
        seen.append(block.index)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(15))


@pytest.mark.parametrize("disjoint", [True, False])
def test_times_are_no_integers(disjoint):
    x = Noise(0).point(5, 5)
    block = pairs(0, 9, disjoint=disjoint)
    refused(TypeError, "times are torch.int64", x, lambda: GROUP.move_(x, block, block.index))


def test_a_matrix_that_is_not_square_is_refused():
    x = Noise(0).normal(3, 5)
    refused(ValueError, r"\(3, 5\)", x, lambda: GROUP.move_(x, pairs(0), torch.ones(1)))
    refused(ValueError, r"\(3, 5\)", x, lambda: GROUP.derivatives(x, x, pairs(0)))


@pytest.mark.parametrize("k", [0, 11])
def test_there_are_no_more_steepest_than_coordinates(k):
    x = Noise(0).point(5, 5)
    refused(ValueError, f"k={k}.*10 coordinates", x, lambda: GROUP.steepest(x, x, k))


@given(noises)
def test_a_block_whose_numbers_are_overwritten_is_looked_at_again(noise: Noise):
    """What is known of a block's numbers belongs to them, not to the block."""
    group, d = OrthogonalGroup(), 6
    x = noise.point(d, d)
    g = noise.like(x)
    block = Coordinates(torch.tensor([0]), disjoint=True)
    group.derivatives(x, g, block)
    block.index.fill_(7)
    expected = Coordinates(torch.tensor([7]), disjoint=True)
    assert torch.equal(group.derivatives(x, g, block), group.derivatives(x, g, expected))
    t = torch.tensor([0.3])
    assert torch.equal(group.move(x, block, t), group.move(x, expected, t))
    block.index.fill_(15)
    with pytest.raises(IndexError, match="coordinate 15 does not exist"):
        group.move(x, block, t)


@given(noises, st.sampled_from([(4, 4), (5, 3)]))
def test_one_matrix_moves_as_a_batch_of_one(noise: Noise, shape):
    """In every memory layout, to the bit: one matrix takes its columns by another way."""
    manifold = OrthogonalGroup() if shape[0] == shape[1] else Stiefel()
    x = noise.point(shape[0], shape[0])[:, : shape[1]]
    pairs = pair_to_number(*round_robin(shape[0])[0].unbind(-1), shape[0])
    block, t = Coordinates(pairs, disjoint=True), noise.normal(len(pairs))
    g = noise.like(x)
    for y in layouts(x):
        batch = torch.stack([y, y])
        for layout in layouts(batch):
            moved = manifold.move(layout, block, t)
            assert torch.equal(moved[0], manifold.move(y, block, t))
            slopes = manifold.derivatives(layout, torch.stack([g, g]), block)
            assert error(slopes[0], manifold.derivatives(y, g, block)) <= 1e-14
