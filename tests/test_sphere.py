"""The sphere: points, tangent vectors, maps, coordinates, and descent on it."""

import math
from itertools import combinations, product

import geoopt
import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, Noise, batch_shapes, dims, dtypes, error, noises
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from givens.manifolds import All, Coordinates, Groups, Sphere
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, Uniform

SPHERE = Sphere()
KINDS = ["matching", "overlapping", "groups", "all"]


def eps(dtype):
    return torch.finfo(dtype).eps


def point(noise, *shape, dtype=torch.float64):
    return SPHERE.random(*shape, dtype=dtype, generator=noise.generator).as_subclass(Tensor)


def tangent(noise, x, length=None):
    u = SPHERE.proju(x, noise.like(x))
    return u if length is None else length * u / u.norm(dim=-1, keepdim=True)


def off_sphere(x):
    """Largest | ‖x‖ − 1 |, by sums that do not round."""
    norms = [math.hypot(*row) for row in x.detach().reshape(-1, x.shape[-1]).tolist()]
    return max((abs(norm - 1) for norm in norms), default=0.0)


def layouts(x):
    """Copies in other memory layouts: contiguous, every other entry of more, back to front in memory."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
    wide[..., ::2] = x
    across = x.permute(*reversed(range(x.dim()))).clone(memory_format=torch.contiguous_format)
    return [x.clone(), wide[..., ::2], across.permute(*reversed(range(x.dim())))]


def rotation(x, u):
    """The rotation of ℝⁿ that follows the geodesic from x along u, by scipy's matrix exponential."""
    a = u.unsqueeze(-1) * x.unsqueeze(-2) - x.unsqueeze(-1) * u.unsqueeze(-2)
    return torch.from_numpy(scipy.linalg.expm(a.double().numpy()))


def apply(g, x):
    return (g @ x.double().unsqueeze(-1)).squeeze(-1)


# Points


@given(batch_shapes, dims, dtypes, noises)
def test_random_points_are_of_norm_1_to_the_last_digit(batch, n, dtype, noise: Noise):
    x = SPHERE.random(*batch, n, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, n), dtype, SPHERE)
    assert off_sphere(x) <= eps(dtype)
    SPHERE.assert_check_point_on_manifold(x)
    again = SPHERE.random(*batch, n, dtype=dtype, generator=Noise(noise.seed).generator)
    assert torch.equal(x, again)


def test_random_points_are_uniform():
    """Moments of the uniform distribution, within five standard errors, before and after a rotation."""
    count, n = 20_000, 4
    noise = Noise(0)
    x = point(noise, count, n)

    def assert_mean(sample, mean):
        assert abs(float(sample.mean()) - mean) <= 5 * float(sample.std()) / math.sqrt(count)

    for y in (x, x @ noise.point(n, n)):
        for i in range(n):
            assert_mean(y[:, i], 0.0)
            assert_mean(y[:, i] ** 2, 1 / n)
            assert_mean(y[:, i] ** 4, 3 / (n * (n + 2)))
        for i, j in combinations(range(n), 2):
            assert_mean(y[:, i] * y[:, j], 0.0)


@given(batch_shapes, dims, dtypes)
def test_origin_is_the_first_unit_vector(batch, n, dtype):
    x = SPHERE.origin(*batch, n, dtype=dtype, seed=3)
    assert x.manifold is SPHERE
    assert torch.equal(x, torch.eye(n, dtype=dtype)[0].expand(*batch, n))
    x.mul_(2)  # owns its memory
    assert float(x.sum()) == 2 * math.prod(batch)


@given(batch_shapes, dims, dtypes, st.floats(-1, 1), noises)
def test_projx_is_the_direction_of_vectors_of_any_length(batch, n, dtype, power, noise: Noise):
    m = noise.normal(*batch, n, dtype=dtype)
    largest = {torch.float32: 37, torch.float64: 306}[dtype]
    for y in layouts(m * 10.0 ** (power * largest)):
        x = SPHERE.projx(y)
        assert x.dtype == dtype
        assert off_sphere(x) <= eps(dtype)
        # Numbers below the smallest normal one have fewer digits.
        loss = 0 if power * largest > -30 or dtype == torch.float64 else 1e-2
        expected = m.double() / m.double().norm(dim=-1, keepdim=True)
        assert error(x, expected) <= 4 * eps(dtype) + loss
    assert error(SPHERE.projx(x), x) <= eps(dtype)


