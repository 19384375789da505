"""Hyperbolic space as a hyperboloid, with rotations and boosts as coordinates."""

import math
from decimal import Decimal, localcontext

import geoopt
import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, dtypes, error, layouts, noises
from torch import Tensor

from givens.manifolds import All, Coordinates, Groups, Lorentz
from givens.optim import SRCD, SRGD, GaussSouthwell, Uniform

sizes = st.integers(1, 5)
curvatures = st.sampled_from([1.0, 0.25, 4.0])


def eps(dtype):
    return torch.finfo(dtype).eps


def point(noise, manifold, *size, dtype=torch.float64):
    return manifold.random(*size, dtype=dtype, generator=noise.generator).as_subclass(Tensor)


def at(manifold, v, distance, dtype=torch.float64):
    """The point at a distance from the origin, in the direction of a vector of n entries."""
    root = math.sqrt(manifold.k)
    v = v.double() / v.double().norm(dim=-1, keepdim=True) * root * math.sinh(distance / root)
    return manifold.projx(torch.cat([torch.zeros_like(v[..., :1]), v], -1).to(dtype))


def tangent(noise, manifold, x):
    """A random unit vector at a point in float64."""
    u = manifold.proju(x, noise.like(x))
    return u / manifold.norm(x, u, keepdim=True)


def minkowski(u, v):
    return (u * v)[..., 1:].sum(-1) - u[..., 0] * v[..., 0]


