"""Symmetric positive definite matrices, with the moves of the Cholesky factor as coordinates."""

import math
from itertools import combinations

import geoopt
import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, dtypes, error, layouts, noises
from torch import Tensor

from givens.manifolds import All, Coordinates, Groups, SymmetricPositiveDefinite
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Matching, Uniform

MANIFOLD = SymmetricPositiveDefinite()
GEOOPT = geoopt.SymmetricPositiveDefinite()

sizes = st.integers(1, 6)


def eps(dtype):
    return torch.finfo(dtype).eps


def point(noise, *size, dtype=torch.float64):
    return MANIFOLD.random(*size, dtype=dtype, generator=noise.generator).as_subclass(Tensor)


def symmetric(a):
    return (a + a.mT) / 2


def tangent(noise, x):
    """Symmetric, of length about √d in the metric."""
    factor = torch.linalg.cholesky(x)
    return factor @ symmetric(noise.like(x)) @ factor.mT


def conditioned(noise, d, condition, dtype=torch.float64):
    """A point with a condition number, in a random basis."""
    q, _ = torch.linalg.qr(noise.normal(d, d))
    values = torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)
    return symmetric((q * values) @ q.mT).to(dtype)


def is_positive_definite(x):
    return torch.equal(x, x.mT) and not torch.linalg.cholesky_ex(x.double()).info.any()


def of_matrices(f, *args):
    """A function of numpy matrices, one by one over the batch."""
    rows = zip(*(arg.reshape(-1, *arg.shape[-2:]).numpy() for arg in args), strict=True)
    return torch.stack([torch.as_tensor(f(*row)) for row in rows]).view(*args[0].shape[:-2], -1)


# Points


@given(batch_shapes, sizes, dtypes, noises)
def test_random_points_are_positive_definite_and_repeat(batch, d, dtype, noise: Noise):
    x = MANIFOLD.random(*batch, d, d, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, d, d), dtype, MANIFOLD)
    assert is_positive_definite(x)
    again = MANIFOLD.random(*batch, d, d, dtype=dtype, generator=Noise(noise.seed).generator)
    assert torch.equal(x, again)
    assert torch.equal(
        MANIFOLD.origin(*batch, d, d, dtype=dtype)[..., 0, :],
        torch.eye(d, dtype=dtype)[0].expand(*batch, d),
    )


def test_the_logarithms_of_random_points_are_gaussian():
    x = point(Noise(0), 4000, 4, 4)
    values, v = torch.linalg.eigh(x)
    log = (v * values.log().unsqueeze(-2)) @ v.mT
    for j, l, variance in ((0, 0, 1 / 8), (1, 1, 1 / 8), (0, 1, 1 / 16), (2, 3, 1 / 16)):
        entry = log[:, j, l]
        assert abs(float(entry.mean())) <= 5 * math.sqrt(variance / 4000)
        assert abs(float(entry.var()) / variance - 1) <= 5 * math.sqrt(2 / 4000)


@given(sizes, dtypes, noises)
def test_projx_is_nearest(d, dtype, noise: Noise):
    """Nearer than any other point on the line to it, and by its eigenvalues that are cut off."""
    a = noise.normal(d, d, dtype=dtype)
    x = MANIFOLD.projx(a)
    assert is_positive_definite(x)
    values = torch.linalg.eigvalsh(symmetric(a).double())
    off = torch.linalg.matrix_norm(symmetric(a).double() - x.double())
    cut = torch.linalg.vector_norm(values.clamp(max=0))
    assert abs(float(off - cut)) <= 100 * d**2 * eps(dtype) * float(values.abs().max())


