"""Laws of the line searches: what they promise of the objective, and what they leave untouched."""

import copy
import io
import math
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import needs_gloo, run
from rules import METHODS, SCALINGS, build
from scipy.optimize import minimize_scalar
from strategies import Noise, defect, noises

from givens.manifolds import (
    Coordinates,
    Euclidean,
    Grassmann,
    Lorentz,
    Oblique,
    OrthogonalGroup,
    Power,
    Scaled,
    SpecialOrthogonalGroup,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
    UnitaryGroup,
)
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    Armijo,
    Cyclic,
    GaussSouthwell,
    Matching,
    RMSProp,
    Trigonometric,
    Uniform,
)
from givens.optim.trigonometric import minimize

GROUP = OrthogonalGroup()
BUILDS = {
    **{method: partial(build, method=method) for method in METHODS},
    **{
        f"uniform, {scaling}": partial(build, method="uniform", scaling=scaling)
        for scaling in SCALINGS
        if scaling != "none"
    },
    "srgd, momentum": partial(SRGD, momentum=0.8),
    "srgd, nesterov": partial(SRGD, momentum=0.8, nesterov=True),
    "srgd, retraction": partial(SRGD, map="retr"),
    "srgd, adam": partial(SRGD, scaling=Adam()),
}
every_build = pytest.mark.parametrize("make", BUILDS.values(), ids=BUILDS)

# On each of them a coordinate is a rotation, or none is.
ROUND = {
    "O": (OrthogonalGroup(), (5, 5)),
    "SO": (SpecialOrthogonalGroup(), (4, 4)),
    "Stiefel": (Stiefel(), (5, 3)),
    "Stiefel canonical": (Stiefel("canonical"), (5, 3)),
    "Grassmann": (Grassmann(), (5, 2)),
    "Sphere": (Sphere(), (5,)),
    "Oblique": (Oblique(), (4, 3)),
    "Scaled": (Scaled(Sphere(), 3.0), (5,)),
    "Power": (Power(Sphere()), (3, 4)),
}
STRAIGHT = {
    "Euclidean": (Euclidean(), (5,)),
    "Lorentz": (Lorentz(), (4,)),
    "SPD": (SymmetricPositiveDefinite(), (3, 3)),
    "U": (UnitaryGroup(), (3, 3)),
}


def parameter(manifold, *shape, seed=0):
    torch.manual_seed(seed)
    dtype = torch.complex128 if isinstance(manifold, UnitaryGroup) else torch.float64
    return ManifoldParameter(manifold.random(*shape, dtype=dtype), manifold=manifold)


@cache
def weights_of(seed, n):
    return Noise(seed).normal(4, n)


def wave(x, seed=1):
    """A smooth function of a point, which depends on the span alone where that is the point."""
    flat = x.as_subclass(torch.Tensor)
    if isinstance(getattr(x, "manifold", None), Grassmann):
        flat = flat @ flat.mT
    flat = torch.view_as_real(flat) if flat.is_complex() else flat
    flat = flat.flatten()
    weights = weights_of(seed, len(flat)).to(flat)
    return (weights @ flat).sin().sum() + (weights[0] * flat).square().sum()


def closure_of(optimizer, objective):
    """What a user writes."""

    def closure():
        optimizer.zero_grad()
        loss = objective()
        if torch.is_grad_enabled():
            loss.backward()
        return loss

    return closure


