"""The unitary and the special unitary group: coordinates, maps, checks."""

import math
from itertools import combinations, pairwise, product

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, layouts, noises
from torch import Tensor

from givens.manifolds import (
    All,
    Coordinates,
    Groups,
    OrthogonalGroup,
    SpecialUnitaryGroup,
    UnitaryGroup,
    unitary,
)
from givens.manifolds.exponential import expm1
from givens.manifolds.logarithm import logarithm
from givens.manifolds.pairs import pair_to_number, round_robin
from givens.manifolds.retractions import RETRACTIONS

U, SU = UnitaryGroup(), SpecialUnitaryGroup()
DTYPES = [torch.complex64, torch.complex128]
KINDS = ["disjoint", "overlapping", "groups", "all"]

every_group = pytest.mark.parametrize("group", [U, SU], ids=["U", "SU"])
every_kind = pytest.mark.parametrize("kind", KINDS)
dtypes = st.sampled_from(DTYPES)
dims = st.integers(2, 6)


def eps(dtype):
    return torch.finfo(dtype).eps


def error(x, y):
    """Largest difference of two tensors, computed in complex128."""
    difference = (x.to(torch.complex128) - y.to(torch.complex128)).abs()
    return float(difference.max()) if difference.numel() else 0.0


def defect(group, x):
    """Distance from the group: max |xᴴx − I|, and |det x − 1|."""
    x = x.detach().to(torch.complex128)
    unitary = error(x.mH @ x, torch.eye(x.shape[-1]))
    return max(unitary, error(torch.linalg.det(x), torch.ones(()))) if group is SU else unitary


def tolerance(dtype, *sizes):
    return 40 * eps(dtype) * (1 + sum(float(size.abs().max()) for size in sizes))


def point(group, noise: Noise, *shape, dtype=torch.complex128):
    return group.random(*shape, dtype=dtype, generator=noise.generator).as_subclass(Tensor)


def algebra(group, noise: Noise, *shape, dtype=torch.complex128):
    """A matrix of the Lie algebra."""
    a = noise.normal(*shape, dtype=dtype)
    a = a - a.mH
    if group is SU:
        trace = a.diagonal(dim1=-2, dim2=-1).mean(-1)
        a = a - trace[..., None, None] * torch.eye(shape[-1])
    return a.to(dtype)


def tangent(group, noise: Noise, x):
    return x @ algebra(group, noise, *x.shape, dtype=x.dtype)


def inner(u, v):
    return (u.real * v.real + u.imag * v.imag).sum((-2, -1))


def expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.to(torch.complex128).numpy()))


def generators(group, d):
    """The matrices H_i, entry by entry, and the columns that each turns."""
    pairs = list(combinations(range(d), 2))
    found, axes = [], []

    def add(entries, turned):
        h = torch.zeros(d, d, dtype=torch.complex128)
        for (j, l), value in entries.items():
            h[j, l] = value
        found.append(h)
        axes.append(turned)

    root = math.sqrt(2)
    for j, l in pairs:
        add({(j, l): 1 / root, (l, j): -1 / root}, (j, l))
    for j, l in pairs:
        add({(j, l): 1j / root, (l, j): 1j / root}, (j, l))
    if group is U:
        for j in range(d):
            add({(j, j): 1j}, (j, j))
    else:
        for j, l in pairs:
            add({(j, j): 1j / math.sqrt(d), (l, l): -1j / math.sqrt(d)}, (j, l))
    return torch.stack(found), torch.tensor(axes)


def disjoint(group, noise: Noise, batch, d):
    """Disjoint coordinates of every kind, chosen one after the other from a random order."""
    _, axes = generators(group, d)
    k = d // 2
    chosen = []
    for order in noise.permutations((math.prod(batch),), len(axes)).tolist():
        free, own = set(range(d)), []
        for i in order:
            turned = set(axes[i].tolist())
            if len(own) < k and turned <= free:
                free -= turned
                own.append(i)
        chosen.append(own)
    index = torch.tensor(chosen, dtype=torch.int64).reshape(*batch, k)
    return Coordinates(index, disjoint=True)


def some_block(group, kind, noise: Noise, batch, d):
    """A block of a kind, and times of the shape that it prescribes."""
    total = len(generators(group, d)[0])
    if kind == "disjoint":
        block = disjoint(group, noise, batch, d)
        return block, noise.normal(*block.index.shape)
    if kind == "overlapping":  # some numbers occur twice
        block = Coordinates(noise.integers(total, *batch, d + 1), disjoint=False)
        return block, noise.normal(*batch, d + 1)
    if kind == "groups":
        block = noise.groups(batch, d, 2 + int(noise.integers(d - 1)))
        n, r = block.axes.shape[-2:]
        return block, algebra(group, noise, *batch, n, r, r)
    return All(), noise.normal(*batch, total)


def dense(group, block, t, d):
    """Σ t_i H_i; for groups T/√2 in its rows and columns."""
    h, _ = generators(group, d)
    if isinstance(block, All):
        return torch.einsum("...i,iab->...ab", t.to(h.dtype), h)
    if isinstance(block, Coordinates):
        return torch.einsum("...k,...kab->...ab", t.to(h.dtype), h[block.index])
    batch = t.shape[:-3]
    a = torch.zeros(*batch, d, d, dtype=torch.complex128)
    for at in product(*map(range, batch)):
        for axes, own in zip(block.axes[at], t[at], strict=True):
            a[at][axes[:, None], axes] = own.to(a.dtype) / math.sqrt(2)
    return a


def at_place(block, at):
    """The block of one point of a batch."""
    if isinstance(block, Coordinates):
        return Coordinates(block.index[at], block.disjoint)
    return Groups(block.axes[at]) if isinstance(block, Groups) else block


def real_dtype(t, dtype):
    return t.to(dtype if t.is_complex() else dtype.to_real())


# Frames


@every_group
@given(dims, noises)
def test_directions_and_axes_are_those_of_the_list_of_generators(group, d, noise: Noise):
    x = point(group, noise, 2, d, d)
    h, axes = generators(group, d)
    assert group.num_coordinates(x) == len(h)
    assert group.num_axes(x) == d
    index = torch.arange(len(h))
    assert torch.equal(group.axes(x, index), axes)
    assert error(group.direction(x, index), x.unsqueeze(-3) @ h) <= 1e-15
    own = noise.integers(len(h), 2, 3)
    assert error(group.direction(x, own), x.unsqueeze(-3) @ h[own]) <= 1e-15
    assert group.direction(x.to(torch.complex64), own).dtype == torch.complex64


