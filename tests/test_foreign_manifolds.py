"""Manifolds that this package did not make: geoopt's in SRGD, and a user's own with coordinates."""

import itertools
import math

import geoopt
import pytest
import torch
from geoopt import ManifoldParameter
from geoopt.optim import RiemannianSGD
from hypothesis import given
from hypothesis import strategies as st
from rules import Everything
from torch import Tensor

from givens.manifolds import (
    All,
    CoordinateManifold,
    Coordinates,
    OrthogonalGroup,
)
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, GradientView, Uniform

seeds = st.integers(0, 2**32 - 1)


# geoopt's manifolds


def noise(*shape: int, data: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(data))


def product_point(manifold: geoopt.ProductManifold, *shape: int, data: int) -> Tensor:
    parts = [m.projx(noise(*shape, data=data + n)) for n, m in enumerate(manifold.manifolds)]
    return manifold.pack_point(*parts)


PRODUCT = geoopt.ProductManifold((geoopt.Sphere(), 4), (geoopt.PoincareBall(), 4))

# A manifold, and a function that makes a point of it from a seed.
MANIFOLDS = {
    "canonical Stiefel": (
        geoopt.CanonicalStiefel(),
        lambda m, data: m.projx(noise(2, 6, 3, data=data)),
    ),
    "Euclidean Stiefel": (
        geoopt.EuclideanStiefel(),
        lambda m, data: m.projx(noise(6, 3, data=data)),
    ),
    "exact Stiefel": (
        geoopt.EuclideanStiefelExact(),
        lambda m, data: m.projx(noise(6, 3, data=data)),
    ),
    "sphere": (geoopt.Sphere(), lambda m, data: m.projx(noise(3, 5, data=data))),
    "exact sphere": (geoopt.SphereExact(), lambda m, data: m.projx(noise(5, data=data))),
    "hyperboloid": (
        geoopt.Lorentz().double(),  # its check compares dtypes
        lambda m, data: m.expmap0(torch.nn.functional.pad(noise(3, 4, data=data) / 2, (1, 0))),
    ),
    "Poincaré ball": (
        geoopt.PoincareBall(),
        lambda m, data: m.expmap0(noise(3, 4, data=data) / 4),
    ),
    "exact Poincaré ball": (
        geoopt.PoincareBallExact(),
        lambda m, data: m.expmap0(noise(3, 4, data=data) / 4),
    ),
    "positive definite": (
        geoopt.SymmetricPositiveDefinite(),
        lambda m, data: torch.matrix_exp(m.proju(None, noise(2, 3, 3, data=data) / 2)),
    ),
    "product": (PRODUCT, lambda m, data: product_point(m, 3, 4, data=data)),
    "Euclidean": (geoopt.Euclidean(), lambda m, data: noise(4, data=data)),
    "orthogonal group": (
        OrthogonalGroup("cayley"),
        lambda m, data: m.projx(noise(2, 4, 4, data=data)),
    ),
}
every_manifold = pytest.mark.parametrize("name", MANIFOLDS)


def start(name: str, data: int = 0) -> tuple[ManifoldParameter, Tensor]:
    """A parameter, and another point to go to."""
    manifold, make = MANIFOLDS[name]
    return ManifoldParameter(make(manifold, data), manifold=manifold), make(manifold, data + 1)


def loss(p: Tensor, target: Tensor) -> Tensor:
    """A smooth function of the ambient space."""
    return (p - target).square().sum()


