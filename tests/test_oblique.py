"""The oblique manifold: its columns, or rows, behave as independent points of a sphere."""

import math
from itertools import combinations, product

import pytest
import scipy.linalg
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, Noise, batch_shapes, dtypes, error, layouts, noises
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from givens.manifolds import All, Coordinates, Groups, Oblique, Sphere, constrain
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, Uniform

SPHERE = Sphere()
KINDS = ["matching", "overlapping", "groups", "all"]

oblique = st.sampled_from([Oblique(), Oblique(dim=-1)])
sizes = st.integers(2, 6)  # of a sphere
numbers = st.integers(1, 5)  # of spheres


def eps(dtype):
    return torch.finfo(dtype).eps


def shape(manifold, n, p):
    return (n, p) if manifold.dim == -2 else (p, n)


def point(noise, manifold, *size, dtype=torch.float64):
    return manifold.random(*size, dtype=dtype, generator=noise.generator).as_subclass(Tensor)


def spheres(manifold, x):
    """The unit vectors, one by one: a list of tensors of shape (*batch, n)."""
    return list(x.unbind(-1 if manifold.dim == -2 else -2))


def join(manifold, parts):
    return torch.stack(parts, -1 if manifold.dim == -2 else -2)


def off_spheres(manifold, x):
    norm = torch.linalg.vector_norm(x.detach().double(), dim=manifold.dim)
    return error(norm, torch.ones(()))


def pairs(manifold, x):
    """Every coordinate in the order of its number: the places of its entries in row-major order."""
    n, p = (x.shape[-2:]) if manifold.dim == -2 else (x.shape[-1], x.shape[-2])
    place = (lambda i, c: i * p + c) if manifold.dim == -2 else (lambda i, c: c * n + i)
    return [(place(j, c), place(l, c)) for c in range(p) for j, l in combinations(range(n), 2)]


# Points and maps: a loop over the sphere


@given(oblique, batch_shapes, sizes, numbers, dtypes, noises)
def test_random_points_have_unit_columns(manifold, batch, n, p, dtype, noise: Noise):
    size = (*batch, *shape(manifold, n, p))
    x = manifold.random(*size, dtype=dtype, generator=noise.generator)
    assert (x.shape, x.dtype, x.manifold) == (size, dtype, manifold)
    assert x.is_contiguous()
    assert off_spheres(manifold, x) <= eps(dtype) + 3e-16
    manifold.assert_check_point_on_manifold(x)
    again = manifold.random(*size, dtype=dtype, generator=Noise(noise.seed).generator)
    assert torch.equal(x, again)
    origin = manifold.origin(*size, dtype=dtype)
    assert origin.manifold is manifold
    for e in spheres(manifold, origin):
        assert torch.equal(e, SPHERE.origin(*batch, n, dtype=dtype))


@pytest.mark.parametrize("dim", [-2, -1])
def test_random_columns_are_uniform_and_independent(dim):
    count = 20_000
    manifold = Oblique(dim)
    x = point(Noise(0), manifold, count, *shape(manifold, 3, 2))
    first, second = spheres(manifold, x)
    for y, mean in ((first, 1 / 3), (second, 1 / 3), (first * second, 1 / 9)):
        square = y**2
        assert (y.mean(0).abs() <= 5 * y.std(0) / math.sqrt(count)).all()
        assert ((square.mean(0) - mean).abs() <= 5 * square.std(0) / math.sqrt(count)).all()


MAPS = {
    "projx": lambda m, x, u, v: m.projx(u),
    "proju": lambda m, x, u, v: m.proju(x, u),
    "egrad2rgrad": lambda m, x, u, v: m.egrad2rgrad(x, u),
    "expmap": lambda m, x, u, v: m.expmap(x, u),
    "logmap": lambda m, x, u, v: m.logmap(x, m.projx(v)),
    "retr": lambda m, x, u, v: m.retr(x, u),
    "transp": lambda m, x, u, v: m.transp(x, m.projx(v), u),
    "transp_follow_expmap": lambda m, x, u, v: m.transp_follow_expmap(x, u, v),
    "restore": lambda m, x, u, v: m.restore_(x + 1e-3 * u),
}


