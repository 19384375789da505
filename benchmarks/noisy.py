"""Seconds to a loss under the noise of mini-batches, beside geoopt, POGO and parametrizations.

Five problems with known answers; every step sees a fresh batch, and the exact loss is looked at after every
step, off the clock:

- *Procrustes*: E ½‖(W − T)x‖² over O(d), x ~ N(0, diag(i^-½)), batches of 256. The gradient is *spread* over
  all coordinates where W starts at T·expm(K), K_ij ~ N(0, 1)/√(2d), and *sparse* where K turns one in
  sixteen columns among themselves.
- *PCA*: −½ E‖Wᵀx‖² over St(n, 3n/4), x ~ N(0, C), the eigenvalues of C falling from 1 to 1/1000
  geometrically, batches of 256.
- *ICA*: E Σ log cosh(wᵀx) over O(d), x whitened mixtures of Laplace variables, batches of 256 of 4,000.
- *joint diagonalization*: E ½ Σ off(WᵀAW)² over O(d), A one of 64 matrices V diag(λ) Vᵀ with noise, batches
  of 16.

The gap is f − f*, as a share of what it is at the start. f* is known of the first three; of the others it is
where full-batch descent from the true answer ends. Seconds are of the gradient and the step, CPU seconds of
this process on a CPU.

Every method is tuned on the first seed: stepsizes a factor of √10 apart (--decade: closer), from its own
first guess on, until the best has a worse one on each side. What is best is the time to 1 % of the gap at the
start; if no stepsize gets there, the time to 10 %; if none, the gap at the end. A run ends at 1 %, when it
diverges, when its seconds are over, or when it has taken twice as long as the method's best so far. Then all
seeds run with the best stepsize, and the medians are shown.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import geoopt
import numpy as np
import torch
from applications.rotations import CayleySGD
from geoopt import ManifoldParameter
from pogo import POGO
from pogo.base import SGD, VectorAdam
from report import (
    legend_below,
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import orthogonal

from givens.manifolds import OrthogonalGroup, Stiefel
from givens.optim import SRCD, SRGD, Adam, Grouping, Matching

LEVELS = (0.1, 0.01)
GROUP = OrthogonalGroup()


@dataclass
class Problem:
    """What is minimized, where it starts, and what a step sees of it.

    Attributes
    ----------
    start : Tensor
        Where every method starts.
    loss : callable
        Of a point and a batch.
    exact : callable
        The expectation over batches, of a point.
    draw : callable
        Draws a batch with a generator.
    least : float
        The least value of `exact`.
    """

    start: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    draw: Callable[[torch.Generator], Tensor]
    least: float = 0.0

    def gap(self, w: Tensor) -> float:
        """The exact loss above the least one."""
        with torch.no_grad():
            return float(self.exact(w)) - self.least


def point(generator: torch.Generator, *shape: int) -> Tensor:
    """A uniformly distributed matrix with orthonormal columns, in float64."""
    x = Stiefel().random(*shape, dtype=torch.float64, generator=generator)
    return x.as_subclass(Tensor)


def procrustes(d: int, generator: torch.Generator, device: torch.device, *, moved: int) -> Problem:
    """Learn a rotation, which begins right but for some columns."""
    a = torch.zeros(d, d, dtype=torch.float64)
    at = torch.randperm(d, generator=generator)[:moved]
    noise = torch.randn(moved, moved, dtype=torch.float64, generator=generator)
    a[at.unsqueeze(-1), at] = noise / (2 * math.sqrt(moved))
    right = point(generator, d, d)
    start = (right @ torch.matrix_exp(a - a.mT)).float().to(device)
    target = right.float().to(device)
    variance = (torch.arange(1, d + 1, dtype=torch.float64) ** -0.5).float().to(device)
    return Problem(
        start,
        lambda w, x: (x @ w.mT - x @ target.mT).square().sum() / (2 * len(x)),
        lambda w: ((w - target).square() * variance).sum() / 2,
        lambda g: variance.sqrt() * torch.randn((256, d), generator=g, device=device),
    )


def pca(d: int, generator: torch.Generator, device: torch.device) -> Problem:
    """Find the space of three quarters of the components."""
    p = 3 * d // 4
    values = torch.logspace(0, -3, d, dtype=torch.float64)
    basis = point(generator, d, d)
    root = (basis * values.sqrt() @ basis.mT).float().to(device)
    return Problem(
        point(generator, d, p).float().to(device),
        lambda w, x: -(x @ w).square().sum() / (2 * len(x)),
        lambda w: -(root @ w).square().sum() / 2,
        lambda g: torch.randn((256, d), generator=g, device=device) @ root,
        -float(values[:p].sum()) / 2,
    )


def ica(d: int, generator: torch.Generator, device: torch.device) -> Problem:
    """Separate mixtures of sources whose distribution has heavy tails."""
    uniform = torch.rand(4_000, d, dtype=torch.float64, generator=generator) - 0.5
    sources = -uniform.sign() * torch.log1p(-2 * uniform.abs())
    sources -= sources.mean(0)
    covariance = sources.mT @ sources / len(sources)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), sources.mT, upper=False
    )
    mixing = point(generator, d, d)
    x = (mixing @ white).mT.float().to(device)

    def loss(w: Tensor, x: Tensor) -> Tensor:
        y = 2 * (x @ w).abs()
        return (y / 2 + softplus(-y) - math.log(2)).sum() / len(x)  # log cosh

    problem = Problem(
        point(generator, d, d).float().to(device),
        loss,
        lambda w: loss(w, x),
        lambda g: x[torch.randint(len(x), (256,), generator=g, device=device)],
    )
    return polished(problem, mixing.float().to(device), 1.0)


def joint_diagonalization(d: int, generator: torch.Generator, device: torch.device) -> Problem:
    """Diagonalize 64 matrices that nearly commute."""
    right = point(generator, d, d)
    values = torch.randn(64, 1, d, dtype=torch.float64, generator=generator)
    noise = torch.randn(64, d, d, dtype=torch.float64, generator=generator)
    matrices = right * values @ right.mT + 0.02 * (noise + noise.mT)
    a = matrices.float().to(device)

    def loss(w: Tensor, a: Tensor) -> Tensor:
        m = w.mT @ a @ w
        squares = m.square().sum() - m.diagonal(dim1=-2, dim2=-1).square().sum()
        return squares / (2 * len(a))

    problem = Problem(
        point(generator, d, d).float().to(device),
        loss,
        lambda w: loss(w, a),
        lambda g: a[torch.randint(len(a), (16,), generator=g, device=device)],
    )
    return polished(problem, right.float().to(device), 0.1)


def polished(problem: Problem, right: Tensor, lr: float) -> Problem:
    """Find the least value, by full-batch descent from the true answer."""
    w = ManifoldParameter(right.clone(), manifold=GROUP)
    optimizer = SRGD([w], lr)
    for _ in range(300):
        optimizer.zero_grad()
        problem.exact(w).backward()
        optimizer.step()
    problem.least = float(problem.exact(w.detach()))
    return problem


# What makes a problem, and how its size follows from d.
PROBLEMS: dict[str, Callable[[int, torch.Generator, torch.device], Problem]] = {
    "spread Procrustes": lambda d, g, device: procrustes(d, g, device, moved=d),
    "sparse Procrustes": lambda d, g, device: procrustes(d, g, device, moved=d // 16),
    "PCA": pca,
    "ICA": lambda d, g, device: ica(d // 8, g, device),
    "joint diagonalization": lambda d, g, device: joint_diagonalization(d // 8, g, device),
}


class Model(nn.Module):
    """W, as a plain parameter, on a manifold, or parametrized."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())


