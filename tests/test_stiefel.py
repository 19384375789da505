"""The Stiefel manifold: points, both metrics, geodesics, retractions, coordinates, thin arithmetic."""

import math
from itertools import combinations, pairwise, product

import geoopt
import pytest
import scipy.integrate
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import Everything
from strategies import DTYPES, Noise, batch_shapes, defect, dtypes, error, layouts, noises
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from givens.manifolds import All, Coordinates, OrthogonalGroup, Sphere, Stiefel
from givens.manifolds.orthonormal import polar_factor
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Uniform

METRICS = ["euclidean", "canonical"]
MANIFOLDS = [Stiefel(metric) for metric in METRICS]

every_metric = pytest.mark.parametrize("manifold", MANIFOLDS, ids=METRICS)
# Tall, nearly square (n < 2p: fewer normal directions than columns), square, and a single column.
shapes = st.sampled_from([(7, 3), (6, 2), (5, 4), (4, 3), (3, 3), (2, 2), (5, 1), (2, 1)])
between = st.sampled_from([(7, 3), (6, 2), (5, 4), (4, 3)])


def eps(dtype):
    return torch.finfo(dtype).eps


def point(noise, *shape, dtype=torch.float64):
    x = Stiefel().random(*shape, dtype=dtype, generator=noise.generator)
    return x.as_subclass(Tensor)


def tangent(noise, x):
    return Stiefel().proju(x, noise.like(x))


def generator(manifold, x, u):
    """The skew n×n matrix whose exponential moves x along the geodesic of u, up to a right factor."""
    a = x.mT @ u
    if manifold.metric == "euclidean":
        return u @ x.mT - x @ u.mT
    return (u - x @ a / 2) @ x.mT - x @ (u - x @ a / 2).mT


def expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.double().numpy()))


def dense_exponential(manifold, x, u):
    x, u = x.double(), u.double()
    y = expm(generator(manifold, x, u)) @ x
    return y @ expm(-x.mT @ u) if manifold.metric == "euclidean" else y


def cost_and_gradient(noise, x):
    target = noise.like(x)

    def cost(y):
        return ((y * target).sin() * target + (y @ y.mT @ target) ** 2).sum((-2, -1))

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(y).sum(), y)
    return cost, egrad


# Points


@given(batch_shapes, shapes, dtypes, noises)
def test_random_points_are_orthonormal_to_the_last_digit(batch, shape, dtype, noise: Noise):
    manifold = Stiefel()
    x = manifold.random(*batch, *shape, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, *shape), dtype, manifold)
    assert defect(x) <= 1.5 * eps(dtype) + 1e-14
    manifold.assert_check_point_on_manifold(x)


def test_random_points_are_uniformly_distributed():
    """Moments, within five standard errors; geoopt's have a first entry that is never positive."""
    n, p, draws = 4, 2, 20_000
    x = Stiefel().random(draws, n, p, generator=Noise(0).generator).as_subclass(Tensor)
    g, h = (Noise(1).point(d, d, dtype=x.dtype) for d in (n, p))
    for y in (x, g @ x, x @ h):
        for i, j in product(range(n), range(p)):
            for sample, mean in ((y[:, i, j], 0.0), (y[:, i, j] ** 2, 1 / n)):
                assert abs(float(sample.mean()) - mean) <= 5 * float(sample.std()) / draws**0.5
    assert (geoopt.EuclideanStiefel().random(100, n, p)[:, 0, 0] <= 0).all()


@given(batch_shapes, shapes, dtypes)
def test_origin_is_the_beginning_of_the_identity(batch, shape, dtype):
    x = Stiefel().origin(*batch, *shape, dtype=dtype, seed=3)
    assert x.dtype == dtype
    assert torch.equal(x, torch.eye(*shape, dtype=dtype).expand(*batch, *shape))
    x.mul_(2)  # owns its memory
    assert float(x.sum()) == 2 * shape[-1] * math.prod(batch)


@given(shapes, noises)
def test_projx_is_the_polar_factor(shape, noise: Noise):
    m = noise.normal(*shape)
    polar, _ = scipy.linalg.polar(m.numpy())
    tolerance = 1e-13 / float(torch.linalg.svdvals(m)[-1])
    assert error(Stiefel().projx(m), torch.from_numpy(polar)) <= tolerance


@given(batch_shapes, shapes, dtypes, noises)
def test_projx_reaches_the_last_digit_and_leaves_points_alone(batch, shape, dtype, noise: Noise):
    for m in layouts(noise.normal(*batch, *shape, dtype=dtype)):
        kept = m.clone()
        x = Stiefel().projx(m)
        assert torch.equal(m, kept)
        assert x.dtype == dtype
        assert defect(x) <= 3 * eps(dtype)
        assert error(Stiefel().projx(x), x) <= 4 * eps(dtype)


