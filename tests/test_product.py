"""Products: the factors packed in one point, and their coordinates in one list."""

import itertools
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
from torch.utils._python_dispatch import TorchDispatchMode

from givens.manifolds import (
    All,
    CoordinateBlock,
    Coordinates,
    Euclidean,
    Groups,
    OrthogonalGroup,
    Power,
    Product,
    Scaled,
    SpecialOrthogonalGroup,
    Sphere,
    Stiefel,
    UnitaryGroup,
)
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, GradientView, Uniform

MOTIONS = Product(
    (OrthogonalGroup(), (3, 3)), (Euclidean(), (4,)), (Scaled(Euclidean(), 2.0), (3,))
)
# Frames, of bounds (1, 1) and (1, 2), whose exponential is not their motions.
FRAMES = Product((Sphere(), 4), (Stiefel(), (4, 2)), (OrthogonalGroup(), (2, 2)))
NESTED = Product(
    (Power(SpecialOrthogonalGroup()), (2, 3, 3)),
    (Product((Euclidean(2), (2, 2)), (Scaled(Sphere(), 0.5), 3)), 7),
    (Sphere(), 3),
)
PRODUCTS = {"motions": MOTIONS, "frames": FRAMES, "nested": NESTED}
KINDS = ["one", "disjoint", "overlapping", "groups", "all"]
every_product = pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
few = settings(max_examples=4)  # for every product and kind of block
every_kind = pytest.mark.parametrize("kind", KINDS)


def a_point(product: Product, noise: Noise, *batch: int, dtype=torch.float64) -> Tensor:
    x = product.random(*batch, product.n_elements, dtype=dtype, generator=noise.generator)
    return x.as_subclass(Tensor)


def a_tangent(product: Product, noise: Noise, x: Tensor) -> Tensor:
    return product.proju(x, noise.like(x))


def disjoint_numbers(product: Product, noise: Noise, x: Tensor) -> list[int]:
    """Coordinates without a common axis: of a random order, those that fit."""
    used: set[int] = set()
    taken = []
    order = noise.permutations((), product.num_coordinates(x))
    for number, axes in zip(order.tolist(), product.axes(x, order).tolist(), strict=True):
        if not used & set(axes):
            used |= set(axes)
            taken.append(number)
    return taken


def some_groups(product: Product, noise: Noise) -> Tensor:
    """Two axes of each of two copies of a factor that turns pairs: groups of 2, shape (n, 2)."""
    groups = []
    for i, (manifold, shape) in enumerate(zip(product.manifolds, product.shapes, strict=True)):
        if not isinstance(manifold, Euclidean | Scaled | Product):
            n = manifold.base.num_axes(torch.empty(shape)) if isinstance(manifold, Power) else None
            n = n or manifold.num_axes(torch.empty(shape))
            pair = noise.permutations((), n)[:2].sort().values
            groups.append(product._first_axis[i] + pair)
    return torch.stack(groups)


def some_block(kind: str, product: Product, noise: Noise, batch: tuple[int, ...]):
    """A block of a kind, other coordinates for every point, and times of its shape."""
    x = torch.empty(product.n_elements)
    total = product.num_coordinates(x)
    if kind == "all":
        return All(), noise.normal(*batch, total)
    points = math.prod(batch)
    if kind == "groups":
        groups = torch.stack([some_groups(product, noise) for _ in range(points)])
        groups = groups.view(*batch, *groups.shape[1:])
        return Groups(groups), noise.skew(*groups.shape, groups.shape[-1])
    if kind == "disjoint":
        numbers = [disjoint_numbers(product, noise, x) for _ in range(points)]
        k = min(map(len, numbers))
        index = torch.tensor([each[:k] for each in numbers]).view(*batch, k)
        return Coordinates(index, disjoint=True), noise.normal(*batch, k)
    k = 1 if kind == "one" else 6
    index = noise.integers(total, *batch, k)
    return Coordinates(index, disjoint=kind == "one"), noise.normal(*batch, k)


def at_place(block: CoordinateBlock, at: tuple[int, ...]) -> CoordinateBlock:
    if isinstance(block, Coordinates):
        return Coordinates(block.index[at], block.disjoint)
    return Groups(block.axes[at]) if isinstance(block, Groups) else block


def by_factors(product: Product, block: CoordinateBlock, t: Tensor):
    """The block of one point dealt to the factors in plain Python: yields factor, its block, the places."""
    counts = [
        m.num_coordinates(torch.empty(s))
        for m, s in zip(product.manifolds, product.shapes, strict=True)
    ]
    axes = [
        m.num_axes(torch.empty(s)) for m, s in zip(product.manifolds, product.shapes, strict=True)
    ]
    for i in range(product.n_manifolds):
        first, first_axis = sum(counts[:i]), sum(axes[:i])
        if isinstance(block, All):
            yield i, block, list(range(first, first + counts[i]))
        elif isinstance(block, Groups):
            own = [
                p
                for p, group in enumerate(block.axes.tolist())
                if first_axis <= group[0] < first_axis + axes[i]
            ]
            if own:
                yield i, Groups(block.axes[own] - first_axis), own
        else:
            numbers = block.index.tolist()
            own = [p for p, number in enumerate(numbers) if first <= number < first + counts[i]]
            if own:
                yield i, Coordinates(block.index[own] - first, block.disjoint), own