def on(manifold: Callable[[Tensor], geoopt.Manifold], make: Callable[[Any, float], Any]) -> Any:
    """Return what makes the optimizer of a matrix on a manifold."""

    def build(model: Model, lr: float) -> torch.optim.Optimizer:
        start = model.weight.detach().clone()
        model.weight = ManifoldParameter(start, manifold=manifold(start))
        return make([model.weight], lr)

    return build


def ours(x: Tensor) -> geoopt.Manifold:
    """The manifold of a square or tall matrix; its retraction is the cheapest one."""
    return (OrthogonalGroup if x.shape[-2] == x.shape[-1] else Stiefel)(retraction="cayley")


def parametrized(model: Model, lr: float) -> torch.optim.Optimizer:
    """Torch's parametrization by a Cayley transform, which can start anywhere, and Adam."""
    start = model.weight.detach().clone()
    orthogonal(model, orthogonal_map="cayley")
    model.weight = start
    return torch.optim.Adam(model.parameters(), lr)


def pogo(base: Any) -> Any:
    """Return what makes POGO with a base optimizer."""
    return lambda model, lr: POGO(
        [model.weight], base(), lr, flatten_fn=lambda m: m.unsqueeze(0), rows=False
    )


STIEFEL = geoopt.EuclideanStiefel()
# What makes a method's optimizer, and the stepsize that is tried first.
METHODS: dict[str, tuple[Any, float]] = {
    "SRCD, matching": (on(ours, lambda p, lr: SRCD(p, lr, Matching())), 1.0),
    "SRCD, greedy matching": (on(ours, lambda p, lr: SRCD(p, lr, Matching("greedy"))), 1.0),
    "SRCD, groups of 16": (on(ours, lambda p, lr: SRCD(p, lr, Grouping(16))), 1.0),
    "SRCD, groups of 16, Adam": (on(ours, lambda p, lr: SRCD(p, lr, Grouping(16), Adam())), 0.01),
    "SRCD, greedy groups of 16": (on(ours, lambda p, lr: SRCD(p, lr, Grouping(16, "greedy"))), 1.0),
    "SRCD, greedy groups of 16 by bfloat16": (
        on(ours, lambda p, lr: SRCD(p, lr, Grouping(16, "greedy", torch.bfloat16))),
        1.0,
    ),
    "SRCD, groups of 64": (on(ours, lambda p, lr: SRCD(p, lr, Grouping(64))), 1.0),
    "SRCD, groups of 64, Adam": (on(ours, lambda p, lr: SRCD(p, lr, Grouping(64), Adam())), 0.01),
    "SRCD, groups of 256": (on(ours, lambda p, lr: SRCD(p, lr, Grouping(256))), 1.0),
    "SRGD": (on(ours, lambda p, lr: SRGD(p, lr)), 1.0),
    "SRGD, Adam": (on(ours, lambda p, lr: SRGD(p, lr, scaling=Adam())), 0.01),
    "SRGD, Cayley": (on(ours, lambda p, lr: SRGD(p, lr, map="retr")), 1.0),
    "SRGD, Cayley, momentum": (on(ours, lambda p, lr: SRGD(p, lr, 0.9, map="retr")), 0.3),
    "SRGD, Cayley, rank 256": (on(ours, lambda p, lr: SRGD(p, lr, map="retr", rank=256)), 1.0),
    "POGO": (pogo(SGD), 1.0),
    "POGO, VectorAdam": (pogo(VectorAdam), 0.3),
    "geoopt RSGD": (on(lambda _: STIEFEL, lambda p, lr: geoopt.optim.RiemannianSGD(p, lr)), 1.0),
    "geoopt RAdam": (on(lambda _: STIEFEL, lambda p, lr: geoopt.optim.RiemannianAdam(p, lr)), 0.1),
    "Cayley SGD": (lambda model, lr: CayleySGD([model.weight], lr), 0.3),
    "torch parametrization, Adam": (parametrized, 0.01),
}


