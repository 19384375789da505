"""Laws of matchings and groups of axes."""

import math
from collections import Counter
from itertools import combinations

import networkx
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from givens.manifolds import (
    Coordinates,
    Euclidean,
    Groups,
    OrthogonalGroup,
    Power,
    SpecialOrthogonalGroup,
)
from givens.manifolds.pairs import round_robin
from givens.optim import SRCD, SRGD, Adam, GradientView, Grouping, Matching
from givens.optim.greedy import greedy_matching

GROUP = OrthogonalGroup()
ORDERS = ["random", "round-robin", "greedy"]

seeds = st.integers(0, 2**32 - 1)
orders = st.sampled_from(ORDERS)
batches = st.sampled_from([(), (1,), (2, 3)])


def view_of(d, batch=(), *, data=0, step=0, number=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(data)
    x = GROUP.random(*batch, d, d, dtype=dtype, generator=generator)
    g = torch.randn(*batch, d, d, dtype=dtype, generator=generator)
    return GradientView(GROUP, x, g, seed=data, step=step, number=number)


def weights(d, data, batch=()):
    generator = torch.Generator().manual_seed(data)
    w = torch.rand(*batch, d, d, dtype=torch.float64, generator=generator)
    return w + w.mT


def groups_of(block):
    return [[tuple(group) for group in point.tolist()] for point in block.axes.flatten(0, -3)]


@given(orders, st.integers(2, 11), batches, st.integers(0, 30), seeds)
def test_a_matching_is_disjoint_and_as_large_as_can_be(order, d, batch, step, data):
    block = Matching(order).select(view_of(d, batch, data=data, step=step))
    assert block.axes.shape == (*batch, d // 2, 2)
    for pairs in groups_of(block) if batch else [[tuple(p) for p in block.axes.tolist()]]:
        assert len({axis for pair in pairs for axis in pair}) == 2 * (d // 2)
        assert all(0 <= j < l < d for j, l in pairs)


@given(orders, st.integers(2, 11), st.data(), batches, st.integers(0, 30), seeds)
def test_groups_are_disjoint_of_the_size_asked_for(order, d, draw, batch, step, data):
    r = draw.draw(st.integers(2, d))
    block = Grouping(r, order).select(view_of(d, batch, data=data, step=step))
    assert block.axes.shape == (*batch, d // r, r)
    for point in block.axes.reshape(-1, d // r * r).tolist():
        assert len(set(point)) == len(point)
        assert 0 <= min(point) <= max(point) < d
    assert bool((block.axes.diff(dim=-1) > 0).all())


@pytest.mark.parametrize(("d", "selection"), [(4, Matching()), (5, Matching()), (6, Grouping(3))])
def test_random_dealing_is_uniform(d, selection):
    draws = 2000
    seen = Counter()
    for step in range(draws):
        axes = selection.select(view_of(d, step=step)).axes.tolist()
        seen[tuple(sorted(map(tuple, axes)))] += 1
    n, r = d // len(axes[0]), len(axes[0])
    kinds = math.factorial(d) // (
        math.factorial(d - n * r) * math.factorial(r) ** n * math.factorial(n)
    )
    assert len(seen) == kinds
    expected = draws / kinds
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < kinds - 1 + 5 * math.sqrt(2 * (kinds - 1))


@given(st.integers(2, 12))
def test_a_tournament_of_matchings_meets_every_pair_once(d):
    rounds = d - 1 + d % 2
    met = Counter(
        tuple(pair)
        for step in range(rounds)
        for pair in Matching("round-robin").select(view_of(d, step=step)).axes.tolist()
    )
    assert met == Counter(combinations(range(d), 2))


@given(st.integers(2, 12), st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_rounds_of_a_tournament_can_be_asked_for(d, rounds):
    every = round_robin(d)
    some = round_robin(d, torch.tensor(rounds))
    assert torch.equal(some, every[[k % len(every) for k in rounds]])


@pytest.mark.parametrize("d", range(2, 14))
def test_in_a_tournament_of_groups_every_two_axes_meet(d):
    for r in range(2, d + 1):
        met, steps = set(), 0
        while len(met) < math.comb(d, 2) and steps < 4 * d * d:
            block = Grouping(r, "round-robin").select(view_of(d, step=steps))
            for group in block.axes.tolist():
                met |= set(combinations(group, 2))
            steps += 1
        assert len(met) == math.comb(d, 2), (d, r)


@given(st.integers(4, 12), seeds)
def test_a_tournament_of_even_groups_that_fill_all_axes_takes_as_few_steps_as_it_can(n, data):
    d, r = 4 * (n // 2), 4
    met = set()
    for step in range(2 * d // r - 1):
        for group in Grouping(r, "round-robin").select(view_of(d, step=step)).axes.tolist():
            met |= set(combinations(group, 2))
    assert len(met) == math.comb(d, 2)


def sequential(weight):
    """The greedy algorithm of the textbooks."""
    d = len(weight)
    edges = sorted(combinations(range(d), 2), key=lambda e: (-float(weight[e]), e))
    taken, pairs = set(), []
    for j, l in edges:
        if not {j, l} & taken:
            taken |= {j, l}
            pairs.append((j, l))
    return pairs


@given(st.integers(2, 14), st.booleans(), seeds)
def test_the_greedy_matching_is_the_sequential_one(d, ties, data):
    weight = weights(d, data)
    if ties:
        weight = weight.round()
    pairs = [tuple(sorted(pair)) for pair in greedy_matching(weight).tolist()]
    assert sorted(pairs) == sorted(sequential(weight))


@given(st.integers(2, 12), seeds)
def test_the_greedy_matching_has_half_of_the_largest_weight(d, data):
    weight = weights(d, data) ** 3
    graph = networkx.Graph()
    for j, l in combinations(range(d), 2):
        graph.add_edge(j, l, weight=float(weight[j, l]))
    best = sum(float(weight[e]) for e in networkx.max_weight_matching(graph))
    ours = sum(float(weight[j, l]) for j, l in greedy_matching(weight).tolist())
    assert best / 2 <= ours <= best * (1 + 1e-12)


def test_a_sparse_greedy_matching_takes_few_rounds(monkeypatch):
    """Where hardly any two axes are coupled, as many rounds as couplings, and not one for every pair."""
    d, rounds = 64, []
    weight = torch.zeros(d, d)
    weight[:3] = torch.rand(3, d, generator=torch.Generator().manual_seed(0))
    argmax = Tensor.argmax
    monkeypatch.setattr(Tensor, "argmax", lambda *a, **k: (rounds.append(1), argmax(*a, **k))[1])
    pairs = greedy_matching(weight + weight.mT)
    assert sorted(pairs.flatten().tolist()) == list(range(d))
    assert len(rounds) <= 4


def test_the_greedy_matching_of_a_batch_is_that_of_each():
    weight = weights(9, 3, (2, 3))
    whole = greedy_matching(weight).sort(-1).values
    for a in range(2):
        for b in range(3):
            alone = greedy_matching(weight[a, b]).sort(-1).values
            assert torch.equal(whole[a, b], alone)


@pytest.mark.parametrize("d", [5, 8])
def test_too_few_rounds_leave_a_matching_all_the_same(d, monkeypatch):
    # A path whose edges grow along it is matched one edge a round.
    weight = torch.zeros(d, d, dtype=torch.float64)
    for k in range(d - 1):
        weight[k, k + 1] = weight[k + 1, k] = k + 1
    monkeypatch.setattr("builtins.range", lambda *_: iter([0]))
    pairs = greedy_matching(weight)
    monkeypatch.undo()
    assert pairs.shape == (d // 2, 2)
    assert len(set(pairs.flatten().tolist())) == 2 * (d // 2)
    assert (d - 2, d - 1) in [tuple(sorted(p)) for p in pairs.tolist()]


@given(seeds)
def test_greedy_groups_find_blocks_that_are_there(data):
    """Axes coupled in groups of 4 and to no others come together."""
    generator = torch.Generator().manual_seed(data)
    order = torch.randperm(12, generator=generator)
    x = torch.eye(12, dtype=torch.float64)
    g = torch.zeros(12, 12, dtype=torch.float64)
    for group in order.view(3, 4):
        for j, l in combinations(group.tolist(), 2):
            g[j, l] = 1 + float(torch.rand((), generator=generator))
    view = GradientView(GROUP, x, g)
    found = {tuple(group) for group in Grouping(4, "greedy").select(view).axes.tolist()}
    assert found == {tuple(sorted(group.tolist())) for group in order.view(3, 4)}


@given(st.integers(3, 14), batches, seeds)
def test_axes_that_are_coupled_clearly_come_together_in_bfloat16_too(d, batch, data):
    """Weights that are a factor 1.5 apart stay in their order, so that the greedy choice stays."""
    generator = torch.Generator().manual_seed(data)
    x = torch.eye(d, dtype=torch.float64).expand(*batch, d, d)
    size = 1.5 ** torch.randperm(d * (d - 1) // 2, generator=generator).double()
    g = torch.zeros_like(x)
    j, l = torch.triu_indices(d, d, 1)
    g[..., j, l] = size / size.max()
    view = GradientView(GROUP, x, g)
    exact, rough = (Matching("greedy", dtype=t).select(view).axes for t in (None, torch.bfloat16))
    assert torch.equal(exact, rough)
    exact, rough = (Grouping(3, "greedy", t).select(view).axes for t in (None, torch.bfloat16))
    assert torch.equal(exact, rough)


@given(st.integers(2, 9), batches, seeds, st.sampled_from([torch.float32, torch.float64]))
def test_groups_of_two_are_rotations(d, batch, data, dtype):
    view = view_of(d, batch, data=data, dtype=dtype)
    block = Matching().select(view)
    pairs = Coordinates(GROUP.group_coordinates(view.x, block).squeeze(-1), disjoint=True)
    t = view.derivatives(block)
    torch.testing.assert_close(t[..., 0, 1], view.derivatives(pairs), rtol=1e-4, atol=1e-5)
    moved = GROUP.move(view.x, block, t)
    assert torch.equal(moved, GROUP.move(view.x, pairs, t[..., 0, 1].contiguous()))


@pytest.mark.parametrize("scaling", [None, Adam()])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_srcd_descends_in_groups(order, size, scaling):
    generator = torch.Generator().manual_seed(0)
    p = ManifoldParameter(GROUP.random(7, 7, generator=generator, det=1), manifold=GROUP)
    target = GROUP.random(7, 7, generator=generator, det=1)
    optimizer = SRCD([p], 0.2 if scaling is None else 0.06, Grouping(size, order), scaling)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (p - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_one_group_of_all_axes_is_srgd():
    results = []
    for build in (lambda p: SRCD([p], 0.1, Grouping(6)), lambda p: SRGD([p], 0.1)):
        generator = torch.Generator().manual_seed(4)
        x = GROUP.random(6, 6, dtype=torch.float64, generator=generator)
        p = ManifoldParameter(x, manifold=GROUP)
        p.grad = torch.randn(6, 6, dtype=torch.float64, generator=generator)
        build(p).step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-13)


def test_a_nan_is_found_wherever_it_is():
    view = view_of(6)
    view.egrad[2, 4] = torch.nan
    for selection in (Matching("greedy"), Grouping(3, "greedy")):
        block = selection.select(view)
        assert isinstance(block, Groups)
        assert not bool(view.derivatives(block).isfinite().all())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Matching("best"), "order"),
        (lambda: Grouping(1), "size"),
        (lambda: Grouping(2.0), "size"),
        (lambda: Grouping(3, "best"), "order"),
        (lambda: Grouping(3, dtype=torch.bfloat16), "leave out dtype"),
        (lambda: Matching("round-robin", dtype=torch.bfloat16), "leave out dtype"),
        (lambda: Grouping(9).select(view_of(4)), "9 axes"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_groups_on_a_geometry_without_pairs_are_refused():
    p = ManifoldParameter(torch.zeros(4), manifold=Euclidean())
    p.grad = torch.ones(4)
    with pytest.raises(NotImplementedError, match="disjoint=True"):
        SRCD([p], 0.1, Grouping(2)).step()
    assert bool((p == 0).all())


@pytest.mark.parametrize("order", ORDERS)
def test_on_a_geometry_of_single_axes_a_matching_is_everything(order):
    p = ManifoldParameter(torch.zeros(4), manifold=Euclidean())
    p.grad = torch.tensor([1.0, -2.0, 3.0, 0.0])
    SRCD([p], 0.1, Matching(order)).step()
    torch.testing.assert_close(p.detach(), -0.1 * p.grad)


@pytest.mark.parametrize("order", ORDERS)
def test_on_a_power_every_copy_is_matched(order):
    manifold = Power(SpecialOrthogonalGroup())
    p = ManifoldParameter(manifold.random(4, 3, 3), manifold=manifold)
    p.grad = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    before = p.detach().clone()
    SRCD([p], 0.1, Matching(order)).step()
    assert bool((p != before).any(-1).any(-1).all())