@given(dims, noises)
def test_projx_is_nearer_than_any_other_point(n, noise: Noise):
    m = noise.normal(n)
    others = point(noise, 100, n)
    nearest = (SPHERE.projx(m) - m).norm()
    assert ((others - m).norm(dim=-1) >= nearest - 1e-12).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_projx_takes_the_zero_vector_to_the_origin(dtype):
    """Every point is nearest to it. geoopt's answer is NaN."""
    m = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]], dtype=dtype, requires_grad=True)
    x = SPHERE.projx(m)
    assert error(x.detach(), torch.tensor([[1, 0, 0], [0.6, 0, 0.8]], dtype=torch.float64)) <= eps(
        dtype
    )
    (x * torch.arange(3)).sum().backward()
    assert torch.equal(m.grad[0], torch.zeros(3))
    assert m.grad[1].isfinite().all()
    assert m.grad[1].norm() > 0
    assert geoopt.Sphere().projx(m)[0].isnan().all()


@given(batch_shapes, st.integers(2, 300), dtypes, noises)
def test_restoring_reaches_the_last_digit(batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    for y in layouts(x + 1e-3 * noise.like(x)):
        expected = y.double() / y.double().norm(dim=-1, keepdim=True)
        assert SPHERE.restore_(y) is y
        assert off_sphere(y) <= eps(dtype) + 3e-16
        assert error(y, expected) <= eps(dtype)
    assert error(SPHERE.restore_(x.clone()), x) <= eps(dtype)


# Tangent vectors


@given(batch_shapes, dims, dtypes, noises)
def test_proju_is_an_orthogonal_projection_on_the_tangent_space(batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    u, v = noise.like(x), noise.like(x)
    p = SPHERE.proju(x, u)
    limit = 20 * n * eps(dtype) * float(1 + u.abs().max()) * float(1 + v.abs().max())
    assert p.dtype == dtype
    assert error(SPHERE.proju(x, p), p) <= limit  # idempotent
    assert error(SPHERE.inner(x, p, v), SPHERE.inner(x, u, SPHERE.proju(x, v))) <= limit
    assert error((x * p).sum(-1), torch.zeros(batch)) <= limit  # tangent
    assert error(SPHERE.proju(x, 3 * x), torch.zeros_like(x)) <= limit  # kills the normal
    assert SPHERE.check_vector_on_tangent(x, p)


@given(batch_shapes, dims, noises)
def test_the_riemannian_gradient_represents_the_derivative(batch, n, noise: Noise):
    x = point(noise, *batch, n)
    target, u = noise.like(x), tangent(noise, x)
    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(((y * target).sin() * target).sum(), y)
    t = torch.zeros(*batch, 1, dtype=x.dtype, requires_grad=True)
    cost = ((SPHERE.expmap(x, t * u) * target).sin() * target).sum()
    (derivative,) = torch.autograd.grad(cost, t)
    rgrad = SPHERE.egrad2rgrad(x, egrad)
    assert error(SPHERE.inner(x, rgrad, u, keepdim=True), derivative) <= 1e-12


@given(batch_shapes, dims, dtypes, noises)
def test_inner_and_norm_are_those_of_the_space_around(batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    u, v = tangent(noise, x), tangent(noise, x)
    expected = torch.einsum("...i,...i", u.double(), v.double())
    assert SPHERE.inner(x, u, v).shape == SPHERE.norm(x, u).shape == batch
    assert SPHERE.inner(x, u, v, keepdim=True).shape == (*batch, 1)
    assert SPHERE.norm(x, u, keepdim=True).shape == (*batch, 1)
    assert error(SPHERE.inner(x, u, v), expected) <= 50 * eps(dtype)
    assert error(SPHERE.norm(x, u) ** 2, SPHERE.inner(x, u)) <= 50 * eps(dtype)
    assert SPHERE.inner(x.expand(5, *x.shape), u).shape == (5, *batch)
    assert SPHERE.norm(x.expand(5, *x.shape), u).shape == (5, *batch)


# Exponential, logarithm, distance


@given(batch_shapes, dims, st.floats(-8, 1.3), noises)
def test_expmap_is_the_rotation_of_the_plane_of_x_and_u(batch, n, power, noise: Noise):
    x = point(noise, *batch, n)
    u = tangent(noise, x, 10**power)
    expected = apply(rotation(x, u), x)
    for y, v in zip(layouts(x), layouts(u), strict=True):
        assert error(SPHERE.expmap(y, v), expected) <= 1e-14 * (1 + 10**power)
    single = SPHERE.expmap(x.float(), u.float())
    assert single.dtype == torch.float32
    assert error(single, expected) <= 1e-6 * (1 + 10**power)
    assert off_sphere(single) <= 1e-6 * (1 + 10**power)


@given(dims, noises, st.floats(-3, 3))
def test_a_part_that_is_not_tangent_is_left_out(n, noise: Noise, normal):
    """As geoopt's optimizers need it, whose momentum starts with the Euclidean gradient."""
    x = point(noise, n)
    u, v = tangent(noise, x), tangent(noise, x)
    for f in (SPHERE.expmap, Sphere("projection").retr):
        assert error(f(x, u + normal * x), f(x, u)) <= 1e-14
    carried = SPHERE.transp_follow_expmap(x, u, v)
    assert error(SPHERE.transp_follow_expmap(x, u + normal * x, v), carried) <= 1e-14 * (
        1 + float(v.norm() + u.norm())
    )


@given(dims, dtypes, st.floats(-30, 0), noises)
def test_a_short_step_is_accurate_relative_to_its_length(n, dtype, power, noise: Noise):
    x = SPHERE.origin(n, dtype=dtype).as_subclass(Tensor)
    u = tangent(noise, x, 10.0**power)
    theta = u.double().norm()
    expected = (u.double() * theta.sin() / theta)[1:]
    assert error(SPHERE.expmap(x, u)[1:], expected) <= 4 * eps(dtype) * 10.0**power


def test_short_steps_in_float32_do_not_drift():
    """cos θ rounds to 1 below 2.4e-4: with it, as in geoopt, every step makes the point longer."""

    def drift(expmap):
        noise = Noise(0)
        x = point(noise, 10, dtype=torch.float32)
        worst = 0.0
        for _ in range(2000):
            x = expmap(x, tangent(noise, x, 2e-4))
            worst = max(worst, off_sphere(x))
        return worst

    assert drift(SPHERE.expmap) <= 1e-6
    assert drift(geoopt.Sphere().expmap) > 2e-5


@given(dims, noises, st.floats(-2, 2), st.floats(-2, 2))
def test_the_geodesic_is_a_one_parameter_group(n, noise: Noise, s, t):
    x = point(noise, n)
    u = tangent(noise, x)
    halfway, velocity = SPHERE.expmap_transp(x, s * u, u)
    whole = SPHERE.expmap(x, (s + t) * u)
    assert error(SPHERE.expmap(halfway, t * velocity), whole) <= 1e-13 * (1 + float(u.norm()))
    assert torch.equal(SPHERE.expmap(x, 0 * u), x)


@given(batch_shapes, dims, dtypes, st.floats(-4, math.log10(math.pi)), noises)
def test_log_after_exp_inside_the_injectivity_radius(batch, n, dtype, power, noise: Noise):
    length = min(10**power, math.pi - 0.01)
    x = point(noise, *batch, n, dtype=dtype)
    u = tangent(noise, x, length)
    for y, z in zip(layouts(x), layouts(SPHERE.expmap(x, u)), strict=True):
        log = SPHERE.logmap(y, z)
        assert log.dtype == dtype
        # Badly conditioned towards π: there a small change of the point is a large one of the vector.
        assert error(log, u) <= 40 * eps(dtype) / (math.pi - length)
        assert SPHERE.check_vector_on_tangent(x, log)


@given(dims, dtypes, st.floats(-12, -1), st.booleans(), noises)
def test_log_and_dist_are_accurate_next_to_x_and_next_to_the_cut_locus(
    n, dtype, power, opposite, noise: Noise
):
    """Relative to the small angle, at the origin, where a neighbour can be represented."""
    x = SPHERE.origin(n, dtype=dtype).as_subclass(Tensor)
    u = tangent(noise, x, 10.0**power)
    small = u.double().norm()
    y = SPHERE.expmap(x, u)
    expected = u.double()
    if opposite:
        y = y * torch.cat([-torch.ones(1), torch.ones(n - 1)]).to(dtype)
        expected = expected / small * (math.pi - small)
    limit = 8 * eps(dtype) * float(expected.norm())
    assert error(SPHERE.dist(x, y), expected.norm()) <= limit
    if not opposite or small > 2 * eps(dtype):
        assert error(SPHERE.logmap(x, y), expected) <= limit


@given(batch_shapes, dims, dtypes, noises)
def test_exp_after_log(batch, n, dtype, noise: Noise):
    x, y = (point(noise, *batch, n, dtype=dtype) for _ in range(2))
    u = SPHERE.logmap(x, y)
    assert error(SPHERE.expmap(x, u), y) <= 10 * eps(dtype)
    assert error(SPHERE.norm(x, u), SPHERE.dist(x, y)) <= 10 * eps(dtype)


@given(batch_shapes, dims, dtypes, noises)
def test_opposite_points(batch, n, dtype, noise: Noise):
    """Exactly, and up to rounding: some shortest vector, which depends on x alone."""
    x = point(noise, *batch, n, dtype=dtype)
    rounded = -x * (1 + eps(dtype) * noise.integers(3, *x.shape).sub(1))
    for y in (-x, rounded):
        u = SPHERE.logmap(x, y)
        assert error(SPHERE.norm(x, u), torch.tensor(math.pi, dtype=torch.float64)) <= 8 * eps(
            dtype
        )
        assert SPHERE.check_vector_on_tangent(x, u)
        assert error(SPHERE.expmap(x, u), y) <= 16 * eps(dtype)
        assert error(SPHERE.dist(x, y), torch.tensor(math.pi, dtype=torch.float64)) <= 8 * eps(
            dtype
        )
    assert torch.equal(SPHERE.logmap(x, -x), SPHERE.logmap(x, -x.clone()))


@given(batch_shapes, dims, noises)
def test_dist_is_a_metric_that_rotations_keep(batch, n, noise: Noise):
    x, y, z = (point(noise, *batch, n) for _ in range(3))
    xy = SPHERE.dist(x, y)
    assert xy.shape == batch
    assert torch.equal(SPHERE.dist(x, y, keepdim=True), xy.unsqueeze(-1))
    assert torch.equal(SPHERE.dist(y, x), xy)
    assert torch.equal(SPHERE.dist(x, x), torch.zeros(batch))
    assert (xy <= SPHERE.dist(x, z) + SPHERE.dist(z, y) + 1e-14).all()
    assert error(xy.cos(), (x * y).sum(-1)) <= 1e-14
    g = noise.point(n, n)
    assert error(SPHERE.dist(x @ g, y @ g), xy) <= 1e-13


@given(dims, noises)
def test_where_geoopt_is_right_we_agree(n, noise: Noise):
    other = geoopt.Sphere()
    x = point(noise, n)
    u = tangent(noise, x, 1.3)
    y = other.expmap(x, u)
    assert error(SPHERE.expmap(x, u), y) <= 1e-14
    assert error(SPHERE.logmap(x, y), other.logmap(x, y)) <= 1e-13
    assert error(SPHERE.dist(x, y), other.dist(x, y)) <= 1e-13
    assert error(Sphere("projection").retr(x, u), other.retr(x, u)) <= 1e-14
    assert error(SPHERE.transp(x, y, u), other.transp(x, y, u)) <= 1e-14


def test_why_geoopts_sphere_is_not_ours():
    """Its distance is bounded from below, its logarithm wrong by a factor, its gradients NaN."""
    other = geoopt.Sphere()
    x = point(Noise(0), 5, dtype=torch.float32)
    assert SPHERE.dist(x, x) == 0
    assert other.dist(x, x) > 0.014
    u = tangent(Noise(1), x, 1e-4)
    y = other.expmap(x, u)
    assert SPHERE.logmap(x, y).norm() == pytest.approx(1e-4, rel=1e-3)
    assert other.logmap(x, y).norm() > 0.01
    for manifold, finite in ((SPHERE, True), (other, False)):
        v = torch.zeros(5, requires_grad=True)
        (gradient,) = torch.autograd.grad(manifold.expmap(x, v).sum(), v)
        assert bool(gradient.isfinite().all()) is finite


# Retraction and transport


@given(dims, noises)
def test_both_retractions_follow_the_geodesic_to_order_2(n, noise: Noise):
    x = point(noise, n)
    u = tangent(noise, x, 0.1)
    projection = Sphere("projection")
    assert torch.equal(SPHERE.retr(x, u), SPHERE.expmap(x, u))
    assert error(projection.retr(x, u), projection.projx(x + u)) <= 1e-15
    errors = [error(projection.retr(x, t * u), SPHERE.expmap(x, t * u)) for t in (1.0, 0.5)]
    assert 7 <= errors[0] / errors[1] <= 9


@given(batch_shapes, dims, dtypes, st.floats(-8, 1), noises)
def test_parallel_transport_is_the_rotation_of_the_geodesic(batch, n, dtype, power, noise: Noise):
    """The rotation in the plane of x and u, which fixes what is normal to the plane."""
    x = point(noise, *batch, n, dtype=dtype)
    u = tangent(noise, x, 10**power)
    v, w = tangent(noise, x), tangent(noise, x)
    y, carried = SPHERE.expmap_transp(x, u, v)
    limit = 50 * n * eps(dtype) * (1 + 10**power) * float(1 + v.abs().max() * w.abs().max())
    assert torch.equal(y, SPHERE.expmap(x, u))
    assert torch.equal(carried, SPHERE.transp_follow_expmap(x, u, v))
    assert carried.dtype == dtype
    assert error(carried, apply(rotation(x, u), v)) <= limit
    assert error((y * carried).sum(-1), torch.zeros(batch)) <= limit
    other = SPHERE.transp_follow_expmap(x, u, w)
    assert error(SPHERE.inner(y, carried, other), SPHERE.inner(x, v, w)) <= limit  # an isometry
    back = SPHERE.transp_follow_expmap(y, -SPHERE.transp_follow_expmap(x, u, u), carried)
    assert error(back, v) <= 2 * limit


@given(dims, noises)
def test_transp_is_the_projection(n, noise: Noise):
    x, y = point(noise, n), point(noise, n)
    v = tangent(noise, x)
    assert torch.equal(SPHERE.transp(x, y, v), SPHERE.proju(y, v))


# Gradients, batches, devices


def quadratic(a):
    return lambda x: (x @ a * x).sum()


@pytest.mark.parametrize("length", [0.0, 1e-4, 0.19, 0.21, 1.0, 3.0])
def test_gradients_flow_through_every_map(length):
    noise = Noise(0)
    x = point(noise, 3, 4)
    u, v = tangent(noise, x, length), tangent(noise, x)
    y = SPHERE.expmap(x, u).detach()
    x, u, v, y = (z.requires_grad_() for z in (x, u, v, y))
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        check(SPHERE.proju, (x, v))
        check(SPHERE.expmap, (x, u))
        check(SPHERE.transp_follow_expmap, (x, u, v))
        check(SPHERE.projx, (v,))
        check(Sphere("projection").retr, (x, u))
        # The logarithm takes points; its argument moves on the sphere.
        check(lambda x, y: SPHERE.logmap(SPHERE.projx(x), SPHERE.projx(y)), (x, y))
    if length > 0:
        torch.autograd.gradcheck(lambda x, y: SPHERE.dist(x, y), (x, y))


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_where_a_quotient_is_0_over_0(dtype):
    noise = Noise(0)
    x = point(noise, 4, dtype=dtype)
    a = noise.normal(4, 4, dtype=dtype)
    a = a + a.mT
    projection = torch.eye(4, dtype=dtype) - torch.outer(x, x)
    # The Hessian of f∘Exp at 0 is the Riemannian one, here that of a quadratic form.
    found = hessian(
        lambda u: quadratic(a)(SPHERE.expmap(x, SPHERE.proju(x, u))), torch.zeros_like(x)
    )
    expected = 2 * projection @ (a - (x @ a @ x) * torch.eye(4, dtype=dtype)) @ projection
    assert error(found, expected) <= 100 * eps(dtype)
    log = jacobian(SPHERE.logmap, (x, x))
    assert error(log[1], projection) <= 10 * eps(dtype)
    assert error(projection @ log[0] @ projection, -projection) <= 10 * eps(dtype)
    assert hessian(lambda y: SPHERE.logmap(x, y).sum(), x).isfinite().all()


@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_finite_where_there_are_none(sign):
    x = point(Noise(0), 4).requires_grad_()
    y = (sign * x.detach()).requires_grad_()
    for f in (SPHERE.dist, SPHERE.logmap):
        gradients = torch.autograd.grad(f(x, y).sum(), (x, y), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)
    assert torch.equal(torch.autograd.grad(SPHERE.dist(x, y), x)[0], torch.zeros(4))
    u = torch.zeros(4, requires_grad=True)
    assert torch.equal(torch.autograd.grad(SPHERE.norm(x.detach(), u), u)[0], torch.zeros(4))


MAPS = {
    "projx": lambda x, u: SPHERE.projx(u),
    "proju": SPHERE.proju,
    "inner": SPHERE.inner,
    "norm": SPHERE.norm,
    "expmap": SPHERE.expmap,
    "logmap": lambda x, u: SPHERE.logmap(x, SPHERE.projx(u)),
    "dist": lambda x, u: SPHERE.dist(x, SPHERE.projx(u)),
    "transp": lambda x, u: SPHERE.transp(x, SPHERE.projx(u), u),
    "transp_follow_expmap": lambda x, u: SPHERE.transp_follow_expmap(x, u, u),
    "restore": lambda x, u: SPHERE.restore_(x + 0.01 * u),
}


@pytest.mark.parametrize("name", MAPS)
@given(st.sampled_from([(0,), (1,), (3,), (2, 3)]), dims, dtypes, noises)
def test_a_batch_is_a_loop(name, batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    u = noise.like(x)
    together = MAPS[name](x, u)
    assert together.dtype == dtype
    for at in product(*map(range, batch)):
        assert error(together[at], MAPS[name](x[at].clone(), u[at].clone())) <= 100 * eps(dtype)


@pytest.mark.parametrize("name", MAPS)
def test_maps_do_not_wait_for_the_device(name):
    """A meta tensor has no data, so whatever reads any raises."""
    x = SPHERE.origin(3, 5, device="meta").as_subclass(Tensor)
    assert MAPS[name](x, torch.empty_like(x)).device == x.device


# Checks, and bad input


@given(batch_shapes, dims, dtypes, st.floats(-4, 3), noises)
def test_checks_accept_what_is_on_and_reject_what_is_off(batch, n, dtype, power, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    u = tangent(noise, x)
    assert SPHERE.check_point_on_manifold(x)
    assert SPHERE.check_vector_on_tangent(x, u)
    off, normal = x.clone(), u.clone()
    off[(0,) * len(batch)] *= 1 + 10.0**power
    normal[(0,) * len(batch)] += 10.0**power * float(1 + u.norm()) * x[(0,) * len(batch)]
    ok, reason = SPHERE.check_point_on_manifold(off, explain=True)
    assert not ok
    assert "projx" in reason
    ok, reason = SPHERE.check_vector_on_tangent(x, normal, explain=True)
    assert not ok
    assert "proju" in reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_checks_reject_what_is_not_finite(bad):
    x = point(Noise(0), 2, 3)
    y = x.clone()
    y[1, 0] = bad
    assert not SPHERE.check_point_on_manifold(y)
    assert not SPHERE.check_vector_on_tangent(x, y - x)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5, 1)])
def test_shapes_that_no_point_has(shape):
    x = torch.zeros(shape)
    assert not SPHERE.check_point(x)
    assert not SPHERE.check_point_on_manifold(x)
    for raises in (
        lambda: SPHERE.random(*shape),
        lambda: SPHERE.origin(*shape),
        lambda: SPHERE.projx(x),
        lambda: SPHERE.assert_check_point_on_manifold(x),
    ):
        with pytest.raises(ValueError, match=r"expects \(\.\.\., n\) with n >= 2"):
            raises()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.complex64])
