"""Laws of adaptive steps: torch's rules on the derivatives of each coordinate, as often as it is selected."""

import copy
import io

import pytest
import torch
from geoopt import ManifoldParameter, Sphere
from hypothesis import given
from hypothesis import strategies as st
from rules import Everything

from givens.manifolds import Coordinates, Groups, Oblique, OrthogonalGroup
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    AxisRMSProp,
    Block,
    Cyclic,
    GaussSouthwell,
    Moments,
    Momentum,
    RMSProp,
    Uniform,
)

GROUP = OrthogonalGroup()
seeds = st.integers(0, 2**32 - 1)

# A scaling, and torch's optimizer with the same settings.
PAIRS = {
    "momentum": (Momentum(0.8), lambda p, lr: torch.optim.SGD(p, lr, momentum=0.8)),
    "dampened": (
        Momentum(0.8, dampening=0.3),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.8, dampening=0.3),
    ),
    "nesterov": (
        Momentum(0.8, nesterov=True),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.8, nesterov=True),
    ),
    "rmsprop": (
        RMSProp(0.9, eps=1e-6),
        lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.9, eps=1e-6),
    ),
    "adam": (Adam((0.8, 0.95)), lambda p, lr: torch.optim.Adam(p, lr, betas=(0.8, 0.95))),
    "amsgrad": (
        Adam((0.8, 0.95), amsgrad=True),
        lambda p, lr: torch.optim.Adam(p, lr, betas=(0.8, 0.95), amsgrad=True),
    ),
}
every_pair = pytest.mark.parametrize("name", PAIRS)
SCALINGS = [
    Momentum(0.9),
    RMSProp(),
    RMSProp(clock="steps"),
    Adam(),
    Adam(amsgrad=True),
    Adam(clock="steps"),
    AxisRMSProp(),
]
SELECTIONS = [
    Uniform(),
    GaussSouthwell(),
    Cyclic(),
    Block(size=3),
    Block(size=2, disjoint=True),
    Block(fraction=1.0),
]


def parameter(d: int, data: int, *batch: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(data)
    x = GROUP.random(*batch, d, d, dtype=dtype, generator=generator)
    return ManifoldParameter(x, manifold=GROUP), generator


def noise(p, generator):
    return torch.randn(p.shape, dtype=p.dtype, generator=generator)


class Recorded:
    """A scaling that remembers what it was given and what it returned."""

    def __init__(self, scaling):
        self.scaling, self.given, self.returned, self.index = scaling, [], [], []

    def scale(self, derivatives, moments):
        result = self.scaling.scale(derivatives, moments)
        self.given.append(derivatives.clone())
        self.returned.append(result.clone())
        self.index.append(None if moments._index is None else moments._index.clone())
        return result


@every_pair
@given(data=seeds)
def test_a_coordinate_follows_torch_s_rule_on_its_own_derivatives(name, data):
    scaling, build = PAIRS[name]
    recorded = Recorded(scaling)
    p, generator = parameter(4, data)
    optimizer = SRCD([p], 0.1, Block(size=2, rule=Uniform()), recorded, seed=data)
    for _ in range(12):
        p.grad = noise(p, generator)
        optimizer.step()
    for i in range(6):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        torch_s = build([t], 1.0)
        for index, g, direction in zip(
            recorded.index, recorded.given, recorded.returned, strict=True
        ):
            if i not in index:
                continue
            place = index.tolist().index(i)
            t.grad = g[place].clone()
            before = t.detach().clone()
            torch_s.step()
            torch.testing.assert_close(before - t.detach(), direction[place], rtol=1e-9, atol=1e-12)


@every_pair
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_parameter_without_a_manifold_gets_torch_s_steps(name, shape, dtype):
    scaling, build = PAIRS[name]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, dtype=dtype, generator=generator)
    ours, by_srgd, torch_s = (torch.nn.Parameter(start.clone()) for _ in range(3))
    optimizers = [
        SRCD([ours], 0.1, scaling=scaling),
        SRGD([by_srgd], 0.1, scaling=scaling),
        build([torch_s], 0.1),
    ]
    for _ in range(10):
        gradient = torch.randn(shape, dtype=dtype, generator=generator)
        for p, optimizer in zip((ours, by_srgd, torch_s), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, torch_s, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours, by_srgd)