def moved_apart(product: Product, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
    """One point, factor by factor: the motions of disjoint coordinates, and exponentials of the others."""
    parts = [part.clone() for part in product.unpack_tensor(x)]
    for i, own, places in by_factors(product, block, t):
        manifold, part, times = product.manifolds[i], parts[i], t[places]
        if isinstance(own, Coordinates) and not own.disjoint and t.shape[-1] > 1:
            f = manifold.direction(part, own.index)
            u = (times.view(-1, *(1,) * manifold.ndim) * f).sum(0)
            parts[i] = manifold.expmap(part, u)
        else:
            parts[i] = manifold.move(part, own, times)
    return product.pack_point(*parts)


def derivatives_apart(product: Product, x: Tensor, egrad: Tensor, block, t: Tensor) -> Tensor:
    result = torch.zeros_like(t)
    parts, grads = product.unpack_tensor(x), product.unpack_tensor(egrad)
    for i, own, places in by_factors(product, block, t):
        result[places] = product.manifolds[i].derivatives(parts[i], grads[i], own)
    return result


# Points: packing, and what geoopt's product gets wrong


@every_product
@settings(max_examples=10)
@given(batch_shapes, dtypes, noises)
def test_packing_and_unpacking_are_inverse(product, batch, dtype, noise: Noise):
    x = a_point(product, noise, *batch, dtype=dtype)
    parts = product.unpack_tensor(x)
    assert [part.shape[len(batch) :] for part in parts] == [torch.Size(s) for s in product.shapes]
    assert torch.equal(product.pack_point(*parts), x)
    for i, (manifold, part) in enumerate(zip(product.manifolds, parts, strict=True)):
        manifold.assert_check_point_on_manifold(part)
        part.zero_()  # a view
        assert not product.take_submanifold_value(x, i).any()


@every_product
def test_random_points_and_origins(product):
    size = (2, product.n_elements)
    for dtype in DTYPES:
        first, second = (
            product.random(*size, dtype=dtype, generator=torch.Generator().manual_seed(n))
            for n in (0, 1)
        )
        again = product.random(size, dtype=dtype, generator=torch.Generator().manual_seed(0))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        for x in (first, product.origin(*size, dtype=dtype)):
            assert (x.dtype, x.shape, x.manifold) == (dtype, size, product)
            product.assert_check_point_on_manifold(x)
    assert product.origin(size).dtype == torch.get_default_dtype()
    with pytest.raises(ValueError, match="expects"):
        product.random(product.n_elements + 1)


@every_product
@settings(max_examples=10)
@given(batch_shapes, noises)
def test_every_map_is_that_of_the_factors(product, batch, noise: Noise):
    x = a_point(product, noise, *batch)
    u, v = (0.3 * a_tangent(product, noise, x) for _ in range(2))
    y = product.expmap(x, u)
    calls = {
        "projx": (noise.like(x),),
        "proju": (x, noise.like(x)),
        "egrad2rgrad": (x, noise.like(x)),
        "expmap": (x, u),
        "logmap": (x, y),
        "retr": (x, u),
        "transp": (x, y, v),
        "transp_follow_expmap": (x, u, v),
        "transp_follow_retr": (x, u, v),
        "expmap_transp": (x, u, v),
        "retr_transp": (x, u, v),
        "component_inner": (x, u, v),
    }
    for name, tensors in calls.items():
        if name == "logmap" and product is FRAMES:
            continue  # the Euclidean Stiefel manifold has none in closed form
        result = getattr(product, name)(*tensors)
        parts = zip(*map(product.unpack_tensor, tensors), strict=True)
        expected = [getattr(m, name)(*own) for m, own in zip(product.manifolds, parts, strict=True)]
        pairs = name.endswith("_transp")
        for got, wanted in zip(
            result if pairs else [result],
            zip(*expected, strict=True) if pairs else [expected],
            strict=True,
        ):
            for part, own in zip(product.unpack_tensor(got), wanted, strict=True):
                assert torch.equal(part, own.expand_as(part))


@every_product
@settings(max_examples=10)
@given(batch_shapes, noises)
def test_the_metric_is_the_sum_of_the_factors(product, batch, noise: Noise):
    x = a_point(product, noise, *batch)
    u, v = (a_tangent(product, noise, x) for _ in range(2))
    parts = list(zip(*map(product.unpack_tensor, (x, u, v)), strict=True))
    of_factors = [m.inner(*own) for m, own in zip(product.manifolds, parts, strict=True)]
    assert error(product.inner(x, u, v), sum(of_factors)) <= 1e-13
    assert error(product.norm(x, u).square(), product.inner(x, u)) <= 1e-12
    for keepdim, shape in ((False, batch), (True, (*batch, 1))):
        for result in (
            product.inner(x, u, v, keepdim=keepdim),
            product.norm(x, u, keepdim=keepdim),
        ):
            assert result.shape == shape


@pytest.mark.parametrize("product", [MOTIONS, NESTED])
@given(batch_shapes, noises)
def test_distances_are_those_of_the_factors(product, batch, noise: Noise):
    x = a_point(product, noise, *batch)
    u = a_tangent(product, noise, x)
    u = u * (0.5 / product.norm(x, u, keepdim=True))
    y = product.expmap(x, u)
    assert error(product.dist(x, y), product.norm(x, u)) <= 1e-9
    assert error(product.dist2(x, y), product.inner(x, u)) <= 1e-9
    assert product.dist(x, y, keepdim=True).shape == product.dist2(x, y, keepdim=True).shape
    assert product.dist(x, y, keepdim=True).shape == (*batch, 1)


def test_geoopt_s_product_puts_a_point_at_a_distance_from_itself():
    """Its dist is clamped at √1e-15: equal points, and near ones, are 3e-8 apart, with no gradient."""
    theirs = geoopt.ProductManifold((geoopt.Euclidean(1), 2), (geoopt.Euclidean(1), 2))
    ours = Product((Euclidean(), 2), (Euclidean(), 2))
    x = torch.zeros(4, dtype=torch.float64)
    y = x + 1e-10
    for other in (x, y):
        assert float(theirs.dist(x, other)) == pytest.approx(3.16e-8, rel=1e-2)
    assert float(ours.dist(x, x)) == 0.0
    assert float(ours.dist(x, y)) == pytest.approx(2e-10)
    z = y.clone().requires_grad_()
    for product, slope in ((theirs, 0.0), (ours, 1.0)):
        (gradient,) = torch.autograd.grad(product.dist(x, z), z)
        assert float(gradient.norm()) == pytest.approx(slope)


def test_geoopt_s_product_has_no_gradient_of_the_norm_at_zero():
    theirs = geoopt.ProductManifold((geoopt.Euclidean(1), 2), (geoopt.Euclidean(1), 2))
    ours = Product((Euclidean(), 2), (Sphere(), 2))
    for product, finite in ((theirs, False), (ours, True)):
        u = torch.zeros(3, 4, requires_grad=True)
        x = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(3, 4)
        (gradient,) = torch.autograd.grad(product.norm(x, u).sum(), u)
        assert bool(gradient.isfinite().all()) is finite
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ours.dist(x, x.detach()).sum(), x)
    assert not gradient.any()


