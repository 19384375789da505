"""How far a step along groups of columns may go, and how much of a dense step's decrease it makes.

At a point W of O(d) the cost along all coordinates is f(W expm(Σ t_i H_i)); λ is the largest eigenvalue of
its second derivative at t = 0, and λ_r the largest one among the coordinates inside groups of r columns,
dealt at random. A step of the length 1/λ along the gradient g is sure, to second order, of the decrease
‖g‖²/(2λ), one along the groups of ‖g_r‖²/(2λ_r). The ratio of the two is what a step of groups is worth in
dense steps:

- their share of the coordinates, (r − 1)/(d − 1), where λ_r is λ: groups see so much of the gradient, and
  may not go farther;
- 1 where λ_r falls as the share of the coordinates does: where the curvature is in few directions, and each
  of them spread over all coordinates.

Problems are the square ones of noisy.py, where they start, by their exact costs; the recurrent matrix of a
network that copies ten letters across fifty steps, where it starts; and with --activations the mean root of
the kurtosis of activations and weights of a language model (applications/low_bit.py), at a random Hadamard
matrix. Eigenvalues by Lanczos iterations (scipy) with products from a second backward pass.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from noisy import PROBLEMS
from report import (
    new_figure,
    output_option,
    save_figure,
    show_machine,
    show_table,
    write_json,
)
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from givens.rnn import OrthogonalRNN, SequenceModel
from givens.rnn.modrelu import modrelu
from givens.rnn.tasks import CopyingMemory

sys.path.append(str(Path(__file__).parent / "applications"))

Cost = Callable[[Tensor], Tensor]
VECTORS = 4096  # of activations and as many of weights


class Along:
    """A cost on O(d) along some coordinates, to second order.

    Parameters
    ----------
    cost : callable
        Of a matrix.
    w : Tensor
        The point, shape ``(d, d)``.
    pairs : Tensor
        The coordinates: pairs of columns, shape ``(2, k)``.
    """

    def __init__(self, cost: Cost, w: Tensor, pairs: Tensor) -> None:
        self._t = torch.zeros(pairs.shape[1], device=w.device, requires_grad=True)
        a = w.new_zeros(w.shape).index_put((*pairs,), self._t / math.sqrt(2))
        a = a - a.mT
        moved = w + w @ a + w @ (a @ a) / 2  # the exponential to second order
        (self._slopes,) = torch.autograd.grad(cost(moved), self._t, create_graph=True)

    @property
    def energy(self) -> float:
        """Square of the norm of the gradient."""
        return float(self._slopes.detach().double().square().sum())

    @property
    def curvature(self) -> float:
        """Largest eigenvalue of the second derivative."""
        n = len(self._t)
        if n == 1:
            return float(self._times(np.ones(1))[0])
        operator = LinearOperator((n, n), matvec=self._times, dtype=np.float64)
        start = self._slopes.detach().double().numpy()
        values = eigsh(operator, 1, which="LA", tol=0.02, v0=start, return_eigenvectors=False)
        return float(values[0])

    def _times(self, v: np.ndarray) -> np.ndarray:
        direction = torch.as_tensor(v.ravel()).to(self._slopes)
        (product,) = torch.autograd.grad(self._slopes @ direction, self._t, retain_graph=True)
        return product.double().numpy()


def grouped_pairs(d: int, r: int, seed: int) -> Tensor:
    """All pairs of columns of a group of r, of random ones: shape ``(2, d//r · r(r − 1)/2)``."""
    order = torch.randperm(d, generator=torch.Generator().manual_seed(1000 + seed))
    inside = torch.combinations(torch.arange(r)).T
    return order[: d // r * r].view(-1, r)[:, inside].permute(1, 0, 2).flatten(1)


def costs(d: int, activations: bool) -> Iterator[tuple[str, Cost, Tensor]]:
    """The problems: a name, a cost, and a point."""
    for name, make in PROBLEMS.items():
        problem = make(d, torch.Generator().manual_seed(0), torch.device("cpu"))
        if problem.start.shape[0] == problem.start.shape[1]:
            yield name, problem.exact, problem.start
    yield "copying", *copying()
    if not activations:
        return
    from low_bit import LENGTH, Places, random_hadamard, root_kurtosis
    from smollm import load, reference_text

    model, encode = load()
    tokens = torch.tensor(encode(reference_text()))
    places = Places(model, tokens[: 12 * LENGTH].view(12, LENGTH), "stream")
    generator = torch.Generator().manual_seed(0)
    vectors = torch.cat(
        [
            part[torch.randperm(len(part), generator=generator)[:VECTORS]]
            for part in (places.activations, places.rows)
        ]
    )
    yield "kurtosis", lambda w: root_kurtosis(vectors @ w), random_hadamard(places.d, 0)


def copying() -> tuple[Cost, Tensor]:
    """The loss of a batch as a function of the recurrent matrix, and the matrix.

    A loop in plain torch: the layer's own recurrence is not differentiated twice.
    """
    torch.manual_seed(0)
    task = CopyingMemory(50, 10, 64, seed=0)
    letters, target = task[0]
    model = SequenceModel(OrthogonalRNN(letters.shape[-1], 64), 9)
    layer, readout = model.rnn, model.linear
    model.requires_grad_(False)

    def cost(w: Tensor) -> Tensor:
        states = [torch.zeros(letters.shape[1], layer.hidden_size)]
        for x in letters @ layer.weight_ih_l0.mT:
            states.append(modrelu(x + states[-1] @ w.mT, layer.bias_modrelu_l0))
        return task.loss(readout(torch.stack(states[1:])), target)

    return cost, layer.weight_hh_l0.detach().as_subclass(Tensor)


@click.command(help=__doc__)
@click.option("-d", "size", default=256, show_default=True, help="Size of the problems.")
@click.option("--activations/--no-activations", default=False, help="The kurtosis, too: d = 576.")
@click.option("--sizes", default="2,4,16,64,128", show_default=True, help="Sizes of groups.")
@click.option("--seeds", default=3, show_default=True, help="Ways to deal the columns.")
@output_option
def main(size: int, activations: bool, sizes: str, seeds: int, output: Path) -> None:  # noqa: D103
    torch.set_num_threads(1)
    show_machine()
    table: list[dict[str, Any]] = []
    for name, cost, w in costs(size, activations):
        d = len(w)
        dense = Along(cost, w, grouped_pairs(d, d, 0))
        energy, curvature = dense.energy, dense.curvature
        for r in (r for r in map(int, sizes.split(",")) if 2 <= r <= d // 2):
            groups = [Along(cost, w, grouped_pairs(d, r, seed)) for seed in range(seeds)]
            shares = [group.energy / energy for group in groups]
            farther = [curvature / group.curvature for group in groups]
            worth = [share * far for share, far in zip(shares, farther, strict=True)]
            coordinates = (d // r * r) * (r - 1) / (d * (d - 1))
            row = {"problem": name, "d": d, "r": r, "coordinates": coordinates}
            medians = {"energy": shares, "farther": farther, "worth": worth}
            table.append(row | {key: float(np.median(x)) for key, x in medians.items()})
        write_json(output / "curvature.json", {"table": table})
    show_table(
        "What a step of groups is worth",
        ["", "d", "r", "coordinates", "gradient's square", "farther", "worth, in dense steps"],
        [
            [
                row["problem"],
                str(row["d"]),
                str(row["r"]),
                f"1/{1 / row['coordinates']:.3g}",
                f"1/{1 / row['energy']:.3g}",
                f"{row['farther']:.3g}×",
                f"{row['worth']:.2g}",
            ]
            for row in table
        ],
    )
    draw(table, output / "curvature.png")


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Draw what a step is worth against the share of coordinates that it moves."""
    figure = new_figure(1, width=5.5, height=4.0)
    axes = figure.axes[0]
    colours = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00")
    names = dict.fromkeys(row["problem"] for row in table)
    for name, colour in zip(names, colours, strict=False):
        rows = [row for row in table if row["problem"] == name]
        x, y = [row["coordinates"] for row in rows], [row["worth"] for row in rows]
        axes.plot(x, y, "o-", label=f"{name}, d = {rows[0]['d']}", color=colour)
    span = (min(row["coordinates"] for row in table), 1.0)
    axes.plot(span, span, ":", color="#7f7f7f", label="a share of the coordinates")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="share of the coordinates that move",
        ylabel="decrease of a step, of a dense one's",
    )
    axes.legend(fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
