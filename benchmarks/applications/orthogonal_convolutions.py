"""A convolutional network whose 3×3 kernels are orthogonal matrices: thousands of them in one batch.

Handwritten digits (scikit-learn's, 8×8 pixels, 1,437 to train on and 360 to test). Three layers with
64 + 4,096 + 8,192 kernels, each followed by a batch norm, which gives every channel its scale back.
Every method trains the kernels; everything else in the network is trained by Adam(1e-3) in all of them. The
controls: kernels without a constraint, and kernels that stay as they were drawn.

A method's learning rate is the one of the grid with the least training loss over the last epoch, on the
first seed. Seconds are those that the processor computed, on one thread.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import click
import geoopt
import numpy as np
import torch
from pogo import POGO
from pogo.base import VectorAdam
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.utils import parametrizations

sys.path.append(str(Path(__file__).parents[1]))

from report import new_figure, output_option, save_figure, show_machine, show_table, write_json

from givens.manifolds import OrthogonalGroup, constrain
from givens.optim import SRCD, SRGD, Adam, Cyclic, Matching

Optimizers = list[torch.optim.Optimizer]
Make = Callable[[list[nn.Conv2d], float], Optimizers]
GRID = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
BATCH = 64


class Network(nn.Sequential):
    """Three convolutions with batch norms and ReLUs; the mean over pixels, and a linear layer."""

    def __init__(self) -> None:
        channels = (1, 64, 64, 128)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(channels)):
            convolution = nn.Conv2d(before, after, 3, 2 if i == 2 else 1, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
        self.convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def givens(make: Callable[[list[Tensor], float], torch.optim.Optimizer]) -> Make:
    """By an optimizer of this package."""

    def build(convolutions: list[nn.Conv2d], lr: float) -> Optimizers:
        for layer in convolutions:
            constrain(layer, "weight", OrthogonalGroup())
        return [make([layer.weight for layer in convolutions], lr)]

    return build


def geoopts(convolutions: list[nn.Conv2d], lr: float) -> Optimizers:
    """By geoopt's Riemannian Adam."""
    for layer in convolutions:
        point = geoopt.ManifoldParameter(layer.weight.detach(), manifold=geoopt.EuclideanStiefel())
        layer.weight = point
    return [geoopt.optim.RiemannianAdam([layer.weight for layer in convolutions], lr)]


def pogo(convolutions: list[nn.Conv2d], lr: float) -> Optimizers:
    """By POGO, with the base that its authors recommend."""
    weights = [layer.weight for layer in convolutions]
    return [POGO(weights, VectorAdam(), lr, flatten_fn=lambda x: x.view(-1, 3, 3))]


def parametrized(convolutions: list[nn.Conv2d], lr: float) -> Optimizers:
    """By torch's parametrization with a matrix exponential, and Adam."""
    for layer in convolutions:
        parametrizations.orthogonal(layer, "weight", orthogonal_map="matrix_exp")
    return [torch.optim.Adam([p for layer in convolutions for p in layer.parameters()], lr)]


def unconstrained(convolutions: list[nn.Conv2d], lr: float) -> Optimizers:
    """By Adam, without a constraint."""
    return [torch.optim.Adam([layer.weight for layer in convolutions], lr)]


def frozen(convolutions: list[nn.Conv2d], lr: float) -> Optimizers:
    """Not at all."""
    for layer in convolutions:
        layer.weight.requires_grad_(False)
    return []


