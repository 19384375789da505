"""Scaled manifolds: the same curves, s times as long."""

import copy
import math

import geoopt
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import Everything
from strategies import DTYPES, Noise, batch_shapes, dtypes, error, noises
from torch import Tensor

from givens.manifolds import (
    All,
    CoordinateManifold,
    Coordinates,
    Euclidean,
    Groups,
    OrthogonalGroup,
    Product,
    Scaled,
    Sphere,
    Stiefel,
    UnitaryGroup,
)
from givens.optim import SRCD, SRGD, GaussSouthwell, GradientView, Uniform

BASES = {
    "Euclidean": (Euclidean(2), (2, 3)),
    "orthogonal": (OrthogonalGroup(), (4, 4)),
    "sphere": (Sphere(), (5,)),
    "Stiefel": (Stiefel(), (4, 2)),
    "product": (Product((Sphere(), 3), (Euclidean(), 2)), (5,)),
    "scaled": (Scaled(Sphere(), 3.0), (4,)),
}
scales = st.floats(0.05, 20)
every_base = pytest.mark.parametrize(("base", "shape"), BASES.values(), ids=BASES)


def a_point(manifold: CoordinateManifold, shape, noise: Noise, *batch, dtype=torch.float64):
    x = manifold.random(*batch, *shape, dtype=dtype, generator=noise.generator)
    return x.as_subclass(Tensor)


def velocity(manifold, x: Tensor, u: Tensor) -> Tensor:
    """Of the geodesic Exp_x(tu) at t = 0."""
    zero, one = torch.zeros((), dtype=x.dtype), torch.ones((), dtype=x.dtype)
    return torch.func.jvp(lambda t: manifold.expmap(x, t * u), (zero,), (one,))[1]


# The metric


@every_base
@settings(max_examples=10)
@given(batch_shapes, dtypes, scales, noises)
def test_lengths_grow_by_the_scale(base, shape, batch, dtype, s, noise: Noise):
    manifold = Scaled(base, s)
    s = float(manifold.scale)
    x = a_point(manifold, shape, noise, *batch, dtype=dtype)
    u, v = (0.2 * base.proju(x, noise.like(x)) for _ in range(2))
    y = base.expmap(x, u)
    for keepdim in (False, True):
        for ours, theirs, power in (
            (manifold.inner(x, u, v, keepdim=keepdim), base.inner(x, u, v, keepdim=keepdim), 2),
            (manifold.inner(x, u, keepdim=keepdim), base.inner(x, u, keepdim=keepdim), 2),
            (manifold.norm(x, u, keepdim=keepdim), base.norm(x, u, keepdim=keepdim), 1),
        ):
            assert (ours.shape, ours.dtype) == (theirs.shape, dtype)
            torch.testing.assert_close(ours, theirs * s**power)
    torch.testing.assert_close(
        manifold.component_inner(x, u, v), base.component_inner(x, u, v) * s**2
    )
    if not isinstance(base, Stiefel):
        torch.testing.assert_close(manifold.dist(x, y), base.dist(x, y) * s)
        torch.testing.assert_close(manifold.dist2(x, y), base.dist(x, y).square() * s**2)
        assert manifold.dist(x, y, keepdim=True).shape == base.dist(x, y, keepdim=True).shape


@every_base
@settings(max_examples=8)
@given(batch_shapes, scales, noises)
def test_curves_and_vectors_are_those_of_the_base(base, shape, batch, s, noise: Noise):
    manifold = Scaled(base, s)
    x = a_point(manifold, shape, noise, *batch)
    u, v = (0.2 * base.proju(x, noise.like(x)) for _ in range(2))
    y = base.expmap(x, u)
    calls = {
        "projx": (noise.like(x),),
        "proju": (x, noise.like(x)),
        "expmap": (x, u),
        "retr": (x, u),
        "transp": (x, y, v),
        "transp_follow_expmap": (x, u, v),
        "transp_follow_retr": (x, u, v),
        "expmap_transp": (x, u, v),
        "retr_transp": (x, u, v),
    }
    if not isinstance(base, Stiefel):
        calls["logmap"] = (x, y)
    for name, tensors in calls.items():
        ours, theirs = (getattr(m, name)(*tensors) for m in (manifold, base))
        for got, wanted in zip(ours, theirs, strict=True):
            assert torch.equal(got, wanted)
    manifold.assert_check_point_on_manifold(x)
    manifold.assert_check_vector_on_tangent(x, u)
    assert error(velocity(manifold, x, u), u) <= 1e-13


