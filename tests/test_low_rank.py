"""Steps along gradients of low rank are the dense ones, from products with factors."""

import math

import geoopt
import numpy as np
import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, defect, dims, noises
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from givens.manifolds import (
    Grassmann,
    OrthogonalGroup,
    Power,
    SpecialOrthogonalGroup,
    SpecialUnitaryGroup,
    Sphere,
    Stiefel,
    UnitaryGroup,
)
from givens.manifolds.low_rank import cayley_turn, exponential_turn
from givens.optim import SRGD, Adam, Armijo, Randomness, finite
from givens.optim.base import ManifoldOptimizer
from givens.optim.sketch import sketch

SPACES = {
    "O": (OrthogonalGroup("cayley"), True),
    "SO": (SpecialOrthogonalGroup("cayley"), True),
    "U": (UnitaryGroup("cayley"), True),
    "St": (Stiefel(retraction="cayley"), False),
    "St canonical": (Stiefel("canonical", "cayley"), False),
    "Gr": (Grassmann(), False),
}
every_space = pytest.mark.parametrize("name", SPACES)
every_map = pytest.mark.parametrize("map", ["expmap", "retr"])


def low_rank(noise: Noise, *shape: int, rank: int, dtype: torch.dtype = torch.float64) -> Tensor:
    *batch, n, p = shape
    left = noise.normal(*batch, n, rank, dtype=dtype)
    return left @ noise.normal(*batch, rank, p, dtype=dtype) / math.sqrt(n * rank)


def problem(name, noise: Noise, batch=(), n=20, p=14, rank=3):
    """A point, and a gradient of low rank."""
    manifold, square = SPACES[name]
    dtype = torch.complex128 if name == "U" else torch.float64
    shape = (*batch, n, n if square else p)
    x = manifold.random(*shape, dtype=dtype, generator=noise.generator).as_subclass(Tensor)
    return manifold, x, low_rank(noise, *shape, rank=rank, dtype=dtype)