METHODS: dict[str, Make] = {
    "frozen": frozen,
    "no constraint, Adam": unconstrained,
    "parametrization, Adam": parametrized,
    "geoopt RAdam": geoopts,
    "POGO, VectorAdam": pogo,
    "SRGD, Adam": givens(lambda p, lr: SRGD(p, lr, scaling=Adam())),
    "SRCD, matching, Adam": givens(lambda p, lr: SRCD(p, lr, Matching(), Adam())),
    "SRCD, cyclic, Adam": givens(lambda p, lr: SRCD(p, lr, Cyclic(), Adam())),
}


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures and labels to train on, and to test."""
    pictures, labels = load_digits(return_X_y=True)
    split = train_test_split(pictures, labels, test_size=360, stratify=labels, random_state=0)
    train, test, train_labels, test_labels = map(torch.from_numpy, split)
    return (
        train.float().view(-1, 1, 8, 8) / 16,
        train_labels.long(),
        test.float().view(-1, 1, 8, 8) / 16,
        test_labels.long(),
    )


def run(make: Make, lr: float, seed: int, epochs: int) -> dict[str, float]:
    """Train one network; the loss of the last epoch, the accuracy, the seconds, the distance to O(3)."""
    torch.manual_seed(seed)
    train, labels, test, test_labels = data()
    model = Network()
    group = OrthogonalGroup()
    for layer in model.convolutions:
        size = layer.weight.shape
        layer.weight.data = group.random(*size).as_subclass(Tensor)
    kernels = {id(layer.weight) for layer in model.convolutions}
    others = [p for p in model.parameters() if id(p) not in kernels]
    optimizers = make(model.convolutions, lr)
    adam = torch.optim.Adam(others, 1e-3)
    generator = torch.Generator().manual_seed(seed)
    stepping, start = [], time.process_time()
    for _ in range(epochs):
        losses = []
        for batch in torch.randperm(len(train), generator=generator).split(BATCH):
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(train[batch]), labels[batch])
            loss.backward()
            losses.append(loss.item())
            adam.step()
            before = time.process_time()
            for optimizer in optimizers:
                optimizer.step()
            stepping.append(time.process_time() - before)
    seconds = time.process_time() - start
    model.eval()
    with torch.no_grad():
        accuracy = (model(test).argmax(-1) == test_labels).float().mean().item()
        weights = [
            layer.weight.detach().as_subclass(Tensor).double() for layer in model.convolutions
        ]
        eye = torch.eye(3, dtype=torch.float64)
        defect = max(float((w.mT @ w - eye).abs().max()) for w in weights)
    return {
        "loss": float(np.mean(losses)) if np.isfinite(losses).all() else math.inf,
        "accuracy": accuracy,
        "seconds": seconds,
        "milliseconds of a step": 1e3 * float(np.median(stepping)),
        "defect": defect,
    }


@click.command(help=__doc__)
@click.option("--seeds", default=3, show_default=True, help="Seeds; the first is tuned on.")
@click.option("--epochs", default=8, show_default=True, help="Epochs of a run.")
@output_option
def main(seeds: int, epochs: int, output: Path) -> None:  # noqa: D103
    torch.set_num_threads(1)
    show_machine()
    rows, results = [], {}
    for name, make in METHODS.items():
        grid = GRID if make is not frozen else GRID[:1]
        tuning = {lr: run(make, lr, 0, epochs) for lr in grid}
        lr = min(tuning, key=lambda lr, tuning=tuning: tuning[lr]["loss"])
        runs = [tuning[lr], *(run(make, lr, seed, epochs) for seed in range(1, seeds))]
        edge = " (edge)" if len(grid) > 1 and lr in (grid[0], grid[-1]) else ""
        accuracies = [r["accuracy"] for r in runs]
        median = {key: float(np.median([r[key] for r in runs])) for key in runs[0]}
        results[name] = {
            "lr": lr,
            "edge": bool(edge),
            "tuning": {str(k): v for k, v in tuning.items()},
            "runs": runs,
        }
        rows.append(
            [
                name,
                "–" if make is frozen else f"{lr:g}{edge}",
                f"{median['loss']:.4f}",
                f"{median['accuracy']:.1%}",
                f"{min(accuracies):.1%}–{max(accuracies):.1%}",
                f"{median['milliseconds of a step']:.2f}",
                f"{median['seconds']:.1f}",
                f"{max(r['defect'] for r in runs):.0e}",
            ]
        )
    show_table(
        f"12,352 orthogonal kernels, digits, {epochs} epochs, {seeds} seeds (medians)",
        ["", "lr", "loss", "accuracy", "range", "ms a step", "s in all", "|WᵀW − I|"],
        rows,
    )
    write_json(output / "orthogonal_convolutions.json", {"epochs": epochs, "methods": results})
    draw(results, output / "orthogonal_convolutions.png")


def draw(results: dict[str, dict[str, object]], path: Path) -> None:
    """Seconds of the training against the loss of its last epoch, a point for every seed."""
    figure = new_figure(width=7.2, height=4.4)
    axes = figure.axes[0]
    for name, result in results.items():
        runs = result["runs"]
        if name == "frozen":
            axes.axhline(np.median([r["loss"] for r in runs]), color="0.6", linestyle="--")
            axes.annotate(
                "frozen",
                (1, np.median([r["loss"] for r in runs])),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color="0.4",
            )
            continue
        axes.plot(
            [r["seconds"] for r in runs],
            [r["loss"] for r in runs],
            "s" if name.startswith("SR") else "o",
            label=name,
            alpha=0.8,
        )
    axes.set(
        yscale="log",
        xlim=(0, None),
        xlabel="CPU seconds of the training",
        ylabel="training loss, last epoch",
    )
    axes.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
