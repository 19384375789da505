"""Laws of the selections: which coordinates each of them chooses."""

import copy
import itertools
import math
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from givens.manifolds import All, CoordinateBlock, Coordinates, Euclidean, OrthogonalGroup
from givens.optim import (
    SRCD,
    Block,
    Cyclic,
    GaussSouthwell,
    GradientView,
    Rule,
    Selection,
    Uniform,
)
from givens.optim.greedy import first_disjoint

MANIFOLD = OrthogonalGroup()
RULES = [GaussSouthwell(), Uniform(), Cyclic()]

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(2, 9)
batches = st.sampled_from([(), (3,), (2, 2)])
rules = st.sampled_from(RULES)


def view_of(d: int, batch: tuple[int, ...] = (), *, data: int = 0, **key: int) -> GradientView:
    """View of a random gradient at a random point, in float64."""
    generator = torch.Generator().manual_seed(data)
    shape = (*batch, d, d)
    x = MANIFOLD.random(*shape, dtype=torch.float64, generator=generator)
    egrad = torch.randn(shape, dtype=torch.float64, generator=generator)
    return GradientView(MANIFOLD, x.as_subclass(Tensor), egrad, **key)


def slopes(x: Tensor, egrad: Tensor) -> np.ndarray:
    """|∇_i f| of one matrix, from the paper's equation (9), in numpy."""
    a = x.numpy().T @ egrad.numpy()
    return np.abs((a - a.T)[np.triu_indices(len(a), 1)]) / math.sqrt(2)


def pairs(d: int) -> list[tuple[int, int]]:
    return [(j, l) for j in range(d) for l in range(j + 1, d)]


def matrices(view: GradientView, index: Tensor) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Each point of a batch with its gradient and its block."""
    assert index.shape[:-1] == view.batch
    d = view.num_axes
    return list(
        zip(
            view.x.reshape(-1, d, d),
            view.egrad.reshape(-1, d, d),
            index.reshape(-1, index.shape[-1]).tolist(),
            strict=True,
        )
    )


# Gauss–Southwell


@given(dims, batches, seeds)
def test_gauss_southwell_picks_the_largest_derivative(d, batch, data):
    view = view_of(d, batch, data=data)
    block = GaussSouthwell().select(view)
    assert isinstance(block, Coordinates)
    assert block.disjoint
    for x, egrad, (index,) in matrices(view, block.index):
        assert index == np.argmax(slopes(x, egrad))


@given(dims, batches, seeds, st.data())
def test_a_block_is_the_k_largest_derivatives_in_order(d, batch, data, draw):
    k = draw.draw(st.integers(1, d * (d - 1) // 2))
    view = view_of(d, batch, data=data)
    block = Block(size=k).select(view)
    assert isinstance(block, Coordinates)
    for x, egrad, index in matrices(view, block.index):
        assert index == np.argsort(-slopes(x, egrad), kind="stable")[:k].tolist()


@given(dims, batches, seeds, st.data())
def test_the_view_gives_the_derivatives_of_the_ranked_block(d, batch, data, draw):
    """The ranking has computed them: they must be those of the coordinates, in the block's order."""
    view = view_of(d, batch, data=data)
    block = Block(size=draw.draw(st.integers(1, view.num_coordinates))).select(view)
    every = MANIFOLD.derivatives(view.x, view.egrad, All())
    torch.testing.assert_close(view.derivatives(block), every.gather(-1, block.index))
    # Another block, of the same view, gets its own.
    other = Coordinates(block.index.flip(-1), disjoint=False)
    torch.testing.assert_close(view.derivatives(other), every.gather(-1, other.index))