@given(batch_shapes, shapes, dtypes, noises)
def test_restoring_converges_quadratically(batch, shape, dtype, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    y = x + 1e-5 * noise.like(x)
    before = defect(y)
    assert Stiefel().restore_(y) is y
    assert defect(y) <= shape[-1] * before**2 + 3 * eps(dtype)


# Tangent vectors and metrics


@every_metric
@given(batch_shapes, shapes, dtypes, noises)
def test_proju_is_an_orthogonal_projection(manifold, batch, shape, dtype, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u, v = noise.like(x), noise.like(x)
    p, q = manifold.proju(x, u), manifold.proju(x, v)
    scale = 50 * shape[0] * eps(dtype) * float(1 + u.abs().max() * v.abs().max())
    assert p.dtype == dtype
    assert error(manifold.proju(x, p), p) <= scale
    assert error(x.mT @ p, -(p.mT @ x)) <= scale
    # The rest is normal to every tangent vector, in either metric.
    assert error(manifold.inner(x, u - p, q), torch.zeros(batch)) <= scale
    ok, reason = manifold.check_vector_on_tangent(x, p, explain=True, atol=1e-4)
    assert ok, reason


def test_geoopts_canonical_projection_doubles_tangent_vectors():
    """u − x uᵀx is the canonical gradient of u, but no projection: it takes xΩ to 2xΩ."""
    noise = Noise(0)
    x = point(noise, 5, 2)
    u = x @ noise.skew(2, 2)
    assert error(geoopt.CanonicalStiefel().proju(x, u), 2 * u) <= 1e-14
    assert error(Stiefel("canonical").proju(x, u), u) <= 1e-14


@every_metric
@given(batch_shapes, shapes, noises)
def test_the_riemannian_gradient_represents_the_derivative(manifold, batch, shape, noise: Noise):
    x = point(noise, *batch, *shape)
    cost, egrad = cost_and_gradient(noise, x)
    u = tangent(noise, x)
    _, derivative = torch.func.jvp(cost, (x,), (u,))
    rgrad = manifold.egrad2rgrad(x, egrad)
    assert error(manifold.inner(x, rgrad, u), derivative) <= 1e-10
    assert error(manifold.proju(x, rgrad), rgrad) <= 1e-11


@every_metric
@given(batch_shapes, shapes, dtypes, noises)
def test_inner_and_norm_count_the_skew_part_as_the_metric_says(
    manifold, batch, shape, dtype, noise: Noise
):
    x = point(noise, *batch, *shape, dtype=dtype)
    u, v = tangent(noise, x), tangent(noise, x)

    def parts(w):
        a = x.double().mT @ w.double()
        return a, w.double() - x.double() @ a

    (a, k), (b, l) = parts(u), parts(v)
    weight = 1.0 if manifold.metric == "euclidean" else 0.5
    expected = weight * (a * b).sum((-2, -1)) + (k * l).sum((-2, -1))
    square = weight * a.square().sum((-2, -1)) + k.square().sum((-2, -1))
    limit = 50 * shape[0] * eps(dtype) * float(1 + square.max())
    assert manifold.inner(x, u, v).shape == batch
    assert error(manifold.inner(x, u, v), expected) <= limit
    assert error(manifold.inner(x, u), square) <= limit
    assert error(manifold.norm(x, u), square.sqrt()) <= limit
    kept = manifold.inner(x, u, v, keepdim=True)
    assert torch.equal(kept, manifold.inner(x, u, v)[..., None, None])
    assert manifold.norm(x, u, keepdim=True).shape == (*batch, 1, 1)


@every_metric
def test_inner_broadcasts_over_the_batch_of_the_points(manifold):
    noise = Noise(0)
    x, u = point(noise, 5, 4, 2), noise.normal(4, 2)
    for keepdim, end in ((False, ()), (True, (1, 1))):
        assert manifold.inner(x, u, keepdim=keepdim).shape == (5, *end)
        assert manifold.norm(x, u, keepdim=keepdim).shape == (5, *end)


@every_metric
def test_the_norm_of_nothing_has_the_gradient_0(manifold):
    x = point(Noise(0), 4, 2)
    u = torch.zeros_like(x).requires_grad_()
    (gradient,) = torch.autograd.grad(manifold.norm(x, u), u)
    assert torch.equal(gradient, torch.zeros_like(x))


# The exponential


@every_metric
@given(batch_shapes, shapes, st.floats(-8, 1.3), noises)
def test_expmap_is_the_dense_exponential(manifold, batch, shape, power, noise: Noise):
    x = point(noise, *batch, *shape)
    u = tangent(noise, x)
    u = u * 10**power / torch.linalg.matrix_norm(u, keepdim=True)
    expected = dense_exponential(manifold, x, u)
    for y, v in zip(layouts(x), layouts(u), strict=True):
        assert error(manifold.expmap(y, v), expected) <= 3e-14 * (1 + 10**power)


@every_metric
@given(batch_shapes, shapes, dtypes, st.floats(-12, 2), noises)
def test_expmap_stays_on_the_manifold(manifold, batch, shape, dtype, power, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u = 10**power * tangent(noise, x)
    y = manifold.expmap(x, u)
    assert y.dtype == dtype
    assert defect(y) <= 20 * eps(dtype) * (1 + 10**power)
    assert error(y, manifold.expmap(x.double(), u.double())) <= 20 * eps(dtype) * (1 + 10**power)
    assert torch.equal(manifold.expmap(x, 0 * u), x)


@every_metric
@given(shapes, noises)
def test_what_is_normal_in_a_vector_has_no_effect(manifold, shape, noise: Noise):
    """Rounding that a vector gathers on its way does not lead off the manifold."""
    x = point(noise, *shape)
    u = noise.like(x)
    tangent_part = manifold.proju(x, u)
    assert error(manifold.expmap(x, u), manifold.expmap(x, tangent_part)) <= 1e-12
    cayley = Stiefel(retraction="cayley")
    assert error(cayley.retr(x, u), cayley.retr(x, tangent_part)) <= 1e-12


@every_metric
@given(between, dtypes, noises)
def test_a_short_step_keeps_its_digits(manifold, shape, dtype, noise: Noise):
    """From a point of zeros and ones, where the increment is not rounded to the digits of the point."""
    x = Stiefel().origin(*shape, dtype=dtype).as_subclass(Tensor)
    u = 1e-9 * tangent(noise, x)
    y = manifold.expmap(x, u)
    off_diagonal = x == 0
    assert error(y[off_diagonal], u[off_diagonal]) <= 1e-9 * 8 * eps(dtype) + 1e-17


@every_metric
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3)])
@given(noises)
def test_expmap_where_the_normal_part_has_a_lower_rank(manifold, shape, rank, noise: Noise):
    """Where a QR factorization of the normal part invents directions that are not normal to x."""
    n, p = shape
    x = point(noise, n, p)
    k = noise.normal(n, rank) @ noise.normal(rank, p)
    k[:, 0] = 0
    u = x @ noise.skew(p, p) + (k - x @ (x.mT @ k))
    y = manifold.expmap(x, u)
    assert error(y, dense_exponential(manifold, x, u)) <= 1e-13 * (1 + float(u.norm()))