def test_the_derivative_of_projx_is_that_of_cutting_eigenvalues():
    a = torch.diag(torch.tensor([2.0, 1.0, -1.0, -1.0], dtype=torch.float64)).requires_grad_()
    b = symmetric(Noise(0).normal(4, 4))
    (gradient,) = torch.autograd.grad((MANIFOLD.projx(a) * b).sum(), a)
    values = a.diagonal().detach()
    gap = values.unsqueeze(-1) - values
    cut = values.clamp(min=0)
    slope = (cut.unsqueeze(-1) - cut) / torch.where(gap == 0, 1.0, gap)
    slope = torch.where(gap == 0, (values > 0).double(), slope)
    torch.testing.assert_close(gradient, slope * b, rtol=0, atol=1e-13)


def test_projx_of_nothing_is_a_point():
    for a in (torch.zeros(3, 3), torch.zeros(2, 1, 1, dtype=torch.float64), -torch.eye(2)):
        assert is_positive_definite(MANIFOLD.projx(a))


# Maps


@given(batch_shapes, sizes, noises)
def test_maps_are_the_textbooks(batch, d, noise: Noise):
    """With the square root of x, and scipy's functions of matrices."""
    x, y = point(noise, *batch, d, d), point(noise, *batch, d, d)
    u = tangent(noise, x)

    def root_and_inverse(a):
        root = scipy.linalg.sqrtm(a).real
        return root, scipy.linalg.inv(root)

    def exp(a, v):
        root, inverse = root_and_inverse(a)
        return (root @ scipy.linalg.expm(inverse @ v @ inverse) @ root).reshape(-1)

    def log(a, b):
        root, inverse = root_and_inverse(a)
        return (root @ scipy.linalg.logm(inverse @ b @ inverse).real @ root).reshape(-1)

    size = float(1 + u.abs().max())
    assert error(MANIFOLD.expmap(x, u).flatten(-2), of_matrices(exp, x, u)) <= 1e-11 * size**4
    assert error(MANIFOLD.logmap(x, y).flatten(-2), of_matrices(log, x, y)) <= 1e-10
    values = of_matrices(scipy.linalg.eigvalsh, y, x)
    assert error(MANIFOLD.dist(x, y), values.log().norm(dim=-1)) <= 1e-12


@given(batch_shapes, sizes, noises)
def test_maps_are_those_of_geoopt(batch, d, noise: Noise):
    x, y = point(noise, *batch, d, d), point(noise, *batch, d, d)
    u, v = tangent(noise, x), tangent(noise, x)
    g = noise.like(x)
    limit = 1e-10 * float(1 + u.abs().max() + v.abs().max()) ** 2
    assert error(MANIFOLD.egrad2rgrad(x, g), GEOOPT.egrad2rgrad(x, g)) <= limit
    assert error(MANIFOLD.inner(x, u, v), GEOOPT.inner(x, u, v)) <= limit
    assert error(MANIFOLD.retr(x, u), GEOOPT.retr(x, u)) <= limit
    if d > 1:  # geoopt loses an exponential next to 0, see below
        assert error(MANIFOLD.logmap(x, y), GEOOPT.logmap(x, y)) <= limit
        assert error(MANIFOLD.dist(x, y), GEOOPT.dist(x, y)) <= limit
        there = MANIFOLD.transp_follow_expmap(x, MANIFOLD.logmap(x, y), v)
        assert error(there, GEOOPT.transp(x, y, v)) <= limit


@given(sizes, noises)
def test_congruences_and_the_inverse_are_isometries(d, noise: Noise):
    x, y, a = point(noise, d, d), point(noise, d, d), noise.normal(d, d)
    a = a + 2 * d * torch.eye(d, dtype=a.dtype)
    expected = MANIFOLD.dist(x, y)
    assert error(MANIFOLD.dist(a @ x @ a.mT, a @ y @ a.mT), expected) <= 1e-11
    assert error(MANIFOLD.dist(torch.linalg.inv(x), torch.linalg.inv(y)), expected) <= 1e-11


