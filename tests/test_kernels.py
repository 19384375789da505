"""The kernels do what the plain code does, to rounding: on a GPU, or in Triton's interpreter."""

import math

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Noise, batch_shapes, defect, dtypes, error, layouts, noises
from torch import Tensor

from givens.manifolds import (
    Groups,
    Oblique,
    OrthogonalGroup,
    Power,
    Scaled,
    SpecialOrthogonalGroup,
    Sphere,
    Stiefel,
    backend,
)
from givens.manifolds.columns import put_, take_groups
from givens.manifolds.pairs import number_to_pair, pair_to_number
from givens.manifolds.rotations import reduced, rotate_columns_
from givens.optim import SRCD, Adam, Block, Cyclic, GaussSouthwell, Grouping, Matching, Uniform
from givens.optim.base import ManifoldOptimizer

kernels = pytest.importorskip("givens.manifolds.kernels")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GROUP = OrthogonalGroup()


@pytest.fixture(autouse=True)
def poisoned():
    """Fresh memory is full of NaN, so that what a kernel does not write is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def matching(noise: Noise, batch: tuple[int, ...], n: int, k: int) -> tuple[Tensor, Tensor]:
    """k disjoint pairs of n columns, as columns."""
    columns = noise.permutations(batch, n)[..., : 2 * k].unflatten(-1, (k, 2))
    return columns.to(DEVICE).sort(-1).values.unbind(-1)


def columns(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(-1, index.unsqueeze(-2).expand(*x.shape[:-1], index.shape[-1]))


def slopes(x: Tensor, g: Tensor, j: Tensor, l: Tensor) -> Tensor:
    """The derivatives, in float64."""
    x, g = x.double(), g.double()
    return (columns(x, j) * columns(g, l) - columns(x, l) * columns(g, j)).sum(-2)


def rotated(x: Tensor, j: Tensor, l: Tensor, angle: Tensor) -> Tensor:
    """The rotation by its matrix, in float64."""
    cos, sin = angle.double().cos().unsqueeze(-2), angle.double().sin().unsqueeze(-2)
    first, second = columns(x.double(), j), columns(x.double(), l)
    y = x.double().clone()
    for index, value in ((j, cos * first - sin * second), (l, sin * first + cos * second)):
        y.scatter_(-1, index.unsqueeze(-2).expand(value.shape), value)
    return y


heights = st.integers(1, 9) | st.sampled_from([31, 33, 70])
widths = st.integers(2, 9)
problems = (batch_shapes, heights, widths, dtypes, noises, st.integers(0, 2), st.data())
grouped = (*problems[:3], *problems[4:], st.integers(1, 20))  # in float32
EPS = torch.finfo(torch.float32).eps


@given(*problems)
def test_slopes(batch, m, n, dtype, noise: Noise, layout, data):
    x, g = (noise.normal(*batch, m, n, dtype=dtype).to(DEVICE) for _ in range(2))
    j, l = matching(noise, batch, n, data.draw(st.integers(0, n // 2)))
    expected = slopes(x, g, j, l)
    actual = kernels.slopes(layouts(x)[layout], layouts(g)[data.draw(st.integers(0, 2))], j, l)
    assert actual.dtype == dtype
    scale = float(x.abs().sum() * g.abs().max())
    assert error(actual, expected) <= 4 * torch.finfo(dtype).eps * scale


@given(*problems, st.sampled_from([1e-7, 1.0, 100.0, 1e6]))
def test_rotations(batch, m, n, dtype, noise: Noise, layout, data, size):
    x = noise.normal(*batch, m, n, dtype=dtype).to(DEVICE)
    j, l = matching(noise, batch, n, data.draw(st.integers(0, n // 2)))
    angle = (size * noise.normal(*j.shape)).to(DEVICE)
    y = layouts(x)[layout]
    version = y._version
    assert kernels.rotate_(y, j, l, angle) is y
    assert (y._version > version) == (j.numel() > 0)
    eps = torch.finfo(dtype).eps
    assert error(y, rotated(x, j, l, angle)) <= 8 * (eps + 1e-16 * size) * float(x.abs().max())
    assert error(y, rotate_columns_(x.clone(), j, l, angle)) <= 4 * eps * float(x.abs().max())
    resting = torch.ones(*batch, n, dtype=torch.bool, device=DEVICE)
    for index in (j, l):
        resting.scatter_(-1, index, False)
    resting = resting.unsqueeze(-2).expand(x.shape)
    assert torch.equal(y[resting], x[resting])


@given(dtypes, noises, st.sampled_from([1e-6, 1.0, 1e5]))
def test_the_same_sine_and_tangent_are_chosen(dtype, noise: Noise, size):
    """Seen in what becomes of the columns (1, 0) and (0, 1)."""
    angle = (size * noise.normal(1)).to(DEVICE)
    _, sine, tangent = (float(part) for part in reduced(angle, dtype, torch.ones_like(angle)))
    x = torch.eye(2, dtype=dtype, device=DEVICE)
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    kernels.rotate_(x, zero, zero + 1, angle)
    cosine = 1 - sine * tangent
    for entry in x.abs().flatten().tolist():
        assert min(abs(entry - abs(sine)), abs(entry - cosine)) <= torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quarter_turns_are_exact(dtype):
    x = torch.arange(8.0, dtype=dtype, device=DEVICE).view(2, 4)
    j, l = (torch.tensor([c], device=DEVICE) for c in (1, 3))
    for quarters, (first, second) in enumerate([((1, 5), (3, 7)), ((-3, -7), (1, 5))]):
        y = x.clone()
        angle = torch.tensor([quarters * math.pi / 2], dtype=torch.float64, device=DEVICE)
        kernels.rotate_(y, j, l, angle)
        assert y[:, 1].tolist() == list(first)
        assert y[:, 3].tolist() == list(second)


@settings(max_examples=5)
@given(noises, st.floats(0.01, 3))
def test_many_rotations_stay_orthogonal(noise: Noise, angle):
    x = noise.point(64, 64, dtype=torch.float32)[:, :4].to(DEVICE)
    j, l = (torch.tensor([c], device=DEVICE) for c in (0, 2))
    angle = torch.tensor([angle], dtype=torch.float64, device=DEVICE)
    for _ in range(300):
        kernels.rotate_(x, j, l, angle)
    assert defect(x.cpu()) <= 1e-6


@given(*grouped)
def test_slopes_of_groups(batch, m, n, noise: Noise, layout, data, r):
    n += r
    x, g = (noise.normal(*batch, m, n, dtype=torch.float32).to(DEVICE) for _ in range(2))
    axes = noise.groups(batch, n, r).axes.to(DEVICE)
    axes = axes[..., : data.draw(st.integers(0, n // r)), :]
    h = layouts(g)[data.draw(st.integers(0, 2))]
    actual = kernels.group_slopes(layouts(x)[layout], h, axes)
    a = take_groups(x.double(), axes).mT @ take_groups(g.double(), axes)
    limit = 4 * EPS * float(x.abs().sum() * g.abs().max())
    assert actual.dtype == torch.float32
    assert error(actual, a - a.mT) <= limit
    assert torch.equal(actual, -actual.mT)


@given(*grouped)
def test_turns_of_groups(batch, m, n, noise: Noise, layout, data, r):
    n += r
    x = noise.normal(*batch, m, n, dtype=torch.float32).to(DEVICE)
    axes = noise.groups(batch, n, r).axes.to(DEVICE)
    axes = axes[..., : data.draw(st.integers(0, n // r)), :]
    e = noise.normal(*axes.shape, r, dtype=torch.float32).to(DEVICE)
    y = layouts(x)[layout]
    assert kernels.turn_groups_(y, axes, e) is y
    columns = take_groups(x.double(), axes)
    expected = x.double().clone()
    turned = (columns + columns @ e.double()).transpose(-3, -2).flatten(-2)
    put_(expected, axes.flatten(-2), turned)
    limit = 4 * EPS * (1 + r * float(e.abs().max() if e.numel() else 0))
    assert error(y, expected) <= limit * float(x.abs().max())


def test_groups_of_many_rows():
    """So many that several programs share them, and that one takes several tiles."""
    noise = Noise(0)
    x, g = (noise.normal(2, 700, 40, dtype=torch.float32).to(DEVICE) for _ in range(2))
    axes = noise.groups((2,), 40, 17).axes.to(DEVICE)
    a = take_groups(x.double(), axes).mT @ take_groups(g.double(), axes)
    assert error(kernels.group_slopes(x, g, axes), a - a.mT) <= 1e-4
    wide = noise.groups((2,), 40, 1).axes.expand(2, 40, 1).repeat(1, 30, 1).to(DEVICE)
    assert error(kernels.group_slopes(x, g, wide), torch.zeros(2, 1200, 1, 1)) == 0


def descend_(x: Tensor, g: Tensor, j: Tensor, l: Tensor | None, **options: object) -> Tensor:
    settings = {"rate": -0.5, "radians": 0.25, "limit": 1e6} | options
    stopped = settings.pop("stopped", torch.zeros((), dtype=torch.bool, device=DEVICE))
    return kernels.descend_(x, g, j, l, stopped=stopped, **settings)


@given(batch_shapes, heights, widths, noises, st.data(), st.booleans())
def test_a_step_is_derivative_and_rotation(batch, m, n, noise: Noise, data, numbered):
    x, g = (noise.normal(*batch, m, n, dtype=torch.float32).to(DEVICE) for _ in range(2))
    j, l = matching(noise, batch, n, data.draw(st.integers(0, n // 2)))
    rate = data.draw(st.sampled_from([-0.5, torch.tensor(-0.5), torch.tensor(-0.5, device=DEVICE)]))
    y, h = layouts(x)[data.draw(st.integers(0, 2))], layouts(g)[data.draw(st.integers(0, 2))]
    index = pair_to_number(j, l, n)
    assert descend_(y, h, *((index, None) if numbered else (j, l)), rate=rate) is y
    expected = rotated(x, j, l, -0.5 * 0.25**2 * slopes(x, g, j, l))
    size = float(x.abs().max()) * (1 + float(x.abs().sum() * g.abs().max()))
    assert error(y, expected) <= 1e-6 * size


def test_a_step_in_columns_that_are_read_twice(monkeypatch):
    noise = Noise(0)
    x, g = (noise.normal(2, 50, 6, dtype=torch.float32).to(DEVICE) for _ in range(2))
    j, l = matching(noise, (2,), 6, 3)
    whole = descend_(x.clone(), g, j, l)
    monkeypatch.setattr(kernels, "_LONGEST", 16)
    assert error(whole, x) > 0
    assert error(descend_(x.clone(), g, j, l), whole) <= 1e-6


def test_numbers_of_pairs_at_their_largest():
    """Where rows of the triangle begin and end, up to 65,536 columns."""
    n = 65_536
    total = n * (n - 1) // 2
    starts = torch.tensor([0, 1, 2, 1000, 46_340, n - 3, n - 2])
    begins = pair_to_number(starts, starts + 1, n)
    numbers = torch.cat([begins, begins[1:] - 1, torch.tensor([total - 1])]).unique()
    x, g = torch.zeros(2, len(numbers), 1, n, device=DEVICE)
    j, l = (index.unsqueeze(-1).unsqueeze(-1).to(DEVICE) for index in number_to_pair(numbers, n))
    x.scatter_(-1, j, 1.0)
    g.scatter_(-1, l, 1.0)
    y = descend_(x.clone(), g, numbers.unsqueeze(-1).to(DEVICE), None)
    assert torch.equal((y != x).nonzero()[:, 2].view(-1, 2), torch.cat([j, l], -1).squeeze(1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_pair_that_cannot_be_moved_stays_and_stops_all_that_follow(bad):
    noise = Noise(1)
    x, g = (noise.normal(5, 6, dtype=torch.float32).to(DEVICE) for _ in range(2))
    j, l = (torch.tensor(c, device=DEVICE) for c in ([0, 2], [1, 3]))
    stopped = torch.zeros((), dtype=torch.bool, device=DEVICE)
    h = g.clone()
    h[2, 1] = bad
    y = descend_(x.clone(), h, j, l, stopped=stopped)
    assert bool(stopped)
    assert torch.equal(y[:, :2], x[:, :2])
    assert torch.equal(y[:, 4:], x[:, 4:])
    assert torch.equal(descend_(x.clone(), g, j, l, stopped=stopped), x)
    stopped.zero_()
    assert not torch.equal(descend_(x.clone(), g, j, l, stopped=stopped)[:, :2], x[:, :2])
    assert not bool(stopped)


def test_nothing_of_nothing():
    none = torch.empty(2, 0, dtype=torch.int64, device=DEVICE)
    x = torch.ones(2, 3, 4, device=DEVICE)
    assert kernels.slopes(x, x, none, none).shape == (2, 0)
    assert torch.equal(kernels.rotate_(x.clone(), none, none, none.double()), x)
    assert torch.equal(descend_(x.clone(), x, none, none), x)
    x, none = x[:0], torch.empty(0, 1, dtype=torch.int64, device=DEVICE)
    assert kernels.slopes(x, x, none, none).shape == (0, 1)


# Which calls they get


@pytest.fixture
def used(monkeypatch):
    """Send every call to the kernels that can go there, and count them."""
    names = ("slopes", "rotate_", "descend_", "group_slopes", "turn_groups_")
    calls = dict.fromkeys(names, 0)

    def counted(name):
        function = getattr(kernels, name)

        def wrapper(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        return wrapper

    for name in calls:
        monkeypatch.setattr(kernels, name, counted(name))
    monkeypatch.setattr(backend, "on_gpu", lambda _: True)
    monkeypatch.setattr(ManifoldOptimizer, "_checked_by_host", lambda *_: False)
    return calls


def steps(manifold, size, selection, scaling, lr=0.1) -> Tensor:
    noise = Noise(3)
    generator = torch.Generator().manual_seed(0)
    x = manifold.random(*size, dtype=torch.float32, generator=generator)
    p = ManifoldParameter(x.to(DEVICE), manifold=manifold)
    optimizer = SRCD([p], lr, selection, scaling)
    for _ in range(4):
        p.grad = noise.normal(*size, dtype=torch.float32).to(DEVICE)
        optimizer.step()
    optimizer.check_finite()
    return p.detach()


SPACES = {
    "O(6)": (GROUP, (6, 6)),
    "batch of O(5)": (GROUP, (3, 5, 5)),
    "SO(5)": (SpecialOrthogonalGroup(), (5, 5)),
    "Stiefel": (Stiefel(), (7, 4)),
    "canonical Stiefel": (Stiefel("canonical"), (7, 4)),
    "sphere": (Sphere(), (6,)),
    "oblique": (Oblique(), (5, 4)),
    "scaled": (Scaled(OrthogonalGroup(), 2.0), (5, 5)),
    "power": (Power(OrthogonalGroup()), (3, 4, 4)),
}
SELECTIONS = {
    "uniform": Uniform(),
    "cyclic": Cyclic(),
    "steepest": GaussSouthwell(),
    "block": Block(size=2, disjoint=True),
    "matching": Matching(),
    "rounds": Matching(rounds=3),
    "groups": Grouping(3),
}


@pytest.mark.parametrize("scaling", [None, Adam()], ids=["plain", "adam"])
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_optimizers_take_the_same_steps(space, selection, scaling, used, monkeypatch):
    whole = isinstance(selection, Grouping) or selection == Matching(rounds=3)
    if whole and not space[0].every_pair:
        pytest.skip("there are no groups")
    with_kernels = steps(*space, selection, scaling)
    before = dict(used)
    monkeypatch.setattr(backend, "on_gpu", lambda _: False)
    assert error(with_kernels, steps(*space, selection, scaling)) <= 2e-5
    assert used == before
    assert sum(before.values()) > 0 or isinstance(space[0], Oblique)


def test_a_plain_step_is_one_call(used):
    steps(GROUP, (6, 6), Matching(), None)
    assert {name: count for name, count in used.items() if count} == {"descend_": 4}
    used.update(descend_=0)
    steps(GROUP, (6, 6), Matching(), Adam())
    assert {name: count for name, count in used.items() if count} == {"slopes": 4, "rotate_": 4}
    steps(GROUP, (6, 6), Matching(rounds=3), None)
    assert {name: count for name, count in used.items() if count} == {"slopes": 16, "rotate_": 16}


def test_groups_that_are_too_large_go_to_the_plain_code(used, monkeypatch):
    small = steps(GROUP, (8, 8), Grouping(4), None)
    assert used["group_slopes"] == used["turn_groups_"] == 4
    monkeypatch.setattr(kernels, "LARGEST_GROUP", 3)
    assert error(steps(GROUP, (8, 8), Grouping(4), None), small) <= 1e-6
    assert used["group_slopes"] == used["turn_groups_"] == 4


class Longer(OrthogonalGroup):
    """A geometry of a user's, with a scale of its own."""

    def step_scale(self, x, block):
        return 2 * super().step_scale(x, block)