@given(dims, batches, seeds, st.data())
def test_a_ranking_in_bfloat16_chooses_by_exact_derivatives(d, batch, data, draw):
    """Of few coordinates all are candidates, so that it chooses what the exact ranking does."""
    k = draw.draw(st.integers(1, d * (d - 1) // 2))
    view, exact = (view_of(d, batch, data=data) for _ in range(2))
    if 2 * k + 14 < view.num_coordinates:
        return
    block = Block(size=k, rule=GaussSouthwell(torch.bfloat16)).select(view)
    assert torch.equal(block.index, Block(size=k).select(exact).index)
    assert view.ranked
    torch.testing.assert_close(view.derivatives(block), exact.derivatives(block))


@pytest.mark.parametrize("d", [40, 100])
def test_a_ranking_in_bfloat16_finds_the_steepest_of_many(d):
    for data in range(20):
        view = view_of(d, data=data)
        rough, exact = (Block(size=9, rule=GaussSouthwell(t)) for t in (torch.bfloat16, None))
        assert torch.equal(rough.select(view).index, exact.select(view).index)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int32, 16])
def test_a_ranking_in_what_is_no_type_is_refused(dtype):
    with pytest.raises(TypeError, match="must be a floating-point type"):
        GaussSouthwell(dtype)


def test_a_ranking_in_another_type_needs_a_geometry_that_has_it():
    p = ManifoldParameter(torch.zeros(4), manifold=Euclidean())
    p.grad = torch.ones(4)
    with pytest.raises(NotImplementedError, match="Euclidean ranks its coordinates in the type"):
        SRCD([p], 0.1, GaussSouthwell(torch.bfloat16)).step()
    assert bool((p == 0).all())


def test_gauss_southwell_puts_what_is_not_finite_first():
    """Or the error would go unseen: a comparison with NaN is false."""
    for bad in (math.nan, math.inf, -math.inf):
        view = view_of(6)
        view.egrad[2, 4] = bad
        assert 4 in MANIFOLD.axes(view.x, GaussSouthwell().select(view).index).flatten().tolist()


# Blocks


@given(
    st.integers(2, 30),
    st.one_of(st.floats(1e-6, 1.0, exclude_min=True), st.sampled_from([0.005, 0.5, 1.0])),
    rules,
)
def test_a_fraction_is_a_share_of_all_coordinates_and_at_least_one(d, fraction, rule):
    total = d * (d - 1) // 2
    block = Block(fraction=fraction, rule=rule).select(view_of(d))
    assert block.index.shape == (max(1, round(fraction * total)),)


