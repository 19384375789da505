"""Diagnostics: what is right passes for random problems, every kind of mistake fails and is named."""

import math
import sys

import geoopt
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Noise, dtypes, noises
from torch import Tensor

from givens.manifolds import (
    Euclidean,
    Grassmann,
    Oblique,
    OrthogonalGroup,
    SpecialOrthogonalGroup,
    SpecialUnitaryGroup,
    Sphere,
    Stiefel,
    UnitaryGroup,
)
from givens.manifolds.testing import (
    Diagnosis,
    Validating,
    check_gradient,
    check_move,
    check_retraction,
)

GROUP = OrthogonalGroup()
COMPLEX = torch.complex128

# Manifolds, shapes and types of points.
COORDINATES = [
    (GROUP, (5, 5), torch.float64),
    (GROUP, (2, 3, 3), torch.float64),
    (Validating(GROUP), (4, 4), torch.float64),
    (Euclidean(1), (2, 4), torch.float64),
    (Euclidean(2), (3, 4), torch.float64),
    (Sphere(), (3, 5), torch.float64),
    (Stiefel(), (2, 5, 2), torch.float64),
    (Stiefel("canonical"), (5, 3), torch.float64),
    (Grassmann(), (5, 2), torch.float64),
    (Oblique(), (4, 3), torch.float64),
    (SpecialOrthogonalGroup(), (2, 3, 3), torch.float64),
    (UnitaryGroup(), (3, 3), COMPLEX),
    (SpecialUnitaryGroup(), (2, 3, 3), COMPLEX),
]
OTHERS = [
    (geoopt.Euclidean(), (3,), torch.float64),
    (geoopt.Sphere(), (2, 4), torch.float64),
    (geoopt.SphereExact(), (4,), torch.float64),
    (geoopt.EuclideanStiefel(), (4, 2), torch.float64),
    (geoopt.PoincareBall(), (3, 4), torch.float64),
    (geoopt.SymmetricPositiveDefinite(), (3, 3), torch.float64),
]


def names(cases):
    return [f"{manifold.name} {shape}" for manifold, shape, _ in cases]


def point(manifold, shape, dtype, noise):
    noise = noise.normal(*shape, dtype=dtype)
    if isinstance(manifold, geoopt.PoincareBall):
        return manifold.expmap0(noise / 4)
    if isinstance(manifold, geoopt.SymmetricPositiveDefinite):
        return torch.matrix_exp(noise + noise.mT)
    return manifold.projx(noise).as_subclass(Tensor)


class Waves:
    """The cost Σ w·sin(Re⟨a, x⟩ + b) of random waves, and its Euclidean gradient."""

    def __init__(self, shape, dtype, noise):
        self.a = noise.normal(3, *shape, dtype=dtype)
        self.w, self.b = noise.normal(3), noise.normal(3)

    def phase(self, x):
        return (self.a.conj() * x).real.flatten(1).sum(-1) + self.b

    def __call__(self, x):
        return (self.w * self.phase(x).sin()).sum()

    def egrad(self, x):
        return torch.einsum("n,n...->...", (self.w * self.phase(x).cos()).to(x.dtype), self.a)


@st.composite
def problems(draw, cases=tuple(COORDINATES + OTHERS)):
    manifold, shape, dtype = draw(st.sampled_from(cases))
    noise = draw(noises)
    return manifold, point(manifold, shape, dtype, noise), Waves(shape, dtype, noise)


# What is right


@settings(max_examples=15)
@given(problems(), st.booleans())
def test_a_right_gradient_is_right(problem, own):
    manifold, x, cost = problem
    found = check_gradient(manifold, cost, x, egrad=cost.egrad if own else None)
    assert found, found
    assert found.slope >= 1.75
    rgrad = check_gradient(
        manifold, cost, x, rgrad=lambda x: manifold.egrad2rgrad(x, cost.egrad(x))
    )
    assert rgrad, rgrad


