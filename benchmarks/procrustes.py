"""Seconds to a loss: a rotation learned from noisy batches, beside geoopt, POGO and parametrizations.

f(W) = E ½‖(W − T)x‖² for x ~ N(0, diag(i^-½)), which the gradients see in batches of 256. The gradient
is *spread* over all coordinates where W starts at T·expm(K), K_ij ~ N(0, 1)/√(2d), and *sparse* where K
turns one in sixteen columns among themselves. The exact loss is looked at after every step, off the clock;
seconds are of the gradient and the step, CPU seconds of this process on a CPU.

Every method is tuned on the first seed: stepsizes a factor of √10 apart, from its own first guess on,
until the best has a worse one on each side. What is best is the time to 1 % of the loss at the start; if
no stepsize gets there, the time to 10 %; if none, the loss at the end. A run ends at 1 %, when it diverges,
when its seconds are over, or when it has taken twice as long as the method's best so far. Then all seeds
run with the best stepsize, and the medians are shown.
"""

from __future__ import annotations

import math
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
from report import output_option, show_machine, show_table, write_json
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, SRGD, Adam, Grouping, Matching

BATCH = 256
LEVELS = (0.1, 0.01)


class Problem:
    """One seed's rotation, where the methods start, and the noise that they see.

    Parameters
    ----------
    d : int
        Size of the rotation.
    kind : {"spread", "sparse"}
        How much of the gradient is in how many coordinates.
    seed : int
        Of everything.
    device : torch.device
        Where it is.
    """

    def __init__(self, d: int, kind: str, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        moved = d if kind == "spread" else d // 16
        a = torch.zeros(d, d, dtype=torch.float64)
        at = torch.randperm(d, generator=generator)[:moved]
        noise = torch.randn(moved, moved, dtype=torch.float64, generator=generator)
        a[at.unsqueeze(-1), at] = noise / (2 * math.sqrt(moved))
        target = OrthogonalGroup().random(d, d, dtype=torch.float64, generator=generator)
        start = target.as_subclass(Tensor) @ torch.matrix_exp(a - a.mT)
        variance = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
        self.target, self.start, self.variance = (
            x.as_subclass(Tensor).float().to(device) for x in (target, start, variance)
        )
        self.seed, self.device = seed, device
        self.first = self.loss(self.start)

    def loss(self, w: Tensor) -> float:
        """The exact one."""
        return float(((w - self.target).square() * self.variance).sum()) / 2

    def batches(self) -> Callable[[], Tensor]:
        """Return what draws the next batch, shape ``(256, d)``; the same batches at every call."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        root = self.variance.sqrt()
        shape = (BATCH, len(root))
        return lambda: root * torch.randn(shape, generator=generator, device=self.device)


class Rotation(nn.Module):
    """W, as a parameter on a manifold, a plain one, or a parametrized one."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Wx, for every row of a batch."""
        return x @ self.weight.mT


def on(manifold: geoopt.Manifold, make: Callable[[Any, float], Any]) -> Any:
    """Return what makes the optimizer of a rotation on a manifold."""

    def build(module: Rotation, lr: float) -> torch.optim.Optimizer:
        module.weight = ManifoldParameter(module.weight.detach().clone(), manifold=manifold)
        return make([module.weight], lr)

    return build


def parametrized(module: Rotation, lr: float) -> torch.optim.Optimizer:
    """Torch's parametrization by a Cayley transform, which can start anywhere, and Adam."""
    start = module.weight.detach().clone()
    orthogonal(module, orthogonal_map="cayley")
    module.weight = start
    return torch.optim.Adam(
        [p for p in module.parameters() if p.requires_grad and p.numel() > 1], lr
    )


def pogo(base: Any) -> Any:
    """Return what makes POGO with a base optimizer."""
    return lambda module, lr: POGO(
        [module.weight], base(), lr, flatten_fn=lambda m: m.unsqueeze(0) if m.ndim == 2 else m
    )


OURS, CAYLEY, STIEFEL = OrthogonalGroup(), OrthogonalGroup("cayley"), geoopt.EuclideanStiefel()
# What makes a method's optimizer, and the stepsize that is tried first.
METHODS: dict[str, tuple[Any, float]] = {
    "SRCD, matching": (on(OURS, lambda p, lr: SRCD(p, lr, Matching())), 1.0),
    "SRCD, matching, Adam": (on(OURS, lambda p, lr: SRCD(p, lr, Matching(), Adam())), 0.03),
    "SRCD, groups of 16": (on(OURS, lambda p, lr: SRCD(p, lr, Grouping(16))), 1.0),
    "SRCD, groups of 16, Adam": (on(OURS, lambda p, lr: SRCD(p, lr, Grouping(16), Adam())), 0.01),
    "SRCD, groups of 64": (on(OURS, lambda p, lr: SRCD(p, lr, Grouping(64))), 1.0),
    "SRCD, groups of 64, Adam": (on(OURS, lambda p, lr: SRCD(p, lr, Grouping(64), Adam())), 0.01),
    "SRCD, groups of 256": (on(OURS, lambda p, lr: SRCD(p, lr, Grouping(256))), 1.0),
    "SRGD": (on(OURS, lambda p, lr: SRGD(p, lr)), 1.0),
    "SRGD, Adam": (on(OURS, lambda p, lr: SRGD(p, lr, scaling=Adam())), 0.01),
    "SRGD, Cayley": (on(CAYLEY, lambda p, lr: SRGD(p, lr, map="retr")), 1.0),
    "POGO": (pogo(SGD), 1.0),
    "POGO, VectorAdam": (pogo(VectorAdam), 0.3),
    "geoopt RSGD, QR": (on(STIEFEL, lambda p, lr: geoopt.optim.RiemannianSGD(p, lr)), 1.0),
    "geoopt RAdam": (on(STIEFEL, lambda p, lr: geoopt.optim.RiemannianAdam(p, lr)), 0.1),
    "Cayley SGD": (lambda module, lr: CayleySGD([module.weight], lr), 0.3),
    "torch parametrization, Adam": (parametrized, 0.01),
}


@dataclass
class Run:
    """What one run has seen: the share of the first loss after every step, and the seconds."""

    shares: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def to(self, level: float) -> tuple[float, int]:
        """Return the seconds and steps to a share of the first loss; infinite ones if never."""
        for n, share in enumerate(self.shares):
            if share <= level:
                return self.seconds[n], n + 1
        return math.inf, 0

    @property
    def rank(self) -> tuple[float, ...]:
        """The smaller the better."""
        last = self.shares[-1] if self.shares else math.inf
        return self.to(LEVELS[1])[0], self.to(LEVELS[0])[0], last if last == last else math.inf


def descend(problem: Problem, make: Any, lr: float, budget: float) -> Run:
    """Run a method until the last level, the budget, or a loss of three times the first."""
    module, run, spent = Rotation(problem.start), Run(), 0.0
    try:
        optimizer = make(module.to(problem.device), lr)
        draw = problem.batches()
        while spent < budget and not (run.shares and run.shares[-1] <= LEVELS[-1]):
            x = draw()
            start = clock(problem.device)
            optimizer.zero_grad()
            loss = (module(x) - x @ problem.target.mT).square().sum() / (2 * BATCH)
            loss.backward()
            optimizer.step()
            spent += clock(problem.device) - start
            with torch.no_grad():
                share = problem.loss(module.weight.as_subclass(Tensor)) / problem.first
            if not share < 3:
                break
            run.shares.append(share)
            run.seconds.append(spent)
    except (FloatingPointError, torch.linalg.LinAlgError):
        pass
    w = module.weight.detach().as_subclass(Tensor).double()
    defect = (w.mT @ w - torch.eye(len(w), dtype=w.dtype, device=w.device)).abs().max()
    return run if bool(defect < 1e-3) else Run()  # who leaves the group does not compete


def clock(device: torch.device) -> float:
    """Seconds, at which the device has done its work."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def tuned(problem: Problem, make: Any, first: float, budget: float) -> float:
    """Return the best stepsize, walking by factors of √10 until it lies between two worse ones."""
    runs: dict[int, Run] = {}

    def rank(n: int) -> tuple[float, ...]:
        if n not in runs:
            known = min((run.rank[0] for run in runs.values()), default=math.inf)
            limit = min(budget, 2 * known)
            runs[n] = descend(problem, make, first * 10 ** (n / 2), limit)
        return runs[n].rank

    best = 0
    while abs(best) < 12:
        better = min((best - 1, best, best + 1), key=rank)
        if better == best:
            break
        best = better
    return first * 10 ** (best / 2)


@click.command(help=__doc__)
@click.option("-d", "sizes", multiple=True, type=int, default=(512,), show_default=True)
@click.option("--kinds", default="spread,sparse", show_default=True, help="Problems.")
@click.option("--seeds", default=3, show_default=True, help="Seeds; the first is tuned on.")
@click.option("--budget", default=6.0, show_default=True, help="Seconds of a run at most.")
@click.option("--only", default="", help="Methods whose names contain this.")
@click.option("--device", default="cpu", show_default=True)
@output_option
def main(  # noqa: D103
    sizes: tuple[int, ...],
    kinds: str,
    seeds: int,
    budget: float,
    only: str,
    device: str,
    output: Path,
) -> None:
    if device == "cpu":
        torch.set_num_threads(1)
    show_machine()
    tables = {}
    for d in sizes:
        for kind in kinds.split(","):
            problems = [Problem(d, kind, seed, torch.device(device)) for seed in range(seeds)]
            rows, results = [], {}
            for name, (make, first) in METHODS.items():
                if only not in name or ("groups of 256" in name and d < 256):
                    continue
                lr = tuned(problems[0], make, first, budget)
                runs = [descend(problem, make, lr, budget) for problem in problems]
                reached = [[run.to(level) for run in runs] for level in LEVELS]
                step = float(
                    np.median([run.seconds[-1] / len(run.seconds) for run in runs if run.seconds])
                )
                results[name] = {
                    "stepsize": lr,
                    "seconds and steps to a level": dict(
                        zip(map(str, LEVELS), reached, strict=True)
                    ),
                    "last": [run.shares[-1] if run.shares else math.nan for run in runs],
                    "seconds of a step": step,
                }
                rows.append([name, f"{lr:.2g}", *map(_shown, reached), f"{1e3 * step:.1f}"])
            headings = [
                "",
                "stepsize",
                *(f"s to {level:.0%} (steps)" for level in LEVELS),
                "ms a step",
            ]
            show_table(f"{kind}, d = {d}, {seeds} seeds", headings, rows)
            tables[f"{kind} {d}"] = results
            write_json(output / "procrustes.json", {"budget": budget, "tables": tables})


def _shown(reached: list[tuple[float, int]]) -> str:
    seconds, steps = (float(np.median(x)) for x in zip(*reached, strict=True))
    return f"{seconds:.2f} ({steps:.0f})" if math.isfinite(seconds) else "–"


if __name__ == "__main__":
    main()