@given(sizes, noises, st.sampled_from([1e-12, 1e-8, 1e-4]))
def test_short_distances_and_logarithms_keep_their_digits(d, noise: Noise, size):
    x = point(noise, d, d)
    y = x + size * symmetric(noise.like(x))
    u = y - x  # exact
    length = MANIFOLD.norm(x, u)
    # The next term of the logarithm is of the order of the square.
    allowed = float(length) * (1e-13 + 2 * float(length))
    assert abs(float(MANIFOLD.dist(x, y) - length)) <= allowed
    assert abs(float(MANIFOLD.norm(x, MANIFOLD.logmap(x, y)) - length)) <= allowed


@pytest.mark.parametrize("length", [1.0, 10.0, 30.0, 100.0])
def test_long_geodesics_stay_inside_and_keep_their_length(length):
    """On a geodesic through multiples of the identity nothing is ill-conditioned."""
    x = point(Noise(0), 3, 3)
    u = x * length / math.sqrt(3)
    for sign in (1, -1):
        y = MANIFOLD.expmap(x, sign * u)
        torch.testing.assert_close(
            y, x * math.exp(sign * length / math.sqrt(3)), rtol=1e-12, atol=0
        )
        assert abs(float(MANIFOLD.dist(x, y)) / length - 1) <= 1e-12


@given(dtypes, st.sampled_from([1.0, 10.0, 50.0, 200.0]), noises)
def test_whatever_the_step_the_result_is_positive_definite(dtype, size, noise: Noise):
    x = point(noise, 4, 4, dtype=dtype)
    u = size * symmetric(noise.like(x))
    for y in (MANIFOLD.expmap(x, u), MANIFOLD.retr(x, u)):
        if y.isfinite().all():
            assert is_positive_definite(y)
    for block, shape in ((All(), 10), (Coordinates(torch.tensor([0, 5]), disjoint=True), 2)):
        y = MANIFOLD.move(x, block, size / 10 * noise.normal(shape))
        assert is_positive_definite(y)


def test_geoopt_has_no_gradient_where_eigenvalues_repeat():
    x = torch.eye(3, dtype=torch.float64)
    for manifold, finite in ((GEOOPT, False), (MANIFOLD, True)):
        y = x.clone().requires_grad_()
        manifold.dist(y, 2 * x).backward()
        assert bool(y.grad.isfinite().all()) is finite
    torch.testing.assert_close(y.grad, -x / math.sqrt(3))


def test_geoopt_projects_elsewhere_than_to_the_nearest():
    a = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert error(GEOOPT.projx(a), torch.eye(2)) == 0
    assert error(MANIFOLD.projx(a), torch.diag(torch.tensor([1.0, 0.0]))) <= 1e-14


def test_geoopt_loses_short_distances_in_float32():
    x = conditioned(Noise(0), 4, 1e5, torch.float32)
    assert float(MANIFOLD.dist(x, x)) == 0
    assert float(GEOOPT.dist(x, x)) > 1e-4


# Coordinates


def generators(d):
    """The lower triangular generators, in the order of the numbers."""
    for j, l in combinations(range(d), 2):
        e = torch.zeros(d, d, dtype=torch.float64)
        e[l, j] = math.sqrt(0.5)
        yield e
    for j in range(d):
        e = torch.zeros(d, d, dtype=torch.float64)
        e[j, j] = 0.5
        yield e


@given(sizes, noises, st.floats(-2, 2))
def test_a_coordinate_moves_the_factor_from_the_right(d, noise: Noise, t):
    x = point(noise, d, d)
    factor = torch.linalg.cholesky(x)
    for number, e in enumerate(generators(d)):
        moved = factor @ torch.from_numpy(scipy.linalg.expm((t * e).numpy()))
        one = Coordinates(torch.tensor([number]), disjoint=True)
        y = MANIFOLD.move(x, one, torch.tensor([t], dtype=torch.float64))
        assert error(y, moved @ moved.mT) <= 1e-13 * float(1 + moved.abs().max()) ** 2
        torch.testing.assert_close(torch.linalg.cholesky(y), moved, rtol=0, atol=1e-11)
        f = MANIFOLD.direction(x, one.index)[0]
        assert error(f, factor @ (e + e.mT) @ factor.mT) <= 1e-13
        axes = MANIFOLD.axes(x, one.index)[0]
        assert int(MANIFOLD.number(x, *axes.tolist())) == number


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8, 1e12])
def test_directions_are_orthonormal_at_every_point(condition):
    x = conditioned(Noise(0), 4, condition)
    f = MANIFOLD.direction(x, torch.arange(10))
    copies = x.expand(10, 10, 4, 4)
    gram = MANIFOLD.inner(copies, f.unsqueeze(1).expand_as(copies), f.expand_as(copies))
    torch.testing.assert_close(
        gram, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-13 * condition
    )