@every_group
@given(dims, noises)
def test_directions_are_a_parseval_frame_of_the_tangent_space(group, d, noise: Noise):
    x = point(group, noise, d, d)
    f = group.direction(x, torch.arange(group.num_coordinates(x)))
    u = tangent(group, noise, x)
    coefficients = inner(f, u)
    assert error((coefficients[:, None, None] * f).sum(0), u) <= 1e-12
    assert abs(float(coefficients.square().sum() / inner(u, u)) - 1) <= 1e-13
    assert group.frame_bounds == (1, 1)
    assert float(group.step_scale(x, All())) == 1.0
    gram = inner(f.unsqueeze(0), f.unsqueeze(1))
    rank = int(torch.linalg.matrix_rank(gram))
    if group is U:  # a basis
        assert rank == len(f) == d * d
        assert error(gram, torch.eye(d * d)) <= 1e-14
    else:
        assert rank == d * d - 1
        rotations = d * (d - 1)
        assert error(gram[:rotations, :rotations], torch.eye(rotations)) <= 1e-14
        assert error(gram[rotations:, :rotations], torch.zeros(())) <= 1e-15
        assert (gram.diagonal()[rotations:] - 2 / d).abs().max() <= 1e-14


def test_one_by_one_unitary_matrices_are_phases():
    x = U.origin(1, 1, dtype=torch.complex128).as_subclass(Tensor)
    assert (U.num_axes(x), U.num_coordinates(x)) == (1, 1)
    one = Coordinates(torch.tensor([0]), disjoint=True)
    assert U.axes(x, one.index).tolist() == [[0, 0]]
    t = torch.tensor([2.5]).double()
    expected = torch.exp(1j * t)[:, None]
    for block in (one, All(), Coordinates(one.index, disjoint=False)):
        assert error(U.move(x, block, t), expected) <= 1e-15
    egrad = torch.tensor([[3 + 4j]], dtype=x.dtype)
    index, derivatives = U.steepest(x, egrad, 1)
    assert (index.tolist(), derivatives.tolist()) == ([0], [4.0])
    assert U.derivatives(x, egrad, All()).tolist() == [4.0]
    assert abs(float(U.dist(x, expected)) - 2.5) <= 1e-15


# Derivatives


@every_group
@every_kind
@settings(max_examples=15)
@given(batch_shapes, dims, noises)
def test_derivatives_are_those_of_the_cost_along_the_moves(group, kind, batch, d, noise: Noise):
    """By forward differentiation through the move, and torch's convention for complex gradients."""
    x = point(group, noise, *batch, d, d)
    target = noise.like(x)
    block, t = some_block(group, kind, noise, batch, d)

    def cost(x):
        return ((x @ target).sin() * target).real.sum((-2, -1))

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(y).sum(), y)
    derivatives = group.derivatives(x, egrad, block)
    assert derivatives.shape == t.shape
    assert derivatives.is_complex() == (kind == "groups")
    # Along Σ t_i f_i, all at once: in a group every coordinate is in two entries, or √2 in one.
    along = (derivatives.conj() * t).real.flatten(len(batch)).sum(-1)
    along = along / (2 if kind == "groups" else 1)
    _, expected = torch.func.jvp(
        lambda s: cost(group.move(x, block, s)), (torch.zeros_like(t),), (t,)
    )
    assert error(along, expected) <= 1e-10


def test_the_gradient_is_torchs():
    """Of a real function: ∂f/∂Re + i ∂f/∂Im, so that df = Re⟨grad, dW⟩."""
    noise = Noise(0)
    x, dx, a = (noise.normal(3, 3, dtype=torch.complex128) for _ in range(3))

    def cost(x):
        return (a.conj() * x**2).real.sum()

    egrad = torch.func.grad(cost)(x)
    h = 1e-5
    difference = (cost(x + h * dx) - cost(x - h * dx)) / (2 * h)
    assert abs(float(difference) - float(inner(egrad, dx))) <= 1e-8


@every_group
@every_kind
@given(batch_shapes, dims, dtypes, noises)
def test_derivatives_are_inner_products_with_the_directions(
    group, kind, batch, d, dtype, noise: Noise
):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(group, kind, noise, batch, d)
    a = x.to(torch.complex128).mH @ egrad.to(torch.complex128)
    h, _ = generators(group, d)
    if kind == "groups":
        expected = torch.stack(
            [
                torch.stack([a[at][axes[:, None], axes] for axes in block.axes[at]])
                for at in product(*map(range, batch))
            ]
        ).reshape(t.shape)
        expected = (expected - expected.mH) / math.sqrt(2)
        if group is SU:
            trace = expected.diagonal(dim1=-2, dim2=-1).mean(-1)
            expected = expected - trace[..., None, None] * torch.eye(t.shape[-1])
    else:
        expected = inner(h, a.unsqueeze(-3))
        if kind != "all":
            expected = expected.gather(-1, block.index)
    limit = 4 * d * tolerance(dtype, egrad)
    for y, g in product(layouts(x), layouts(egrad)):
        derivatives = group.derivatives(y, g, block)
        assert derivatives.dtype == (dtype if kind == "groups" else dtype.to_real())
        assert error(derivatives, expected) <= limit


@every_group
@given(dims, dtypes, noises)
def test_derivatives_of_many_coordinates_come_in_panels(group, d, dtype, noise: Noise):
    x = point(group, noise, 2, d, d, dtype=dtype)
    egrad = noise.like(x)
    index = noise.integers(group.num_coordinates(x), 2, 11)
    block = Coordinates(index, disjoint=False)
    at_once = group.derivatives(x, egrad, block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unitary, "PANEL", 3 * d)  # three columns at a time
        assert error(group.derivatives(x, egrad, block), at_once) <= tolerance(dtype, egrad)