def test_dtypes_that_no_point_has(dtype):
    x = torch.eye(3).to(dtype)
    ok, reason = SPHERE.check_point_on_manifold(x, explain=True)
    assert not ok
    assert "float32 or float64" in reason
    for raises in (
        lambda: SPHERE.random(3, dtype=dtype),
        lambda: SPHERE.origin(3, dtype=dtype),
        lambda: SPHERE.projx(x),
    ):
        with pytest.raises(TypeError, match="float32 and float64"):
            raises()


def test_retractions_that_do_not_exist():
    with pytest.raises(ValueError, match=r"retraction 'euler' is unknown; .*'projection'"):
        Sphere("euler")
    assert repr(SPHERE) == "Sphere manifold"
    assert "projection" in repr(Sphere("projection"))


# Coordinates


def count(n):
    return n * (n - 1) // 2


def some_block(kind, noise, batch, n):
    """A block of a kind, and times of the shape that it prescribes."""
    if kind == "matching":
        block = noise.matching(batch, n, 1 + int(noise.integers(n // 2)))
        return block, noise.normal(*block.index.shape)
    if kind == "overlapping":  # some numbers occur twice
        return Coordinates(noise.integers(count(n), *batch, n), disjoint=False), noise.normal(
            *batch, n
        )
    if kind == "groups":
        block = noise.groups(batch, n, 2 + int(noise.integers(n - 1)))
        size, r = block.axes.shape[-2:]
        return block, noise.skew(*batch, size, r, r)
    return All(), noise.normal(*batch, count(n))


def generator_of(block, t, n):
    """Σ t_i (e_l e_jᵀ − e_j e_lᵀ), one coordinate after the other; the direction is its product with x."""
    pairs = list(combinations(range(n), 2))
    batch = t.shape[:-3] if isinstance(block, Groups) else t.shape[:-1]
    a = torch.zeros(*batch, n, n, dtype=torch.float64)
    for at in product(*map(range, batch)):
        if isinstance(block, Groups):
            terms = [
                (int(axes[i]), int(axes[k]), float(s[i, k]))
                for axes, s in zip(block.axes[at], t[at], strict=True)
                for i, k in combinations(range(len(axes)), 2)
            ]
        else:
            numbers = range(len(pairs)) if isinstance(block, All) else block.index[at].tolist()
            terms = [(*pairs[i], s) for i, s in zip(numbers, t[at].tolist(), strict=True)]
        for j, l, s in terms:
            a[(*at, l, j)] += s
            a[(*at, j, l)] -= s
    return a


@given(batch_shapes, dims, dtypes, noises)
def test_the_directions_are_a_parseval_frame(batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n)
    assert SPHERE.num_axes(x) == n
    assert SPHERE.num_coordinates(x) == count(n)
    assert SPHERE.frame_bounds == (1.0, 1.0)
    index = torch.arange(count(n))
    frame = SPHERE.direction(x, index)
    assert frame.shape == (*batch, count(n), n)
    assert error((frame * x.unsqueeze(-2)).sum(-1), torch.zeros(())) <= 1e-15  # tangent
    u = tangent(noise, x)
    coefficients = (frame * u.unsqueeze(-2)).sum(-1)
    assert error(coefficients.square().sum(-1), SPHERE.inner(x, u)) <= 1e-13
    assert error((coefficients.unsqueeze(-1) * frame).sum(-2), u) <= 1e-13
    j, l = SPHERE.axes(x, index).unbind(-1)
    assert torch.equal(SPHERE.number(x, j, l), index)
    assert list(map(tuple, SPHERE.axes(x, index).tolist())) == list(combinations(range(n), 2))
    assert error(frame.square().sum(-1), x[..., j].square() + x[..., l].square()) <= 1e-15
    assert SPHERE.direction(x.to(dtype), index).dtype == dtype
    for i in index:
        velocity = apply(
            generator_of(Coordinates(i.expand(*batch, 1), True), torch.ones(*batch, 1), n), x
        )
        assert torch.equal(frame[..., i, :], velocity)


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, dtypes, noises)
def test_derivatives_are_inner_products_with_the_directions(kind, batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(kind, noise, batch, n)
    for y, g in product(layouts(x), layouts(egrad)):
        derivatives = SPHERE.derivatives(y, g, block)
        assert (derivatives.shape, derivatives.dtype) == (t.shape, dtype)
        along = (derivatives.double() * t).flatten(len(batch)).sum(-1)
        velocity = apply(generator_of(block, t, n), x)
        expected = (egrad * velocity).sum(-1) * (2 if kind == "groups" else 1)
        limit = 20 * n * n * eps(dtype) * float(1 + egrad.abs().max() * t.abs().max())
        assert error(along, expected) <= limit


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, dims, dtypes, st.floats(-7, 0.7), noises)
def test_a_move_rotates_or_follows_the_geodesic(kind, batch, n, dtype, power, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    block, t = some_block(kind, noise, batch, n)
    t = (10**power * t).to(dtype)
    a = generator_of(block, t, n)
    if kind in ("matching", "groups") or (kind == "overlapping" and n == 2):
        expected = apply(torch.from_numpy(scipy.linalg.expm(a.numpy())), x)
    else:
        u = apply(a, x)
        expected = apply(rotation(x, u), x)
    limit = 40 * n * eps(dtype) * (1 + float(t.abs().sum()))
    for y in layouts(x):
        kept = y.clone()
        outside = SPHERE.move(y, block, t)
        assert torch.equal(y, kept)
        assert SPHERE.move_(y, block, t) is y
        assert torch.equal(outside, y)
        assert error(y, expected) <= limit


@given(batch_shapes, dims, dtypes, noises)
def test_one_coordinate_touches_two_entries(batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    index = noise.integers(count(n), *batch, 1)
    y = SPHERE.move(x, Coordinates(index, disjoint=True), noise.normal(*batch, 1))
    axes = SPHERE.axes(x, index).flatten(-2)
    assert ((x != y).sum(-1) == 2).all()
    assert (x.gather(-1, axes) != y.gather(-1, axes)).all()


@given(batch_shapes, dims, dtypes, noises)
def test_a_move_along_all_derivatives_is_the_gradient_step(batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    egrad = noise.like(x)
    t = -0.3 * SPHERE.derivatives(x, egrad, All())
    expected = SPHERE.expmap(x, -0.3 * SPHERE.egrad2rgrad(x, egrad))
    limit = 20 * n * eps(dtype) * float(1 + egrad.abs().max())
    assert error(SPHERE.move(x, All(), t), expected) <= limit


@given(batch_shapes, dims, dtypes, noises)
def test_the_steepest_are_the_largest_of_all(batch, n, dtype, noise: Noise):
    x = point(noise, *batch, n, dtype=dtype)
    egrad = noise.like(x)
    k = 1 + int(noise.integers(count(n)))
    index, derivatives = SPHERE.steepest(x, egrad, k)
    every = SPHERE.derivatives(x, egrad, All())
    assert error(derivatives.abs(), every.abs().sort(-1, descending=True).values[..., :k]) <= (
        10 * eps(dtype) * float(1 + egrad.abs().max())
    )
    assert error(derivatives, every.gather(-1, index)) <= 10 * eps(dtype) * float(
        1 + egrad.abs().max()
    )


# Descent

SELECTIONS = {
    "uniform": (Uniform(), 400),
    "cyclic": (Cyclic(), 400),
    "Gauss-Southwell": (GaussSouthwell(), 200),
    "block": (Block(size=10), 40),
    "disjoint block": (Block(size=2, disjoint=True), 120),
    "disjoint uniform block": (Block(size=2, rule=Uniform(), disjoint=True), 250),
}


def dominant_eigenvector(make, steps, *, dtype=torch.float64):
    """Minimize −xᵀAx, A having known eigenvectors: the point, and the angle left."""
    noise = Noise(0)
    n = 6
    frame = noise.point(n, n)
    a = (frame * torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 1.0]).double()) @ frame.mT
    x = ManifoldParameter(point(noise, n, dtype=dtype), manifold=SPHERE)
    optimizer = make([x])
    for _ in range(steps):
        optimizer.zero_grad()
        quadratic(-a.to(dtype))(x).backward()
        optimizer.step()
    x = x.detach().as_subclass(Tensor)
    best = frame[:, -1] * torch.sign(frame[:, -1] @ x.double())
    return x, float(SPHERE.dist(x.double(), best))


@pytest.mark.parametrize("name", SELECTIONS)
def test_coordinate_descent_finds_the_dominant_eigenvector(name):
    selection, steps = SELECTIONS[name]
    x, angle = dominant_eigenvector(lambda p: SRCD(p, lr=0.5, selection=selection), steps)
    assert angle <= 1e-6
    assert off_sphere(x) <= 1e-14


@pytest.mark.parametrize("map_", ["expmap", "retr"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_gradient_descent_finds_the_dominant_eigenvector(momentum, map_):
    x, angle = dominant_eigenvector(lambda p: SRGD(p, lr=0.5, momentum=momentum, map=map_), 200)
    assert angle <= 1e-6
    assert off_sphere(x) <= 1e-14


@pytest.mark.parametrize(
    "make",
    [
        lambda p: geoopt.optim.RiemannianSGD([{"params": p}], lr=0.5, momentum=0.5),
        lambda p: geoopt.optim.RiemannianAdam(p, lr=0.05),
    ],
)
def test_geoopts_optimizers_work_on_it(make):
    _, angle = dominant_eigenvector(make, 300)
    assert angle <= 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_descent_along_every_coordinate_is_gradient_descent(dtype):
    """The law of a Parseval frame, step by step."""

    class Every:
        def select(self, view):
            return All()

    for steps in (1, 2, 7, 40):
        runs = [
            dominant_eigenvector(make, steps, dtype=dtype)[0]
            for make in (
                lambda p: SRCD(p, lr=0.3, selection=Every()),
                lambda p: SRCD(p, lr=0.3, selection=Block(fraction=1.0)),
                lambda p: SRGD(p, lr=0.3),
            )
        ]
        assert error(runs[0], runs[2]) <= 50 * steps * eps(dtype)
        assert error(runs[1], runs[2]) <= 50 * steps * eps(dtype)


@pytest.mark.parametrize("name", ["uniform", "Gauss-Southwell", "disjoint block", "block"])
def test_float32_points_stay_on_the_sphere(name):
    """4,000 steps with noise for gradients, so that they never get short."""
    noise = Noise(0)
    x = ManifoldParameter(point(noise, 4, 10, dtype=torch.float32), manifold=SPHERE)
    optimizer = SRCD([x], lr=0.3, selection=SELECTIONS[name][0])
    worst = 0.0
    for _ in range(1000):
        x.grad = noise.like(x)
        optimizer.step()
        worst = max(worst, off_sphere(x))
    assert worst <= 1e-6