@every_base
@settings(max_examples=10)
@given(batch_shapes, scales, noises)
def test_the_gradient_represents_the_derivative_along_geodesics(
    base, shape, batch, s, noise: Noise
):
    """⟨grad f, u⟩ = d/dt f(Exp_x(tu)), in the scaled metric."""
    manifold = Scaled(base, s)
    x = a_point(manifold, shape, noise, *batch)
    u, weight = base.proju(x, noise.like(x)), noise.like(x)

    def cost(x: Tensor) -> Tensor:
        return ((x * weight).sin() * weight).flatten(len(batch)).sum(-1)

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(y).sum(), y)
    _, slope = torch.func.jvp(cost, (x,), (velocity(manifold, x, u),))
    assert error(manifold.inner(x, manifold.egrad2rgrad(x, egrad), u), slope) <= 1e-11


def test_geoopt_s_scaled_is_at_odds_with_itself():
    """Its geodesics leave with the velocity u/s, and its gradient knows nothing of that.

    So ⟨grad f, u⟩ is s times the derivative of f along the geodesic.
    """
    noise = Noise(0)
    s = 2.0
    x = geoopt.Sphere().projx(noise.normal(4))
    u = geoopt.Sphere().proju(x, noise.normal(4))
    weight = noise.normal(4)
    theirs, ours = geoopt.Scaled(geoopt.SphereExact(), s), Scaled(Sphere(), s)
    assert error(velocity(theirs, x, u), u / s) <= 1e-12
    assert error(velocity(ours, x, u), u) <= 1e-12
    for manifold, factor in ((theirs, s), (ours, 1.0)):
        slope = (weight * velocity(manifold, x, u)).sum()  # of f(x) = ⟨weight, x⟩
        pairing = manifold.inner(x, manifold.egrad2rgrad(x, weight), u)
        assert error(pairing, factor * slope) <= 1e-12


# Coordinates


@every_base
@settings(max_examples=10)
@given(batch_shapes, scales, noises)
def test_frame_bounds_hold_in_the_scaled_metric(base, shape, batch, s, noise: Noise):
    manifold = Scaled(base, s)
    x = a_point(manifold, shape, noise, *batch)
    u = base.proju(x, noise.like(x))
    k = manifold.num_coordinates(x)
    f = manifold.direction(x, torch.arange(k))
    points = x.unsqueeze(-len(shape) - 1)
    along = u.unsqueeze(-len(shape) - 1).expand_as(f)
    sums = manifold.inner(points, f, along).square().sum(-1)
    lower, upper = manifold.frame_bounds
    squared = manifold.inner(x, u)
    assert (sums >= (1 - 1e-9) * lower * squared).all()
    assert (sums <= (1 + 1e-9) * upper * squared).all()
    scale = manifold.step_scale(x, All()).expand(*batch, k)
    assert float((scale / upper - 1).abs().max()) <= 1e-12 or isinstance(base, Product)


@every_base
@settings(max_examples=8)
@given(batch_shapes, dtypes, scales, noises)
def test_coordinates_are_those_of_the_base(base, shape, batch, dtype, s, noise: Noise):
    manifold = Scaled(base, s)
    x = a_point(manifold, shape, noise, *batch, dtype=dtype)
    egrad = noise.like(x)
    k = manifold.num_coordinates(x)
    assert (k, manifold.num_axes(x)) == (base.num_coordinates(x), base.num_axes(x))
    index = noise.integers(k, *batch, 3)
    assert torch.equal(manifold.axes(x, index), base.axes(x, index))
    assert torch.equal(manifold.direction(x, index), base.direction(x, index))
    for ours, theirs in zip(
        manifold.steepest(x, egrad, 2), base.steepest(x, egrad, 2), strict=True
    ):
        assert torch.equal(ours, theirs)
    weight = base.coupling(x, egrad)
    torch.testing.assert_close(s * manifold.coupling(x, egrad), weight, rtol=1e-6, atol=1e-30)
    assert manifold.restore_period(x) == base.restore_period(x)
    y = 1.000001 * x
    z = y.clone()
    assert manifold.restore_(y) is y
    assert torch.equal(y, base.restore_(z))
    for block in (Coordinates(index, disjoint=False), Coordinates(index[..., :1], True), All()):
        derivatives = manifold.derivatives(x, egrad, block)
        assert torch.equal(derivatives, base.derivatives(x, egrad, block))
        t = noise.like(derivatives)
        assert torch.equal(manifold.move(x, block, t), base.move(x, block, t))
        scale = manifold.step_scale(x, block)
        of_base = base.step_scale(x, block)
        assert scale.dtype == of_base.dtype == dtype
        torch.testing.assert_close(scale, of_base * float(manifold.scale) ** 2)
        y = x.clone()
        assert manifold.descend_(y, egrad, block, lambda f, scale: -f / scale) is y
        assert error(y, base.move(x, block, -derivatives / scale)) <= 1e-5


