"""Figure 3: the loss of SRGD, SRCD-U, SRCD-GS and the block variant, and of W frozen.

All methods start from the same network and see the same batches, with the fixed stepsize 2e-4 for
everything. The control, which the paper does not have, trains everything but W.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.axes import Axes

sys.path.append(str(Path(__file__).parents[1]))

from copying import METHODS, NAMES, PAPER, SMALL, Run, Settings, make_task, runs
from report import (
    COLOURS,
    label_lines,
    log_axis,
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)

# An earlier run on one NVIDIA H100: losses after 100 and 500 iterations, for two other seeds.
EARLIER = {
    "frozen": ((0.961, 0.230), (1.345, 0.297)),
    "srcd-u": ((0.958, 0.234), (1.349, 0.297)),
    "srcd-gs": ((0.713, 0.203), (1.289, 0.268)),
    "block": ((0.504, 0.186), (0.865, 0.153)),
    "srgd": ((0.448, 0.172), (0.616, 0.140)),
}
Results = dict[str, list[Run]]


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="The paper's sizes: d = 190, L = 1000, 500 iterations.")
@click.option("--seeds", default=3, show_default=True, help="Runs of every method.")
@click.option("--iterations", type=int, help="Other than 500 (100 without --full).")
@click.option("--jobs", default=2, show_default=True, help="Runs at a time, one thread each.")
@output_option
def main(full: bool, seeds: int, iterations: int | None, jobs: int, output: Path) -> None:  # noqa: D103
    settings = PAPER if full else SMALL
    if iterations is not None:
        settings = replace(settings, iterations=iterations)
    torch.set_num_threads(1)  # as every run has
    show_machine()
    folder = output / settings.name
    results = runs(settings, [*METHODS], range(seeds), folder, jobs)
    baseline = make_task(settings, 0).baseline
    print_table(settings, results, baseline)
    write_json(
        folder / "figure3.json",
        {
            "settings": asdict(settings),
            "seeds": seeds,
            "baseline": baseline,
            "losses": {
                m: [run.losses.tolist() for run in trained] for m, trained in results.items()
            },
            "seconds per iteration": {
                m: [run.seconds for run in trained] for m, trained in results.items()
            },
        },
    )
    draw(settings, results, baseline, folder / "figure3.png")


def print_table(settings: Settings, results: Results, baseline: float) -> None:
    """Print the losses after a fifth and after all of the iterations."""
    marks = (settings.iterations // 5, settings.iterations)
    compare = settings == PAPER
    columns = ["W updated by"]
    for n in marks:
        columns += [f"loss after {n}\nmedian [range]", "over\nfrozen"]
        columns += ["earlier,\none H100"] if compare else []
    rows = []
    for method, trained in results.items():
        row = [NAMES[method]]
        for i, n in enumerate(marks):
            losses = np.array([run.losses[n] for run in trained])
            frozen = np.array([run.losses[n] for run in results["frozen"]])
            row.append(f"{np.median(losses):.3f} [{losses.min():.3f}, {losses.max():.3f}]")
            row.append(f"{np.median(losses / frozen):.3f}")
            if compare:
                row.append(", ".join(f"{seed[i]:.3f}" for seed in EARLIER[method]))
        rows.append(row)
    show_table(
        f"{settings.title()}; {len(results['frozen'])} seeds; "
        f"without memory of the letters {baseline:.4f}",
        columns,
        rows,
    )


def draw(settings: Settings, results: Results, baseline: float, path: Path) -> None:
    """Draw the losses, and beside them what training W has gained, seed by seed."""
    figure = new_figure(2, width=11.5, height=4.6)
    left, right = figure.axes
    n = np.arange(settings.iterations + 1)
    frozen = np.array([run.losses for run in results["frozen"]])
    ends: dict[Axes, dict[str, tuple[float, str]]] = {left: {}, right: {}}
    for method, trained in results.items():
        losses = np.array([run.losses for run in trained])
        for axes, curves in (left, losses), (right, losses / frozen):
            # The control is broad and pale, since a method may lie exactly on it.
            style = {"linewidth": 4.0, "alpha": 0.55} if method == "frozen" else {"linewidth": 1.4}
            median = np.median(curves, 0)
            axes.plot(n, median, color=COLOURS[method], **style)
            axes.fill_between(
                n, curves.min(0), curves.max(0), color=COLOURS[method], alpha=0.13, linewidth=0
            )
            ends[axes][NAMES[method]] = median[-1], COLOURS[method]
    left.axhline(baseline, color="0.3", linestyle="--", linewidth=1.2)
    left.annotate(
        f"without memory: K ln 8 / (L + 2K) = {baseline:.4f}",
        (0, baseline),
        xytext=(4, 4),
        textcoords="offset points",
        color="0.3",
        fontsize=9,
    )
    left.set_ylabel("cross-entropy, mean over the sequence")
    right.set_ylabel("cross-entropy over that of W frozen, same seed")
    log_axis(left.yaxis)
    for axes in left, right:
        axes.set_xlim(0, settings.iterations)
        axes.set_xlabel("iteration")
        label_lines(axes, settings.iterations, ends[axes])
    figure.suptitle(f"{settings.title()}: median and range of {len(frozen)} seeds", fontsize=11)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
