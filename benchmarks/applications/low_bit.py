"""Learn a rotation before a language model is quantized to 4 bits: weights and activations.

A matrix reads the residual stream as W·x = (W·R)·(Rᵀx), for any rotation R. Rounded to 4 bits, with one scale
for every row of W·R and every Rᵀx, the right-hand side depends on R: what makes rounding coarse is a
vector's largest entry. QuaRot (Ashkboos et al., 2024) takes a random Hadamard matrix; SpinQuant (Liu et
al., 2024) learns R by Cayley SGD.

The model is SmolLM2-135M (d = 576), the text Python's language reference: 2,048 tokens to learn from, others
to measure on. What is learned from are single vectors, half of them activations of all blocks and half
rows of their matrices: the mean root of their kurtosis, which is 1 where all entries are of one size
and 1.73 for a Gaussian. The error is that of the outputs at 4 bits, ‖Q(XR)·Q(WR)ᵀ − XWᵀ‖²/‖XWᵀ‖², the mean of
twelve places in the model. R starts from the Hadamard matrix. The stepsize is chosen on the first seed.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))

from report import (
    console,
    log_axis,
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)
from rotations import (
    METHODS,
    Run,
    departure,
    learn,
    random_rotation,
    step_seconds,
    time_to,
    tuned,
)
from smollm import Smollm, load, plain, reference_text

LEARNERS = (
    "Cayley SGD",
    "POGO, VectorAdam",
    "SRGD, Adam",
    "SRGD, rank 512",
    "SRCD, groups of 128, Adam",
    "SRCD, groups of 128",
    "SRCD, groups of 256",
    "SRCD, matching, Adam",
)
# The matrices that share a rotation: those that read the residual stream, of 576 numbers, or those that
# read what is between the two layers of a feed-forward part, of 1,536.
READERS = {"stream": ("attention", "hidden"), "feed-forward": ("down",), "wide": ("down",)}
# What "wide" makes of three feed-forward parts one after the other: the sum that they write to the
# residual stream is one matrix times their inputs, of which the first 4,096 numbers are kept.
WIDE, PARTS = 4096, 3
SIZES = (576, 1536, 4096)  # at which a step is timed
BATCH = 512  # vectors
LENGTH = 256  # tokens of a sequence


def quantize(y: Tensor, bits: int = 4) -> Tensor:
    """Round every vector to levels about 0, as many on both sides; the last is its largest entry."""
    top = 2 ** (bits - 1) - 1
    scale = y.abs().amax(-1, keepdim=True) / top
    return torch.where(scale > 0, scale * (y / scale).round(), 0.0)


def hadamard(d: int) -> Tensor:
    """Orthogonal matrix with entries ±1/√d, for d = 2ᵃ·12ᵇ: a product of those of order 2 and 12."""
    squares = {i * i % 11 for i in range(1, 11)}
    twelve = torch.ones(12, 12)  # Paley's
    for i in range(11):
        for j in range(11):
            twelve[1 + i, 1 + j] = 1.0 if i == j or (i - j) % 11 in squares else -1.0
        twelve[1 + i, 0] = -1.0
    matrix, rest = torch.ones(1, 1), d
    for order, factor in ((12, twelve), (2, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))):
        while rest % order == 0:
            matrix, rest = torch.kron(matrix, factor), rest // order
    if rest != 1:
        raise ValueError(f"d={d}: expected a product of powers of 2 and 12")
    return matrix / math.sqrt(d)


def random_hadamard(d: int, seed: int) -> Tensor:
    """Random signs, then the Hadamard matrix."""
    signs = torch.randint(2, (d, 1), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0
    return signs * hadamard(d)


def unit(y: Tensor) -> Tensor:
    """Scale every vector so that the mean square of its entries is 1."""
    return y * y.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()


def root_kurtosis(y: Tensor) -> Tensor:
    """Mean over vectors of the root of the mean fourth power, for a mean square of 1."""
    return y.square().square().mean(-1).sqrt().mean()


def beside(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lay the inputs, or the columns, of every three parts side by side."""
    names = [*parts]
    return {
        names[i]: torch.cat([parts[name] for name in names[i : i + PARTS]], -1)[..., :WIDE]
        for i in range(0, len(names), PARTS)
    }