def distance(x, y):
    """The distance of two points that x_1, …, x_n and k = 1 say, to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        a, b = ([Decimal(value) for value in z[1:].tolist()] for z in (x, y))
        first, second = ((1 + sum(value * value for value in z)).sqrt() for z in (a, b))
        cosine = first * second - sum(p * q for p, q in zip(a, b, strict=True))
        return float((cosine + max(cosine * cosine - 1, Decimal(0)).sqrt()).ln())


# Points and vectors


@given(batch_shapes, sizes, curvatures, dtypes, noises)
def test_random_points_are_on_the_upper_sheet_and_repeat(batch, n, k, dtype, noise: Noise):
    manifold = Lorentz(k)
    x = manifold.random(*batch, n + 1, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, n + 1), dtype, manifold)
    y = x.as_subclass(Tensor).double()
    assert (y[..., 0] > 0).all()
    assert error(minkowski(y, y), torch.tensor(-k)) <= 4 * eps(dtype) * float(y.square().max())
    again = manifold.random(*batch, n + 1, dtype=dtype, generator=Noise(noise.seed).generator)
    assert torch.equal(x, again)


def test_random_points_have_normal_logarithms():
    manifold = Lorentz(4.0)
    x = point(Noise(0), manifold, 4000, 4)
    log = manifold.logmap(manifold.origin(4000, 4, dtype=torch.float64).as_subclass(Tensor), x)
    variance = log[:, 1:].var(0)
    assert ((variance * 3 / 4 - 1).abs() <= 5 * math.sqrt(2 / 4000)).all()
    assert (log.mean(0).abs() <= 5 * math.sqrt(4 / 3 / 4000)).all()


@pytest.mark.parametrize("k", [0.0, -1.0, math.inf, math.nan])
def test_k_must_be_positive(k):
    with pytest.raises(ValueError, match="above 0; the curvature is −1/k"):
        Lorentz(k)


def test_the_check_names_what_is_wrong():
    manifold = Lorentz(2.0)
    x = manifold.origin(3).as_subclass(Tensor)
    cases = {
        "expects (..., n + 1)": x[:1],
        "works in float32 and float64": x.half(),
        "x_0 is off √(k + x_1² + … + x_n²) by up to 2.8e+00, with k = 2": -x,
        "x_0 is off": x * math.nan,
    }
    for words, y in cases.items():
        ok, reason = manifold.check_point_on_manifold(y, explain=True)
        assert not ok
        assert words in reason
    ok, reason = manifold.check_vector_on_tangent(x, x, explain=True)
    assert not ok
    assert "u_0 is off" in reason


# Maps


@given(batch_shapes, sizes, curvatures, noises)
def test_maps_are_those_of_geoopt(batch, n, k, noise: Noise):
    manifold = Lorentz(k)
    theirs = geoopt.Lorentz(torch.tensor(k, dtype=torch.float64))
    x, y = (point(noise, manifold, *batch, n + 1) for _ in range(2))
    u, v, g = tangent(noise, manifold, x), tangent(noise, manifold, x), noise.like(x)
    # geoopt's distance, and what it makes of it, have half the digits next to 0.
    apart = float(manifold.dist(x, y).min())
    limit, half = (scale * float(1 + x.abs().max() + y.abs().max()) ** 3 for scale in (1e-12, 1e-6))
    assert error(manifold.projx(g), theirs.projx(g)) <= limit
    assert error(manifold.inner(x, u, v), theirs.inner(x, u, v)) <= limit
    assert error(manifold.egrad2rgrad(x, g), theirs.egrad2rgrad(x, g.clone())) <= limit
    assert error(manifold.expmap(x, u), theirs.expmap(x, u).detach()) <= limit
    if apart > 0.1:
        assert error(manifold.dist(x, y), theirs.dist(x, y).detach()) <= half
        assert error(manifold.logmap(x, y), theirs.logmap(x, y).detach()) <= half
        assert error(manifold.transp(x, y, v), theirs.transp(x, y, v).detach()) <= half


def test_what_geoopt_does_otherwise():
    manifold, theirs = Lorentz(), geoopt.Lorentz(torch.tensor(1.0, dtype=torch.float64))
    x, g = point(Noise(0), manifold, 4), Noise(1).normal(4)
    # A point is at a distance from itself.
    assert float(manifold.dist(x, x)) == 0
    assert float(theirs.dist(x, x)) > 1e-8
    # The gradient that one asks for is written into what one gives.
    for other, changed in ((manifold, False), (theirs, True)):
        given = g.clone()
        other.egrad2rgrad(x, given)
        assert (not torch.equal(given, g)) is changed
    # Far out, the distance of two neighbours is lost, and a point is none.
    x = at(manifold, Noise(2).normal(3), 21.0)
    y = manifold.expmap(x, tangent(Noise(3), manifold, x))
    assert abs(float(manifold.dist(x, y)) - 1) < 1e-6
    assert not abs(float(theirs.dist(x, y)) - 1) < 0.5
    assert manifold.check_point_on_manifold(x)
    assert not theirs.check_point_on_manifold(x)


@given(batch_shapes, sizes, curvatures, noises)
def test_transport_by_end_points_is_that_along_the_geodesic(batch, n, k, noise: Noise):
    manifold = Lorentz(k)
    x, y = (point(noise, manifold, *batch, n + 1) for _ in range(2))
    v = tangent(noise, manifold, x)
    along = manifold.transp_follow_expmap(x, manifold.logmap(x, y), v)
    limit = 1e-12 * float(1 + x.abs().max() + y.abs().max()) ** 3
    assert error(manifold.transp(x, y, v), along) <= limit


@pytest.mark.parametrize(
    ("dtype", "distances"),
    [(torch.float32, [1, 5, 9, 13]), (torch.float64, [1, 9, 17, 25, 29])],
    ids=["float32", "float64"],
)
def test_far_out_errors_are_those_of_the_points(dtype, distances):
    """At most what the rounding of points moves them by, which is ε·x_0 or so."""
    manifold, noise = Lorentz(), Noise(0)
    for r in distances:
        spacing = eps(dtype) * math.cosh(r)
        for _ in range(5):
            x = at(manifold, noise.normal(4), r, dtype)
            y = manifold.expmap(x.double(), tangent(noise, manifold, x.double()))
            y = manifold.projx(y.to(dtype))
            exact = distance(x, y)
            assert abs(float(manifold.dist(x, y)) - exact) <= spacing + 2 * eps(dtype)
            z = manifold.expmap(x, manifold.logmap(x, y))
            assert distance(z, y) <= 4 * spacing
            origin = manifold.origin(5, dtype=dtype).as_subclass(Tensor)
            assert abs(float(manifold.dist(x, origin)) - distance(x, origin)) <= 8 * eps(dtype) * r
            w, index, t = x.clone(), noise.integers(10, 20, 1), 0.3 * noise.normal(20, 1)
            for i, s in [*zip(index, t, strict=True), *zip(index.flip(0), -t.flip(0), strict=True)]:
                manifold.move_(w, Coordinates(i, disjoint=True), s)
            assert distance(w, x) <= 20 * spacing


@pytest.mark.parametrize("r", [1.0, 10.0, 30.0])
def test_a_boost_comes_back_from_far_out(r):
    """From the point at the distance r on an axis to the origin, where nothing of e^{2r}·ε is left."""
    manifold = Lorentz()
    for sign in (1, -1):
        x = at(manifold, torch.tensor([0.0, sign * 1.0]), r)
        boost = Coordinates(torch.tensor([1]), disjoint=True)
        y = manifold.move(x, boost, torch.tensor([-sign * r], dtype=torch.float64))
        assert error(y, manifold.origin(3, dtype=torch.float64)) <= 1e-14 * r


# Coordinates


def generator(n, j, l):
    """The matrix of the coordinate (j, l), which acts on columns."""
    e = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    e[l, j], e[j, l] = 1, 1 if j == 0 else -1
    return e


@given(sizes, curvatures, noises, st.floats(-3, 3))
def test_a_coordinate_is_a_group_of_lorentz_transformations(n, k, noise: Noise, t):
    manifold = Lorentz(k)
    x = point(noise, manifold, n + 1)
    for number in range(n * (n + 1) // 2):
        one = Coordinates(torch.tensor([number]), disjoint=True)
        e = generator(n, *manifold.axes(x, one.index)[0].tolist())
        expected = torch.from_numpy(scipy.linalg.expm((t * e).numpy())) @ x
        y = manifold.move(x, one, torch.tensor([t], dtype=torch.float64))
        assert error(y, expected) <= 1e-13 * float(1 + expected.abs().max())
        assert error(manifold.direction(x, one.index)[0], e @ x) == 0


@given(st.integers(2, 5), st.integers(2, 5), noises)
def test_a_group_moves_by_its_matrix(n, r, noise: Noise):
    r = min(r, n + 1)
    manifold = Lorentz()
    x = point(noise, manifold, n + 1)
    axes = noise.permutations((), n + 1)[:r].sort().values
    t = noise.skew(1, r, r) / 2
    e = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    for a in range(r):
        for b in range(a + 1, r):
            e += t[0, a, b] * generator(n, int(axes[a]), int(axes[b]))
    expected = torch.from_numpy(scipy.linalg.expm(e.numpy())) @ x
    y = manifold.move(x, Groups(axes.unsqueeze(0)), t)
    assert error(y, expected) <= 1e-12 * float(1 + expected.abs().max())


def frames(manifold, x):
    """⟨q, f_i⟩ for an orthonormal tangent basis q and all directions: shape (n, D)."""
    n = x.shape[-1] - 1
    u = manifold.proju(x.expand(n, n + 1), torch.eye(n + 1, dtype=x.dtype)[1:])
    values, mix = torch.linalg.eigh(
        manifold.inner(x.expand(n, n, -1), u.unsqueeze(1).expand(n, n, -1), u.expand(n, n, -1))
    )
    u = (mix / values.sqrt()).mT @ u
    f = manifold.direction(x, torch.arange(n * (n + 1) // 2))
    u, f = u.unsqueeze(1).expand(-1, len(f), -1), f.expand(n, *f.shape)
    return manifold.inner(x.expand_as(f), u, f)


@given(st.integers(1, 6), st.floats(0, 6), st.integers(1, 8), curvatures, noises)
def test_a_scaled_step_is_never_longer_than_the_gradient_step(n, r, power, k, noise: Noise):
    """Σ⟨u, f_i⟩²/s_i ≤ ‖u‖² at every point, between the axes and next to them."""
    manifold = Lorentz(k)
    x = at(manifold, noise.normal(n) ** power, r * math.sqrt(k))
    frame = frames(manifold, x) / manifold.step_scale(x, All()).sqrt()
    assert float(torch.linalg.eigvalsh(frame @ frame.mT)[-1]) <= 1 + 1e-13 * float(x[0] ** 2)


def test_no_smaller_scales_would_do():
    """Near the origin, halfway between two axes, a factor of 3.99 in the place of 4 exceeds the bound."""
    manifold = Lorentz()
    entry = math.sqrt(5e-4)
    x = manifold.projx(torch.tensor([0.0, entry, entry], dtype=torch.float64))
    scale = manifold.step_scale(x, All())
    for factor, longer in ((4.0, False), (3.99, True)):
        frame = frames(manifold, x) / (1 + (scale - 1) * factor / 4).sqrt()
        assert bool(torch.linalg.eigvalsh(frame @ frame.mT).max() > 1 + 1e-12) is longer


@pytest.mark.parametrize("r", [0.0, 1.0, 5.0])
def test_along_an_axis_the_boost_is_the_gradient_step(r):
    manifold = Lorentz(0.5)
    x = at(manifold, torch.tensor([0.0, 1.0, 0.0]), r)
    scale = manifold.step_scale(x, All())
    assert abs(float(scale[1]) - 0.5) <= 1e-12 * float(x[0] ** 2)
    f = manifold.direction(x, torch.tensor([1]))[0]
    assert abs(float(manifold.inner(x, f)) - 0.5) <= 1e-12 * float(x[0] ** 2)


@pytest.mark.parametrize("r", [0.0, 1.0, 3.0, 5.0])
def test_the_frame_is_as_unequal_as_the_docs_say(r):
    manifold = Lorentz(0.5)
    x = at(manifold, Noise(0).normal(4), r)
    frame = frames(manifold, x)
    bounds = torch.linalg.eigvalsh(frame @ frame.mT)[[0, -1]]
    assert abs(float(bounds[0]) / 0.5 - 1) <= 1e-6
    assert abs(float(bounds[1] / (2 * x[0] ** 2 - 0.5)) - 1) <= 1e-6


@given(batch_shapes, st.integers(2, 5), st.integers(2, 5), noises)
def test_a_group_has_the_scales_of_its_coordinates(batch, n, r, noise: Noise):
    r = min(r, n + 1)
    manifold = Lorentz()
    x = point(noise, manifold, *batch, n + 1)
    block = Groups(noise.groups(batch, n + 1, r).axes)
    scales = manifold.group_values(x, manifold.step_scale(x, block))
    numbers = manifold.group_coordinates(x, block)
    each = manifold.step_scale(x, Coordinates(numbers.flatten(-2), disjoint=False))
    assert error(scales.flatten(-2), each) <= 1e-13 * float(each.max())
    assert error(manifold.step_scale(x, block), manifold.step_scale(x, block).mT) == 0


@given(batch_shapes, st.integers(2, 5), noises)
def test_memory_layouts_do_not_matter(batch, n, noise: Noise):
    manifold = Lorentz()
    x = point(noise, manifold, *batch, 2, n + 1)
    block, t = Coordinates(torch.tensor([0, n]), disjoint=False), noise.normal(2)
    expected = manifold.move(x, block, t)
    for y in layouts(x):
        assert error(manifold.move_(y, block, t), expected) <= 1e-12 * float(expected.abs().max())


# Optimization


@pytest.mark.parametrize("selection", [GaussSouthwell(), Uniform()], ids=repr)
def test_it_finds_the_middle_of_two_points(selection):
    manifold = Lorentz()
    x, y = point(Noise(0), manifold, 4), point(Noise(1), manifold, 4)
    middle = manifold.expmap(x, manifold.logmap(x, y) / 2)
    p = ManifoldParameter(manifold.origin(4, dtype=torch.float64), manifold=manifold)
    optimizer = SRCD([p], 0.2, selection)
    for _ in range(400):
        optimizer.zero_grad()
        (manifold.dist2(p, x) + manifold.dist2(p, y)).backward()
        optimizer.step()
    assert float(manifold.dist(p.detach(), middle)) <= 1e-6


@pytest.mark.parametrize("optimizer", ["coordinates", "gradient"])
def test_on_the_hyperboloid_after_many_noisy_steps_in_float32(optimizer):
    manifold, noise = Lorentz(), Noise(0)
    target = at(manifold, noise.normal(3), 4.0, torch.float32)
    p = ManifoldParameter(target.clone(), manifold=manifold)
    steps = SRCD([p], 0.5) if optimizer == "coordinates" else SRGD([p], 0.1)
    for _ in range(500):
        steps.zero_grad()
        (manifold.dist2(p, target) / 2).backward()
        u = tangent(noise, manifold, p.detach().double())
        p.grad += torch.cat([-u[:1], u[1:]]).float()  # whose Riemannian gradient is u
        steps.step()
    x = p.detach().double()
    assert abs(float(minkowski(x, x)) + 1) <= 8 * eps(torch.float32) * float(x[0]) ** 2
    assert float(manifold.dist(p.detach(), target)) < 5
