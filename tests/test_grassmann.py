"""The Grassmann manifold: subspaces, principal angles, geodesics, transport, coordinates."""

import math
from itertools import combinations, pairwise, product

import geoopt
import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import Everything
from strategies import DTYPES, Noise, batch_shapes, defect, dtypes, error, layouts, noises
from torch import Tensor

from givens.manifolds import All, Coordinates, Grassmann, Groups, Sphere, Stiefel
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Uniform

GRASSMANN = Grassmann()

# Tall, nearly square (n < 2p: some angles are always 0), lines and hyperplanes.
shapes = st.sampled_from([(7, 3), (6, 2), (5, 4), (4, 3), (5, 1), (2, 1)])
shapes_and_squares = st.one_of(shapes, st.sampled_from([(3, 3), (2, 2)]))


def eps(dtype):
    return torch.finfo(dtype).eps


def point(noise, *shape, dtype=torch.float64):
    x = GRASSMANN.random(*shape, dtype=dtype, generator=noise.generator)
    return x.as_subclass(Tensor)


def tangent(noise, x):
    return GRASSMANN.proju(x, noise.like(x))


def turn(noise, x):
    """A random orthogonal matrix for every point, to change its basis."""
    p = x.shape[-1]
    return (
        Stiefel().random(*x.shape[:-2], p, p, dtype=x.dtype, generator=noise.generator)
        if (p > 1)
        else torch.full((*x.shape[:-2], 1, 1), -1.0, dtype=x.dtype)
    )


def expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.double().numpy()))


def projector(x):
    return x.double() @ x.double().mT


def angles(x, y):
    """scipy's principal angles, of one pair of points."""
    return torch.from_numpy(scipy.linalg.subspace_angles(x.double().numpy(), y.double().numpy()))


def with_angles(noise, n, values, dtype=torch.float64):
    """Two random subspaces with these principal angles, and the tangent vector from one to the other."""
    p = len(values)
    frame = noise.point(n, n)
    theta = torch.tensor(values, dtype=torch.float64)
    v = noise.point(p, p) if p > 1 else torch.ones(1, 1).double()
    x, across = frame[:, :p] @ v.mT, frame[:, p : 2 * p]
    y = x @ v @ torch.diag(theta.cos()) + across @ torch.diag(theta.sin())
    w = noise.point(p, p) if p > 1 else -torch.ones(1, 1).double()
    return x.to(dtype), (y @ w).to(dtype), (across @ torch.diag(theta) @ v.mT).to(dtype)


# Points and tangent vectors


@given(batch_shapes, shapes_and_squares, dtypes, noises)
def test_points_are_orthonormal_bases(batch, shape, dtype, noise: Noise):
    x = GRASSMANN.random(*batch, *shape, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, *shape), dtype, GRASSMANN)
    assert defect(x) <= 1.5 * eps(dtype) + 1e-14
    origin = GRASSMANN.origin(*batch, *shape, dtype=dtype)
    assert torch.equal(origin, torch.eye(*shape, dtype=dtype).expand(*batch, *shape))
    m = noise.normal(*batch, *shape, dtype=dtype)
    y = GRASSMANN.projx(m)
    assert defect(y) <= 3 * eps(dtype)
    rest = m - y @ (y.mT @ m)  # the same subspace
    assert error(rest, torch.zeros_like(m)) <= 100 * eps(dtype)
    z = y + 1e-5 * noise.like(y)
    assert GRASSMANN.restore_(z) is z
    assert defect(z) <= 3 * eps(dtype) + 1e-8


@given(batch_shapes, shapes, dtypes, noises)
def test_proju_is_an_orthogonal_projection(batch, shape, dtype, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u, v = noise.like(x), noise.like(x)
    p = GRASSMANN.proju(x, u)
    limit = 50 * shape[0] * eps(dtype) * float(1 + u.abs().max() * v.abs().max())
    assert error(GRASSMANN.proju(x, p), p) <= limit
    assert error(x.mT @ p, torch.zeros_like(x.mT @ p)) <= limit
    assert error(GRASSMANN.inner(x, p, v), GRASSMANN.inner(x, u, GRASSMANN.proju(x, v))) <= limit
    assert GRASSMANN.check_vector_on_tangent(x, p, atol=1e-4)


def subspace_cost(noise, x):
    a = noise.normal(x.shape[-2], x.shape[-2])

    def cost(y):
        return ((y @ y.mT @ a).sin() * a).sum((-2, -1))

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(y).sum(), y)
    return cost, egrad


