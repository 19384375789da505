"""What every benchmark reports: the machine, tables, JSON files and pictures."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import geoopt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

import givens
from givens.rnn.atomic import atomic_write

# Wide enough for every table where the output goes to a file.
console = Console(width=None if Console().is_terminal else 120)

output_option = click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parents[1] / "runs" / "benchmarks",
    help="Folder for the JSON file and the picture.  [default: runs/benchmarks]",
)

# One colour a method in all pictures (Okabe and Ito's, which the colour-blind can tell apart).
COLOURS = {
    "frozen": "#7f7f7f",
    "sgd": "#7f7f7f",
    "srcd-u": "#e69f00",
    "srcd-gs": "#009e73",
    "block": "#0072b2",
    "srgd": "#d55e00",
}


def machine() -> dict[str, Any]:
    """Return where and with what a number was measured."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory GiB": _memory(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "geoopt": geoopt.__version__,
        "givens": givens.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def show_machine() -> None:
    """Print the machine."""
    console.print("  ".join(f"{name} {value}" for name, value in machine().items()), style="dim")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: names in the first column, numbers in the others."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result, with the machine that it comes from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps({"machine": machine(), **result}, indent=1).encode())


def new_figure(columns: int = 1, *, width: float = 7.2, height: float = 4.6) -> Figure:
    """Make a figure with one row of axes, in the style of all pictures."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(1, columns, squeeze=False)[0]:
        axes.grid(True, which="major", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def legend_below(figure: Figure) -> None:
    """Name the lines of all axes under them, each once."""
    handles = {
        label: line
        for axes in figure.axes
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        frameon=False,
    )


def log_axis(axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of every decade."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def label_lines(axes: Axes, x: float, ends: dict[str, tuple[float, str]]) -> None:
    """Write names to the right of where curves end, in their colours, without overlap.

    Parameters
    ----------
    axes : Axes
        With its limits as they will be.
    x : float
        Where the curves end.
    ends : dict
        Name to the curve's last value and its colour.
    """
    height = 12.0  # of a line of text, points
    place = -np.inf
    for name, (y, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        end = axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi
        place = max(end, place + height)
        axes.annotate(
            name,
            (x, y),
            xytext=(6, place - end),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    console.print(f"wrote {path} and {path.with_suffix('.json').name}")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):  # no such number on this system
        return None