def test_a_geometry_that_changes_a_verb_is_not_passed_over(used):
    ours = steps(Longer(), (5, 5), Uniform(), None)
    assert used["descend_"] == 0
    assert error(ours, steps(GROUP, (5, 5), Uniform(), None, lr=0.05)) <= 1e-6


def test_what_goes_to_the_plain_code(used):
    x = torch.ones(2, 3, 4, 4, device=DEVICE)
    assert backend.kernels_for(x, x) is kernels
    assert backend.kernels_for(x.transpose(0, 1)) is None
    assert backend.kernels_for(x[:, :2]) is None
    assert backend.kernels_for(x.half()) is None
    assert backend.kernels_for(torch.ones(65_535, 1, 2, device=DEVICE)) is kernels
    assert backend.kernels_for(torch.ones(65_536, 1, 2, device=DEVICE)) is None
    assert backend.kernels_for(x.to(torch.complex64)) is None
    assert backend.kernels_for(x.double()) is kernels
    assert backend.kernels_for(x, group=3) is kernels
    assert backend.kernels_for(x.double(), group=3) is None
    x.requires_grad_()
    assert backend.kernels_for(x) is None
    with torch.no_grad():
        assert backend.kernels_for(x) is kernels


def test_on_a_cpu_there_are_none():
    assert backend.kernels_for(torch.eye(3)) is None


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_of_groups_are_rounded_only_where_torch_allows_it(
    precision, monkeypatch, allow_rounding
):
    """Moves keep all digits even then."""
    said = {}

    class Launch(dict):
        def __init__(self, name):
            self.name = name

        def __missing__(self, grid):
            return lambda *args, **options: said.update({self.name: options["PRECISION"]})

    allow_rounding(precision)
    for name in ("_group_slopes_kernel", "_turn_groups_kernel"):
        monkeypatch.setattr(kernels, name, Launch(name))
    x, axes = torch.eye(6), torch.tensor([[0, 2, 3]])
    kernels.group_slopes(x, x, axes)
    kernels.turn_groups_(x, axes, torch.zeros(1, 3, 3))
    exact = precision == "highest"
    assert said == {
        "_group_slopes_kernel": "ieee" if exact else "tf32",
        "_turn_groups_kernel": "ieee" if exact else "tf32x3",
    }


def test_groups_of_two_are_pairs(used):
    noise = Noise(5)
    x = noise.point(6, 6, dtype=torch.float32).to(DEVICE)
    axes = torch.tensor([[0, 3], [1, 4]], device=DEVICE)
    t = torch.zeros(2, 2, 2, device=DEVICE)
    t[:, 0, 1], t[:, 1, 0] = 0.3, -0.3
    y = GROUP.move(x, Groups(axes), t)
    assert used["rotate_"] == 1
    angle = torch.full((2,), 0.3 * GROUP.radians, dtype=torch.float64, device=DEVICE)
    assert error(y, rotated(x, axes[:, 0], axes[:, 1], angle)) <= 1e-6


def test_grouping_by_two_is_one_call(used):
    steps(GROUP, (6, 6), Grouping(2), None)
    assert used["descend_"] == 4
