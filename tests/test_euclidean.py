"""Euclidean space: the laws of coordinates, with translations."""

import math
from itertools import product

import geoopt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, Noise, batch_shapes, dtypes, error, layouts, noises

from givens.manifolds import All, Coordinates, Euclidean, Groups

point_shapes = st.sampled_from([(1,), (5,), (3, 4), (2, 1), (2, 3, 2)])


def some_block(noise, batch, n, *, everything):
    """A block, with numbers that may occur twice, and times of its shape."""
    if everything:
        return All(), noise.normal(*batch, n)
    block = Coordinates(noise.integers(n, *batch, 4), disjoint=False)
    return block, noise.normal(*batch, 4)


def entries(block, point):
    """What is added, entry by entry, in plain Python."""

    def added(x, t):
        flat = x.double().flatten().tolist()
        numbers = range(len(flat)) if isinstance(block, All) else block.index.tolist()
        for i, s in zip(numbers, t.tolist(), strict=True):
            flat[i] += s
        return torch.tensor(flat, dtype=torch.float64).view(point)

    return added


@given(batch_shapes, point_shapes, dtypes)
def test_there_is_a_coordinate_for_every_entry(batch, point, dtype):
    space = Euclidean(len(point))
    x = torch.zeros(*batch, *point, dtype=dtype)
    n = math.prod(point)
    assert space.num_axes(x) == space.num_coordinates(x) == n
    index = torch.arange(n)
    assert torch.equal(space.axes(x, index), index.unsqueeze(-1))
    basis = space.direction(x, index)
    assert basis.dtype == dtype
    assert basis.shape == (*batch, n, *point)
    flat = basis.flatten(-len(point))
    assert torch.equal(flat, torch.eye(n, dtype=dtype).expand(*batch, n, n))
    assert float(space.step_scale(x, All())) == 1.0


@pytest.mark.parametrize("everything", [True, False])
@given(batch_shapes, point_shapes, noises)
def test_derivatives_are_those_of_the_cost_along_the_moves(everything, batch, point, noise: Noise):
    space = Euclidean(len(point))
    x = noise.normal(*batch, *point)
    target = noise.like(x)
    block, t = some_block(noise, batch, math.prod(point), everything=everything)

    def cost(x):
        return ((x * target).sin() * target).sum()

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(cost(y), y)
    derivatives = space.derivatives(x, egrad, block)
    assert derivatives.shape == t.shape
    _, expected = torch.func.jvp(
        lambda s: cost(space.move(x, block, s)), (torch.zeros_like(t),), (t,)
    )
    assert error((derivatives * t).sum(), expected) <= 1e-11
    # The coefficients of the gradient in the basis.
    index = torch.arange(math.prod(point)) if everything else block.index
    directions = space.direction(x, index).flatten(-len(point))
    gradient = egrad.flatten(-len(point)).unsqueeze(-2)
    assert error(derivatives, (directions * gradient).sum(-1)) <= 1e-14


@pytest.mark.parametrize("everything", [True, False])
@given(batch_shapes, point_shapes, dtypes, noises)
def test_a_move_adds_the_times_to_the_entries(everything, batch, point, dtype, noise: Noise):
    space = Euclidean(len(point))
    x = noise.normal(*batch, *point, dtype=dtype)
    block, t = some_block(noise, batch, math.prod(point), everything=everything)
    t = t.to(dtype)
    limit = 20 * torch.finfo(dtype).eps
    reversed_order = x.flip(-1).contiguous().flip(-1)
    for y in [*(layouts(x) if x.dim() > 1 else [x.clone()]), reversed_order]:
        kept = y.clone()
        outside = space.move(y, block, t)
        assert torch.equal(y, kept)
        assert space.move_(y, block, t) is y
        assert y.dtype == dtype
        assert torch.equal(outside, y)
        for at in product(*map(range, batch)):
            own = block if everything else Coordinates(block.index[at], disjoint=False)
            assert error(y[at], entries(own, point)(kept[at], t[at])) <= limit
            assert error(y[at], space.move(kept[at], own, t[at])) <= limit
        assert error(space.move(y, block, -t), kept) <= limit


@given(batch_shapes, point_shapes, dtypes, noises)
def test_one_block_serves_a_whole_batch(batch, point, dtype, noise: Noise):
    space = Euclidean(len(point))
    x, egrad = (noise.normal(*batch, *point, dtype=dtype) for _ in range(2))
    block, t = some_block(noise, (), math.prod(point), everything=False)
    t = t.to(dtype).expand(*batch, 4)
    expanded = Coordinates(block.index.expand(*batch, 4), disjoint=False)
    assert torch.equal(space.move(x, block, t), space.move(x, expanded, t))
    derivatives = space.derivatives(x, egrad, block)
    assert torch.equal(derivatives, space.derivatives(x, egrad, expanded))
    assert derivatives.shape == (*batch, 4)


