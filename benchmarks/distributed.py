"""Bytes on the wire and time of a data-parallel step on one d×d orthogonal matrix.

Every process has a gradient of its own. Either DistributedDataParallel averages the whole of it and SRCD
steps with the average, or SRCD is given the process group and averages the derivatives that it reads. A
step is zero_grad, a loss whose backward pass does little but write the gradient, and the optimizer's step;
float32, row-major, one thread a process. All methods take turns, each step begins after a barrier, rank
0 holds the clock, and the medians are shown. There is nothing that DDP could overlap its messages with.

Processes talk by gloo, over the loopback device and, for root on Linux with iproute2, between network
namespaces: through a bridge whose ports send at a limited rate (tc's token bucket), or through
tunnel devices between which this script holds every packet for a while. All processes share the cores
of one machine. Namespaces are removed at the end.

The seconds of 1,000 GPUs are computed, not measured: by the latency-bandwidth model of Thakur, Rabenseifner
and Gropp (Optimization of collective communication operations in MPICH, 2005), which is compared with
what was measured here first.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
from geoopt import ManifoldParameter
from networks import (
    BUCKET,
    Network,
    delay_line,
    enter,
    limit,
    namespaces,
    obstacles,
    transmitted,
)
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
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from givens.manifolds import OrthogonalGroup
from givens.optim import (
    SRCD,
    SRGD,
    Cyclic,
    GaussSouthwell,
    Grouping,
    Matching,
    Selection,
    Uniform,
)

PROCESSES = (2, 4)
WARM_UP = 2  # steps; DDP arranges its messages anew after the first
FEWEST_ROUNDS, MOST_ROUNDS = 3, 15
LONG = 2**21  # numbers of the message from which the bandwidth is measured
PRELOADED = [
    "torch._dynamo",
    "torch.nn.parallel",
    "givens.optim",
    "givens.rnn",
    "matplotlib.figure",
]

GIGABIT = 1e9


LOOPBACK = Network("loopback", "lo")
BRIDGE = (
    Network("bridge, no limit", "port"),
    Network("10 Gbit/s", "port", 10 * GIGABIT),
    Network("1 Gbit/s", "port", GIGABIT),
    Network("100 Mbit/s", "port", GIGABIT / 10),
)
DELAYED = (
    Network("1 Gbit/s, 0.1 ms", "tunnel", GIGABIT, 1e-4),
    Network("1 Gbit/s, 10 ms", "tunnel", GIGABIT, 1e-2),
)


@dataclass(frozen=True)
class Method:
    """A selection (without one: SRGD), and who averages."""

    selection: Selection | None
    ddp: bool

    @property
    def name(self) -> str:
        """As the tables show it."""
        rule = "SRGD" if self.selection is None else repr(self.selection)
        rule = rule.replace("order='random'", "").replace("size=", "").replace(", )", ")")
        return f"DDP, then {rule}" if self.ddp else rule


METHODS = (
    Method(Uniform(), ddp=True),
    Method(Matching(), ddp=True),
    Method(Grouping(16), ddp=True),
    Method(Uniform(), ddp=False),
    Method(Cyclic(), ddp=False),
    Method(Matching(), ddp=False),
    Method(Grouping(16), ddp=False),
)
# One step of theirs, at one place only: they send what DDP sends, and their own time is that of d×d products.
DENSE = (Method(GaussSouthwell(), ddp=False), Method(None, ddp=False))


@dataclass
class Link:
    """What a message between two processes costs, measured: seconds, and seconds a byte."""

    latency: float
    per_byte: float


@dataclass
class Measured:
    """Of one network and number of processes: by method, or by numbers that are all-reduced."""

    network: str
    processes: int
    link: Link
    steps: dict[str, list[float]] = field(default_factory=dict)
    messages: dict[int, list[float]] = field(default_factory=dict)
    wire: dict[str, float] = field(default_factory=dict)
    payload: dict[str, int] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The network's name, on two lines if it is long."""
        return self.network.replace(", ", "\n")