def test_geoopt_s_product_has_no_empty_batches_and_cannot_check_a_number():
    theirs = geoopt.ProductManifold((geoopt.Euclidean(1), 2), (geoopt.Euclidean(1), 2))
    ours = Product((Euclidean(), 2), (Euclidean(), 2))
    x = torch.zeros(0, 4)
    with pytest.raises(RuntimeError, match="reshape"):
        theirs.expmap(x, x)
    assert ours.expmap(x, x).shape == x.shape
    assert ours.inner(x, x).shape == ours.dist(x, x).shape == (0,)
    with pytest.raises(IndexError):
        theirs.check_point(torch.tensor(1.0))
    assert not ours.check_point(torch.tensor(1.0))


def test_geoopt_s_product_changes_the_type_of_a_part():
    parts = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    theirs = geoopt.ProductManifold((geoopt.Euclidean(1), 2), (geoopt.Euclidean(1), 2))
    assert theirs.pack_point(*parts).dtype == torch.float64
    with pytest.raises(TypeError, match=r"tensor 1 is .*float64 and tensor 0 .*float32"):
        Product((Euclidean(), 2), (Euclidean(), 2)).pack_point(*parts)


@pytest.mark.parametrize("name", ["expmap", "retr", "dist"])
def test_gradients_flow_to_every_factor(name):
    noise = Noise(0)
    x = a_point(MOTIONS, noise, 2).requires_grad_()
    other = a_point(MOTIONS, noise, 2) if name == "dist" else a_tangent(MOTIONS, noise, x.detach())
    if name == "dist":
        other = MOTIONS.expmap(x.detach(), 0.3 * a_tangent(MOTIONS, noise, x.detach()))
    other.requires_grad_()
    result = getattr(MOTIONS, name)(x, other)
    for gradient in torch.autograd.grad(result.sin().sum(), (x, other)):
        for part in MOTIONS.unpack_tensor(gradient):
            assert part.isfinite().all()
            assert part.any()


# The coordinates


@every_product
def test_coordinates_and_axes_are_numbered_through_the_factors(product):
    x = a_point(product, Noise(0), 2)
    axes = []
    first = 0
    for manifold, part in zip(product.manifolds, product.unpack_tensor(x), strict=True):
        index = torch.arange(manifold.num_coordinates(part))
        own = manifold.axes(part, index) + first
        axes.append(own.expand(len(index), 2))
        first += manifold.num_axes(part)
    assert product.num_axes(x) == first
    every = torch.arange(product.num_coordinates(x))
    assert torch.equal(product.axes(x, every), torch.cat(axes))
    assert torch.equal(product.axes(x, every.view(1, -1)), torch.cat(axes).unsqueeze(0))