@given(batch_shapes, point_shapes, dtypes, noises)
def test_a_move_along_everything_is_the_exponential(batch, point, dtype, noise: Noise):
    space = Euclidean(len(point))
    x, u = (noise.normal(*batch, *point, dtype=dtype) for _ in range(2))
    t = space.derivatives(x, u, All())
    assert torch.equal(space.move(x, All(), t), space.expmap(x, u))
    assert torch.equal(u.flatten(-len(point)), t)
    t.zero_()  # derivatives own their memory: the gradient is never changed
    assert not torch.equal(space.derivatives(x, u, All()), t)


@given(batch_shapes, point_shapes, dtypes, noises)
def test_steepest_are_the_largest_entries(batch, point, dtype, noise: Noise):
    space = Euclidean(len(point))
    x, egrad = (noise.normal(*batch, *point, dtype=dtype) for _ in range(2))
    n = math.prod(point)
    k = 1 + int(noise.integers(n, 1))
    index, derivatives = space.steepest(x, egrad, k)
    block = Coordinates(index, disjoint=True)
    assert torch.equal(space.derivatives(x, egrad, block), derivatives)
    largest = egrad.flatten(-len(point)).abs().sort(-1, descending=True).values[..., :k]
    assert torch.equal(derivatives.abs(), largest)
    egrad[..., -1] = torch.nan
    assert space.steepest(x, egrad, 1)[1].isnan().all()


@given(batch_shapes, point_shapes, dtypes, noises, st.floats(0, 2))
def test_descend_is_the_three_verbs_and_nothing_needs_restoring(
    batch, point, dtype, noise: Noise, lr
):
    space = Euclidean(len(point))
    x, egrad = (noise.normal(*batch, *point, dtype=dtype) for _ in range(2))
    block, _ = some_block(noise, batch, math.prod(point), everything=False)
    expected = space.move(x, block, -lr * space.derivatives(x, egrad, block))
    kept = x.clone()
    assert space.restore_(x) is x
    assert torch.equal(x, kept)
    assert space.descend_(x, egrad, block, lambda f, norm: -lr * f / norm) is x
    assert torch.equal(x, expected)


@given(batch_shapes, point_shapes, dtypes, noises)
def test_the_geometry_is_flat(batch, point, dtype, noise: Noise):
    space = Euclidean(len(point))
    x, u, v = (noise.normal(*batch, *point, dtype=dtype) for _ in range(3))
    assert space.check_point_on_manifold(x)
    assert torch.equal(space.expmap(x, u), x + u)
    assert error(space.logmap(x, x + u), u) <= 8 * torch.finfo(dtype).eps
    assert torch.equal(space.transp(x, x + u, v), v)
    inner = (u * v).sum(tuple(range(-len(point), 0)))
    assert error(space.inner(x, u, v), inner) <= 50 * torch.finfo(dtype).eps
    assert space.inner(x, u, v).shape == batch


@given(batch_shapes, point_shapes, dtypes, noises)
def test_the_metric_broadcasts_and_keeps_dimensions(batch, point, dtype, noise: Noise):
    """Vectors without a batch are vectors at every point of one; there may be no point at all."""
    space = Euclidean(len(point))
    ones = (1,) * len(point)
    x, y, v = (noise.normal(*batch, *point, dtype=dtype) for _ in range(3))
    u = noise.normal(*point, dtype=dtype)
    limit = 100 * torch.finfo(dtype).eps
    dims = tuple(range(-len(point), 0))
    for points in ((x, y, v), tuple(z[None][:0] for z in (x, y, v))):
        a, b, w = points
        shape = a.shape[: a.dim() - len(point)]
        results = {
            "inner": (space.inner(a, u, w), (u * w).sum(dims)),
            "norm": (space.norm(a, u), u.square().sum(dims).sqrt().expand(shape)),
            "dist": (space.dist(a, b), (a - b).square().sum(dims).sqrt()),
            "dist2": (space.dist2(a, b), (a - b).square().sum(dims)),
        }
        for result, expected in results.values():
            assert result.shape == shape
            assert error(result, expected) <= limit
        for result in (
            space.inner(a, u, w, keepdim=True),
            space.norm(a, u, keepdim=True),
            space.dist(a, b, keepdim=True),
        ):
            assert result.shape == (*shape, *ones)
        for vector in (space.proju(a, u), space.egrad2rgrad(a, u), space.transp(a, b, u)):
            assert torch.equal(vector, u.expand_as(a))
        assert torch.equal(space.component_inner(a, u, w), u * w)


@given(batch_shapes, point_shapes, dtypes)
def test_random_points_are_normal_and_repeat_with_their_generator(batch, point, dtype):
    space = Euclidean(len(point))

    def draw(seed, **options):
        generator = torch.Generator().manual_seed(seed)
        return space.random(*batch, *point, dtype=dtype, generator=generator, **options)

    x = draw(1)
    assert (x.shape, x.dtype, x.manifold) == ((*batch, *point), dtype, space)
    expected = torch.randn((*batch, *point), dtype=dtype, generator=Noise(1).generator)
    assert torch.equal(x, expected)
    assert error(draw(1, mean=2.0, std=0.5), 2 + 0.5 * expected) <= 4 * torch.finfo(dtype).eps
    assert not torch.equal(draw(2), x)