@dataclass
class Run:
    """What one run has seen: the share of the first gap after every step, and the seconds."""

    shares: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def to(self, level: float) -> tuple[float, float]:
        """Return the seconds and steps to a share of the first gap; infinite ones if never."""
        for n, share in enumerate(self.shares):
            if share <= level:
                return self.seconds[n], n + 1
        return math.inf, math.inf

    @property
    def rank(self) -> tuple[float, ...]:
        """The smaller the better."""
        last = self.shares[-1] if self.shares else math.inf
        return self.to(LEVELS[1])[0], self.to(LEVELS[0])[0], last


def descend(problem: Problem, make: Any, lr: float, budget: float, seed: int) -> Run:
    """Run a method until the last level, the budget, or a gap of three times the first."""
    device = problem.start.device
    model, run, spent = Model(problem.start), Run(), 0.0
    first, generator = problem.gap(problem.start), torch.Generator(device).manual_seed(seed)
    try:
        optimizer = make(model, lr)
        while spent < budget and not (run.shares and run.shares[-1] <= LEVELS[-1]):
            batch = problem.draw(generator)
            start = clock(device)
            optimizer.zero_grad()
            problem.loss(model.weight, batch).backward()
            optimizer.step()
            spent += clock(device) - start
            share = problem.gap(model.weight.detach().as_subclass(Tensor)) / first
            if not share < 3:
                break
            run.shares.append(share)
            run.seconds.append(spent)
    except (FloatingPointError, torch.linalg.LinAlgError):
        pass
    w = model.weight.detach().as_subclass(Tensor).double()
    defect = (w.mT @ w - torch.eye(w.shape[-1], dtype=w.dtype, device=device)).abs().max()
    return run if bool(defect < 1e-3) else Run()  # who leaves the manifold does not compete


