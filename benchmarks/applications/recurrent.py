"""Recurrent networks on tasks where the recurrent matrix matters: how much of what it can give a method gets.

W frozen at its start is one end of the scale, the dense Riemannian Adam (all coordinates of O(d) with
moments) is the other: a method's share is how much of the gap in test loss it closes. Beside them expRNN
(Lezcano-Casado and Martínez-Rubio, 2019: W = W₀·exp(A), A skew-symmetric, by Adam) and geoopt's Riemannian
Adam; and a unitary network with as many real parameters in W as the orthogonal one.

Everything but W is trained by Adam(1e-3) in all of them. The learning rate of W is the one of the grid with
the least loss over the last tenth of the training, on the first seed, with the same iterations for all.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import geoopt
import numpy as np
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))

from report import console, output_option, show_machine, show_table, write_json

from givens.optim import SRCD, SRGD, Adam, Grouping, Matching
from givens.rnn import OrthogonalRNN, SequenceModel, UnitaryRNN
from givens.rnn.recurrence import recurrence_
from givens.rnn.tasks import CopyingMemory, PixelDigits

HIDDEN, UNITARY = 64, 45  # 2,016 and 2,025 dimensions
GRID = (3e-4, 1e-3, 3e-3, 1e-2)
TASKS: dict[str, tuple[Callable[[int], Any], int]] = {
    "permuted digits": (lambda seed: PixelDigits(permuted=True, seed=seed), 500),
    "copying, 50 blanks": (lambda seed: CopyingMemory(50, 10, 64, seed=seed), 700),
}
Make = Callable[[list[Tensor], float], list[torch.optim.Optimizer]]


class ExpRNN(nn.Module):
    """W = W₀·exp(A), with the input layer, the bias and the start of an orthogonal layer."""

    def __init__(self, layer: OrthogonalRNN) -> None:
        super().__init__()
        self.hidden_size, self.batch_first = layer.hidden_size, False
        self.weight_ih = nn.Parameter(layer.weight_ih_l0.detach().clone())
        self.bias = nn.Parameter(layer.bias_modrelu_l0.detach().clone())
        start = layer.weight_hh_l0.detach().as_subclass(Tensor)
        self.register_buffer("start", start.clone())
        self.a = nn.Parameter(torch.zeros_like(start))

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return all states, and the last one."""
        skew = self.a.triu(1)
        weight = self.start @ torch.linalg.matrix_exp(skew - skew.mT)
        zero = input.new_zeros(input.shape[1], self.hidden_size)
        states = recurrence_(input @ self.weight_ih.mT, weight, zero, self.bias)
        return states, states[-1:]


METHODS: dict[str, tuple[str, Make]] = {
    "frozen": ("orthogonal", lambda w, lr: []),
    "SRGD, Adam": ("orthogonal", lambda w, lr: [SRGD(w, lr, scaling=Adam())]),
    "SRCD, groups of 16, Adam": (
        "orthogonal",
        lambda w, lr: [SRCD(w, lr, Grouping(16), Adam())],
    ),
    "SRCD, matching, Adam": ("orthogonal", lambda w, lr: [SRCD(w, lr, Matching(), Adam())]),
    "expRNN, Adam": ("exponential", lambda w, lr: [torch.optim.Adam(w, lr)]),
    "geoopt RAdam": ("orthogonal", lambda w, lr: [geoopt.optim.RiemannianAdam(w, lr)]),
    "unitary, frozen": ("unitary", lambda w, lr: []),
    "unitary, SRGD, Adam": ("unitary", lambda w, lr: [SRGD(w, lr, scaling=Adam())]),
    "unitary, groups of 16, Adam": (
        "unitary",
        lambda w, lr: [SRCD(w, lr, Grouping(16), Adam())],
    ),
}


def network(kind: str, task: Any) -> tuple[SequenceModel, list[Tensor]]:
    """Return a network and what its recurrent matrix is trained by."""
    if kind == "unitary":
        layer: nn.Module = UnitaryRNN(task.input_size, UNITARY)
    else:
        layer = OrthogonalRNN(task.input_size, HIDDEN)
    weight = [layer.weight_hh_l0]
    if kind == "exponential":
        layer = ExpRNN(layer)
        weight = [layer.a]
    return SequenceModel(layer, task.output_size, task.readout), weight


