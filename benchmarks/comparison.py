"""Tasks with known answers, beside geoopt and pymanopt: loss against seconds and against flops.

The tasks are those on which Han, Jawanpuria & Mishra, *Riemannian coordinate descent algorithms on matrix
manifolds* (ICML 2024), compare: orthogonal Procrustes, PCA, the nearest matrix (orthonormal, and
symplectic), the embedding of a tree into hyperbolic space; and the Fréchet mean of positive definite
matrices. Everything is deterministic, in float64, on one thread.

Every method that has a stepsize is tuned on the first seed: all stepsizes of one grid, the same seconds for
each; the first to arrive at a gap of 1e-8 wins; if none does, the least loss at the end. A best value at an
edge of the grid is marked. Then all seeds run with it. Methods with a line search need no tuning. Seconds are
those of the processor, and include the gradient; flops are those of one step, counted once, times the steps.
The gap is (f − f*) / (f₀ − f*), where f* is known, or the least value that any run has seen (the tree).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import geoopt
import numpy as np
import pymanopt
import torch
from flops import CountFlops
from geoopt import ManifoldParameter
from pymanopt.optimizers import ConjugateGradient, SteepestDescent, TrustRegions
from report import (
    console,
    legend_below,
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)
from torch import Tensor

from givens import manifolds
from givens.optim import SRCD, SRGD, Adam, Armijo, Grouping, Matching, Uniform

GAPS = (1e-1, 1e-2, 1e-4, 1e-8)
GRID = tuple(10 ** (k / 2) for k in range(-6, 5))  # times the task's own unit of stepsize
Make = Callable[[ManifoldParameter, float], torch.optim.Optimizer]


@dataclass
class Task:
    """What is minimized, and where.

    Attributes
    ----------
    cost : callable
        Of a point, a number.
    start : Tensor
        Where every method starts.
    ours, geoopts, pymanopts
        The manifold in the three libraries; None where one has none that is right.
    least : float
        f*, or NaN where it is not known.
    unit : float
        An estimate of 1/L, L the gradient's Lipschitz constant: what stepsizes are multiples of.
    """

    cost: Callable[[Tensor], Tensor]
    start: Tensor
    ours: manifolds.CoordinateManifold
    geoopts: geoopt.Manifold | None
    pymanopts: Any
    least: float
    unit: float


def procrustes(generator: torch.Generator) -> Task:
    """Min ‖XA − B‖²/2 over O(128); A of condition 10, the answer at a distance of one turn."""
    d = 128
    group = manifolds.OrthogonalGroup(retraction="qr")
    u, v, answer = (
        group.random(d, d, dtype=torch.float64, det=1, generator=generator) for _ in "uvx"
    )
    a = u.as_subclass(Tensor) * torch.logspace(0, 1, d, dtype=torch.float64) @ v.as_subclass(Tensor)
    b = answer.as_subclass(Tensor) @ a
    b += 0.1 * torch.randn(d, d, dtype=torch.float64, generator=generator)
    left, _, right = torch.linalg.svd(b @ a.T)
    cost = lambda x: (x @ a - b).square().sum() / 2  # noqa: E731
    start = group.random(d, d, dtype=torch.float64, det=1, generator=generator)
    best = float(cost(left @ right)) if torch.linalg.det(left @ right) > 0 else math.nan
    return Task(
        cost,
        start.as_subclass(Tensor),
        group,
        geoopt.EuclideanStiefel(),
        pymanopt.manifolds.Stiefel(d, d),
        best,
        0.01,
    )


def pca(generator: torch.Generator) -> Task:
    """Min −tr(XᵀCX)/2 over St(300, 10): the leading components of a slowly falling spectrum."""
    n, p = 300, 10
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    values = 0.9 ** torch.arange(n, dtype=torch.float64)
    c = q * values @ q.T
    start, _ = torch.linalg.qr(torch.randn(n, p, dtype=torch.float64, generator=generator))
    return Task(
        lambda x: -(x * (c @ x)).sum() / 2,
        start,
        manifolds.Stiefel(retraction="qr"),
        geoopt.EuclideanStiefel(),
        pymanopt.manifolds.Stiefel(n, p),
        -float(values[:p].sum()) / 2,
        1.0,
    )


def nearest(generator: torch.Generator) -> Task:
    """Min ‖X − A‖²/2 over St(200, 50): the polar factor of a matrix."""
    n, p = 200, 50
    a = torch.randn(n, p, dtype=torch.float64, generator=generator) / math.sqrt(n)
    left, _, right = torch.linalg.svd(a, full_matrices=False)
    cost = lambda x: (x - a).square().sum() / 2  # noqa: E731
    start, _ = torch.linalg.qr(torch.randn(n, p, dtype=torch.float64, generator=generator))
    return Task(
        cost,
        start,
        manifolds.Stiefel(retraction="qr"),
        geoopt.EuclideanStiefel(),
        pymanopt.manifolds.Stiefel(n, p),
        float(cost(left @ right)),
        1.0,
    )


def nearest_symplectic(generator: torch.Generator) -> Task:
    """Min ‖X − A‖²/2 over Sp(200, 50); A − X is orthogonal to the manifold at the answer."""
    rows, columns = 200, 50
    manifold = manifolds.Symplectic(retraction="cayley")
    answer, start = (
        manifold.random(rows, columns, dtype=torch.float64, generator=generator) for _ in "xy"
    )
    answer = answer.as_subclass(Tensor)
    noise = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    # The tangent space is {JSX : S = Sᵀ}, so the normal space is {JXΩ : Ω = −Ωᵀ}.
    conjugate = torch.cat([answer[rows // 2 :], -answer[: rows // 2]])
    a = answer + conjugate @ (noise - noise.mT) / math.sqrt(100 * columns)
    cost = lambda x: (x - a).square().sum() / 2  # noqa: E731
    return Task(
        cost, start.as_subclass(Tensor), manifold, None, None, float(cost(answer)), unit=1.0
    )


def tree(generator: torch.Generator) -> Task:
    """Embed a binary tree of 63 nodes into H², so that distances become those of the tree."""
    count, dim = 63, 2
    steps = torch.zeros(count, count)
    for i in range(count):
        for j in range(count):
            a, b = i + 1, j + 1
            while a != b:
                a, b = (a // 2, b) if a > b else (a, b // 2)
                steps[i, j] += 1
    rows, columns = torch.triu_indices(count, count, 1)
    wanted = steps[rows, columns].double()

    def cost(x: Tensor) -> Tensor:
        spatial = (x[rows, 1:] * x[columns, 1:]).sum(-1)
        # arcosh(−⟨x, y⟩), through the distance of the two points in space, which does not cancel
        product = x[rows, 0] * x[columns, 0] - spatial
        distance = torch.acosh(product.clamp_min(1 + 1e-12))
        return ((distance - wanted) / wanted).square().mean()

    manifold = manifolds.Lorentz()
    spatial = 0.1 * torch.randn(count, dim, dtype=torch.float64, generator=generator)
    start = torch.cat([(1 + spatial.square().sum(-1, keepdim=True)).sqrt(), spatial], -1)
    return Task(cost, start, manifold, geoopt.Lorentz().double(), None, math.nan, 10.0)


def mean(generator: torch.Generator) -> Task:
    """Fréchet mean of 20 positive definite matrices, 16×16, of condition 10⁴."""
    d, count = 16, 20
    manifold = manifolds.SymmetricPositiveDefinite()
    q, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))
    root = q * torch.logspace(0, 2, d, dtype=torch.float64) @ q.T
    noise = torch.randn(count, d, d, dtype=torch.float64, generator=generator)
    near = torch.matrix_exp((noise + noise.mT) / math.sqrt(4 * d))
    points = root @ near @ root.T
    points = (points + points.mT) / 2

    def cost(x: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(x)
        half = torch.linalg.solve_triangular(factor, points, upper=False)
        middle = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        return torch.linalg.eigvalsh((middle + middle.mT) / 2).log().square().sum(-1).mean() / 2

    answer = torch.eye(d, dtype=torch.float64)
    for _ in range(100):  # the fixed point: the logarithms sum up to 0
        answer = manifold.expmap(answer, manifold.logmap(answer.expand_as(points), points).mean(0))
    return Task(
        cost,
        torch.eye(d, dtype=torch.float64),
        manifold,
        geoopt.SymmetricPositiveDefinite(),
        pymanopt.manifolds.SymmetricPositiveDefinite(d),
        float(cost(answer)),
        1.0,
    )


TASKS: dict[str, Callable[[torch.Generator], Task]] = {
    "Procrustes": procrustes,
    "PCA": pca,
    "nearest matrix": nearest,
    "nearest symplectic": nearest_symplectic,
    "tree": tree,
    "Fréchet mean": mean,
}
OURS: dict[str, Make] = {
    "SRCD, uniform": lambda p, lr: SRCD([p], lr, Uniform()),
    "SRCD, matching": lambda p, lr: SRCD([p], lr, Matching()),
    "SRCD, 8 matchings": lambda p, lr: SRCD([p], lr, Matching(rounds=8)),
    "SRCD, groups of 16": lambda p, lr: SRCD([p], lr, Grouping(16)),
    "SRCD, groups of 16, Adam": lambda p, lr: SRCD([p], lr, Grouping(16), Adam()),
    "SRGD": lambda p, lr: SRGD([p], lr),
    "SRGD, momentum": lambda p, lr: SRGD([p], lr, momentum=0.9),
    "SRGD, retraction": lambda p, lr: SRGD([p], lr, map="retr"),
    "SRGD, retraction, momentum": lambda p, lr: SRGD([p], lr, momentum=0.9, map="retr"),
    "SRCD, groups of 16, Armijo": lambda p, lr: SRCD([p], lr, Grouping(16), line_search=Armijo()),
    "SRGD, Armijo": lambda p, lr: SRGD([p], lr, line_search=Armijo()),
}
LONGEST = 100.0  # stepsize with which a line search begins, in the task's unit
GEOOPTS: dict[str, Make] = {
    "geoopt RSGD": lambda p, lr: geoopt.optim.RiemannianSGD([p], lr),
    "geoopt RSGD, momentum": lambda p, lr: geoopt.optim.RiemannianSGD([p], lr, momentum=0.9),
    "geoopt RAdam": lambda p, lr: geoopt.optim.RiemannianAdam([p], lr),
}
PYMANOPTS = {
    "pymanopt steepest descent": SteepestDescent,
    "pymanopt conjugate gradient": ConjugateGradient,
    "pymanopt trust regions": TrustRegions,
}


@dataclass
class Run:
    """What one run has seen: seconds and losses, a step each, and the flops of a step."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    flops: float = math.nan

    @property
    def end(self) -> float:
        """The last loss; infinite if it is worse than the first, or no number."""
        last = self.losses[-1] if self.losses else math.inf
        return last if last <= self.losses[0] else math.inf


