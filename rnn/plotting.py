"""Loss curves of runs, beside the baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..extras import extra
from .atomic import atomic_write
from .logs import is_number, read_metrics


def plot_losses(run_dirs: Sequence[Path], output: Path) -> None:
    """Draw the training loss of runs against the step, on a logarithmic scale.

    Runs of tasks with different baselines get one dashed line each.

    Parameters
    ----------
    run_dirs : sequence of Path
        Folders that `Trainer` wrote: ``metrics.jsonl`` and ``config.json`` are read.
    output : Path
        The picture; its ending says the format (PNG, PDF, SVG…).

    Raises
    ------
    FileNotFoundError
        When a folder holds no run.
    ModuleNotFoundError
        When matplotlib is not installed (extra ``cli``).
    ValueError
        When a run has no record of a loss yet, or the format is unknown.
    """
    with extra("cli"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    baselines: dict[float, str] = {}
    titles: dict[str, None] = {}
    for run_dir in run_dirs:
        config = _config(run_dir)
        records = [r for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r]
        if not records:
            raise ValueError(f"{run_dir} has no loss to plot yet")
        axes.plot(
            [r["step"] for r in records],
            [r["loss"] for r in records],
            linewidth=1.1,
            label=_literal(run_dir.resolve().name),
        )
        baselines[config["baseline"]] = (
            f"baseline, {_literal(config['baseline_name'])}: {config['baseline']:.3g}"
        )
        titles[_literal(config["task"])] = None
    for baseline, label in baselines.items():
        axes.axhline(baseline, color="0.35", linestyle="--", linewidth=1.1, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_title("\n".join(titles))
    axes.grid(True, which="major", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    axes.legend(frameon=False)

    formats = FigureCanvasAgg.get_supported_filetypes()
    kind = output.suffix.removeprefix(".").lower()
    if kind not in formats:
        raise ValueError(
            f"{output}: the ending of a picture must be one of {', '.join(sorted(formats))}"
        )
    with atomic_write(output) as file:
        figure.savefig(file, format=kind)


def _literal(text: str) -> str:
    """Return a text as matplotlib shows it: a dollar is no formula, and a leading _ hides nothing."""
    text = text.encode(errors="replace").decode().replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def _config(run_dir: Path) -> dict[str, Any]:
    try:
        config = json.loads((run_dir / "config.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{run_dir} holds no run: there is no config.json in it") from None
    except (ValueError, RecursionError):
        config = None
    if (
        not isinstance(config, dict)
        or not is_number(config.get("baseline"))
        or not all(isinstance(config.get(name), str) for name in ("task", "baseline_name"))
    ):
        raise ValueError(f"{run_dir / 'config.json'} is not the description of a run")
    return config