@every_manifold
@pytest.mark.parametrize("way", ["expmap", "retr"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_srgd_descends_and_stays_on_the_manifold(name, way, momentum):
    p, target = start(name)
    optimizer = SRGD([p], 0.02, momentum=momentum, map=way)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(p, target)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]
    if not momentum:
        assert all(after <= before for before, after in itertools.pairwise(losses))
    assert p.manifold.check_point_on_manifold(p.detach(), atol=1e-9, rtol=1e-9)
    if momentum and name != "hyperboloid":  # whose check compares with a float32 zero
        buffer = optimizer.state[p]["momentum_buffer"]
        assert p.manifold.check_vector_on_tangent(p.detach(), buffer, atol=1e-8, rtol=1e-8)


@every_manifold
@pytest.mark.parametrize("way", ["expmap", "retr"])
def test_a_step_is_the_manifold_s_map_of_its_gradient(name, way):
    p, target = start(name)
    x = p.detach().clone()
    loss(p, target).backward()
    expected = getattr(p.manifold, way)(x, -0.1 * p.manifold.egrad2rgrad(x, p.grad.clone()))
    SRGD([p], 0.1, map=way).step()
    if name == "orthogonal group":  # by way of its Lie algebra
        assert torch.allclose(p, expected, rtol=0, atol=1e-14)
    else:
        assert torch.equal(p, expected)


def beside_geoopt(name: str, data: int, **options: float):
    """Both optimizers on the same gradients; yields before and after every step."""
    (p, target), (q, _) = start(name, data), start(name, data)
    ours = SRGD([p], 0.005, map="retr", **options)
    theirs = RiemannianSGD([q], 0.005, **options)
    for count in range(8):
        for parameter, optimizer in ((p, ours), (q, theirs)):
            optimizer.zero_grad()
            loss(parameter, target).backward()
        yield count, ours, p, q
        ours.step()
        theirs.step()  # writes into its gradients
        torch.testing.assert_close(
            p.detach().as_subclass(Tensor), q.detach().as_subclass(Tensor), rtol=0, atol=1e-9
        )


@every_manifold
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_by_retraction_it_is_geoopt_s_riemannian_sgd(name, weight_decay):
    for data in range(3):
        for _ in beside_geoopt(name, data, weight_decay=weight_decay):
            pass


@every_manifold
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.5, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_with_momentum_it_is_geoopt_s_from_another_beginning(name, options):
    """geoopt's buffer begins as the first *Euclidean* gradient e, not as nothing.

    So its first velocity is m·e + (1 − dampening)·g where torch.optim.SGD's and ours is g. Put e into
    our buffer before the first step, and all steps agree.
    """
    for count, ours, p, _ in beside_geoopt(name, 0, **options):
        if count == 0:
            ours.state[p]["momentum_buffer"] = p.grad.clone()


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_in_flat_space_geoopt_counts_the_first_gradient_more(momentum):
    """1 + momentum times: with a dampening of the momentum, once, and there it agrees with ours."""
    p, q = (torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    for parameter, optimizer in (
        (p, SRGD([p], 1.0, momentum=momentum)),
        (q, RiemannianSGD([q], 1.0, momentum=momentum)),
    ):
        parameter.grad = torch.ones(3, dtype=torch.float64)
        optimizer.step()
    torch.testing.assert_close(q.detach(), (1 + momentum) * p.detach())
    for _ in beside_geoopt("Euclidean", 0, momentum=momentum, dampening=momentum):
        pass


def test_a_gradient_is_left_alone_where_geoopt_writes_into_it():
    p, target = start("sphere")
    loss(p, target).backward()
    before = p.grad.clone()
    SRGD([p], 0.1, weight_decay=0.1, momentum=0.5, nesterov=True).step()
    assert torch.equal(p.grad, before)


@pytest.mark.parametrize("name", [name for name in MANIFOLDS if name != "Euclidean"])
def test_a_point_off_the_manifold_is_refused(name):
    p, _ = start(name)
    with torch.no_grad():
        p.mul_(-3.0).sub_(1.0)
    with pytest.raises(ValueError, match=r"a parameter of shape .*float64, is no point of "):
        SRGD([p], 0.1)


@every_manifold
def test_srcd_wants_coordinates(name):
    p, _ = start(name)
    if name in ("Euclidean", "orthogonal group"):
        SRCD([p], 0.1)  # no constraint, or one of ours
        return
    with pytest.raises(TypeError, match=r"has no coordinates.*givens\.manifolds.*SRGD"):
        SRCD([p], 0.1)


# A user's own manifold with coordinates


class Ellipsoidal(CoordinateManifold):
    """ℝⁿ with the metric ⟨u, v⟩ = Σ aᵢuᵢvᵢ: translations, whose directions eᵢ have norm √aᵢ."""

    name = "Ellipsoidal"
    ndim = 1
    reversible = True

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)

    def _check_point_on_manifold(self, x, *, atol=1e-5, rtol=1e-5):
        return True, None

    def _check_vector_on_tangent(self, x, u, *, atol=1e-5, rtol=1e-5):
        return True, None

    def inner(self, x, u, v=None, *, keepdim=False):
        return (self.a * u * (u if v is None else v)).sum(-1, keepdim=keepdim)

    def proju(self, x, u):
        return u

    def projx(self, x):
        return x

    def egrad2rgrad(self, x, u):
        return u / self.a

    def expmap(self, x, u):
        return x + u

    retr = expmap

    def transp(self, x, y, v):
        return v

    def num_axes(self, x):
        return x.shape[-1]

    def num_coordinates(self, x):
        return x.shape[-1]

    def axes(self, x, index):
        return index.unsqueeze(-1)

    def direction(self, x, index):
        return torch.nn.functional.one_hot(index, x.shape[-1]).to(x.dtype)

    def derivatives(self, x, egrad, block):
        return egrad if isinstance(block, All) else egrad.gather(-1, self._index(x, block))

    def step_scale(self, x, block):
        return self.a if isinstance(block, All) else self.a[self._index(x, block)]

    def move_(self, x, block, t):
        return x.add_(t) if isinstance(block, All) else x.scatter_add_(-1, self._index(x, block), t)

    @staticmethod
    def _index(x, block):
        return block.index.expand(*x.shape[:-1], block.index.shape[-1])


class RotatedSphere(CoordinateManifold, geoopt.Sphere):
    """The sphere with the rotations of two entries: a frame, whose ‖f‖² = x_j² + x_l² changes."""

    def num_axes(self, x):
        return x.shape[-1]

    def num_coordinates(self, x):
        return math.comb(x.shape[-1], 2)

    def axes(self, x, index):
        return torch.combinations(torch.arange(x.shape[-1]))[index]

    def direction(self, x, index):
        return (self._generators(x)[index] @ x.unsqueeze(-1).unsqueeze(-3)).squeeze(-1)

    def derivatives(self, x, egrad, block):
        return (self.direction(x, self._index(x, block)) * egrad.unsqueeze(-2)).sum(-1)

    def step_scale(self, x, block):
        return self.direction(x, self._index(x, block)).square().sum(-1)

    def move_(self, x, block, t):
        a = (self._generators(x)[self._index(x, block)] * t[..., None, None]).sum(-3)
        return x.copy_((torch.matrix_exp(a) @ x.unsqueeze(-1)).squeeze(-1))

    def _index(self, x, block):
        index = torch.arange(self.num_coordinates(x)) if isinstance(block, All) else block.index
        return index.expand(*x.shape[:-1], index.shape[-1])

    @staticmethod
    def _generators(x):
        """E_jl = e_j e_lᵀ − e_l e_jᵀ for all pairs."""
        n = x.shape[-1]
        pairs = torch.combinations(torch.arange(n))
        e = torch.zeros(len(pairs), n, n, dtype=x.dtype)
        number = torch.arange(len(pairs))
        e[number, pairs[:, 0], pairs[:, 1]] = 1
        e[number, pairs[:, 1], pairs[:, 0]] = -1
        return e


SELECTIONS = [
    Uniform(),
    Cyclic(),
    GaussSouthwell(),
    Block(size=2),
    Block(size=2, rule=Uniform()),
    Block(size=2, disjoint=True),
    Block(size=2, rule=Cyclic(), disjoint=True),
    Everything(),
]

OWN = {
    "ellipsoidal": lambda data: (
        Ellipsoidal(10 ** torch.linspace(-2, 2, 5, dtype=torch.float64)),
        noise(3, 5, data=data),
    ),
    "sphere": lambda data: (RotatedSphere(), geoopt.Sphere().projx(noise(3, 5, data=data))),
}
every_own = pytest.mark.parametrize("own", OWN.values(), ids=OWN)


@every_own
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
@given(seeds)
def test_a_step_is_minus_lr_times_derivative_over_step_scale(own, selection, data):
    """By the dense directions: derivatives, norms and the step."""
    manifold, x = own(data % 1000)
    p = ManifoldParameter(x.clone(), manifold=manifold)
    p.grad = noise(*x.shape, data=data % 1000 + 1)
    block = selection.select(GradientView(manifold, x, p.grad))
    every = torch.arange(manifold.num_coordinates(x))
    index = every.expand(3, -1) if isinstance(block, All) else block.index
    f = manifold.direction(x, index)
    # ⟨grad f, fᵢ⟩ is the Euclidean gradient along fᵢ, whatever the metric.
    slope = (f * p.grad.unsqueeze(-2)).sum(-1)
    norm = manifold.inner(x.unsqueeze(-2), f)
    expected = manifold.move(x, Coordinates(index, disjoint=False), -0.01 * slope / norm)
    SRCD([p], 0.01, selection).step()
    torch.testing.assert_close(p.detach().as_subclass(Tensor), expected)


@every_own
@pytest.mark.parametrize("k", [1, 2, 4])
@given(seeds)
def test_gauss_southwell_ranks_by_the_derivative_along_the_unit_vector(own, k, data):
    manifold, x = own(data % 1000)
    egrad = noise(*x.shape, data=data % 1000 + 1)
    f = manifold.direction(x, torch.arange(manifold.num_coordinates(x)).expand(3, -1))
    norm = manifold.inner(x.unsqueeze(-2), f).sqrt()
    slope = (f * egrad.unsqueeze(-2)).sum(-1).abs() / norm
    block = Block(size=k).select(GradientView(manifold, x, egrad))
    assert block.index.tolist() == slope.argsort(-1, descending=True)[:, :k].tolist()


@every_own
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_a_user_s_manifold_converges_with_every_selection(own, selection):
    manifold, x = own(0)
    target = own(1)[1]
    p = ManifoldParameter(x.clone(), manifold=manifold)
    # In the ellipsoidal metric the Hessian of (1/2)Σ aᵢ(pᵢ − tᵢ)² is the identity.
    weight = getattr(manifold, "a", torch.ones((), dtype=torch.float64))
    optimizer = SRCD([p], 0.3, selection)
    for _ in range(150):
        optimizer.zero_grad()
        (weight * (p - target).square()).sum().div(2).backward()
        optimizer.step()
    assert manifold.check_point_on_manifold(p.detach(), atol=1e-9)
    assert (
        float(
            manifold.dist(p.detach(), target).max() if False else (p - target).detach().abs().max()
        )
        < 1e-2
    )


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
@pytest.mark.parametrize("by_host", [True, False])
def test_directions_that_vanish_at_a_point_move_nothing(selection, by_host, monkeypatch):
    """At e₀ only the rotations of the first entry move; 0/0 must not spoil the point."""
    monkeypatch.setattr(SRCD, "_checked_by_host", lambda *_: by_host)
    manifold = RotatedSphere()
    x = torch.eye(5, dtype=torch.float64)[0]
    for number in range(10):  # also where they are the ones that are selected
        p = ManifoldParameter(x.clone(), manifold=manifold)
        p.grad = noise(5, data=number)
        optimizer = SRCD([p], 0.1, selection, seed=number)
        optimizer.state[p]["step"] = number
        optimizer.step()
        optimizer.check_finite()
        assert manifold.check_point_on_manifold(p.detach(), atol=1e-9)
        if selection == GaussSouthwell():
            largest = 1 + int(p.grad[1:].abs().argmax())
            assert (p != x).nonzero().flatten().tolist() == [0, largest]


def test_all_coordinates_of_an_orthogonal_basis_are_the_gradient_step():
    """On the ellipsoidal space, whose directions are orthogonal but not of norm 1."""
    manifold, x = OWN["ellipsoidal"](0)
    p, q = (ManifoldParameter(x.clone(), manifold=manifold) for _ in range(2))
    p.grad = noise(*x.shape, data=1)
    q.grad = p.grad.clone()
    SRCD([p], 0.1, Everything()).step()
    SRGD([q], 0.1).step()
    torch.testing.assert_close(p.detach(), q.detach())


@every_own
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_a_user_s_manifold_is_guarded_as_on_an_accelerator(own, selection, monkeypatch):
    """The base class's descend_ does what the step does on a CPU, and keeps bad coordinates."""
    manifold, x = own(0)
    outcomes = []
    for by_host in (True, False):
        monkeypatch.setattr(SRCD, "_checked_by_host", lambda *_, by_host=by_host: by_host)
        p = ManifoldParameter(x.clone(), manifold=manifold)
        p.grad = noise(*x.shape, data=1)
        optimizer = SRCD([p], 0.1, selection)
        for _ in range(3):
            optimizer.step()
        outcomes.append(p.detach().clone())
    torch.testing.assert_close(*outcomes)
    p.grad[:] = math.nan
    optimizer.step()
    assert torch.equal(p, outcomes[1])
    with pytest.raises(FloatingPointError):
        optimizer.check_finite()
