"""Two kinds of coordinates for symplectic matrices: shears and squeezes, or rotations and boosts.

A shear changes two rows, and is exact. The sums and differences of a generator and its transpose are
rotations and boosts: they change up to four rows, follow geodesics, and are as good an orthonormal basis.

Prints the steps that SRCD needs to come within a hundredth of the first distance from the least value, each
kind with its best stepsize, the median of five seeds, for two costs: the trace tr(xᵀax), whose least value is
that of the symplectic eigenvalues, and the squared distance from a target. Then what rounding leaves of
xᵀJx − J over many steps in float32, relative to the lengths of the columns, and the times of a step.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from geoopt import ManifoldParameter

from givens.manifolds import All, Coordinates, Symplectic
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Uniform

STEPSIZES = (1.0, 0.5, 0.25, 0.125, 0.06, 0.03, 0.015)
SEEDS = range(5)


class Rotations(Symplectic):
    """Rotations and boosts, by dense matrices: for counting steps."""

    def __init__(self, n: int) -> None:
        super().__init__()
        x = self.origin(2 * n, 2 * n, dtype=torch.float64).as_subclass(torch.Tensor)
        self.generators = []
        for e in super().direction(x, torch.arange(self.num_coordinates(x))):
            for part in (e + e.T, e - e.T):
                known = [abs(float((part * g).sum())) > 1e-9 for g in self.generators]
                if part.abs().max() > 1e-9 and not any(known):
                    length = torch.linalg.matrix_norm(part)
                    self.generators.append(part * math.sqrt(2) / length)
        self.generators = torch.stack(self.generators)

    def derivatives(self, x, egrad, block):
        """Return products of egrad·xᵀ and the generators."""
        every = torch.einsum("kab,bc,ac->k", self.generators, x, egrad)
        return every if isinstance(block, All) else every[block.index]

    def move_(self, x, block, t):
        """Multiply by a dense exponential."""
        a = torch.einsum("k,kab->ab", t, self.generators[block.index])
        return x.copy_(torch.linalg.matrix_exp(a) @ x)


def problem(kind, n, k, seed):
    """A cost, its least value, and where to start."""
    torch.manual_seed(seed)
    manifold = Symplectic()
    if kind == "target":
        target, start = manifold.random(2, 2 * n, 2 * k, dtype=torch.float64)
        return lambda x: (x - target).square().sum() / 2, 0.0, start
    values = torch.linspace(0.5, 3, n, dtype=torch.float64)
    basis = manifold.random(2 * n, 2 * n, dtype=torch.float64).as_subclass(torch.Tensor)
    a = basis.T @ torch.diag(values.repeat(2)) @ basis
    start = manifold.random(2 * n, 2 * k, dtype=torch.float64)
    return lambda x: (x * (a @ x)).sum(), 2 * float(values[:k].sum()), start


def steps_needed(manifold, selection, cost, least, start, most):
    """Steps to a hundredth, at the best stepsize; `most` where there is none."""
    goal = least + 0.01 * (float(cost(start)) - least)
    best = most
    for lr in STEPSIZES:
        p = ManifoldParameter(start.as_subclass(torch.Tensor).clone(), manifold=manifold)
        optimizer = SRCD([p], lr, selection)
        for step in range(best):
            optimizer.zero_grad()
            value = cost(p)
            if value.item() <= goal:
                best = step
                break
            value.backward()
            try:
                optimizer.step()
            except FloatingPointError:  # it has run away
                break
    return best


def drift(selection, lr, steps, points=50):
    """The largest |xᵀJx − J| on the way, over the lengths of the columns; and the longest column."""
    torch.manual_seed(0)
    manifold = Symplectic()
    target = manifold.random(points, 6, 6).as_subclass(torch.Tensor)
    p = ManifoldParameter(target.clone(), manifold=manifold)
    optimizer = SRGD([p], lr) if selection is None else SRCD([p], lr, selection)
    j = torch.block_diag(torch.eye(3), torch.eye(3)).double().roll(3, 0)
    j[3:] *= -1
    worst = longest = 0.0
    for step in range(steps):
        # Noise of the same size in the metric wherever the point is, and a pull back.
        r = torch.linalg.qr(p.detach().double()).R
        noise = torch.randn(points, 6, 6, dtype=torch.float64)
        noise = torch.linalg.solve_triangular(r.mT, noise, upper=False, left=False)
        p.grad = noise.float() + 0.1 * (p.detach() - target)
        optimizer.step()
        if step % 10 == 0:
            x = p.detach().double()
            lengths = torch.linalg.vector_norm(x, dim=-2)
            off = (x.mT @ j @ x - j).abs() / (lengths.unsqueeze(-1) * lengths.unsqueeze(-2))
            worst, longest = max(worst, float(off.max())), max(longest, float(lengths.max()))
    return worst, longest


def seconds(work, repeat=20):
    """The least time of a call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--most", type=int, default=3000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 128, 512])
    arguments = parser.parse_args()
    for n, k in ((4, 4), (6, 2)):
        kinds = {"shears": Symplectic(), "rotations": Rotations(n)}
        for kind in ("trace", "target"):
            for selection in (GaussSouthwell(), Uniform()):
                row = []
                for name, manifold in kinds.items():
                    needed = [
                        steps_needed(
                            manifold, selection, *problem(kind, n, k, seed), arguments.most
                        )
                        for seed in SEEDS
                    ]
                    row.append(f"{name} {statistics.median(needed)} ({min(needed)}–{max(needed)})")
                print(f"n = {n}, k = {k}, {kind}, {selection}: {', '.join(row)}", flush=True)
    for selection, lr, steps in (
        (Uniform(), 0.1, 20_000),
        (GaussSouthwell(), 0.1, 5000),
        (Block(size=2, disjoint=True), 0.1, 5000),
        (Block(size=4), 0.05, 5000),
        (None, 0.02, 5000),
    ):
        worst, longest = drift(selection, lr, steps)
        name = "SRGD" if selection is None else selection
        print(f"{name}, {steps} steps: {worst:.1e}; columns up to {longest:.1f}", flush=True)
    manifold = Symplectic()
    for n in arguments.sizes:
        for k in (4, n):
            x = manifold.random(2 * n, 2 * k, dtype=torch.float64).as_subclass(torch.Tensor)
            g = torch.randn(2 * n, 2 * k, dtype=torch.float64)
            one = Coordinates(torch.tensor([n + 1]), disjoint=True)
            u = manifold.egrad2rgrad(x, g)
            u = -1e-3 * u / manifold.norm(x, u)
            step = seconds(
                lambda x=x, g=g, one=one: manifold.descend_(x, g, one, lambda a, s: -1e-9 * a)
            )
            exp = seconds(lambda x=x, u=u: manifold.expmap(x, u), 3)
            print(f"n = {n}, k = {k}, milliseconds: step {1e3 * step:.2f}, Exp {1e3 * exp:.2f}")


if __name__ == "__main__":
    main()