@every_group
@pytest.mark.parametrize("panel", [1, 7, 40, unitary.PANEL])
@given(batch_shapes, st.integers(2, 10), dtypes, noises, st.data())
def test_steepest_are_the_largest_derivatives(group, panel, batch, d, dtype, noise: Noise, data):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    k = data.draw(st.integers(1, group.num_coordinates(x)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unitary, "PANEL", panel)
        index, derivatives = group.steepest(x, egrad, k)
    assert index.shape == derivatives.shape == (*batch, k)
    assert derivatives.dtype == dtype.to_real()
    limit = d * tolerance(dtype, egrad)
    largest = group.derivatives(x, egrad, All()).abs().sort(-1, descending=True).values[..., :k]
    assert error(derivatives.abs(), largest) <= limit
    # The numbers are those of the derivatives, no number twice.
    block = Coordinates(index, disjoint=False)
    assert error(derivatives, group.derivatives(x, egrad, block)) <= limit
    numbers = index.sort(-1).values
    assert (numbers[..., 1:] > numbers[..., :-1]).all()


@every_group
@pytest.mark.parametrize("panel", [1, unitary.PANEL])
def test_what_is_not_a_number_counts_as_the_largest(group, panel, monkeypatch):
    monkeypatch.setattr(unitary, "PANEL", panel)
    noise = Noise(0)
    x = point(group, noise, 5, 5)
    egrad = noise.like(x)
    egrad[1, 3] = torch.nan
    for k in (1, 3, group.num_coordinates(x)):
        index, derivatives = group.steepest(x, egrad, k)
        first = min(k, 9)
        assert derivatives[:first].isnan().all()
        assert (group.axes(x, index[:first]) == 3).any(-1).all()


# Moves


@every_group
@every_kind
@given(batch_shapes, dims, dtypes, noises, st.floats(-7, 0.7))
def test_a_move_is_the_dense_exponential(group, kind, batch, d, dtype, noise: Noise, power):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    block, t = some_block(group, kind, noise, batch, d)
    t = real_dtype(10**power * t, dtype)
    expected = x.to(torch.complex128) @ expm(dense(group, block, t, d))
    limit = d * tolerance(dtype, t)
    for y in layouts(x):
        kept = y.clone()
        outside = group.move(y, block, t)
        assert torch.equal(y, kept)
        assert group.move_(y, block, t) is y
        assert y.dtype == dtype
        assert torch.equal(outside, y)
        assert error(y, expected) <= limit


@every_group
@given(dims, noises, st.floats(-1e3, 1e3))
def test_every_single_coordinate_is_its_exponential(group, d, noise: Noise, t):
    x = point(group, noise, d, d)
    h, _ = generators(group, d)
    values, vectors = np.linalg.eigh(-1j * h.numpy())
    for i in range(len(h)):
        phases = np.exp(1j * t * values[i])
        expected = x @ torch.from_numpy((vectors[i] * phases) @ vectors[i].conj().T)
        block = Coordinates(torch.tensor([i]), disjoint=True)
        y = group.move(x, block, torch.tensor([t], dtype=torch.float64))
        assert error(y, expected) <= 1e-14 + 1e-15 * abs(t)


@every_group
@given(dims, dtypes, noises)
def test_a_direction_is_the_velocity_of_its_move(group, d, dtype, noise: Noise):
    x = point(group, noise, d, d)
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    for i in noise.integers(group.num_coordinates(x), 3).tolist():
        block = Coordinates(torch.tensor([i]), disjoint=True)
        _, velocity = torch.func.jvp(lambda t, b=block: group.move(x, b, t), (zero,), (one,))
        assert error(group.direction(x, block.index)[0], velocity) <= 1e-14


@every_group
@every_kind
@given(batch_shapes, dims, dtypes, noises, st.floats(-2, 2), st.floats(-2, 2))
def test_a_move_is_a_one_parameter_group(group, kind, batch, d, dtype, noise: Noise, first, second):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    block, t = some_block(group, kind, noise, batch, d)
    t = real_dtype(t, dtype)

    def moved(y, factor):
        return group.move(y, block, factor * t)

    limit = d * tolerance(dtype, first * t, second * t)
    assert error(moved(moved(x, first), second), moved(x, first + second)) <= limit
    assert error(moved(moved(x, first), -first), x) <= limit
    assert torch.equal(moved(x, 0.0), x)
    assert defect(group, moved(x, first)) <= limit


@every_group
@given(batch_shapes, dims, dtypes, noises)
def test_coordinates_of_a_disjoint_block_commute(group, batch, d, dtype, noise: Noise):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    block = disjoint(group, noise, batch, d)
    k = d // 2
    t = noise.normal(*batch, k, dtype=dtype.to_real())
    together = group.move(x, block, t)
    for order in (range(k), noise.permutations((), k).tolist()):
        y = x.clone()
        for i in order:
            group.move_(y, Coordinates(block.index[..., [i]], disjoint=True), t[..., [i]])
        assert torch.equal(y, together)


@every_group
@given(dims, dtypes, noises)
def test_other_columns_stay_bit_for_bit(group, d, dtype, noise: Noise):
    x = point(group, noise, d, d, dtype=dtype)
    index = noise.integers(group.num_coordinates(x), 1)
    y = group.move(x, Coordinates(index, disjoint=True), noise.uniform(1, low=0.5))
    turned = set(group.axes(x, index).flatten().tolist())
    for column in range(d):
        assert torch.equal(y[:, column], x[:, column]) == (column not in turned)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quarters", range(-5, 6))
def test_quarter_turns_are_exact(quarters, dtype):
    x = point(U, Noise(0), 3, 3, dtype=dtype)
    a, b = x[:, 0], x[:, 1]
    turns = {0: lambda a, b: (-b, a), 3: lambda a, b: (1j * b, 1j * a), 6: lambda a, b: (1j * a, b)}
    for number, turn in turns.items():
        first, second = a, b
        for _ in range(quarters % 4):
            first, second = turn(first, second)
        t = quarters * math.pi / 2 * (1 if number == 6 else math.sqrt(2))
        block = Coordinates(torch.tensor([number]), disjoint=True)
        y = U.move(x, block, torch.tensor([t], dtype=torch.float64))
        # √2·(quarters·π/2)/√2 is the quarter turn but for its last digit.
        assert error(y[:, :2], torch.stack([first, second], -1)) <= 4e-15 * abs(quarters)


@every_group
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_columns_do_not_grow_where_sine_and_tangent_round(group, kind):
    """600 moves of each kind in complex64, never restored; with any sine and tangent it is 8e-6."""
    d = 8
    x = point(group, Noise(0), d, d, dtype=torch.complex64)
    pairs = [pair_to_number(*games.unbind(-1), d) for games in round_robin(d)]
    phases = [torch.arange(d)] * len(pairs) if group is U and kind == 2 else pairs
    blocks = [Coordinates(n + kind * d * (d - 1) // 2, disjoint=True) for n in phases]
    for step in range(600):
        block = blocks[step % len(blocks)]
        group.move_(x, block, torch.full(block.index.shape, 0.77))
    assert defect(U, x) <= 4e-6
    if group is SU:
        assert abs(float(torch.linalg.det(x.to(torch.complex128)).angle())) <= 3e-6


@every_group
@every_kind
@given(st.sampled_from([(0,), (1,), (3,), (2, 3)]), dims, dtypes, noises)
def test_a_batch_is_a_loop(group, kind, batch, d, dtype, noise: Noise):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(group, kind, noise, batch, d)
    t = real_dtype(t, dtype)
    derivatives, moved = group.derivatives(x, egrad, block), group.move(x, block, t)
    limit = d * tolerance(dtype, *([t, egrad] if t.numel() else []))
    assert moved.shape == x.shape
    for at in product(*map(range, batch)):
        own = at_place(block, at)
        assert error(derivatives[at], group.derivatives(x[at], egrad[at], own)) <= limit
        assert error(moved[at], group.move(x[at], own, t[at])) <= limit


@every_group
@every_kind
@given(batch_shapes, dims, dtypes, noises)
def test_one_block_serves_a_whole_batch(group, kind, batch, d, dtype, noise: Noise):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(group, kind, noise, (), d)
    t = real_dtype(t, dtype).expand(*batch, *t.shape)
    expanded = block
    if isinstance(block, Groups):
        expanded = Groups(block.axes.expand(*batch, *block.axes.shape))
    elif isinstance(block, Coordinates):
        expanded = Coordinates(block.index.expand(*batch, *block.index.shape), block.disjoint)
    assert torch.equal(group.move(x, block, t), group.move(x, expanded, t))
    assert torch.equal(group.derivatives(x, egrad, block), group.derivatives(x, egrad, expanded))


@every_group
@given(dims, dtypes, noises)
def test_one_group_of_all_axes_is_everything(group, d, dtype, noise: Noise):
    """A step along every coordinate is the step along the Riemannian gradient."""
    x = point(group, noise, d, d, dtype=dtype)
    egrad = noise.like(x)
    rgrad = group.egrad2rgrad(x, egrad)
    expected = group.expmap(x, -0.3 * rgrad)
    everything = torch.arange(group.num_coordinates(x))
    for block in (All(), Groups(torch.arange(d)[None]), Coordinates(everything, disjoint=False)):
        derivatives = group.derivatives(x, egrad, block)
        moved = group.move(x, block, -0.3 * derivatives)
        assert error(moved, expected) <= d * tolerance(dtype, egrad)


@every_group
@given(dims, noises)
def test_the_matrix_of_a_group_holds_its_coordinates(group, d, noise: Noise):
    x = point(group, noise, d, d)
    groups = noise.groups((), d, 2)
    t = group.derivatives(x, noise.like(x), groups)
    egrad = x @ dense(group, groups, t, d)
    pairs = pair_to_number(*groups.axes.unbind(-1), d)
    real = group.derivatives(x, egrad, Coordinates(pairs, disjoint=True))
    imaginary = Coordinates(pairs + d * (d - 1) // 2, disjoint=True)
    assert error(t[:, 0, 1].real, real) <= 1e-13
    assert error(t[:, 0, 1].imag, group.derivatives(x, egrad, imaginary)) <= 1e-13
    if group is U:
        phases = Coordinates(d * (d - 1) + groups.axes.flatten(), disjoint=True)
        diagonal = t.diagonal(dim1=-2, dim2=-1).flatten()
        assert error(diagonal / (1j * math.sqrt(2)), group.derivatives(x, egrad, phases)) <= 1e-13


@given(dims, noises)
def test_a_group_never_leaves_the_special_group(d, noise: Noise):
    """A rule that scales the entries apart, and so makes a trace, turns by what is left without it."""
    x = point(SU, noise, d, d)
    groups = noise.groups((), d, 2)
    t = 1j * torch.diag_embed(noise.normal(len(groups.axes), 2)).to(torch.complex128)
    y = SU.move(x, groups, t)
    assert defect(SU, y) <= 1e-13
    trace = t.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(2)
    assert error(y, SU.move(x, groups, t - trace)) <= 1e-14


@every_group
def test_a_single_axis_in_a_group(group):
    x = point(group, Noise(0), 4, 4)
    block = Groups(torch.tensor([[2], [0]]))
    egrad = x @ torch.diag(torch.tensor([1j, 2j, 3j, 4j], dtype=x.dtype))
    t = group.derivatives(x, egrad, block)
    root = math.sqrt(2)
    expected = torch.tensor([3j * root, 1j * root]) if group is U else torch.zeros(2)
    assert error(t[:, 0, 0], expected) <= 1e-6


@every_group
@every_kind
def test_nothing_waits_for_the_device(group, kind):
    """A meta tensor has no data, so whatever reads any raises."""
    x = torch.empty(3, 16, 16, device="meta", dtype=torch.complex64)
    whole = torch.empty(3, 4, 4, device="meta", dtype=torch.int64)
    block = {
        "disjoint": Coordinates(whole[:, 0], disjoint=True),
        "overlapping": Coordinates(whole[:, 0], disjoint=False),
        "groups": Groups(whole),
        "all": All(),
    }[kind]
    t = group.derivatives(x, torch.empty_like(x), block)
    assert t.device == x.device
    assert group.move_(x, block, t) is x
    index, derivatives = group.steepest(x, torch.empty_like(x), 5)
    assert index.shape == derivatives.shape == (3, 5)
    assert group.restore_(x) is x
    for y in (group.proju(x, x), group.expmap(x, x), group.transp_follow_expmap(x, x, x)):
        assert (y.shape, y.device, y.dtype) == (x.shape, x.device, x.dtype)


# Points and tangent vectors


@every_group
@given(batch_shapes, dims, dtypes, noises)
def test_random_points_lie_on_the_group_to_the_last_digit(group, batch, d, dtype, noise: Noise):
    x = group.random(*batch, d, d, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, d, d), dtype, group)
    assert defect(group, x) <= 2 * eps(dtype) + 2e-14
    group.assert_check_point_on_manifold(x)
    assert torch.equal(group.origin(*batch, d, d, dtype=dtype), torch.eye(d).expand(x.shape))
    assert group.random(2, 2).dtype == group.origin(2, 2).dtype == torch.complex64


@every_group
def test_random_points_follow_the_haar_measure(group):
    """Moments of the Haar measure, within five standard errors."""
    n, d = 20_000, 3
    noise = Noise(0)
    x, g = point(group, noise, n, d, d), point(group, noise, d, d)

    def assert_mean(sample, mean):
        assert abs(float(sample.mean()) - mean) <= 5 * float(sample.std()) / math.sqrt(n)

    for y in (x, g @ x, x @ g):  # invariant from both sides
        trace = y.diagonal(dim1=-2, dim2=-1).sum(-1)
        for part in (trace.real, trace.imag, (trace**2).real, (trace**2).imag):
            assert_mean(part, 0.0)
        assert_mean(trace.abs() ** 2, 1.0)
        assert_mean(trace.abs() ** 4, 2.0)
        assert_mean((trace**3).real, 0.0 if group is U else 1.0)  # tells the two apart
        for i, j in product(range(d), range(d)):
            assert_mean(y[:, i, j].real, 0.0)
            assert_mean(y[:, i, j].abs() ** 2, 1 / d)
            assert_mean((y[:, i, j] ** 2).real, 0.0)


@every_group
@given(dims, noises)
def test_projx_is_the_polar_factor(group, d, noise: Noise):
    m = noise.normal(d, d, dtype=torch.complex128)
    expected = torch.from_numpy(scipy.linalg.polar(m.numpy())[0])
    if group is SU:  # of the d-th roots of the determinant the one nearest to 1
        roots = [
            torch.linalg.det(expected) ** (1 / d) * np.exp(2j * np.pi * k / d) for k in range(d)
        ]
        expected = expected / min(roots, key=lambda root: abs(root - 1))
    limit = 1e-14 * d / float(torch.linalg.svdvals(m)[-1])
    for y in layouts(m):
        assert error(group.projx(y), expected) <= limit


@every_group
@given(batch_shapes, dims, dtypes, noises)
def test_projx_leaves_points_alone_and_its_image_is_the_group(group, batch, d, dtype, noise: Noise):
    m = noise.normal(*batch, d, d, dtype=dtype)
    x = group.projx(m)
    assert defect(group, x) <= 4 * eps(dtype)
    assert error(group.projx(x), x) <= 6 * eps(dtype)
    for singular in (torch.zeros(3, 3), torch.ones(4, 4), torch.diag(torch.tensor([1.0, 2, 0]))):
        assert defect(group, group.projx(singular.to(dtype))) <= 8 * eps(dtype)


@every_group
@given(batch_shapes, st.integers(2, 40), noises)
def test_restoring_in_complex64_reaches_the_last_digit(group, batch, d, noise: Noise):
    x = point(group, noise, *batch, d, d, dtype=torch.complex64)
    x += 1e-5 * noise.like(x)
    for y in layouts(x):
        assert group.restore_(y) is y
        assert defect(group, y) <= 4 * eps(torch.float32)
        assert error(y, x) <= 1e-3


@every_group
@given(batch_shapes, dims, dtypes, noises)
def test_proju_is_an_orthogonal_projection_on_the_tangent_space(
    group, batch, d, dtype, noise: Noise
):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    u, v, w = noise.like(x), noise.like(x), tangent(group, noise, x)
    p = group.proju(x, u)
    scale = d * tolerance(dtype, u, v)
    assert error(group.proju(x, p), p) <= scale  # idempotent
    assert error(inner(p, v), inner(u, group.proju(x, v))) <= d * scale  # self-adjoint
    assert error(group.proju(x, w), w) <= d * scale  # onto
    assert torch.equal(group.egrad2rgrad(x, u), p)
    ok, reason = group.check_vector_on_tangent(x, p, explain=True, atol=1e-4)
    assert ok, reason


@every_group
@given(batch_shapes, dims, noises)
def test_the_riemannian_gradient_represents_the_derivative(group, batch, d, noise: Noise):
    x = point(group, noise, *batch, d, d)
    target, u = noise.like(x), tangent(group, noise, x)

    def cost(x):
        return ((x @ target).sin() * target).real.sum((-2, -1))

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(y).sum(), y)
    _, derivative = torch.func.jvp(cost, (x,), (u,))
    assert error(group.inner(x, group.egrad2rgrad(x, egrad), u), derivative) <= 1e-10


@every_group
@given(batch_shapes, dims, dtypes, noises)
def test_inner_and_norm_are_real(group, batch, d, dtype, noise: Noise):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    u, v = tangent(group, noise, x), tangent(group, noise, x)
    trace = (u.mH @ v).diagonal(dim1=-2, dim2=-1).sum(-1).real
    limit = d * d * tolerance(dtype, u.abs() ** 2, v.abs() ** 2)
    product_ = group.inner(x, u, v)
    assert (product_.shape, product_.dtype) == (batch, dtype.to_real())
    assert error(product_, trace) <= limit
    assert error(group.inner(x, u), group.norm(x, u) ** 2) <= limit
    assert torch.equal(group.inner(x, u, v, keepdim=True)[..., 0, 0], product_)
    assert group.norm(x, u, keepdim=True).shape == (*batch, 1, 1)


# Exponential and logarithm


@given(
    st.integers(1, 12),
    batch_shapes,
    dtypes,
    st.floats(-8, 1.5),
    st.sampled_from(["dense", "one plane", "scalar"]),
    noises,
)
def test_expm1_takes_skew_hermitian_matrices(r, batch, dtype, power, kind, noise: Noise):
    """Also those whose 2-norm is their Frobenius norm, as that of no real skew matrix is."""
    a = algebra(U, noise, *batch, r, r)
    if kind == "one plane":
        v = noise.normal(*batch, r, 1, dtype=torch.complex128)
        a = 1j * v @ v.mH
    elif kind == "scalar":
        a = 1j * torch.eye(r, dtype=torch.complex128).expand(*batch, r, r)
    norm = torch.linalg.matrix_norm(a, ord=2, keepdim=True).clamp_min(1e-300)
    a = (10**power * a / norm).to(dtype)
    values, vectors = np.linalg.eigh(-1j * a.to(torch.complex128).numpy())
    expected = (vectors * np.expm1(1j * values)[..., None, :]) @ vectors.conj().swapaxes(-1, -2)
    f = expm1(a)
    assert f.dtype == dtype
    assert error(f, torch.from_numpy(expected)) <= 20 * eps(dtype) * 10**power


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_a_complex_matrix_is_not_underestimated(dtype):
    """It is that of a number: a smaller one would choose too low a polynomial."""
    theta = torch.logspace(-4, 1, 400, dtype=torch.float64)
    a = (1j * theta)[:, None, None].to(dtype)
    expected = torch.from_numpy(np.expm1(1j * theta.numpy()))
    for one, exact in zip(a, expected, strict=True):
        assert error(expm1(one), exact) <= 2 * eps(dtype) * float(one.abs())


@every_group
@given(batch_shapes, dims, dtypes, st.floats(-8, 1.3), noises)
def test_expmap_is_scipys_exponential(group, batch, d, dtype, power, noise: Noise):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    u = tangent(group, noise, x)
    u = u * 10**power / torch.linalg.matrix_norm(u, keepdim=True)
    wide = x.to(torch.complex128)
    expected = wide @ expm(wide.mH @ u.to(torch.complex128))
    for y, v in zip(layouts(x), layouts(u), strict=True):
        assert group.expmap(y, v).dtype == dtype
        assert error(group.expmap(y, v), expected) <= d * tolerance(dtype, u)


@every_group
@given(st.integers(2, 6), dtypes, noises, st.floats(-6, 0))
def test_the_logarithm_is_scipys_near_the_identity(group, d, dtype, noise: Noise, power):
    x = point(group, noise, d, d)
    a = 10**power * algebra(group, noise, d, d) / d
    q = scipy.linalg.expm(a.numpy())
    u = group.logmap(x.to(dtype), (x @ torch.from_numpy(q)).to(dtype))
    assert u.dtype == dtype
    assert error(x.mH @ u.to(torch.complex128), torch.from_numpy(scipy.linalg.logm(q))) <= (
        20 * d * eps(dtype)
    )


def conjugated(group, noise: Noise, angles):
    """The matrix with given angles in random directions."""
    v = point(U, noise, len(angles), len(angles))
    return (v * torch.exp(1j * torch.tensor(angles, dtype=torch.float64))) @ v.mH


some_angles = st.one_of(
    st.floats(-3.1, 3.1),
    st.sampled_from([0.0, math.pi, -math.pi, 1.0, -2.0]),
    st.floats(-14, -1).map(lambda power: math.pi - 10.0**power),
    st.floats(-14, -1).map(lambda power: -math.pi + 10.0**power),
)


@settings(max_examples=60)
@given(st.lists(some_angles, min_size=1, max_size=6), dtypes, noises)
def test_the_logarithm_reaches_up_to_the_cut_locus(angles, dtype, noise: Noise):
    """Eigenvalues that repeat, and −1, exact or nearly so: exact, and no longer than the shortest."""
    q = conjugated(U, noise, angles)
    x = point(U, noise, *q.shape)
    x, y = x.to(dtype), (x @ q).to(dtype)
    u = U.logmap(x, y)
    U.assert_check_vector_on_tangent(x, u, atol=1e-4)
    wide = x.to(torch.complex128)
    d = len(angles)
    assert error(wide @ expm(wide.mH @ u.to(torch.complex128)), y) <= 40 * d * eps(dtype)
    length = math.sqrt(sum(angle**2 for angle in angles))
    # On the other side of the half turn, by at most the square root of the precision.
    assert abs(float(U.dist(x, y)) - length) <= 20 * d * math.sqrt(eps(dtype))
    clear = min(math.pi - abs(angle) for angle in angles)
    if clear >= 4 * math.sqrt(eps(dtype)):
        assert abs(float(U.dist(x, y)) - length) <= 40 * d * eps(dtype)
        back = torch.linalg.matrix_norm(logarithm(q.mH.to(dtype)) + logarithm(q.to(dtype)))
        assert float(back) <= 200 * d * eps(dtype) / clear


def shortest_traceless(angles):
    """Brute force over whole turns: the least length of angles that add up to 0."""
    shifts = product((-1, 0, 1), repeat=len(angles))
    turned = np.asarray(angles) + 2 * np.pi * np.array(list(shifts))
    turned = turned[np.abs(turned.sum(-1)) < 1e-6]
    return float(np.sqrt((turned**2).sum(-1).min()))


@settings(max_examples=50)
@given(st.lists(some_angles, min_size=1, max_size=5), dtypes, noises)
def test_the_logarithm_on_the_special_group_is_the_shortest_without_trace(
    angles, dtype, noise: Noise
):
    """Also where the angles of the principal logarithm add up to ±2π, ±4π …"""
    last = math.remainder(-sum(angles), 2 * math.pi)
    angles = [*angles, last]
    d = len(angles)
    q = conjugated(SU, noise, angles)
    x = point(SU, noise, d, d)
    x, y = x.to(dtype), (x @ q).to(dtype)
    u = SU.logmap(x, y)
    SU.assert_check_vector_on_tangent(x, u, atol=1e-4)
    wide = x.to(torch.complex128)
    assert error(wide @ expm(wide.mH @ u.to(torch.complex128)), y) <= 40 * d * eps(dtype)
    limit = 20 * d * math.sqrt(eps(dtype))
    assert abs(float(SU.dist(x, y)) - shortest_traceless(angles)) <= limit
    assert SU.dist(x, y) >= U.dist(x, y) - limit


def test_a_principal_logarithm_with_a_trace():
    """Three angles of 2π/3: on U(3) a common phase, on SU(3) one of them goes the other way."""
    x = torch.eye(3, dtype=torch.complex128)
    y = x * np.exp(2j * np.pi / 3)
    u, v = U.logmap(x, y), SU.logmap(x, y)
    assert error(u, x * 2j * np.pi / 3) <= 1e-14
    assert error(v.diagonal().sum(), torch.zeros(())) <= 1e-14
    assert error(SU.expmap(x, v), y) <= 1e-14
    assert abs(float(SU.dist(x, y)) - 2 * math.pi / 3 * math.sqrt(6)) <= 1e-14


@every_group
@given(batch_shapes, dims, noises)
def test_dist_is_a_metric_and_the_length_of_the_logarithm(group, batch, d, noise: Noise):
    x, y, z = (point(group, noise, *batch, d, d) for _ in range(3))
    xy = group.dist(x, y)
    assert (xy.shape, xy.dtype) == (batch, torch.float64)
    assert torch.equal(group.dist(x, y, keepdim=True), xy[..., None, None])
    assert error(xy, group.dist(y, x)) <= 1e-9
    assert error(xy, group.norm(x, group.logmap(x, y))) <= 1e-9
    assert (xy <= group.dist(x, z) + group.dist(z, y) + 1e-9).all()
    assert error(group.dist(x, x), torch.zeros(batch)) <= 1e-13
    g, h = point(group, noise, d, d), point(group, noise, d, d)
    assert error(group.dist(g @ x @ h, g @ y @ h), xy) <= 1e-9  # invariant from both sides


@every_group
@given(st.sampled_from([(0,), (1,), (2, 3)]), dims, dtypes, noises)
def test_maps_of_a_batch_are_a_loop(group, batch, d, dtype, noise: Noise):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    u, v = tangent(group, noise, x) / d, tangent(group, noise, x)
    y = group.expmap(x, u)
    maps = {
        "proju": lambda x, y, u, v: group.proju(x, y + u),
        "log": lambda x, y, u, v: group.logmap(x, y),
        "dist": lambda x, y, u, v: group.dist(x, y),
        "transp": lambda x, y, u, v: group.transp(x, y, v),
        "follow": lambda x, y, u, v: group.transp_follow_expmap(x, u, v),
        "projx": lambda x, y, u, v: group.projx(2 * x + u.sin()),
        "restore": lambda x, y, u, v: group.restore_(x + 1e-3 * u),
    }
    for call in maps.values():
        together = call(x, y, u, v)
        for at in product(*map(range, batch)):
            assert error(together[at], call(x[at], y[at], u[at], v[at])) <= 1e3 * d * eps(dtype)


# Transport


@every_group
@given(batch_shapes, dims, dtypes, noises)
def test_both_transports_are_isometries_onto_the_tangent_space(
    group, batch, d, dtype, noise: Noise
):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    u, v, w = (tangent(group, noise, x) for _ in range(3))
    y, followed = group.expmap_transp(x, u, v)
    before = inner(v, w)
    limit = 20 * d * d * tolerance(dtype, before, u)
    assert error(y, group.expmap(x, u)) <= limit
    assert torch.equal(followed, group.transp_follow_expmap(x, u, v))
    for a, b in (
        (followed, group.transp_follow_expmap(x, u, w)),
        (group.transp(x, y, v), group.transp(x, y, w)),
    ):
        assert error(inner(a, b), before) <= limit
        assert error(group.proju(y, a), a) <= limit
    # The velocity of a geodesic is carried to the velocity at its end.
    velocity = y @ (x.mH @ u)
    assert error(group.transp_follow_expmap(x, u, u), velocity) <= limit


@settings(max_examples=5)
@given(st.integers(2, 3), noises)
def test_geodesic_and_transport_solve_their_differential_equations(d, noise: Noise):
    """As on the orthogonal group: the ambient derivative of the carried vectors is normal."""
    x = point(U, noise, d, d)
    u, v = tangent(U, noise, x), tangent(U, noise, x)

    def flow(_, state):
        point, velocity, vector = state.reshape(3, d, d)

        def normal(w):
            return -point @ (velocity.conj().T @ w + w.conj().T @ velocity) / 2

        return np.stack([velocity, normal(velocity), normal(vector)]).ravel()

    start = torch.stack([x, u, v]).numpy().ravel()
    end = scipy.integrate.solve_ivp(flow, (0, 1), start, rtol=1e-11, atol=1e-12, method="DOP853")
    y, _, w = torch.from_numpy(end.y[:, -1]).reshape(3, d, d)
    assert error(U.expmap(x, u), y) <= 1e-8
    assert error(U.transp_follow_expmap(x, u, v), w) <= 1e-8
    assert error(U.transp(x, U.expmap(x, u), v), w) > 1e-6


# Retractions

ORDERS = {"cayley": 2, "qr": 1, "polar": 2}
FORMULAS = {
    "exponential": scipy.linalg.expm,
    "cayley": lambda a: np.linalg.inv(np.eye(len(a)) - a / 2) @ (np.eye(len(a)) + a / 2),
    "qr": lambda a: positive_qr(np.eye(len(a)) + a),
    "polar": lambda a: scipy.linalg.polar(np.eye(len(a)) + a)[0],
}


def positive_qr(m):
    q, r = scipy.linalg.qr(m)
    return q * (np.diag(r) / np.abs(np.diag(r)))


def test_the_retractions_are_those_of_the_orthogonal_group_but_one():
    assert UnitaryGroup.retractions.keys() == {"exponential", *ORDERS}
    assert RETRACTIONS.keys() - UnitaryGroup.retractions.keys() == {"givens"}
    with pytest.raises(ValueError, match=r"'givens' is unknown; choose from .*'qr'"):
        UnitaryGroup("givens")
    assert repr(SpecialUnitaryGroup("polar")) == "SpecialUnitaryGroup(retraction='polar') manifold"


@pytest.mark.parametrize("cls", [UnitaryGroup, SpecialUnitaryGroup])
@pytest.mark.parametrize(("name", "order"), ORDERS.items())
@given(st.integers(3, 5), noises)
def test_a_retraction_agrees_with_the_exponential_to_its_order(cls, name, order, d, noise: Noise):
    x = point(SU, noise, d, d)
    u = tangent(SU, noise, x)
    u = u / torch.linalg.matrix_norm(u)
    errors = [
        float(torch.linalg.matrix_norm(cls(name).retr(x, h * u) - cls().expmap(x, h * u)))
        for h in (2.0**-6, 2.0**-7, 2.0**-8)
    ]
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - (order + 1)) <= 0.1


@pytest.mark.parametrize("cls", [UnitaryGroup, SpecialUnitaryGroup])
@pytest.mark.parametrize("name", FORMULAS)
@given(batch_shapes, dims, dtypes, st.floats(-6, 1), noises)
def test_a_retraction_stays_and_is_its_formula(cls, name, batch, d, dtype, power, noise: Noise):
    group = SU if cls is SpecialUnitaryGroup else U
    x = point(group, noise, *batch, d, d, dtype=dtype)
    u = tangent(group, noise, x)
    u = u * 10**power / torch.linalg.matrix_norm(u, keepdim=True)
    y = cls(name).retr(x, u)
    assert y.dtype == dtype
    assert defect(group, y) <= 20 * eps(dtype) * (d + 10**power)
    at = (0,) * len(batch)
    a = (x.mH @ u)[at].to(torch.complex128).numpy()
    expected = x[at].to(torch.complex128) @ torch.from_numpy(FORMULAS[name](a))
    if group is SU:
        expected = expected * torch.exp(-1j * torch.linalg.det(expected).angle() / d)
    assert error(y[at], expected) <= 40 * eps(dtype) * (d + 10**power)


# Gradients


def flows(call, *inputs):
    torch.autograd.gradcheck(call, tuple(each.clone().requires_grad_() for each in inputs))


@every_group
@pytest.mark.parametrize("norm", [1e-3, 2.0])
def test_gradients_flow_through_the_maps(group, norm):
    noise = Noise(0)
    x = point(group, noise, 3, 3)
    u = tangent(group, noise, x)
    u = norm * u / torch.linalg.matrix_norm(u)
    y = group.expmap(x, u)
    flows(group.proju, x, u)
    flows(group.expmap, x, u)
    flows(lambda x, u: group.transp_follow_expmap(x, u, u @ u), x, u)
    flows(group.norm, x, u)
    for name in ORDERS:
        flows(type(group)(name).retr, x, u)
    # Along the group: logmap and projx have no meaning for points that leave it.
    a, b = x.mH @ u, algebra(group, noise, 3, 3)
    s = torch.tensor(0.0, dtype=torch.float64)
    for call in (group.logmap, group.dist):
        flows(lambda s, call=call: call(group.expmap(x, s * x @ b), y), s)
        flows(lambda s, call=call: call(x, group.expmap(x, x @ (a + s * b))), s)
    flows(group.projx, noise.normal(3, 3, dtype=torch.complex128))


@every_group
def test_the_logarithm_is_smooth_where_angles_repeat(group):
    noise = Noise(0)
    x = point(group, noise, 3, 3)
    b, c = algebra(group, noise, 3, 3), algebra(group, noise, 3, 3)
    zero = torch.tensor(0.0, dtype=torch.float64)
    for angles in ([0.0, 0.0, 0.0], [1.0, 1.0, -2.0], [2.0, -1.0, -1.0]):
        y = x @ conjugated(group, noise, angles)

        def log(s, t, y=y):
            return group.logmap(group.expmap(x, s * x @ b), group.expmap(y, t * y @ c))

        flows(log, zero, zero)


@every_group
def test_gradients_are_finite_where_points_meet_and_vectors_vanish(group):
    x = point(group, Noise(0), 3, 3)
    y = x.clone().requires_grad_()
    group.dist(y, x).backward()
    assert y.grad.isfinite().all()
    u = torch.zeros_like(x, requires_grad=True)
    (group.norm(x, u) + group.expmap(x, u).abs().square().sum()).backward()
    assert u.grad.isfinite().all()


@given(st.integers(2, 6), noises, st.sampled_from([0.0, 1e-6, 0.5]))
def test_the_same_holds_on_the_orthogonal_group(d, noise: Noise, size):
    group = OrthogonalGroup()
    x = noise.point(d, d)
    b, c = noise.skew(d, d), noise.skew(d, d)
    y = group.expmap(x, size * x @ c / torch.linalg.matrix_norm(c))
    zero = torch.tensor(0.0, dtype=torch.float64)
    flows(lambda s: group.logmap(x, group.expmap(y, s * y @ b)), zero)
    z = x.clone().requires_grad_()
    group.dist(z, y).backward()
    assert z.grad.isfinite().all()


# Checks, and bad input


@every_group
@given(batch_shapes, dims, dtypes, st.floats(-3, 3), noises)
def test_checks_reject_what_is_off(group, batch, d, dtype, power, noise: Noise):
    x = point(group, noise, *batch, d, d, dtype=dtype)
    u = tangent(group, noise, x)
    assert group.check_point_on_manifold(x)
    assert group.check_vector_on_tangent(x, u, atol=1e-4)
    first = (0,) * len(batch)
    off, normal = x.clone(), u.clone()
    off[first] *= 1 + 10.0**power
    normal[first] += 10.0**power * (1 + u.abs().max()) * x[first]
    for bad in (off, off * torch.nan, off * torch.inf):
        ok, reason = group.check_point_on_manifold(bad, explain=True)
        assert not ok
        assert "projx" in reason
    ok, reason = group.check_vector_on_tangent(x, normal, explain=True)
    assert not ok
    assert "proju" in reason


@given(dims, dtypes, st.floats(-3, 0), noises)
def test_the_special_group_rejects_phases(d, dtype, power, noise: Noise):
    x = point(SU, noise, d, d, dtype=dtype)
    angle = 10.0**power / d
    y = x * complex(math.cos(angle), math.sin(angle))
    assert U.check_point_on_manifold(y)
    ok, reason = SU.check_point_on_manifold(y, explain=True)
    assert not ok
    assert "|det x − 1|" in reason
    assert "projx" in reason
    assert U.check_vector_on_tangent(x, 1j * x)
    ok, reason = SU.check_vector_on_tangent(x, 1j * x, explain=True)
    assert not ok
    assert "tr xᴴu" in reason


@every_group
@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (0, 0), (3, 3, 2)])
def test_shapes_that_no_point_has(group, shape):
    assert not group.check_point(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expects \(\.\.\., d, d\) with d >= "):
        group.random(*shape)


def test_the_special_group_of_one_is_a_point_only():
    with pytest.raises(ValueError, match="d >= 2"):
        SU.random(1, 1)


@every_group
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_dtypes_that_no_point_has(group, dtype):
    x = torch.eye(3).to(dtype)
    ok, reason = group.check_point_on_manifold(x, explain=True)
    assert not ok
    assert "complex64 and complex128" in reason
    for call in (
        lambda: group.random(3, 3, dtype=dtype),
        lambda: group.projx(x),
        lambda: group.move(x, All(), torch.zeros(9)),
        lambda: group.derivatives(x, x, All()),
    ):
        with pytest.raises(TypeError, match="complex64 and complex128"):
            call()


BAD_BLOCKS = {
    "number too large": (IndexError, "coordinate 25 does not exist", [25]),
    "common axis": (ValueError, "axis 0 is in two places", [0, 1]),
    "rotation and phase": (ValueError, "axis 0 is in two places", [0, 20]),
    "both rotations of a pair": (ValueError, "axis 0 is in two places", [0, 10]),
    "phase twice": (ValueError, "axis 2 is in two places", [22, 22]),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_blocks_that_cannot_be(name):
    error_type, match, numbers = BAD_BLOCKS[name]
    x = point(U, Noise(0), 5, 5)
    kept = x.clone()
    block = Coordinates(torch.tensor(numbers), disjoint=True)
    for call in (
        lambda: U.move_(x, block, torch.ones(len(numbers))),
        lambda: U.derivatives(x, x, block),
    ):
        with pytest.raises(error_type, match=match):
            call()
    assert torch.equal(x, kept)
    good = Coordinates(torch.tensor([0, 22, 23, 24]), disjoint=True)
    U.move_(x, good, torch.ones(4))


@every_group
@every_kind
def test_times_that_cannot_be(group, kind):
    noise = Noise(0)
    x = point(group, noise, 5, 5)
    kept = x.clone()
    block, t = some_block(group, kind, noise, (), 5)
    with pytest.raises(TypeError, match=r"times are torch\.int64"):
        group.move_(x, block, t.real.long())
    with pytest.raises(ValueError, match="times have shape"):
        group.move_(x, block, torch.cat([t, t]))
    if kind != "groups":
        with pytest.raises(TypeError, match=r"times are torch\.complex128; expected float32"):
            group.move_(x, block, t.to(torch.complex128))
    with pytest.raises(TypeError, match=r"egrad is torch\.float64"):
        group.derivatives(x, x.real, block)
    with pytest.raises(ValueError, match="k=99"):
        group.steepest(x, x, 99)
    assert torch.equal(x, kept)