@given(batch_shapes, st.integers(2, 6), noises)
def test_transport_by_translation_keeps_coefficients(batch, d, noise: Noise):
    x, y = point(noise, *batch, d, d), point(noise, *batch, d, d)
    v = tangent(noise, x)
    lowered = [
        torch.linalg.solve(z, torch.linalg.solve(z, w).mT)
        for z, w in ((x, v), (y, MANIFOLD.transp(x, y, v)))
    ]
    before, after = (
        MANIFOLD.derivatives(z, g, All()) for z, g in zip((x, y), lowered, strict=True)
    )
    assert error(before, after) <= 1e-10 * float(1 + v.abs().max())


@given(st.integers(2, 6), dtypes, noises)
def test_few_derivatives_are_those_of_many(d, dtype, noise: Noise):
    """Fewer than d are computed without the product of whole matrices."""
    x, g = point(noise, d, d, dtype=dtype), noise.normal(d, d, dtype=dtype)
    every = MANIFOLD.derivatives(x, g, All())
    index = noise.integers(d * (d + 1) // 2, d - 1)
    few = MANIFOLD.derivatives(x, g, Coordinates(index, disjoint=False))
    assert error(few, every[index]) <= 100 * eps(dtype) * float(1 + g.abs().max())


@given(st.integers(2, 6), noises)
def test_memory_layouts_do_not_matter(d, noise: Noise):
    x = point(noise, 2, d, d)
    block, t = Coordinates(torch.tensor([0, 1]), disjoint=False), noise.normal(2, 2)
    expected = MANIFOLD.move(x, block, t)
    for y in layouts(x):
        assert error(MANIFOLD.move_(y, block, t), expected) <= 1e-12


@given(st.integers(1, 9), noises)
def test_as_many_disjoint_coordinates_as_promised_in_any_order(d, noise: Noise):
    x = point(noise, d, d)
    order = noise.permutations((), d * (d + 1) // 2)
    used, count = set(), 0
    for pair in MANIFOLD.axes(x, order).tolist():
        if not used & set(pair):
            used |= set(pair)
            count += 1
    assert count >= MANIFOLD.num_disjoint(x)


def test_groups_are_refused():
    x = MANIFOLD.origin(4, 4).as_subclass(Tensor)
    groups = Groups(torch.tensor([[0, 1]]))
    with pytest.raises(NotImplementedError, match="use Coordinates or All"):
        MANIFOLD.derivatives(x, x, groups)
    with pytest.raises(NotImplementedError, match="use Coordinates or All"):
        MANIFOLD.move_(x, groups, torch.zeros(1, 2, 2))


# Bad points


def test_the_check_names_what_is_wrong():
    good = point(Noise(0), 3, 3)
    cases = {
        "expects (..., d, d)": good[:2],
        "NaN or infinite": good.fill_diagonal_(1) * math.nan,
        "max |x − xᵀ| is": good + torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 0, 0]]),
        "least eigenvalue is -1.0e+00": torch.diag(torch.tensor([1.0, 2.0, -1.0])),
        "least eigenvalue is 0.0e+00": torch.zeros(3, 3),
        "works in float32 and float64": good.half(),
    }
    for words, x in cases.items():
        ok, reason = MANIFOLD.check_point_on_manifold(x, explain=True)
        assert not ok
        assert words in reason
    ok, reason = MANIFOLD.check_vector_on_tangent(
        torch.eye(3), cases["max |x − xᵀ| is"], explain=True
    )
    assert not ok
    assert "max |u − uᵀ| is 1.0e+00" in reason


