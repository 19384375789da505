"""Laws of several matchings a step."""

import copy
import io
import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batch_shapes, defect, dtypes, noises

from givens.manifolds import (
    All,
    Coordinates,
    Euclidean,
    Grassmann,
    Groups,
    Lorentz,
    OrthogonalGroup,
    Product,
    Scaled,
    SpecialOrthogonalGroup,
    SpecialUnitaryGroup,
    Sphere,
    Stiefel,
    UnitaryGroup,
)
from givens.manifolds.pairs import pair_to_number, round_robin
from givens.manifolds.testing import Validating
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    AxisRMSProp,
    GradientView,
    Matching,
    Momentum,
    RMSProp,
    Rounds,
)

GROUP = OrthogonalGroup()
SCALINGS = [Momentum(0.8), RMSProp(), Adam(clock="steps"), Adam(amsgrad=True), AxisRMSProp()]
orders = st.sampled_from(["random", "round-robin"])


def most(d):
    """Rounds of a tournament of d axes."""
    return d - 1 + d % 2


def view_of(noise, d, batch=(), step=0):
    x = noise.point(*batch, d, d)
    return GradientView(GROUP, x, noise.like(x), seed=noise.seed, step=step)


def rounds_of(block):
    return block.axes if isinstance(block, Rounds) else block.axes.unsqueeze(-3)