def test_axes_of_translations_are_single_and_beside_rotations_named_twice():
    flat = Product((Euclidean(), 2), (Scaled(Euclidean(), 2.0), 3))
    assert flat.axes(torch.zeros(5), torch.tensor([1, 4])).tolist() == [[1], [4]]
    x = torch.zeros(16)
    assert MOTIONS.axes(x, torch.tensor([2, 3, 9])).tolist() == [[1, 2], [3, 3], [9, 9]]
    # However few of them turn two.
    assert MOTIONS.axes(x, torch.tensor([9])).tolist() == [[9, 9]]


@every_product
@settings(max_examples=10)
@given(batch_shapes, noises)
def test_directions_span_the_tangent_space_within_the_frame_bounds(product, batch, noise: Noise):
    x = a_point(product, noise, *batch)
    u = a_tangent(product, noise, x)
    f = product.direction(x, torch.arange(product.num_coordinates(x)))
    assert f.shape == (*batch, product.num_coordinates(x), product.n_elements)
    sums = product.inner(x.unsqueeze(-2), f, u.unsqueeze(-2).expand_as(f)).square().sum(-1)
    lower, upper = product.frame_bounds
    squared = product.inner(x, u)
    assert (sums >= (lower - 1e-12) * squared).all()
    assert (sums <= (upper + 1e-12) * squared).all()


def test_frame_bounds_are_the_widest():
    assert MOTIONS.frame_bounds == (1.0, 4.0)
    assert FRAMES.frame_bounds == (1.0, 2.0)
    assert NESTED.frame_bounds == (0.25, 1.0)

    class Unbounded(Euclidean):
        frame_bounds = None

    assert Product((Euclidean(), 2), (Unbounded(), 2)).frame_bounds is None


@every_kind
def test_step_scales_are_those_of_each_factor(kind):
    block, t = some_block(kind, MOTIONS, Noise(0), (2, 3))
    x = a_point(MOTIONS, Noise(0), 2, 3)
    scale = MOTIONS.step_scale(x, block)
    assert scale.shape == t.shape
    if kind == "groups":
        assert (scale == 1).all()
        return
    number = torch.arange(10).expand(t.shape) if kind == "all" else block.index
    assert torch.equal(scale, torch.where(number >= 7, 4.0, 1.0).double())


@every_product
@every_kind
@few
@given(batch_shapes, dtypes, noises)
def test_a_move_is_that_of_the_factors_apart(kind, product, batch, dtype, noise: Noise):
    """Point by point and factor by factor: whatever the batch, the strides, in place and out of place."""
    x = a_point(product, noise, *batch, dtype=dtype)
    block, t = some_block(kind, product, noise, batch)
    t = t.to(dtype)
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=dtype)[..., ::2].copy_(x)
    limit = 50 * torch.finfo(dtype).eps * (1 + float(t.abs().max()))
    for y in (x.clone(), wide):
        outside = product.move(y, block, t)
        assert torch.equal(y, x)
        assert product.move_(y, block, t) is y
        assert torch.equal(outside, y)
        for at in itertools.product(*map(range, batch)):
            expected = moved_apart(product, x[at].double(), at_place(block, at), t[at].double())
            assert error(y[at], expected) <= limit


@every_product
@every_kind
@few
@given(batch_shapes, noises)
def test_derivatives_are_those_of_the_factors_apart(kind, product, batch, noise: Noise):
    x = a_point(product, noise, *batch)
    egrad = noise.like(x)
    block, t = some_block(kind, product, noise, batch)
    derivatives = product.derivatives(x, egrad, block)
    assert (derivatives.shape, derivatives.dtype) == (t.shape, x.dtype)
    for at in itertools.product(*map(range, batch)):
        expected = derivatives_apart(product, x[at], egrad[at], at_place(block, at), t[at])
        assert error(derivatives[at], expected) <= 1e-13


@every_product
@every_kind
@few
@given(noises)
def test_derivatives_are_those_of_the_cost_along_the_move(kind, product, noise: Noise):
    x = a_point(product, noise)
    block, t = some_block(kind, product, noise, ())
    weight = noise.like(x)

    def along(s: Tensor) -> Tensor:
        return ((product.move(x, block, s * t) * weight).sin() * weight).sum()

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(((y * weight).sin() * weight).sum(), y)
    slope = (product.derivatives(x, egrad, block) * t).sum() / (2 if kind == "groups" else 1)
    h = torch.tensor(1e-6, dtype=torch.float64)
    assert error(slope, (along(h) - along(-h)) / (2 * h)) <= 1e-7


@every_product
@every_kind
@few
@given(st.sampled_from([(3,), (2, 3)]), noises)
def test_one_block_serves_a_whole_batch(kind, product, batch, noise: Noise):
    x = a_point(product, noise, *batch)
    egrad = noise.like(x)
    block, t = some_block(kind, product, noise, ())
    for at in itertools.product(*map(range, batch)):
        assert error(product.move(x, block, t)[at], product.move(x[at], block, t)) <= 1e-13
        of_point = product.derivatives(x[at], egrad[at], block)
        assert error(product.derivatives(x, egrad, block)[at], of_point) <= 1e-13