def stepped(manifold, x: Tensor, gradients, lr: float, **options) -> Tensor:
    p = ManifoldParameter(x.clone(), manifold=manifold)
    optimizer = SRGD([p], lr, **options)
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    return p.detach().as_subclass(Tensor)


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@given(noises, st.integers(1, 8), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_turns_are_functions_of_the_skew_matrix(noise, n, p, k, complex_numbers):
    """Against scipy: expm(L)x, and (I − L/2)⁻¹(I + L/2)x, for any x, and factors of any rank."""
    dtype = torch.complex128 if complex_numbers else torch.float64
    k = min(k, n)
    x = noise.normal(n, p, dtype=dtype)
    q = torch.linalg.qr(noise.normal(n, k, dtype=dtype)).Q
    r = noise.normal(p, k, dtype=dtype)
    r[:, : k // 2] = 0
    a = q @ (x @ r).mH
    a, identity = (a - a.mH).numpy(), np.eye(n)
    expected = scipy.linalg.expm(a) @ x.numpy()
    scale = 1 + np.abs(a).sum()
    assert_same(exponential_turn(x, q, r), torch.from_numpy(expected), 1e-13 * scale**2)
    expected = np.linalg.solve(identity - a / 2, (identity + a / 2) @ x.numpy())
    assert_same(cayley_turn(x, q, r), torch.from_numpy(expected), 1e-13 * scale**2)


@every_space
@every_map
@given(noises, st.integers(1, 5), st.integers(0, 3), st.floats(1e-3, 3.0), st.booleans())
def test_steps_are_the_dense_ones(name, map, noise, rank, more, lr, maximize):
    manifold, x, gradient = problem(name, noise, rank=rank)
    gradients = [gradient, gradient.roll(1, 0), gradient.roll(1, 1)]
    options = {"map": map, "maximize": maximize}
    actual = stepped(manifold, x, gradients, lr, rank=rank + more, **options)
    assert_same(actual, stepped(manifold, x, gradients, lr, **options), 1e-10)


@every_space
@given(noises, batch_shapes, dims, dims, st.integers(1, 12))
def test_any_shape_and_any_rank(name, noise, batch, n, p, rank):
    """Of points smaller than the rank, too, with a gradient of full rank."""
    manifold, x, gradient = problem(name, noise, batch, max(n, p), min(n, p), rank)
    assert_same(
        stepped(manifold, x, [gradient], 0.5, rank=rank), stepped(manifold, x, [gradient], 0.5)
    )


@every_space
@every_map
def test_float32_follows_float64(name, map):
    manifold, x, gradient = problem(name, Noise(0), n=60, p=30, rank=4)
    narrow = torch.complex64 if x.is_complex() else torch.float32
    actual = stepped(manifold, x.to(narrow), [gradient.to(narrow)] * 5, 1.0, map=map, rank=4)
    expected = stepped(manifold, x, [gradient] * 5, 1.0, map=map)
    assert_same(actual.to(x.dtype), expected, 2e-5)


def test_long_turns_leave_a_point_orthogonal():
    """With a basis as a factorization leaves it they would take it away twice as far."""
    for seed in range(3):
        noise = Noise(seed)
        x = noise.point(64, 64, dtype=torch.float32)
        for _ in range(20):
            q = torch.linalg.qr(noise.normal(64, 8, dtype=torch.float32)).Q
            x = exponential_turn(x, q, noise.normal(64, 8, dtype=torch.float32))
        assert defect(x) < 6e-7


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_long_steps_do_not_magnify_rounding(rank):
    """One that trusted xᵀx = I would, and grow until nothing is left."""
    noise, manifold = Noise(0), OrthogonalGroup("cayley")
    x = manifold.random(48, 48, generator=noise.generator).as_subclass(Tensor)
    p = ManifoldParameter(x, manifold=manifold)
    optimizer = SRGD([p], 30.0, map="retr", rank=rank)
    for _ in range(200):
        p.grad = low_rank(noise, 48, 48, rank=rank, dtype=torch.float32)
        optimizer.step()
        assert defect(p) < 5e-5


@given(noises, batch_shapes, st.integers(1, 30), st.integers(1, 30), st.integers(1, 12))
def test_a_sketch_is_a_projection_on_a_part_of_the_columns(noise, batch, n, p, rank):
    matrix = noise.normal(*batch, n, p)
    left, right = sketch(matrix, rank, Randomness(noise.seed, 0, 0, matrix.device))
    k = min(rank + 8, n, p)
    assert left.shape == (*batch, n, k)
    assert right.shape == (*batch, p, k)
    assert_same(left.mT @ left, torch.eye(k, dtype=torch.float64).expand(*batch, k, k))
    assert_same(right, matrix.mT @ left)
    # … of its own columns.
    inside = matrix @ torch.linalg.lstsq(matrix, left).solution
    assert_same(inside, left, 1e-7)


def test_a_sketch_finds_what_is_large():
    """Halko, Martinsson and Tropp's theorem 10.5: E‖A − QQᵀA‖² <= (1 + k/(p − 1))·Σ_{j>k} σ_j²."""
    noise, rank = Noise(0), 6
    sizes = 0.8 ** torch.arange(40, dtype=torch.float64)
    matrix = noise.point(60, 60)[:, :40] * sizes @ noise.point(50, 50)[:, :40].mT
    errors = []
    for step in range(50):
        left, right = sketch(matrix, rank, Randomness(0, step, 0, matrix.device))
        errors.append(float((matrix - left @ right.mT).square().sum()))
    assert np.mean(errors) <= (1 + rank / 7) * float(sizes[rank:].square().sum())
    assert np.std(errors) > 0  # fresh at every step


@given(noises)
def test_one_column_suffices(noise):
    """Data that touch a few columns only: signs in place of real numbers would often fail there."""
    x = noise.point(40, 40)
    gradient = torch.zeros(40, 40, dtype=torch.float64)
    gradient[:, :2] = noise.normal(40, 2)
    manifold = OrthogonalGroup()
    assert_same(
        stepped(manifold, x, [gradient], 0.3, rank=2), stepped(manifold, x, [gradient], 0.3)
    )


def test_a_higher_rank_is_followed_in_part_and_by_the_seed():
    manifold, x, gradient = problem("O", Noise(1), n=40, rank=40)
    one, again, other = (
        stepped(manifold, x, [gradient] * 2, 0.3, rank=2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(
        one,
        stepped(manifold, stepped(manifold, x, [gradient], 0.3, rank=2), [gradient], 0.3, rank=2),
    )
    assert (one - other).abs().max() > 1e-3
    dense = stepped(manifold, x, [gradient], 0.3)
    assert (one - dense).abs().max() > 1e-3
    assert defect(one) < 1e-12


def test_a_gradient_of_zero_leaves_the_point():
    manifold, x, gradient = problem("St", Noise(0))
    assert_same(stepped(manifold, x, [0 * gradient], 1.0, rank=3), x, 1e-15)


def test_a_resumed_run_goes_on():
    manifold, x, gradient = problem("O", Noise(1), n=40, rank=40)

    def build(x):
        p = ManifoldParameter(x.clone(), manifold=manifold)
        p.grad = gradient.clone()
        return p, SRGD([p], 0.3, rank=2, seed=4)

    p, optimizer = build(x)
    for _ in range(3):
        optimizer.step()
    q, resumed = build(p.detach().as_subclass(Tensor))
    resumed.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        optimizer.step()
        resumed.step()
    assert torch.equal(p, q)


def test_a_line_search_finds_what_it_finds_along_the_dense_step():
    manifold, x, target = problem("O", Noise(2), rank=2)
    ends = []
    for rank in (None, 2):
        p = ManifoldParameter(x.clone(), manifold=manifold)
        optimizer = SRGD([p], 16.0, line_search=Armijo(), rank=rank)

        def closure(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (p * target).sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        ends.append(p.detach())
    assert_same(ends[1], ends[0], 1e-10)


@every_space
@every_map
def test_steps_are_the_same_where_nobody_waits(name, map, monkeypatch):
    """As on an accelerator; there a gradient that is not finite stops what follows."""
    manifold, x, gradient = problem(name, Noise(3))
    expected = stepped(manifold, x, [gradient] * 3, 0.1, map=map, rank=3)
    monkeypatch.setattr(ManifoldOptimizer, "_checked_by_host", lambda *_: False)
    monkeypatch.setattr(finite, "readable", lambda _: False)
    assert_same(stepped(manifold, x, [gradient] * 3, 0.1, map=map, rank=3), expected, 1e-14)
    for bad in (math.nan, math.inf):
        broken = gradient.clone()
        broken[2, 1] = bad
        assert torch.equal(stepped(manifold, x, [broken, gradient], 0.1, map=map, rank=3), x)


class Slope:
    """A line search that takes no step, and keeps the derivative along it and what it is by differences."""

    def search(self, line):
        ahead, back = (line.along(h).value for h in (1e-6, -1e-6))
        self.found, self.expected = line.slope, (ahead - back) / 2e-6


def test_the_slope_is_that_of_the_step_that_is_taken():
    """Of a gradient whose rank is higher than that of the step."""
    manifold, x, target = problem("O", Noise(2), n=30, rank=30)
    p, search = ManifoldParameter(x.clone(), manifold=manifold), Slope()
    optimizer = SRGD([p], 1.0, line_search=search, rank=1)

    def closure():
        optimizer.zero_grad()
        loss = (p * target).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert search.found == pytest.approx(search.expected, rel=1e-5)
    assert torch.equal(p.detach(), x)


def test_parameters_without_a_manifold_take_their_whole_gradient():
    p = torch.nn.Parameter(torch.zeros(30, 30, dtype=torch.float64))
    p.grad = torch.randn_like(p)
    SRGD([p], 0.5, rank=1).step()
    assert_same(p.detach(), -0.5 * p.grad)


@pytest.mark.parametrize(("n", "p"), [(256, 256), (256, 192)])
@every_map
def test_no_product_is_of_a_whole_point(n, p, map):
    """The flops of a step grow with the rank: those of a dense one are over 8np²."""
    manifold = OrthogonalGroup("cayley") if n == p else Stiefel(retraction="cayley")
    point = ManifoldParameter(manifold.random(n, p), manifold=manifold)
    point.grad = torch.ones(n, p)
    optimizer = SRGD([point], 0.1, map=map, rank=8)
    optimizer.step()
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() <= 40 * n * p * 16


@pytest.mark.parametrize(("rank", "due"), [(8, 5), (120, 4)])
def test_restoration_is_due_after_4d_over_k_steps_or_half_the_root_of_d(rank, due, monkeypatch):
    manifold, made, restored = OrthogonalGroup("cayley"), [], []
    monkeypatch.setattr(
        OrthogonalGroup, "restore_", lambda self, x: restored.append(len(made)) or x
    )
    p = ManifoldParameter(manifold.random(128, 128), manifold=manifold)
    optimizer = SRGD([p], 0.1, map="retr", rank=rank)
    p.grad = torch.ones(128, 128)
    for _ in range(64):
        made.append(None)
        optimizer.step()
    assert restored == [*range(due, 65, due)]


class Own(OrthogonalGroup):
    """Has an exponential of its own."""

    def expmap(self, x, u):
        return super().expmap(x, 2 * u)


@pytest.mark.parametrize(
    ("manifold", "map", "message"),
    [
        (Sphere(), "expmap", "a manifold of orthonormal columns"),
        (SpecialUnitaryGroup(), "expmap", "a manifold of orthonormal columns"),
        (Power(OrthogonalGroup()), "expmap", "a manifold of orthonormal columns"),
        (OrthogonalGroup("qr"), "retr", "map='expmap'"),
        (Stiefel(retraction="polar"), "retr", "map='expmap'"),
        (Own(), "expmap", "a manifold of orthonormal columns"),
        (geoopt.EuclideanStiefel(), "retr", "a manifold of orthonormal columns"),
    ],
    ids=repr,
)
def test_who_has_no_such_steps_says_so(manifold, map, message):
    shape = (2, 3, 3) if isinstance(manifold, Power) else (3, 3)
    x = manifold.random(*shape)
    p = ManifoldParameter(x, manifold=manifold)
    with pytest.raises(TypeError, match=f"no steps of low rank by map='{map}'.*rank=2.*{message}"):
        SRGD([p], 0.1, map=map, rank=2)
    if hasattr(manifold, "follow_low_rank"):
        with pytest.raises(NotImplementedError, match=f"no form of {map} for gradients of low"):
            manifold.follow_low_rank(x, x[..., :1], x[..., :1], map=map)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank=0: expected 1 or more"),
        ({"rank": 2.0}, TypeError, "rank=2.0: expected an integer"),
        ({"seed": 0.5}, TypeError, "seed=0.5: expected an integer"),
        ({"rank": 2, "momentum": 0.9}, ValueError, "rank=2 and momentum=0.9"),
        ({"rank": 2, "weight_decay": 0.1}, ValueError, "rank=2 and weight_decay=0.1"),
        ({"rank": 2, "scaling": Adam()}, ValueError, "rank=2 and scaling=Adam"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(options, error, message):
    p = ManifoldParameter(torch.eye(3), manifold=OrthogonalGroup())
    with pytest.raises(error, match=message):
        SRGD([p], 0.1, **options)