def test_groups_are_those_of_the_base():
    base, manifold = OrthogonalGroup(), Scaled(OrthogonalGroup(), 3.0)
    noise = Noise(0)
    x = noise.point(4, 4)
    groups = Groups(torch.tensor([[0, 2], [1, 3]]))
    assert torch.equal(manifold.group_coordinates(x, groups), base.group_coordinates(x, groups))
    t = noise.skew(2, 2, 2)
    assert torch.equal(manifold.move(x, groups, t), base.move(x, groups, t))
    assert torch.equal(
        manifold.derivatives(x, t.view(2, 4).repeat(2, 1), groups),
        base.derivatives(x, t.view(2, 4).repeat(2, 1), groups),
    )


@pytest.mark.parametrize("name", ["Euclidean", "orthogonal", "sphere", "product", "scaled"])
def test_along_all_coordinates_srcd_is_srgd(name):
    base, shape = BASES[name]
    manifold = Scaled(base, 0.5)
    noise = Noise(0)
    x = a_point(manifold, shape, noise, 2)
    p, q = (ManifoldParameter(x.clone(), manifold=manifold) for _ in range(2))
    p.grad = noise.like(x)
    q.grad = p.grad.clone()
    SRCD([p], 0.1, Everything()).step()
    SRGD([q], 0.1).step()
    assert error(p.detach(), q.detach()) <= 1e-13


@pytest.mark.parametrize("selection", [Uniform(), GaussSouthwell(), Everything()])
@every_base
def test_a_step_is_that_of_the_base_with_the_stepsize_over_s_squared(base, shape, selection):
    noise = Noise(0)
    x = a_point(base, shape, noise)
    p = ManifoldParameter(x.clone(), manifold=Scaled(base, 2.0))
    q = ManifoldParameter(x.clone(), manifold=base)
    ours, theirs = SRCD([p], 0.4, selection), SRCD([q], 0.1, selection)
    for _ in range(5):
        p.grad = noise.like(x)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
        assert error(p.detach(), q.detach()) <= 1e-14


def test_gauss_southwell_weighs_the_factors_of_a_product_by_their_scales():
    product = Product((Euclidean(), 2), (Scaled(Euclidean(), 0.1), 2))
    x = torch.zeros(4)
    view = GradientView(product, x, torch.tensor([0.0, 5.0, 0.0, 1.0]))
    assert GaussSouthwell().select(view).index.tolist() == [3]  # the slope in its metric is 10


# The scale


def test_a_learnable_scale_gets_gradients():
    manifold = Scaled(Sphere(), 2.0, learnable=True)
    assert [name for name, _ in manifold.named_parameters()] == ["_log_scale"]
    noise = Noise(0)
    x = a_point(manifold, (4,), noise)
    u = 0.3 * Sphere().proju(x, noise.like(x))
    y = Sphere().expmap(x, u)
    for value, power in (
        (manifold.dist(x, y), 1),
        (manifold.norm(x, u), 1),
        (manifold.inner(x, u), 2),
        (manifold.egrad2rgrad(x, u).sum(), -2),
    ):
        (gradient,) = torch.autograd.grad(value, manifold._log_scale)
        # d(s^k c)/d log s = k s^k c
        assert float(gradient) == pytest.approx(power * float(value.detach()), rel=1e-5)
    with torch.no_grad():
        manifold._log_scale.copy_(torch.tensor(3.0).log())
    assert float(manifold.scale.detach()) == pytest.approx(3.0)
    assert "scale=3" in repr(manifold)
    assert manifold.frame_bounds == pytest.approx((9.0, 9.0))
    p = ManifoldParameter(x.clone(), manifold=manifold)
    p.grad = noise.like(x)
    SRCD([p], 0.1, Uniform()).step()  # no gradient is kept
    assert not p.grad.requires_grad