@settings(max_examples=6)
@every_metric
@given(between, noises)
def test_geodesics_solve_their_differential_equation(manifold, shape, noise: Noise):
    """Equations (2.7) and (2.41) of Edelman, Arias and Smith (1998)."""
    x = point(noise, *shape)
    u = tangent(noise, x) / 2

    def flow(_, state):
        y, v = state.reshape(2, *shape)
        if manifold.metric == "euclidean":
            bend = -y @ (v.T @ v)
        else:
            bend = -v @ v.T @ y - y @ ((y.T @ v) @ (y.T @ v) + v.T @ v)
        return torch.stack([torch.from_numpy(v.copy()), torch.from_numpy(bend)]).numpy().ravel()

    start = torch.stack([x, u]).numpy().ravel()
    end = scipy.integrate.solve_ivp(flow, (0, 1), start, rtol=1e-10, atol=1e-11, method="DOP853")
    assert error(manifold.expmap(x, u), torch.from_numpy(end.y[:, -1]).view(2, *shape)[0]) <= 1e-8


@every_metric
@given(shapes, noises, st.floats(-1, 1), st.floats(-1, 1))
def test_a_geodesic_goes_on_from_where_it_is(manifold, shape, noise: Noise, s, t):
    x = point(noise, *shape)
    u = tangent(noise, x)
    middle, velocity = torch.func.jvp(
        lambda r: manifold.expmap(x, r * u), (x.new_tensor(s),), (x.new_ones(()),)
    )
    assert error(manifold.norm(middle, velocity), manifold.norm(x, u)) <= 1e-12  # constant speed
    assert error(manifold.expmap(middle, t * velocity), manifold.expmap(x, (s + t) * u)) <= 1e-12


@given(shapes, noises)
def test_the_metrics_have_different_geodesics(shape, noise: Noise):
    """Except where one of the two parts of a tangent vector vanishes."""
    x = point(noise, *shape)
    u = tangent(noise, x)
    first, second = (manifold.expmap(x, u) for manifold in MANIFOLDS)
    differ = error(first, second) > 1e-9
    assert differ == (1 < shape[1] < shape[0])


def test_geoopts_exponentials():
    """The canonical one is a Cayley transform, and does not even start out along u; the Euclidean one is
    right, but in float32 only to 1e-5 before torch 2.15, whose own exponential was off by that much.
    """
    noise = Noise(0)
    x = point(noise, 5, 2)
    u = x @ noise.skew(2, 2) + noise.like(x)
    u = Stiefel().proju(x, u)
    canonical = geoopt.CanonicalStiefel()
    assert torch.equal(canonical.expmap(x, u), canonical.retr(x, u))
    h = 1e-7
    assert error((canonical.expmap(x, h * u) - x) / h, u) > 0.1
    assert error((Stiefel("canonical").expmap(x, h * u) - x) / h, u) < 1e-5

    euclidean = geoopt.EuclideanStiefel()
    assert error(euclidean.expmap(x, u), Stiefel().expmap(x, u)) <= 1e-12
    worst = {"geoopt": 0.0, "givens": 0.0}
    for size in torch.linspace(0.1, 1, 30):
        y, v = x.float(), (size * u / u.norm()).float()
        expected = dense_exponential(Stiefel(), y, v)
        worst["geoopt"] = max(worst["geoopt"], error(euclidean.expmap(y, v), expected))
        worst["givens"] = max(worst["givens"], error(Stiefel().expmap(y, v), expected))
    assert worst["givens"] <= 5e-7
    if torch.__version__ < (2, 15):
        assert worst["geoopt"] >= 3e-6


@given(st.sampled_from([(7, 3), (4, 3), (3, 3)]), noises)
def test_expmap_is_pymanopts(shape, noise: Noise):
    manifolds = pytest.importorskip("pymanopt.manifolds")
    x = point(noise, *shape)
    u = tangent(noise, x)
    expected = manifolds.Stiefel(*shape).exp(x.numpy(), u.numpy())
    assert error(Stiefel().expmap(x, u), torch.from_numpy(expected)) <= 1e-12


@every_metric
@pytest.mark.parametrize("shape", [(9, 3), (40, 5), (5, 4)])
@pytest.mark.parametrize("length", [7.9, 8.1, 100.0, 1e4, 1e6])
def test_long_steps_follow_the_same_geodesic(manifold, shape, length):
    """An angle of θ is known to θ·ε, whatever is made of it."""
    noise = Noise(0)
    x = point(noise, *shape)
    u = tangent(noise, x)
    u *= length / u.norm()
    assert error(manifold.expmap(x, u), dense_exponential(manifold, x, u)) <= 2e-14 * length