# The model: seconds of an all-reduce of n bytes over p processes.


def ring(p: int, n: float, link: Link) -> float:
    """Reduce-scatter and all-gather around a ring."""
    return 2 * (p - 1) * (link.latency + n / p * link.per_byte)


def doubling(p: int, n: float, link: Link) -> float:
    """Recursive doubling: everything to one partner after the other, ⌈log₂ p⌉ times."""
    return math.ceil(math.log2(p)) * (link.latency + n * link.per_byte)


def halving(p: int, n: float, link: Link) -> float:
    """Rabenseifner's: reduce-scatter by recursive halving, all-gather by recursive doubling."""
    return 2 * math.ceil(math.log2(p)) * link.latency + 2 * (p - 1) / p * n * link.per_byte


ALGORITHMS: dict[str, Callable[[int, float, Link], float]] = {
    "ring": ring,
    "recursive doubling": doubling,
    "Rabenseifner": halving,
}
GPUS = 1000
FABRICS = {
    "400 Gbit/s, 10 µs": Link(10e-6, 8 / (400 * GIGABIT)),
    "25 Gbit/s, 50 µs": Link(50e-6, 8 / (25 * GIGABIT)),
}
MODEL_SIZES = (1024, 2048, 4096, 8192, 16384)


@click.command(help=__doc__)
@click.option("--size", default=1024, show_default=True, help="d; the full run has 4096.")
@click.option(
    "--budget",
    default=8.0,
    show_default=True,
    help="Seconds of steps for every network, if three rounds fit.",
)
@output_option
def main(size: int, budget: float, output: Path) -> None:  # noqa: D103
    torch.set_num_threads(1)
    multiprocessing.set_forkserver_preload(PRELOADED)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the namespaces are removed
    show_machine()
    load = os.getloadavg()[0]
    console.print(f"load before: {load:.1f} processes on {os.cpu_count()} cores", style="dim")
    results = list(measure(size, budget))
    for p in PROCESSES:
        tables([r for r in results if r.processes == p], size)
    compare(results, size)
    predict()
    write_json(
        output / "distributed.json",
        {
            "d": size,
            "dtype": "float32",
            "load before": load,
            "token bucket, seconds": BUCKET,
            "results": [asdict(r) for r in results],
            "computed": {
                "gpus": GPUS,
                "fabrics": {name: asdict(link) for name, link in FABRICS.items()},
            },
        },
    )
    draw(results, size, output / "distributed.png")


def measure(size: int, budget: float) -> Iterator[Measured]:
    """Measure on all networks that can be made here."""
    missing = obstacles()
    if missing:
        console.print(f"only over loopback, whose counters are the machine's: {missing}")
    for p in PROCESSES:
        if missing:
            yield from run(p, [LOOPBACK], [], size, budget)
            continue
        with namespaces(p) as names:
            yield from run(p, [LOOPBACK], [names[0]] * p, size, budget)
            yield from run(p, list(BRIDGE), names, size, budget)
            for network in DELAYED:
                with delay_line(names, network.delay):
                    yield from run(p, [network], names, size, budget)


def run(
    p: int, networks: list[Network], names: list[str], size: int, budget: float
) -> list[Measured]:
    """Start p processes, each in its namespace, that measure on networks with the same devices."""
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            work,
            (p, folder, networks, names, size, budget),
            p,
            start_method="forkserver",
        )
        found = json.loads(Path(folder, "measured.json").read_text())
    results = []
    for one in found:
        one["link"] = Link(**one["link"])
        one["messages"] = {int(n): seconds for n, seconds in one["messages"].items()}
        results.append(Measured(**one))
    measured = "; ".join(network.name for network in networks)
    console.print(f"{p} processes, {measured}: {time.perf_counter() - clock:.0f} s", style="dim")
    return results