@pytest.mark.parametrize(("manifold", "shape", "dtype"), COORDINATES, ids=names(COORDINATES))
def test_right_moves_are_right(manifold, shape, dtype):
    noise = Noise(2)
    x = point(manifold, shape, dtype, noise)
    for cost in (None, Waves(shape, dtype, noise)):
        found = check_move(manifold, x, cost, count=3)
        assert found, found
        assert len(found.errors) == len(found.labels) == len(found.slopes) == 6
    if isinstance(manifold, OrthogonalGroup | UnitaryGroup):
        assert all(math.isinf(slope) for slope in found.slopes[::2])  # motions are geodesics


@pytest.mark.parametrize(
    ("retraction", "order"),
    [("exponential", 5), ("cayley", 2), ("qr", 1), ("polar", 2), ("givens", 1)],
)
def test_retractions_have_their_order_and_not_more(retraction, order):
    manifold = OrthogonalGroup(retraction)
    x = Noise(0).point(2, 4, 4)
    found = check_retraction(manifold, x, order=order)
    assert found, found
    if retraction != "exponential":
        assert found.slope == pytest.approx(order + 1, abs=0.05)
        more = check_retraction(manifold, x, order=order + 1)
        assert not more
        assert f"slope {order + 1}.00, not {order + 2}" in repr(more)


@settings(max_examples=4)
@given(noises)
def test_costs_whose_error_is_rounding_are_right(noise: Noise):
    x = noise.normal(4, 3)
    a = noise.like(x)
    for cost in (lambda x: (a * x).sum(), lambda x: 7.0 + 0 * x.sum(), lambda x: 0 * x.sum()):
        found = check_gradient(Euclidean(2), cost, x)
        assert found, found
        assert found.slope == math.inf
        assert "Nothing but rounding" in repr(found)
    q = noise.point(4, 4)  # constant on the group, and its Riemannian gradient nothing but rounding
    assert check_gradient(GROUP, lambda x: x.square().sum(), q)
    assert check_gradient(Euclidean(2), lambda x: x.square().sum(), x).slope == pytest.approx(
        2, abs=0.02
    )


@settings(max_examples=4)
@given(st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([0.0, 1e6]), noises)
def test_scale_and_offset_of_a_cost_do_not_matter(scale, offset, noise: Noise):
    x = noise.point(4, 4)
    cost = Waves((4, 4), torch.float64, noise)

    def shifted(x):
        return scale * (cost(x) + offset)

    assert check_gradient(GROUP, shifted, x)
    found = check_gradient(GROUP, shifted, x, egrad=lambda x: 1.1 * scale * cost.egrad(x))
    assert not found
    assert "1.1 times the gradient" in repr(found)


@settings(max_examples=4)
@given(noises)
def test_a_cost_that_computes_in_float32_inside_is_right(noise: Noise):
    x = noise.point(5, 5)
    a = noise.normal(5, 5, dtype=torch.float32)

    def cost(x):
        return (x.float() @ a).sin().sum()

    assert check_gradient(GROUP, cost, x)
    wrong = check_gradient(
        GROUP, cost, x, egrad=lambda x: 2 * (x @ a.double()).cos() @ a.double().T
    )
    assert not wrong
    assert "times the gradient" in repr(wrong)


@settings(max_examples=2)
@given(dtypes, noises)
def test_points_in_lower_precision_are_converted(dtype, noise: Noise):
    x = ManifoldParameter(noise.point(4, 4, dtype=dtype), manifold=GROUP)
    seen = set()

    def cost(x):
        seen.add((type(x), x.dtype))
        return x.sin().sum()

    kept = x.detach().clone()
    assert check_gradient(GROUP, cost, x)
    assert check_move(GROUP, x, cost, count=2)
    assert seen == {(Tensor, torch.float64)}
    assert torch.equal(x, kept)


def test_at_a_stationary_point():
    x = torch.eye(3, dtype=torch.float64)
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert check_gradient(GROUP, lambda x: (a * x).sum(), x)
    assert not check_gradient(GROUP, lambda x: (a * x).sum(), x, egrad=lambda x: a.roll(1, 0))


def test_where_there_are_no_directions():
    """The Stiefel manifold of 1×1 matrices is two points."""
    x = torch.ones(1, 1, dtype=torch.float64)
    assert check_gradient(geoopt.EuclideanStiefel(), lambda x: x.exp().sum(), x)


