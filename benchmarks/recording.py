"""Time of one optimizer step on one d×d orthogonal matrix, as it is called and as torch.compile makes it.

float32, row-major, the gradient random and the same for both; both take turns, and the medians are shown.
(On a GPU `benchmarks/kernels.py` measures this, and CUDA graphs, too.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from geoopt import ManifoldParameter
from report import output_option, show_machine, show_table, write_json
from torch import Tensor

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, Adam, Grouping, Matching, Uniform
from givens.optim.base import ManifoldOptimizer

MANIFOLD = OrthogonalGroup()
METHODS: dict[str, Callable[..., ManifoldOptimizer]] = {
    "Uniform()": lambda p, **how: SRCD(p, 1e-3, Uniform(), **how),
    "Uniform(), Adam()": lambda p, **how: SRCD(p, 1e-3, Uniform(), Adam(), **how),
    "Matching()": lambda p, **how: SRCD(p, 1e-3, Matching(), **how),
    "Grouping(16), Adam()": lambda p, **how: SRCD(p, 1e-3, Grouping(16), Adam(), **how),
}


def point(d: int) -> ManifoldParameter:
    """A point with a gradient."""
    generator = torch.Generator().manual_seed(d)
    x = MANIFOLD.random(d, d, generator=generator).as_subclass(Tensor)
    p = ManifoldParameter(x, manifold=MANIFOLD)
    p.grad = torch.randn(d, d, generator=generator) / d
    return p


def measure(make: Callable[..., ManifoldOptimizer], d: int, seconds: float) -> dict[str, float]:
    """Time both ways, in turns."""
    called, compiled = make([point(d)]), make([point(d)], capturable=True)
    compiled.step()  # what is compiled has a state
    torch.compiler.reset()
    ways = {"called": called.step, "compiled": torch.compile(compiled.step)}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for step in ways.values():
        step()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["compiled"]) < 3:
        for way, step in ways.items():
            begin = time.perf_counter()
            step()
            times[way].append(time.perf_counter() - begin)
    return {way: median(of) for way, of in times.items()}


@click.command(help=__doc__)
@click.option("--sizes", default="64,256,1024,4096", show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Of a method at a size.")
@click.option("--threads", default=1, show_default=True, help="Threads of torch.")
@output_option
def main(sizes: str, seconds: float, threads: int, output: Path) -> None:  # noqa: D103
    torch.set_num_threads(threads)
    show_machine()
    results = {
        name: {d: measure(make, d, seconds) for d in map(int, sizes.split(","))}
        for name, make in METHODS.items()
    }
    show_table(
        f"Milliseconds a step, called / compiled, threads: {threads}",
        ["", *(f"d={d}" for d in sizes.split(","))],
        [
            [name, *(f"{1e3 * t['called']:.3g} / {1e3 * t['compiled']:.3g}" for t in of.values())]
            for name, of in results.items()
        ],
    )
    write_json(output / "recording.json", results)


if __name__ == "__main__":
    main()
