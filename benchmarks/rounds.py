"""Several matchings a step: the loss against steps of SRCD, by the number of rounds.

The derivatives of later rounds are taken *once*, where the step begins, as Matching(rounds=…) does, or
*afresh* where the earlier rounds have led, for the same gradient G: exact for the linear function ⟨G, W⟩, and
without another backward pass. Beside them groups of as many coordinates a step, Grouping(rounds + 1).

Two problems with known minima, from random starting points, every method with every stepsize of one grid:
orthogonal Procrustes with noisy gradients from d/2 samples, and Brockett's function −tr(WᵀAWN), both spectra
equispaced in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from geoopt import ManifoldParameter
from report import console, output_option, show_machine, show_table, write_json
from torch import Tensor

from givens.manifolds import Groups, OrthogonalGroup
from givens.optim import SRCD, GradientView, Grouping, Matching

GROUP = OrthogonalGroup()
RATES = [2.0**k for k in range(-3, 4)]
# Takes a point, a stepsize and a seed; returns what moves the point by a gradient.
Method = Callable[[Tensor, float, int], Callable[[Tensor], None]]


def procrustes(d: int, seed: int) -> tuple[Tensor, Callable, Callable]:
    """½‖W − Q‖², seen through d/2 noisy samples a step."""
    generator = torch.Generator().manual_seed(seed)
    start, target = (GROUP.random(d, d, generator=generator, det=1) for _ in range(2))

    def gradient(w: Tensor) -> Tensor:
        x, noise = torch.randn(2, d // 2, d, generator=generator)
        return x.T @ (x @ (w - target) - 0.3 * noise) * (2 / d)

    return start, gradient, lambda w: float((w - target).square().sum()) / 2


def brockett(d: int, seed: int) -> tuple[Tensor, Callable, Callable]:
    """−tr(WᵀAWN) above its minimum."""
    generator = torch.Generator().manual_seed(seed)
    start, q = (GROUP.random(d, d, generator=generator) for _ in range(2))
    values = torch.linspace(0, 1, d)
    a = (q * values) @ q.T
    least = -float(values.square().sum())
    return (
        start,
        lambda w: -2 * (a @ w) * values,
        lambda w: -float(((a @ w) * w).sum(0) @ values) - least,
    )


PROBLEMS = {"procrustes": procrustes, "brockett": brockett}


def by_srcd(selection: Matching | Grouping) -> Method:
    """SRCD with a selection."""

    def begin(w: Tensor, lr: float, seed: int) -> Callable[[Tensor], None]:
        optimizer = SRCD([w], lr, selection, seed=seed)

        def step(gradient: Tensor) -> None:
            w.grad = gradient
            optimizer.step()

        return step

    return begin


def afresh(rounds: int) -> Method:
    """The same matchings, every one by derivatives where it begins; one gradient."""

    def begin(w: Tensor, lr: float, seed: int) -> Callable[[Tensor], None]:
        count = 0

        def step(gradient: Tensor) -> None:
            nonlocal count
            x = w.detach()
            view = GradientView(GROUP, x, gradient, seed=seed, step=count)
            axes = Matching(rounds=rounds).select(view).axes
            for pairs in axes:
                GROUP.descend_(x, gradient, Groups(pairs), lambda slope, _: -lr * slope)
            GROUP.restore_(x)
            count += 1

        return step

    return begin


def curve(problem: str, method: Method, d: int, lr: float, seed: int, steps: int) -> list[float]:
    """Losses as parts of the first, after every step; infinite once they have doubled."""
    start, gradient, loss = PROBLEMS[problem](d, seed)
    w = ManifoldParameter(start.clone(), manifold=GROUP)
    step, first, losses = method(w, lr, seed), loss(start), []
    for _ in range(steps):
        step(gradient(w.detach().as_subclass(Tensor)).as_subclass(Tensor))
        losses.append(loss(w.detach()) / first)
        if not losses[-1] < 2:
            return losses + [math.inf] * (steps - len(losses))
    return losses


@click.command(help=__doc__)
@click.option("--d", "sizes", multiple=True, type=int, default=[64], show_default=True)
@click.option("--rounds", multiple=True, type=int, default=[1, 2, 4, 8], show_default=True)
@click.option("--steps", default=150, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@output_option
def main(sizes, rounds, steps, seeds, output: Path) -> None:  # noqa: D103
    show_machine()
    results: dict[str, dict] = {}
    for d in sizes:
        methods = {}
        for m in rounds:
            methods[f"{m} rounds, once"] = by_srcd(Matching(rounds=m))
            if m > 1:
                methods[f"{m} rounds, afresh"] = afresh(m)
                methods[f"groups of {m + 1}"] = by_srcd(Grouping(m + 1))
        for problem in PROBLEMS:
            rows = []
            for name, method in methods.items():
                curves = {
                    lr: [curve(problem, method, d, lr, seed, steps) for seed in range(seeds)]
                    for lr in RATES
                }
                best = min(RATES, key=lambda lr: median(c[-1] for c in curves[lr]))
                results[f"{problem}, d = {d}, {name}"] = {"best lr": best, "curves": curves[best]}
                ends = sorted(c[-1] for c in curves[best])
                at = [median(c[n - 1] for c in curves[best]) for n in (steps // 3, 2 * steps // 3)]
                shown = (f"{value:.2%}" for value in (*at, median(ends)))
                rows.append([name, f"{best:g}", *shown, f"{ends[0]:.2%} – {ends[-1]:.2%}"])
                console.print(" | ".join(rows[-1]))
            columns = ["", "best lr", *(f"{n} steps" for n in (steps // 3, 2 * steps // 3, steps))]
            show_table(f"{problem}, d = {d}: loss left, median", [*columns, "range"], rows)
    write_json(output / "rounds.json", {"steps": steps, "rates": RATES, "results": results})


if __name__ == "__main__":
    main()