@pytest.mark.parametrize("retraction", ["exponential", "projection"])
@pytest.mark.parametrize("name", MAPS)
@given(st.sampled_from([-2, -1]), batch_shapes, sizes, numbers, dtypes, noises)
def test_maps_are_those_of_the_sphere(name, retraction, dim, batch, n, p, dtype, noise: Noise):
    manifold, sphere = Oblique(dim, retraction), Sphere(retraction)
    x = point(noise, manifold, *batch, *shape(manifold, n, p), dtype=dtype)
    u, v = noise.like(x), noise.like(x)
    expected = join(
        manifold,
        [
            MAPS[name](sphere, *column)
            for column in zip(*(spheres(manifold, w) for w in (x, u, v)), strict=True)
        ],
    )
    limit = 100 * eps(dtype) * float(1 + u.abs().max())
    for y, w in zip(layouts(x), layouts(u), strict=True):
        result = MAPS[name](manifold, y, w, v)
        assert result.dtype == dtype
        assert error(result, expected) <= limit
    if name in ("projx", "expmap", "retr"):  # points, on which coordinates move in place
        assert MAPS[name](manifold, x, u, v).is_contiguous()


@given(oblique, batch_shapes, sizes, numbers, dtypes, noises)
def test_metric_and_distance_add_up(manifold, batch, n, p, dtype, noise: Noise):
    x, y = (point(noise, manifold, *batch, *shape(manifold, n, p), dtype=dtype) for _ in range(2))
    u, v = noise.like(x), noise.like(x)
    columns = [spheres(manifold, w) for w in (x, y, u, v)]
    inner = sum(SPHERE.inner(a, c, d) for a, _, c, d in zip(*columns, strict=True))
    square = sum(SPHERE.dist(a, b).double() ** 2 for a, b, _, _ in zip(*columns, strict=True))
    limit = 100 * eps(dtype) * float(1 + u.abs().max() * v.abs().max())
    assert error(manifold.inner(x, u, v), inner) <= limit
    assert error(manifold.norm(x, u) ** 2, manifold.inner(x, u)) <= 100 * eps(dtype) * float(
        1 + u.norm() ** 2
    )
    assert error(manifold.dist(x, y) ** 2, square) <= limit + 200 * eps(dtype)
    assert error(manifold.norm(x, manifold.logmap(x, y)), manifold.dist(x, y)) <= 100 * eps(dtype)
    assert torch.equal(manifold.dist(x, x), torch.zeros(batch))
    for f in (
        lambda **keep: manifold.inner(x, u, v, **keep),
        lambda **keep: manifold.norm(x, u, **keep),
        lambda **keep: manifold.dist(x, y, **keep),
    ):
        assert f().shape == batch
        assert torch.equal(f(keepdim=True), f()[..., None, None])


@given(oblique, sizes, numbers, noises)
def test_exp_inverts_log_and_transport_is_an_isometry(manifold, n, p, noise: Noise):
    x, y = (point(noise, manifold, *shape(manifold, n, p)) for _ in range(2))
    u = manifold.logmap(x, y)
    v, w = (manifold.proju(x, noise.like(x)) for _ in range(2))
    assert error(manifold.expmap(x, u), y) <= 1e-14
    z, carried = manifold.expmap_transp(x, u, v)
    assert torch.equal(z, manifold.expmap(x, u))
    assert torch.equal(carried, manifold.transp_follow_expmap(x, u, v))
    other = manifold.transp_follow_expmap(x, u, w)
    assert error(manifold.inner(y, carried, other), manifold.inner(x, v, w)) <= 1e-12
    assert manifold.check_vector_on_tangent(y, carried)