def test_points_drawn_from_the_same_seed():
    """The direction must not be the point itself, which has no tangent part."""
    for seed in range(5):
        x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        x = x / x.norm()
        found = check_gradient(Sphere(), lambda x: x.sum(), x, rgrad=torch.zeros_like, seed=seed)
        assert "It is zero" in repr(found)


def test_results_repeat_and_global_randomness_is_left_alone():
    x = Noise(0).point(4, 4)
    cost = Waves((4, 4), torch.float64, Noise(1))
    state = torch.get_rng_state()
    for check in (
        lambda seed: check_gradient(GROUP, cost, x, seed=seed),
        lambda seed: check_move(GROUP, x, seed=seed, count=2),
        lambda seed: check_retraction(OrthogonalGroup("qr"), x, seed=seed),
    ):
        first = check(3)
        assert torch.equal(first.errors, check(3).errors)
        assert not torch.equal(first.errors, check(4).errors)
    assert torch.equal(torch.get_rng_state(), state)


# Mistakes in a gradient

MISTAKES = {
    "factor": (lambda c, x: 0.5 * c.egrad(x), "It is 0.5 times the gradient of the cost"),
    "slight factor": (lambda c, x: 1.01 * c.egrad(x), "It is 1.01 times the gradient"),
    "sign": (lambda c, x: -c.egrad(x), "It is minus the gradient of the cost: the sign is wrong"),
    "nothing": (lambda c, x: 0 * x, "It is zero, and the cost changes"),
    "term": (lambda c, x: c.egrad(x) + c.a[0], "a term is missing or wrong"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@settings(max_examples=5)
@given(problem=problems())
def test_mistakes_are_found_and_named(mistake, problem):
    manifold, x, cost = problem
    wrong, what = MISTAKES[mistake]
    found = check_gradient(manifold, cost, x, egrad=lambda x: wrong(cost, x))
    assert not found
    assert found.slope < 1.75
    assert "the gradient is wrong" in repr(found)
    assert what in repr(found)


def test_a_small_mistake():
    x = Noise(0).point(4, 4)
    cost = Waves((4, 4), torch.float64, Noise(1))
    found = check_gradient(GROUP, cost, x, egrad=lambda x: cost.egrad(x) + 1e-6 * cost.a[0])
    assert not found
    assert "a small term is missing or wrong" in repr(found)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_mistake_does_not_hide_where_it_cancels_the_curvature(sign):
    """On one side of x the error is |ct − t²|, which falls steeply towards its zero at t = c."""
    x = torch.zeros(1, dtype=torch.float64)
    found = check_gradient(
        Euclidean(), lambda x: (x**2 + x).sum(), x, egrad=lambda x: 2 * x + 1 + sign * 3e-7
    )
    assert not found, found


def test_it_finds_that_geoopt_s_canonical_stiefel_goes_another_way():
    """Its exponential leaves x with the velocity u + x·xᵀu, and its proju is no projection."""
    manifold = geoopt.CanonicalStiefel()
    x = manifold.projx(Noise(0).normal(4, 2))
    u = Stiefel("canonical").proju(x, Noise(1).like(x))
    velocity = (manifold.expmap(x, 1e-6 * u) - manifold.expmap(x, -1e-6 * u)) / 2e-6
    torch.testing.assert_close(velocity, u + x @ x.mT @ u, atol=1e-8, rtol=0)
    torch.testing.assert_close(manifold.proju(x, u), u + x @ x.mT @ u)
    found = check_gradient(manifold, lambda x: x.sin().sum(), x)
    assert not found
    assert "egrad2rgrad, inner and expmap" in repr(found)
    assert check_gradient(Stiefel("canonical"), lambda x: x.sin().sum(), x)


@settings(max_examples=4)
@given(noises)
def test_a_transposed_gradient(noise: Noise):
    x = noise.point(4, 4)
    cost = Waves((4, 4), torch.float64, noise)
    assert "Its transpose is right" in repr(
        check_gradient(GROUP, cost, x, egrad=lambda x: cost.egrad(x).mT)
    )


@settings(max_examples=4)
@given(noises)
def test_a_conjugated_gradient(noise: Noise):
    manifold = UnitaryGroup()
    x = point(manifold, (3, 3), COMPLEX, noise)
    cost = Waves((3, 3), COMPLEX, noise)
    assert "Its complex conjugate is right" in repr(
        check_gradient(manifold, cost, x, egrad=lambda x: cost.egrad(x).conj())
    )


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(geoopt.PoincareBall(), (3, 4)), (geoopt.SymmetricPositiveDefinite(), (3, 3))],
)
@given(noise=noises)
def test_riemannian_for_euclidean_and_back(manifold, shape, noise: Noise):
    """Where the metric is not that of the surrounding space; elsewhere the first is no mistake."""
    x = point(manifold, shape, torch.float64, noise)
    cost = Waves(shape, torch.float64, noise)
    found = check_gradient(
        manifold, cost, x, egrad=lambda x: manifold.egrad2rgrad(x, cost.egrad(x))
    )
    assert "the Riemannian gradient, where egrad= expects the Euclidean: pass rgrad=" in repr(found)
    found = check_gradient(manifold, cost, x, rgrad=cost.egrad)
    assert "the Euclidean gradient, where rgrad= expects the Riemannian: pass egrad=" in repr(found)