def descend(task: Task, make: Make, manifold: geoopt.Manifold, lr: float, budget: float) -> Run:
    """Run an optimizer of torch for some seconds; what diverges or leaves the manifold ends early."""
    p = ManifoldParameter(task.start.clone(), manifold=manifold)
    optimizer, run = make(p, lr * task.unit), Run()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.cost(p)
        loss.backward()
        return loss

    def step() -> float:
        return optimizer.step(closure).item()

    start = time.process_time()
    try:
        while (now := time.process_time() - start) < budget:
            run.losses.append(step())
            run.seconds.append(now)
            if not run.losses[-1] < 10 * abs(run.losses[0]) + 1:
                break
        with CountFlops() as count:
            step()
        run.flops = count.total
    except (RuntimeError, FloatingPointError, ValueError):
        run.losses.append(math.inf)
        run.seconds.append(time.process_time() - start)
        return run
    ok, _ = task.ours.check_point_on_manifold(p.detach(), explain=True, atol=1e-6)
    if not ok:
        run.losses[-1] = math.inf
    return run


def searched(task: Task, optimizer: type, budget: float) -> Run:
    """Run an optimizer of pymanopt; its seconds include the evaluations of its line search."""
    run = Run()
    start = time.process_time()

    class BudgetError(Exception):
        pass

    @pymanopt.function.pytorch(task.pymanopts)
    def seen(x: Tensor) -> Tensor:
        loss = task.cost(x)
        run.seconds.append(time.process_time() - start)
        run.losses.append(min(loss.item(), run.losses[-1] if run.losses else math.inf))
        if run.seconds[-1] > budget:
            raise BudgetError
        return loss

    problem = pymanopt.Problem(task.pymanopts, seen)
    with suppress(BudgetError):
        optimizer(verbosity=0, max_iterations=10**6, max_time=budget, min_step_size=1e-14).run(
            problem, initial_point=task.start.numpy().copy()
        )
    return run