@given(batch_shapes, shapes, noises)
def test_the_riemannian_gradient_represents_the_derivative(batch, shape, noise: Noise):
    x = point(noise, *batch, *shape)
    cost, egrad = subspace_cost(noise, x)
    u = tangent(noise, x)
    _, derivative = torch.func.jvp(cost, (x,), (u,))
    rgrad = GRASSMANN.egrad2rgrad(x, egrad)
    assert error(GRASSMANN.inner(x, rgrad, u), derivative) <= 1e-10
    assert error(GRASSMANN.proju(x, rgrad), rgrad) <= 1e-12
    # A turn of the basis is no change: the vertical part of the gradient is normal to such turns.
    assert error(x.mT @ egrad, egrad.mT @ x) <= 1e-11


# Exponential, logarithm, distance


@given(batch_shapes, shapes_and_squares, st.floats(-8, 1.3), noises)
def test_expmap_is_the_dense_exponential(batch, shape, power, noise: Noise):
    x = point(noise, *batch, *shape)
    u = 10**power * tangent(noise, x)
    expected = expm(u @ x.mT - x @ u.mT) @ x
    for y, v in zip(layouts(x), layouts(u), strict=True):
        assert error(GRASSMANN.expmap(y, v), expected) <= 1e-13 * (1 + 10**power)