def values(optimizer):
    return [
        p.detach().as_subclass(torch.Tensor).clone()
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Slopes:
    """A search that compares the slope with differences, and takes a third of the step."""

    def __init__(self):
        self.pairs = []

    def search(self, line):
        h = 1e-5
        around = [line.along(s, no_grad=True).value for s in (h, -h, 2 * h, -2 * h)]
        central = (8 * (around[0] - around[1]) - (around[2] - around[3])) / (12 * h)
        self.pairs.append((line.slope, central))
        return line.along(0.3)


# The line


@every_build
@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_the_slope_is_that_of_the_objective(make, maximize):
    """In all parameters together, a batch and an unconstrained one among them."""
    shapes = [(GROUP, (5, 5)), (GROUP, (2, 4, 4)), (Stiefel(), (4, 4)), (Sphere(), (6,))]
    params = [parameter(*shape[:1], *shape[1], seed=i) for i, shape in enumerate(shapes)]
    params.append(torch.nn.Parameter(Noise(3).normal(5)))
    search = Slopes()
    optimizer = make(params, 0.1, maximize=maximize, line_search=search)
    closure = closure_of(optimizer, lambda: sum(wave(p, i) for i, p in enumerate(params)))
    for _ in range(3):
        optimizer.step(closure)
    for slope, differences in search.pairs:
        assert slope == pytest.approx(differences, rel=1e-6, abs=1e-8)
        assert slope != 0


@pytest.mark.parametrize("name", [*ROUND, *STRAIGHT])
@pytest.mark.parametrize("method", ["srgd", "uniform"])
def test_the_slope_is_right_on_every_manifold(name, method):
    manifold, shape = (ROUND | STRAIGHT)[name]
    p = parameter(manifold, *shape)
    search = Slopes()
    optimizer = build([p], 0.1, method, line_search=search)
    for _ in range(5):
        optimizer.step(closure_of(optimizer, lambda: wave(p)))
    for slope, differences in search.pairs:
        assert slope == pytest.approx(differences, rel=1e-5, abs=1e-8)


@given(noises, st.sampled_from([torch.float32, torch.float64]))
def test_a_trial_leaves_every_point_as_it_was(noise, dtype):
    params = [
        ManifoldParameter(noise.point(2, 5, 5, dtype=dtype), manifold=GROUP),
        torch.nn.Parameter(noise.normal(3, dtype=dtype)),
    ]
    start, seen = [p.detach().clone() for p in params], []

    class Wanders:
        def search(self, line):
            for factor in (1.0, 0.3, -7.0, torch.finfo(dtype).max, math.nan):
                seen.append(line.along(factor).value)
                assert same([p.detach() for p in params], start)
            return

        def __repr__(self):
            return "Wanders()"

    optimizer = SRCD(params, 0.1, Matching(), line_search=Wanders())
    called = []

    def objective():
        called.append(all(bool(p.isfinite().all()) for p in params))
        return sum(wave(p) for p in params)

    optimizer.step(closure_of(optimizer, objective))
    assert same([p.detach() for p in params], start)
    assert called == [True] * 4  # and not where a step overflows
    assert len(set(seen[:3])) == 3
    assert seen[3:] == [math.inf, math.inf]


def test_gradients_after_a_step_are_those_of_its_beginning():
    p = parameter(GROUP, 5, 5)
    p.grad = torch.ones_like(p)  # which set_to_none=False keeps and clears
    optimizer = SRCD([p], 10.0, Matching(), line_search=Armijo())
    first = torch.autograd.grad(wave(p), p)[0]
    before = p.detach().clone()

    def closure():
        optimizer.zero_grad(set_to_none=False)
        loss = wave(p)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(p.grad, first)
    assert not torch.equal(p, before)


# Armijo


@every_build
def test_armijo_never_ascends(make):
    """And descends from almost everywhere, except that momentum may look the wrong way."""
    params = [
        parameter(GROUP, 6, 6),
        parameter(GROUP, 2, 4, 4),
        torch.nn.Parameter(Noise(2).normal(4)),
    ]
    optimizer = make(params, 3.0, line_search=Armijo())
    closure = closure_of(optimizer, lambda: sum(wave(p, i) for i, p in enumerate(params)))
    losses = [optimizer.step(closure).item() for _ in range(15)]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < losses[0] - 0.3
    assert defect(params[0]) < 1e-12


@pytest.mark.parametrize("name", [*ROUND, *STRAIGHT])
@pytest.mark.parametrize("selection", [Uniform(), Matching()], ids=str)
def test_armijo_descends_on_every_manifold(name, selection):
    manifold, shape = (ROUND | STRAIGHT)[name]
    p = parameter(manifold, *shape)
    optimizer = SRCD([p], 5.0, selection, line_search=Armijo())
    closure = closure_of(optimizer, lambda: wave(p))
    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < losses[0] - 0.1
    assert manifold.check_point_on_manifold(p.detach())


@given(noises, st.floats(0.05, 50.0), st.floats(1e-4, 0.9), st.floats(0.2, 0.8))
def test_a_step_is_the_first_that_fulfils_the_condition(noise, lr, decrease, shrink):
    """Checked without the line: by a plain step of the stepsize, and the norm of the gradient."""
    p = ManifoldParameter(noise.point(5, 5), manifold=GROUP)
    optimizer = SRGD([p], lr, line_search=Armijo(decrease, shrink, growth=math.inf))
    for _ in range(3):
        before = p.detach().clone()
        f = optimizer.step(closure_of(optimizer, lambda: wave(p))).item()
        grad = GROUP.egrad2rgrad(before, p.grad)
        if same([p.detach()], [before]):
            continue  # where the condition is met by nothing that is not lost in rounding
        factor = optimizer.param_groups[0]["factor"]

        def condition(s, before=before, grad=grad, f=f):
            x = GROUP.expmap(before, -s * lr * grad)
            limit = f - decrease * s * lr * float(grad.square().sum())
            return wave(x).item() - limit, x

        excess, reached = condition(factor)
        assert excess <= 1e-12
        assert torch.allclose(p.detach(), reached, atol=1e-12)
        s = 1.0
        while s > factor * (1 + 1e-9):
            assert condition(s)[0] > -1e-12
            s *= shrink
        assert s == pytest.approx(factor)


def test_the_next_step_begins_where_the_last_one_ended():
    p = parameter(GROUP, 5, 5)
    tried = []

    @dataclass(frozen=True)
    class Counted(Armijo):
        def search(self, line):
            along = line.along
            line.along = lambda s, **o: (tried[-1].append(s), along(s, **o))[1]
            tried.append([])
            return super().search(line)

    optimizer = SRCD([p], 64.0, Matching(), line_search=Counted(growth=3.0))
    closure = closure_of(optimizer, lambda: wave(p))
    for _ in range(10):
        optimizer.step(closure)
    assert tried[0][0] == 1.0
    for last, now in pairwise(tried):
        assert now[0] == min(1.0, 3.0 * last[-1])
        assert all(b == a / 2 for a, b in pairwise(now))


def test_where_the_objective_ends_the_step_is_shorter():
    """A logarithm that is NaN beyond, and a step that overflows, count as too long."""
    p = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = SRGD([p], 1e3, line_search=Armijo(decrease=0.25))
    closure = closure_of(optimizer, lambda: p.sum() - 2 * p.log().sum())
    for _ in range(30):
        optimizer.step(closure)
    assert p.item() == pytest.approx(2.0, abs=1e-3)
    q = parameter(GROUP, 4, 4)
    optimizer = SRCD([q], 1e200, Uniform(), line_search=Armijo(shrink=1e-20))
    losses = [optimizer.step(closure_of(optimizer, lambda: wave(q))).item() for _ in range(9)]
    assert losses[-1] < losses[0]


def test_a_step_that_ascends_stays_and_remembers():
    """Momentum follows the past."""
    p = parameter(GROUP, 4, 4)
    optimizer = SRGD([p], 0.05, momentum=0.9, line_search=Armijo())
    closure = closure_of(optimizer, lambda: wave(p))
    optimizer.step(closure)
    before, buffer = p.detach().clone(), -5 * optimizer.state[p]["momentum_buffer"]
    optimizer.state[p]["momentum_buffer"] = buffer.clone()
    optimizer.step(closure)
    assert torch.equal(p, before)
    grad = GROUP.egrad2rgrad(before, p.grad)
    kept = optimizer.state[p]["momentum_buffer"]
    torch.testing.assert_close(kept, 0.9 * buffer + grad, rtol=0, atol=1e-12)
    for _ in range(60):
        optimizer.step(closure)
    assert wave(p).item() < wave(before).item() - 0.1


def test_a_scaling_counts_a_step_that_stays():
    p = parameter(GROUP, 4, 4)
    optimizer = SRCD([p], 0.0, Cyclic(), Adam(), line_search=Armijo())
    before = p.detach().clone()
    for _ in range(4):
        optimizer.step(closure_of(optimizer, lambda: wave(p)))
    assert torch.equal(p, before)
    state = optimizer.state[p]
    assert state["visits"].tolist() == [1, 1, 1, 1, 0, 0]
    assert state["step"] == 4
    assert "moved" not in state  # there is no rounding to take away


@pytest.mark.parametrize("search", [Armijo(), Trigonometric(4)], ids=str)
def test_no_grad_saves_backward_passes_and_changes_nothing_else(search):
    ends, passes = [], []
    for no_grad in (False, True):
        p = parameter(GROUP, 5, 5)
        optimizer = SRCD([p], 9.0, Cyclic(), line_search=replace(search, no_grad=no_grad))
        calls = []

        def closure(p=p, optimizer=optimizer, calls=calls):
            optimizer.zero_grad()
            loss = off_diagonal(p)
            if torch.is_grad_enabled():
                loss.backward()
                calls.append(1)
            return loss

        for _ in range(6):
            optimizer.step(closure)
        ends.append(p.detach().clone())
        passes.append(len(calls))
    assert torch.equal(*ends)
    assert passes[1] == 6 < passes[0]


# Trigonometric polynomials


def polynomial(a, b):
    k = np.arange(1, len(a) + 1)
    return lambda phi: np.cos(np.multiply.outer(phi, k)) @ a + np.sin(np.multiply.outer(phi, k)) @ b


@given(noises, st.integers(1, 8), st.floats(-6, 6), st.integers(0, 7))
def test_a_trigonometric_polynomial_is_minimized(noise, m, magnitude, zeros):
    a, b = noise.normal(2, m).numpy() * 10**magnitude
    a[m - min(zeros, m - 1) :] = 0  # a degree that is given too high
    b[m - min(zeros, m - 1) :] = 0
    f = polynomial(a, b)
    slope = float((np.arange(1, m + 1) * b).sum())
    angle, gain = minimize([float(f(k * math.pi / m)) for k in range(2 * m)], slope)
    grid = np.linspace(-math.pi, math.pi, 4001)
    around = grid[f(grid).argmin()]
    best = minimize_scalar(f, bounds=(around - 1e-2, around + 1e-2), options={"xatol": 1e-12})
    scale = 10**magnitude
    assert f(angle) <= best.fun + 1e-9 * scale
    assert gain == pytest.approx(f(angle) - f(0.0), abs=1e-9 * scale)
    assert abs(angle) <= math.pi


@given(st.integers(1, 6), st.integers(1, 3), st.floats(-1.5, 1.5))
def test_of_equal_minima_the_nearest_is_taken(period, spare, shift):
    """Of cos(n(φ − s)), whose minima are all alike."""
    m = period + spare
    f = lambda phi: math.cos(period * (phi - shift))  # noqa: E731
    slope = period * math.sin(period * shift)
    angle, _ = minimize([f(k * math.pi / m) for k in range(2 * m)], slope, noise=1e-12)
    assert f(angle) == pytest.approx(-1.0)
    assert abs(angle) <= math.pi / period + 1e-6


def test_a_constant_has_no_better_angle():
    assert minimize([3.0] * 4, 0.0) == (0.0, 0.0)
    angle, gain = minimize([1.0, -1.0], 0.0)  # cos φ
    assert abs(angle) == pytest.approx(math.pi)
    assert gain == pytest.approx(-2.0)
    assert minimize([-1.0, 1.0], 0.0)[1] == pytest.approx(0.0)  # −cos φ: is there already


def test_near_a_minimum_the_angle_has_the_precision_of_the_slope():
    """1 − cos(φ − ε): ε is far below what the values show, and gets through by the slope."""
    epsilon = 1e-13
    angle, _ = minimize(
        [1 - math.cos(epsilon), 1 - math.cos(math.pi - epsilon)], -math.sin(epsilon)
    )
    assert angle == pytest.approx(epsilon, rel=1e-6)


# Trigonometric


def spectrum(n, seed=5):
    """A symmetric matrix, and a diagonal one whose entries differ."""
    a = Noise(seed).normal(n, n)
    return a + a.mT, torch.arange(1.0, n + 1, dtype=torch.float64)


def brockett(w):
    a, n = spectrum(w.shape[-1])
    return ((w.mT @ a @ w).diagonal() * n).sum()


def procrustes(w):
    return -(w * Noise(7).normal(*w.shape)).sum()


def off_diagonal(w):
    a, _ = spectrum(w.shape[-1])
    m = w.mT @ a @ w
    return (m - m.diagonal().diag()).square().sum()


POLYNOMIALS = {procrustes: 1, brockett: 2, off_diagonal: 4}


@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
@pytest.mark.parametrize("objective", POLYNOMIALS, ids=lambda f: f.__name__)
@settings(max_examples=10)
@given(noise=noises, spare=st.integers(0, 2))
def test_the_step_is_the_minimum_over_all_angles(objective, maximize, noise, spare):
    w = ManifoldParameter(noise.point(5, 5), manifold=GROUP)
    search = Trigonometric(POLYNOMIALS[objective] + spare)
    optimizer = SRCD([w], 0.0, Uniform(), seed=noise.seed, maximize=maximize, line_search=search)
    before, sign = w.detach().clone(), -1.0 if maximize else 1.0
    optimizer.step(closure_of(optimizer, lambda: objective(w)))
    moved = (w.detach() - before).abs().amax(0) > 1e-12
    assert int(moved.sum()) in (0, 2)
    index = Uniform().select(view_of(before, w.grad, noise.seed)).index

    def f(angle):
        t = torch.tensor([angle / GROUP.radians], dtype=torch.float64)
        return sign * float(objective(GROUP.move(before, Coordinates(index, True), t)))

    grid = np.linspace(-math.pi, math.pi, 60)
    around = min(grid, key=f)
    best = minimize_scalar(f, bounds=(around - 0.11, around + 0.11), options={"xatol": 1e-9})
    assert sign * objective(w).item() <= best.fun + 1e-10 * (1 + abs(best.fun))
    assert defect(w) < 1e-13


def view_of(x, egrad, seed):
    from givens.optim import GradientView

    return GradientView(GROUP, x, egrad, seed=seed)


@pytest.mark.parametrize("name", ROUND)
def test_it_minimizes_on_every_manifold_of_rotations(name):
    """Quadratic in the entries, or in those of the projection on a subspace."""
    manifold, shape = ROUND[name]
    p = parameter(manifold, *shape)
    degree = 4 if isinstance(manifold, Grassmann) else 2

    def quadratic(x):
        y = x.as_subclass(torch.Tensor)
        y = (y @ y.mT if degree == 4 else y).flatten()
        return (weights_of(2, len(y)) @ y).square() @ weights_of(4, 4)[0] + weights_of(3, len(y))[
            0
        ] @ y

    class Compared:
        def search(self, line):
            trial = Trigonometric(degree).search(line)
            others = [line.turned(a, no_grad=True).value for a in torch.linspace(-3, 3, 12)]
            taken = line.value if trial is None else trial.value
            assert taken <= min([line.value, *others]) + 1e-10
            return trial

    optimizer = SRCD([p], 0.1, Uniform(), line_search=Compared())
    losses = [optimizer.step(closure_of(optimizer, lambda: quadratic(p))).item() for _ in range(25)]
    assert losses[-1] < losses[0]
    assert manifold.check_point_on_manifold(p.detach())


def jacobi(a, w, j, l):
    """Rutishauser's rotation of the eigenvalue algorithm, in numpy."""
    if abs(a[j, l]) == 0:
        return a, w
    theta = (a[l, l] - a[j, j]) / (2 * a[j, l])
    tangent = math.copysign(1.0, theta) / (abs(theta) + math.hypot(1.0, theta))
    c = 1 / math.hypot(1.0, tangent)
    turn = np.eye(len(a))
    turn[j, j] = turn[l, l] = c
    turn[j, l], turn[l, j] = tangent * c, -tangent * c
    return turn.T @ a @ turn, w @ turn


@pytest.mark.parametrize("seed", range(3))
def test_cyclic_minimization_of_squares_off_the_diagonal_is_jacobi_s_algorithm(seed):
    """Rotation by rotation, up to where rounding is left; quadratic in sweeps; ends in eigenvalues."""
    n = 6
    a, _ = spectrum(n, seed)
    w = ManifoldParameter(torch.eye(n, dtype=torch.float64), manifold=GROUP)

    def objective():
        m = w.mT @ a @ w
        return (m - m.diagonal().diag()).square().sum()

    optimizer = SRCD([w], 1.0, Cyclic(), line_search=Trigonometric(4))
    own, turned, off = a.numpy(), np.eye(n), []
    for _ in range(7):
        off.append(math.sqrt(objective().item()))
        for j in range(n):
            for l in range(j + 1, n):
                optimizer.step(closure_of(optimizer, objective))
                own, turned = jacobi(own, turned, j, l)
                if off[-1] > 1e-4:
                    np.testing.assert_allclose(w.detach().numpy(), turned, atol=1e-6)
    gap = torch.linalg.eigvalsh(a).diff().min()
    late = [k for k in range(6) if off[k] < gap / 2]
    assert late, "no sweep ended close enough"
    for k in late:
        assert off[k + 1] <= max(2 * off[k] ** 2 / gap, 1e-9)
    found = (w.mT @ a @ w).diagonal().detach().sort().values
    torch.testing.assert_close(found, torch.linalg.eigvalsh(a), rtol=0, atol=1e-12)
    assert off[-1] < 1e-7


def test_brockett_ends_in_sorted_eigenvalues():
    n = 5
    w = ManifoldParameter(Noise(9).point(n, n), manifold=GROUP)
    optimizer = SRCD([w], 1.0, Cyclic(), line_search=Trigonometric(2))
    for _ in range(12 * n * (n - 1) // 2):
        optimizer.step(closure_of(optimizer, lambda: brockett(w)))
    a, _ = spectrum(n)
    found = (w.mT @ a @ w).diagonal().detach()
    torch.testing.assert_close(found, torch.linalg.eigvalsh(a).flip(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("selection", [Uniform(), Cyclic(), GaussSouthwell()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_never_ascends(selection, dtype):
    w = ManifoldParameter(Noise(4).point(1, 6, 6, dtype=dtype), manifold=GROUP)
    optimizer = SRCD([w], 0.1, selection, line_search=Trigonometric(4))
    closure = closure_of(optimizer, lambda: off_diagonal(w[0].to(torch.float64)))
    losses = [optimizer.step(closure).item() for _ in range(60)]
    slack = 16 * torch.finfo(dtype).eps * losses[0]
    assert all(b <= a + slack for a, b in pairwise(losses))
    assert losses[-1] < 0.2 * losses[0]


# Refused, and nothing changed


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (lambda: Armijo(decrease=0.0), r"decrease must be in \(0, 1\)"),
        (lambda: Armijo(decrease=1.0), r"decrease must be in \(0, 1\)"),
        (lambda: Armijo(shrink=1.0), r"shrink must be in \(0, 1\)"),
        (lambda: Armijo(shrink=math.nan), r"shrink must be in \(0, 1\)"),
        (lambda: Armijo(growth=0.5), "growth must be 1 or more"),
        (lambda: Armijo(growth=math.nan), "growth must be 1 or more"),
        (lambda: Armijo(trials=0), "trials must be a whole number, at least 1"),
        (lambda: Armijo(trials=2.5), "trials must be a whole number, at least 1"),
        (lambda: Trigonometric(0), "degree must be a whole number, at least 1"),
        (lambda: Trigonometric(1.5), "degree must be a whole number, at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(search, said):
    with pytest.raises(ValueError, match=said):
        search()


@pytest.mark.parametrize("search", [Armijo, 3, "armijo", Adam()], ids=str)
def test_what_is_no_search_is_refused(search):
    with pytest.raises(TypeError, match=r"expected an object with a method search\(line\)"):
        SRCD([parameter(GROUP, 3, 3)], 0.1, line_search=search)


def test_all_groups_share_one_search_and_one_direction():
    p, q = parameter(GROUP, 3, 3), parameter(GROUP, 3, 3, seed=1)
    groups = [{"params": [p]}, {"params": [q], "line_search": Armijo(trials=3)}]
    with pytest.raises(ValueError, match="all parameters share one search"):
        SRCD(groups, 0.1, line_search=Armijo())
    optimizer = SRCD(
        [{"params": [p]}, {"params": [q], "maximize": True}], 0.1, line_search=Armijo()
    )
    with pytest.raises(ValueError, match="needs one objective"):
        optimizer.step(closure_of(optimizer, lambda: wave(p) + wave(q)))
    with pytest.raises(ValueError, match="weight_decay is no part"):
        SRGD([p], 0.1, weight_decay=0.1, line_search=Armijo())


class Twice:
    """Selects two coordinates."""

    def select(self, view):
        return Coordinates(torch.tensor([0, 1]).expand(*view.batch, 2), disjoint=False)


class Broadcast:
    """Selects the same coordinate in every point of a batch."""

    def select(self, view):
        return Coordinates(torch.tensor([0]), disjoint=True)


def unchanged_by(optimizer, closure, error, said):
    before, state = values(optimizer), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error, match=said):
        optimizer.step(closure)
    assert same(values(optimizer), before)
    now = optimizer.state_dict()
    assert now["param_groups"] == state["param_groups"]
    assert str(now["state"]) == str(state["state"])


@pytest.mark.parametrize(
    ("points", "options", "objective"),
    {
        "two coordinates": ([(GROUP, (4, 4))], {"selection": Twice()}, brockett),
        "a matching": ([(GROUP, (4, 4))], {"selection": Matching()}, brockett),
        "a batch": ([(GROUP, (2, 4, 4))], {}, lambda w: brockett(w[0])),
        "a batch, one number": (
            [(GROUP, (2, 4, 4))],
            {"selection": Broadcast()},
            lambda w: brockett(w[0]),
        ),
        "a scaling": ([(GROUP, (4, 4))], {"scaling": RMSProp()}, brockett),
        "no turns": ([(Euclidean(), (4,))], {}, lambda x: x.square().sum()),
        "boosts": ([(Lorentz(), (4,))], {}, lambda x: x.square().sum()),
        "phases": ([(UnitaryGroup(), (3, 3))], {}, lambda x: x.real.sum()),
        "congruences": ([(SymmetricPositiveDefinite(), (3, 3))], {}, lambda x: x.sum()),
        "two parameters": ([(GROUP, (4, 4)), (GROUP, (4, 4))], {}, brockett),
    }.values(),
)
def test_a_step_that_is_not_one_rotation_is_refused(points, options, objective):
    params = [parameter(m, *shape, seed=i) for i, (m, shape) in enumerate(points)]
    optimizer = SRCD(params, 0.1, line_search=Trigonometric(), **options)
    closure = closure_of(optimizer, lambda: sum(objective(p) for p in params))
    unchanged_by(optimizer, closure, ValueError, "by angles turns one coordinate")
    p = parameter(GROUP, 4, 4)
    optimizer = SRGD([p], 0.1, line_search=Trigonometric())
    closure = closure_of(optimizer, lambda: brockett(p))
    unchanged_by(optimizer, closure, ValueError, "by angles turns one coordinate")


def test_a_frozen_parameter_does_not_stand_in_the_way():
    p, q = parameter(GROUP, 4, 4), parameter(GROUP, 4, 4, seed=1)
    optimizer = SRCD([p, q.requires_grad_(False)], 0.1, Cyclic(), line_search=Trigonometric())
    first = optimizer.step(closure_of(optimizer, lambda: brockett(p))).item()
    assert brockett(p).item() < first


def test_an_objective_of_another_degree_is_found_out():
    p = parameter(GROUP, 5, 5)
    optimizer = SRCD([p], 0.1, Uniform(), line_search=Trigonometric(2))
    said = "the trigonometric polynomial of degree 2 through its other values"
    unchanged_by(optimizer, closure_of(optimizer, lambda: off_diagonal(p)), ValueError, said)
    noise = Noise(3)
    noisy = closure_of(optimizer, lambda: brockett(p) + noise.normal())
    unchanged_by(optimizer, noisy, ValueError, "let the closure be deterministic")


@pytest.mark.parametrize("search", [Armijo(), Trigonometric()], ids=str)
def test_a_closure_that_is_no_objective_is_refused(search):
    p = parameter(GROUP, 4, 4)
    optimizer = SRCD([p], 0.1, line_search=search)
    brockett(p).backward()
    unchanged_by(optimizer, None, TypeError, r"call step\(closure\)")
    for result in (None, torch.ones(2), "0.5", torch.tensor(1 + 2j), 1j, torch.ones(0)):

        def closure(result=result):
            optimizer.zero_grad()
            brockett(p).backward()
            return result

        unchanged_by(optimizer, closure, TypeError, "needs the loss, one real number")
    for bad in (math.nan, math.inf, -math.inf):

        def closure(bad=bad):
            optimizer.zero_grad()
            brockett(p).backward()
            return torch.tensor(bad)

        unchanged_by(optimizer, closure, FloatingPointError, f"the closure returns {bad}")


@pytest.mark.parametrize(
    "loss",
    [float, np.float64, lambda x: x.reshape(1), lambda x: x.float()],
    ids=["float", "numpy", "vector", "float32"],
)
def test_any_real_number_is_a_loss(loss):
    p = parameter(GROUP, 4, 4)
    optimizer = SRCD([p], 0.1, Cyclic(), line_search=Armijo())

    def closure():
        optimizer.zero_grad()
        value = brockett(p)
        value.backward()
        return loss(value.detach())

    start = brockett(p).item()
    for _ in range(3):
        optimizer.step(closure)
    assert brockett(p).item() < start


@pytest.mark.parametrize("search", [Armijo(0.99), Trigonometric(4)], ids=str)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_closure_that_raises_changes_nothing(search, call):
    p = parameter(GROUP, 4, 4)
    optimizer = SRCD([p], 50.0, Cyclic(), line_search=search)
    calls = []
    whole = closure_of(optimizer, lambda: off_diagonal(p))

    def closure():
        calls.append(1)
        if len(calls) == call:
            raise KeyError("the data ends")
        return whole()

    unchanged_by(optimizer, closure, KeyError, "the data ends")
    assert len(calls) == call
    optimizer.step(whole)  # which does not take the point for one that was written to


def test_trials_that_are_not_finite_stop_the_search_by_angles():
    p = parameter(GROUP, 4, 4)
    start = p.detach().clone()
    optimizer = SRCD([p], 0.1, Cyclic(), line_search=Trigonometric())
    closure = closure_of(
        optimizer, lambda: brockett(p) / (1.0 if torch.equal(p.detach(), start) else 0.0)
    )
    unchanged_by(optimizer, closure, FloatingPointError, "NaN or infinite at an angle")


def test_a_gradient_that_is_not_finite_stops_the_step():
    p = parameter(GROUP, 4, 4)
    optimizer = SRCD([p], 0.1, Matching(), Adam(), line_search=Armijo())
    for _ in range(2):
        optimizer.step(closure_of(optimizer, lambda: brockett(p)))

    def closure():
        optimizer.zero_grad()
        loss = brockett(p)
        loss.backward()
        p.grad[0, 0] = math.nan
        return loss

    unchanged_by(optimizer, closure, FloatingPointError, "NaN or infinite")


# Resuming


RESUMED = {
    "armijo": lambda p: SRCD(p, 20.0, Uniform(), seed=3, line_search=Armijo()),
    "armijo, adam": lambda p: SRCD(p, 3.0, Matching(), Adam(), line_search=Armijo()),
    "armijo, srgd": lambda p: SRGD(p, 20.0, momentum=0.5, line_search=Armijo()),
    "angles": lambda p: SRCD(p, 1.0, Uniform(), line_search=Trigonometric(4)),
}


@pytest.mark.parametrize("make", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_goes_on_to_the_bit(make):
    whole, first, second = (parameter(GROUP, 5, 5) for _ in range(3))

    def train(p, optimizer, steps):
        for _ in range(steps):
            optimizer.step(closure_of(optimizer, lambda: off_diagonal(p)))

    train(whole, make([whole]), 12)
    optimizer = make([first])
    train(first, optimizer, 7)
    file = io.BytesIO()
    torch.save([first.detach().as_subclass(torch.Tensor), optimizer.state_dict()], file)
    file.seek(0)
    x, state = torch.load(file)
    resumed = make([second])
    with torch.no_grad():
        second.copy_(x)
    resumed.load_state_dict(state)
    train(second, resumed, 5)
    assert torch.equal(second, whole)


def test_a_state_of_another_search_is_refused():
    p = parameter(GROUP, 4, 4)
    state = SRCD([p], 0.1, line_search=Armijo()).state_dict()
    with pytest.raises(ValueError, match="saved with line_search=Armijo"):
        SRCD([p], 0.1, line_search=Trigonometric()).load_state_dict(state)
    with pytest.raises(ValueError, match="saved with line_search=Armijo"):
        SRCD([p], 0.1).load_state_dict(state)


# Many processes


def shares():
    """Targets whose distances from the start differ by far: alone, processes would decide differently."""
    noise = Noise(1)
    return [10.0**i * noise.point(5, 5) for i in range(2)]


def steps_of(rank, processes, search):
    """Losses, factors and ends, of one process with all targets or of many with one each."""
    import torch.distributed as dist

    params = [parameter(GROUP, 5, 5)]
    if search == Armijo():  # beside what DDP averages
        params.append(torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)))
    group = dist.group.WORLD if processes else None
    optimizer = SRCD(params, 30.0, Cyclic(), line_search=search, process_group=group)
    targets = [shares()[rank]] if processes else shares()

    def closure():
        optimizer.zero_grad()
        loss = sum(
            (p - (t if p.dim() == 2 else t[0, :3])).square().sum() for p in params for t in targets
        ) / len(targets)
        loss.backward()
        if processes:
            for p in params[1:]:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        return loss

    losses, factors = [], []
    for _ in range(8):
        losses.append(optimizer.step(closure).item())
        factors.append(optimizer.param_groups[0].get("factor"))
    return losses, factors, values(optimizer)


def bad_loss_in_one(rank):
    import torch.distributed as dist

    p = parameter(GROUP, 4, 4)
    optimizer = SRCD([p], 0.1, line_search=Armijo(), process_group=dist.group.WORLD)

    def closure():
        optimizer.zero_grad()
        loss = brockett(p)
        loss.backward()
        return loss if rank else torch.tensor(math.nan)

    unchanged_by(optimizer, closure, FloatingPointError, "the closure returns nan")


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    points = torch.eye(3).repeat(4, 1, 1)
    p = torch.nn.Parameter(distribute_tensor(points, init_device_mesh("cpu", (2,)), [Shard(0)]))
    p.manifold = GROUP
    with pytest.raises(TypeError, match="no process has the whole step"):
        SRCD([p], 0.1, line_search=Armijo())


SHARED = [Armijo(), Trigonometric(2)]


def in_processes(rank):
    bad_loss_in_one(rank)
    sharded()
    return [steps_of(rank, True, search) for search in SHARED]


@needs_gloo
def test_the_mean_over_the_processes_decides():
    """For all alike, as one process decides that has all the data; a NaN in one stops all."""
    for first, second, search in zip(*run(in_processes, 2), SHARED, strict=True):
        losses, factors, ends = steps_of(0, False, search)
        assert same(first[2], second[2])
        assert first[1] == second[1] == factors
        for actual, whole in zip(first[2], ends, strict=True):
            torch.testing.assert_close(actual, whole, rtol=0, atol=1e-11)
        means = [(a + b) / 2 for a, b in zip(first[0], second[0], strict=True)]
        assert means == pytest.approx(losses, rel=1e-11)
        assert losses[-1] < losses[0]