def tuned(task: Task, make: Make, manifold: geoopt.Manifold, budget: float) -> tuple[float, bool]:
    """Return the best stepsize, and whether it is at an edge of the grid."""
    runs = [descend(task, make, manifold, lr, budget) for lr in GRID]
    best = min(range(len(GRID)), key=lambda i: (arrival(runs[i], task.least), runs[i].end))
    return GRID[best], best in (0, len(GRID) - 1)


def arrival(run: Run, least: float) -> float:
    """Seconds to the smallest gap; infinite where it is not reached, or f* not known."""
    if not math.isfinite(least):
        return math.inf
    return first_below(gap(run, least), run.seconds, GAPS[-1])


@click.command(help=__doc__)
@click.option("--seeds", default=3, show_default=True, help="Seeds; the first is tuned on.")
@click.option("--budget", default=2.0, show_default=True, help="Seconds of a run.")
@click.option("--only", default=",".join(TASKS), show_default=True, help="Tasks.")
@output_option
def main(seeds: int, budget: float, only: str, output: Path) -> None:  # noqa: D103
    torch.set_num_threads(1)
    show_machine()
    everything = {}
    for name in only.split(","):
        tasks = [TASKS[name](torch.Generator().manual_seed(seed)) for seed in range(seeds)]
        results = compare(tasks, budget)
        everything[name] = summarize(name, tasks, results)
    write_json(output / "comparison.json", {"budget": budget, "seeds": seeds, "tasks": everything})
    draw(everything, output / "comparison.png")