@given(batch_shapes, shapes, dtypes, st.floats(-12, 2), noises)
def test_expmap_stays_on_the_manifold(batch, shape, dtype, power, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u = 10**power * tangent(noise, x)
    y = GRASSMANN.expmap(x, u)
    assert y.dtype == dtype
    limit = 30 * eps(dtype) * (1 + 10**power)
    assert defect(y) <= limit
    assert error(y, GRASSMANN.expmap(x.double(), u.double())) <= limit
    assert torch.equal(GRASSMANN.expmap(x, 0 * u), x)


@given(shapes_and_squares, noises)
def test_what_is_vertical_in_a_vector_has_no_effect(shape, noise: Noise):
    """Rounding that a vector gathers on its way does not lead off the manifold."""
    x = point(noise, *shape)
    u, v = noise.like(x), tangent(noise, x)
    horizontal = GRASSMANN.proju(x, u)
    assert error(GRASSMANN.expmap(x, u), GRASSMANN.expmap(x, horizontal)) <= 1e-12
    moved = GRASSMANN.transp_follow_expmap(x, u, v)
    assert error(moved, GRASSMANN.transp_follow_expmap(x, horizontal, v)) <= 1e-12


@given(st.sampled_from([(7, 3), (4, 3), (5, 1)]), noises)
def test_a_short_step_keeps_its_digits(shape, noise: Noise):
    x = GRASSMANN.origin(*shape, dtype=torch.float64).as_subclass(Tensor)
    u = 1e-9 * tangent(noise, x)
    rest = slice(shape[1], None)  # the rows in which x is 0
    assert error(GRASSMANN.expmap(x, u)[rest], u[rest]) <= 1e-23


@given(
    st.lists(
        st.one_of(st.floats(0, 1.5), st.sampled_from([0.0, 1e-9, 1.0])), min_size=1, max_size=4
    ),
    dtypes,
    noises,
)
def test_the_logarithm_undoes_the_exponential(values, dtype, noise: Noise):
    """Inside the injectivity radius π/2, angles that vanish or repeat among them."""
    x, y, u = with_angles(noise, 2 * len(values) + 1, values, dtype)
    limit = 60 * eps(dtype) / (math.pi / 2 - max(values))
    log = GRASSMANN.logmap(x, y)
    assert log.dtype == dtype
    assert error(log, u) <= limit
    assert error(GRASSMANN.logmap(x, GRASSMANN.expmap(x, u)), u) <= limit
    assert error(projector(GRASSMANN.expmap(x, log)), projector(y)) <= 60 * eps(dtype)
    assert GRASSMANN.check_vector_on_tangent(x, log)


near = st.one_of(
    st.floats(-15, 0).map(lambda power: 10.0**power),
    st.floats(-15, 0).map(lambda power: math.pi / 2 - 10.0**power),
    st.sampled_from([0.0, math.pi / 2]),
)


@settings(max_examples=60)
@given(st.lists(near, min_size=1, max_size=3), dtypes, noises)
def test_dist_is_accurate_for_small_and_for_large_angles(values, dtype, noise: Noise):
    """To a few units of the precision, absolutely: next to 0, next to π/2, and on the cut locus."""
    x, y, _ = with_angles(noise, 2 * len(values) + 1, values, dtype)
    length = math.sqrt(sum(value**2 for value in values))
    limit = 40 * eps(dtype)
    assert abs(float(GRASSMANN.dist(x, y)) - length) <= limit
    # A shortest vector to the other subspace, also where there are several.
    log = GRASSMANN.logmap(x, y)
    assert abs(float(GRASSMANN.norm(x, log)) - length) <= limit
    assert error(projector(GRASSMANN.expmap(x, log)), projector(y)) <= limit


def test_pymanopts_distance_loses_half_of_the_digits():
    """The arccosine of a cosine next to 1."""
    manifolds = pytest.importorskip("pymanopt.manifolds")
    x, y, u = with_angles(Noise(0), 7, [1e-9, 2e-9, 3e-9])
    length = math.sqrt(14) * 1e-9
    theirs = manifolds.Grassmann(7, 3)
    assert abs(theirs.dist(x.numpy(), y.numpy()) - length) > 0.5 * length
    assert abs(float(GRASSMANN.dist(x, y)) - length) <= 1e-6 * length
    log = torch.from_numpy(theirs.log(x.numpy(), y.numpy()))
    assert error(log, u) <= 1e-14  # as is its logarithm, here
    assert error(GRASSMANN.logmap(x, y), log) <= 1e-14
    _, y, _ = with_angles(Noise(0), 7, [0.3, 1.0, 1.2])
    log = torch.from_numpy(theirs.log(x.numpy(), y.numpy()))
    assert error(GRASSMANN.logmap(x, y), log) <= 1e-13
    moved = torch.from_numpy(theirs.exp(x.numpy(), log.numpy()))
    assert error(projector(GRASSMANN.expmap(x, log)), projector(moved)) <= 1e-13


@given(shapes_and_squares, noises)
def test_dist_is_scipys_principal_angles_and_a_metric(shape, noise: Noise):
    x, y, z = (point(noise, *shape) for _ in range(3))
    xy = GRASSMANN.dist(x, y)
    assert error(xy, angles(x, y).norm()) <= 1e-12
    assert error(xy, GRASSMANN.dist(y, x)) <= 1e-12
    assert xy <= GRASSMANN.dist(x, z) + GRASSMANN.dist(z, y) + 1e-12
    assert GRASSMANN.dist(x, y, keepdim=True).shape == (1, 1)
    g = noise.point(shape[0], shape[0])
    assert error(GRASSMANN.dist(g @ x, g @ y), xy) <= 1e-12


@given(batch_shapes, shapes_and_squares, dtypes, noises)
def test_the_basis_of_a_subspace_does_not_matter(batch, shape, dtype, noise: Noise):
    x, y = (point(noise, *batch, *shape, dtype=dtype) for _ in range(2))
    q, r = turn(noise, x), turn(noise, x)
    limit = 100 * eps(dtype)
    assert error(GRASSMANN.dist(x, x @ q), torch.zeros(batch)) <= limit
    assert error(GRASSMANN.dist(x @ q, y @ r), GRASSMANN.dist(x, y)) <= limit
    # Vectors turn with the basis.
    u, v = tangent(noise, x), tangent(noise, x)
    limit = limit * float(1 + u.abs().max() * v.abs().max())
    assert error(GRASSMANN.expmap(x @ q, u @ q), GRASSMANN.expmap(x, u) @ q) <= limit
    assert error(GRASSMANN.inner(x @ q, u @ q, v @ q), GRASSMANN.inner(x, u, v)) <= 10 * limit
    moved = GRASSMANN.transp_follow_expmap(x @ q, u @ q, v @ q)
    assert error(moved, GRASSMANN.transp_follow_expmap(x, u, v) @ q) <= limit
    x, y, _ = with_angles(noise, 7, [0.2, 0.9, 1.3], dtype)
    q, r = turn(noise, x), turn(noise, x)
    log = GRASSMANN.logmap(x, y)
    assert error(GRASSMANN.logmap(x @ q, y @ r), log @ q) <= 1000 * eps(dtype)


@given(batch_shapes, st.integers(2, 6), noises)
def test_lines_are_pairs_of_antipodes(batch, n, noise: Noise):
    x, y = point(noise, *batch, n, 1), point(noise, *batch, n, 1)
    sphere = Sphere()
    on_sphere = sphere.dist(x.squeeze(-1), y.squeeze(-1))
    assert error(GRASSMANN.dist(x, y), torch.minimum(on_sphere, math.pi - on_sphere)) <= 1e-13
    u, v = tangent(noise, x), tangent(noise, x)
    flat = (x.squeeze(-1), u.squeeze(-1), v.squeeze(-1))
    assert error(GRASSMANN.expmap(x, u).squeeze(-1), sphere.expmap(*flat[:2])) <= 1e-13
    moved = GRASSMANN.transp_follow_expmap(x, u, v).squeeze(-1)
    assert error(moved, sphere.transp_follow_expmap(*flat)) <= 1e-13 * float(1 + v.abs().max())


# Transport


@given(batch_shapes, shapes, dtypes, noises)
def test_parallel_transport_is_an_isometry_that_takes_the_velocity_along(
    batch, shape, dtype, noise: Noise
):
    x = point(noise, *batch, *shape, dtype=dtype)
    u, v, w = (tangent(noise, x) for _ in range(3))
    y, moved = GRASSMANN.expmap_transp(x, u, v)
    assert torch.equal(y, GRASSMANN.expmap(x, u))
    assert torch.equal(moved, GRASSMANN.transp_follow_expmap(x, u, v))
    before = GRASSMANN.inner(x, v, w)
    size = float(1 + v.abs().max() * w.abs().max())
    limit = 100 * shape[0] * eps(dtype) * size
    after = GRASSMANN.inner(y, moved, GRASSMANN.transp_follow_expmap(x, u, w))
    assert error(after, before) <= limit
    assert error(y.mT @ moved, torch.zeros_like(y.mT @ moved)) <= limit
    _, velocity = torch.func.jvp(
        lambda t: GRASSMANN.expmap(x, t * u), (x.new_ones(()),), (x.new_ones(()),)
    )
    assert error(GRASSMANN.transp_follow_expmap(x, u, u), velocity) <= limit * size


@given(shapes, st.floats(-9, 1), noises)
def test_parallel_transport_is_the_closed_form_of_edelman_arias_and_smith(
    shape, power, noise: Noise
):
    """Their equation (2.68)."""
    x = point(noise, *shape)
    u, v = 10**power * tangent(noise, x), tangent(noise, x)
    left, s, vh = torch.linalg.svd(u, full_matrices=False)
    inside = left.mT @ v
    expected = v - left @ inside + (left * s.cos() - x @ vh.mT * s.sin()) @ inside
    limit = 1e-13 * (1 + 10**power) * float(1 + v.abs().max())
    assert error(GRASSMANN.transp_follow_expmap(x, u, v), expected) <= limit


@given(shapes, noises)
def test_parallel_transport_changes_the_vector_by_nothing_horizontal(shape, noise: Noise):
    x = point(noise, *shape)
    u, v = tangent(noise, x), tangent(noise, x)
    moved, slope = torch.func.jvp(
        lambda t: GRASSMANN.transp_follow_expmap(x, t * u, v),
        (x.new_tensor(0.7),),
        (x.new_ones(()),),
    )
    y = GRASSMANN.expmap(x, 0.7 * u)
    assert error(GRASSMANN.proju(y, slope), torch.zeros_like(y)) <= 1e-12
    assert error(GRASSMANN.proju(y, moved), moved) <= 1e-12


@given(batch_shapes, shapes, noises)
def test_transport_without_a_geodesic_is_the_projection(batch, shape, noise: Noise):
    x, y = point(noise, *batch, *shape), point(noise, *batch, *shape)
    v = tangent(noise, x)
    assert torch.equal(GRASSMANN.transp(x, y, v), GRASSMANN.proju(y, v))
    end, moved = GRASSMANN.retr_transp(x, v, v)
    assert torch.equal(moved, GRASSMANN.proju(end, v))


# Retractions


@pytest.mark.parametrize("name", ["polar", "qr"])
@given(st.sampled_from([(7, 3), (6, 2), (5, 3)]), noises)
def test_a_retraction_spans_the_geodesic_to_second_order(name, shape, noise: Noise):
    manifold = Grassmann(name)
    x = point(noise, *shape)
    u = tangent(noise, x)
    u = u / torch.linalg.matrix_norm(u)
    sizes = (2.0**-6, 2.0**-7, 2.0**-8)
    for distance, order in (
        (manifold.dist, 2),
        (lambda y, z: torch.linalg.matrix_norm(y - z), 2 if name == "polar" else 1),
    ):
        errors = [
            float(distance(manifold.retr(x, h * u), manifold.expmap(x, h * u))) for h in sizes
        ]
        for coarse, fine in pairwise(errors):
            assert math.log2(coarse / fine) >= order + 0.9
    assert error(projector(manifold.retr(x, u)), projector(Grassmann("polar").retr(x, u))) <= 1e-12


@given(batch_shapes, shapes, dtypes, noises)
def test_the_default_is_the_exponential(batch, shape, dtype, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u = tangent(noise, x)
    assert torch.equal(GRASSMANN.retr(x, u), GRASSMANN.expmap(x, u))
    for name in ("polar", "qr"):
        assert defect(Grassmann(name).retr(x, u)) <= 30 * eps(dtype)


# Gradients


@pytest.mark.parametrize("shape", [(5, 2), (4, 3), (4, 1)])
@pytest.mark.parametrize("kind", ["general", "tiny", "zero", "rank 1", "equal singular values"])
def test_gradients_flow_through_exponential_and_transport(shape, kind):
    noise = Noise(0)
    n, p = shape
    x = point(noise, n, p)
    u = {
        "general": tangent(noise, x),
        "tiny": 1e-9 * tangent(noise, x),
        "zero": torch.zeros_like(x),
        "rank 1": GRASSMANN.proju(x, noise.normal(n, 1) @ noise.normal(1, p)),
        "equal singular values": GRASSMANN.proju(x, torch.linalg.qr(noise.like(x))[0]),
    }[kind]
    v = tangent(noise, x)
    x, u = x.requires_grad_(), u.requires_grad_()
    for function in (
        GRASSMANN.expmap,
        lambda x, u: GRASSMANN.transp_follow_expmap(x, u, v),
    ):
        torch.autograd.gradcheck(function, (x, u), check_forward_ad=True, fast_mode=True)
        torch.autograd.gradgradcheck(function, (x, u), fast_mode=True)
    for name in ("polar", "qr"):
        torch.autograd.gradcheck(Grassmann(name).retr, (x, u), fast_mode=True)


@pytest.mark.parametrize("values", [[0.3, 1.0], [0.7, 0.7], [0.0, 0.5], [0.0, 0.0], [1.5, 1.4]])
def test_gradients_flow_through_logarithm_and_distance(values):
    """Also where angles repeat or vanish."""
    x, y, _ = with_angles(Noise(0), 6, values)
    x, y = x.requires_grad_(), y.requires_grad_()
    torch.autograd.gradcheck(GRASSMANN.logmap, (x, y))
    if any(values):
        torch.autograd.gradcheck(GRASSMANN.dist, (x, y))
        # The gradient of half the squared distance is minus the logarithm.
        (egrad,) = torch.autograd.grad(GRASSMANN.dist(x, y).square() / 2, x)
        rgrad = GRASSMANN.egrad2rgrad(x, egrad)
        assert error(rgrad.detach(), -GRASSMANN.logmap(x, y).detach()) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 2), (3, 3), (4, 1)])
