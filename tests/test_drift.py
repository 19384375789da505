"""Rounding must not take a point off its manifold, however long the run."""

import pytest
import torch
from geoopt import ManifoldParameter
from rules import METHODS, SCALINGS, build
from strategies import defect

from givens.manifolds import CoordinateBlock, Coordinates, Groups, OrthogonalGroup
from givens.manifolds.pairs import pair_to_number, round_robin
from givens.optim import (
    SRCD,
    SRGD,
    Block,
    Capture,
    Cyclic,
    GaussSouthwell,
    GradientView,
    Grouping,
    Matching,
)
from givens.optim.base import ManifoldOptimizer

RUNS = {
    "uniform": (2_000, lambda p: SRCD([p], 0.01)),
    "gauss-southwell": (2_000, lambda p: SRCD([p], 0.01, GaussSouthwell())),
    "block": (2_000, lambda p: SRCD([p], 0.01, Block(fraction=0.05))),
    "srgd": (2_000, lambda p: SRGD([p], 0.01)),
    "disjoint block": (1_000, lambda p: SRCD([p], 0.01, Block(size=4, disjoint=True))),
    "large angles": (2_000, lambda p: SRCD([p], 1.0, GaussSouthwell())),
    "momentum": (2_000, lambda p: SRGD([p], 0.001, momentum=0.9)),
    "retraction": (2_000, lambda p: SRGD([p], 0.01, map="retr")),
    "rank": (2_000, lambda p: SRGD([p], 0.01, rank=2)),
    "rank, by a retraction": (2_000, lambda p: SRGD([p], 0.01, map="retr", rank=1)),
    "rank, large angles": (2_000, lambda p: SRGD([p], 0.3, map="retr", rank=3)),
}


def run(optimizer: ManifoldOptimizer, p: ManifoldParameter, steps: int) -> float:
    """Steps along random gradients; the largest defect that was seen on the way."""
    noise = torch.randn(101, *p.shape, generator=torch.Generator().manual_seed(1))
    worst = 0.0
    for step in range(steps):
        p.grad = noise[step % len(noise)]
        optimizer.step()
        if step % 97 == 0 or step == steps - 1:
            worst = max(worst, defect(p))
    return worst


@pytest.mark.parametrize("name", RUNS)
def test_a_float32_point_stays_orthogonal(name):
    manifold = OrthogonalGroup(retraction="cayley")
    x = manifold.random(16, 16, generator=torch.Generator().manual_seed(0))
    p = ManifoldParameter(x, manifold=manifold)
    steps, optimizer = RUNS[name]
    assert run(optimizer(p), p, steps) <= 1e-6


def test_it_is_the_restoration_that_keeps_it_there(monkeypatch):
    """Without it the same run leaves: this file would notice if it were forgotten."""
    manifold = OrthogonalGroup()
    p = ManifoldParameter(manifold.random(16, 16), manifold=manifold)
    monkeypatch.setattr(ManifoldOptimizer, "_restore", lambda *_, **__: None)
    assert run(SRGD([p], 0.01), p, 3_000) > 1e-6


@pytest.mark.parametrize("angle", [0.01, 0.3, 0.71, 0.78, 2.36])
def test_one_angle_again_and_again_leaves_a_point_orthogonal(angle):
    """A rotation whose factor were off 1 in the same direction every time would leave up to 3e-6."""
    d, group = 512, OrthogonalGroup()
    w = group.random(d, d, generator=torch.Generator().manual_seed(0)).as_subclass(torch.Tensor)
    for pairs in round_robin(d):
        block = Coordinates(pair_to_number(*pairs.unbind(-1), d), disjoint=True)
        group.move_(w, block, torch.full((len(pairs),), angle / group.radians))
    assert defect(w) <= 5e-7


# From angles that are lost in rounding to those of thousands of turns.
RATES = (1e-7, 1e-5, 1e-3, 0.3, 3.0, 1e4)