@given(dims, batches, rules, seeds, st.data())
def test_a_block_holds_no_coordinate_twice(d, batch, rule, data, draw):
    k = draw.draw(st.integers(1, d * (d - 1) // 2))
    step = draw.draw(st.integers(0, 1000))
    block = Block(size=k, rule=rule).select(view_of(d, batch, data=data, step=step))
    assert block.index.shape == (*batch, k)
    assert bool((block.index.sort(-1).values.diff(dim=-1) > 0).all())
    assert bool(((block.index >= 0) & (block.index < d * (d - 1) // 2)).all())
    assert block.disjoint == (k == 1)


def greedy_matching(ranking: list[int], d: int, k: int) -> list[int]:
    """One coordinate after the other; pass over what shares an axis with one taken before."""
    taken: list[int] = []
    used: set[int] = set()
    for index in ranking:
        pair = pairs(d)[index]
        if len(taken) < k and used.isdisjoint(pair):
            taken.append(index)
            used.update(pair)
    return taken


@given(st.integers(2, 12), batches, rules, seeds, st.data())
def test_a_disjoint_block_is_the_sequential_greedy_matching(d, batch, rule, data, draw):
    k = draw.draw(st.integers(1, d // 2))
    key = {"seed": draw.draw(seeds), "step": draw.draw(st.integers(0, 1000))}
    view = view_of(d, batch, data=data, **key)
    block = Block(size=k, rule=rule, disjoint=True).select(view)
    assert isinstance(block, Coordinates)
    assert block.disjoint
    ranking = rule.choose(view_of(d, batch, data=data, **key), view.num_coordinates)
    rankings = ranking.reshape(-1, view.num_coordinates).tolist()
    for (_, _, index), order in zip(matrices(view, block.index), rankings, strict=True):
        assert index == greedy_matching(order, d, k)


@dataclass(frozen=True)
class Order:
    """A user's rule: an order of all coordinates that it was given."""

    order: Tensor

    def choose(self, view: GradientView, k: int) -> Tensor:
        return self.order[..., :k]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_the_matching_is_greedy_however_the_order_interlocks(k):
    """What comes late must not be taken before what comes early but waits for others."""
    d, generator = 10, torch.Generator().manual_seed(k)
    view = view_of(d)
    for _ in range(200):
        order = torch.randperm(math.comb(d, 2), generator=generator)
        block = Block(size=k, rule=Order(order), disjoint=True).select(view)
        assert block.index.tolist() == greedy_matching(order.tolist(), d, k)


@given(st.integers(2, 40), rules, seeds)
def test_a_disjoint_block_can_be_as_large_as_half_the_axes(d, rule, data):
    block = Block(size=d // 2, rule=rule, disjoint=True).select(view_of(d, data=data))
    axes = MANIFOLD.axes(torch.empty(d, d), block.index).flatten().tolist()
    assert len(axes) == len(set(axes)) == d // 2 * 2


@given(st.integers(2, 12), rules, seeds, st.data())
def test_coordinates_of_one_axis_are_always_disjoint(n, rule, data, draw):
    """Translations: a disjoint block is the plain one."""
    k = draw.draw(st.integers(2, n))
    egrad = torch.randn(n, generator=torch.Generator().manual_seed(data))
    first, second = (GradientView(Euclidean(), torch.zeros(n), egrad) for _ in range(2))
    plain = Block(size=k, rule=rule).select(first)
    disjoint = Block(size=k, rule=rule, disjoint=True).select(second)
    assert torch.equal(plain.index, disjoint.index)


@dataclass(frozen=True)
class LastOnes:
    """A user's rule: the highest numbers first."""

    def choose(self, view: GradientView, k: int) -> Tensor:
        total = view.num_coordinates
        return torch.arange(total - 1, total - 1 - k, -1).expand(*view.batch, k)


@given(st.integers(2, 9), batches)
def test_a_user_s_rule_works_in_a_block(d, batch):
    total = d * (d - 1) // 2
    order = list(range(total))[::-1]
    plain = Block(fraction=1.0, rule=LastOnes()).select(view_of(d, batch))
    assert plain.index.reshape(-1, total).tolist() == [order] * math.prod(batch)
    disjoint = Block(size=d // 2, rule=LastOnes(), disjoint=True).select(view_of(d, batch))
    expected = [greedy_matching(order, d, d // 2)] * math.prod(batch)
    assert disjoint.index.reshape(-1, d // 2).tolist() == expected


# Cyclic


@given(dims, batches, st.integers(0, 10**6))
def test_cyclic_visits_every_coordinate_once_a_sweep(d, batch, sweep):
    total = d * (d - 1) // 2
    steps = range(sweep * total, (sweep + 1) * total)
    chosen = [Cyclic().select(view_of(d, batch, step=step)).index for step in steps]
    assert all(index.shape == (*batch, 1) for index in chosen)
    for one in torch.cat(chosen, -1).reshape(-1, total).tolist():
        assert one == list(range(total))


@given(dims, st.data())
def test_a_cyclic_block_visits_every_coordinate_equally_often(d, draw):
    total = d * (d - 1) // 2
    k = draw.draw(st.integers(1, total))
    block = Block(size=k, rule=Cyclic())
    visited = torch.cat([block.select(view_of(d, step=step)).index for step in range(total)])
    assert visited.bincount().tolist() == [k] * total
    if k < total:
        assert visited.tolist() == list(range(total)) * k


@given(dims, st.data())
def test_a_disjoint_cyclic_block_visits_every_coordinate(d, draw):
    total = d * (d - 1) // 2
    block = Block(size=draw.draw(st.integers(1, d // 2)), rule=Cyclic(), disjoint=True)
    visited = torch.cat([block.select(view_of(d, step=step)).index for step in range(total)])
    assert set(visited.tolist()) == set(range(total))


# Uniform


def assert_uniform(cells: list[int], num_cells: int) -> None:
    """Chi-square; the keys are fixed, so the outcome is too."""
    counts = np.bincount(cells, minlength=num_cells)
    assert counts.shape == (num_cells,)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4, counts


def chosen(selection: Selection, d: int, steps: int, *batch: int, **key: int) -> Tensor:
    """Blocks of consecutive steps, shape (steps, *batch, k)."""
    x = torch.eye(d).expand(*batch, d, d)
    views = [GradientView(MANIFOLD, x, x, step=step, **key) for step in range(steps)]
    return torch.stack([selection.select(view).index for view in views])


@pytest.mark.parametrize("seed", [0, 1])
def test_uniform_is_uniform_and_its_steps_are_independent(seed):
    drawn = chosen(Uniform(), 4, 4_000, seed=seed).flatten().tolist()
    assert_uniform(drawn, 6)
    assert_uniform([6 * a + b for a, b in itertools.pairwise(drawn)], 36)


def test_uniform_is_independent_across_parameters():
    first = chosen(Uniform(), 4, 4_000, number=0).flatten()
    second = chosen(Uniform(), 4, 4_000, number=1).flatten()
    assert_uniform((6 * first + second).tolist(), 36)


def test_uniform_is_independent_across_a_batch():
    drawn = chosen(Uniform(), 4, 2_000, 3).squeeze(-1)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert_uniform((6 * drawn[:, one] + drawn[:, other]).tolist(), 36)


@pytest.mark.parametrize("k", [2, 3])
def test_a_uniform_block_holds_every_set_equally_often(k):
    """For d = 4: C(6, k) sets of coordinates."""
    drawn = chosen(Block(size=k, rule=Uniform()), 4, 1, 60_000)[0].sort(-1).values
    sets = torch.combinations(torch.arange(6), k)
    number = (drawn.unsqueeze(1) == sets).all(-1).int().argmax(-1)
    assert_uniform(number.tolist(), len(sets))


def test_a_disjoint_uniform_block_holds_every_matching_equally_often():
    """For d = 4: three perfect matchings, the first pair of which is any of its two."""
    drawn = chosen(Block(size=2, rule=Uniform(), disjoint=True), 4, 1, 20_000)[0]
    assert bool((drawn.sum(-1) == 5).all())  # the pairs 0 and 5, 1 and 4, 2 and 3
    assert_uniform(drawn[:, 0].tolist(), 6)


@given(seeds, st.integers(0, 2**40), st.integers(0, 100), st.integers(2, 100), batches)
def test_uniform_depends_on_its_key_alone(seed, step, number, d, batch):
    """Not on values, strides or the global random state, which it leaves alone."""
    key = {"seed": seed, "step": step, "number": number}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    blank = torch.zeros(*batch, d, d)
    reference = Uniform().select(GradientView(MANIFOLD, blank, blank, **key)).index
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    transposed = torch.full((*batch, d, 2 * d), math.nan).mT[..., ::2, :]
    assert not transposed.is_contiguous()
    again = Uniform().select(GradientView(MANIFOLD, transposed, transposed, **key)).index
    assert torch.equal(reference, again)
    assert reference.shape == (*batch, 1)


@given(dims, rules, st.booleans(), seeds)
def test_a_selection_changes_neither_point_nor_gradient(d, rule, disjoint, data):
    view = view_of(d, (2,), data=data)
    x, egrad = view.x.clone(), view.egrad.clone()
    Block(size=1 if disjoint else d - 1, rule=rule, disjoint=disjoint).select(view)
    assert torch.equal(view.x, x)
    assert torch.equal(view.egrad, egrad)


# Selections as values


SELECTIONS = [
    Uniform(),
    Cyclic(),
    GaussSouthwell(),
    Block(size=3),
    Block(fraction=0.005),
    Block(size=3, rule=Uniform(), disjoint=True),
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_a_selection_is_a_value(selection):
    assert isinstance(selection, Selection)
    for twin in (
        copy.deepcopy(selection),
        pickle.loads(pickle.dumps(selection)),
        eval(repr(selection)),
    ):
        assert twin == selection
        assert hash(twin) == hash(selection)
        assert repr(twin) == repr(selection)
    assert [other for other in SELECTIONS if other == selection] == [selection]


def test_protocols_need_no_base_class():
    class Own:
        def select(self, view: GradientView) -> CoordinateBlock:
            return All()

    assert isinstance(Own(), Selection)
    assert isinstance(LastOnes(), Rule)
    assert not isinstance(LastOnes(), Selection)
    assert all(isinstance(rule, Rule) for rule in RULES)


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "give one of the two"),
        ({"size": 2, "fraction": 0.5}, ValueError, r"size=2, fraction=0\.5.*give one of the two"),
        ({"size": 0}, ValueError, "size=0.*at least one"),
        ({"size": -3}, ValueError, "size=-3.*at least one"),
        ({"fraction": 0.0}, ValueError, r"fraction=0\.0.*\(0, 1\]"),
        ({"fraction": -0.1}, ValueError, r"fraction=-0\.1.*\(0, 1\]"),
        ({"fraction": 1.5}, ValueError, r"fraction=1\.5.*\(0, 1\]"),
        ({"fraction": math.nan}, ValueError, r"fraction=nan.*\(0, 1\]"),
        ({"size": 1, "rule": "uniform"}, TypeError, "rule='uniform'.*choose"),
        ({"size": 1, "rule": Block(size=1)}, TypeError, "choose"),
    ],
)
def test_a_block_says_what_is_wrong_with_it(arguments, error, message):
    with pytest.raises(error, match=message):
        Block(**arguments)


def test_a_rule_must_be_an_object_not_a_class():
    with pytest.raises(TypeError, match=r"rule=.*choose"):
        Block(size=1, rule=Uniform)


@given(dims, batches, seeds, st.sampled_from(["spread", "sparse", "equal"]), st.data())
def test_a_steep_disjoint_block_needs_no_ranking(d, batch, data, kind, draw):
    """The beginning of the greedy matching is what a pass over the ranking finds, ties by number."""
    k = draw.draw(st.integers(1, d // 2))
    generator = torch.Generator().manual_seed(data)
    x = torch.eye(d, dtype=torch.float64).expand(*batch, d, d)
    egrad = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    if kind == "sparse":
        egrad = torch.where(egrad > 1, egrad, 0.0)
    elif kind == "equal":
        egrad = egrad.sign().triu()
    view = GradientView(MANIFOLD, x, egrad)
    slopes = view.coupling()
    j, l = MANIFOLD.axes(x, torch.arange(view.num_coordinates)).unbind(-1)
    ranking = slopes[..., j, l].sort(dim=-1, descending=True, stable=True).indices
    fast = Block(size=k, disjoint=True).select(view)
    assert torch.equal(fast.index, first_disjoint(view, ranking, k).index)
    assert fast.disjoint
    assert view.ranked


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_block_larger_than_what_there_is_says_so(rule):
    with pytest.raises(ValueError, match=r"wants 11 coordinates.*\(5, 5\) has 10"):
        Block(size=11, rule=rule).select(view_of(5))
    with pytest.raises(ValueError, match=r"wants 3 disjoint coordinates; .*OrthogonalGroup has 2"):
        Block(size=3, rule=rule, disjoint=True).select(view_of(5))


def test_a_geometry_that_promises_too_many_disjoint_coordinates_is_found_out(monkeypatch):
    monkeypatch.setattr(OrthogonalGroup, "num_disjoint", lambda *_: 4)
    with pytest.raises(ValueError, match="promises too many"):
        Block(size=3, rule=Uniform(), disjoint=True).select(view_of(5))
