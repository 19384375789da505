"""Time of one optimizer step on one d×d orthogonal matrix, against d.

The gradient is random and the same for all methods of a size; the stepsize is such that the whole
Riemannian step has the norm that --step-norm gives (the cost of a matrix exponential depends on it;
that of a coordinate move does not). float32; parameter and gradient are row-major, which is torch's
way and puts the entries of a column far apart, except where it says column-major. Methods and sizes
take turns, after warm-up steps; every step is timed alone, and the medians are shown. What
the optimizers here spend on staying on the manifold falls into few steps, so that medians leave it out:
two products of d×d matrices every 2 steps of a dense method, every d(d − 1)/2 steps of one pair.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import click
import geoopt
import numpy as np
import torch
from geoopt import ManifoldParameter
from report import (
    COLOURS,
    console,
    label_lines,
    log_axis,
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)
from torch import Tensor

from givens.manifolds import OrthogonalGroup
from givens.optim import (
    SRCD,
    SRGD,
    Block,
    GaussSouthwell,
    Grouping,
    Matching,
    Selection,
    Uniform,
)

SMALLEST = 64
TARGET = 5000  # SRGD over SRCD-U at d = 4096
BURST = 0.05  # seconds that a point may fill with several steps when its turn comes

Step = Callable[[], object]
# Makes the step of a method from a point, the gradient there and a stepsize.
Method = Callable[[Tensor, Tensor, float], Step]


def column_major(m: Tensor) -> Tensor:
    """Copy of a matrix whose columns are contiguous."""
    return m.mT.contiguous().mT


def parameter(x: Tensor, gradient: Tensor, manifold: geoopt.Manifold) -> ManifoldParameter:
    """Parameter with a gradient, both in the memory layout of what is given."""
    p = ManifoldParameter(x, manifold=manifold)
    p.grad = gradient
    return p


def srcd(selection: Callable[[int], Selection], *, columns: bool = False) -> Method:
    """SRCD with a selection that may depend on d."""

    def make(x: Tensor, gradient: Tensor, lr: float) -> Step:
        layout = column_major if columns else torch.clone
        p = parameter(layout(x), layout(gradient), OrthogonalGroup())
        return SRCD([p], lr, selection(x.shape[-1])).step

    return make


def srgd(x: Tensor, gradient: Tensor, lr: float) -> Step:
    """SRGD of this package."""
    return SRGD([parameter(x.clone(), gradient, OrthogonalGroup())], lr).step


def srgd_of_rank(rank: int) -> Method:
    """SRGD of this package along gradients of low rank, by Cayley transforms."""

    def make(x: Tensor, gradient: Tensor, lr: float) -> Step:
        p = parameter(x.clone(), gradient, OrthogonalGroup("cayley"))
        return SRGD([p], lr, map="retr", rank=rank).step

    return make


def papers_srgd(x: Tensor, gradient: Tensor, lr: float) -> Step:
    """SRGD by the paper's formulas (7) and (10) as they stand."""
    w = x.clone()

    def step() -> None:
        a = w.T @ gradient
        w.copy_(w @ torch.matrix_exp(-lr * (a - a.T) / 2))

    return step


def geoopts(manifold: Callable[[], geoopt.Manifold]) -> Method:
    """Make geoopt's RiemannianSGD on a manifold of square matrices."""

    def make(x: Tensor, gradient: Tensor, lr: float) -> Step:
        p = parameter(x.clone(), gradient, manifold())
        return geoopt.optim.RiemannianSGD([p], lr).step

    return make