def parameter(manifold, *shape, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return ManifoldParameter(manifold.random(*shape, dtype=dtype), manifold=manifold)


# Which pairs


@given(noises, st.integers(2, 11), batch_shapes, st.integers(0, 40))
def test_one_round_is_a_matching_as_it_was(noise, d, batch, step):
    view = view_of(noise, d, batch, step)
    drawn = view_of(noise, d, batch, step).random.distinct(d, d // 2 * 2, *batch)
    expected = drawn.unflatten(-1, (-1, 2)).sort(-1).values
    block = Matching("random", 1).select(view)
    assert isinstance(block, Groups)
    assert torch.equal(block.axes, expected)
    block = Matching("round-robin", 1).select(view)
    assert torch.equal(block.axes, round_robin(d, torch.tensor([step]))[0].expand(block.axes.shape))


@given(noises, orders, st.integers(2, 11), st.data(), batch_shapes, st.integers(0, 40))
def test_no_axis_is_twice_in_a_round_and_no_pair_in_a_step(noise, order, d, draw, batch, step):
    m = draw.draw(st.integers(1, most(d)))
    axes = rounds_of(Matching(order, m).select(view_of(noise, d, batch, step)))
    assert axes.shape == (*batch, m, d // 2, 2)
    for point in axes.reshape(-1, m, d // 2, 2).tolist():
        for matching in point:
            assert len({axis for pair in matching for axis in pair}) == d // 2 * 2
        pairs = {tuple(pair) for matching in point for pair in matching}
        assert len(pairs) == m * (d // 2)
        assert all(0 <= j < l < d for j, l in pairs)
        if m == most(d):
            assert pairs == set(combinations(range(d), 2))


@pytest.mark.parametrize("d", [4, 5])
def test_every_random_round_is_uniform(d):
    draws, seen = 2000, [Counter() for _ in range(3)]
    x = torch.eye(d)
    for step in range(draws):
        axes = Matching(rounds=3).select(GradientView(GROUP, x, x, step=step)).axes
        for counter, matching in zip(seen, axes.tolist(), strict=True):
            counter[tuple(sorted(map(tuple, matching)))] += 1
    kinds = math.factorial(d) // (2 ** (d // 2) * math.factorial(d // 2))
    expected = draws / kinds
    for counter in seen:
        assert len(counter) == kinds
        chi_square = sum((count - expected) ** 2 / expected for count in counter.values())
        assert chi_square < kinds - 1 + 5 * math.sqrt(2 * (kinds - 1))


@given(noises, st.integers(2, 9), st.integers(1, 9), st.integers(0, 20))
def test_round_robin_goes_through_the_tournament_in_its_order(noise, d, m, steps):
    m = min(m, most(d))
    every = round_robin(d)
    for step in (0, 1, steps):
        axes = rounds_of(Matching("round-robin", m).select(view_of(noise, d, step=step)))
        for k, matching in enumerate(axes):
            assert torch.equal(matching, every[(step * m + k) % most(d)])


# What a step does


def turn(d, j, l, angle):
    """The rotation G_jl as a matrix."""
    g = torch.eye(d, dtype=torch.float64)
    g[j, j] = g[l, l] = math.cos(angle)
    g[j, l], g[l, j] = math.sin(angle), -math.sin(angle)
    return g


@given(noises, orders, st.integers(2, 8), st.data(), batch_shapes, st.floats(-3, 3))
def test_a_step_is_the_loop_over_rounds_and_pairs(noise, order, d, draw, batch, lr):
    """All derivatives from the starting point, the moves one after the other."""
    m = draw.draw(st.integers(1, most(d)))
    x, g = noise.point(*batch, d, d), noise.normal(*batch, d, d)
    axes = rounds_of(Matching(order, m).select(GradientView(GROUP, x, g, seed=noise.seed)))
    expected = x.clone().view(-1, d, d)
    for w, e, rounds in zip(expected, g.view(-1, d, d), axes.view(-1, m, d // 2, 2), strict=True):
        a = w.mT @ e
        for matching in rounds.tolist():
            for j, l in matching:
                w.copy_(w @ turn(d, j, l, -abs(lr) * float(a[j, l] - a[l, j]) / 2))
    p = ManifoldParameter(x.clone(), manifold=GROUP)
    p.grad = g
    SRCD([p], abs(lr), Matching(order, m), seed=noise.seed).step()
    torch.testing.assert_close(p.detach().as_subclass(torch.Tensor), expected.view_as(x))


class AtOnce:
    """The coordinates of rounds as one block of numbers."""

    def __init__(self, selection):
        self.selection = selection

    def select(self, view):
        j, l = rounds_of(self.selection.select(view)).flatten(-3, -2).unbind(-1)
        return Coordinates(pair_to_number(j, l, view.num_axes), disjoint=False)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@settings(max_examples=8)
@given(noise=noises, order=orders, d=st.integers(3, 7), batch=st.sampled_from([(), (2,)]))
def test_a_scaling_remembers_what_it_does_of_one_block(noise, order, d, batch, scaling):
    """Rounds have no coordinate in common: each is visited once a step."""
    selection = Matching(order, 2)
    start = noise.point(*batch, d, d)
    p, q = (ManifoldParameter(start.clone(), manifold=GROUP) for _ in range(2))
    by_rounds = SRCD([p], 0.1, selection, scaling, seed=noise.seed)
    at_once = SRCD([q], 0.1, AtOnce(selection), scaling, seed=noise.seed)
    for _ in range(3):
        with torch.no_grad():
            q.copy_(p)
        p.grad = noise.like(p.detach())
        q.grad = p.grad.clone()
        by_rounds.step()
        at_once.step()
    own, other = by_rounds.state[p], at_once.state[q]
    assert own["step"] == other["step"] == 3
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(own[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaling", [None, Adam()], ids=str)
def test_rounds_agree_with_the_exponential_to_first_order(scaling):
    """With all rounds, halving a short step quarters the distance from SRGD's."""
    distances = []
    for lr in (1e-3, 5e-4):
        p, q = (parameter(GROUP, 6, 6) for _ in range(2))
        p.grad = torch.linspace(-1, 1, 36, dtype=torch.float64).sin().view(6, 6)
        q.grad = p.grad.clone()
        SRCD([p], lr, Matching(rounds=5), scaling).step()
        SRGD([q], lr, scaling=scaling).step()
        distances.append(float((p - q).detach().norm()))
    assert distances[0] / distances[1] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("scaling", [None, Adam(), AxisRMSProp()], ids=str)
@settings(max_examples=10)
@given(noise=noises, d=st.integers(3, 7), dtype=dtypes)
def test_a_step_that_does_not_wait_for_the_device_is_the_same(noise, d, dtype, scaling):
    start, ends = noise.point(2, d, d, dtype=dtype), []
    gradients = [noise.like(start) for _ in range(3)]
    for by_host in (True, False):
        p = ManifoldParameter(start.clone(), manifold=GROUP)
        optimizer = SRCD([p], 0.1, Matching(rounds=2), scaling, seed=noise.seed)
        optimizer._checked_by_host = lambda group, p, by_host=by_host: by_host
        for gradient in gradients:
            p.grad = gradient
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_what_is_not_finite_stays_without_waiting_and_the_rest_of_the_step_goes_on():
    p = parameter(GROUP, 6, 6)
    p.grad = torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6).cos()
    p.grad[0, 2] = math.nan  # in every pair of column 2
    start = p.detach().clone()
    optimizer = SRCD([p], 0.1, Matching("round-robin", 2))
    optimizer._checked_by_host = lambda group, p: False
    optimizer.step()
    moved = (p.detach() - start).abs().amax(0) > 0
    assert p.isfinite().all()
    assert not moved[2]
    assert moved.any()
    with pytest.raises(FloatingPointError):
        optimizer.check_finite()


# On every manifold

SPACES = {
    "O": (OrthogonalGroup(), (6, 6)),
    "O, a batch": (OrthogonalGroup(), (2, 5, 5)),
    "SO": (SpecialOrthogonalGroup(), (4, 4)),
    "Stiefel": (Stiefel(), (6, 3)),
    "Stiefel canonical": (Stiefel("canonical"), (5, 2)),
    "Grassmann": (Grassmann(), (5, 2)),
    "Sphere": (Sphere(), (6,)),
    "Lorentz": (Lorentz(), (5,)),
    "U": (UnitaryGroup(), (4, 4)),
    "SU": (SpecialUnitaryGroup(), (4, 4)),
    "Scaled": (Scaled(Sphere(), 2.0), (5,)),
}


@pytest.mark.parametrize("scaling", [None, AxisRMSProp()], ids=str)
@pytest.mark.parametrize("name", SPACES)
def test_rounds_descend_on_every_manifold(name, scaling):
    """Under the eyes of the wrapper that checks every block."""
    manifold, shape = SPACES[name]
    dtype = torch.complex128 if isinstance(manifold, UnitaryGroup) else torch.float64
    p = ManifoldParameter(
        parameter(manifold, *shape, dtype=dtype).detach(), manifold=Validating(manifold)
    )
    target = parameter(manifold, *shape, seed=1, dtype=dtype).detach().as_subclass(torch.Tensor)
    optimizer = SRCD([p], 0.2 if scaling is None else 0.05, Matching(rounds=3), scaling)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        y = p.as_subclass(torch.Tensor)
        loss = (y @ y.mH - target @ target.mH) if name == "Grassmann" else y - target
        loss = loss.abs().square().sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert manifold.check_point_on_manifold(p.detach().as_subclass(torch.Tensor))


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=6)
@given(noise=noises)
def test_a_step_is_the_loop_over_rounds_on_every_manifold(name, noise):
    """Derivatives and step scales are those of the starting point."""
    manifold, shape = SPACES[name]
    dtype = torch.complex128 if isinstance(manifold, UnitaryGroup) else torch.float64
    p = parameter(manifold, *shape, dtype=dtype, seed=noise.seed)
    p.grad = noise.like(p.detach())
    x, g = p.detach().as_subclass(torch.Tensor).clone(), p.grad.as_subclass(torch.Tensor)
    rounds = list(Matching(rounds=3).select(GradientView(manifold, x, g, seed=noise.seed)))
    y = x.clone()
    for groups in rounds:
        slopes, scale = manifold.derivatives(x, g, groups), manifold.step_scale(x, groups)
        manifold.move_(y, groups, torch.where(scale > 0, -0.1 * slopes / scale, 0.0))
    SRCD([p], 0.1, Matching(rounds=3), seed=noise.seed).step()
    torch.testing.assert_close(p.detach().as_subclass(torch.Tensor), y, rtol=0, atol=1e-12)


# Staying on the manifold


@pytest.mark.parametrize("rounds", [1, 3, 15])
def test_rounding_is_taken_away_as_moves_go_by(rounds):
    p = parameter(GROUP, 16, 16, dtype=torch.float32)
    optimizer = SRCD([p], 0.3, Matching(rounds=rounds))
    period = GROUP.restore_period(p)
    generator = torch.Generator().manual_seed(0)
    worst, since = 0.0, 0
    for _ in range(200):
        p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        since += min(8 * rounds, math.ceil(period / 2))
        since = 0 if since >= period else since
        assert optimizer.state[p]["moved"] == since
        worst = max(worst, defect(p))
    assert worst < 1e-6


# Refused, and nothing changed


@pytest.mark.parametrize("rounds", [0, -1, 1.5, "2"])
def test_rounds_are_a_number(rounds):
    with pytest.raises(ValueError, match="rounds must be a whole number"):
        Matching(rounds=rounds)


def test_the_heaviest_come_in_one_round():
    assert Matching("greedy", 1) == Matching("greedy")
    with pytest.raises(ValueError, match="may hold no whole one"):
        Matching("greedy", 2)


@pytest.mark.parametrize(
    ("manifold", "shape", "rounds", "error", "said"),
    [
        (GROUP, (4, 4), 4, ValueError, "a tournament of the 4 axes .* has 3 rounds"),
        (GROUP, (5, 5), 6, ValueError, "a tournament of the 5 axes .* has 5 rounds"),
        (Euclidean(), (4,), 2, NotImplementedError, "not every two axes have a coordinate"),
        (
            Product((Sphere(), 4), (Sphere(), 3)),
            (7,),
            2,
            NotImplementedError,
            "not every two axes have a coordinate",
        ),
    ],
)
def test_what_has_too_few_rounds_is_refused(manifold, shape, rounds, error, said):
    first, second = parameter(GROUP, 9, 9), parameter(manifold, *shape)
    optimizer = SRCD([first, second], 0.1, Matching(rounds=rounds), Adam())
    for p in (first, second):
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in (first, second)]
    with pytest.raises(error, match=said):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip((first, second), before, strict=True))
    assert not optimizer.state_dict()["state"]


def test_a_gradient_that_is_not_finite_changes_nothing():
    p = parameter(GROUP, 6, 6)
    optimizer = SRCD([p], 0.1, Matching(rounds=5), Adam())
    p.grad = torch.ones_like(p)
    optimizer.step()
    before, state = p.detach().clone(), copy.deepcopy(optimizer.state_dict())
    p.grad[0, 0] = math.inf
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert torch.equal(p, before)
    assert str(optimizer.state_dict()) == str(state)


def test_a_resumed_run_goes_on_to_the_bit():
    gradients = torch.randn(8, 6, 6, generator=torch.Generator().manual_seed(0))

    def train(p, optimizer, some):
        for gradient in some:
            p.grad = gradient.clone()
            optimizer.step()

    whole, first, second = (parameter(GROUP, 6, 6, dtype=torch.float32) for _ in range(3))
    train(whole, SRCD([whole], 0.1, Matching(rounds=3), Adam(), seed=4), gradients)
    optimizer = SRCD([first], 0.1, Matching(rounds=3), Adam(), seed=4)
    train(first, optimizer, gradients[:5])
    file = io.BytesIO()
    torch.save([first.detach().as_subclass(torch.Tensor), optimizer.state_dict()], file)
    file.seek(0)
    x, state = torch.load(file)
    with torch.no_grad():
        second.copy_(x)
    resumed = SRCD([second], 0.1, Matching(rounds=3), Adam(), seed=4)
    resumed.load_state_dict(state)
    train(second, resumed, gradients[5:])
    assert torch.equal(whole, second)
    with pytest.raises(ValueError, match="rounds=3"):
        SRCD([second], 0.1, Matching(rounds=2), Adam(), seed=4).load_state_dict(state)


def test_a_selection_sees_the_derivatives_of_rounds():
    g = torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6).cos()
    view = GradientView(GROUP, torch.eye(6, dtype=torch.float64), g)
    block = Matching("round-robin", 5).select(view)
    entries = view.derivatives(block)[..., 0, 1]
    j, l = block.axes.flatten(-3, -2).unbind(-1)
    every = view.derivatives(All())
    torch.testing.assert_close(entries, every[pair_to_number(j, l, 6)])