def test_the_distance_from_a_point_to_itself_has_a_gradient(dtype, shape):
    x = point(Noise(0), *shape, dtype=dtype)
    for start in (x, GRASSMANN.origin(*shape, dtype=dtype).as_subclass(Tensor)):
        y = start.clone().requires_grad_()
        for value in (GRASSMANN.dist(start, y), GRASSMANN.norm(start, y - start)):
            (gradient,) = torch.autograd.grad(value, y)
            assert gradient.isfinite().all()


# Coordinates


@given(shapes_and_squares, noises)
def test_the_directions_are_a_parseval_frame_of_horizontal_vectors(shape, noise: Noise):
    n, p = shape
    x = point(noise, n, p)
    f = GRASSMANN.direction(x, torch.arange(GRASSMANN.num_coordinates(x)))
    for i, (j, l) in enumerate(combinations(range(n), 2)):
        expected = torch.zeros_like(x)
        expected[l], expected[j] = x[j], -x[l]
        assert error(f[i], GRASSMANN.proju(x, expected)) <= 1e-15
        assert int(GRASSMANN.number(x, j, l)) == i
    assert GRASSMANN.frame_bounds == (1, 1)
    flat = f.flatten(-2)
    operator = flat.mT @ flat  # the projector on the horizontal vectors
    units = torch.eye(n * p, dtype=x.dtype).view(n * p, n, p)
    assert error(operator, GRASSMANN.proju(x, units).flatten(-2)) <= 1e-13