def test_geoopt_s_space_has_no_norm_in_three_dimensions_and_no_empty_batch():
    x = torch.zeros(2, 3, 4)
    for name in ("norm", "dist"):
        with pytest.raises(RuntimeError, match="2-tuple"):
            getattr(geoopt.Euclidean(3), name)(x, x)
        assert float(getattr(Euclidean(3), name)(x, x)) == 0.0
    for name in ("inner", "proju", "egrad2rgrad"):
        with pytest.raises(RuntimeError, match="must match"):
            getattr(geoopt.Euclidean(2), name)(x[:0], x[:0])
        assert getattr(Euclidean(2), name)(x[:0], x[:0]).shape[0] == 0


def test_geoopt_s_space_takes_a_norm_for_one_point_and_anything_for_a_point():
    x = torch.zeros(5, 3)
    u = torch.ones(3)
    assert geoopt.Euclidean(1).norm(x, u).shape == ()
    assert geoopt.Euclidean(1).inner(x, u).shape == Euclidean(1).norm(x, u).shape == (5,)
    for bad in (torch.full((3,), torch.nan), torch.tensor([math.inf]), torch.ones(3).long()):
        assert geoopt.Euclidean(1).check_point_on_manifold(bad)
        assert not Euclidean(1).check_point_on_manifold(bad)
    assert not Euclidean(1).check_vector_on_tangent(u, u * math.nan)


def test_norm_and_distance_have_a_gradient_at_zero():
    x = torch.ones(2, 3, 4, requires_grad=True)
    u = torch.zeros(2, 3, 4, requires_grad=True)
    for value, tensor in (
        (Euclidean(2).norm(x, u), u),
        (Euclidean(3).norm(x, u), u),
        (Euclidean(2).dist(x, x.detach()), x),
    ):
        (gradient,) = torch.autograd.grad(value.sum(), tensor)
        assert not gradient.any()


def test_geoopt_s_scaled_still_finds_the_arguments():
    """It rescales ``std`` by its name."""
    torch.manual_seed(0)
    x = geoopt.Scaled(Euclidean(), 2.0).random(1000, dtype=torch.float64)
    assert 0.4 < float(x.std()) < 0.6


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_move_never_waits_for_the_device(dtype):
    """A meta tensor has no data, so whatever reads any raises."""
    space = Euclidean(2)
    x = torch.empty(3, 4, 5, device="meta", dtype=dtype)
    block = Coordinates(torch.empty(3, 2, device="meta", dtype=torch.int64), disjoint=True)
    t = space.derivatives(x, torch.empty_like(x), block)
    assert (t.shape, t.dtype, t.device) == ((3, 2), dtype, x.device)
    assert space.move_(x, block, t) is x


# Bad input


def coordinates(*numbers, disjoint=True, dtype=torch.int64):
    return Coordinates(torch.tensor(numbers, dtype=dtype), disjoint)


@pytest.mark.parametrize(
    ("error_type", "match", "block"),
    [
        (IndexError, "coordinate 12 does not exist.*has 12", coordinates(0, 12)),
        (IndexError, "coordinate -1 does not exist", coordinates(-1, 3)),
        (TypeError, "int32.*expected torch.int64", coordinates(0, 1, dtype=torch.int32)),
        (ValueError, "axis 7 is in two places.*disjoint=False", coordinates(7, 7)),
        (NotImplementedError, "use Coordinates or All", Groups(torch.tensor([[0, 1]]))),
    ],
)
def test_blocks_that_cannot_be(error_type, match, block):
    space = Euclidean(2)
    x = Noise(0).normal(3, 4)
    kept = x.clone()
    for call in (
        lambda: space.derivatives(x, x, block),
        lambda: space.move_(x, block, torch.ones(2).double()),
    ):
        with pytest.raises(error_type, match=match):
            call()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("block", [coordinates(0, 11), All()])
def test_times_and_gradients_that_cannot_be(block):
    space = Euclidean(2)
    x = Noise(0).normal(3, 4)
    kept = x.clone()
    for t, error_type in ((torch.ones(5).double(), ValueError), (torch.ones(2).long(), TypeError)):
        with pytest.raises(error_type, match="times"):
            space.move_(x, block, t)
    for egrad in (x.float(), x[:2]):
        with pytest.raises(TypeError, match="egrad is"):
            space.derivatives(x, egrad, block)
    with pytest.raises(TypeError, match="float32 and float64"):
        space.move_(x.bfloat16(), block, torch.ones(()))
    assert torch.equal(x, kept)
    half = torch.tensor(0.5, dtype=torch.float64)
    expected = x.clone().flatten()
    expected[block.index if isinstance(block, Coordinates) else slice(None)] += 0.5
    assert torch.equal(space.move(x, block, half).flatten(), expected)


@pytest.mark.parametrize("ndim", [0, -1])
def test_a_point_has_a_dimension(ndim):
    with pytest.raises(ValueError, match=f"ndim={ndim}: .* at least one dimension"):
        Euclidean(ndim)


def test_a_point_of_too_few_dimensions():
    assert not Euclidean(2).check_point(torch.zeros(3))
    with pytest.raises(ValueError, match="not valid"):
        Euclidean(2).assert_check_point(torch.zeros(3))