@given(
    st.sampled_from([0.0, 0.5, 0.9]),
    st.lists(st.tuples(st.integers(1, 5), st.floats(-3, 3)), min_size=1, max_size=8),
)
def test_with_the_clock_of_steps_an_average_is_the_weighted_mean_over_the_visits(decay, visits):
    state, step, seen = {}, 0, []
    for gap, value in visits:
        step += gap
        value = torch.tensor([value], dtype=torch.float64)
        moments = Moments(state, value, 5, index=torch.tensor([3]), step=step)
        average, weight = moments.average("a", value, decay, "steps")
        moments.store()
        seen.append((step, float(value)))
        weights = [decay ** (step - s) if s < step else 1.0 for s, _ in seen]
        expected = sum(w * v for w, (_, v) in zip(weights, seen, strict=True)) / sum(weights)
        assert float(average / weight) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_srcd_descends_with_every_scaling_and_selection(scaling, selection):
    p, generator = parameter(5, 3)
    target = GROUP.random(5, 5, dtype=torch.float64, generator=generator, det=1)
    if torch.linalg.det(p.detach()) < 0:
        target[:, 0] *= -1
    lr = 0.02
    optimizer = SRCD([p], lr, selection, scaling)
    first = None
    for _ in range(400):
        optimizer.zero_grad()
        loss = (p - target).square().sum()
        loss.backward()
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.5 * first
    assert (p.mT @ p - torch.eye(5)).abs().max() < 1e-12


class OneGroup:
    """Every coordinate, as the one group of all axes."""

    def select(self, view):
        return Groups(torch.arange(view.num_axes).expand(*view.batch, 1, -1))


class Listed:
    """Every coordinate by its number, in another order."""

    def select(self, view):
        index = torch.arange(view.num_coordinates).flip(0)
        return Coordinates(index.expand(*view.batch, -1), disjoint=False)


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_kind_of_block_does_not_matter(scaling, batch):
    results = []
    for build in (
        lambda p: SRGD([p], 0.05, scaling=scaling),
        lambda p: SRCD([p], 0.05, Everything(), scaling),
        lambda p: SRCD([p], 0.05, Listed(), scaling),
        lambda p: SRCD([p], 0.05, OneGroup(), scaling),
    ):
        p, generator = parameter(5, 1, *batch)
        optimizer = build(p)
        for _ in range(5):
            p.grad = noise(p, generator)
            optimizer.step()
        results.append(p.detach().clone())
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=0, atol=1e-12)


@given(seeds)
def test_the_frame_moves_with_the_point(data):
    """Rotating point and loss together, W ↦ QW, changes none of the angles."""
    p, generator = parameter(4, data)
    q = GROUP.random(4, 4, dtype=torch.float64, generator=generator)
    other = ManifoldParameter((q @ p.detach()).clone(), manifold=GROUP)
    optimizers = [SRCD([x], 0.1, Block(size=3), Adam(), seed=1) for x in (p, other)]
    for _ in range(6):
        p.grad = noise(p, generator)
        other.grad = q @ p.grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(q @ p.detach(), other.detach(), rtol=0, atol=1e-12)


@given(seeds)
def test_axis_rms_divides_by_the_product_of_the_axes_over_the_mean_of_all(data):
    generator = torch.Generator().manual_seed(data)
    j, l = torch.triu_indices(6, 6, offset=1)
    axes, state = torch.stack([j, l], -1), {}
    histories = [[] for _ in range(6)]
    for _ in range(4):
        index = torch.randperm(15, generator=generator)[:4]
        g = torch.randn(4, dtype=torch.float64, generator=generator)
        moments = Moments(state, g, 15, index=index, axes=lambda i=index: axes[i], num_axes=6)
        scaled = AxisRMSProp(0.8, eps=0.0).scale(g, moments)
        moments.store()
        for axis, history in enumerate(histories):
            here = [float(v) ** 2 for i, v in zip(index, g, strict=True) if axis in axes[i]]
            if here:
                history.append(sum(here) / len(here))
        means = {}
        for axis, history in enumerate(histories):
            weights = [0.8**age for age in range(len(history))][::-1]
            if history:
                total = sum(w * v for w, v in zip(weights, history, strict=True))
                means[axis] = total / sum(weights)
        overall = sum(means.values()) / len(means)
        for i, v, result in zip(index, g, scaled, strict=True):
            a, b = axes[i].tolist()
            expected = float(v) / (means[a] * means[b] / overall) ** 0.5
            assert float(result) == pytest.approx(expected, rel=1e-9)