def compare(tasks: list[Task], budget: float) -> dict[str, tuple[str, list[Run]]]:
    """Tune and run every method that the task's manifold has; by name, the stepsize and the runs."""
    results = {}
    first = tasks[0]
    for methods, of in ((OURS, "ours"), (GEOOPTS, "geoopts")):
        for name, make in methods.items():
            manifold = getattr(first, of)
            if manifold is None or not takes(first, make):
                continue
            lr, edge = LONGEST, False
            if "Armijo" not in name:
                lr, edge = tuned(first, make, manifold, budget)
            runs = [descend(task, make, getattr(task, of), lr, budget) for task in tasks]
            results[name] = (f"{lr:.2g}{' (edge)' if edge else ''}", runs)
    if first.pymanopts is not None:
        for name, optimizer in PYMANOPTS.items():
            results[name] = ("", [searched(task, optimizer, budget) for task in tasks])
    return results


def takes(task: Task, make: Make) -> bool:
    """Whether the manifold has what a method moves: groups of 16 axes, 8 matchings, a retraction by QR."""
    p = ManifoldParameter(task.start.clone(), manifold=task.ours)
    p.grad = torch.zeros_like(p)
    try:
        make(p, 0.1).step(lambda: p.new_zeros(()))
    except (NotImplementedError, ValueError, TypeError):
        return False
    return True


