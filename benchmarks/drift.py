"""Distance from the manifold, max |WᵀW − I| in float64, that float32 steps and moves leave.

Five tables: steps with random gradients, as tests/test_drift.py has them; steps with the same gradient
again and again, where small angles are rounded in the same direction every time; the same with long steps,
dense and of low rank; one sweep over all pairs that turns every one of them by the same angle, with nothing
taken away in between; and many moves of three columns alone, likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import repeat
from pathlib import Path

import click
import torch
from geoopt import ManifoldParameter
from report import output_option, show_machine, show_table, write_json
from torch import Tensor
from torch.optim import Optimizer

from givens.manifolds import Coordinates, OrthogonalGroup
from givens.manifolds.pairs import pair_to_number, round_robin
from givens.optim import SRCD, SRGD, Block, GaussSouthwell, Uniform

GROUP = OrthogonalGroup()
METHODS: dict[str, Callable[[Tensor, float], Optimizer]] = {
    "SRCD, Uniform()": lambda w, lr: SRCD([w], lr, Uniform()),
    "SRCD, GaussSouthwell()": lambda w, lr: SRCD([w], lr, GaussSouthwell()),
    "SRCD, Block(fraction=0.005)": lambda w, lr: SRCD([w], lr, Block(fraction=0.005)),
    "SRCD, Block(fraction=0.05)": lambda w, lr: SRCD([w], lr, Block(fraction=0.05)),
    "SRGD": lambda w, lr: SRGD([w], lr),
    "SRGD, rank 8": lambda w, lr: SRGD([w], lr, rank=8),
}


@click.command(help=__doc__)
@click.option("--steps", default=20_000, show_default=True, help="Steps with random gradients.")
@output_option
def main(steps: int, output: Path) -> None:  # noqa: D103
    show_machine()
    torch.manual_seed(0)
    random = {
        name: worst(method, 0.01, 16, (torch.randn(16, 16) for _ in range(steps)))
        for name, method in METHODS.items()
    }
    show_table(f"Random gradients, d = 16, lr 0.01, {steps} steps", ["", "largest"], _rows(random))
    gradient = torch.zeros(190, 190)
    gradient[:, :3] = torch.randn(190, 3)
    same = {
        f"{name}, lr {lr:g}": worst(method, lr, 190, repeat(gradient, 400))
        for name, method in METHODS.items()
        for lr in (1e-7, 1e-6, 1e-5, 1e-3)
    }
    show_table("The same gradient, d = 190, 400 steps", ["", "largest"], _rows(same))
    far = {}
    for d in (16, 64, 256):
        gradient = torch.zeros(d, d)
        gradient[:, :3] = torch.randn(d, 3)
        for name in ("SRGD", "SRGD, rank 8"):
            for lr in (0.1, 1.0, 10.0):
                gradients = repeat(gradient, 400)
                far[f"{name}, d = {d}, lr {lr:g}"] = worst(METHODS[name], lr, d, gradients)
    show_table("Long steps along the same gradient, 400 of them", ["", "largest"], _rows(far))
    angles = {f"{a} rad": sweep(1024, a) for a in (0.01, 0.1, 0.3, 0.5, 0.71, 0.78, 2.36, 3.0)}
    show_table("One sweep at one angle, d = 1024", ["", "at the end"], _rows(angles))
    three = {f"{a} rad": three_columns(1024, a, 20_000) for a in (0.3, 0.5, 0.71, 0.78, 2.36)}
    show_table("Three columns, 20000 moves, d = 1024", ["", "at the end"], _rows(three))
    tables = {
        "random gradients": random,
        "the same gradient": same,
        "long steps": far,
        "one angle": angles,
        "three columns": three,
    }
    write_json(output / "drift.json", tables)


def defect(w: Tensor) -> float:
    """Return max |WᵀW − I|, computed in float64."""
    w = w.detach().double()
    return float((w.mT @ w - torch.eye(w.shape[-1], dtype=w.dtype)).abs().max())


def worst(
    method: Callable[[Tensor, float], Optimizer], lr: float, d: int, gradients: Iterable[Tensor]
) -> float:
    """Return the largest defect on the way, looked at in every seventh step."""
    w = ManifoldParameter(GROUP.random(d, d), manifold=GROUP)
    optimizer = method(w, lr)
    largest = 0.0
    for step, w.grad in enumerate(gradients):
        optimizer.step()
        if step % 7 == 0:
            largest = max(largest, defect(w))
    return largest


def sweep(d: int, angle: float) -> float:
    """Return the defect after every pair has been turned by the same angle."""
    w = GROUP.random(d, d).as_subclass(Tensor)
    for pairs in round_robin(d):
        block = Coordinates(pair_to_number(*pairs.unbind(-1), d), disjoint=True)
        GROUP.move_(w, block, torch.full((len(pairs),), angle * math.sqrt(2)))
    return defect(w)


def three_columns(d: int, angle: float, moves: int) -> float:
    """Return the defect after the first three columns have been turned in pairs, one after the other."""
    w = GROUP.random(d, d).as_subclass(Tensor)
    numbers = pair_to_number(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), d)
    for move in range(moves):
        block = Coordinates(numbers[move % 3, None], disjoint=True)
        GROUP.move_(w, block, torch.tensor([angle * math.sqrt(2)]))
    return defect(w)


def _rows(results: dict[str, float]) -> list[list[str]]:
    return [[name, f"{value:.1e}"] for name, value in results.items()]


if __name__ == "__main__":
    main()