@given(seeds)
def test_axis_rms_keeps_one_number_an_axis(data):
    p, generator = parameter(8, data)
    optimizer = SRCD([p], 0.1, Block(size=3, rule=Uniform()), AxisRMSProp(), seed=data)
    p.grad = noise(p, generator)
    optimizer.step()
    shapes = {k: tuple(v.shape) for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
    assert shapes == {"axis_square": (8,), "axis_square_weight": (8,)}


def test_a_coordinate_that_is_not_selected_keeps_its_memory():
    p, generator = parameter(5, 0)
    optimizer = SRCD([p], 0.1, Block(size=3), Adam())
    for _ in range(4):
        p.grad = noise(p, generator)
        before = copy.deepcopy(dict(optimizer.state[p]))
        optimizer.step()
        after = optimizer.state[p]
        if "visits" in before:
            still = after["visits"] == before["visits"]
            assert int(still.sum()) == 7
            for name in ("first", "second"):
                assert torch.equal(after[name][still], before[name][still])


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_resumes_to_the_same_bits(scaling, dtype):
    def run(p, optimizer, first, last):
        for step in range(first, last):
            p.grad = noise(p, torch.Generator().manual_seed(step))
            optimizer.step()

    def build(p):
        return SRCD([p], 0.1, Block(size=3, rule=Uniform()), scaling, seed=5)

    whole, _ = parameter(5, 0, dtype=dtype)
    run(whole, build(whole), 0, 10)
    part, _ = parameter(5, 0, dtype=dtype)
    optimizer = build(part)
    run(part, optimizer, 0, 6)
    file = io.BytesIO()
    torch.save({"p": part.detach(), "o": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    resumed = ManifoldParameter(saved["p"].clone(), manifold=GROUP)
    optimizer = build(resumed)
    optimizer.load_state_dict(saved["o"])
    run(resumed, optimizer, 6, 10)
    assert torch.equal(whole, resumed)


def test_counts_past_2_to_the_24_survive_a_saved_state():
    p, generator = parameter(3, 0, dtype=torch.float32)
    optimizer = SRCD([p], 0.1, scaling=Adam())
    p.grad = noise(p, generator)
    optimizer.step()
    optimizer.state[p]["visits"].fill_(2**24 + 1)
    other, _ = parameter(3, 0, dtype=torch.float32)
    resumed = SRCD([other], 0.1, scaling=Adam())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state[other]["visits"].dtype == torch.int32
    assert bool((resumed.state[other]["visits"] == 2**24 + 1).all())


def test_on_an_accelerator_memory_of_what_is_not_finite_stays(monkeypatch):
    monkeypatch.setattr(SRCD, "_checked_by_host", lambda *_: False)
    p, generator = parameter(4, 0)
    optimizer = SRCD([p], 0.1, Everything(), Adam())
    p.grad = noise(p, generator)
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)}
    p.grad[:, 1] = torch.nan
    optimizer.step()
    bad = torch.tensor([1 in pair for pair in GROUP.axes(p, torch.arange(6)).tolist()])
    for name, value in before.items():
        assert torch.equal(optimizer.state[p][name][bad], value[bad])
        assert bool(optimizer.state[p][name].isfinite().all())
    with pytest.raises(FloatingPointError):
        optimizer.check_finite()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Adam((1.0, 0.9)), "betas"),
        (lambda: Adam(0.9), "pair"),
        (lambda: Adam((0.9,)), "pair"),
        (lambda: Adam(eps=-1.0), "eps"),
        (lambda: Adam(clock="hours"), "clock"),
        (lambda: RMSProp(alpha=-0.1), "alpha"),
        (lambda: Momentum(1.0), "momentum"),
        (lambda: Momentum(0.9, dampening=0.1, nesterov=True), "nesterov"),
        (lambda: AxisRMSProp(alpha=1.5), "alpha"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_what_is_no_scaling_is_refused():
    p, _ = parameter(3, 0)
    with pytest.raises(TypeError, match="scale\\(derivatives, moments\\)"):
        SRCD([p], 0.1, scaling="adam")
    with pytest.raises(TypeError, match="Adam\\(\\)"):
        SRCD([p], 0.1, scaling=Adam)
    with pytest.raises(ValueError, match="Momentum"):
        SRGD([p], 0.1, momentum=0.9, scaling=Adam())
    x = ManifoldParameter(torch.tensor([1.0, 0.0]), manifold=Sphere())
    with pytest.raises(TypeError, match="has no coordinates"):
        SRGD([x], 0.1, scaling=Adam())


def test_a_state_of_another_scaling_is_refused():
    p, generator = parameter(3, 0)
    optimizer = SRCD([p], 0.1, scaling=Adam())
    p.grad = noise(p, generator)
    optimizer.step()
    other = SRCD([p], 0.1, scaling=RMSProp())
    with pytest.raises(ValueError, match="scaling=Adam"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_groups_that_a_geometry_does_not_number_are_refused_before_anything_is_changed():
    """On spheres side by side, entries of different columns have no coordinate to remember."""
    first, _ = parameter(3, 0)
    oblique = Oblique()
    columns = ManifoldParameter(oblique.origin(2, 2, dtype=torch.float64), manifold=oblique)
    optimizer = SRCD([first, columns], 0.1, OneGroup(), Adam())
    before = [p.detach().clone() for p in (first, columns)]
    for p in (first, columns):
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="different columns"):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip((first, columns), before, strict=True))
    assert not optimizer.state
