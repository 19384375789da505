"""Figure 2: how the partial derivatives of W are distributed, before and after training.

Histograms of |∇_i f| over one batch, at the start and after 500 iterations, and the shares of the
coordinates that carry 95 % and 99 % of the norm of the Riemannian gradient. The paper does not say
which of its methods made the 500 iterations; here it is SRGD with the stepsize of Figure 3, unless
--method names another. Nor does it say whether the share is one of the norm or of its square: both
are printed. Reads the runs of figure3.py where they are there.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))

from copying import METHODS, NAMES, PAPER, SMALL, Run, Settings, runs
from report import (
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)

LEVELS = (0.95, 0.99)
PANELS = 3
# Per cent of the coordinates that carry 95 % and 99 % of the norm, in the paper's one run.
PAPERS = {"start": (0.1, 4.2), "end": (9.0, 28.4)}
ENDS = {"start": ("at the start", "#0072b2"), "end": ("after {} iterations", "#e69f00")}


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="The paper's sizes: d = 190, L = 1000, 500 iterations.")
@click.option("--seeds", default=3, show_default=True, help="Runs.")
@click.option(
    "--method",
    type=click.Choice([*METHODS]),
    default="srgd",
    show_default=True,
    help="What trains W.",
)
@click.option("--jobs", default=2, show_default=True, help="Runs at a time, one thread each.")
@output_option
def main(full: bool, seeds: int, method: str, jobs: int, output: Path) -> None:  # noqa: D103
    settings = PAPER if full else SMALL
    torch.set_num_threads(1)  # as every run has
    show_machine()
    folder = output / settings.name
    trained = runs(settings, [method], range(seeds), folder, jobs)[method]
    shares = {
        end: {
            power: [[share(run.derivatives[end], c, power) for c in LEVELS] for run in trained]
            for power in (1, 2)
        }
        for end in ENDS
    }
    rows = []
    for end, (label, _) in ENDS.items():
        for power, of in (1, "norm"), (2, "norm²"):
            for i, c in enumerate(LEVELS):
                percents = [100 * s[i] for s in shares[end][power]]
                rows.append(
                    [
                        f"{label.format(settings.iterations)}, {c:.0%} of the {of}",
                        "  ".join(f"{p:.2f}" for p in percents),
                        f"{np.median(percents):.2f}",
                        f"{PAPERS[end][i]:g}",
                    ]
                )
    show_table(
        f"Share of the D = {len(trained[0].derivatives['start'])} coordinates that carries …, "
        f"per cent\n{settings.title()}, trained by {NAMES[method]}",
        ["", "seeds", "median", "the paper\n(d = 190)"],
        rows,
    )
    name = f"figure2-{method}"
    write_json(
        folder / f"{name}.json",
        {
            "settings": asdict(settings),
            "method": method,
            "levels": LEVELS,
            "shares": {end: {"norm": of[1], "squared norm": of[2]} for end, of in shares.items()},
        },
    )
    draw(settings, trained, NAMES[method], folder / f"{name}.png")


def share(derivatives: np.ndarray, level: float, power: int) -> float:
    """Smallest share of the coordinates, largest first, that carries a part of the gradient.

    Parameters
    ----------
    derivatives : ndarray
        All partial derivatives.
    level : float
        The part, in (0, 1).
    power : int
        1 for that part of the norm, √(Σ of the largest squares) ≥ level · √(Σ of all squares);
        2 for that part of its square.
    """
    squares = np.sort(derivatives.astype(np.float64) ** 2)[::-1]
    carried = np.cumsum(squares)
    needed = level ** (2 / power) * carried[-1]
    return float((np.searchsorted(carried, needed) + 1) / len(squares))


def draw(settings: Settings, trained: list[Run], method: str, path: Path) -> None:
    """Draw histograms with logarithmic bins, a panel a seed."""
    trained = trained[:PANELS]
    figure = new_figure(len(trained), width=1.8 + 3.4 * len(trained), height=4.0)
    sizes = {end: [np.abs(run.derivatives[end]) for run in trained] for end in ENDS}
    everything = np.concatenate([size for of_runs in sizes.values() for size in of_runs])
    # The smallest derivatives, one in a thousand, would stretch the axis by decades.
    bins = np.geomspace(np.quantile(everything, 0.001), everything.max() * 1.001, 61)
    most = 0
    for seed, axes in enumerate(figure.axes):
        for end, (label, colour) in ENDS.items():
            counts, _ = np.histogram(sizes[end][seed], bins)
            most = max(most, counts.max())
            axes.stairs(counts, bins, fill=True, color=colour, alpha=0.35)
            axes.stairs(
                counts, bins, color=colour, linewidth=1.2, label=label.format(settings.iterations)
            )
        axes.set_title(f"seed {seed}", fontsize=10)
        axes.set_xscale("log")
        axes.set_yscale("log")
    for axes in figure.axes:
        axes.set_ylim(0.7, most * 4)
    figure.axes[0].set_ylabel(f"coordinates in a bin, of {len(everything) // len(trained) // 2}")
    figure.axes[0].legend(frameon=False, loc="upper left", fontsize=9)
    figure.supxlabel("magnitude of a partial derivative, $|∇_i f|$", fontsize=10)
    figure.suptitle(f"{settings.title()}, trained by {method}", fontsize=11)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