@pytest.mark.parametrize("learnable", [False, True])
def test_the_scale_is_saved_as_geoopt_saves_it(learnable):
    ours = Scaled(Euclidean(), 2.0, learnable)
    theirs = geoopt.Scaled(geoopt.Euclidean(1), 2.0, learnable)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours.scale, theirs.scale)
    assert torch.equal(ours.log_scale, theirs.log_scale)
    other = Scaled(Euclidean(), 5.0, learnable)
    other.load_state_dict(theirs.state_dict())
    assert float(other.scale.detach()) == pytest.approx(2.0)
    assert float(copy.deepcopy(other).scale.detach()) == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scale_goes_with_every_type(dtype):
    """Its powers are taken in the precision of the points, and never change their type."""
    tenth = torch.tensor(0.1, dtype=dtype)
    for scale, exact in ((0.1, torch.tensor(0.1)), (tenth, tenth)):
        manifold = Scaled(Euclidean(), scale)
        assert manifold.scale.dtype == exact.dtype
        u = torch.ones(3, dtype=torch.float64)
        assert abs(float(manifold.inner(u, u)) - 3 * float(exact) ** 2) <= 1e-16
        assert manifold.dist(u.float(), -u.float()).dtype == torch.float32
        assert manifold.step_scale(u.float(), All()).dtype == torch.float32
    scaled = (Scaled(Euclidean(), torch.tensor(2.0, dtype=d)) for d in DTYPES)
    product = Product(*((manifold, 2) for manifold in scaled))  # whatever the types of the scales
    assert product.frame_bounds == (4.0, 4.0)
    tensor = torch.tensor(2.0)
    manifold = Scaled(Euclidean(), tensor)
    tensor.fill_(7.0)
    assert float(manifold.scale) == 2.0


def test_it_takes_complex_manifolds():
    manifold = Scaled(UnitaryGroup(), 2.0)
    x = manifold.random(3, 2, 2, dtype=torch.complex128)
    u = manifold.proju(x, torch.ones_like(x))
    assert manifold.inner(x, u).dtype == torch.float64
    torch.testing.assert_close(manifold.norm(x, u), 2 * UnitaryGroup().norm(x, u))
    torch.testing.assert_close(manifold.egrad2rgrad(x, u), UnitaryGroup().egrad2rgrad(x, u) / 4)


def test_points_know_their_manifold():
    manifold = Scaled(Sphere(), 2.0)
    generator = torch.Generator().manual_seed(0)
    for x in (manifold.random(3, 4, generator=generator), manifold.origin(3, 4)):
        assert x.manifold is manifold
        manifold.assert_check_point_on_manifold(x)
    assert repr(manifold) == "Scaled(Sphere)(scale=2) manifold"
    assert not manifold.check_point_on_manifold(2 * x)
    assert not manifold.check_vector_on_tangent(x, x)
    assert not Scaled(OrthogonalGroup()).check_point(torch.zeros(3))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, torch.ones(2)])
def test_scales_that_cannot_be(scale):
    with pytest.raises(ValueError, match="one finite number above 0"):
        Scaled(Euclidean(), scale)


def test_bases_that_cannot_be():
    with pytest.raises(TypeError, match=r"coordinates.*geoopt"):
        Scaled(geoopt.Sphere())


def test_blocks_that_cannot_be():
    manifold = Scaled(Euclidean(), 2.0)
    x = torch.zeros(3)
    block = Coordinates(torch.tensor([3]), disjoint=True)
    for call in (
        lambda: manifold.move_(x, block, torch.ones(1)),
        lambda: manifold.derivatives(x, x, block),
        lambda: manifold.check_block(x, block),
    ):
        with pytest.raises(IndexError, match="coordinate 3"):
            call()
    assert not x.any()


def test_a_manifold_without_frame_bounds_has_none_when_scaled():
    class Unbounded(Euclidean):
        frame_bounds = None

        def step_scale(self, x, block):
            return torch.full((), 3.0)

    manifold = Scaled(Unbounded(), 2.0)
    assert manifold.frame_bounds is None
    assert float(manifold.step_scale(torch.zeros(3), All())) == 12.0