@pytest.mark.parametrize("dim", [-2, -1])
def test_gradients_flow(dim):
    noise = Noise(0)
    manifold = Oblique(dim)
    x, y = (point(noise, manifold, 3, 2).requires_grad_() for _ in range(2))
    u = noise.normal(3, 2).requires_grad_()
    torch.autograd.gradcheck(manifold.projx, (u,))
    torch.autograd.gradcheck(manifold.expmap, (x, u))
    torch.autograd.gradcheck(manifold.dist, (x, y))
    zero = torch.zeros(3, 2, dtype=x.dtype, requires_grad=True)
    for f in (
        manifold.dist(x, x.detach()),
        manifold.dist(x, -x.detach()),
        manifold.logmap(x, x.detach()).sum() + manifold.logmap(x, -x.detach()).sum(),
        manifold.norm(x.detach(), zero) + manifold.expmap(x, zero).sum() + zero.sum(),
    ):
        gradients = torch.autograd.grad(f, (x, zero), allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients)


# Coordinates


def some_block(kind, noise, manifold, x):
    """A block of a kind, and times of the shape that it prescribes."""
    batch, total = x.shape[:-2], manifold.num_coordinates(x)
    if kind == "matching":  # in every column ⌊n/2⌋ pairs, of all of which some are taken
        n = x.shape[manifold.dim]
        p = x.shape[-1] if manifold.dim == -2 else x.shape[-2]
        each = n * (n - 1) // 2
        index = torch.cat([noise.matching(batch, n).index + c * each for c in range(p)], -1)
        order = noise.permutations((), index.shape[-1])[: 1 + int(noise.integers(p))]
        return Coordinates(index[..., order], disjoint=True), noise.normal(*batch, len(order))
    if kind == "overlapping":  # some numbers occur twice
        block = Coordinates(noise.integers(total, *batch, total), disjoint=False)
        return block, noise.normal(*batch, total)
    if kind == "groups":
        entries = x.shape[-2] * x.shape[-1]
        block = noise.groups(batch, entries, 2 + int(noise.integers(entries - 1)))
        return block, noise.skew(*batch, *block.axes.shape[-2:], block.axes.shape[-1])
    return All(), noise.normal(*batch, total)


def generator_of(manifold, x, block, t):
    """Σ t_i (e_l e_jᵀ − e_j e_lᵀ) on the flat entries, one coordinate after the other."""
    every = pairs(manifold, x)
    size = x.shape[-2] * x.shape[-1]
    batch = x.shape[:-2]
    a = torch.zeros(*batch, size, size, dtype=torch.float64)
    for at in product(*map(range, batch)):
        if isinstance(block, Groups):
            terms = [
                ((int(axes[i]), int(axes[k])), float(s[i, k]))
                for axes, s in zip(block.axes[at], t[at], strict=True)
                for i, k in combinations(range(len(axes)), 2)
            ]
            terms = [(pair, s) for pair, s in terms if pair in set(every)]
        else:
            index = range(len(every)) if isinstance(block, All) else block.index[at].tolist()
            terms = [(every[i], s) for i, s in zip(index, t[at].tolist(), strict=True)]
        for (j, l), s in terms:
            a[(*at, l, j)] += s
            a[(*at, j, l)] -= s
    return a


def apply(a, x):
    return (a @ x.double().flatten(-2).unsqueeze(-1)).squeeze(-1).unflatten(-1, x.shape[-2:])


@given(oblique, batch_shapes, sizes, numbers, dtypes, noises)
def test_the_directions_are_a_parseval_frame(manifold, batch, n, p, dtype, noise: Noise):
    x = point(noise, manifold, *batch, *shape(manifold, n, p))
    total = p * n * (n - 1) // 2
    assert (manifold.num_axes(x), manifold.num_coordinates(x)) == (n * p, total)
    assert manifold.frame_bounds == (1.0, 1.0)
    index = torch.arange(total)
    axes = manifold.axes(x, index)
    assert list(map(tuple, axes.tolist())) == pairs(manifold, x)
    assert torch.equal(manifold.number(x, *axes.unbind(-1)), index)
    frame = manifold.direction(x, index)
    assert frame.shape == (*batch, total, *x.shape[-2:])
    u = manifold.proju(x, noise.like(x))
    coefficients = (frame * u.unsqueeze(-3)).sum((-2, -1))
    assert error(coefficients.square().sum(-1), manifold.inner(x, u)) <= 1e-12
    assert error((coefficients[..., None, None] * frame).sum(-3), u) <= 1e-13
    assert manifold.direction(x.to(dtype), index).dtype == dtype
    for i in range(total):
        assert manifold.check_vector_on_tangent(x, frame[..., i, :, :])
        one = Coordinates(torch.full((*batch, 1), i), disjoint=True)
        assert torch.equal(
            frame[..., i, :, :], apply(generator_of(manifold, x, one, torch.ones(*batch, 1)), x)
        )


