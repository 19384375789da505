"""Two kinds of coordinates for positive definite matrices: congruences of x, and moves of its factor.

A congruence x ← e^{tE}·x·e^{tEᵀ}, E = e_l·e_jᵀ, changes one row and one column, and its derivative is read
from one row of x and one of the gradient: O(d). Its direction has the squared norm
2(x⁻¹)_ll·x_jj (+ 2 for j = l), which takes x⁻¹; the upper frame bound is 2(κ + 1/κ), κ the condition
number. The coordinates of SymmetricPositiveDefinite are an orthonormal basis and take a Cholesky factor.

Prints the steps that SRCD needs to bring the distance from a target down to a hundredth, each kind with
its best stepsize, and the times of a step.
"""

from __future__ import annotations

import argparse
import time

import torch
from geoopt import ManifoldParameter

from givens.manifolds import All, Coordinates, SymmetricPositiveDefinite
from givens.optim import SRCD, GaussSouthwell, Uniform

STEPSIZES = (1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 3.0, 1.0, 0.5, 0.25, 0.1, 0.03)


class Congruences(SymmetricPositiveDefinite):
    """The d² congruences, numbered l·d + j; a step is scaled by the norm, or by the frame bound."""

    frame_bounds = None

    def __init__(self, scale: str) -> None:
        super().__init__()
        self.scale = scale

    def num_coordinates(self, x):
        """Return d²."""
        return x.shape[-1] ** 2

    def axes(self, x, index):
        """Return the row that changes, and the row that is added to it."""
        return torch.stack([index // x.shape[-1], index % x.shape[-1]], -1)

    def derivatives(self, x, egrad, block):
        """Return entries of 2·egrad·x, for a symmetric gradient."""
        if isinstance(block, All):
            return 2 * (egrad @ x).flatten()
        l, j = self.axes(x, block.index).unbind(-1)
        return 2 * (egrad[l] * x[j]).sum(-1)

    def step_scale(self, x, block):
        """Return squared norms, or the upper frame bound."""
        l, j = self.axes(x, self._numbers(x, block)).unbind(-1)
        if self.scale == "bound":
            condition = torch.linalg.cond(x)
            return 2 * (condition + 1 / condition)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(x)).diagonal()
        return 2 * (inverse[l] * x.diagonal()[j]) + 2 * (l == j)

    def move_(self, x, block, t):
        """Add a multiple of a row to another, and the same for columns: O(d)."""
        l, j = self.axes(x, block.index)[0]
        factor = t.expm1() if l == j else t
        x[l] += factor * x[j]
        x[:, l] += factor * x[:, j]
        return x


KINDS = {
    "factor": SymmetricPositiveDefinite(),
    "congruences by norm": Congruences("norm"),
    "congruences by bound": Congruences("bound"),
}


def steps_needed(kind, selection, d, condition, most):
    """Steps to a hundredth of the distance, at the best stepsize; None where there is none."""
    manifold, generator = KINDS[kind], torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    values = torch.logspace(0, torch.tensor(condition).log10(), d, dtype=torch.float64)
    start, root = (q * values) @ q.T, (q * values.sqrt()) @ q.T
    # The distance is the same at every condition number: a congruence is an isometry.
    near = manifold.expmap(torch.eye(d, dtype=torch.float64), _tangent(d, generator))
    target = root @ near @ root
    best = None
    for lr in STEPSIZES:
        p = ManifoldParameter(start.clone(), manifold=manifold)
        optimizer = SRCD([p], lr, selection)
        first = None  # of the loss, half the squared distance
        for step in range(most if best is None else best):
            optimizer.zero_grad()
            square = manifold.dist2(p, target) / 2
            first = square.item() if first is None else first
            if not square.item() < 1e4 * first:
                break
            if square.item() <= 1e-4 * first:
                best = step
                break
            square.backward()
            try:
                optimizer.step()
            except (FloatingPointError, RuntimeError):
                break
    return best


def _tangent(d, generator):
    u = torch.randn(d, d, dtype=torch.float64, generator=generator)
    return 2 * (u + u.T) / torch.linalg.matrix_norm(u + u.T)


def seconds(work, repeat):
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
    parser.add_argument("--d", type=int, default=8)
    parser.add_argument("--most", type=int, default=20000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 64, 256, 1024])
    arguments = parser.parse_args()
    for selection in (GaussSouthwell(), Uniform()):
        for condition in (1.0, 1e2, 1e4, 1e6):
            row = [
                f"{kind}: {steps_needed(kind, selection, arguments.d, condition, arguments.most)}"
                for kind in KINDS
            ]
            print(f"{selection}, condition {condition:.0e}, steps: " + ", ".join(row), flush=True)
    for d in arguments.sizes:
        one = Coordinates(torch.tensor([d + 3]), disjoint=True)
        x = KINDS["factor"].random(d, d, dtype=torch.float64).as_subclass(torch.Tensor)
        g = torch.randn(d, d, dtype=torch.float64)
        repeat = max(3, min(50, 2000 // d))

        def step(manifold, x=x, g=g, one=one):
            manifold.descend_(x.clone(), g, one, lambda a, s: -1e-3 * a / s)

        row = [
            f"{kind}: {1e6 * seconds(lambda m=m: step(m), repeat):.0f}" for kind, m in KINDS.items()
        ]
        exp = seconds(lambda x=x, g=g: KINDS["factor"].expmap(x, -1e-3 * (g + g.T)), repeat)
        print(f"d = {d}, microseconds: {', '.join(row)}, exponential: {1e6 * exp:.0f}", flush=True)


if __name__ == "__main__":
    main()