KINDS = ["matching", "overlapping", "groups", "all"]


def some_block(kind, noise, batch, n):
    count = n * (n - 1) // 2
    if kind == "matching":
        block = noise.matching(batch, n)
        return block, noise.normal(*block.index.shape)
    if kind == "overlapping":
        index = noise.integers(count, *batch, 4)
        return Coordinates(index, disjoint=False), noise.normal(*batch, 4)
    if kind == "groups":
        block = noise.groups(batch, n, 2 + int(noise.integers(n - 1)))
        m, r = block.axes.shape[-2:]
        return block, noise.skew(*batch, m, r, r)
    return All(), noise.normal(*batch, count)


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, shapes, noises)
def test_derivatives_are_those_of_the_cost_along_the_moves(kind, batch, shape, noise: Noise):
    x = point(noise, *batch, *shape)
    cost, egrad = subspace_cost(noise, x)
    block, t = some_block(kind, noise, batch, shape[0])
    derivatives = GRASSMANN.derivatives(x, egrad, block)
    assert derivatives.shape == t.shape
    along = (derivatives * t).flatten(len(batch)).sum(-1) / (2 if kind == "groups" else 1)
    h = 1e-5
    ahead, behind = (cost(GRASSMANN.move(x, block, s * t)) for s in (h, -h))
    assert error(along, (ahead - behind) / (2 * h)) <= 1e-5 * (1 + float(along.abs().max()))
    if kind == "all":
        f = GRASSMANN.direction(x, torch.arange(t.shape[-1]))
        gradient = GRASSMANN.egrad2rgrad(x, egrad).unsqueeze(-3)
        assert error(derivatives, (gradient * f).sum((-2, -1))) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