def run(
    make: Callable[[int], Any], method: str, lr: float, seed: int, iterations: int
) -> dict[str, float]:
    """Train one network; its loss over the last tenth, and loss and metrics on the test set."""
    task = make(seed)
    torch.manual_seed(seed)
    kind, optimizers_of = METHODS[method]
    model, weight = network(kind, task)
    if method.endswith("frozen"):
        weight[0].requires_grad_(False)
    optimizers = optimizers_of(weight, lr)
    others = [p for p in model.parameters() if all(p is not w for w in weight)]
    optimizers.append(torch.optim.Adam(others, 1e-3))
    losses, start = [], time.process_time()
    for n in range(iterations):
        input, target = task[n]
        model.zero_grad()
        loss = task.loss(model(input), target)
        loss.backward()
        nn.utils.clip_grad_norm_(others, 10.0)
        try:
            for optimizer in optimizers:
                optimizer.step()
        except FloatingPointError:
            return {"train": math.inf, "test": math.inf, "seconds": math.inf}
        losses.append(loss.item())
    seconds = time.process_time() - start
    with torch.no_grad():
        # A task without a test set makes its batches; the training does not come to these.
        batches = (
            task.held_out() if hasattr(task, "held_out") else [task[10**6 + i] for i in range(8)]
        )
        tests = [(model(input), target) for input, target in batches]
        test = float(np.mean([task.loss(*pair).item() for pair in tests]))
        metrics = {
            name: float(np.mean([task.metrics(*pair)[name].item() for pair in tests]))
            for name in task.metrics(*tests[0])
        }
    tail = float(np.mean(losses[-iterations // 10 :]))
    return {
        "train": tail if math.isfinite(tail) else math.inf,
        "test": test,
        "seconds": seconds,
        **metrics,
    }


@click.command(help=__doc__)
@click.option("--seeds", default=5, show_default=True, help="Seeds; the first is tuned on.")
@click.option("--only", default=",".join(TASKS), show_default=False, help="Tasks.")
@click.option("--scale", default=1.0, show_default=True, help="Of the iterations.")
@output_option
def main(seeds: int, only: str, scale: float, output: Path) -> None:  # noqa: D103
    torch.set_num_threads(1)
    show_machine()
    everything: dict[str, Any] = {}
    for name, (make, iterations) in TASKS.items():
        if not any(name.startswith(part.strip()) for part in only.split(",")):
            continue
        results: dict[str, Any] = {}
        for method in METHODS:
            grid = GRID[:1] if method.endswith("frozen") else GRID
            tuning = {lr: run(make, method, lr, 0, int(scale * iterations)) for lr in grid}
            lr = min(tuning, key=lambda lr, tuning=tuning: tuning[lr]["train"])
            runs = [
                tuning[lr],
                *(run(make, method, lr, s, int(scale * iterations)) for s in range(1, seeds)),
            ]
            results[method] = {"lr": lr, "tuning": tuning, "runs": runs}
            console.print(f"{name}: {method} done, test {runs[0]['test']:.4f}", style="dim")
        everything[name] = results
        summarize(name, results)
        write_json(output / "recurrent.json", {"scale": scale, "tasks": everything})


def summarize(name: str, results: dict[str, Any]) -> None:
    """Print the table of a task: test losses, and the share of the gap from frozen to dense."""
    ends = {
        prefix: (
            [r["test"] for r in results[f"{prefix}frozen"]["runs"]],
            [r["test"] for r in results[f"{prefix}SRGD, Adam"]["runs"]],
        )
        for prefix in ("", "unitary, ")
    }
    metric = [
        key for key in results["frozen"]["runs"][0] if key not in ("train", "test", "seconds")
    ]
    rows = []
    for method, result in results.items():
        runs = result["runs"]
        frozen, dense = ends["unitary, " if method.startswith("unitary") else ""]
        shares = [(f - r["test"]) / (f - g) for r, f, g in zip(runs, frozen, dense, strict=True)]
        tests = [r["test"] for r in runs]
        rows.append(
            [
                method,
                "–" if method.endswith("frozen") else f"{result['lr']:g}",
                f"{np.median(tests):.4f}",
                f"{min(tests):.4f}–{max(tests):.4f}",
                f"{np.median(shares):.0%}",
                f"{min(shares):.0%} … {max(shares):.0%}",
                *(f"{np.median([r[key] for r in runs]):.3f}" for key in metric),
                f"{np.median([r['seconds'] for r in runs]):.1f}",
            ]
        )
    show_table(
        name, ["", "lr", "test loss", "range", "share", "range", *metric, "CPU seconds"], rows
    )


if __name__ == "__main__":
    main()
