"""Symplectic matrices, with shears and squeezes of conjugate rows as coordinates."""

import math

import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, dtypes, error, noises
from torch import Tensor

from givens.manifolds import All, Coordinates, Groups, Symplectic
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Matching, Uniform

MANIFOLD = Symplectic()

shapes = st.sampled_from([(2, 2), (4, 2), (4, 4), (6, 4), (8, 2), (6, 6)])


def eps(dtype):
    return torch.finfo(dtype).eps


def form(d):
    """The matrix J."""
    identity = torch.eye(d // 2, dtype=torch.float64)
    zero = torch.zeros_like(identity)
    return torch.cat([torch.cat([zero, identity], 1), torch.cat([-identity, zero], 1)])


def point(noise, *size, dtype=torch.float64):
    return MANIFOLD.random(*size, dtype=dtype, generator=noise.generator).as_subclass(Tensor)


def orthogonal(noise, d):
    """A symplectic matrix that is orthogonal, from a unitary one."""
    a = torch.complex(noise.normal(d // 2, d // 2), noise.normal(d // 2, d // 2))
    q, _ = torch.linalg.qr(a)
    return torch.cat([torch.cat([q.real, -q.imag], 1), torch.cat([q.imag, q.real], 1)])


def tangent(noise, x):
    return MANIFOLD.proju(x, noise.like(x))


def off(x):
    """The largest entry of xᵀJx − J, relative to the lengths of the columns."""
    x = x.detach().double()
    lengths = torch.linalg.vector_norm(x, dim=-2)
    difference = (x.mT @ form(x.shape[-2]) @ x - form(x.shape[-1])).abs()
    return float((difference / (lengths.unsqueeze(-1) * lengths.unsqueeze(-2)).clamp(min=1)).max())


def generators(d):
    """The symmetric matrices of the coordinates, in the order of their numbers."""
    for a in range(d):
        for b in range(a + 1, d):
            s = torch.zeros(d, d, dtype=torch.float64)
            s[a, b] = s[b, a] = 1
            yield s
    for a in range(d):
        s = torch.zeros(d, d, dtype=torch.float64)
        s[a, a] = math.sqrt(2)
        yield s


def least_generator(x, u):
    """The symmetric matrix S of least norm with u = JSx, by least squares over all of them."""
    basis = torch.stack(list(generators(x.shape[0]))) / math.sqrt(2)
    columns = (form(x.shape[0]) @ basis @ x).flatten(1).T
    weights = torch.linalg.lstsq(columns, u.flatten().unsqueeze(-1), driver="gelsd").solution
    return (weights.unsqueeze(-1) * basis).sum(0)


# Points


@given(batch_shapes, shapes, dtypes, noises)
def test_random_points_are_symplectic_and_repeat(batch, shape, dtype, noise: Noise):
    x = MANIFOLD.random(*batch, *shape, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, *shape), dtype, MANIFOLD)
    assert off(x.as_subclass(Tensor)) <= 4 * shape[0] * eps(dtype)
    values = torch.linalg.svdvals(x.as_subclass(Tensor).double())
    assert values.max() <= 6
    if shape[0] == shape[1]:  # they come in pairs
        assert error(values, 1 / values.flip(-1)) <= 1e-13 if dtype == torch.float64 else 1e-4
    again = MANIFOLD.random(*batch, *shape, dtype=dtype, generator=Noise(noise.seed).generator)
    assert torch.equal(x, again)


def test_random_points_are_the_same_in_every_orthonormal_symplectic_basis():
    """So the second moments are those of multiples of the identity."""
    x = point(Noise(0), 20_000, 4, 2)
    second = torch.einsum("bij,bkl->ijkl", x, x).reshape(8, 8) / len(x)
    size = float(second.diagonal().mean())
    # J·x·Jᵀ correlates with x, and nothing else does.
    j, identity = form(4), torch.eye(4, dtype=torch.float64)
    turned = torch.kron(j, form(2))
    weight = float((second * turned).sum() / turned.square().sum())
    expected = size * torch.kron(identity, torch.eye(2, dtype=torch.float64)) + weight * turned
    assert error(second, expected) <= 5 * size * math.sqrt(2 / len(x))


@given(shapes, dtypes, noises)
def test_projx_is_a_point_and_keeps_points(shape, dtype, noise: Noise):
    noise_point = MANIFOLD.projx(noise.normal(*shape, dtype=dtype))
    assert off(noise_point) <= 8 * shape[0] * eps(dtype)
    x = point(noise, *shape, dtype=dtype)
    assert error(MANIFOLD.projx(x), x) <= 50 * eps(dtype)
    assert error(MANIFOLD.projx(3 * x), x) <= 100 * eps(dtype)


@given(shapes, noises)
def test_next_to_a_point_projx_is_a_square_root(shape, noise: Noise):
    """x·(Jᵀxᵀ·J·x)^{−1/2}, as the polar factor is x·(xᵀx)^{−1/2}, to first order."""
    size = 1e-4
    y = point(noise, *shape) + size * noise.normal(*shape)
    n = form(shape[1]).T @ y.T @ form(shape[0]) @ y
    root = torch.from_numpy(scipy.linalg.inv(scipy.linalg.sqrtm(n.numpy())).real)
    assert error(MANIFOLD.projx(y), y @ root) <= 1000 * size**2


@given(shapes, noises)
def test_projx_is_the_same_in_every_orthonormal_symplectic_basis(shape, noise: Noise):
    y = point(noise, *shape) + 0.1 * noise.normal(*shape)
    u, v = orthogonal(noise, shape[0]), orthogonal(noise, shape[1])
    assert error(MANIFOLD.projx(u @ y @ v), u @ MANIFOLD.projx(y) @ v) <= 1e-11


@given(shapes, noises)
def test_the_derivative_of_projx_at_a_point_is_a_projection(shape, noise: Noise):
    """It keeps tangent vectors, and is what differences say of others."""
    x, z = point(noise, *shape), noise.normal(*shape)
    u = tangent(noise, x)
    _, kept = torch.autograd.functional.jvp(MANIFOLD.projx, x, u)
    assert error(kept, u) <= 1e-10 * float(1 + u.abs().max())
    _, change = torch.autograd.functional.jvp(MANIFOLD.projx, x, z)
    h = 1e-5
    slope = (MANIFOLD.projx(x + h * z) - MANIFOLD.projx(x - h * z)) / (2 * h)
    assert error(change, slope) <= 1e-6


@pytest.mark.parametrize(
    "x", [torch.zeros(4, 2), torch.eye(4, 2), torch.ones(6, 4)], ids=["zero", "isotropic", "ones"]
)
def test_projx_refuses_what_no_factor_makes_symplectic(x):
    with pytest.raises(ValueError, match="xᵀJx is singular"):
        MANIFOLD.projx(x)


# Metric and maps


@given(shapes, noises)
def test_the_metric_is_that_of_the_least_generators(shape, noise: Noise):
    x = point(noise, *shape)
    u, v = tangent(noise, x), tangent(noise, x)
    s, t = least_generator(x, u), least_generator(x, v)
    size = float(1 + s.abs().max() + t.abs().max()) ** 2
    assert error(MANIFOLD.inner(x, u, v), (s * t).sum() / 2) <= 1e-11 * size
    j = form(shape[0])
    p = x @ torch.linalg.pinv(x)
    middle = torch.eye(shape[0], dtype=torch.float64) - j.T @ p @ j / 2
    formula = torch.trace(u.T @ middle @ v @ torch.linalg.inv(x.T @ x))
    assert error(MANIFOLD.inner(x, u, v), formula) <= 1e-11 * size


@given(shapes, noises)
def test_symmetries_are_isometries(shape, noise: Noise):
    """Orthogonal symplectic matrices from the left, symplectic ones from the right."""
    x, v = point(noise, *shape), point(noise, shape[1], shape[1])
    u = orthogonal(noise, shape[0])
    a, b = tangent(noise, x), tangent(noise, x)
    before, after = MANIFOLD.inner(x, a, b), MANIFOLD.inner(u @ x @ v, u @ a @ v, u @ b @ v)
    size = float(1 + a.abs().max() + b.abs().max()) ** 2
    assert error(before, after) <= 1e-10 * size
    moved = MANIFOLD.expmap(x, a / (1 + a.norm()))
    there = MANIFOLD.expmap(u @ x @ v, u @ a @ v / (1 + a.norm()))
    assert error(u @ moved @ v, there) <= 1e-11 * size


@given(shapes, noises)
def test_maps_are_the_dense_formulas(shape, noise: Noise):
    x, y = point(noise, *shape), point(noise, *shape)
    u = tangent(noise, x)
    u = u / (1 + MANIFOLD.norm(x, u))
    omega = form(shape[0]) @ least_generator(x, u)
    first, second = (
        torch.from_numpy(scipy.linalg.expm(a.numpy())) for a in (omega.T, omega - omega.T)
    )
    assert error(MANIFOLD.expmap(x, u), second @ first @ x) <= 1e-11
    identity = torch.eye(shape[0], dtype=torch.float64)
    cayley = torch.linalg.solve(identity - omega / 2, (identity + omega / 2) @ x)
    assert error(Symplectic("cayley").retr(x, u), cayley) <= 1e-11
    assert error(MANIFOLD.transp(x, y, u), omega @ y) <= 1e-11


@given(shapes, noises)
def test_transport_makes_nothing_longer(shape, noise: Noise):
    """And in the group it is an isometry."""
    x, y = point(noise, *shape), point(noise, *shape)
    u, v = tangent(noise, x), tangent(noise, x)
    u_y, v_y = MANIFOLD.transp(x, y, u), MANIFOLD.transp(x, y, v)
    size = float(1 + u.abs().max() + v.abs().max()) ** 2
    assert MANIFOLD.norm(y, u_y) <= MANIFOLD.norm(x, u) * (1 + 1e-12)
    if shape[0] == shape[1]:
        assert error(MANIFOLD.inner(y, u_y, v_y), MANIFOLD.inner(x, u, v)) <= 1e-10 * size


def test_the_exponential_of_a_tall_point_needs_no_large_matrix(monkeypatch):
    import givens.manifolds.symplectic as module

    sizes, plain = [], module.expm1

    def expm1(a, **options):
        sizes.append(a.shape[-1])
        return plain(a, **options)

    x = point(Noise(0), 200, 4)
    monkeypatch.setattr(module, "expm1", expm1)
    y = MANIFOLD.expmap(x, tangent(Noise(1), x) / 10)
    assert off(y) <= 1e-13
    assert max(sizes) == 8


def test_there_is_no_logarithm_and_no_distance():
    x = point(Noise(0), 4, 2)
    with pytest.raises(NotImplementedError, match="logarithm of symplectic matrices has no closed"):
        MANIFOLD.logmap(x, x)
    with pytest.raises(NotImplementedError, match="distance of symplectic matrices has no closed"):
        MANIFOLD.dist(x, x)


# Coordinates


@given(shapes, noises, st.floats(-2, 2))
def test_a_coordinate_acts_from_the_left(shape, noise: Noise, t):
    x = point(noise, *shape)
    rows = [(a, b) for a in range(shape[0]) for b in range(a + 1, shape[0])]
    rows += [(a, a) for a in range(shape[0])]
    for number, (s, (a, b)) in enumerate(zip(generators(shape[0]), rows, strict=True)):
        omega = form(shape[0]) @ s
        expected = torch.from_numpy(scipy.linalg.expm((t * omega).numpy())) @ x
        one = Coordinates(torch.tensor([number]), disjoint=True)
        y = MANIFOLD.move(x, one, torch.tensor([t], dtype=torch.float64))
        assert error(y, expected) <= 1e-13 * float(1 + expected.abs().max()) ** 2
        assert error(MANIFOLD.direction(x, one.index)[0], omega @ x) <= 1e-14
        assert int(MANIFOLD.number(x, a, b)) == number
        axes = sorted({a % (shape[0] // 2), b % (shape[0] // 2)})
        assert MANIFOLD.axes(x, one.index)[0].unique().tolist() == axes
        changed = (y != x).any(-1).sum()
        assert changed <= 2


@given(st.sampled_from([(4, 2), (6, 4), (6, 6)]), dtypes, noises)
def test_few_derivatives_are_those_of_many(shape, dtype, noise: Noise):
    x, g = point(noise, *shape, dtype=dtype), noise.normal(*shape, dtype=dtype)
    every = MANIFOLD.derivatives(x, g, All())
    index = noise.integers(every.shape[-1], 7)
    few = MANIFOLD.derivatives(x, g, Coordinates(index, disjoint=False))
    assert error(few, every[index]) <= 100 * eps(dtype) * float(1 + g.abs().max())


@given(st.integers(1, 6), noises)
def test_as_many_disjoint_coordinates_as_promised_in_any_order(n, noise: Noise):
    x = point(noise, 2 * n, 2)
    used, count = set(), 0
    for pair in MANIFOLD.axes(x, noise.permutations((), n * (2 * n + 1))).tolist():
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


# Rounding


@given(shapes, noises)
def test_a_restoration_squares_the_error(shape, noise: Noise):
    x = point(noise, *shape) + 1e-4 * noise.normal(*shape)
    before = off(x)
    assert off(MANIFOLD.restore_(x)) <= 20 * shape[0] * before**2 + 1e-14


def test_a_restoration_leaves_alone_what_is_lost():
    x = 1e6 * point(Noise(0), 4, 4, dtype=torch.float32)
    assert torch.equal(MANIFOLD.restore_(x.clone()), x)


@pytest.mark.parametrize("selection", [Uniform(), Block(size=2, disjoint=True), None], ids=repr)
def test_symplectic_after_many_steps_in_float32(selection):
    """Noise of the same size in the metric wherever it is, and a pull back."""
    noise = Noise(0)
    target = point(noise, 6, 4, dtype=torch.float32)
    p = ManifoldParameter(target.clone(), manifold=MANIFOLD)
    optimizer = SRGD([p], 0.02) if selection is None else SRCD([p], 0.1, selection)
    worst, longest = 0.0, 0.0
    for _ in range(400):
        r = torch.linalg.qr(p.detach().double()).R
        push = torch.linalg.solve_triangular(r.T, noise.normal(6, 4), upper=False, left=False)
        p.grad = push.float() + 0.1 * (p.detach() - target)
        optimizer.step()
        worst, longest = max(worst, off(p)), max(longest, float(p.detach().abs().max()))
    assert worst <= 5e-7
    assert longest > 1.1 * float(target.abs().max())


# Bad points


def test_the_check_names_what_is_wrong():
    good = point(Noise(0), 6, 4)
    cases = {
        "expects (..., 2n, 2k) with n >= k >= 1": good[:, :3],
        "works in float32 and float64": good.half(),
        "max |xᵀJx − J| is 3.0e+00": 2 * MANIFOLD.origin(6, 4),
        "max |xᵀJx − J| is nan": good * math.nan,
    }
    for words, x in cases.items():
        ok, reason = MANIFOLD.check_point_on_manifold(x, explain=True)
        assert not ok
        assert words in reason
    assert not MANIFOLD.check_point_on_manifold(good.mT)
    ok, reason = MANIFOLD.check_vector_on_tangent(good, good, explain=True)
    assert not ok
    assert "max |xᵀJu + uᵀJx| is 2.0e+00" in reason


def test_a_parameter_that_is_not_symplectic_is_refused():
    p = ManifoldParameter(2 * torch.eye(4), manifold=MANIFOLD)
    with pytest.raises(ValueError, match="is no point of Symplectic"):
        SRCD([p], 0.1)


def test_an_unknown_retraction_is_refused():
    with pytest.raises(ValueError, match="retraction 'qr' is unknown"):
        Symplectic("qr")


# Optimization


EIGENVALUES = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)


def positive_definite(noise):
    """The form xᵀ·diag(Λ, Λ)·x of Williamson, with these eigenvalues."""
    x = point(noise, 6, 6)
    return x.T @ torch.diag(EIGENVALUES.repeat(2)) @ x


def symplectic_eigenvalues(a):
    """Moduli of the eigenvalues ±iλ of Ja, ascending, each once."""
    values = scipy.linalg.eigvals((form(len(a)) @ a).numpy())
    return torch.from_numpy(abs(values)).sort().values[::2]


@pytest.mark.parametrize(
    ("selection", "lr", "steps"),
    [
        (GaussSouthwell(), 0.2, 300),
        (Uniform(), 0.2, 650),
        (Matching(), 0.2, 350),
        (Block(size=4), 0.1, 200),
    ],
    ids=["greedy", "uniform", "matching", "block"],
)
def test_the_least_trace_is_that_of_symplectic_eigenvalues(selection, lr, steps):
    """Twice the sum of the k least (Son, Absil, Gao and Stykel, 2021)."""
    a = positive_definite(Noise(0))
    assert error(symplectic_eigenvalues(a), EIGENVALUES) <= 1e-12
    p = ManifoldParameter(point(Noise(1), 6, 2), manifold=MANIFOLD)
    optimizer = SRCD([p], lr, selection)
    for _ in range(steps):
        optimizer.zero_grad()
        (p * (a @ p)).sum().backward()
        optimizer.step()
    x = p.detach()
    assert error(symplectic_eigenvalues(x.T @ a @ x), EIGENVALUES[:1]) <= 1e-5
    assert error((x * (a @ x)).sum(), 2 * EIGENVALUES[0]) <= 1e-5


def test_the_normal_form_of_williamson():
    """At the least trace in the group, xᵀax is diag(Λ, Λ) in a basis that is orthonormal."""
    a = positive_definite(Noise(0))
    p = ManifoldParameter(MANIFOLD.origin(6, 6, dtype=torch.float64))
    optimizer = SRCD([p], 0.03, GaussSouthwell())
    for _ in range(800):
        optimizer.zero_grad()
        (p * (a @ p)).sum().backward()
        optimizer.step()
    x = p.detach().as_subclass(Tensor)
    known = EIGENVALUES.repeat_interleave(2)
    assert error(torch.linalg.eigvalsh(x.T @ a @ x), known) <= 1e-5


@pytest.mark.parametrize("a", [1.5, 3.0])
def test_the_symplectic_matrix_nearest_to_a_multiple_of_the_identity(a):
    """Of 2×2: the identity up to 2, and then all that are positive definite with the trace a."""
    p = ManifoldParameter(point(Noise(0), 2, 2), manifold=MANIFOLD)
    optimizer = SRCD([p], 0.05, GaussSouthwell())
    for _ in range(500):
        optimizer.zero_grad()
        cost = (p - a * torch.eye(2)).square().sum()
        cost.backward()
        optimizer.step()
    known = a**2 - 2 if a > 2 else 2 * (1 - a) ** 2
    assert abs(float(cost.detach()) - known) <= 1e-8