def adversaries(p, steps):
    """Set p.grad, for a batch of five points, to what rounds in the same direction again and again."""
    generator = torch.Generator().manual_seed(2)
    noise, constant = (torch.randn(p.shape, dtype=p.dtype, generator=generator) for _ in range(2))
    for step in range(steps):
        noise.normal_(generator=generator)
        p.grad = constant.clone()
        p.grad[0] = noise[0]
        p.grad[1] *= (-1) ** step
        p.grad[2] = 0
        p.grad[2, :, 0] = p.detach()[2, :, 1]  # the same angle of the same two columns
        p.grad[3, :, 2:] = 0
        yield


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "d", "allowed"),
    [(torch.float32, 7, 1e-6), (torch.float64, 4, 1e-13)],
)
def test_no_gradient_and_no_stepsize_takes_a_point_away(dtype, d, allowed, method, scaling):
    manifold = OrthogonalGroup()
    x = manifold.random(5, d, d, dtype=dtype, generator=torch.Generator().manual_seed(d))
    p = ManifoldParameter(x, manifold=manifold)
    sign = torch.linalg.det(p.detach()).sign()
    optimizer = build([p], 0.1, method, scaling)
    for optimizer.param_groups[0]["lr"] in RATES:
        for _ in adversaries(p, 8):
            optimizer.step()
            assert defect(p) <= allowed
    assert torch.equal(torch.linalg.det(p.detach()).sign(), sign)


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("d", [7, 64])
def test_nor_do_steps_of_low_rank(d, rank):
    """From a few radians on, the same ones again and again, a point of d = 64 just stays."""
    manifold = OrthogonalGroup()
    x = manifold.random(5, d, d, generator=torch.Generator().manual_seed(d))
    p = ManifoldParameter(x, manifold=manifold)
    optimizer = SRGD([p], 0.1, rank=rank)
    for optimizer.param_groups[0]["lr"] in RATES:
        for _ in adversaries(p, 20):
            optimizer.step()
            assert defect(p) <= (4e-7 if optimizer.param_groups[0]["lr"] < 0.1 else 1.5e-6)


@pytest.mark.parametrize("d", [3, 64])
@pytest.mark.parametrize(
    "selection",
    [Capture(), GaussSouthwell(), Matching("greedy"), Block(size=1, disjoint=True)],
    ids=repr,
)
def test_the_same_pair_may_be_chosen_for_ever(selection, d):
    """By a choice that reads all derivatives; small angles are rounded in the same direction each time."""
    manifold = OrthogonalGroup()
    x = manifold.random(d, d, generator=torch.Generator().manual_seed(0))
    p = ManifoldParameter(x, manifold=manifold)
    optimizer = SRCD([p], 0.0, selection)
    p.grad = torch.zeros(d, d)
    for optimizer.param_groups[0]["lr"] in (1e-7, 1e-6, 1e-5):
        for _ in range(64):
            p.grad[:, 0] = p.detach()[:, 1]
            optimizer.step()
            assert defect(p) <= 5e-7


@pytest.mark.parametrize("angle", [1.0, 30.0, 1e3, 1e5, 1e20])
@pytest.mark.parametrize("d", [2, 9, 80])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 5e-7), (torch.float64, 5e-15)])
def test_a_long_way_ends_on_the_manifold(d, angle, dtype, allowed):
    """Squarings of an exponential double what is missing to orthogonality, which is put right on the way."""
    manifold = OrthogonalGroup()
    generator = torch.Generator().manual_seed(d)
    x = manifold.random(d, d, dtype=dtype, generator=generator)
    u = manifold.proju(x, torch.randn(d, d, dtype=dtype, generator=generator))
    assert defect(manifold.expmap(x, angle * u)) <= allowed


class FixedMatching:
    """A user's selection: the axes in pairs, as groups."""

    def select(self, view: GradientView) -> CoordinateBlock:
        return Groups(torch.arange(view.num_axes // 2 * 2).view(-1, 2))


@pytest.mark.parametrize(
    ("d", "build", "every"),
    [
        # After d²/2 moves, so that its 4d³ flops are 8d a move.
        (2, lambda p: SRCD([p], 0.01), 2),
        (9, lambda p: SRCD([p], 0.01), 40),
        (9, lambda p: SRCD([p], 0.01, Block(size=3, rule=Cyclic(), disjoint=True)), 14),
        (64, lambda p: SRCD([p], 0.01, FixedMatching()), 64),
        # A group of 4 costs as much as 16 rotations.
        (64, lambda p: SRCD([p], 0.01, Grouping(4)), 8),
        # Beside derivatives along all coordinates.
        (64, lambda p: SRCD([p], 0.01, GaussSouthwell()), 8),
        (64, lambda p: SRCD([p], 0.01, Block(size=2, disjoint=True)), 8),
        (64, lambda p: SRCD([p], 0.01, Matching("greedy")), 8),
        (64, lambda p: SRCD([p], 0.01, Grouping(4, "greedy")), 4),
        # Beside a dense exponential.
        (64, lambda p: SRCD([p], 0.01, Block(fraction=0.005)), 2),
        (64, lambda p: SRCD([p], 0.01, Block(fraction=1.0)), 2),
        (64, lambda p: SRGD([p], 0.01), 2),
        (9, lambda p: SRGD([p], 0.01), 2),
    ],
)
def test_the_restoration_costs_no_more_than_the_steps_between(d, build, every, monkeypatch):
    manifold = OrthogonalGroup()
    p = ManifoldParameter(manifold.random(2, d, d), manifold=manifold)
    p.grad = torch.randn(2, d, d, generator=torch.Generator().manual_seed(0))
    optimizer = build(p)
    steps, restored = 0, []
    monkeypatch.setattr(OrthogonalGroup, "restore_", lambda *_: restored.append(steps))
    while steps < 3 * every - 1:
        steps += 1
        optimizer.step()
    assert restored == [every, 2 * every]