def test_euclidean_for_riemannian_where_the_metric_is_the_same():
    x = Noise(0).point(4, 4)
    cost = Waves((4, 4), torch.float64, Noise(1))
    found = check_gradient(GROUP, cost, x, rgrad=cost.egrad)
    assert not found
    assert found.slope == pytest.approx(2, abs=0.1)
    assert "not tangent" in repr(found)
    assert "Did you return the Euclidean gradient? Pass it as egrad=" in repr(found)
    riemannian = check_gradient(GROUP, cost, x, egrad=lambda x: GROUP.egrad2rgrad(x, cost.egrad(x)))
    assert riemannian  # its projection is itself


def test_a_manifold_that_converts_gradients_wrongly():
    class Wrong(Sphere):
        def egrad2rgrad(self, x, u):
            return 2 * self.proju(x, u)

    class NotTangent(Sphere):
        def egrad2rgrad(self, x, u):
            return u

    x = Sphere().projx(Noise(0).normal(5))
    found = check_gradient(Wrong(), lambda x: x.sin().sum(), x)
    assert not found
    assert "Sphere.egrad2rgrad, inner and expmap" in repr(found)
    found = check_gradient(NotTangent(), lambda x: x.sin().sum(), x)
    assert "Look at Sphere.egrad2rgrad." in repr(found)


def test_a_cost_that_detaches_a_part():
    x = Noise(0).point(4, 4)
    found = check_gradient(GROUP, lambda x: (x.detach() * x).sin().sum(), x)
    assert not found
    assert "Does the cost detach a part of x" in repr(found)


def test_costs_too_coarse_to_tell():
    x = Noise(0).point(4, 4)
    noise = torch.Generator().manual_seed(0)
    for cost in (
        lambda x: x.sin().sum() + 0.01 * torch.rand((), generator=noise),
        lambda x: 1e16 + x.sin().sum(),
    ):
        found = check_gradient(GROUP, cost, x, egrad=lambda x: x.cos())
        assert not found
        assert "too much to tell. Is the function deterministic (dropout" in repr(found)


def test_costs_that_are_none():
    x = Noise(0).point(2, 3, 3)
    for cost, what in (
        (lambda x: x.sum((-2, -1)), r"shape \(2,\); expected a real scalar"),
        (lambda x: x.sum() + 0j, "complex128"),
        (lambda x: x.sum() * torch.nan, "the cost is nan at x"),
        (lambda x: x.detach().sum(), "autograd finds no way from x to the cost"),
        (lambda x: torch.ones((), requires_grad=True) * 2, "autograd finds no way"),
        (lambda x: 1.0, "autograd finds no way"),
    ):
        with pytest.raises(ValueError, match=what):
            check_gradient(GROUP, cost, x)
    assert check_gradient(GROUP, lambda x: float(x.sin().sum()), x, egrad=torch.cos)