# In every process.


class Model(nn.Module):
    """⟨W, G⟩, whose gradient by W is G."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = ManifoldParameter(torch.eye(size), manifold=Trusting())

    def forward(self, gradient: Tensor) -> Tensor:
        """Return the loss."""
        return torch.dot(self.weight.reshape(-1), gradient.reshape(-1))


class Trusting(OrthogonalGroup):
    """The group without the check of a point, d³, that every optimizer does when it is built."""

    def _check_point_on_manifold(self, x: Tensor, **_: Any) -> tuple[bool, str | None]:
        return True, None


def work(
    rank: int,
    p: int,
    folder: str,
    networks: list[Network],
    names: list[str],
    size: int,
    budget: float,
) -> None:
    """Measure on all networks; rank 0 writes the results."""
    torch.set_num_threads(1)
    if names:
        enter(names[rank])
    os.environ["GLOO_SOCKET_IFNAME"] = networks[0].device
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=p,
        timeout=timedelta(minutes=3),
    )
    sent: list[int] = []
    count_messages(sent)
    gradient = torch.randn(size, size, generator=torch.Generator().manual_seed(rank))
    steps = {method.name: make(method, gradient) for method in METHODS}
    payload = {}
    for method in METHODS:
        for _ in range(WARM_UP):
            sent.clear()
            steps[method.name]()
        payload[method.name] = 4 * (size**2 if method.ddp else sum(sent))
    results = []
    for network in networks:
        if rank == 0 and network.rate is not None:
            limit(names, network)
        result = Measured(network.name, p, probe(rank), payload=payload)
        time_in_turn(steps, result, budget)
        if network.rate is None:
            shared = p if network.device == "lo" else 1
            for name, step in steps.items():
                result.wire[name] = bytes_sent(network.device, step) / shared
        results.append(asdict(result))
    if p == PROCESSES[0] and networks == [LOOPBACK]:
        for method in DENSE:
            sent.clear()
            results[0]["steps"][method.name] = [seconds(make(method, gradient))]
            results[0]["payload"][method.name] = 4 * sum(sent)
    if rank == 0:
        Path(folder, "measured.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def count_messages(sent: list[int]) -> None:
    """Note how many float32 numbers each all-reduce has that Python asks for (DDP asks in C++)."""
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent.append(tensor.numel())
        return all_reduce(tensor, *args, **options)

    dist.all_reduce = counted


def make(method: Method, gradient: Tensor) -> Callable[[], None]:
    """Return a step with a method."""
    module: nn.Module = Model(gradient.shape[-1])
    params = list(module.parameters())
    if method.ddp:
        module = DistributedDataParallel(module)
    group = None if method.ddp else dist.group.WORLD
    optimizer: torch.optim.Optimizer
    if method.selection is None:
        optimizer = SRGD(params, 1e-5, process_group=group)
    else:
        optimizer = SRCD(params, 1e-3, method.selection, process_group=group)

    def step() -> None:
        optimizer.zero_grad()
        module(gradient).backward()
        optimizer.step()

    return step


def time_in_turn(steps: dict[str, Callable[[], None]], result: Measured, budget: float) -> None:
    """Time the steps, and the all-reduce of each payload alone, as often as the budget allows."""
    jobs: list[tuple[dict[Any, list[float]], Any, Callable[[], object]]] = []
    for name, step in steps.items():
        jobs.append((result.steps, name, step))
    for payload in sorted(set(result.payload.values())):
        numbers = torch.zeros(payload // 4)
        jobs.append((result.messages, payload // 4, partial(dist.all_reduce, numbers)))
    clock = time.perf_counter()
    rounds = done = 1
    while done <= rounds:
        for times, key, job in jobs:
            times.setdefault(key, []).append(seconds(job))
        if done == 1:
            fitting = int(budget / (time.perf_counter() - clock))
            agreed = [max(FEWEST_ROUNDS, min(MOST_ROUNDS, fitting))]
            dist.broadcast_object_list(agreed)
            rounds = agreed[0]
        done += 1


def seconds(job: Callable[[], object]) -> float:
    """Time what all processes begin together."""
    dist.barrier()
    clock = time.perf_counter()
    job()
    return time.perf_counter() - clock


def probe(rank: int) -> Link:
    """Measure what a message from rank 0 to rank 1 and back costs."""
    dist.barrier()
    times = {}
    for n, repeats in ((1, 30), (LONG, 4)):
        x = torch.zeros(n)
        found = []
        for _ in range(repeats):
            clock = time.perf_counter()
            if rank == 0:
                dist.send(x, 1)
                dist.recv(x, 1)
            elif rank == 1:
                dist.recv(x, 0)
                dist.send(x, 0)
            found.append((time.perf_counter() - clock) / 2)
        times[n] = min(found)  # other programs only add to it
    return Link(times[1], (times[LONG] - times[1]) / (4 * LONG))


def bytes_sent(device: str, step: Callable[[], None]) -> float:
    """Bytes that a step puts on a device, mean over the processes, headers and acknowledgements too."""
    dist.barrier()
    time.sleep(0.1)
    before = transmitted(device)
    step()
    time.sleep(0.3)  # until what is still in the queues has been sent
    sent = transmitted(device) - before
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, sent)
    return float(np.mean(every))


# What was found.


def tables(results: list[Measured], size: int) -> None:
    """Print bytes, seconds and ratios for one number of processes."""
    p = results[0].processes
    counted = [r for r in results if r.wire]
    names = [name for r in results[:1] for name in r.payload]
    rows = []
    for name in names:
        numbers = results[0].payload[name] // 4
        wire = [f"{r.wire[name]:,.0f}" if name in r.wire else "–" for r in counted]
        rows.append([name, f"{numbers:,}", f"{4 * numbers:,}", *wire])
    show_table(
        f"{p} processes, d = {size}: bytes of a step, and what one process sends (by the counters)",
        ["", "numbers", "bytes", *(r.heading for r in counted)],
        rows,
    )
    rows = []
    for name in names:
        rows.append([name, *(milliseconds(r.steps.get(name)) for r in results)])
    rows += [
        [f"all-reduce of {n:,}", *(milliseconds(r.messages[n]) for r in results)]
        for n in results[0].messages
    ]
    counts = [len(r.steps[METHODS[0].name]) for r in results]
    rows.append(["steps of each", *(str(count) for count in counts)])
    show_table(
        f"{p} processes, d = {size}: milliseconds of a step, medians",
        ["", *(r.heading for r in results)],
        rows,
    )
    rows = []
    for method in METHODS:
        plain = Method(method.selection, ddp=True).name
        if not method.ddp and plain in results[0].steps:
            ratios = [np.median(r.steps[plain]) / np.median(r.steps[method.name]) for r in results]
            rows.append([method.name, *(f"{ratio:.3g}" for ratio in ratios)])
    show_table(
        f"{p} processes, d = {size}: how many times longer with DDP",
        ["", *(r.heading for r in results)],
        rows,
    )


def milliseconds(times: list[float] | None) -> str:
    """Median."""
    return short(float(1e3 * np.median(times))) if times else "–"


def short(x: float) -> str:
    """Three digits, or all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def compare(results: list[Measured], size: int) -> None:
    """Print measured all-reduces beside the model's, by latency and bandwidth measured alone."""
    numbers = [n for n in results[0].messages if n in (1, size // 2, size**2)]
    rows = []
    for r in results:
        latency, rate = f"{1e6 * r.link.latency:.0f}", f"{8 / r.link.per_byte / GIGABIT:.3g}"
        row = [f"{r.network}; {r.processes}", latency, rate]
        for n in numbers:
            model, measured = ring(r.processes, 4 * n, r.link), min(r.messages[n])
            row.append(f"{short(1e3 * measured)} / {short(1e3 * model)}")
            row.append(f"{measured / model:.2f}")
        rows.append(row)
    columns = [column for n in numbers for column in (f"n = {n:,}", "ratio")]
    show_table(
        "Milliseconds of an all-reduce of n numbers, the fastest measured / the ring model,\n"
        "whose latency and bandwidth were measured by messages from one process to another",
        ["network; processes", "latency\nµs", "Gbit/s", *columns],
        rows,
    )


def predict() -> None:
    """Print what the model says of many GPUs."""
    for fabric, link in FABRICS.items():
        rows = []
        for d in MODEL_SIZES:
            row = [f"d = {d}"]
            best = {}
            for numbers in (d * d, d // 2, 1):
                by = {name: cost(GPUS, 4 * numbers, link) for name, cost in ALGORITHMS.items()}
                best[numbers] = min(by.values())
                row.append(f"{1e3 * by['ring']:.3g}")
                row.append(f"{1e3 * best[numbers]:.3g}")
            row.append(short(best[d * d] / best[d // 2]))
            row.append(short(best[d * d] / best[1]))
            rows.append(row)
        show_table(
            f"COMPUTED, not measured: milliseconds of an all-reduce over {GPUS:,} GPUs, each with "
            f"{fabric}\n(ring, and the best of {', '.join(ALGORITHMS)})",
            [
                "",
                *(
                    "d² numbers\nring",
                    "best",
                    "d/2 numbers\nring",
                    "best",
                    "1 number\nring",
                    "best",
                ),
                *("best: d²\nover d/2", "best: d²\nover 1"),
            ],
            rows,
        )


STYLES = {
    "Uniform()": (COLOURS["srcd-u"], "-"),
    "Matching()": ("#56b4e9", "-"),
    "Grouping(16)": ("#882255", "-"),
    "DDP, then Uniform()": (COLOURS["srcd-u"], "--"),
    "DDP, then Matching()": ("#56b4e9", "--"),
    "DDP, then Grouping(16)": ("#882255", "--"),
}


def draw(results: list[Measured], size: int, path: Path) -> None:
    """Draw the time of a step against the rate of the network."""
    rates = {network.name: network.rate for network in BRIDGE if network.rate is not None}
    drawn = [r for r in results if r.network in rates]
    if not drawn:
        console.print("no picture: it needs networks of limited rate")
        return
    figure = new_figure(len(PROCESSES), width=9.6, height=4.4)
    lowest = min(np.median(times) for r in drawn for times in r.steps.values())
    highest = max(np.median(times) for r in drawn for times in r.steps.values())
    for axes, p in zip(figure.axes, PROCESSES, strict=True):
        ends = {}
        for name, (colour, style) in STYLES.items():
            of = {rates[r.network]: np.median(r.steps[name]) for r in drawn if r.processes == p}
            x = [rate / GIGABIT for rate in of if rate]
            axes.plot(x, list(of.values()), style, color=colour, marker="o", markersize=3.5)
            ends[name] = (float(list(of.values())[-1]), colour)
        log_axis(axes.yaxis)
        axes.set_xscale("log")
        axes.set_xticks([0.1, 1, 10], ["100 Mbit/s", "1 Gbit/s", "10 Gbit/s"])
        axes.set_xlim(12, 0.085)
        axes.set_ylim(lowest / 1.3, highest * 1.3)
        axes.set_xlabel("rate at which a process may send")
        axes.set_title(f"{p} processes", fontsize=10)
        if axes is figure.axes[-1]:
            label_lines(axes, 0.1, ends)
    figure.axes[0].set_ylabel("seconds a step")
    figure.suptitle(
        f"A data-parallel step on one {size}×{size} float32 matrix, gloo between network namespaces",
        fontsize=10,
    )
    save_figure(figure, path)


if __name__ == "__main__":
    main()