def test_one_bad_point_of_a_batch_spoils_no_other():
    x = torch.stack([torch.eye(2), -torch.eye(2)])
    g = torch.ones(2, 2, 2)
    derivatives = MANIFOLD.derivatives(x, g, All())
    assert derivatives[0].isfinite().all()
    assert derivatives[1].isnan().all()
    dist = MANIFOLD.dist(x, 2 * torch.eye(2).expand(2, 2, 2))
    assert dist[0].isfinite()
    assert dist[1].isnan()


def test_an_indefinite_parameter_is_refused():
    p = ManifoldParameter(torch.diag(torch.tensor([1.0, -1.0])), manifold=MANIFOLD)
    with pytest.raises(ValueError, match="least eigenvalue is -1"):
        SRCD([p], 0.1)


# Optimization


def frechet(x, samples):
    return MANIFOLD.dist2(x.expand_as(samples), samples).mean() / 2


@pytest.mark.parametrize(
    "selection", [GaussSouthwell(), Uniform(), Matching(), Block(size=3)], ids=repr
)
def test_the_mean_of_matrices_that_commute_is_their_geometric_mean(selection):
    q, _ = torch.linalg.qr(Noise(0).normal(3, 3))
    logs = Noise(1).normal(5, 3)
    samples = symmetric((q * logs.exp().unsqueeze(-2)) @ q.mT)
    mean = (q * logs.mean(0).exp()) @ q.mT
    p = ManifoldParameter(torch.eye(3, dtype=torch.float64), manifold=MANIFOLD)
    optimizer = SRCD([p], 0.5, selection)
    for _ in range(200):
        optimizer.zero_grad()
        frechet(p, samples).backward()
        optimizer.step()
    assert float(MANIFOLD.dist(p.detach(), mean)) <= 1e-4


def test_the_condition_number_does_not_matter():
    """From L·x·Lᵀ to L·y·Lᵀ, steps are those from x to y."""
    noise = Noise(0)
    x, y = point(noise, 4, 4), point(noise, 4, 4)
    distances = []
    for factor in (
        torch.eye(4, dtype=torch.float64),
        torch.linalg.cholesky(conditioned(noise, 4, 1e6)),
    ):
        p = ManifoldParameter(symmetric(factor @ x @ factor.mT), manifold=MANIFOLD)
        target = symmetric(factor @ y @ factor.mT)
        optimizer = SRCD([p], 0.5, GaussSouthwell())
        for _ in range(20):
            optimizer.zero_grad()
            (MANIFOLD.dist2(p, target) / 2).backward()
            optimizer.step()
        distances.append(float(MANIFOLD.dist(p.detach(), target)))
    assert distances[0] < 0.3 * float(MANIFOLD.dist(x, y))
    assert abs(distances[0] - distances[1]) <= 1e-6


@pytest.mark.parametrize("optimizer", ["coordinates", "gradient"])
def test_positive_definite_after_many_steps_in_float32(optimizer):
    """Noisy gradients that pull and push without end; at a condition number of 10⁵."""
    noise = Noise(0)
    target = conditioned(noise, 4, 1e5, torch.float32)
    p = ManifoldParameter(target.clone(), manifold=MANIFOLD)
    steps = SRCD([p], 0.3) if optimizer == "coordinates" else SRGD([p], 0.1)
    for _ in range(500):
        steps.zero_grad()
        (MANIFOLD.dist2(p, target) / 2).backward()
        inverse = torch.linalg.inv(torch.linalg.cholesky(p.detach().double()))
        p.grad += (inverse.mT @ symmetric(noise.normal(4, 4)) @ inverse).float()
        steps.step()
    assert is_positive_definite(p.detach())
    assert float(MANIFOLD.dist(p.detach(), target)) < 10