@pytest.mark.parametrize("kind", KINDS)
@given(oblique, batch_shapes, sizes, numbers, dtypes, noises)
def test_derivatives_are_inner_products_with_the_directions(
    kind, manifold, batch, n, p, dtype, noise: Noise
):
    x = point(noise, manifold, *batch, *shape(manifold, n, p), dtype=dtype)
    egrad = noise.like(x)
    block, t = some_block(kind, noise, manifold, x)
    velocity = apply(generator_of(manifold, x, block, t), x)
    expected = (egrad * velocity).sum((-2, -1)) * (2 if kind == "groups" else 1)
    limit = 100 * n * n * p * eps(dtype) * float(1 + egrad.abs().max() * t.abs().max())
    for y, g in product(layouts(x), layouts(egrad)):
        derivatives = manifold.derivatives(y, g, block)
        assert (derivatives.shape, derivatives.dtype) == (t.shape, dtype)
        assert error((derivatives.double() * t).flatten(len(batch)).sum(-1), expected) <= limit


@pytest.mark.parametrize("kind", KINDS)
@given(oblique, batch_shapes, sizes, numbers, dtypes, st.floats(-7, 0.7), noises)
def test_a_move_rotates_or_follows_the_geodesic(
    kind, manifold, batch, n, p, dtype, power, noise: Noise
):
    x = point(noise, manifold, *batch, *shape(manifold, n, p), dtype=dtype)
    block, t = some_block(kind, noise, manifold, x)
    t = (10**power * t).to(dtype)
    a = generator_of(manifold, x, block, t)
    if kind in ("matching", "groups") or manifold.num_coordinates(x) == 1:
        expected = apply(torch.from_numpy(scipy.linalg.expm(a.numpy())), x)
    else:
        expected = manifold.expmap(x.double(), apply(a, x))
    limit = 40 * n * p * eps(dtype) * (1 + float(t.abs().sum()))
    for y in layouts(x):
        kept = y.clone()
        outside = manifold.move(y, block, t)
        assert torch.equal(y, kept)
        assert manifold.move_(y, block, t) is y
        assert torch.equal(outside, y)
        assert error(y, expected) <= limit
        assert off_spheres(manifold, y) <= limit


@given(oblique, sizes, numbers, noises)
def test_entries_of_different_columns_have_no_coordinate(manifold, n, p, noise: Noise):
    x = point(noise, manifold, *shape(manifold, n, p))
    egrad = noise.like(x)
    whole = Groups(torch.arange(n * p).unsqueeze(0))
    derivatives = manifold.derivatives(x, egrad, whole)[0]
    share = torch.zeros(n * p, n * p, dtype=torch.bool)
    for j, l in pairs(manifold, x):
        share[j, l] = share[l, j] = True
    assert torch.equal(derivatives != 0, share)
    upper = torch.stack([derivatives[j, l] for j, l in pairs(manifold, x)])
    assert error(upper, manifold.derivatives(x, egrad, All())) <= 1e-13
    t = noise.skew(1, n * p, n * p)
    assert torch.equal(manifold.move(x, whole, t), manifold.move(x, whole, t * share))
    if p > 1:
        place = torch.arange(n * p).view(x.shape)
        first, second = (part[0] for part in spheres(manifold, place)[:2])
        with pytest.raises(ValueError, match=r"different (column|row)s"):
            manifold.number(x, first, second)


