"""Rounding must not take a point off its manifold, however long the run."""

import pytest
import torch
from geoopt import ManifoldParameter

from givens.manifolds import CoordinateBlock, Groups, OrthogonalGroup
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, GradientView
from givens.optim.base import ManifoldOptimizer

RUNS = {
    "uniform": (20_000, lambda p: SRCD([p], 0.01)),
    "gauss-southwell": (20_000, lambda p: SRCD([p], 0.01, GaussSouthwell())),
    "block": (20_000, lambda p: SRCD([p], 0.01, Block(fraction=0.05))),
    "srgd": (20_000, lambda p: SRGD([p], 0.01)),
    "disjoint block": (1_000, lambda p: SRCD([p], 0.01, Block(size=4, disjoint=True))),
    "large angles": (2_000, lambda p: SRCD([p], 1.0, GaussSouthwell())),
    "momentum": (2_000, lambda p: SRGD([p], 0.001, momentum=0.9)),
    "retraction": (2_000, lambda p: SRGD([p], 0.01, map="retr")),
}


def defect(p: torch.Tensor) -> float:
    """max |xᵀx − I|, computed in float64."""
    x = p.detach().double()
    return float((x.mT @ x - torch.eye(x.shape[-1], dtype=torch.float64)).abs().max())


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


class Matching:
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
        (64, lambda p: SRCD([p], 0.01, Matching()), 64),
        # Beside a ranking of all coordinates.
        (64, lambda p: SRCD([p], 0.01, GaussSouthwell()), 32),
        (64, lambda p: SRCD([p], 0.01, Block(size=2, disjoint=True)), 32),
        # Beside a dense exponential.
        (64, lambda p: SRCD([p], 0.01, Block(fraction=0.005)), 8),
        (64, lambda p: SRCD([p], 0.01, Block(fraction=1.0)), 8),
        (64, lambda p: SRGD([p], 0.01), 8),
        (9, lambda p: SRGD([p], 0.01), 8),
    ],
)
def test_the_restoration_costs_no_more_than_the_steps_between(d, build, every, monkeypatch):
    manifold = OrthogonalGroup()
    p = ManifoldParameter(manifold.random(2, d, d), manifold=manifold)
    p.grad = torch.randn(2, d, d, generator=torch.Generator().manual_seed(0))
    optimizer = build(p)
    steps, restored = 0, []
    monkeypatch.setattr(OrthogonalGroup, "restore_", lambda *_: restored.append(steps))
    while steps < 2 * every + 1:
        steps += 1
        optimizer.step()
    assert restored == [every, 2 * every]
