"""Theorem 1: the weighted mean of the squared gradient goes to 0 with Robbins–Monro stepsizes.

SRCD-U on O(d) × ℝᵈ: find a rotation and an offset from noisy pairs, f(W, b) = E ½‖Wx + b − y‖² with
y = Tx + c + ε, whose minimum is at (T, c). The gradient of a mini-batch is noisy there too. The
stepsizes α_k = a/(1 + k/b)^p fulfil the Robbins–Monro conditions Σα = ∞, Σα² < ∞ for 1/2 < p ≤ 1 (the
paper's (15) prints the second one as Σα² = 0, which no positive stepsizes fulfil); p = 0, a constant
stepsize, does not. Shown is the quantity of the paper's (16), Σα_k‖g_k‖²/Σα_k over k ≤ K, with the
exact gradient g_k in closed form: 0 in the limit for the former, not for the latter.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from geoopt import ManifoldParameter
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

sys.path.append(str(Path(__file__).parents[1]))

from report import (
    label_lines,
    log_axis,
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, Uniform

# p of α_k = a/(1 + k/b)^p, name, colour.
SCHEDULES = (
    (0.0, "constant", "#7f7f7f"),
    (0.6, "p = 0.6", "#0072b2"),
    (0.8, "p = 0.8", "#009e73"),
    (1.0, "p = 1", "#d55e00"),
)
STEPSIZE = 0.2  # a
DELAY = 300.0  # b, in iterations
NOISE = 2.0  # standard deviation of the entries of ε
BATCH = 4


class Problem:
    """Independent problems as one batch: a trajectory each, with its own T, c, noise and coordinates.

    Parameters
    ----------
    runs, d : int
        Number of problems, and size of the matrices.
    seed : int
        Of T, c and the mini-batches.
    """

    def __init__(self, runs: int, d: int, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.manifold = OrthogonalGroup()
        size = {"dtype": torch.float64, "generator": self.random}
        a = torch.randn(runs, d, d, **size) / math.sqrt(2 * d)
        self.target = torch.linalg.matrix_exp(a - a.mT)
        self.offset = torch.randn(runs, d, **size)
        # Covariance of x, a diagonal: unequal, so that the problem is not a trivial one.
        self.variance = torch.arange(1, d + 1, dtype=torch.float64).rsqrt()

    def start(self) -> tuple[ManifoldParameter, torch.nn.Parameter]:
        """Return the identity and a zero offset."""
        w = self.manifold.origin(self.target.shape, dtype=torch.float64)
        return (
            ManifoldParameter(w, manifold=self.manifold),
            torch.nn.Parameter(torch.zeros_like(self.offset)),
        )

    def loss(self, w: Tensor, b: Tensor) -> Tensor:
        """Sum over the problems of f on a fresh mini-batch; leading dimensions share the batch."""
        runs, d = self.offset.shape
        x = torch.randn(runs, BATCH, d, dtype=torch.float64, generator=self.random)
        x = x * self.variance.sqrt()
        noise = torch.randn(runs, BATCH, d, dtype=torch.float64, generator=self.random)
        y = x @ self.target.mT + self.offset.unsqueeze(-2) + NOISE * noise
        return (x @ w.mT + b.unsqueeze(-2) - y).square().sum() / (2 * BATCH)

    def squared_gradient(self, w: Tensor, b: Tensor) -> Tensor:
        """‖g‖², g the exact Riemannian gradient: that of W is P_W((W − T) E xxᵀ), of b it is b − c."""
        g = self.manifold.egrad2rgrad(w, (w - self.target) * self.variance)
        return g.square().sum((-2, -1)) + (b - self.offset).square().sum(-1)


def decay(p: float, k: int) -> float:
    """Stepsize of iteration k, over that of the first."""
    return (1 + k / DELAY) ** -p


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="100,000 iterations.")
@click.option("--iterations", type=int, help="Other than 100,000 (5,000 without --full).")
@click.option("--runs", default=32, show_default=True, help="Trajectories of every schedule.")
@click.option("--size", "d", default=10, show_default=True, help="d.")
@click.option("--threads", default=1, show_default=True, help="The matrices are small.")
@output_option
def main(  # noqa: D103
    full: bool, iterations: int | None, runs: int, d: int, threads: int, output: Path
) -> None:
    torch.set_num_threads(threads)
    iterations = iterations or (100_000 if full else 5_000)
    show_machine()
    means, last = trajectories(Problem(runs, d), iterations)
    decade = iterations // 10
    rows = []
    for i, (p, name, _) in enumerate(SCHEDULES):
        median = np.median(means[i], -1)
        slope = np.log10(median[-1] / median[decade - 1])
        expected = "0" if p == 0 else f"{p - 1:.1f}" if p < 1 else "0−"
        rows.append(
            [
                name,
                f"{median[0]:.3g}",
                f"{median[decade - 1]:.3g}",
                f"{median[-1]:.3g}",
                f"{slope:+.2f}",
                expected,
                f"{np.median(last[i]):.2g}",
            ]
        )
    show_table(
        f"Σα‖g‖²/Σα on O({d}) × ℝ^{d}, medians of {runs} trajectories",
        [
            "stepsize",
            "K = 1",
            f"K = {decade:,}",
            f"K = {iterations:,}",
            "slope of the\nlast decade",
            "in the limit\n(bound)",
            "‖g‖² over the\nlast tenth",
        ],
        rows,
    )
    points = np.unique(np.geomspace(1, iterations, 200).astype(int))
    write_json(
        output / "theorem1.json",
        {
            "d": d,
            "trajectories": runs,
            "stepsize": {"a": STEPSIZE, "b": DELAY, "p": [p for p, _, _ in SCHEDULES]},
            "noise": NOISE,
            "batch": BATCH,
            "K": points.tolist(),
            "weighted mean": {
                name: means[i][points - 1].T.tolist() for i, (_, name, _) in enumerate(SCHEDULES)
            },
        },
    )
    draw(points, means[:, points - 1], f"O({d}) × ℝ$^{{{d}}}$", output / "theorem1.png")


def trajectories(problem: Problem, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Run all schedules on the same mini-batches.

    Returns
    -------
    means : ndarray
        Weighted mean of ‖g‖² up to every iteration, shape ``(schedules, iterations, runs)``.
    last : ndarray
        Mean of ‖g‖² over the last tenth of the iterations, shape ``(schedules, runs)``.
    """
    starts = [problem.start() for _ in SCHEDULES]
    optimizer = SRCD([{"params": [*start]} for start in starts], lr=STEPSIZE, selection=Uniform())
    schedule = LambdaLR(optimizer, [partial(decay, p) for p, _, _ in SCHEDULES])
    squares = torch.empty(iterations, len(SCHEDULES), len(problem.offset), dtype=torch.float64)
    stepsizes = torch.empty(iterations, len(SCHEDULES), 1, dtype=torch.float64)
    for k in range(iterations):
        optimizer.zero_grad()
        w = torch.stack([w for w, _ in starts])
        b = torch.stack([b for _, b in starts])
        problem.loss(w, b).backward()
        squares[k] = problem.squared_gradient(w.detach(), b.detach())
        stepsizes[k, :, 0] = torch.tensor(schedule.get_last_lr(), dtype=torch.float64)
        optimizer.step()
        schedule.step()
    means = (stepsizes * squares).cumsum(0) / stepsizes.cumsum(0)
    last = squares[-max(1, iterations // 10) :].mean(0)
    return means.transpose(0, 1).numpy(), last.numpy()


def draw(points: np.ndarray, means: np.ndarray, space: str, path: Path) -> None:
    """Draw the median over the trajectories as a line, and the middle 80 % as a band."""
    figure = new_figure(width=7.6, height=4.8)
    (axes,) = figure.axes
    ends = {}
    for (_, name, colour), mean in zip(SCHEDULES, means, strict=True):
        low, median, high = np.quantile(mean, (0.1, 0.5, 0.9), axis=-1)
        axes.plot(points, median, color=colour, linewidth=1.6)
        axes.fill_between(points, low, high, color=colour, alpha=0.15, linewidth=0)
        ends[name] = median[-1], colour
    axes.set_xscale("log")
    log_axis(axes.yaxis)
    axes.set_xlim(1, points[-1])
    axes.set_xlabel("iterations K")
    axes.set_ylabel(r"$\sum_{k<K} α_k ‖g_k‖^2 \; / \; \sum_{k<K} α_k$")
    axes.set_title(
        f"SRCD-U on {space}, $α_k = {STEPSIZE:g} / (1 + k/{DELAY:g})^p$\n"
        f"median and middle 80 % of {means.shape[-1]} trajectories",
        fontsize=10,
    )
    label_lines(axes, points[-1], ends)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