@given(oblique, sizes, numbers, dtypes, noises)
def test_coordinates_in_different_columns_commute(manifold, n, p, dtype, noise: Noise):
    x = point(noise, manifold, *shape(manifold, n, p), dtype=dtype)
    block, t = some_block("matching", noise, manifold, x)
    together = manifold.move(x, block, t)
    y = x.clone()
    for i in noise.permutations((), len(t)).tolist():
        manifold.move_(y, Coordinates(block.index[[i]], disjoint=True), t[[i]])
    assert torch.equal(y, together)
    assert int((x != y).sum()) <= 2 * len(t)


@given(oblique, batch_shapes, sizes, numbers, dtypes, noises)
def test_the_steepest_are_the_largest_of_all(manifold, batch, n, p, dtype, noise: Noise):
    x = point(noise, manifold, *batch, *shape(manifold, n, p), dtype=dtype)
    egrad = noise.like(x)
    k = 1 + int(noise.integers(manifold.num_coordinates(x)))
    every = manifold.derivatives(x, egrad, All())
    limit = 10 * eps(dtype) * float(1 + egrad.abs().max())
    for y, g in zip(layouts(x), layouts(egrad), strict=True):
        index, derivatives = manifold.steepest(y, g, k)
        assert index.shape == derivatives.shape == (*batch, k)
        assert error(derivatives, every.gather(-1, index)) <= limit
        expected = every.abs().sort(-1, descending=True).values[..., :k]
        assert error(derivatives.abs(), expected) <= limit
    bad = egrad.clone()
    bad[..., 0, 0] = torch.nan
    assert manifold.steepest(x, bad, 1)[1].isnan().all()
    for wrong in (0, manifold.num_coordinates(x) + 1):
        with pytest.raises(ValueError, match="coordinates"):
            manifold.steepest(x, egrad, wrong)