def test_a_time_may_broadcast():
    x = a_point(MOTIONS, Noise(0), 2)
    half = torch.tensor(0.5, dtype=torch.float64)
    for kind in KINDS[:3] + KINDS[4:]:
        block, t = some_block(kind, MOTIONS, Noise(1), (2,))
        moved = MOTIONS.move(x, block, half)
        assert torch.equal(moved, MOTIONS.move(x, block, torch.full_like(t, 0.5)))


def test_groups_have_the_numbers_of_their_coordinates():
    product = Product((Euclidean(), 3), (OrthogonalGroup(), (4, 4)), (Sphere(), 3))
    x = a_point(product, Noise(0))
    block = Groups(torch.tensor([[3, 4, 6], [7, 8, 9]]))
    numbers = product.group_coordinates(x, block)
    pairs = [[[3, 4], [3, 6], [4, 6]], [[7, 8], [7, 9], [8, 9]]]
    assert product.axes(x, numbers).tolist() == pairs
    assert torch.equal(
        product.derivatives(x, x, block)[..., [0, 0, 1], [1, 2, 2]],
        product.derivatives(x, x, Coordinates(numbers.flatten(), disjoint=False)).view(2, 3),
    )


@every_product
@settings(max_examples=10)
@given(batch_shapes, noises, st.data())
def test_steepest_are_the_largest_over_all_factors(product, batch, noise: Noise, data):
    x = a_point(product, noise, *batch)
    egrad = noise.like(x)
    total = product.num_coordinates(x)
    k = data.draw(st.integers(1, total))
    index, derivatives = product.steepest(x, egrad, k)
    assert index.shape == derivatives.shape == (*batch, k)
    every = product.derivatives(x, egrad, All())
    slope = every.abs() / product.step_scale(x, All()).sqrt()
    assert error(slope.gather(-1, index), slope.sort(-1, descending=True).values[..., :k]) <= 1e-13
    assert error(derivatives, every.gather(-1, index)) <= 1e-13
    assert (index.sort(-1).values.diff(dim=-1) > 0).all()
    egrad[..., -1] = torch.nan  # counts as the largest
    assert product.steepest(x, egrad, 1)[1].isnan().all()


# What a step costs