@every_metric
def test_derivatives_of_long_steps_are_those_of_the_geodesic(manifold):
    noise = Noise(0)
    x, u = point(noise, 7, 2), 20 * noise.normal(7, 2)

    def follow(x, u):
        x = polar_factor(x)
        return manifold.expmap(x, manifold.proju(x, u))

    assert (manifold.proju(x, u)).norm() > 20
    torch.autograd.gradcheck(follow, (x.requires_grad_(), u.requires_grad_()), atol=1e-4)


# Gradients


@every_metric
@pytest.mark.parametrize("shape", [(5, 2), (4, 3), (3, 3), (3, 1)])
@pytest.mark.parametrize("kind", ["general", "tiny", "zero", "rank 1", "equal singular values"])
def test_gradients_flow_through_the_exponential(manifold, shape, kind):
    noise = Noise(0)
    n, p = shape
    x = point(noise, n, p)
    u = {
        "general": tangent(noise, x),
        "tiny": 1e-9 * tangent(noise, x),
        "zero": torch.zeros_like(x),
        "rank 1": Stiefel().proju(x, noise.normal(n, 1) @ noise.normal(1, p)),
        "equal singular values": Stiefel().proju(x, torch.linalg.qr(noise.like(x))[0]),
    }[kind]
    x, u = x.requires_grad_(), u.requires_grad_()
    torch.autograd.gradcheck(manifold.expmap, (x, u), check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(manifold.expmap, (x, u), fast_mode=True)


@every_metric
def test_gradients_flow_through_projections_and_gradients(manifold):
    noise = Noise(0)
    x, u = point(noise, 5, 3).requires_grad_(), noise.normal(5, 3).requires_grad_()
    for function in (manifold.proju, manifold.egrad2rgrad, manifold.inner, manifold.norm):
        torch.autograd.gradcheck(function, (x, u))
    torch.autograd.gradcheck(manifold.projx, (u,))


# Retractions


ORDERS = {
    ("euclidean", "polar"): 2,
    ("euclidean", "qr"): 1,
    ("euclidean", "cayley"): 1,
    ("canonical", "polar"): 1,
    ("canonical", "qr"): 1,
    ("canonical", "cayley"): 2,
}


def retraction_errors(metric, name, noise, shape):
    manifold = Stiefel(metric, name)
    x = point(noise, *shape)
    u = tangent(noise, x)
    u = u / torch.linalg.matrix_norm(u)
    return [
        float(torch.linalg.matrix_norm(manifold.retr(x, h * u) - manifold.expmap(x, h * u)))
        for h in (2.0**-7, 2.0**-8, 2.0**-9)
    ]


@pytest.mark.parametrize(("metric", "name"), ORDERS)
@given(between, noises)
def test_a_retraction_agrees_with_the_exponential_to_its_order(metric, name, shape, noise: Noise):
    for coarse, fine in pairwise(retraction_errors(metric, name, noise, shape)):
        assert math.log2(coarse / fine) >= ORDERS[metric, name] + 0.8


@pytest.mark.parametrize(("metric", "name"), ORDERS)
def test_and_no_further(metric, name):
    coarse, fine = retraction_errors(metric, name, Noise(0), (7, 3))[-2:]
    assert abs(math.log2(coarse / fine) - (ORDERS[metric, name] + 1)) <= 0.05


every_retraction = pytest.mark.parametrize("name", Stiefel.retractions)


@every_retraction
@given(batch_shapes, shapes, dtypes, st.floats(-6, 1), noises)
def test_a_retraction_stays_on_the_manifold(name, batch, shape, dtype, power, noise: Noise):
    manifold = Stiefel(retraction=name)
    x = point(noise, *batch, *shape, dtype=dtype)
    u = 10**power * tangent(noise, x)
    expected = manifold.retr(x, u)
    assert expected.dtype == dtype
    limit = 100 * eps(dtype) * (1 + 10**power) ** 2
    assert defect(expected) <= limit
    for y, v in zip(layouts(x), layouts(u), strict=True):
        assert error(manifold.retr(y, v), expected) <= limit
    assert error(manifold.retr(x, 0 * u), x) <= 8 * eps(dtype)


@given(shapes, noises)
def test_the_retractions_are_their_formulas(shape, noise: Noise):
    x = point(noise, *shape)
    u = tangent(noise, x)
    w = generator(Stiefel("canonical"), x, u)
    identity = torch.eye(shape[0], dtype=x.dtype)
    cayley = torch.linalg.solve(identity - w / 2, (identity + w / 2) @ x)
    assert error(Stiefel(retraction="cayley").retr(x, u), cayley) <= 1e-12
    polar = (x + u) @ torch.from_numpy(
        scipy.linalg.inv(scipy.linalg.sqrtm((torch.eye(shape[1]) + u.mT @ u).numpy()))
    )
    assert error(Stiefel(retraction="polar").retr(x, u), polar) <= 1e-12
    r = Stiefel(retraction="qr").retr(x, u).mT @ (x + u)
    assert error(r, r.triu()) <= 1e-12
    assert (r.diagonal() > 0).all()


@every_retraction
def test_gradients_flow_through_a_retraction(name):
    noise = Noise(0)
    x = point(noise, 5, 3)
    manifold = Stiefel(retraction=name)
    for u in (tangent(noise, x), torch.zeros_like(x)):
        torch.autograd.gradcheck(manifold.retr, (x.requires_grad_(), u.requires_grad_()))


# Logarithm, distance, transport


@every_metric
@given(st.integers(2, 6), noises)
def test_square_points_are_the_orthogonal_group(manifold, d, noise: Noise):
    """The metric of the group for the Euclidean one, and half of it for the canonical."""
    group = OrthogonalGroup()
    scale = 1.0 if manifold.metric == "euclidean" else math.sqrt(0.5)
    x, y = (noise.point(d, d, det=1) for _ in range(2))
    u, v = tangent(noise, x), tangent(noise, x)
    assert error(manifold.expmap(x, u), group.expmap(x, u)) <= 1e-12
    assert error(manifold.norm(x, u), scale * group.norm(x, u)) <= 1e-12
    assert error(manifold.proju(x, u + y), group.proju(x, u + y)) <= 1e-13
    assert torch.equal(manifold.logmap(x, y), group.logmap(x, y))
    assert error(manifold.dist(x, y), scale * group.dist(x, y)) <= 1e-13
    assert error(manifold.dist(x, y), manifold.norm(x, manifold.logmap(x, y))) <= 1e-12
    assert manifold.dist(x, y, keepdim=True).shape == (1, 1)
    moved = manifold.transp_follow_expmap(x, u, v)
    assert torch.equal(moved, group.transp_follow_expmap(x, u, v))
    flipped = y.clone()
    flipped[:, 0] *= -1
    assert manifold.dist(x, flipped) == torch.inf
    with pytest.raises(ValueError, match="determinants of opposite sign"):
        manifold.logmap(x, flipped)


@every_metric
@given(batch_shapes, st.integers(2, 6), dtypes, noises)
def test_single_columns_are_the_sphere(manifold, batch, n, dtype, noise: Noise):
    sphere = Sphere()
    x, y = (point(noise, *batch, n, 1, dtype=dtype) for _ in range(2))
    u, v = tangent(noise, x), tangent(noise, x)
    limit = 40 * eps(dtype) * float(1 + u.abs().max() + v.abs().max())

    def flat(z):
        return z.squeeze(-1)

    assert error(flat(manifold.expmap(x, u)), sphere.expmap(flat(x), flat(u))) <= limit
    assert error(manifold.norm(x, u), sphere.norm(flat(x), flat(u))) <= limit
    log = manifold.logmap(x, y)
    assert torch.equal(flat(log), sphere.logmap(flat(x), flat(y)))
    assert torch.equal(manifold.dist(x, y), sphere.dist(flat(x), flat(y)))
    assert torch.equal(manifold.dist(x, y, keepdim=True), manifold.dist(x, y)[..., None, None])
    # A small part of the vector is the difference of the two points near a half turn.
    assert error(manifold.expmap(x, log), y) <= limit
    moved = manifold.transp_follow_expmap(x, u, v)
    assert torch.equal(flat(moved), sphere.transp_follow_expmap(flat(x), flat(u), flat(v)))
    both = manifold.expmap_transp(x, u, v)
    assert torch.equal(both[0], manifold.expmap(x, u))
    assert torch.equal(both[1], moved)


@every_metric
@pytest.mark.parametrize("what", ["logmap", "dist"])
def test_between_the_two_there_is_no_logarithm(manifold, what):
    x = point(Noise(0), 5, 2)
    with pytest.raises(NotImplementedError, match=r"no closed form for 1 < p < n.*\(5, 2\).*Grass"):
        getattr(manifold, what)(x, x)


@every_metric
@given(batch_shapes, shapes, noises)
def test_transports_end_in_the_tangent_space(manifold, batch, shape, noise: Noise):
    x, y = point(noise, *batch, *shape), point(noise, *batch, *shape)
    u, v = tangent(noise, x), tangent(noise, x)
    assert torch.equal(manifold.transp(x, y, v), manifold.proju(y, v))
    end, moved = manifold.expmap_transp(x, u, v)
    assert torch.equal(end, manifold.expmap(x, u))
    assert error(manifold.proju(end, moved), moved) <= 1e-12
    if shape[1] in (1, shape[0]):  # Levi-Civita's
        assert error(manifold.norm(end, moved), manifold.norm(x, v)) <= 1e-12
    else:
        assert error(moved, manifold.transp(x, end, v)) <= 1e-12
    end, moved = manifold.retr_transp(x, u, v)
    assert torch.equal(moved, manifold.transp(x, end, v))


# Coordinates


def frame(manifold, x):
    return manifold.direction(x, torch.arange(manifold.num_coordinates(x)))


def tangent_basis(x):
    """A basis of the tangent space, orthonormal in the Euclidean metric."""
    n, p = x.shape
    units = torch.eye(n * p, dtype=x.dtype).view(n * p, n, p)
    projector = Stiefel().proju(x, units).flatten(-2)
    _, s, vh = torch.linalg.svd(projector)
    return vh[s > 0.5].view(-1, n, p)


@every_metric
@given(shapes, noises)
def test_the_frame_bounds(manifold, shape, noise: Noise):
    n, p = shape
    x = point(noise, n, p)
    basis = tangent_basis(x)
    assert len(basis) == n * p - p * (p + 1) // 2
    f = frame(manifold, x)
    assert f.shape == (n * (n - 1) // 2, n, p)
    coefficients = manifold.inner(x, basis.unsqueeze(1), f.unsqueeze(0))
    gram = manifold.inner(x, basis.unsqueeze(1), basis.unsqueeze(0))
    ratios = scipy.linalg.eigh(
        (coefficients @ coefficients.mT).numpy(), gram.numpy(), eigvals_only=True
    )
    low, high = manifold.frame_bounds
    assert (low, high) == ((1, 2) if manifold.metric == "euclidean" else (1, 1))
    assert low - 1e-12 <= ratios[0] <= ratios[-1] <= high + 1e-12
    if manifold.metric == "euclidean":  # attained
        assert abs(ratios[0] - (2 if p == n else 1)) <= 1e-12
        assert abs(ratios[-1] - (1 if p == 1 else 2)) <= 1e-12
    assert float(manifold.step_scale(x, All())) == high


@every_metric
@given(batch_shapes, shapes, dtypes, noises)
def test_a_direction_is_the_velocity_of_its_move(manifold, batch, shape, dtype, noise: Noise):
    x = point(noise, *batch, *shape)
    n = shape[0]
    f = frame(manifold, x)
    for i, (j, l) in enumerate(combinations(range(n), 2)):
        expected = torch.zeros_like(x)
        expected[..., l, :], expected[..., j, :] = x[..., j, :], -x[..., l, :]
        assert torch.equal(f[..., i, :, :], expected)
        assert int(manifold.number(x, j, l)) == i
    block = Coordinates(noise.integers(f.shape[-3], 1), disjoint=True)
    _, velocity = torch.func.jvp(
        lambda t: manifold.move(x, block, t.expand(*batch, 1)),
        (torch.zeros(1).double(),),
        (torch.ones(1).double(),),
    )
    assert error(velocity, f[..., int(block.index), :, :]) <= 1e-14
    assert manifold.direction(x.to(dtype), block.index).dtype == dtype


KINDS = ["matching", "overlapping", "groups", "all"]


def some_block(kind, noise, batch, n):
    count = n * (n - 1) // 2
    if kind == "matching":
        block = noise.matching(batch, n)
        return block, noise.normal(*block.index.shape)
    if kind == "overlapping":
        return Coordinates(noise.integers(count, *batch, 4), disjoint=False), noise.normal(
            *batch, 4
        )
    if kind == "groups":
        block = noise.groups(batch, n, 2 + int(noise.integers(n - 1)))
        m, r = block.axes.shape[-2:]
        return block, noise.skew(*batch, m, r, r)
    return All(), noise.normal(*batch, count)


def left_generator(block, t, n):
    """Σ t_i E_i as a dense n×n matrix, E_jl x having the direction f_jl; for a point without a batch."""
    e = torch.zeros(n, n, dtype=torch.float64)
    pairs = list(combinations(range(n), 2))
    if isinstance(block, Coordinates):
        terms = [(*pairs[i], s) for i, s in zip(block.index.tolist(), t.tolist(), strict=True)]
    elif isinstance(block, All):
        terms = [(*pair, s) for pair, s in zip(pairs, t.tolist(), strict=True)]
    else:
        terms = [
            (int(axes[a]), int(axes[b]), float(s[a, b]))
            for axes, s in zip(block.axes, t, strict=True)
            for a, b in combinations(range(len(axes)), 2)
        ]
    for j, l, s in terms:
        e[l, j] += s
        e[j, l] -= s
    return e


@every_metric
@pytest.mark.parametrize("kind", KINDS)
@given(shapes, dtypes, noises, st.floats(-6, 0.5))
def test_a_move(manifold, kind, shape, dtype, noise: Noise, power):
    """Disjoint: the rotations from the left. Overlapping: the geodesic of the sum of directions."""
    n = shape[0]
    x = point(noise, *shape, dtype=dtype)
    block, t = some_block(kind, noise, (), n)
    t = 10**power * t.to(dtype)
    left = left_generator(block, t, n)
    if kind in ("matching", "groups"):
        expected = expm(left) @ x.double()
    else:
        expected = dense_exponential(manifold, x, left @ x.double())
    limit = 40 * n * eps(dtype) * float(1 + t.abs().max())
    for y in layouts(x):
        kept = y.clone()
        outside = manifold.move(y, block, t)
        assert torch.equal(y, kept)
        assert manifold.move_(y, block, t) is y
        assert torch.equal(outside, y)
        assert error(y, expected) <= limit


@every_metric
@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, shapes, noises)
def test_derivatives_are_those_of_the_cost_along_the_moves(
    manifold, kind, batch, shape, noise: Noise
):
    x = point(noise, *batch, *shape)
    cost, egrad = cost_and_gradient(noise, x)
    block, t = some_block(kind, noise, batch, shape[0])
    derivatives = manifold.derivatives(x, egrad, block)
    assert derivatives.shape == t.shape
    along = (derivatives * t).flatten(len(batch)).sum(-1) / (2 if kind == "groups" else 1)
    h = 1e-5
    ahead, behind = (cost(manifold.move(x, block, s * t)) for s in (h, -h))
    assert error(along, (ahead - behind) / (2 * h)) <= 1e-4 * (1 + float(along.abs().max()))
    if kind == "all":
        gradient = manifold.egrad2rgrad(x, egrad).unsqueeze(-3)
        expected = manifold.inner(x.unsqueeze(-3), gradient, frame(manifold, x))
        assert error(derivatives, expected) <= 1e-11


@given(st.integers(2, 7), noises, st.floats(0, 1))
def test_a_step_at_square_points_is_the_orthogonal_groups_from_the_other_side(d, noise: Noise, lr):
    x, g = noise.point(d, d), noise.normal(d, d)
    block = noise.matching((), d)

    def rule(derivatives, scale):
        return -lr * derivatives / scale

    left = Stiefel().descend_(x.clone(), g, block, rule)
    right = OrthogonalGroup().descend_(x.mT.clone(), g.mT, block, rule)
    assert error(left, right.mT) <= 1e-13


# Whole batches, devices, memory

MAPS = {
    "proju": lambda m, x, u: m.proju(x, u),
    "egrad2rgrad": lambda m, x, u: m.egrad2rgrad(x, u),
    "projx": lambda m, x, u: m.projx(x + u / 10),
    "restore": lambda m, x, u: m.restore_(x + u / 100),
    "inner": lambda m, x, u: m.inner(x, u),
    "norm": lambda m, x, u: m.norm(x, u),
    "expmap": lambda m, x, u: m.expmap(x, m.proju(x, u)),
    "transport": lambda m, x, u: m.transp_follow_expmap(x, m.proju(x, u), m.proju(x, u * u)),
    **{
        name: lambda m, x, u, name=name: Stiefel(m.metric, name).retr(x, m.proju(x, u))
        for name in ("polar", "qr", "cayley")
    },
}


@every_metric
@pytest.mark.parametrize("name", MAPS)
@settings(max_examples=10)
@given(st.sampled_from([(0,), (3,), (2, 3)]), shapes, dtypes, noises)
def test_a_batch_is_a_loop(manifold, name, batch, shape, dtype, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u = noise.like(x)
    together = MAPS[name](manifold, x, u)
    assert together.dtype == dtype
    for at in product(*map(range, batch)):
        alone = MAPS[name](manifold, x[at].contiguous(), u[at].contiguous())
        assert error(together[at], alone) <= 500 * eps(dtype) * (1 + float(u.abs().max()))


@every_metric
@pytest.mark.parametrize("name", MAPS)
def test_shapes_and_dtypes_do_not_depend_on_the_device(manifold, name):
    x = manifold.origin(2, 6, 3, device="meta", dtype=torch.float64)
    y = MAPS[name](manifold, x, torch.empty(2, 6, 3, device="meta", dtype=torch.float64))
    assert (y.device.type, y.dtype) == ("meta", torch.float64)


class Thin(TorchDispatchMode):
    """Refuses whatever is much larger than a point."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                assert leaf.numel() <= self.limit, f"{func} made {tuple(leaf.shape)}"
        return result


@every_metric
def test_tall_matrices_never_become_square(manifold):
    """30,000×5: an n×n matrix would take 3.6 GB, and no tensor has more than 4np entries."""
    n, p = 30_000, 5
    noise = Noise(0)
    with Thin(4 * n * p):
        x = point(noise, n, p, dtype=torch.float32)
        g = noise.normal(n, p, dtype=torch.float32)
        u = manifold.egrad2rgrad(x, g)
        u = u / manifold.norm(x, u)
        y = manifold.expmap(x, u)
        manifold.transp(x, y, u)
        for name in ("polar", "qr", "cayley"):
            Stiefel(manifold.metric, name).retr(x, u)
        manifold.projx(x + u)
        z = x.clone()
        for block in (
            Coordinates(noise.integers(n * (n - 1) // 2, 7), disjoint=False),
            noise.matching((), n),
            noise.groups((), n, 8),
        ):
            t = manifold.derivatives(z, g, block)
            manifold.move_(z, block, 0.01 * t)
        manifold.restore_(z)
        manifold.assert_check_point_on_manifold(z)
        manifold.assert_check_vector_on_tangent(x, u)
    assert defect(y) <= 2e-6
    assert defect(z) <= 1e-6
    with pytest.raises(AssertionError, match="made"), Thin(4 * n * p):
        x[:10_000] @ x[:10_000].mT


@every_metric
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_move_never_waits_for_the_device(manifold, dtype):
    x = torch.empty(3, 64, 4, device="meta", dtype=dtype)
    block = Coordinates(torch.empty(3, 32, device="meta", dtype=torch.int64), disjoint=True)
    t = manifold.derivatives(x, torch.empty_like(x), block)
    assert (t.shape, t.dtype, t.device) == ((3, 32), dtype, x.device)
    assert manifold.descend_(x, torch.empty_like(x), block, lambda f, s: -f / s) is x
    assert manifold.restore_(x) is x


# Optimization

RUNS = {
    "srgd": (METRICS, None, 200),
    "overlapping block": (METRICS, Block(size=4), 200),
    # Rotations, which are the same in both metrics.
    "uniform": (METRICS[:1], Uniform(), 1000),
    "gauss-southwell": (METRICS[1:], GaussSouthwell(), 400),
    "disjoint block": (METRICS[1:], Block(size=2, disjoint=True), 200),
}


@pytest.mark.parametrize(
    ("name", "metric"), [(name, metric) for name in RUNS for metric in RUNS[name][0]]
)
def test_principal_components(name, metric):
    """The cost of Brockett, whose weights tell the leading eigenvectors of a matrix apart."""
    noise = Noise(0)
    manifold = Stiefel(metric)
    n, p = 5, 2
    q = noise.point(n, n)
    a = (q * torch.arange(n, 0, -1.0).double()) @ q.mT
    weights = torch.arange(p, 0, -1.0).double()
    x = ManifoldParameter(point(noise, n, p), manifold=manifold)
    lr = 0.08
    _, selection, steps = RUNS[name]
    # A few coordinates bear a longer step than the upper frame bound allows all of them.
    longer = lr * manifold.frame_bounds[1]
    optimizer = SRCD([x], longer, selection) if selection else SRGD([x], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (-(a @ x * x * weights).sum()).backward()
        optimizer.step()
    overlap = (q[:, :p].mT @ x.detach()).diagonal().abs()
    assert error(overlap, torch.ones(p)) <= 1e-6
    assert defect(x) <= 1e-13


@pytest.mark.parametrize("shape", [(6, 3), (5, 4), (4, 1), (4, 4)])
def test_all_coordinates_at_once_are_the_gradient_step(shape):
    """On the Parseval frame of the canonical metric, and for p = n, where both bounds are one number."""
    noise = Noise(0)
    start = point(noise, *shape)
    grad = noise.like(start)
    for manifold in MANIFOLDS:
        ends = []
        for build in (lambda p: SRCD([p], 0.3, Everything()), lambda p: SRGD([p], 0.3)):
            p = ManifoldParameter(start.clone(), manifold=manifold)
            p.grad = grad.clone()
            build(p).step()
            ends.append(p.detach())
        same = manifold.metric == "canonical" or shape[0] == shape[1]
        assert (error(*ends) <= 1e-13) is same


DRIFTS = {
    "uniform": ("euclidean", 2000, lambda p: SRCD([p], 0.1)),
    "large angles": ("euclidean", 700, lambda p: SRCD([p], 1.0, GaussSouthwell())),
    "disjoint block": ("canonical", 500, lambda p: SRCD([p], 0.1, Block(size=4, disjoint=True))),
    "overlapping block": ("canonical", 500, lambda p: SRCD([p], 0.1, Block(size=20))),
    "srgd": ("euclidean", 1000, lambda p: SRGD([p], 0.01)),
    "momentum": ("canonical", 500, lambda p: SRGD([p], 0.001, momentum=0.9)),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_a_float32_point_stays_on_the_manifold(name):
    metric, steps, build = DRIFTS[name]
    manifold = Stiefel(metric)
    noise = Noise(0)
    p = ManifoldParameter(point(noise, 16, 5, dtype=torch.float32), manifold=manifold)
    gradients = noise.normal(101, 16, 5, dtype=torch.float32)
    optimizer, worst = build(p), 0.0
    for step in range(steps):
        p.grad = gradients[step % 101]
        optimizer.step()
        if step % 97 == 0 or step == steps - 1:
            worst = max(worst, defect(p))
    assert worst <= 1e-6


@pytest.mark.parametrize("retraction", Stiefel.retractions)
@every_metric
def test_geoopts_optimizers_work_on_it(manifold, retraction):
    noise = Noise(0)
    manifold = Stiefel(manifold.metric, retraction)
    target = point(noise, 5, 2)
    start = manifold.expmap(target, 0.3 * tangent(noise, target))
    p = ManifoldParameter(start, manifold=manifold)
    optimizer = geoopt.optim.RiemannianAdam([p], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (p - target).square().sum().backward()
        optimizer.step()
    assert error(p.detach(), target) <= 0.02
    assert defect(p) <= 1e-12


# Checks, and bad input


@every_metric
@given(batch_shapes, shapes, dtypes, st.floats(-4, 3), noises)
def test_checks_accept_and_reject(manifold, batch, shape, dtype, power, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u = tangent(noise, x)
    assert manifold.check_point_on_manifold(x)
    assert manifold.check_vector_on_tangent(x, u)
    first = (0,) * len(batch)
    off = x.clone()
    off[first] *= 1 + 10.0**power
    ok, reason = manifold.check_point_on_manifold(off, explain=True)
    assert not ok
    assert "projx" in reason
    u[first] += 10.0**power * (1 + u.abs().max()) * x[first]
    ok, reason = manifold.check_vector_on_tangent(x, u, explain=True)
    assert not ok
    assert "proju" in reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_checks_reject_what_is_not_finite(bad):
    x = point(Noise(0), 2, 4, 3)
    y = x.clone()
    y[1, 0, 0] = bad
    assert not Stiefel().check_point_on_manifold(y)
    assert not Stiefel().check_vector_on_tangent(x, y - x)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (1, 1), (0, 0), (4, 0), (5, 1, 1), (3, 2, 3)])
def test_shapes_that_no_point_has(shape):
    x = torch.zeros(shape)
    manifold = Stiefel()
    assert not manifold.check_point(x)
    assert not manifold.check_point_on_manifold(x)
    hint = r".*transposed: x\.mT" if len(shape) > 1 and shape[-1] > shape[-2] > 0 else ""
    for raises in (
        lambda: manifold.random(*shape),
        lambda: manifold.origin(*shape),
        lambda: manifold.projx(x),
        lambda: manifold.assert_check_point(x),
    ):
        with pytest.raises(ValueError, match=r"expects \(\.\.\., n, p\) with n >= p >= 1" + hint):
            raises()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.complex64])
def test_dtypes_that_no_point_has(dtype):
    x = torch.eye(3, 2).to(dtype)
    ok, reason = Stiefel().check_point_on_manifold(x, explain=True)
    assert not ok
    assert "float32 and float64" in reason
    for raises in (
        lambda: Stiefel().random(3, 2, dtype=dtype),
        lambda: Stiefel().origin(3, 2, dtype=dtype),
        lambda: Stiefel().projx(x),
    ):
        with pytest.raises(TypeError, match="float32 and float64"):
            raises()


def test_options_that_do_not_exist():
    with pytest.raises(ValueError, match=r"metric 'frobenius' is unknown; choose from .*canonical"):
        Stiefel("frobenius")
    with pytest.raises(ValueError, match=r"retraction 'euler' is unknown; choose from .*'cayley'"):
        Stiefel(retraction="euler")


def test_the_representation_names_metric_and_retraction():
    assert "canonical" in repr(Stiefel("canonical"))
    assert "cayley" not in repr(Stiefel())
    assert "cayley" in repr(Stiefel(retraction="cayley"))
