"""The orthogonal group: points, tangent vectors, exponential, logarithm, transport, distance."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch
from hypothesis import given, settings
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

from givens.manifolds import OrthogonalGroup, Sphere

GROUP = OrthogonalGroup()


def eps(dtype):
    return torch.finfo(dtype).eps


def inner(u, v):
    return (u * v).sum((-2, -1))


def turned(noise, angles, rest):
    """A random rotation by the given angles in orthogonal planes, and `rest` fixed directions."""
    turn = torch.eye(2 * len(angles) + rest, dtype=torch.float64)
    for n, angle in enumerate(angles):
        c, s = math.cos(angle), math.sin(angle)
        turn[2 * n : 2 * n + 2, 2 * n : 2 * n + 2] = torch.tensor(
            [[c, s], [-s, c]], dtype=turn.dtype
        )
    frame = noise.point(*turn.shape)
    return frame @ turn @ frame.mT


# Points


@given(batch_shapes, dims, dtypes, st.sampled_from([None, 1, -1]), noises)
def test_random_points_are_orthogonal_to_the_last_digit(batch, d, dtype, det, noise: Noise):
    x = GROUP.random(*batch, d, d, dtype=dtype, generator=noise.generator, det=det)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, d, d), dtype, GROUP)
    assert defect(x) <= 1.5 * eps(dtype) + 1e-14
    GROUP.assert_check_point_on_manifold(x)
    if det is not None:
        assert ((torch.linalg.det(x) * det) > 0).all()


def test_random_points_repeat_with_their_generator():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return GROUP.random(3, 4, 4, generator=generator)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("det", [None, 1, -1])
def test_random_points_follow_the_haar_measure(det):
    """Moments of the Haar measure, within five standard errors."""
    n, d = 20_000, 4
    noise = Noise(0)
    x = noise.point(n, d, d, det=det)
    g = noise.point(d, d, det=1)

    def assert_mean(sample, mean):
        deviation = float(sample.std()) / math.sqrt(n)
        assert abs(float(sample.mean()) - mean) <= 5 * deviation

    assert_mean((torch.linalg.det(x) > 0).double(), {None: 0.5, 1: 1.0, -1: 0.0}[det])
    for y in (x, g @ x, x @ g):  # invariant from both sides
        trace = y.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert_mean(trace, 0.0)
        assert_mean(trace**2, 1.0)
        for i, j in product(range(d), range(d)):
            assert_mean(y[:, i, j], 0.0)
            assert_mean(y[:, i, j] ** 2, 1 / d)


@given(batch_shapes, dims, dtypes)
def test_origin_is_the_identity(batch, d, dtype):
    x = GROUP.origin(*batch, d, d, dtype=dtype, seed=7)
    assert x.dtype == dtype
    assert x.manifold is GROUP
    assert torch.equal(x, torch.eye(d, dtype=dtype).expand(*batch, d, d))
    x.mul_(2)  # owns its memory
    assert float(x.sum()) == 2 * d * math.prod(batch)


@given(dims, noises)
def test_projx_is_the_polar_factor(d, noise: Noise):
    m = noise.normal(d, d)
    polar, _ = scipy.linalg.polar(m.numpy())
    # The polar factor is as badly determined as m is near to singular.
    tolerance = 1e-14 * d / float(torch.linalg.svdvals(m)[-1])
    assert error(GROUP.projx(m), torch.from_numpy(polar)) <= tolerance


@given(dims, noises)
def test_projx_is_nearer_than_any_other_point(d, noise: Noise):
    m = noise.normal(d, d)
    x = GROUP.projx(m)
    others = torch.cat(
        [noise.point(50, d, d), GROUP.expmap(x.expand(50, d, d), 0.01 * noise.normal(50, d, d))]
    )
    distance = torch.linalg.matrix_norm(others - m)
    assert (distance >= torch.linalg.matrix_norm(x - m) - 1e-12).all()


@given(batch_shapes, dims, dtypes, noises)
def test_projx_leaves_points_alone_and_its_image_is_the_group(batch, d, dtype, noise: Noise):
    for m in layouts(noise.normal(*batch, d, d, dtype=dtype)):
        kept = m.clone()
        x = GROUP.projx(m)
        assert torch.equal(m, kept)
        assert defect(x) <= 3 * eps(dtype)
        assert error(GROUP.projx(x), x) <= 4 * eps(dtype)


def test_projx_takes_singular_matrices():
    for m in (torch.zeros(3, 3), torch.ones(4, 4), torch.diag(torch.tensor([1.0, 2.0, 0.0]))):
        assert defect(GROUP.projx(m)) <= 1e-6


@given(dims, noises, st.floats(-6, -1.5))
def test_restoring_converges_quadratically(d, noise: Noise, power):
    x = noise.point(d, d)
    e = noise.normal(d, d)
    e = (e + e.mT) * 10.0**power / torch.linalg.matrix_norm(e + e.mT)
    y = x @ (torch.eye(d) + e)
    before = torch.linalg.matrix_norm(y.mT @ y - torch.eye(d))
    assert GROUP.restore_(y) is y
    after = torch.linalg.matrix_norm(y.mT @ y - torch.eye(d))
    # (I + E)(I − E − E²/2)… leaves ¾ of the square.
    assert float(after) <= float(before) ** 2 + 1e-14
    # It goes to the nearest point, of which y was built to be a symmetric factor away.
    assert error(y, x) <= float(before) ** 2 + 1e-14


@given(batch_shapes, st.integers(2, 96), noises)
def test_restoring_in_float32_reaches_the_last_digit(batch, d, noise: Noise):
    x = noise.point(*batch, d, d, dtype=torch.float32)
    x += 1e-5 * noise.like(x)
    assert defect(GROUP.restore_(x)) <= 1.5 * eps(torch.float32)


@given(batch_shapes, dims, dtypes, noises)
def test_restoring_leaves_orthogonal_matrices_alone(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    for y in layouts(x):
        assert error(GROUP.restore_(y), x) <= 2 * eps(dtype)


# Tangent vectors


@given(batch_shapes, dims, dtypes, noises)
def test_proju_is_an_orthogonal_projection_on_the_tangent_space(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    u, v = noise.like(x), noise.like(x)
    p = GROUP.proju(x, u)
    scale = d * eps(dtype) * float(u.abs().max() * v.abs().max() + 1)
    assert p.dtype == dtype
    assert error(GROUP.proju(x, p), p) <= 4 * scale  # idempotent
    assert error(inner(p, v), inner(u, GROUP.proju(x, v))) <= 8 * d * scale  # self-adjoint
    assert error(x.mT @ p, -(p.mT @ x)) <= 4 * scale  # tangent
    ok, reason = GROUP.check_vector_on_tangent(x, p, explain=True, atol=1e-4)
    assert ok, reason


@given(batch_shapes, dims, dtypes, noises)
def test_proju_keeps_tangent_and_kills_normal_vectors(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    s = noise.like(x)
    tangent, normal = noise.tangent(x), x @ (s + s.mT)
    tolerance = 8 * d * eps(dtype) * float(s.abs().max() + tangent.abs().max())
    assert error(GROUP.proju(x, tangent), tangent) <= tolerance
    assert error(GROUP.proju(x, normal), torch.zeros_like(x)) <= tolerance


@given(batch_shapes, dims, noises)
def test_the_riemannian_gradient_represents_the_derivative(batch, d, noise: Noise):
    x = noise.point(*batch, d, d)
    target, u = noise.like(x), noise.tangent(x)

    def cost(x):
        return ((x @ target).sin() * target).sum((-2, -1))

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(y).sum(), y)
    _, derivative = torch.func.jvp(cost, (x,), (u,))
    rgrad = GROUP.egrad2rgrad(x, egrad)
    assert error(GROUP.inner(x, rgrad, u), derivative) <= 1e-11
    GROUP.assert_check_vector_on_tangent(x, rgrad)


@given(batch_shapes, dims, dtypes, noises)
def test_inner_and_norm_are_those_of_the_ambient_space(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    u, v = noise.tangent(x), noise.tangent(x)
    trace = (u.mT @ v).diagonal(dim1=-2, dim2=-1).sum(-1)
    tolerance = 4 * d * d * eps(dtype) * float(u.abs().max() * v.abs().max() + 1)
    assert GROUP.inner(x, u, v).shape == batch
    assert error(GROUP.inner(x, u, v), trace) <= tolerance
    assert error(GROUP.inner(x, u), GROUP.norm(x, u) ** 2) <= 10 * d * d * eps(dtype) * (
        1 + float(u.abs().max()) ** 2
    )
    assert error(GROUP.norm(x, u), torch.linalg.matrix_norm(u)) <= tolerance
    kept = GROUP.inner(x, u, v, keepdim=True)
    assert kept.shape == (*batch, 1, 1)
    assert torch.equal(kept[..., 0, 0], GROUP.inner(x, u, v))
    assert GROUP.norm(x, u, keepdim=True).shape == (*batch, 1, 1)


def test_inner_broadcasts_over_the_batch_of_the_points():
    noise = Noise(0)
    x, u = noise.point(5, 3, 3), noise.normal(3, 3)
    assert GROUP.inner(x, u).shape == (5,)
    assert GROUP.inner(x, u, keepdim=True).shape == (5, 1, 1)


# Exponential and logarithm


@given(batch_shapes, dims, st.floats(-8, 1.3), noises)
def test_expmap_is_scipys_exponential(batch, d, power, noise: Noise):
    x = noise.point(*batch, d, d)
    u = noise.tangent(x)
    u = u * 10**power / torch.linalg.matrix_norm(u, keepdim=True)
    expected = x @ torch.from_numpy(scipy.linalg.expm((x.mT @ u).numpy()))
    for y, v in zip(layouts(x), layouts(u), strict=True):
        assert error(GROUP.expmap(y, v), expected) <= 1e-13 * (1 + 10**power)


@given(batch_shapes, dims, st.floats(-8, 1.3), noises)
def test_expmap_in_float32_follows_float64(batch, d, power, noise: Noise):
    x = noise.point(*batch, d, d, dtype=torch.float32)
    u = noise.tangent(x)
    u = u * 10**power / torch.linalg.matrix_norm(u, keepdim=True)
    y = GROUP.expmap(x, u)
    assert y.dtype == torch.float32
    assert error(y, GROUP.expmap(x.double(), u.double())) <= 1e-6 * (1 + 10**power)
    assert defect(y) <= 2e-6 * (1 + 10**power)


@given(dims, noises, st.floats(-2, 2), st.floats(-2, 2))
def test_the_geodesic_is_a_one_parameter_group(d, noise: Noise, s, t):
    x = noise.point(d, d)
    a = noise.skew(d, d)
    halfway = GROUP.expmap(x, x @ (s * a))
    assert error(GROUP.expmap(halfway, halfway @ (t * a)), GROUP.expmap(x, x @ ((s + t) * a))) <= (
        1e-12 * d
    )
    assert torch.equal(GROUP.expmap(x, 0 * x), x)


@given(st.lists(st.floats(-3.1, 3.1), min_size=1, max_size=4), st.integers(0, 1), noises)
def test_log_after_exp_inside_the_injectivity_radius(angles, rest, noise: Noise):
    d = 2 * len(angles) + rest
    frame = noise.point(d, d)
    a = torch.zeros(d, d, dtype=torch.float64)
    for n, angle in enumerate(angles):
        a[2 * n, 2 * n + 1] = angle
    a = frame @ (a - a.mT) @ frame.mT
    x = noise.point(d, d)
    u = x @ a
    # Badly conditioned towards π: there a small change of the point is a large one of the vector.
    tolerance = 1e-13 * d / (math.pi - max(abs(angle) for angle in angles))
    assert error(GROUP.logmap(x, GROUP.expmap(x, u)), u) <= tolerance


@given(batch_shapes, dims, dtypes, noises)
def test_exp_after_log(batch, d, dtype, noise: Noise):
    x, y = (noise.point(*batch, d, d, dtype=dtype, det=1) for _ in range(2))
    u = GROUP.logmap(x, y)
    assert u.dtype == dtype
    tolerance = 1e3 * d * eps(dtype)
    assert error(GROUP.expmap(x, u), y) <= tolerance
    GROUP.assert_check_vector_on_tangent(x, u, atol=1e-4)


@given(st.integers(2, 7), noises)
def test_the_logarithm_is_scipys(d, noise: Noise):
    x = noise.point(d, d)
    q = scipy.linalg.expm(0.7 * noise.skew(d, d).numpy() / d)
    u = GROUP.logmap(x, x @ torch.from_numpy(q))
    assert error(x.mT @ u, torch.from_numpy(np.real(scipy.linalg.logm(q)))) <= 1e-12


near_half_turn = st.one_of(
    st.floats(-14, -0.5).map(lambda power: math.pi - 10.0**power),
    st.floats(0.1, 10).map(lambda factor: math.pi - factor * math.sqrt(eps(torch.float64))),
    st.just(math.pi),
)


@settings(max_examples=100)
@given(
    st.lists(st.one_of(near_half_turn, st.floats(0, 3)), min_size=1, max_size=4),
    st.integers(0, 1),
    dtypes,
    noises,
)
def test_the_logarithm_reaches_up_to_the_cut_locus(angles, rest, dtype, noise: Noise):
    """Eigenvalues −1, exact or nearly so, one or several: still a shortest vector to the other point."""
    q = turned(noise, angles, rest)
    x = noise.point(*q.shape)
    x, y = x.to(dtype), (x @ q).to(dtype)
    u = GROUP.logmap(x, y)
    tolerance = 20 * len(q) * math.sqrt(eps(dtype))
    assert error(x.double() @ scipy_expm(x.mT @ u), y) <= tolerance
    length = math.sqrt(2 * sum(angle**2 for angle in angles))
    assert abs(float(GROUP.dist(x, y)) - length) <= tolerance
    assert abs(float(torch.linalg.matrix_norm(u)) - length) <= tolerance


def scipy_expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.double().numpy()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [2, 3, 6, 7])
def test_opposite_points(d, dtype):
    """Exact half turns: −1 in d or d − 1 directions."""
    noise = Noise(0)
    x = noise.point(d, d, dtype=dtype)
    y = x.clone()
    y[:, : d // 2 * 2] *= -1
    u = GROUP.logmap(x, y)
    assert error(GROUP.expmap(x, u), y) <= 100 * eps(dtype)
    assert abs(float(GROUP.dist(x, y)) - math.pi * math.sqrt(d // 2 * 2)) <= 100 * eps(dtype)


def test_no_geodesic_joins_the_components():
    noise = Noise(0)
    x = noise.point(2, 4, 4, det=1)
    y = torch.stack([noise.point(4, 4, det=1), noise.point(4, 4, det=-1)])
    with pytest.raises(ValueError, match="determinants of opposite sign"):
        GROUP.logmap(x, y)
    distance = GROUP.dist(x, y)
    assert distance[0].isfinite()
    assert distance[1] == torch.inf


@given(batch_shapes, dims, noises)
def test_dist_is_a_metric_and_the_length_of_the_logarithm(batch, d, noise: Noise):
    x, y, z = (noise.point(*batch, d, d, det=-1) for _ in range(3))
    xy = GROUP.dist(x, y)
    assert xy.shape == batch
    assert torch.equal(GROUP.dist(x, y, keepdim=True), xy[..., None, None])
    tolerance = 1e-9
    assert error(xy, GROUP.dist(y, x)) <= tolerance
    assert error(xy, GROUP.norm(x, GROUP.logmap(x, y))) <= tolerance
    assert (xy <= GROUP.dist(x, z) + GROUP.dist(z, y) + tolerance).all()
    assert error(GROUP.dist(x, x), torch.zeros(batch)) <= 1e-13
    # Invariant from both sides.
    g, h = noise.point(d, d), noise.point(d, d)
    assert error(GROUP.dist(g @ x @ h, g @ y @ h), xy) <= tolerance


# Transport


@given(batch_shapes, dims, dtypes, noises)
def test_both_transports_are_isometries_onto_the_tangent_space(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    u, v, w = (noise.tangent(x) for _ in range(3))
    y = GROUP.expmap(x, u)
    before = inner(v, w)
    tolerance = 200 * d * d * eps(dtype) * float(1 + before.abs().max())
    followed = [GROUP.transp_follow_expmap(x, u, z) for z in (v, w)]
    translated = [GROUP.transp(x, y, z) for z in (v, w)]
    for a, b in (followed, translated):
        assert a.dtype == dtype
        assert error(inner(a, b), before) <= tolerance
        assert error(y.mT @ a, -(a.mT @ y)) <= tolerance


@given(dims, noises)
def test_expmap_transp_is_both_at_once(d, noise: Noise):
    x = noise.point(d, d)
    u, v = noise.tangent(x), noise.tangent(x)
    y, w = GROUP.expmap_transp(x, u, v)
    assert error(y, GROUP.expmap(x, u)) <= 1e-13
    assert defect(y) <= 1e-14
    assert torch.equal(w, GROUP.transp_follow_expmap(x, u, v))


@pytest.mark.parametrize("manifold", [GROUP, Sphere()])
def test_follow_knows_two_maps(manifold):
    x = manifold.origin(3, 3)
    with pytest.raises(ValueError, match="map='geodesic': expected 'expmap' or 'retr'"):
        manifold.follow(x, torch.zeros(3, 3), map="geodesic")


def test_a_subclass_with_maps_of_its_own_is_asked_for_them():
    """Steps and transports that leave tangent vectors out, or share an exponential, do not pass them over."""

    class Other(OrthogonalGroup):
        def expmap(self, x, u):
            return x.clone()

    class Carried(OrthogonalGroup):
        def transp_follow_expmap(self, x, u, v):
            return 2 * v

    noise = Noise(0)
    x = noise.point(4, 4)
    u, v = noise.tangent(x), noise.tangent(x)
    assert torch.equal(Other().follow(x, Other().gradient(x, u)), x)
    assert torch.equal(Other().expmap_transp(x, u, v)[0], x)
    assert torch.equal(Carried().expmap_transp(x, u, v)[1], 2 * v)


@given(dims, noises)
def test_transport_takes_the_velocity_of_a_geodesic_along(d, noise: Noise):
    x = noise.point(d, d)
    a = noise.skew(d, d)
    y = GROUP.expmap(x, x @ a)
    assert error(GROUP.transp_follow_expmap(x, x @ a, x @ a), y @ a) <= 1e-11 * d
    assert error(GROUP.transp(x, y, x @ a), y @ a) <= 1e-11 * d


@settings(max_examples=8)
@given(st.integers(2, 5), noises)
def test_geodesic_and_transport_solve_their_differential_equations(d, noise: Noise):
    """Along γ the ambient derivatives of the velocity and of the transported vector are normal.

    γᵀu + uᵀγ = 0 for every tangent u; its derivative gives the normal part of the derivative of u along
    γ as −γ(γ′ᵀu + uᵀγ′)/2, and the tangent part, the covariant derivative, is to vanish.
    """
    x = noise.point(d, d)
    u, v = noise.tangent(x), noise.tangent(x)

    def flow(_, state):
        point, velocity, vector = state.reshape(3, d, d)

        def normal(w):
            return -point @ (velocity.T @ w + w.T @ velocity) / 2

        return np.stack([velocity, normal(velocity), normal(vector)]).ravel()

    start = torch.stack([x, u, v]).numpy().ravel()
    end = scipy.integrate.solve_ivp(flow, (0, 1), start, rtol=1e-11, atol=1e-12, method="DOP853")
    y, _, w = torch.from_numpy(end.y[:, -1]).reshape(3, d, d)
    assert error(GROUP.expmap(x, u), y) <= 1e-8
    assert error(GROUP.transp_follow_expmap(x, u, v), w) <= 1e-8
    if d > 2:  # left translation is another transport: so(2) alone is commutative
        assert error(GROUP.transp(x, GROUP.expmap(x, u), v), w) > 1e-6


# Whole batches, devices, gradients

MAPS = {
    "proju": GROUP.proju,
    "expmap": GROUP.expmap,
    "transp_follow_expmap": lambda x, u: GROUP.transp_follow_expmap(x, u, x @ (u - u.mT)),
    "transp": lambda x, u: GROUP.transp(x, GROUP.expmap(x, u), u),
    "projx": lambda x, u: GROUP.projx(u),
    "restore": lambda x, u: GROUP.restore_(x + 0.01 * u),
    "log": lambda x, u: GROUP.logmap(x, GROUP.expmap(x, u / 10)),
    "inner": GROUP.inner,
    "norm": GROUP.norm,
    "dist": lambda x, u: GROUP.dist(x, GROUP.projx(u)),
}


@pytest.mark.parametrize("name", MAPS)
@given(st.sampled_from([(0,), (1,), (3,), (2, 3)]), dims, dtypes, noises)
def test_a_batch_is_a_loop(name, batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    u = noise.normal(*batch, d, d, dtype=dtype)
    # The polar factor is as badly determined as the matrix is near to singular.
    u = u + 4 * math.sqrt(d) * torch.eye(d, dtype=dtype)
    together = MAPS[name](x, u)
    assert together.dtype == dtype
    tolerance = 2e3 * d * eps(dtype)
    for at in product(*map(range, batch)):
        alone = MAPS[name](x[at].contiguous(), u[at].contiguous())
        finite = alone.isfinite()
        assert torch.equal(finite, together[at].isfinite())
        assert error(together[at][finite], alone[finite]) <= tolerance


@pytest.mark.parametrize("norm", [1e-3, 0.1, 3.0])
def test_gradients_flow_through_projection_and_exponential(norm):
    noise = Noise(0)
    x = noise.point(3, 3)
    u = (norm * noise.normal(3, 3)).requires_grad_()
    x = x.requires_grad_()
    torch.autograd.gradcheck(GROUP.proju, (x, u))
    torch.autograd.gradcheck(GROUP.expmap, (x, u))
    torch.autograd.gradcheck(lambda x, u: GROUP.transp_follow_expmap(x, u, u @ u), (x, u))


def test_shapes_and_dtypes_do_not_depend_on_the_device():
    x = GROUP.origin(2, 5, 5, device="meta", dtype=torch.float64)
    assert x.device.type == "meta"
    u = torch.empty(2, 5, 5, device="meta", dtype=torch.float64)
    for y in (
        GROUP.proju(x, u),
        GROUP.expmap(x, u),
        GROUP.transp(x, x, u),
        GROUP.transp_follow_expmap(x, u, u),
        GROUP.projx(u),
        GROUP.restore_(u.clone()),
        GROUP.dist(x, u, keepdim=True).expand(2, 5, 5),
    ):
        assert (y.shape, y.device, y.dtype) == (x.shape, x.device, x.dtype)


# Checks, and bad input


@given(batch_shapes, dims, dtypes, noises)
def test_checks_accept_points_and_tangent_vectors(batch, d, dtype, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    assert GROUP.check_point(x)
    assert GROUP.check_vector(x)
    assert GROUP.check_point_on_manifold(x)
    assert GROUP.check_vector_on_tangent(x, noise.tangent(x))


@given(batch_shapes, dims, dtypes, st.floats(-4, 3), noises)
def test_checks_reject_what_is_off(batch, d, dtype, power, noise: Noise):
    x = noise.point(*batch, d, d, dtype=dtype)
    off = x.clone()
    off[(0,) * len(batch)] *= 1 + 10.0**power
    ok, reason = GROUP.check_point_on_manifold(off, explain=True)
    assert not ok
    assert "projx" in reason
    normal = noise.tangent(x)
    normal[(0,) * len(batch)] += 10.0**power * (1 + normal.abs().max()) * x[(0,) * len(batch)]
    ok, reason = GROUP.check_vector_on_tangent(x, normal, explain=True)
    assert not ok
    assert "proju" in reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_checks_reject_what_is_not_finite(bad):
    x = Noise(0).point(2, 3, 3)
    y = x.clone()
    y[1, 0, 0] = bad
    assert not GROUP.check_point_on_manifold(y)
    assert not GROUP.check_vector_on_tangent(x, y - x)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (4, 3), (1, 1), (0, 0), (5, 1, 1), (3, 3, 2)])
def test_shapes_that_no_point_has(shape):
    x = torch.zeros(shape)
    assert not GROUP.check_point(x)
    assert not GROUP.check_vector(x)
    assert not GROUP.check_point_on_manifold(x)
    for raises in (
        lambda: GROUP.random(*shape),
        lambda: GROUP.origin(*shape),
        lambda: GROUP.assert_check_point(x),
        lambda: GROUP.assert_check_point_on_manifold(x),
    ):
        with pytest.raises(ValueError, match=r"expects \(\.\.\., d, d\) with d >= 2"):
            raises()


BAD_DTYPES = [torch.int64, torch.float16, torch.bfloat16, torch.complex64]


@pytest.mark.parametrize("dtype", BAD_DTYPES)
def test_dtypes_that_no_point_has(dtype):
    x = torch.eye(3).to(dtype)
    ok, reason = GROUP.check_point_on_manifold(x, explain=True)
    assert not ok
    assert "float32 and float64" in reason
    for raises in (
        lambda: GROUP.random(3, 3, dtype=dtype),
        lambda: GROUP.origin(3, 3, dtype=dtype),
        lambda: GROUP.projx(x),
    ):
        with pytest.raises(TypeError, match="float32 and float64"):
            raises()


def test_options_that_do_not_exist():
    with pytest.raises(ValueError, match=r"retraction 'euler' is unknown; choose from .*'cayley'"):
        OrthogonalGroup("euler")
    for det in (2, 0, 0.5, "+1"):
        with pytest.raises(ValueError, match="expected 1, -1 or None"):
            GROUP.random(3, 3, det=det)


def test_the_representation_names_the_retraction():
    assert repr(GROUP) == "OrthogonalGroup manifold"
    assert "cayley" in repr(OrthogonalGroup("cayley"))