@given(batch_shapes, shapes, dtypes, noises, st.floats(-6, 0))
def test_a_move(kind, batch, shape, dtype, noise: Noise, power):
    """Disjoint: the rotations of the Stiefel manifold. Overlapping: the geodesic of the sum."""
    x = point(noise, *batch, *shape, dtype=dtype)
    block, t = some_block(kind, noise, batch, shape[0])
    t = 10**power * t.to(dtype)
    if kind in ("matching", "groups"):
        expected = Stiefel().move(x, block, t)
    else:
        index = torch.arange(t.shape[-1]) if kind == "all" else block.index
        u = (GRASSMANN.direction(x, index) * t[..., None, None]).sum(-3)
        expected = GRASSMANN.expmap(x, u)
    for y in layouts(x):
        assert GRASSMANN.move_(y, block, t) is y
        assert error(y, expected) <= 50 * shape[0] * eps(dtype) * float(1 + t.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@given(shapes, noises)
def test_a_move_is_one_of_subspaces(kind, shape, noise: Noise):
    x = point(noise, *shape)
    q = turn(noise, x)
    block, t = some_block(kind, noise, (), shape[0])
    assert error(GRASSMANN.move(x @ q, block, t), GRASSMANN.move(x, block, t) @ q) <= 1e-12


# Whole batches, devices


MAPS = {
    "proju": GRASSMANN.proju,
    "projx": lambda x, u: GRASSMANN.projx(x + u / 10),
    "expmap": GRASSMANN.expmap,
    "transport": lambda x, u: GRASSMANN.transp_follow_expmap(x, u, GRASSMANN.proju(x, u * u)),
    "log": lambda x, u: GRASSMANN.logmap(x, GRASSMANN.projx(x + u / 10)),
    "dist": lambda x, u: GRASSMANN.dist(x, GRASSMANN.projx(x + u / 10)),
    "inner": GRASSMANN.inner,
    "norm": GRASSMANN.norm,
    "polar": lambda x, u: Grassmann("polar").retr(x, GRASSMANN.proju(x, u)),
    "qr": lambda x, u: Grassmann("qr").retr(x, GRASSMANN.proju(x, u)),
}


@pytest.mark.parametrize("name", MAPS)
@given(st.sampled_from([(0,), (3,), (2, 3)]), shapes_and_squares, dtypes, noises)
def test_a_batch_is_a_loop(name, batch, shape, dtype, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u = noise.like(x)
    together = MAPS[name](x, u)
    assert together.dtype == dtype
    for at in product(*map(range, batch)):
        alone = MAPS[name](x[at].contiguous(), u[at].contiguous())
        assert error(together[at], alone) <= 1000 * eps(dtype) * (1 + float(u.abs().max()))


@pytest.mark.parametrize("name", MAPS)
def test_shapes_and_dtypes_do_not_depend_on_the_device(name):
    x = GRASSMANN.origin(2, 6, 3, device="meta", dtype=torch.float64)
    y = MAPS[name](x, torch.empty(2, 6, 3, device="meta", dtype=torch.float64))
    assert (y.device.type, y.dtype) == ("meta", torch.float64)


# Optimization

SELECTIONS = {
    "uniform": (Uniform(), 800),
    "gauss-southwell": (GaussSouthwell(), 300),
    "disjoint block": (Block(size=2, disjoint=True), 300),
    "overlapping block": (Block(size=4), 150),
}


@pytest.mark.parametrize("name", ["srgd", *SELECTIONS])
def test_the_dominant_subspace(name):
    noise = Noise(0)
    n, p = 5, 2
    q = noise.point(n, n)
    a = (q * torch.arange(n, 0, -1.0).double()) @ q.mT
    x = ManifoldParameter(point(noise, n, p), manifold=GRASSMANN)
    if name == "srgd":
        optimizer, steps = SRGD([x], 0.1), 150
    else:
        selection, steps = SELECTIONS[name]
        optimizer = SRCD([x], 0.1, selection)
    for _ in range(steps):
        optimizer.zero_grad()
        (-(a @ x * x).sum()).backward()
        optimizer.step()
    assert float(GRASSMANN.dist(x.detach(), q[:, :p])) <= 1e-5
    assert defect(x) <= 1e-13


class Pairs:
    """A user's selection: the axes in pairs, as groups."""

    def select(self, view):
        return Groups(torch.arange(view.num_axes // 2 * 2).view(-1, 2))


@given(batch_shapes, shapes_and_squares, noises)
def test_all_coordinates_at_once_are_the_gradient_step(batch, shape, noise: Noise):
    start = point(noise, *batch, *shape)
    _, egrad = subspace_cost(noise, start)
    ends = []
    for build in (lambda p: SRCD([p], 0.1, Everything()), lambda p: SRGD([p], 0.1)):
        p = ManifoldParameter(start.clone(), manifold=GRASSMANN)
        p.grad = egrad.clone()
        build(p).step()
        ends.append(p.detach())
    assert error(*ends) <= 1e-12


DRIFTS = {
    "uniform": (2000, lambda p: SRCD([p], 0.1)),
    "large angles": (700, lambda p: SRCD([p], 1.0, GaussSouthwell())),
    "overlapping block": (500, lambda p: SRCD([p], 0.1, Block(size=20))),
    "groups": (500, lambda p: SRCD([p], 0.1, Pairs())),
    "srgd": (1000, lambda p: SRGD([p], 0.01)),
    "momentum": (500, lambda p: SRGD([p], 0.001, momentum=0.9)),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_a_float32_point_stays_on_the_manifold(name):
    noise = Noise(0)
    p = ManifoldParameter(point(noise, 16, 5, dtype=torch.float32), manifold=GRASSMANN)
    gradients = noise.normal(101, 16, 5, dtype=torch.float32)
    steps, build = DRIFTS[name]
    optimizer, worst = build(p), 0.0
    for step in range(steps):
        p.grad = gradients[step % 101]
        optimizer.step()
        if step % 97 == 0 or step == steps - 1:
            worst = max(worst, defect(p))
    assert worst <= 1e-6


@pytest.mark.parametrize("retraction", Grassmann.retractions)
def test_geoopts_optimizers_work_on_it(retraction):
    noise = Noise(0)
    target = point(noise, 5, 2)
    start = GRASSMANN.expmap(target, 0.3 * tangent(noise, target))
    p = ManifoldParameter(start, manifold=Grassmann(retraction))
    optimizer = geoopt.optim.RiemannianAdam([p], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (p @ p.mT - projector(target)).square().sum().backward()
        optimizer.step()
    assert float(GRASSMANN.dist(p.detach(), target)) <= 0.02
    assert defect(p) <= 1e-12


# Checks, and bad input


@given(batch_shapes, shapes, dtypes, st.floats(-3, 3), noises)
def test_checks_accept_and_reject(batch, shape, dtype, power, noise: Noise):
    x = point(noise, *batch, *shape, dtype=dtype)
    u = tangent(noise, x)
    assert GRASSMANN.check_point_on_manifold(x)
    assert GRASSMANN.check_vector_on_tangent(x, u)
    first = (0,) * len(batch)
    off = x.clone()
    off[first] *= 1 + 10.0**power
    ok, reason = GRASSMANN.check_point_on_manifold(off, explain=True)
    assert not ok
    assert "projx" in reason
    # A vector that turns the basis only is tangent to the Stiefel manifold, but not horizontal.
    vertical = x @ noise.skew(shape[1], shape[1], dtype=dtype)
    if shape[1] > 1:
        assert Stiefel().check_vector_on_tangent(x, vertical)
        ok, reason = GRASSMANN.check_vector_on_tangent(x, u + vertical, explain=True)
        assert not ok
        assert "|xᵀu|" in reason
        assert "proju" in reason
    u[first] += torch.nan
    assert not GRASSMANN.check_vector_on_tangent(x, u)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (1, 1), (4, 0), (5, 1, 1)])
def test_shapes_that_no_point_has(shape):
    for raises in (
        lambda: GRASSMANN.random(*shape),
        lambda: GRASSMANN.origin(*shape),
        lambda: GRASSMANN.projx(torch.zeros(shape)),
        lambda: GRASSMANN.assert_check_point(torch.zeros(shape)),
    ):
        with pytest.raises(
            ValueError, match=r"Grassmann expects \(\.\.\., n, p\) with n >= p >= 1"
        ):
            raises()


def test_options_that_do_not_exist():
    with pytest.raises(ValueError, match=r"retraction 'cayley' is unknown; choose from .*'polar'"):
        Grassmann("cayley")
    assert "polar" in repr(Grassmann("polar"))
    assert repr(GRASSMANN) == "Grassmann manifold"
