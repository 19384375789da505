"""Table 1: seconds per iteration and per optimizer step, of SGD, SRGD, SRCD-GS and SRCD-U.

The copying task with d = 1000 and batches of 128, and the block variant beside the paper's methods.
The step does not depend on the length of the sequences, so they are short unless --full asks for the
paper's L = 1000. Each method trains its own copy of the network; the methods take turns, an iteration
at a time, and the medians are shown.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch
from torch.optim import SGD

sys.path.append(str(Path(__file__).parents[1]))

from copying import METHODS, NAMES, Settings, make_model, make_task
from report import (
    COLOURS,
    log_axis,
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)

TIMED = ("srgd", "srcd-gs", "srcd-u", "block")
# Seconds on one NVIDIA P100: loss.backward() + optim.step(), and optim.step().
PAPERS = {
    "sgd": (0.3125, 0.00164),
    "srgd": (0.3311, 0.00197),
    "srcd-gs": (0.3191, 0.00177),
    "srcd-u": (0.3429, 0.00223),
}


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="The paper's length, L = 1000.")
@click.option("--hidden-size", default=1000, show_default=True, help="d.")
@click.option("--repeats", default=20, show_default=True, help="Timed iterations of every method.")
@click.option("--threads", type=int, help="Threads of torch, if not all cores.")
@output_option
def main(full: bool, hidden_size: int, repeats: int, threads: int | None, output: Path) -> None:  # noqa: D103
    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(hidden_size, length=1000 if full else 20, iterations=repeats)
    show_machine()
    backward, step = measure(settings)
    rows = []
    for name in step:
        both = float(np.median(backward[name] + step[name]))
        alone = float(np.median(step[name]))
        papers = [f"{seconds:g}" for seconds in PAPERS.get(name, ())] or ["", ""]
        rows.append(
            [
                label(name),
                f"{both:.4g}",
                papers[0],
                f"{alone:.3g}",
                papers[1],
                f"{alone / both:.2%}",
            ]
        )
    show_table(
        f"Seconds, medians of {repeats}: {settings.title()}",
        [
            "",
            "backward\n+ step",
            "the paper\n(P100)",
            "step",
            "the paper\n(P100)",
            "share of\nthe step",
        ],
        rows,
    )
    name = f"table1-d{hidden_size}-L{settings.length}"
    write_json(
        output / f"{name}.json",
        {
            "settings": asdict(settings),
            "backward": {m: times.tolist() for m, times in backward.items()},
            "step": {m: times.tolist() for m, times in step.items()},
        },
    )
    draw(settings, backward, step, output / f"{name}.png")


def label(name: str) -> str:
    """Name of a method as it is shown."""
    return "SGD, no constraint" if name == "sgd" else NAMES[name]


def measure(settings: Settings) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the seconds of ``loss.backward()`` and of ``optim.step()``, an array for each method."""
    task = make_task(settings, seed=0)
    models = {name: make_model(settings, task, seed=0) for name in ("sgd", *TIMED)}
    optimizers = {
        name: SGD(model.parameters(), settings.lr)
        if name == "sgd"
        else METHODS[name](model, settings.lr, 0)
        for name, model in models.items()
    }
    backward = {name: [] for name in models}
    step = {name: [] for name in models}
    for n in range(settings.iterations + 1):
        input, target = task[n]
        for name, model in models.items():
            optimizers[name].zero_grad()
            loss = task.loss(model(input), target)
            clock = time.perf_counter()
            loss.backward()
            middle = time.perf_counter()
            optimizers[name].step()
            end = time.perf_counter()
            if n > 0:  # the first one warms up
                backward[name].append(middle - clock)
                step[name].append(end - middle)
    return (
        {name: np.array(times) for name, times in backward.items()},
        {name: np.array(times) for name, times in step.items()},
    )


def draw(
    settings: Settings, backward: dict[str, np.ndarray], step: dict[str, np.ndarray], path: Path
) -> None:
    """Draw the medians: backward and step in grey, the step alone in the method's colour."""
    figure = new_figure(width=7.6, height=3.8)
    (axes,) = figure.axes
    for place, name in enumerate(reversed(step)):
        both = float(np.median(backward[name] + step[name]))
        alone = float(np.median(step[name]))
        axes.barh(place + 0.2, 1e3 * both, 0.36, color="0.85")
        axes.barh(place - 0.2, 1e3 * alone, 0.36, color=COLOURS[name])
        for height, seconds in (place + 0.2, both), (place - 0.2, alone):
            axes.annotate(
                f"{1e3 * seconds:.3g}",
                (1e3 * seconds, height),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    axes.set_yticks(range(len(step)), [label(name) for name in reversed(step)])
    log_axis(axes.xaxis)
    axes.set_xlim(right=axes.get_xlim()[1] * 3)
    axes.grid(False, axis="y")
    axes.set_xlabel("milliseconds: grey, loss.backward() + optim.step(); coloured, optim.step()")
    axes.set_title(settings.title(), fontsize=10)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