def test_arguments_that_are_none():
    x = Noise(0).point(3, 3)
    with pytest.raises(ValueError, match=r"x is no point of OrthogonalGroup.*max"):
        check_gradient(GROUP, torch.sum, 1.001 * x)
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        check_gradient(GROUP, torch.sum, x.long())
    with pytest.raises(ValueError, match="egrad and rgrad are both given"):
        check_gradient(GROUP, torch.sum, x, egrad=torch.cos, rgrad=torch.cos)
    with pytest.raises(ValueError, match=r"egrad returned torch.float64 of shape \(3,\)"):
        check_gradient(GROUP, torch.sum, x, egrad=lambda x: x[0])
    for steps in ([1.0], torch.linspace(1, 0.1, 9), torch.linspace(0, 1, 9)):
        with pytest.raises(ValueError, match="at least 8 positive numbers in ascending order"):
            check_gradient(GROUP, torch.sum, x, steps=steps)
    with pytest.raises(TypeError, match="Sphere manifold has no coordinates"):
        check_move(geoopt.Sphere(), x)
    with pytest.raises(ValueError, match="order=0"):
        check_retraction(GROUP, x, order=0)


def test_steps_suit_the_scale_of_the_cost():
    """A cost that changes over lengths of 1e-9 needs smaller steps, and says so."""

    def cost(x):
        return (1e9 * x).sin().sum()

    x = 1e-6 * Noise(0).normal(4)
    assert check_gradient(Euclidean(), lambda x: cost(1e-3 * x), 1e3 * x)
    wrong = check_gradient(Euclidean(), cost, x)
    assert not wrong
    assert "lengths below the smallest step (then pass steps=)" in repr(wrong)
    assert check_gradient(Euclidean(), cost, x, steps=torch.logspace(-16, -9, 36))


# Mistakes in a geometry


class Angle(OrthogonalGroup):
    """The paper's equation (12) as printed: the angle t, not t/√2."""

    def move_(self, x, block, t):
        return super().move_(x, block, t * math.sqrt(2))


class Backwards(OrthogonalGroup):
    def move_(self, x, block, t):
        return super().move_(x, block, -t)


class OtherPair(OrthogonalGroup):
    def move_(self, x, block, t):
        total = self.num_coordinates(x)
        return super().move_(x, type(block)((block.index + 1) % total, disjoint=True), t)


class Starts(OrthogonalGroup):
    def move_(self, x, block, t):
        return super().move_(x, block, t + 1e-3)


class Leaves(OrthogonalGroup):
    def move_(self, x, block, t):
        return x.add_(t.unsqueeze(-1) * self.direction(x, block.index).squeeze(-3))


class Direction(OrthogonalGroup):
    def direction(self, x, index):
        return math.sqrt(2) * super().direction(x, index)


class Normal(OrthogonalGroup):
    def direction(self, x, index):
        return super().direction(x, index) + x.unsqueeze(-3)


class Derivatives(OrthogonalGroup):
    def derivatives(self, x, egrad, block):
        return -super().derivatives(x, egrad, block)


class OneDerivative(OrthogonalGroup):
    """The derivative of coordinate 4 is twice what it should be."""

    def derivatives(self, x, egrad, block):
        return super().derivatives(x, egrad, block) * torch.where(block.index == 4, 2.0, 1.0)


class Exponential(OrthogonalGroup):
    def expmap(self, x, u):
        return super().expmap(x, 1.1 * u)


class AllThree(OrthogonalGroup):
    def move_(self, x, block, t):
        return super().move_(x, block, 2 * t)

    def derivatives(self, x, egrad, block):
        return 3 * super().derivatives(x, egrad, block)