METHODS: dict[str, tuple[Method, str, str]] = {
    "SRCD-U, column-major": (srcd(lambda d: Uniform(), columns=True), COLOURS["srcd-u"], "-"),
    "SRCD-U": (srcd(lambda d: Uniform()), COLOURS["srcd-u"], "--"),
    "SRCD-GS": (srcd(lambda d: GaussSouthwell()), COLOURS["srcd-gs"], "-"),
    "SRCD-GS, bfloat16": (
        srcd(lambda d: GaussSouthwell(torch.bfloat16)),
        COLOURS["srcd-gs"],
        "--",
    ),
    "matching, column-major": (srcd(lambda d: Matching(), columns=True), "#56b4e9", "-"),
    "matching": (srcd(lambda d: Matching()), "#56b4e9", "--"),
    "groups of 16": (srcd(lambda d: Grouping(16)), "#882255", "-"),
    "greedy disjoint block": (
        srcd(lambda d: Block(size=d // 2, disjoint=True)),
        "#56b4e9",
        ":",
    ),
    "block, 0.5 %": (srcd(lambda d: Block(fraction=0.005)), COLOURS["block"], "-"),
    "SRGD": (srgd, COLOURS["srgd"], "-"),
    "SRGD, rank 16": (srgd_of_rank(16), COLOURS["srgd"], "--"),
    "SRGD, rank 256": (srgd_of_rank(256), COLOURS["srgd"], "-."),
    "SRGD, paper's formula": (papers_srgd, COLOURS["srgd"], ":"),
    "geoopt RSGD, QR": (geoopts(geoopt.EuclideanStiefel), "#cc79a7", "-"),
    "geoopt RSGD, Cayley": (geoopts(geoopt.CanonicalStiefel), "#7f7f7f", "-"),
}


@click.command(help=__doc__)
@click.option(
    "--largest", default=512, show_default=True, help="Largest d; the full plot has 4096."
)
@click.option("--only", default="", help="Methods with names that this regular expression finds.")
@click.option("--step-norm", default=0.1, show_default=True, help="Norm of the Riemannian step.")
@click.option("--rounds", default=5, show_default=True, help="Turns of every point.")
@click.option(
    "--budget",
    default=60.0,
    show_default=True,
    help="Seconds that one step may take, else skipped.",
)
@click.option("--threads", type=int, help="Threads of torch, if not all cores.")
@output_option
def main(  # noqa: D103
    largest: int,
    only: str,
    step_norm: float,
    rounds: int,
    budget: float,
    threads: int | None,
    output: Path,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    sizes = [2**k for k in range(int(math.log2(SMALLEST)), int(math.log2(largest)) + 1)]
    if not sizes:
        raise click.BadParameter(
            f"{largest}: the sizes start at {SMALLEST}", param_hint="--largest"
        )
    show_machine()
    methods = [name for name in METHODS if re.search(only, name)]
    times = measure(methods, sizes, step_norm, rounds, budget)
    medians = {
        name: {d: float(np.median(seconds)) for d, seconds in of.items()}
        for name, of in times.items()
    }
    slopes = {name: slope(of) for name, of in medians.items()}
    rows = []
    for name, of in medians.items():
        row = [f"{1e3 * of[d]:.3g}" if d in of else "–" for d in sizes]
        rows.append([name, *row, *(f"{s:.2f}" for s in slopes[name])])
    show_table(
        f"Milliseconds a step, float32, threads: {torch.get_num_threads()}, "
        f"norm of the Riemannian step {step_norm:g}",
        ["", *(f"d={d}" for d in sizes), "exponent\nof d", "of the last\ndoubling"],
        rows,
    )
    ratios = conclude(medians, slopes, sizes[-1])
    write_json(
        output / "step.json",
        {
            "dtype": "float32",
            "norm of the Riemannian step": step_norm,
            "seconds": times,
            "medians": medians,
            "exponents": slopes,
            "SRGD over SRCD-U at the largest d": ratios,
        },
    )
    draw(medians, slopes, step_norm, output / "step.png")


def measure(
    methods: list[str], sizes: list[int], step_norm: float, rounds: int, budget: float
) -> dict[str, dict[int, list[float]]]:
    """Time the steps of methods at all sizes that stay within the budget."""
    manifold = OrthogonalGroup()
    generator = torch.Generator().manual_seed(0)
    points: dict[tuple[str, int], tuple[Step, int]] = {}
    before: dict[str, float] = {}
    for d in sizes:
        x = manifold.random(d, d, generator=generator).as_subclass(Tensor)
        gradient = torch.randn(d, d, generator=generator)
        lr = step_norm / float(manifold.norm(x, manifold.egrad2rgrad(x, gradient)))
        for name in methods:
            make, _, _ = METHODS[name]
            if 8 * before.get(name, 0.0) > budget:
                console.print(
                    f"skipped {name} at d = {d}: expected about {8 * before[name]:.0f} s a step, "
                    f"the budget is {budget:g} s"
                )
                before[name] *= 8
                continue
            step = make(x, gradient, lr)
            before[name] = warm_up(step)
            points[name, d] = step, max(1, min(50, int(BURST / before[name])))
    times: dict[str, dict[int, list[float]]] = {name: {} for name in methods}
    for _ in range(rounds):
        for (name, d), (step, steps) in points.items():
            times[name].setdefault(d, []).extend(seconds(step) for _ in range(steps))
    return times


def warm_up(step: Step) -> float:
    """Do a step, a few where they are short, and return the time of the shortest."""
    first = seconds(step)
    return first if first > 1 else min(seconds(step) for _ in range(3))


def seconds(step: Step) -> float:
    """Time one step."""
    clock = time.perf_counter()
    step()
    return time.perf_counter() - clock


def slope(medians: dict[int, float]) -> tuple[float, float]:
    """Exponent of d in the time: by least squares over all sizes, and over the last doubling."""
    if len(medians) < 2:
        return math.nan, math.nan
    d, t = np.log(list(medians)), np.log(list(medians.values()))
    return float(np.polyfit(d, t, 1)[0]), float((t[-1] - t[-2]) / (d[-1] - d[-2]))


def conclude(
    medians: dict[str, dict[int, float]], slopes: dict[str, tuple[float, float]], d: int
) -> dict[str, float]:
    """Print what was aimed at beside what was measured; return the ratios of SRGD to SRCD-U."""
    ratios = {}
    for name in medians.keys() & {"SRCD-U", "SRCD-U, column-major"}:
        exponents = slopes[name]
        console.print(
            f"{name}: time ∝ d^{exponents[0]:.2f} over all sizes, d^{exponents[1]:.2f} over the last "
            f"doubling (aim: at most 1){'' if exponents[0] <= 1 else '; MISSED'}"
        )
        for dense in ("SRGD", "SRGD, paper's formula"):
            if d in medians.get(dense, {}):
                ratios[f"{dense} / {name}"] = ratio = medians[dense][d] / medians[name][d]
                verdict = "" if d != 4096 or ratio >= TARGET else "; MISSED"
                aim = f" (aim: at least {TARGET:,})" if d == 4096 else ""
                console.print(f"{dense} / {name} at d = {d}: {ratio:,.0f}{aim}{verdict}")
    return ratios


def draw(
    medians: dict[str, dict[int, float]],
    slopes: dict[str, tuple[float, float]],
    step_norm: float,
    path: Path,
) -> None:
    """Draw the medians against d on log–log axes."""
    figure = new_figure(width=8.6, height=5.4)
    (axes,) = figure.axes
    for name, of in medians.items():
        _, colour, style = METHODS[name]
        axes.plot(
            list(of),
            [1e3 * t for t in of.values()],
            style,
            color=colour,
            marker="o",
            markersize=3.5,
        )
    axes.set_xscale("log", base=2)
    log_axis(axes.yaxis)
    sizes = sorted({d for of in medians.values() for d in of})
    axes.set_xticks(sizes, [str(d) for d in sizes])
    axes.set_xlim(sizes[0] / 1.1, sizes[-1] * 1.03)
    axes.set_xlabel("size d of the orthogonal matrix")
    axes.set_ylabel("milliseconds a step")
    axes.set_title(
        f"One optimizer step on a CPU, threads: {torch.get_num_threads()}, float32, "
        f"norm of the step {step_norm:g}\n(in brackets: exponent of d over the last doubling)",
        fontsize=10,
    )
    ends = {
        f"{name} ({slopes[name][1]:.1f})": (1e3 * list(of.values())[-1], METHODS[name][1])
        for name, of in medians.items()
        if list(of)[-1] == sizes[-1]
    }
    label_lines(axes, sizes[-1], ends)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
