"""Rounding must not take a point off its manifold, however long the run."""

import pytest
import torch
from geoopt import ManifoldParameter

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Uniform
from givens.optim.base import ManifoldOptimizer

RUNS = {
    "uniform": (20_000, lambda p: SRCD([p], 0.01)),
    "gauss-southwell": (20_000, lambda p: SRCD([p], 0.01, GaussSouthwell())),
    "block": (20_000, lambda p: SRCD([p], 0.01, Block(fraction=0.05))),
    "srgd": (20_000, lambda p: SRGD([p], 0.01)),
    "disjoint block": (2_000, lambda p: SRCD([p], 0.01, Block(size=4, disjoint=True))),
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
    monkeypatch.setattr(ManifoldOptimizer, "restore", lambda *_: None)
    assert run(SRGD([p], 0.01), p, 3_000) > 1e-6


@pytest.mark.parametrize("d", [2, 3, 32])
def test_the_restoration_comes_after_as_many_moves_as_there_are_coordinates(d, monkeypatch):
    """So that its 4d³ flops are 8d a move."""
    manifold = OrthogonalGroup()
    total = d * (d - 1) // 2
    for selection, moved in ((Uniform(), 1), (Block(size=min(3, total)), min(3, total))):
        p = ManifoldParameter(manifold.random(d, d), manifold=manifold)
        p.grad = torch.randn(d, d, generator=torch.Generator().manual_seed(0))
        optimizer = SRCD([p], 0.01, selection)
        restored: list[torch.Tensor] = []
        monkeypatch.setattr(OrthogonalGroup, "restore_", lambda _, x, to=restored: to.append(x))
        for _ in range(3 * total):
            optimizer.step()
        # A block that is a large part of all counts as one eighth: see the next test.
        counted = min(moved, -(-total // 8))
        assert len(restored) == 3 * total // -(-total // counted)


def test_a_dense_step_is_restored_every_eighth_time(monkeypatch):
    manifold = OrthogonalGroup()
    p = ManifoldParameter(manifold.random(9, 9), manifold=manifold)
    p.grad = torch.randn(9, 9)
    restored = []
    monkeypatch.setattr(OrthogonalGroup, "restore_", lambda self, x: restored.append(x))
    for optimizer in (SRGD([p], 0.01), SRCD([p], 0.01, Block(fraction=1.0))):
        restored.clear()
        for _ in range(24):
            optimizer.step()
        assert len(restored) == 3
