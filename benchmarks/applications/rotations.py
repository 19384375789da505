"""The ways to learn a rotation that the applications compare, on one clock and one grid of stepsizes.

Time is what this process has computed (CPU seconds, one thread): others on the machine do not count in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from geoopt import ManifoldParameter
from torch import Tensor

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, SRGD, Adam, Grouping, Matching

clock = time.process_time

# Makes an optimizer of one d×d orthogonal matrix from it and a stepsize.
Make = Callable[[torch.nn.Parameter, float], torch.optim.Optimizer]


class CayleySGD(torch.optim.Optimizer):
    """SGD with momentum by an iterated Cayley transform (Li, Fuxin & Todorovic, 2020, Algorithm 1).

    For square X, where MXᵀ − ½X(XᵀM)Xᵀ is ½MXᵀ: W = ½(MXᵀ − XMᵀ), and the step
    X ← (I − αW/2)⁻¹(I + αW/2)X by a fixed-point iteration, with α‖W‖ ≤ 1 so that it contracts.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, iterations: int = 5) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter."""
        for group in self.param_groups:
            for x in group["params"]:
                m = self.state[x].get("momentum", torch.zeros_like(x))
                m = group["momentum"] * m - x.grad
                w = m @ x.mT
                w = (w - w.mT) / 2
                m = self.state[x]["momentum"] = w @ x
                # The spectral norm is at most the Frobenius norm.
                alpha = min(group["lr"], 1 / (float(w.norm()) + 1e-8))
                y = x + alpha * m
                for _ in range(group["iterations"]):
                    y = x + alpha / 2 * (w @ (x + y))
                x.copy_(y)


def pogo(x: torch.nn.Parameter, lr: float) -> torch.optim.Optimizer:
    """POGO with the base optimizer that its authors recommend."""
    from pogo import POGO
    from pogo.base import VectorAdam

    return POGO([x], VectorAdam(), lr, flatten_fn=lambda m: m.unsqueeze(0) if m.ndim == 2 else m)


@dataclass(frozen=True)
class Method:
    """A way to learn a rotation."""

    make: Make
    stepsizes: Sequence[float]  # that are tried
    colour: str


METHODS = {
    "Cayley SGD": Method(lambda x, lr: CayleySGD([x], lr), (0.3, 1.0, 3.0, 10.0), "#7f7f7f"),
    "POGO, VectorAdam": Method(pogo, (0.1, 0.3, 1.0, 3.0), "#cc79a7"),
    "SRGD, Adam": Method(
        lambda x, lr: SRGD([x], lr, scaling=Adam()), (3e-3, 0.01, 0.03, 0.1), "#d55e00"
    ),
    "SRGD, rank 512": Method(
        lambda x, lr: SRGD([x], lr, map="retr", rank=512), (3.0, 10.0, 30.0, 100.0), "#e69f00"
    ),
    "SRCD, groups of 128, Adam": Method(
        lambda x, lr: SRCD([x], lr, Grouping(128), Adam()), (3e-3, 0.01, 0.03, 0.1), "#56b4e9"
    ),
    "SRCD, groups of 128": Method(
        lambda x, lr: SRCD([x], lr, Grouping(128)), (3.0, 10.0, 30.0, 100.0), "#332288"
    ),
    "SRCD, groups of 256": Method(
        lambda x, lr: SRCD([x], lr, Grouping(256)), (3.0, 10.0, 30.0, 100.0), "#117733"
    ),
    "SRCD, groups of 64, Adam": Method(
        lambda x, lr: SRCD([x], lr, Grouping(64), Adam()), (3e-3, 0.01, 0.03, 0.1), "#0072b2"
    ),
    "SRCD, matching, Adam": Method(
        lambda x, lr: SRCD([x], lr, Matching(), Adam()), (0.01, 0.03, 0.1, 0.3), "#009e73"
    ),
}


def step_seconds(method: Method, d: int) -> float:
    """Least seconds of a step, of three."""
    x = ManifoldParameter(random_rotation(d, 0), manifold=OrthogonalGroup("cayley"))
    optimizer = method.make(x, 1e-4)
    times = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x.grad = torch.randn(d, d, generator=generator) / d
        begin = clock()
        optimizer.step()
        times.append(clock() - begin)
    return min(times)


Run = dict[str, Any]  # of one method and seed: what was seen after so many seconds


def tuned(
    names: Sequence[str],
    trained: Callable[[str, float, int], Run],
    seeds: int,
    cost: str,
    first: Mapping[str, float] | None = None,
) -> tuple[list[Run], list[Run]]:
    """Choose each method's stepsize on the first seed, by what a cost ends at; then run the others.

    Its stepsizes are tried, or that of `first`, and more until the best has a worse one on each side.

    Returns
    -------
    runs, tuning : list of Run
        Those with the chosen stepsize, and all of the first seed.
    """
    runs, tuning = [], []
    for name in names:
        begin = [first[name]] if first and name in first else METHODS[name].stepsizes
        tried = {lr: trained(name, lr, 0) for lr in begin}
        while True:
            at = min(tried, key=lambda lr: tried[lr][cost][-1])
            beside = [lr for by in (1, -1) if (lr := neighbour(at, by)) not in tried]
            if not beside:
                break
            tried[beside[0]] = trained(name, beside[0], 0)
        best = tried[at]
        tuning += tried.values()
        runs += [best, *(trained(name, best["stepsize"], seed) for seed in range(1, seeds))]
    return runs, tuning


def neighbour(lr: float, by: int) -> float:
    """Go along the stepsizes …, 0.3, 1, 3, 10 and so on."""
    return float(f"{10 ** ((round(2 * math.log10(lr)) + by) / 2):.1g}")


def time_to(seconds: Sequence[float], cost: Sequence[float], target: float) -> float:
    """Seconds until a cost; between two looks by a line through the logarithms of the seconds."""
    for k, value in enumerate(cost):
        if value <= target:
            if k == 0:
                return seconds[0]
            share = (cost[k - 1] - target) / (cost[k - 1] - value)
            return float(seconds[k - 1] * (seconds[k] / seconds[k - 1]) ** share)
    return float("inf")


def departure(rotation: Tensor) -> float:
    """Return max |RᵀR − I|, in float64."""
    gram = rotation.double().mT @ rotation.double()
    return float((gram - torch.eye(len(gram))).abs().max())


def random_rotation(d: int, seed: int) -> Tensor:
    """Draw a rotation from the Haar measure."""
    generator = torch.Generator().manual_seed(seed)
    return OrthogonalGroup().random(d, d, det=1, generator=generator).as_subclass(Tensor)


def learn(
    method: Method,
    lr: float,
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    look: Callable[[Tensor, float], None],
    marks: Sequence[float],
    spent: float = 0.0,
) -> int:
    """Learn a rotation until the clock says that it is time; the stepsize falls linearly to 0.

    Parameters
    ----------
    method, lr
        How.
    start : Tensor
        Where the rotation starts, shape ``(d, d)``.
    gradient : callable
        Returns the Euclidean gradient of a mini-batch at a rotation.
    look : callable
        Called with the rotation and the seconds spent; is not on the clock.
    marks : sequence of float
        The seconds after which it is called. With the last one learning ends.
    spent : float
        Seconds that have gone into the start.

    Returns
    -------
    int
        Number of steps.
    """
    x = ManifoldParameter(start.clone(), manifold=OrthogonalGroup("cayley"))
    optimizer = method.make(x, lr)
    steps = 0
    for mark in marks:
        begin = clock() - spent
        while (now := clock() - begin) < mark:
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - now / marks[-1])
            x.grad = gradient(x.detach().as_subclass(Tensor))
            optimizer.step()
            steps += 1
        spent = clock() - begin
        look(x.detach().as_subclass(Tensor), spent)
    return steps