def summarize(
    name: str, tasks: list[Task], results: dict[str, tuple[str, list[Run]]]
) -> dict[str, Any]:
    """Print the table of a task; return what goes into the file and the picture."""
    least = [
        task.least
        if math.isfinite(task.least)
        else min(min(runs[i].losses) for _, runs in results.values())
        for i, task in enumerate(tasks)
    ]
    rows, summary = [], {}
    for method, (lr, runs) in results.items():
        gaps = [gap(run, f) for run, f in zip(runs, least, strict=True)]
        reached = {
            g: [first_below(x, run.seconds, g) for x, run in zip(gaps, runs, strict=True)]
            for g in GAPS
        }
        medians = {g: float(np.median(t)) for g, t in reached.items()}
        flops = {
            g: float(
                np.median(
                    [
                        first_below(x, range(len(x)), g) * run.flops
                        for x, run in zip(gaps, runs, strict=True)
                    ]
                )
            )
            for g in GAPS
        }
        end = float(np.median([x[-1] for x in gaps]))
        shown = [f"{medians[g]:.3f}" if math.isfinite(medians[g]) else "–" for g in GAPS]
        work = flops[1e-4] / 1e9
        steps = int(np.median([len(run.losses) for run in runs]))
        rows.append(
            [
                method,
                lr,
                *shown,
                f"{work:.3g}" if math.isfinite(work) else "–",
                f"{end:.1e}",
                str(steps),
            ]
        )
        curve = thinned(gaps[0], runs[0])
        summary[method] = {
            "stepsize": lr,
            "seconds to a gap": medians,
            "flops to a gap": flops,
            "last gap": end,
            "steps": steps,
            "flops of a step": runs[0].flops,
            "curve": curve,
        }
    show_table(
        name,
        ["", "stepsize", *(f"s to {g:g}" for g in GAPS), "GF to 1e-4", "last gap", "steps"],
        rows,
    )
    return summary


def gap(run: Run, least: float) -> np.ndarray:
    """(f − f*) / (f₀ − f*) of every step, at least 1e-16."""
    losses = np.array(run.losses)
    return np.maximum((losses - least) / (losses[0] - least), 1e-16)


def first_below(gaps: np.ndarray, at: Any, level: float) -> float:
    """Where the gap is below a level for the first time; infinity if never."""
    below = np.flatnonzero(gaps <= level)
    return float(at[below[0]]) if len(below) else math.inf


def thinned(gaps: np.ndarray, run: Run) -> dict[str, list[float]]:
    """Up to 200 points of a curve, evenly in the logarithm of the step."""
    at = np.unique(np.geomspace(1, len(gaps), 200).astype(int) - 1)
    return {
        "seconds": [run.seconds[i] for i in at],
        "steps": [int(i) for i in at],
        "gap": [float(gaps[i]) for i in at],
    }


def draw(everything: dict[str, Any], path: Path) -> None:
    """One column of axes a task: the gap of the first seed against seconds."""
    figure = new_figure(len(everything), width=3.6 * len(everything), height=3.8)
    colours = dict(zip([*OURS, *GEOOPTS, *PYMANOPTS], COLOURS, strict=True))
    for axes, (name, methods) in zip(figure.axes, everything.items(), strict=True):
        for method, result in methods.items():
            curve = result["curve"]
            style = "-" if method in OURS else "--" if method in GEOOPTS else ":"
            axes.plot(
                curve["seconds"],
                curve["gap"],
                style,
                label=method,
                color=colours[method],
                linewidth=1.3,
            )
        axes.set(title=name, xlabel="seconds", yscale="log", ylim=(1e-10, 2))
        axes.set_xlim(left=0)
    figure.axes[0].set_ylabel("(f − f*) / (f₀ − f*)")
    legend_below(figure)
    save_figure(figure, path)


COLOURS = (
    *("#e69f00", "#56b4e9", "#117733", "#882255", "#cc79a7", "#d55e00", "#b22222"),
    *("#ee7733", "#bbbb22", "#aa4499", "#ff5555"),
    *("#009e73", "#0072b2", "#000000"),
    *("#7f7f7f", "#999933", "#332288"),
)


if __name__ == "__main__":
    console.print("")
    main()
