"""Powers: N copies as one point. They are products of N equal factors, which is what most laws say."""

import itertools
import math

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
    UnitaryGroup,
)
from givens.manifolds.parts import by_count, unravel
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, GradientView, Uniform

RIGID = Product((SpecialOrthogonalGroup(), (3, 3)), (Scaled(Euclidean(), 0.1), (3,)))
# A power, and the shape of a point with its copies.
POWERS = {
    "rotations": (Power(SpecialOrthogonalGroup()), (5, 3, 3)),
    "larger rotations": (Power(OrthogonalGroup()), (3, 4, 4)),
    "spheres": (Power(Sphere()), (4, 5)),
    "motions": (Power(RIGID), (3, 12)),
    "power": (Power(Power(Sphere())), (2, 3, 4)),
}
KINDS = ["one", "disjoint", "overlapping", "groups", "all"]
few = settings(max_examples=4)  # for every power and kind of block
every_power = pytest.mark.parametrize(("power", "shape"), POWERS.values(), ids=POWERS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def a_point(power: Power, shape, noise: Noise, *batch: int, dtype=torch.float64) -> Tensor:
    x = power.random(*batch, *shape, dtype=dtype, generator=noise.generator)
    return x.as_subclass(Tensor)


def flat(power: Power, shape: tuple[int, ...]) -> Product:
    """The product of as many equal factors, whose points are flattened."""
    return Product(*((power.base, shape[1:]),) * shape[0])


def some_block(kind: str, power: Power, shape, noise: Noise, batch: tuple[int, ...]):
    """A block of a kind, other coordinates for every point, and times of its shape."""
    x = torch.empty(shape)
    total, per_copy = power.num_coordinates(x), power.base.num_axes(x)
    if kind == "all":
        return All(), noise.normal(*batch, total)
    if kind == "groups":  # of two axes, which a product has first and a power in its own first copy
        pair = noise.permutations(batch, min(per_copy, 3))[..., :2].sort(-1).values
        copy = noise.permutations(batch, shape[0])[..., :2].unsqueeze(-1)
        axes = copy * per_copy + pair.unsqueeze(-2)
        return Groups(axes), noise.skew(*axes.shape, 2)
    if kind == "disjoint":
        found = []
        for _ in range(math.prod(batch)):
            used: set[int] = set()
            taken = []
            order = noise.permutations((), total)
            for number, axes in zip(order.tolist(), power.axes(x, order).tolist(), strict=True):
                if not used & set(axes):
                    used |= set(axes)
                    taken.append(number)
            found.append(taken)
        k = min(map(len, found))
        index = torch.tensor([taken[:k] for taken in found]).view(*batch, k)
        return Coordinates(index, disjoint=True), noise.normal(*batch, k)
    k = 1 if kind == "one" else 5
    index = noise.integers(total, *batch, k)
    return Coordinates(index, disjoint=kind == "one"), noise.normal(*batch, k)


def at_place(block: CoordinateBlock, at) -> CoordinateBlock:
    if isinstance(block, Coordinates):
        return Coordinates(block.index[at], block.disjoint)
    return Groups(block.axes[at]) if isinstance(block, Groups) else block


# Items in parts


@given(st.lists(st.integers(0, 6), max_size=20))
def test_items_are_dealt_to_parts_with_equally_many(part):
    seen = {}
    counts = []
    for parts, places in by_count(torch.tensor(part, dtype=torch.int64)):
        counts.append(places.shape[1])
        assert len(parts) == len(places)
        seen.update(zip(parts.tolist(), places.tolist(), strict=True))
    assert len(set(counts)) == len(counts)
    assert seen == {p: [i for i, q in enumerate(part) if q == p] for p in set(part)}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_unravel_is_torch_s(shape):
    number = torch.arange(math.prod(shape))
    for ours, theirs in zip(
        unravel(number, tuple(shape)), torch.unravel_index(number, shape), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert unravel(number, ()) == ()


# As a product of equal factors


@every_power
@settings(max_examples=8)
@given(batch_shapes, noises)
def test_the_geometry_is_that_of_a_product(power, shape, batch, noise: Noise):
    product = flat(power, shape)
    x = a_point(power, shape, noise, *batch)
    power.assert_check_point_on_manifold(x)
    u, v = (0.3 * power.proju(x, noise.like(x)) for _ in range(2))
    y = power.expmap(x, u)
    start = len(batch)
    for name, tensors in {
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
        "inner": (x, u, v),
        "norm": (x, u),
        "dist": (x, y),
        "dist2": (x, y),
    }.items():
        result = getattr(power, name)(*tensors)
        expected = getattr(product, name)(*(tensor.flatten(start) for tensor in tensors))
        for got, wanted in zip(
            result if isinstance(result, tuple) else [result],
            expected if isinstance(expected, tuple) else [expected],
            strict=True,
        ):
            assert got.shape == (batch if name in {"inner", "norm", "dist", "dist2"} else x.shape)
            assert error(got.flatten(start) if got.dim() > start else got, wanted) <= 1e-12
    ones = (1,) * len(shape)
    for result in (power.inner(x, u, keepdim=True), power.norm(x, u, keepdim=True)):
        assert result.shape == (*batch, *ones)
    assert power.dist(x, y, keepdim=True).shape == (*batch, *ones)
    assert error(power.dist(x, y), power.norm(x, u)) <= 1e-9
    assert power.component_inner(x, u).shape[: len(batch) + 1] == (*batch, shape[0])


@every_power
def test_the_numbers_are_those_of_a_product(power, shape):
    product = flat(power, shape)
    x = a_point(power, shape, Noise(0), 2)
    z = x.flatten(1)
    assert power.num_axes(x) == product.num_axes(z)
    assert power.num_coordinates(x) == product.num_coordinates(z)
    assert power.frame_bounds == product.frame_bounds
    index = torch.arange(power.num_coordinates(x))
    for numbers in (index, index.view(1, -1), index.expand(2, -1)):
        assert torch.equal(power.axes(x, numbers), product.axes(z, numbers))
    assert torch.equal(power.direction(x, index).flatten(2), product.direction(z, index))


@every_power
@every_kind
@few
@given(batch_shapes, dtypes, noises)
def test_blocks_are_those_of_a_product(kind, power, shape, batch, dtype, noise: Noise):
    """Derivatives, step scales and moves, whatever the strides, in place and out of place."""
    product = flat(power, shape)
    x = a_point(power, shape, noise, *batch, dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(kind, power, shape, noise, batch)
    t = t.to(dtype)
    start = len(batch)
    limit = 50 * torch.finfo(dtype).eps * (1 + float(t.abs().max() + egrad.abs().max()))

    derivatives = power.derivatives(x, egrad, block)
    assert (derivatives.shape, derivatives.dtype) == (t.shape, dtype)
    expected = product.derivatives(x.flatten(start), egrad.flatten(start), block)
    assert error(derivatives, expected) <= limit
    scale = power.step_scale(x, block)
    of_product = product.step_scale(x.flatten(start), block)
    assert torch.equal(scale.expand(t.shape), of_product.expand(t.shape))

    moved = product.move(x.flatten(start), block, t)
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=dtype)[..., ::2].copy_(x)
    transposed = x.mT.contiguous().mT
    for y in (x.clone(), wide, transposed):
        outside = power.move(y, block, t)
        assert torch.equal(y, x)
        assert power.move_(y, block, t) is y
        assert error(outside, y) <= limit
        assert error(y.flatten(start), moved) <= limit


@every_power
@settings(max_examples=6)
@given(batch_shapes, noises, st.data())
def test_steepest_are_the_largest_over_all_copies(power, shape, batch, noise: Noise, data):
    x = a_point(power, shape, noise, *batch)
    egrad = noise.like(x)
    k = data.draw(st.integers(1, power.num_coordinates(x)))
    index, derivatives = power.steepest(x, egrad, k)
    every = power.derivatives(x, egrad, All())
    slope = every.abs() / power.step_scale(x, All()).sqrt()
    assert index.shape == derivatives.shape == (*batch, k)
    assert error(slope.gather(-1, index), slope.sort(-1, descending=True).values[..., :k]) <= 1e-13
    assert error(derivatives, every.gather(-1, index)) <= 1e-13
    assert (index.sort(-1).values.diff(dim=-1) > 0).all()


# Blocks


@every_power
@every_kind
@few
@given(st.sampled_from([(3,), (2, 3)]), noises)
def test_a_batch_is_a_loop(kind, power, shape, batch, noise: Noise):
    x = a_point(power, shape, noise, *batch)
    egrad = noise.like(x)
    own, times = some_block(kind, power, shape, noise, batch)
    shared, one = some_block(kind, power, shape, noise, ())
    for block, t in ((own, times), (shared, one.expand(*batch, *one.shape))):
        moved, derivatives = power.move(x, block, t), power.derivatives(x, egrad, block)
        for at in itertools.product(*map(range, batch)):
            of_point = block if block is shared else at_place(block, at)
            assert error(moved[at], power.move(x[at], of_point, t[at])) <= 1e-13
            expected = power.derivatives(x[at], egrad[at], of_point)
            assert error(derivatives[at], expected) <= 1e-13


@every_power
@every_kind
@few
@given(noises)
def test_derivatives_are_those_of_the_cost_along_the_move(kind, power, shape, noise: Noise):
    x = a_point(power, shape, noise)
    block, t = some_block(kind, power, shape, noise, ())
    weight = noise.like(x)

    def along(s: Tensor) -> Tensor:
        return ((power.move(x, block, s * t) * weight).sin() * weight).sum()

    y = x.clone().requires_grad_()
    (egrad,) = torch.autograd.grad(((y * weight).sin() * weight).sum(), y)
    slope = (power.derivatives(x, egrad, block) * t).sum() / (2 if kind == "groups" else 1)
    h = torch.tensor(1e-6, dtype=torch.float64)
    assert error(slope, (along(h) - along(-h)) / (2 * h)) <= 1e-7


@pytest.mark.parametrize("disjoint", [True, False])
def test_copies_that_a_block_does_not_touch_stay_bit_for_bit(disjoint):
    power = Power(OrthogonalGroup())
    x = a_point(power, (6, 4, 4), Noise(0))
    index = torch.tensor([6 + 0, 6 + 5, 18 + 2])  # (0, 1) and (2, 3) of copy 1, (0, 3) of copy 3
    moved = power.move(x, Coordinates(index, disjoint), torch.ones(3).double())
    changed = (moved != x).flatten(1).any(-1)
    assert changed.tolist() == [False, True, False, True, False, False]


def test_several_disjoint_coordinates_of_a_copy_are_all_followed():
    """On a frame that is not the exponential of their sum, which an overlapping block follows."""
    power = Power(Sphere())
    x = a_point(power, (3, 4), Noise(0))
    index = torch.tensor([6 + 0, 6 + 5, 12 + 1])
    t = torch.tensor([0.5, -0.7, 0.9], dtype=torch.float64)
    one_by_one = x.clone()
    for number, time in zip(index, t, strict=True):
        power.move_(one_by_one, Coordinates(number.view(1), disjoint=True), time.view(1))
    followed = power.move(x, Coordinates(index, disjoint=True), t)
    u = (t.view(-1, 1, 1) * power.direction(x, index)).sum(0)
    exponential = power.move(x, Coordinates(index, disjoint=False), t)
    assert error(followed, one_by_one) <= 1e-15
    assert error(exponential, power.expmap(x, u)) <= 1e-15
    # In copy 2, too, where the block has a single coordinate.
    assert (exponential - followed).abs().amax(-1).tolist()[1:] > [1e-3, 1e-3]


def test_groups_have_the_numbers_of_their_coordinates():
    power = Power(OrthogonalGroup())
    x = a_point(power, (3, 4, 4), Noise(0))
    block = Groups(torch.tensor([[0, 1, 3], [9, 10, 11]]))
    numbers = power.group_coordinates(x, block)
    pairs = [[[0, 1], [0, 3], [1, 3]], [[9, 10], [9, 11], [10, 11]]]
    assert power.axes(x, numbers).tolist() == pairs


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_coordinate_never_waits_for_the_device(dtype):
    """A meta tensor has no data, so whatever reads any raises."""
    for power, shape in POWERS.values():
        x = torch.empty(3, *shape, device="meta", dtype=dtype)
        block = Coordinates(torch.empty(3, 1, device="meta", dtype=torch.int64), disjoint=True)
        several = Coordinates(torch.empty(3, 4, device="meta", dtype=torch.int64), disjoint=False)
        assert power.derivatives(x, torch.empty_like(x), several).shape == (3, 4)
        t = power.derivatives(x, torch.empty_like(x), block)
        assert (t.shape, t.dtype, t.device) == ((3, 1), dtype, x.device)
        assert power.move_(x, block, t) is x
        assert power.descend_(x, torch.empty_like(x), block, lambda f, s: -f / s) is x
        index, derivatives = power.steepest(x, torch.empty_like(x), 5)
        assert index.shape == derivatives.shape == (3, 5)


# Optimizers


@every_power
def test_along_all_coordinates_srcd_is_srgd(power, shape):
    noise = Noise(0)
    x = a_point(power, shape, noise, 2)
    p, q = (ManifoldParameter(x.clone(), manifold=power) for _ in range(2))
    p.grad = noise.like(x)
    q.grad = p.grad.clone()
    SRCD([p], 0.1, Everything()).step()
    SRGD([q], 0.1).step()
    assert error(p.detach(), q.detach()) <= 1e-14


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_srgd_steps_as_on_a_batch(momentum):
    noise = Noise(0)
    x = a_point(Power(SpecialOrthogonalGroup()), (5, 3, 3), noise)
    p = ManifoldParameter(x.clone(), manifold=Power(SpecialOrthogonalGroup()))
    q = ManifoldParameter(x.clone(), manifold=SpecialOrthogonalGroup())
    one, other = (SRGD([r], 0.1, momentum=momentum) for r in (p, q))
    for _ in range(10):
        p.grad = noise.like(x)
        q.grad = p.grad.clone()
        one.step()
        other.step()
        assert error(p.detach(), q.detach()) <= 1e-14  # restored at other times


def test_a_selection_chooses_among_all_copies_and_not_in_each():
    power = Power(SpecialOrthogonalGroup())
    x = a_point(power, (50, 3, 3), Noise(0))
    egrad = Noise(1).like(x)
    egrad[31] *= 100
    view = GradientView(power, x, egrad)
    block = GaussSouthwell().select(view)
    assert block.index.shape == (1,)
    assert int(block.index) // 3 == 31
    chosen = torch.cat(
        [Uniform().select(GradientView(power, x, egrad, step=n)).index for n in range(1000)]
    )
    # Of 150 coordinates 1000 uniform choices leave out 0.2 on average, and 20 a copy.
    assert len(chosen.unique()) >= 145
    assert (chosen // 3).bincount(minlength=50).min() >= 4


@pytest.mark.parametrize("batch", [(), (2,)])
@every_power
@pytest.mark.parametrize(
    "selection",
    [
        Uniform(),
        GaussSouthwell(),
        Block(fraction=0.3),
        Block(size=2, rule=Cyclic()),
        Block(size=3, disjoint=True),
    ],
    ids=repr,
)
def test_every_selection_descends(power, shape, selection, batch):
    noise = Noise(0)
    target = a_point(power, shape, noise, *batch)
    u = power.proju(target, noise.like(target))
    p = ManifoldParameter(power.expmap(target, 0.2 * u), manifold=power)
    # A scale of 0.1 makes steps a hundred times as long.
    optimizer = SRCD([p], 0.01 if power.base is RIGID else 0.5, selection)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = (p - target).square().sum() / 2
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] <= 0.9 * losses[0]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(losses))
    power.assert_check_point_on_manifold(p.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("selection", [Uniform(), Block(size=4, disjoint=True)])
def test_a_run_resumes_from_its_state(selection):
    power, shape = POWERS["rotations"]
    noise = Noise(0)
    x, weight = a_point(power, shape, noise), noise.normal(*shape)

    def run(x: Tensor, steps: int, state=None) -> tuple[Tensor, dict]:
        p = ManifoldParameter(x.clone(), manifold=power)
        optimizer = SRCD([p], 0.1, selection, seed=3)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            optimizer.zero_grad()
            (p * weight).sin().sum().backward()
            optimizer.step()
        return p.detach().as_subclass(Tensor), optimizer.state_dict()

    whole, _ = run(x, 60)
    middle, state = run(x, 25)
    assert torch.equal(run(middle, 35, state)[0], whole)


@pytest.mark.parametrize("selection", [Uniform(), Block(fraction=0.2)])
def test_float32_rotations_stay_rotations(selection):
    power = Power(SpecialOrthogonalGroup())
    generator = torch.Generator().manual_seed(0)
    p = ManifoldParameter(power.random(4, 3, 3, generator=generator), manifold=power)
    gradients = torch.randn(101, 4, 3, 3, generator=generator)
    optimizer = SRCD([p], 0.3, selection)
    worst = 0.0
    for step in range(300):
        p.grad = gradients[step % 101]
        optimizer.step()
        if step % 13 == 0:
            x = p.detach().double()
            worst = max(worst, error(x.mT @ x, torch.eye(3)))
    assert worst <= 1e-6


def test_restoration_is_due_when_every_copy_has_had_its_moves():
    power = Power(SpecialOrthogonalGroup())
    x = a_point(power, (7, 3, 3), Noise(0))
    assert power.restore_period(x) == 7 * SpecialOrthogonalGroup().restore_period(x)
    y = x * (1 + 1e-6)
    assert power.restore_(y) is y
    assert error(y, x) <= 1e-11


def test_it_takes_complex_manifolds():
    power = Power(UnitaryGroup())
    assert power.dtypes == UnitaryGroup().dtypes
    x = power.random(3, 2, 2, dtype=torch.complex128)
    power.assert_check_point_on_manifold(x)
    index = torch.arange(power.num_coordinates(x))
    egrad = torch.randn(3, 2, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    expected = UnitaryGroup().derivatives(x, egrad, All()).flatten()
    assert error(power.derivatives(x, egrad, Coordinates(index, disjoint=False)), expected) <= 1e-14


# Bad input: an error of the right kind, and the point as it was


def numbers(*index: int, disjoint: bool = True) -> Coordinates:
    return Coordinates(torch.tensor(index), disjoint)


@pytest.mark.parametrize(
    ("block", "error_type", "match"),
    [
        (numbers(0, 9), IndexError, "coordinate 9 does not exist.*has 9"),
        (numbers(-1), IndexError, "coordinate -1"),
        (numbers(3, 4), ValueError, "axis 3 is in two places"),
        (Groups(torch.tensor([[0, 9]])), IndexError, "axis 9 does not exist"),
        (Groups(torch.tensor([[0, 1], [2, 3]])), NotImplementedError, "axes of several copies"),
        (Coordinates(torch.tensor([0], dtype=torch.int32), True), TypeError, "int32"),
    ],
)
def test_blocks_that_cannot_be(block, error_type, match):
    power = Power(SpecialOrthogonalGroup())
    x = a_point(power, (3, 3, 3), Noise(0))
    before = x.clone()
    shape = block.index.shape if isinstance(block, Coordinates) else (*block.axes.shape, 2)
    for call in (
        lambda: power.move_(x, block, torch.ones(shape).double()),
        lambda: power.derivatives(x, x, block),
    ):
        with pytest.raises(error_type, match=match):
            call()
    assert torch.equal(x, before)


def test_groups_that_a_copy_refuses_leave_the_others_alone():
    power = Power(RIGID)
    x = a_point(power, (2, 12), Noise(0))
    before = x.clone()
    for axes in ([[0, 1], [9, 10]], [[0, 1], [6, 7], [9, 10]]):  # the second ones are translations
        block = Groups(torch.tensor(axes))
        with pytest.raises(NotImplementedError, match="groups"):
            power.move_(x, block, Noise(0).skew(len(axes), 2, 2))
        assert torch.equal(x, before)


@every_kind
def test_times_and_gradients_that_cannot_be(kind):
    power, shape = POWERS["rotations"]
    x = a_point(power, shape, Noise(0), 2)
    before = x.clone()
    block, t = some_block(kind, power, shape, Noise(0), (2,))
    with pytest.raises(ValueError, match="times"):
        power.move_(x, block, torch.cat([t, t]))
    with pytest.raises(TypeError, match="times"):
        power.move_(x, block, t.long())
    for egrad in (x.float(), x[0]):
        with pytest.raises(TypeError, match="egrad is"):
            power.derivatives(x, egrad, block)
    with pytest.raises(TypeError, match="float32 and float64"):
        power.move_(x.bfloat16(), block, t)
    assert torch.equal(x, before)


def test_points_and_bases_that_cannot_be():
    power = Power(SpecialOrthogonalGroup())
    x = a_point(power, (3, 3, 3), Noise(0))
    assert not power.check_point(x[0])
    assert not power.check_point(x[..., 1:])
    assert not power.check_point_on_manifold(x * 2)
    assert not power.check_vector_on_tangent(x, x)
    with pytest.raises(TypeError, match="coordinates"):
        Power(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"k=10.*9 coordinates"):
        power.steepest(x, x, 10)


@every_power
def test_an_empty_block_and_an_empty_batch(power, shape):
    x = a_point(power, shape, Noise(0), 2)
    for disjoint in (True, False):
        block = Coordinates(torch.empty(2, 0, dtype=torch.int64), disjoint)
        assert torch.equal(power.move(x, block, torch.empty(2, 0).double()), x)
        assert power.derivatives(x, x, block).shape == (2, 0)
    for kind in KINDS:
        block, t = some_block(kind, power, shape, Noise(0), (2,))
        empty = at_place(block, slice(0))
        assert power.move(x[:0], empty, t[:0]).shape == x[:0].shape
        assert power.derivatives(x[:0], x[:0], empty).shape == t[:0].shape
