"""Time of one optimizer step on a GPU, and its ratio to the limit that memory sets.

The limit is the bytes that a step has to move over the bandwidth of a copy, measured in the same run. Before
it is timed, every step is compared with float64 on fresh numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from geoopt import ManifoldParameter
from report import console, output_option, show_machine, show_table, write_json
from torch import Tensor

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, SRGD, Adam, GaussSouthwell, Grouping, Matching, Uniform

# Name: optimizer of a parameter, and the d×d matrices that a step has to read or write.
METHODS: dict[str, tuple[Callable[[Tensor, float], torch.optim.Optimizer], float]] = {
    "uniform": (lambda p, lr: SRCD([p], lr, Uniform()), 0),
    "matching": (lambda p, lr: SRCD([p], lr, Matching()), 3),
    "matching, Adam": (lambda p, lr: SRCD([p], lr, Matching(), Adam()), 4),
    "groups of 8": (lambda p, lr: SRCD([p], lr, Grouping(8)), 3),
    "groups of 16": (lambda p, lr: SRCD([p], lr, Grouping(16)), 3),
    "groups of 32": (lambda p, lr: SRCD([p], lr, Grouping(32)), 3),
    "groups of 64": (lambda p, lr: SRCD([p], lr, Grouping(64)), 3),
    "Gauss-Southwell": (lambda p, lr: SRCD([p], lr, GaussSouthwell()), 0),
    "SRGD": (lambda p, lr: SRGD([p], lr), 0),
    "Adam, unconstrained": (
        lambda p, lr: torch.optim.Adam([p], lr, fused=p.device.type == "cuda"),
        7,
    ),
}
LAYOUTS = {"column-major": lambda m: m.mT.contiguous().mT, "row-major": torch.clone}


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call, by the device's own events where there are some."""
    times = []
    for repeat in range(repeats + 3):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            took = start.elapsed_time(end)
        else:
            begin = time.perf_counter()
            call()
            took = 1e3 * (time.perf_counter() - begin)
        if repeat >= 3:  # kernels have been compiled
            times.append(took)
    return median(times)


def point(d: int, device: torch.device, layout: str, dtype: torch.dtype) -> ManifoldParameter:
    """A point with a gradient, the same for all layouts and types."""
    generator = torch.Generator(device).manual_seed(d)
    group = OrthogonalGroup()
    x = group.random(d, d, generator=generator, device=device).as_subclass(Tensor)
    g = torch.randn(d, d, generator=generator, device=device) / d
    p = ManifoldParameter(LAYOUTS[layout](x.to(dtype)), manifold=group)
    p.grad = LAYOUTS[layout](g.to(dtype))
    return p


@click.command(help=__doc__)
@click.option("--device", default="cuda", show_default=True, help="Where to run.")
@click.option(
    "--sizes", default="190,1024,2048,4096,8192", show_default=True, help="Sizes d of the matrices."
)
@click.option("--repeats", default=30, show_default=True, help="Steps that are timed.")
@output_option
def main(device: str, sizes: str, repeats: int, output: Path) -> None:  # noqa: D103
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            "there is no GPU here; --device cpu tries the script without one"
        )
    show_machine()
    if place.type == "cuda":
        console.print(torch.cuda.get_device_name(place))
    rows = []
    for d in map(int, sizes.split(",")):
        source, target = (torch.randn(d, d, device=place) for _ in range(2))
        copy = milliseconds(lambda s=source, t=target: t.copy_(s), place, repeats)
        for layout in LAYOUTS:
            for name, (build, matrices) in METHODS.items():
                rows.append(measure(name, build, matrices, d, place, layout, repeats, copy))
    show_table(
        "Steps in float32",
        ["method", "layout", "d", "ms", "limit, ms", "limit/time", "error"],
        [
            [
                *(r["method"], r["layout"], str(r["d"]), f"{r['ms']:.4f}", f"{r['limit']:.4f}"),
                f"{r['limit'] / r['ms']:.0%}" if r["limit"] else "",
                f"{r['error']:.0e}",
            ]
            for r in rows
        ],
    )
    write_json(output / "kernels.json", {"device": device, "rows": rows})


def measure(
    name: str,
    build: Callable[[Tensor, float], torch.optim.Optimizer],
    matrices: float,
    d: int,
    place: torch.device,
    layout: str,
    repeats: int,
    copy: float,
) -> dict[str, object]:
    """Compare a step with float64, and time it."""
    after = []
    for dtype in (torch.float32, torch.float64):
        p = point(d, place, layout, dtype)
        build(p, 0.1).step()
        after.append(p.detach().double())
    p = point(d, place, layout, torch.float32)
    ms = milliseconds(build(p, 1e-3).step, place, repeats)
    return {
        "method": name,
        "layout": layout,
        "d": d,
        "ms": ms,
        "limit": matrices * copy / 2,  # a copy reads one matrix and writes one
        "error": float((after[0] - after[1]).abs().max()),
    }


if __name__ == "__main__":
    main()
