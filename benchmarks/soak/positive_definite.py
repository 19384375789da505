"""Positive definite matrices over a million float32 moves.

A row is a batch of points, one for each condition number of the matrix that it is drawn to, with noise
that pulls and pushes: half the squared distance to A is what is minimized. Gradients are computed in
float64 and given in float32. A point that is no longer positive definite ends the run.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import click
import torch
from geoopt import ManifoldParameter
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))

from report import console, output_option, show_machine, show_table, write_json

from givens.manifolds import SymmetricPositiveDefinite
from givens.optim import SRCD, SRGD, Adam, Block, Cyclic, GaussSouthwell, RMSProp

CONDITIONS = (1e0, 1e2, 1e3, 1e4, 1e5)
METHODS = {
    "Uniform()": lambda p: SRCD([p], 0.1),
    "Cyclic(), RMSProp()": lambda p: SRCD([p], 0.02, Cyclic(), RMSProp()),
    "GaussSouthwell()": lambda p: SRCD([p], 0.1, GaussSouthwell()),
    "Block(size=3), Adam()": lambda p: SRCD([p], 0.02, Block(size=3), Adam()),
    "SRGD": lambda p: SRGD([p], 0.05),
}


def symmetric(a: Tensor) -> Tensor:
    """Return the symmetric part."""
    return (a + a.mT) / 2


class Row:
    """The points of one method and where they have been."""

    def __init__(self, method: str, d: int) -> None:
        self.method, self.steps, self.seconds = method, 0, 0.0
        self.lowest, self.farthest = math.inf, 0.0
        self.generator = torch.Generator().manual_seed(0)
        q, _ = torch.linalg.qr(self._noise(len(CONDITIONS), d, d))
        values = torch.stack([torch.logspace(0, math.log10(c), d) for c in CONDITIONS]).double()
        self.target = symmetric(q * values.unsqueeze(-2) @ q.mT)
        manifold = SymmetricPositiveDefinite()
        self.p = ManifoldParameter(self.target.float(), manifold=manifold)
        self.optimizer = METHODS[method](self.p)

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def run(self, steps: int) -> None:
        """Do so many steps, and look at the points after each."""
        start = time.perf_counter()
        for _ in range(steps):
            x = self.p.detach().as_subclass(Tensor).double()
            factor, info = torch.linalg.cholesky_ex(x)
            if info.any():
                raise SystemExit(f"{self.method}, step {self.steps}: not positive definite: {x}")
            inverse = torch.cholesky_inverse(factor)
            half = torch.linalg.inv(factor)
            noise = half.mT @ symmetric(self._noise(*x.shape)) @ half
            pull = inverse @ self.p.manifold.logmap(x, self.target) @ inverse
            self.p.grad = (noise - symmetric(pull)).float()
            self.optimizer.step()
            self.steps += 1
        values = torch.linalg.eigvalsh(self.p.detach().as_subclass(Tensor).double())
        self.lowest = min(self.lowest, float((values[:, 0] / values[:, -1]).min()))
        distance = self.p.manifold.dist(self.p.detach().double(), self.target)
        self.farthest = max(self.farthest, float(distance.max()))
        self.seconds += time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--steps", default=1_000_000, show_default=True, help="Steps of each method.")
@click.option("--seconds", default=3600.0, show_default=True, help="Time for all.")
@click.option("--size", default=4, show_default=True, help="d.")
@output_option
def main(steps: int, seconds: float, size: int, output: Path) -> None:  # noqa: D103
    show_machine()
    end = time.perf_counter() + seconds
    rows = [Row(method, size) for method in METHODS]
    while time.perf_counter() < end and (waiting := [row for row in rows if row.steps < steps]):
        for row in waiting:
            row.run(min(1000, steps - row.steps))
    moved = [
        {
            "method": row.method,
            "steps": row.steps,
            "lowest": row.lowest,
            "farthest": row.farthest,
            "seconds": row.seconds,
        }
        for row in rows
    ]
    write_json(output / "positive_definite.json", {"size": size, "rows": moved})
    show_table(
        f"positive definite, d = {size}, float32, conditions of A: {CONDITIONS}",
        ["", "steps", "lowest λ/λ", "farthest from A", "µs/step"],
        [
            [
                row.method,
                str(row.steps),
                f"{row.lowest:.1e}",
                f"{row.farthest:.1f}",
                f"{row.seconds / row.steps * 1e6:.0f}",
            ]
            for row in rows
        ],
    )
    console.print("every point was positive definite after every step")


if __name__ == "__main__":
    main()