@pytest.mark.parametrize(
    ("manifold", "what"),
    [
        (Angle(), "It goes 1.414 times as fast as direction: look at its angle"),
        (Backwards(), "It goes -1 times as fast as direction"),
        (
            OtherPair(),
            "move_ is wrong: direction and derivatives agree with each other, not with it.",
        ),
        (OtherPair(), "Look at its axes and signs"),
        (Starts(), "move_ with t = 0 does not leave x where it is"),
        (Leaves(), "move_ leaves the manifold: max"),
        (
            Direction(),
            "direction is wrong: move_ and derivatives agree with each other, not with it.",
        ),
        (Direction(), "It is 1.414 times the velocity of move_"),
        (Normal(), "direction is not tangent: max"),
        (Derivatives(), "derivatives is wrong: move_ and direction agree with each other"),
        (Derivatives(), "It is -1 times what it should be"),
        (Exponential(), "expmap does not: look at OrthogonalGroup.expmap"),
        (AllThree(), "disagree with each other, all three"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, OrthogonalGroup) else "",
)
@settings(max_examples=2)
@given(noise=noises)
def test_mistakes_in_a_geometry_are_found_and_named(manifold, what, noise: Noise):
    x = noise.point(4, 4)
    found = check_move(manifold, x, Waves((4, 4), torch.float64, noise), count=2)
    assert not found
    assert what in repr(found)
    assert "(2 of 2 tried)" in repr(found)


@settings(max_examples=2)
@given(noises)
def test_one_wrong_derivative_is_told_from_the_others(noise: Noise):
    x = noise.point(4, 4)
    found = check_move(OneDerivative(), x, count=100)
    assert not found
    assert "coordinate 4 (1 of 6 tried): derivatives is wrong" in repr(found)
    assert "It is 2 times what it should be" in repr(found)
    assert [
        label for label, slope in zip(found.labels, found.slopes, strict=True) if slope < 1.75
    ] == ["cost, 4"]


def test_a_retraction_that_leaves_the_manifold():
    class Flat(OrthogonalGroup):
        def retr(self, x, u):
            return x + u

    found = check_retraction(Flat(), Noise(0).point(3, 3))
    assert not found
    assert "It leaves the manifold, first at t = " in repr(found)


def test_a_retraction_that_is_none():
    class Doubles(OrthogonalGroup):
        def retr(self, x, u):
            return self.expmap(x, 2 * u)

    found = check_retraction(Doubles(), Noise(0).point(3, 3))
    assert "slope 1.00, not 2" in repr(found)
    assert "the retraction is wrong" in repr(found)


# The result


def test_the_result_reads_as_an_assertion_and_prints():
    x = Noise(0).point(4, 4)
    right, wrong = (
        check_gradient(GROUP, lambda x: x.sin().sum(), x, egrad=egrad)
        for egrad in (torch.cos, torch.sin)
    )
    assert isinstance(right, Diagnosis)
    assert bool(right) is right.ok is True
    assert repr(right).startswith("check_gradient on OrthogonalGroup: right\n    The error falls")
    assert repr(wrong).startswith("check_gradient on OrthogonalGroup: WRONG\n    The error falls")
    assert right.errors.shape == (1, 41)
    assert right.expected == 2
    with pytest.raises(AttributeError):
        right.ok = False


@pytest.mark.parametrize("kind", ["right", "wrong", "rounding", "move", "retraction", "not finite"])
def test_plots(kind):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    x = Noise(0).point(3, 3)
    found = {
        "right": lambda: check_gradient(GROUP, lambda x: x.sin().sum(), x),
        "wrong": lambda: check_gradient(GROUP, lambda x: x.sin().sum(), x, egrad=torch.sin),
        "rounding": lambda: check_gradient(Euclidean(2), torch.sum, x),
        "move": lambda: check_move(GROUP, x),
        "retraction": lambda: check_retraction(OrthogonalGroup("qr"), x),
        "not finite": lambda: check_gradient(
            Euclidean(), lambda x: x.log().sum(), torch.tensor([0.1, 0.3])
        ),
    }[kind]()
    ax = found.plot()
    assert found.subject in ax.get_title()
    assert {"linear", "log"} >= {ax.get_xscale(), ax.get_yscale()}
    labels = ax.get_legend_handles_labels()[1]
    assert f"slope {found.expected:g}" in labels
    ax.figure.canvas.draw()
    _, own = plt.subplots()
    assert found.plot(own) is own
    plt.close("all")


def test_without_matplotlib(monkeypatch):
    found = check_gradient(GROUP, torch.sum, Noise(0).point(3, 3))
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'givens\[cli\]'"):
        found.plot()
