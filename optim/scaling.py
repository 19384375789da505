"""Scalings: how far a step moves along each of its coordinates.

A scaling is an object with one method, :meth:`Scaling.scale`. Like the selections, those that are here
hold their settings and nothing else: what they remember lives in the optimizer's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .moments import Moments

__all__ = ["Adam", "AxisRMSProp", "Momentum", "RMSProp", "Scaling"]

_CLOCKS = ("visits", "steps")


@runtime_checkable
class Scaling(Protocol):
    """Anything that turns derivatives into the direction along which a step descends."""

    def scale(self, derivatives: Tensor, moments: Moments) -> Tensor:
        """Return what takes the place of the derivatives along unit directions, of their shape."""
        ...


@dataclass(frozen=True)
class Momentum:
    """Heavy-ball momentum, coordinate by coordinate: the rule of :class:`torch.optim.SGD`.

    Parameters
    ----------
    momentum : float
        Weight μ of the past, in [0, 1).
    dampening : float
        Share of a derivative that is left out, in [0, 1).
    nesterov : bool
        Look ahead, as torch does.
    """

    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_share(self, "momentum", self.momentum)
        _check_share(self, "dampening", self.dampening)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(f"{self}: nesterov=True needs a momentum above 0 and dampening=0")

    def scale(self, derivatives: Tensor, moments: Moments) -> Tensor:
        """Return the momentum."""
        # As torch does, the first derivative is taken whole.
        new = torch.where(moments.visits == 1, derivatives, (1 - self.dampening) * derivatives)
        kept = self.momentum * moments.read("momentum") + new
        moments.write("momentum", kept)
        return derivatives + self.momentum * kept if self.nesterov else kept


@dataclass(frozen=True)
class RMSProp:
    """Derivatives divided by the root of the mean of their squares: :class:`torch.optim.RMSprop`.

    Parameters
    ----------
    alpha : float
        Weight of the past, in [0, 1).
    eps : float
        Added to the root.
    clock : {"visits", "steps"}
        What the past fades with: the visits of a coordinate, or the steps of the optimizer. With the steps
        the mean is divided by the sum of its weights, without which a coordinate that was not selected
        for long would take an enormous step.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    clock: str = "visits"

    def __post_init__(self) -> None:
        _check_share(self, "alpha", self.alpha)
        _check_eps_and_clock(self, self.eps, self.clock)

    def scale(self, derivatives: Tensor, moments: Moments) -> Tensor:
        """Divide by the root mean square."""
        square, weight = moments.average("square", derivatives.square(), self.alpha, self.clock)
        if self.clock == "steps":
            square = square / weight
        return derivatives / (square.sqrt() + self.eps)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba, 2015), coordinate by coordinate: :class:`torch.optim.Adam`.

    A coordinate that is not selected costs nothing: its moments and its bias correction change when it
    is selected. So along one coordinate the steps are those of Adam on the sequence of that
    coordinate's own derivatives.

    Parameters
    ----------
    betas : (float, float)
        Weights of the past in the means of derivatives and of their squares, in [0, 1).
    eps : float
        Added to the root of the mean square.
    amsgrad : bool
        Divide by the largest mean square so far (Reddi, Kale & Kumar, 2018).
    clock : {"visits", "steps"}
        What the past fades with: the visits of a coordinate, or the steps of the optimizer. Either way the
        moments are the weighted means over the coordinate's visits.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    clock: str = "visits"

    def __post_init__(self) -> None:
        if isinstance(self.betas, int | float) or len(self.betas) != 2:
            raise ValueError(
                f"{self}: betas must be a pair of numbers in [0, 1), got {self.betas!r}"
            )
        for beta in self.betas:
            _check_share(self, "betas", beta)
        _check_eps_and_clock(self, self.eps, self.clock)

    def scale(self, derivatives: Tensor, moments: Moments) -> Tensor:
        """Divide the mean derivative by the root mean square."""
        first, first_weight = moments.average("first", derivatives, self.betas[0], self.clock)
        second, second_weight = moments.average(
            "second", derivatives.square(), self.betas[1], self.clock
        )
        if self.amsgrad:
            second = torch.maximum(moments.read("largest"), second)
            moments.write("largest", second)
        return first / first_weight / ((second / second_weight).sqrt() + self.eps)


@dataclass(frozen=True)
class AxisRMSProp:
    """Root mean squares in the memory of the axes: O(d) numbers where :class:`RMSProp` keeps O(d²).

    The mean square of a coordinate is estimated by the product of those of its two axes over the mean of
    all, as Adafactor (Shazeer & Stern, 2018) does with rows and columns. Where the axes are alike it
    is the mean over all coordinates.

    Parameters
    ----------
    alpha : float
        Weight of the past, in [0, 1).
    eps : float
        Added to the root.
    """

    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_share(self, "alpha", self.alpha)
        _check_eps_and_clock(self, self.eps, "visits")

    def scale(self, derivatives: Tensor, moments: Moments) -> Tensor:
        """Divide by the estimated root mean square."""
        axes, overall = moments.axis_average("square", derivatives.square(), self.alpha)
        # √(a·b/m) as √a·√(b/m): squares of small derivatives would underflow in the product.
        root = axes.select(-1, 0).sqrt()
        if axes.shape[-1] == 2:
            root = root * torch.where(overall > 0, axes.select(-1, 1) / overall, 0.0).sqrt()
        return derivatives / (root + self.eps)


def _check_share(scaling: object, name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{scaling}: {name} must be in [0, 1), got {value}")


def _check_eps_and_clock(scaling: object, eps: float, clock: str) -> None:
    if not 0 <= eps < float("inf"):
        raise ValueError(f"{scaling}: eps must be 0 or more, got {eps}")
    if clock not in _CLOCKS:
        raise ValueError(f"{scaling}: clock must be one of {', '.join(_CLOCKS)}, got {clock!r}")
