"""Times on a GPU: of one optimizer step, beside what memory allows, and of the recurrence of an RNN.

The limit of a step is the bytes that it has to move over the bandwidth of a copy, measured in the same run.
A step is timed as it is called, as a CUDA graph that is replayed, and as torch.compile makes it.
The recurrence runs forward and backward (input product, states, loss, all gradients) as one launch each,
as a loop of calls, and, with ReLU, as cuDNN's RNN, which has no orthogonal weight. Before it is timed,
everything is compared with float64 on fresh numbers.
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
from torch import Tensor, nn

from givens.manifolds import OrthogonalGroup, backend
from givens.optim import SRCD, SRGD, Adam, GaussSouthwell, Grouping, Matching, Uniform
from givens.rnn import OrthogonalRNN

# Name: optimizer of a parameter, and the d×d matrices that a step has to read or write.
METHODS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "uniform": (lambda p, lr, **how: SRCD([p], lr, Uniform(), **how), 0),
    "matching": (lambda p, lr, **how: SRCD([p], lr, Matching(), **how), 3),
    "matching, Adam": (lambda p, lr, **how: SRCD([p], lr, Matching(), Adam(), **how), 4),
    "groups of 8": (lambda p, lr, **how: SRCD([p], lr, Grouping(8), **how), 3),
    "groups of 16": (lambda p, lr, **how: SRCD([p], lr, Grouping(16), **how), 3),
    "groups of 32": (lambda p, lr, **how: SRCD([p], lr, Grouping(32), **how), 3),
    "groups of 64": (lambda p, lr, **how: SRCD([p], lr, Grouping(64), **how), 3),
    "Gauss-Southwell": (lambda p, lr, **how: SRCD([p], lr, GaussSouthwell(), **how), 0),
    "SRGD": (lambda p, lr, **how: SRGD([p], lr, **how), 0),
    "SRGD, rank 256": (lambda p, lr, **how: SRGD([p], lr, map="retr", rank=256, **how), 0),
    "Adam, unconstrained": (
        lambda p, lr, **how: torch.optim.Adam([p], lr, fused=p.device.type == "cuda", **how),
        7,
    ),
}
COMPILED = ("uniform", "matching")  # what takes some seconds each
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
    group = OrthogonalGroup("cayley")  # for map="retr"
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
@click.option(
    "--hidden",
    default="64,128,190,224,256,1000",
    show_default=True,
    help="Hidden sizes of the RNN.",
)
@click.option("--length", default=1000, show_default=True, help="Steps of its sequences.")
@output_option
def main(  # noqa: D103
    device: str, sizes: str, repeats: int, hidden: str, length: int, output: Path
) -> None:
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
        ["method", "layout", "d", *WAYS, "limit, ms", "limit/best", "error"],
        [
            [
                *(r["method"], r["layout"], str(r["d"])),
                *(f"{r[way]:.4f}" if way in r else "" for way in WAYS),
                f"{r['limit']:.4f}",
                f"{r['limit'] / min(r[way] for way in WAYS if way in r):.0%}" if r["limit"] else "",
                f"{r['error']:.0e}",
            ]
            for r in rows
        ],
    )
    recurrences = [
        recur(d, nonlinearity, length, place, repeats)
        for d in map(int, hidden.split(","))
        for nonlinearity in ("modrelu", "relu")
    ]
    ways = ("launch", "loop", "cuDNN")
    show_table(
        f"Recurrence, forward and backward, batch {BATCH}, {length} steps, float32, ms",
        ["φ", "d", *ways, "error, launch", "error, loop"],
        [
            [
                *(r["nonlinearity"], str(r["d"])),
                *(f"{r[way]:.3f}" if way in r else "" for way in ways),
                *(f"{r[f'error, {way}']:.0e}" for way in ways[:2]),
            ]
            for r in recurrences
        ],
    )
    write_json(
        output / "kernels.json", {"device": device, "rows": rows, "recurrences": recurrences}
    )


BATCH = 128
WAYS = ("ms", "graph, ms", "compiled, ms")  # of a step: as it is called, and repeated


def recur(
    d: int, nonlinearity: str, length: int, place: torch.device, repeats: int
) -> dict[str, object]:
    """Compare gradients of a layer with float64, and time it in every way that there is."""
    torch.manual_seed(d)
    layer = OrthogonalRNN(10, d, nonlinearity=nonlinearity, device=place)
    short, long = (torch.randn(steps, BATCH, 10, device=place) for steps in (20, length))

    def run(module: nn.Module, x: Tensor) -> None:
        module.zero_grad()
        module(x)[0].square().mean().backward()

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        run(layer.to(dtype), short.to(dtype))
        result = [p.grad.detach().double().clone() for p in layer.parameters()]
        layer.to(torch.float32)
        return result

    result: dict[str, object] = {"d": d, "nonlinearity": nonlinearity, "length": length}
    exact, on_gpu = gradients(torch.float64), backend.on_gpu
    for way, kernels in (("launch", on_gpu), ("loop", lambda _: False)):
        backend.on_gpu = kernels
        pairs = zip(gradients(torch.float32), exact, strict=True)
        result[f"error, {way}"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        few = repeats if way == "launch" else 3
        result[way] = milliseconds(lambda: run(layer, long), place, few)
    backend.on_gpu = on_gpu
    if nonlinearity == "relu":
        other = nn.RNN(10, d, nonlinearity="relu", device=place)
        result["cuDNN"] = milliseconds(lambda: run(other, long), place, repeats)
    return result


def recorded(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """Record a step in a CUDA graph, and return what repeats it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def measure(
    name: str,
    build: Callable[..., torch.optim.Optimizer],
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
    times = {"ms": milliseconds(build(p, 1e-3).step, place, repeats)}
    if place.type == "cuda":
        times["graph, ms"] = milliseconds(recorded(build(p, 1e-3, capturable=True)), place, repeats)
    if name in COMPILED:
        optimizer = build(p, 1e-3, capturable=True)
        optimizer.step()  # what is compiled has a state
        torch.compiler.reset()  # it would try sizes of any kind after the second
        times["compiled, ms"] = milliseconds(torch.compile(optimizer.step), place, repeats)
    return {
        "method": name,
        "layout": layout,
        "d": d,
        **times,
        "limit": matrices * copy / 2,  # a copy reads one matrix and writes one
        "error": float((after[0] - after[1]).abs().max()),
    }


if __name__ == "__main__":
    main()