def clock(device: torch.device) -> float:
    """Seconds, at which the device has done its work."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def tuned(problem: Problem, make: Any, first: float, budget: float, decade: int) -> float:
    """Return the best stepsize, of `decade` a decade, walking until it lies between two worse ones."""
    runs: dict[int, Run] = {}

    def rank(n: int) -> tuple[float, ...]:
        if n not in runs:
            known = min((run.rank[0] for run in runs.values()), default=math.inf)
            runs[n] = descend(problem, make, first * 10 ** (n / decade), min(budget, 2 * known), 0)
        return runs[n].rank

    best = 0
    while abs(best) < 6 * decade:
        better = min((best, best - 1, best + 1), key=rank)
        if better == best:
            break
        best = better
    return first * 10 ** (best / decade)


@click.command(help=__doc__)
@click.option("-d", "sizes", multiple=True, type=int, default=(256,), show_default=True)
@click.option("--only", default=",".join(PROBLEMS), show_default=True, help="Problems.")
@click.option(
    "--methods", default="", help="Methods with names that this regular expression finds."
)
@click.option("--seeds", default=3, show_default=True, help="Seeds; the first is tuned on.")
@click.option("--budget", default=6.0, show_default=True, help="Seconds of a run at most.")
@click.option("--decade", default=2, show_default=True, help="Stepsizes of a decade.")
@click.option("--device", default="cpu", show_default=True)
@output_option
def main(  # noqa: D103
    sizes: tuple[int, ...],
    only: str,
    methods: str,
    seeds: int,
    budget: float,
    decade: int,
    device: str,
    output: Path,
) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    show_machine()
    tables: dict[str, Any] = {}
    for d in sizes:
        for kind in only.split(","):
            problems = [
                PROBLEMS[kind](d, torch.Generator().manual_seed(seed), torch.device(device))
                for seed in range(seeds)
            ]
            shape = " × ".join(map(str, problems[0].start.shape))
            results = {}
            for name, (make, first) in METHODS.items():
                if not re.search(methods, name) or not takes(problems[0], make):
                    continue
                lr = tuned(problems[0], make, first, budget, decade)
                runs = [descend(p, make, lr, budget, seed) for seed, p in enumerate(problems)]
                results[name] = summary(lr, runs)
            show(f"{kind}, {shape}, {seeds} seeds", results)
            tables[f"{kind}, {shape}"] = results
            write_json(output / "noisy.json", {"budget": budget, "tables": tables})
    draw(tables, output / "noisy.png")


def takes(problem: Problem, make: Any) -> bool:
    """Whether a method can take a step at all: groups have a size."""
    model = Model(problem.start)
    try:
        optimizer = make(model, 1e-3)
        problem.loss(model.weight, problem.draw(torch.Generator(problem.start.device))).backward()
        optimizer.step()
    except (ValueError, RuntimeError):
        return False
    return True


def summary(lr: float, runs: list[Run]) -> dict[str, Any]:
    """What goes into the file: medians over the seeds, and the curve of the first."""
    kept = np.unique(np.geomspace(1, max(1, len(runs[0].shares)), 150).astype(int) - 1)
    return {
        "stepsize": lr,
        "to": {
            str(level): [
                float(np.median(x)) for x in zip(*(run.to(level) for run in runs), strict=True)
            ]
            for level in LEVELS
        },
        "seconds of a step": float(
            np.median(
                [run.seconds[-1] / len(run.seconds) for run in runs if run.seconds] or [math.nan]
            )
        ),
        "last": float(np.median([run.shares[-1] if run.shares else math.nan for run in runs])),
        "curve": [(runs[0].seconds[i], runs[0].shares[i]) for i in kept if i < len(runs[0].shares)],
    }


def show(title: str, results: dict[str, dict[str, Any]]) -> None:
    """Print the table of a problem."""
    headings = [
        "",
        "stepsize",
        *(f"s to {level:.0%} (steps)" for level in LEVELS),
        "ms a step",
        "last",
    ]
    rows = []
    for name, result in results.items():
        reached = [
            f"{seconds:.3f} ({steps:.0f})" if math.isfinite(seconds) else "–"
            for seconds, steps in result["to"].values()
        ]
        step = f"{1e3 * result['seconds of a step']:.2f}"
        rows.append([name, f"{result['stepsize']:.2g}", *reached, step, f"{result['last']:.2g}"])
    show_table(title, headings, rows)


def draw(tables: dict[str, Any], path: Path) -> None:
    """Draw the gap of the first seed against seconds, a problem at a time."""
    figure = new_figure(len(tables), width=3.6 * len(tables), height=4.0)
    names = [name for name in METHODS if any(name in results for results in tables.values())]
    for axes, (title, results) in zip(figure.axes, tables.items(), strict=True):
        for name, result in results.items():
            style = "-" if name.startswith("S") else "--"
            seconds, shares = zip(*result["curve"], strict=True) if result["curve"] else ((), ())
            colour = COLOURS[names.index(name)]
            axes.plot(seconds, shares, style, label=name, color=colour, linewidth=1.3)
        axes.set(title=title, xlabel="seconds", xscale="log", yscale="log", ylim=(0.008, 1.5))
    figure.axes[0].set_ylabel("gap, of the first one")
    legend_below(figure)
    save_figure(figure, path)


COLOURS = (
    *("#e69f00", "#ee7733", "#56b4e9", "#0072b2", "#33bbee", "#009e73", "#117733", "#882255"),
    *("#cc79a7", "#d55e00", "#b22222", "#000000", "#555555", "#999933", "#ddaa33", "#7f7f7f"),
    *("#332288", "#44aa99", "#aa4499", "#0000ff"),
)


if __name__ == "__main__":
    main()