class Places:
    """What some matrices of a model read, and what rounding does to it.

    Parameters
    ----------
    model : Smollm
        Whose weights and activations.
    tokens : Tensor
        Sequences, shape ``(n, length)``: eight to learn from, two to measure errors on, and two for the
        perplexity.
    readers : str
        Key of READERS.
    """

    def __init__(self, model: Smollm, tokens: Tensor, readers: str) -> None:
        self.model, self.readers = model, READERS[readers]
        learned, self.held_out = self._inputs(tokens[:8]), self._inputs(tokens[8:10])
        self.text = tokens[10:12]
        self.weights = {name: model.weights[name] for name in learned}
        self.in_use = readers != "wide"  # by the model as it is
        if not self.in_use:
            learned, self.held_out, self.weights = map(
                beside, (learned, self.held_out, self.weights)
            )
        self.activations = unit(torch.cat([*learned.values()]))
        self.rows = unit(torch.cat([*self.weights.values()]))
        names = [*self.held_out]
        self.measured = names[:: max(1, len(names) // 12)]

    @property
    def d(self) -> int:
        """Size of the rotation."""
        return self.rows.shape[-1]

    def gradient(self, seed: int) -> Callable[[Tensor], Tensor]:
        """Make the gradient of a random batch."""
        generator = torch.Generator().manual_seed(seed)

        def gradient(rotation: Tensor) -> Tensor:
            batch = torch.cat(
                [
                    part[torch.randint(len(part), (BATCH // 2,), generator=generator)]
                    for part in (self.activations, self.rows)
                ]
            )
            rotation = rotation.detach().requires_grad_()
            (g,) = torch.autograd.grad(root_kurtosis(batch @ rotation), rotation)
            return g

        return gradient

    def error(self, rotation: Tensor) -> float:
        """Relative squared error of the outputs at 4 bits, mean over twelve places."""
        errors = []
        for name in self.measured:
            x, weight = self.held_out[name], self.weights[name]
            exact = x @ weight.mT
            rounded = quantize(x @ rotation) @ quantize(weight @ rotation).mT
            errors.append(float((rounded - exact).square().sum() / exact.square().sum()))
        return float(np.mean(errors))

    def perplexity(self, rotation: Tensor | None) -> float:
        """Perplexity with these matrices and their inputs at 4 bits; None: in float32."""

        def read(name: str, y: Tensor, weight: Tensor) -> Tensor:
            if rotation is None or not name.endswith(self.readers):
                return plain(name, y, weight)
            return quantize(y @ rotation) @ quantize(weight @ rotation).mT

        return math.exp(float(self.model.losses(self.text, read).mean()))

    def _inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        kept = {}

        def read(name: str, y: Tensor, weight: Tensor) -> Tensor:
            if name.endswith(self.readers):
                kept[name] = y.flatten(0, 1)
            return plain(name, y, weight)

        self.model.losses(tokens, read)
        return kept


class Experiment:
    """Runs, and looks at them off the clock."""

    def __init__(self, places: Places, budget: float) -> None:
        self.places = places
        self.marks = [budget * share for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)]

    def trained(self, name: str, lr: float, seed: int) -> Run:
        """Learn a rotation."""
        run = self._new(name, seed)
        start = random_hadamard(self.places.d, seed)
        self._look(run, start, 0.0)
        run["stepsize"] = lr
        run["steps"] = learn(
            METHODS[name],
            lr,
            start,
            self.places.gradient(seed),
            lambda rotation, seconds: self._look(run, rotation, seconds),
            self.marks,
        )
        console.print(f"{name}, {lr:g}, seed {seed}: {run['steps']} steps, {run['error'][-1]:.5f}")
        return run

    def fixed(self, name: str, rotation: Tensor, seed: int) -> Run:
        """Look at a rotation that is not learned."""
        run = self._new(name, seed)
        self._look(run, rotation, 0.0)
        return run

    def _new(self, name: str, seed: int) -> Run:
        return {"name": name, "seed": seed, "d": self.places.d, "seconds": [], "error": []}

    def _look(self, run: Run, rotation: Tensor, seconds: float) -> None:
        run["seconds"].append(seconds)
        run["error"].append(self.places.error(rotation))
        run["off the manifold"] = departure(rotation)
        run["rotation"] = rotation.clone()


@click.command(help=__doc__)
@click.option("--budget", default=3.0, show_default=True, help="CPU seconds of a run.")
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--readers",
    type=click.Choice([*READERS]),
    default="stream",
    show_default=True,
    help="What is rotated: the residual stream (d = 576), feed-forward parts inside (d = 1,536), or "
    "what three of those read, side by side (d = 4,096).",
)
@click.option(
    "--methods", default="", help="Learners with names that this regular expression finds."
)
@click.option(
    "--first",
    multiple=True,
    metavar="METHOD=LR",
    help="Stepsize that is tried first, not the usual four.",
)
@output_option
def main(  # noqa: D103
    budget: float, seeds: int, readers: str, methods: str, first: tuple[str, ...], output: Path
) -> None:
    torch.set_num_threads(1)
    show_machine()
    model, encode = load()
    tokens = torch.tensor(encode(reference_text()))
    sequences = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))
    places = Places(model, sequences[order[:12]], readers)
    d = places.d
    learners = [name for name in LEARNERS if re.search(methods, name)]
    steps = {name: {n: step_seconds(METHODS[name], n) for n in SIZES} for name in learners}
    starts = {name: float(lr) for name, lr in (pair.rsplit("=", 1) for pair in first)}
    experiment = Experiment(places, budget)
    runs = [experiment.fixed("no rotation", torch.eye(d), 0)]
    for seed in range(seeds):
        runs.append(experiment.fixed("random rotation", random_rotation(d, seed), seed))
        runs.append(experiment.fixed("random Hadamard", random_hadamard(d, seed), seed))
    best, tuning = tuned(learners, experiment.trained, seeds, "error", starts)
    runs += best
    exact = places.perplexity(None) if places.in_use else None
    for run in runs:
        run["perplexity"] = places.perplexity(run["rotation"]) if places.in_use else None
    for run in [*runs, *tuning]:
        run.pop("rotation", None)
    conclude(runs, tuning, steps, exact, output / f"low_bit_{d}")


def conclude(
    runs: list[Run],
    tuning: list[Run],
    steps: dict[str, dict[int, float]],
    exact: float | None,
    output: Path,
) -> None:
    """Print and write everything, the latter under a name to which an ending is added."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run["name"]].append(run)
    # What Cayley SGD has reached at the end, with the worst of its seeds; nothing, where it was left out.
    target = max((run["error"][-1] for run in groups.get("Cayley SGD", [])), default=-math.inf)
    rows, summary = [], {}
    for name, of in groups.items():
        errors = [run["error"][-1] for run in of]
        reached = [time_to(run["seconds"][1:], run["error"][1:], target) for run in of]
        texts = [run["perplexity"] for run in of if exact is not None]
        learned = name in steps
        summary[name] = {
            "stepsize": of[0].get("stepsize"),
            "steps": float(np.median([run.get("steps", 0) for run in of])),
            "error": float(np.median(errors)),
            "least and largest error": [min(errors), max(errors)],
            "perplexity": float(np.median(texts)) if texts else None,
            "least and largest perplexity": [min(texts), max(texts)] if texts else None,
            "seconds to the error of Cayley SGD": float(np.median(reached)) if learned else None,
            "off the manifold": max(run["off the manifold"] for run in of),
        }
        s = summary[name]
        seconds = f"{np.median(reached):.2f}" if np.isfinite(np.median(reached)) else "–"
        rows.append(
            [
                name,
                f"{s['stepsize']:g}" if learned else "–",
                " / ".join(f"{1e3 * t:.3g}" for t in steps[name].values()) if learned else "–",
                f"{s['steps']:.0f}" if learned else "–",
                f"{s['error']:.4f} ({min(errors):.4f}–{max(errors):.4f})",
                f"{s['perplexity']:.4g} ({min(texts):.4g}–{max(texts):.4g})" if texts else "–",
                seconds if learned else "–",
            ]
        )
    show_table(
        "Relative squared error at 4 bits, medians of the seeds"
        + (f"; perplexity in float32 {exact:.4g}" if exact is not None else ""),
        [
            "",
            "stepsize",
            "ms a step,\nd = " + " / ".join(map(str, SIZES)),
            "steps",
            "error (of seeds)",
            "perplexity (of seeds)",
            f"seconds to\n{target:.4f}",
        ],
        rows,
    )
    write_json(
        output.with_suffix(".json"),
        {
            "target": target,
            "perplexity in float32": exact,
            "seconds of a step": steps,
            "summary": summary,
            "runs": runs,
            "tuning": tuning,
        },
    )
    draw(runs, output.with_suffix(".png"))


def draw(runs: list[Run], path: Path) -> None:
    """Draw the error against seconds, every seed a line."""
    figure = new_figure(width=7.6, height=4.8)
    (axes,) = figure.axes
    for run in runs:
        first = run["seed"] == 0
        if run["name"] in LEARNERS:
            axes.plot(
                run["seconds"][1:],  # from the first look on; before it is the Hadamard matrix
                run["error"][1:],
                color=METHODS[run["name"]].colour,
                marker=".",
                linewidth=1.4,
                label=run["name"] if first else None,
            )
        elif run["name"] != "no rotation" and first:
            style = ":" if run["name"] == "random rotation" else "--"
            axes.axhline(run["error"][-1], color="0.3", linestyle=style, label=run["name"])
    (none,) = (run for run in runs if run["name"] == "no rotation")
    log_axis(axes.xaxis)
    axes.set_xlabel("CPU seconds")
    axes.set_ylabel("relative squared error of the outputs")
    axes.set_title(
        f"SmolLM2-135M, weights and activations at 4 bits, d = {none['d']}\n"
        f"without rotation: {none['error'][-1]:.3f}",
        fontsize=10,
    )
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="best")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