class Sizes(TorchDispatchMode):
    """How many numbers the tensors have whose memory an operation takes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {a.data_ptr() for a in args if isinstance(a, Tensor)}
        if isinstance(result, Tensor) and result.data_ptr() not in given:
            self.made.add(result.numel())
        return result

    def __enter__(self):
        self.made = set()
        return super().__enter__()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_move_of_a_contiguous_point_copies_nothing_of_its_size(transposed):
    """In place where the entries lie in order; a transposed parameter is moved by copies."""
    manifold = Oblique()
    x = point(Noise(0), manifold, 4, 3)
    y = x.mT.contiguous().mT if transposed else x.clone()
    storage, strides = y.data_ptr(), y.stride()
    t = torch.ones(1, dtype=torch.float64)
    block = Coordinates(torch.tensor([7]), disjoint=True)
    with Sizes() as sizes:
        manifold.move_(y, block, t)
    assert (x.numel() in sizes.made) is transposed
    assert (y.data_ptr(), y.stride()) == (storage, strides)
    assert torch.equal(y, manifold.move(x, block, t))


@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_move_never_waits_for_the_device(dim, dtype):
    manifold = Oblique(dim)
    x = torch.empty(3, 8, 6, device="meta", dtype=dtype)
    for block in (
        Coordinates(torch.empty(3, 4, device="meta", dtype=torch.int64), disjoint=True),
        Groups(torch.empty(3, 2, 5, device="meta", dtype=torch.int64)),
    ):
        t = manifold.derivatives(x, torch.empty_like(x), block)
        assert manifold.move_(x, block, t) is x
    index, derivatives = manifold.steepest(x, torch.empty_like(x), 5)
    assert index.shape == derivatives.shape == (3, 5)
    assert manifold.restore_(x) is x
    assert manifold.projx(x).device == x.device


# Bad input


def test_bad_blocks_change_nothing():
    manifold = Oblique()
    x = point(Noise(0), manifold, 4, 3)
    one = torch.ones(1, dtype=torch.float64)
    for kind, match, block, t in (
        (IndexError, "coordinate 18 .* has 18", Coordinates(torch.tensor([18]), True), one),
        (IndexError, "axis 12 .* has 12", Groups(torch.tensor([[0, 12]])), torch.zeros(1, 2, 2)),
        (ValueError, "two places", Coordinates(torch.tensor([0, 1]), True), one),
        (ValueError, "times have shape", Coordinates(torch.tensor([0, 17]), True), one.expand(3)),
        (ValueError, "times have shape", Groups(torch.tensor([[0, 3]])), torch.zeros(1, 3, 3)),
    ):
        for y in layouts(x):
            with pytest.raises(kind, match=match):
                manifold.move_(y, block, t)
            assert torch.equal(y, x)
    for block in (All(), Groups(torch.tensor([[0, 3]]))):
        with pytest.raises(TypeError, match="egrad is"):
            manifold.derivatives(x, x.float(), block)
    with pytest.raises(TypeError, match="egrad is"):
        manifold.steepest(x, x[:, :2], 1)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        manifold.move_(torch.ones(3), All(), one)


@given(oblique, batch_shapes, sizes, numbers, dtypes, noises)
def test_checks_reject_what_is_off(manifold, batch, n, p, dtype, noise: Noise):
    x = point(noise, manifold, *batch, *shape(manifold, n, p), dtype=dtype)
    u = manifold.proju(x, noise.like(x))
    assert manifold.check_point_on_manifold(x)
    assert manifold.check_vector_on_tangent(x, u)
    first = (0,) * len(batch)
    off = x.clone()
    spheres(manifold, off)[-1][first].mul_(1.001)
    ok, reason = manifold.check_point_on_manifold(off, explain=True)
    assert not ok
    assert "projx" in reason
    normal = u.clone()
    spheres(manifold, normal)[-1][first].add_(
        0.01 * (1 + u.norm()) * spheres(manifold, x)[-1][first]
    )
    ok, reason = manifold.check_vector_on_tangent(x, normal, explain=True)
    assert not ok
    assert "proju" in reason


@pytest.mark.parametrize(
    ("dim", "size"), [(-2, ()), (-2, (3,)), (-2, (1, 3)), (-2, (3, 0)), (-1, (3, 1)), (-1, (0, 3))]
)
def test_shapes_that_no_point_has(dim, size):
    manifold = Oblique(dim)
    assert not manifold.check_point(torch.zeros(size))
    for raises in (
        lambda: manifold.random(*size),
        lambda: manifold.origin(*size),
        lambda: manifold.projx(torch.zeros(size)),
    ):
        with pytest.raises(ValueError, match=r"Oblique with dim=-. expects \(\.\.\., n, p\)"):
            raises()


def test_options_that_do_not_exist():
    for dim in (0, 1, -3, None):
        with pytest.raises(ValueError, match=r"expected -2 \(unit columns\) or -1 \(unit rows\)"):
            Oblique(dim)
    with pytest.raises(ValueError, match="retraction 'euler'"):
        Oblique(retraction="euler")
    with pytest.raises(TypeError, match="Oblique works in float32 and float64"):
        Oblique().random(3, 3, dtype=torch.float16)
    with pytest.raises(TypeError, match="Oblique works in float32 and float64"):
        Oblique().projx(torch.ones(3, 3, dtype=torch.int64))
    assert not Oblique().check_point_on_manifold(torch.eye(3, dtype=torch.complex64))
    assert repr(Oblique(-1, "projection")) == "Oblique(dim=-1, retraction='projection') manifold"


# Descent


def descend(manifold, x, target, make, steps):
    """Move towards a target in every column; the parameter."""
    x = ManifoldParameter(x.clone(), manifold=manifold)
    optimizer = make([x])
    for _ in range(steps):
        x.grad = x.detach() - target
        optimizer.step()
    return x.detach().as_subclass(Tensor)


@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize("map_", ["expmap", "retr"])
def test_gradient_descent_is_a_loop_over_the_sphere(dim, map_):
    noise = Noise(0)
    manifold = Oblique(dim)
    x, target = (point(noise, manifold, 5, 4) for _ in range(2))

    def make(p):
        return SRGD(p, lr=0.3, momentum=0.5, map=map_)

    together = descend(manifold, x, target, make, 20)
    columns = zip(spheres(manifold, x), spheres(manifold, target), strict=True)
    loop = [descend(SPHERE, a, b, make, 20) for a, b in columns]
    assert error(together, join(manifold, loop)) <= 1e-14


@pytest.mark.parametrize("dim", [-2, -1])
def test_a_sweep_of_coordinates_is_a_loop_over_the_sphere(dim):
    """Cyclic descent goes through the columns one by one."""
    noise = Noise(0)
    manifold = Oblique(dim)
    size = shape(manifold, 4, 3)
    x, target = (point(noise, manifold, *size) for _ in range(2))

    def make(p):
        return SRCD(p, lr=0.7, selection=Cyclic())

    together = descend(manifold, x, target, make, 18)
    columns = zip(spheres(manifold, x), spheres(manifold, target), strict=True)
    loop = [descend(SPHERE, a, b, make, 6) for a, b in columns]
    assert error(together, join(manifold, loop)) <= 1e-14


@pytest.mark.parametrize("dim", [-2, -1])
def test_descent_along_every_coordinate_is_gradient_descent(dim):
    noise = Noise(0)
    manifold = Oblique(dim)
    x, target = (point(noise, manifold, 2, 4, 3) for _ in range(2))
    whole = descend(manifold, x, target, lambda p: SRGD(p, lr=0.3), 30)
    block = Block(fraction=1.0)
    every = descend(manifold, x, target, lambda p: SRCD(p, lr=0.3, selection=block), 30)
    assert error(every, whole) <= 1e-13


SELECTIONS = {
    "uniform": Uniform(),
    "Gauss-Southwell": GaussSouthwell(),
    "block": Block(size=9),
    "disjoint block": Block(size=4, disjoint=True),
}


@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize("name", SELECTIONS)
def test_coordinate_descent_finds_the_nearest_point(name, dim):
    noise = Noise(0)
    manifold = Oblique(dim)
    x, target = (point(noise, manifold, *shape(manifold, 4, 3)) for _ in range(2))
    steps = 600 if name == "uniform" else 200
    end = descend(manifold, x, target, lambda p: SRCD(p, lr=0.7, selection=SELECTIONS[name]), steps)
    assert float(manifold.dist(end, target)) <= 1e-6


@pytest.mark.parametrize("name", SELECTIONS)
def test_float32_points_stay_on_the_manifold(name):
    """Twice 300 steps of five columns, with noise for gradients; a transposed parameter takes the same."""
    ends = []
    for transposed in (False, True):
        noise = Noise(0)
        start = point(noise, Oblique(), 4, 5, dtype=torch.float32)
        start = start.mT.contiguous().mT if transposed else start
        x = ManifoldParameter(start, manifold=Oblique())
        optimizer = SRCD([x], lr=0.3, selection=SELECTIONS[name])
        for step in range(300):
            x.grad = noise.normal(4, 5, dtype=torch.float32)
            optimizer.step()
            if step == 50:
                ends.append(x.detach().as_subclass(Tensor).clone())
        assert x.is_contiguous() is not transposed
        assert off_spheres(Oblique(), x) <= 1e-6
    assert error(*ends) <= 1e-5


def test_a_layer_with_unit_rows():
    """Weight normalization without a scale: the rows of a linear layer are unit vectors."""
    layer = constrain(torch.nn.Linear(6, 4), "weight", Oblique(dim=-1))
    optimizer = SRCD(layer.parameters(), lr=0.1, selection=GaussSouthwell())
    before = layer.weight.detach().clone()
    layer(Noise(0).normal(10, 6, dtype=torch.float32)).square().mean().backward()
    optimizer.step()
    assert int((layer.weight.detach() != before).sum()) == 2
    assert off_spheres(Oblique(dim=-1), layer.weight) <= 1e-6