class LargestTensor(TorchDispatchMode):
    """Size of the largest tensor that the operations inside make, views apart."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given_ = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given_:
                self.size = max(self.size, tensor.numel())
        return result


@pytest.mark.parametrize("number", [7, 79_800, 79_804])
def test_one_coordinate_costs_what_it_touches(number):
    """Two rows of a tall matrix, or an entry of a vector: nothing as large as a factor is made."""
    p = 5
    product = Product((Stiefel(), (400, p)), (Euclidean(), 4), (Euclidean(), 500))
    x = a_point(product, Noise(0))
    before = x.clone()
    egrad = Noise(1).like(x)
    block = Coordinates(torch.tensor([number]), disjoint=True)
    with LargestTensor() as largest:
        t = product.derivatives(x, egrad, block)
        product.step_scale(x, block)
        product.move_(x, block, -0.1 * t)
    assert largest.size <= 2 * 9 * p  # the tries of a rounded sine
    assert int((x != before).sum()) == (2 * p if number < 79_800 else 1)


def test_a_disjoint_block_costs_what_it_touches():
    p = 5
    product = Product((Stiefel(), (400, p)), (Euclidean(), 4))
    x = a_point(product, Noise(0))
    before = x.clone()
    block = Coordinates(torch.tensor([7, 79_800, 79_803]), disjoint=True)
    with LargestTensor() as largest:
        product.move_(x, block, torch.ones(3).double())
    assert largest.size <= 2 * 9 * p
    assert int((x != before).sum()) == 2 * p + 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["one", "overlapping"])
def test_one_coordinate_never_waits_for_the_device(kind, dtype):
    """A meta tensor has no data, so whatever reads any raises."""
    product = Product((OrthogonalGroup(), (6, 6)), (Euclidean(), 4), (Power(Sphere()), (5, 3)))
    x = torch.empty(3, product.n_elements, device="meta", dtype=dtype)
    k = 1 if kind == "one" else 4
    index = torch.empty(3, k, device="meta", dtype=torch.int64)
    block = Coordinates(index, disjoint=kind == "one")
    t = product.derivatives(x, torch.empty_like(x), block)
    assert (t.shape, t.dtype, t.device) == ((3, k), dtype, x.device)
    assert product.step_scale(x, block).shape == (3, k)
    assert product.axes(x, index).shape == (3, k, 2)
    index, derivatives = product.steepest(x, torch.empty_like(x), 5)
    assert index.shape == derivatives.shape == (3, 5)
    assert product.restore_(x) is x
    if kind == "one":
        assert product.move_(x, block, t) is x
        assert product.descend_(x, torch.empty_like(x), block, lambda f, s: -f / s) is x


# Optimizers: as if the factors were parameters of their own


def cost(parts: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
    """A smooth function of the factors together."""
    return sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True)).sin()


@every_product
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: SRGD(params, 0.1),
        lambda params: SRGD(params, 0.1, momentum=0.9),
        lambda params: SRGD(params, 0.1, map="retr"),
        lambda params: SRCD(params, 0.1, Everything()),
        lambda params: SRCD(params, 0.1, Block(fraction=1.0)),
    ],
    ids=["SRGD", "momentum", "retraction", "SRCD along all", "SRCD with the full block"],
)
def test_steps_are_those_of_separate_parameters(product, optimizer):
    noise = Noise(3)
    x = a_point(product, noise)
    parts = product.unpack_tensor(x)
    weights = [noise.like(part) for part in parts]
    p = ManifoldParameter(x.clone(), manifold=product)
    apart = [
        ManifoldParameter(part.clone(), manifold=m)
        for part, m in zip(parts, product.manifolds, strict=True)
    ]
    together, separate = optimizer([p]), optimizer(apart)
    for _ in range(6):
        together.zero_grad()
        cost(product.unpack_tensor(p), weights).backward()
        together.step()
        separate.zero_grad()
        cost(tuple(apart), weights).backward()
        separate.step()
        for part, own in zip(product.unpack_tensor(p.detach()), apart, strict=True):
            # Restorations come at other times.
            assert error(part, own.detach()) <= 1e-14


@pytest.mark.parametrize("product", [MOTIONS, NESTED])
def test_along_all_coordinates_of_parseval_frames_srcd_is_srgd(product):
    """Also where factors are scaled: every coordinate has the step scale of its own factor."""
    noise = Noise(0)
    x = a_point(product, noise, 2)
    p, q = (ManifoldParameter(x.clone(), manifold=product) for _ in range(2))
    p.grad = noise.like(x)
    q.grad = p.grad.clone()
    SRCD([p], 0.1, Everything()).step()
    SRGD([q], 0.1).step()
    assert error(p.detach(), q.detach()) <= 1e-14


def test_uniform_choices_cover_all_factors_equally():
    p = ManifoldParameter(a_point(MOTIONS, Noise(0)), manifold=MOTIONS)
    p.grad = torch.ones_like(p)
    total = MOTIONS.num_coordinates(p)
    counts = torch.zeros(total)
    for step in range(1000):
        view = GradientView(MOTIONS, p.detach(), p.grad, step=step)
        counts[Uniform().select(view).index] += 1
    assert total == 10
    # Five standard deviations of a binomial count.
    assert (counts - 100).abs().max() <= 5 * math.sqrt(90)


def test_gauss_southwell_picks_the_largest_slope_over_all_factors():
    x = MOTIONS.origin(16, dtype=torch.float64).as_subclass(Tensor)
    for entry, size, number in ((10, 1.0, 4), (14, 2.5, 8), (1, 2.0, 0)):
        # Competitors in the other factors: rotations halve, and a scale of 2 halves, the slope.
        egrad = torch.zeros(16, dtype=torch.float64)
        egrad[9], egrad[13], egrad[5] = 0.9, 1.7, 1.2
        egrad[entry] = size
        block = GaussSouthwell().select(GradientView(MOTIONS, x, egrad))
        assert block.index.tolist() == [number]


@every_product
@pytest.mark.parametrize(
    "selection",
    [
        Uniform(),
        Cyclic(),
        GaussSouthwell(),
        Block(size=3),
        Block(size=3, rule=Uniform()),
        Block(size=3, disjoint=True),
        Block(size=3, rule=Cyclic(), disjoint=True),
        Everything(),
    ],
    ids=repr,
)
def test_every_selection_descends(product, selection):
    noise = Noise(0)
    target = a_point(product, noise, 2)
    start = product.expmap(target, 0.3 * a_tangent(product, noise, target))
    p = ManifoldParameter(start, manifold=product)
    optimizer = SRCD([p], 0.5, selection)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (p - target).square().sum() / 2
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] <= 0.5 * losses[0]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(losses))
    product.assert_check_point_on_manifold(p.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("by_host", [True, False])
@pytest.mark.parametrize("selection", [Uniform(), Block(size=3, disjoint=True), Everything()])
def test_steps_are_guarded_as_on_an_accelerator(selection, by_host, monkeypatch):
    """A derivative that is not a number stops the step before anything has changed."""
    monkeypatch.setattr(SRCD, "_checked_by_host", lambda *_: by_host)
    p = ManifoldParameter(a_point(MOTIONS, Noise(0)), manifold=MOTIONS)
    before = p.detach().clone()
    p.grad = torch.full_like(p, math.nan)
    optimizer = SRCD([p], 0.1, selection)

    def step() -> None:
        optimizer.step()
        optimizer.check_finite()

    with pytest.raises(FloatingPointError):
        step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("selection", [Uniform(), GaussSouthwell(), Block(size=3, disjoint=True)])
def test_a_run_resumes_from_its_state(selection, tmp_path):
    noise = Noise(0)
    x, weight = a_point(NESTED, noise, 2), noise.normal(2, NESTED.n_elements)

    def start(x: Tensor) -> tuple[ManifoldParameter, SRCD]:
        p = ManifoldParameter(x.clone(), manifold=NESTED)
        return p, SRCD([p], 0.1, selection, seed=5)

    def run(p: ManifoldParameter, optimizer: SRCD, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (p * weight).sin().sum().backward()
            optimizer.step()

    whole, optimizer = start(x)
    run(whole, optimizer, 9)
    first, optimizer = start(x)
    run(first, optimizer, 4)
    torch.save((first.detach().as_subclass(Tensor), optimizer.state_dict()), tmp_path / "state.pt")
    saved, state = torch.load(tmp_path / "state.pt")
    second, optimizer = start(saved)
    optimizer.load_state_dict(state)
    run(second, optimizer, 5)
    assert torch.equal(whole, second)


@pytest.mark.parametrize("selection", [Uniform(), GaussSouthwell(), Block(size=2, disjoint=True)])
def test_a_float32_point_stays_on_every_factor(selection):
    product = Product((OrthogonalGroup(), (8, 8)), (Euclidean(), 5), (Sphere(), 6))
    generator = torch.Generator().manual_seed(0)
    p = ManifoldParameter(product.random(75, generator=generator), manifold=product)
    gradients = torch.randn(101, 75, generator=generator)
    optimizer = SRCD([p], 0.1, selection)
    worst = 0.0
    for step in range(250):
        p.grad = gradients[step % 101]
        optimizer.step()
        if step % 13 == 0:
            w, _, s = product.unpack_tensor(p.detach().double())
            worst = max(worst, error(w.mT @ w, torch.eye(8)), abs(float(s.norm()) - 1))
    assert worst <= 1e-6


def test_restoration_is_due_when_the_first_factor_has_had_its_moves():
    """A uniform choice gives a factor its share of the moves: 3 of 6 to O(3), which wants 4."""
    product = Product((OrthogonalGroup(), (3, 3)), (Power(Sphere()), (1, 3)))
    x = a_point(product, Noise(0))
    assert product.manifolds[0].restore_period(x[:9].view(3, 3)) == 4
    assert product.manifolds[1].restore_period(x[9:].view(1, 3)) == 1
    assert product.restore_period(x) == 2
    y = x * (1 + 1e-6)
    assert product.restore_(y) is y
    assert error(y, x) <= 1e-11


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: geoopt.optim.RiemannianSGD(params, lr=0.1, momentum=0.5),
        lambda params: geoopt.optim.RiemannianAdam(params, lr=0.05),
    ],
)
def test_geoopt_s_optimizers_take_it(optimizer):
    noise = Noise(0)
    target = a_point(MOTIONS, noise)
    start = MOTIONS.expmap(target, 0.3 * a_tangent(MOTIONS, noise, target))
    p = ManifoldParameter(start, manifold=MOTIONS)
    stepper = optimizer([p])
    first = float((p - target).detach().norm())
    for _ in range(100):
        stepper.zero_grad()
        (p - target).square().sum().backward()
        stepper.step()
    assert float((p - target).detach().norm()) <= 0.3 * first
    MOTIONS.assert_check_point_on_manifold(p.detach(), atol=1e-9)


# Bad input: an error of the right kind, and the point as it was


@pytest.mark.parametrize(
    ("factors", "error_type", "match"),
    [
        (
            [(OrthogonalGroup(), (3, 3)), (geoopt.Sphere(), 3)],
            TypeError,
            "factor 1 .*no coordinates",
        ),
        ([(OrthogonalGroup(), (2, 3, 3))], ValueError, "factor 0 has shape.*Power makes one point"),
        ([(Euclidean(2), 3)], ValueError, "factor 0 has shape"),
        ([(OrthogonalGroup(), (3, 4))], ValueError, r"\(3, 4\)"),
        ([(Euclidean(), 2), (UnitaryGroup(), (2, 2))], TypeError, "no real type.*complex factor"),
        ([(UnitaryGroup(), (2, 2))], TypeError, "no real type"),
        ([], ValueError, "at least one"),
    ],
)
def test_factors_that_cannot_be(factors, error_type, match):
    with pytest.raises(error_type, match=match):
        Product(*factors)


def numbers(*index: int, disjoint: bool = True) -> Coordinates:
    return Coordinates(torch.tensor(index), disjoint)


@pytest.mark.parametrize(
    ("block", "error_type", "match"),
    [
        (numbers(0, 10), IndexError, "coordinate 10 does not exist.*has 10"),
        (numbers(-1), IndexError, "coordinate -1"),
        (numbers(0, 1), ValueError, "axis 0 is in two places"),
        (numbers(3, 3), ValueError, "axis 3 is in two places"),
        (Groups(torch.tensor([[0, 10]])), IndexError, "axis 10 does not exist"),
        (Groups(torch.tensor([[0, 1], [2, 3]])), NotImplementedError, "axes of several factors"),
        (Groups(torch.tensor([[0, 1], [3, 4]])), NotImplementedError, "Euclidean"),
        (Coordinates(torch.tensor([0], dtype=torch.int32), True), TypeError, "int32"),
    ],
)
def test_blocks_that_cannot_be(block, error_type, match):
    x = a_point(MOTIONS, Noise(0))
    before = x.clone()
    shape = block.index.shape if isinstance(block, Coordinates) else (*block.axes.shape, 2)
    for call in (
        lambda: MOTIONS.move_(x, block, torch.ones(shape).double()),
        lambda: MOTIONS.derivatives(x, x, block),
        lambda: MOTIONS.descend_(x, x, block, lambda f, s: f),
    ):
        with pytest.raises(error_type, match=match):
            call()
    assert torch.equal(x, before)


@pytest.mark.parametrize("block", [numbers(0, 2, disjoint=False), All()])
def test_what_a_factor_refuses_leaves_the_others_alone(block):
    class Rigid(Euclidean):
        def move_(self, x, block, t):
            raise NotImplementedError("no exponential")

    product = Product((Euclidean(), 2), (Rigid(), 2))
    x = torch.zeros(4)
    with pytest.raises(NotImplementedError, match="no exponential"):
        product.move_(x, block, torch.ones(4 if isinstance(block, All) else 2))
    assert not x.any()


@every_kind
def test_times_and_gradients_that_cannot_be(kind):
    x = a_point(MOTIONS, Noise(0), 2)
    before = x.clone()
    block, t = some_block(kind, MOTIONS, Noise(0), (2,))
    for times, error_type in (
        (t[..., :-1].repeat(2, *(1,) * (t.dim() - 1)), ValueError),
        (t.long(), TypeError),
    ):
        with pytest.raises(error_type, match="times"):
            MOTIONS.move_(x, block, times)
    for egrad in (x.float(), x[..., :-1], x[0]):
        with pytest.raises(TypeError, match="egrad is"):
            MOTIONS.derivatives(x, egrad, block)
    with pytest.raises(TypeError, match="float32 and float64"):
        MOTIONS.move_(x.bfloat16(), block, t)
    with pytest.raises(ValueError, match="expects"):
        MOTIONS.move_(x[..., 1:], block, t)
    assert torch.equal(x, before)


@pytest.mark.parametrize("k", [0, 11])
def test_there_are_no_more_steepest_than_coordinates(k):
    x = a_point(MOTIONS, Noise(0))
    with pytest.raises(ValueError, match=f"k={k}.*10 coordinates"):
        MOTIONS.steepest(x, x, k)


def test_checks_name_the_factor():
    x = a_point(MOTIONS, Noise(0))
    assert MOTIONS.check_vector_on_tangent(x, a_tangent(MOTIONS, Noise(1), x))
    ok, reason = MOTIONS.check_vector_on_tangent(x, x, explain=True)
    assert not ok
    assert "factor 0, OrthogonalGroup" in reason
    x[-1] = math.inf
    ok, reason = MOTIONS.check_point_on_manifold(x, explain=True)
    assert not ok
    assert "factor 2, Scaled(Euclidean)" in reason
    assert not MOTIONS.check_point(x[1:])
    for parts, match in (((x,), "1 tensors given"), ((x, x, x), "tensor 0 has shape")):
        with pytest.raises(ValueError, match=match):
            MOTIONS.pack_point(*parts)


def test_an_empty_block_and_an_empty_batch():
    x = a_point(MOTIONS, Noise(0), 2)
    for disjoint in (True, False):
        block = Coordinates(torch.empty(2, 0, dtype=torch.int64), disjoint)
        assert torch.equal(MOTIONS.move(x, block, torch.empty(2, 0).double()), x)
        assert MOTIONS.derivatives(x, x, block).shape == (2, 0)
    for kind in KINDS:
        block, t = some_block(kind, MOTIONS, Noise(0), (2,))
        empty = at_place(block, slice(0))
        assert MOTIONS.move(x[:0], empty, t[:0]).shape == (0, 16)
        assert MOTIONS.derivatives(x[:0], x[:0], empty).shape == t[:0].shape


def test_matrices_of_fixed_rank_find_the_truncated_decomposition():
    """X = USVᵀ with orthonormal columns and a free core, as the docs have it (Eckart and Young, 1936)."""
    noise = Noise(0)
    u, v = noise.point(8, 8)[:, :6], noise.point(6, 6)
    values = torch.tensor([3, 2, 1, 0.5, 0.2, 0.1], dtype=torch.float64)
    a, known = (u * values) @ v.T, (u[:, :2] * values[:2]) @ v[:, :2].T
    columns = Scaled(Stiefel("canonical"), 3.0)
    manifold = Product((columns, (8, 2)), (Euclidean(2), (2, 2)), (columns, (6, 2)))
    p = ManifoldParameter(a_point(manifold, Noise(1)), manifold=manifold)
    optimizer = SRCD([p], 0.5, Block(size=8))
    for _ in range(250):
        optimizer.zero_grad()
        left, core, right = manifold.unpack_tensor(p)
        (left @ core @ right.mT - a).square().sum().div(2).backward()
        optimizer.step()
    left, core, right = manifold.unpack_tensor(p.detach())
    assert error(left @ core @ right.mT, known) <= 1e-6
