"""The objective along a prepared step, for a line search to look at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..manifolds.backend import exact_products
from .update import Change, Update, computed

__all__ = ["Line", "Trial"]


@dataclass(frozen=True)
class Trial:
    """A point that a line search has looked at.

    Attributes
    ----------
    value : float
        What is to fall, there; infinite where the closure returns no finite number, or the step overflows.
    changes : list of Change
        What leads there.
    factor : float, optional
        By how much the lengths of the step were multiplied.
    """

    value: float
    changes: list[Change]
    factor: float | None = None


class Line:
    """The points that a step can reach, its direction taken as it is, and the objective there.

    After every trial all points are put back, to the bit.

    Parameters
    ----------
    points : list of Tensor
        The parameters that the step moves.
    updates : list of Update
        Their updates, and the derivatives that these read.
    objective : callable
        Evaluates what is to fall at the current points; with False, without gradients.
    value : float
        It at the starting point.
    last : float
        The factor that the last step took.

    Attributes
    ----------
    value, last : float
        As given.
    """

    def __init__(
        self,
        points: list[Tensor],
        updates: list[Update],
        objective: Callable[[bool], float],
        *,
        value: float,
        last: float,
    ) -> None:
        self.value = value
        self.last = last
        self._points = points
        self._updates = updates
        self._objective = objective
        self._start = [x.clone() for x in points]

    @property
    def precision(self) -> float:
        """The coarsest ε of the points' types."""
        return max((torch.finfo(x.dtype).eps for x in self._points), default=0.0)

    @cached_property
    def _step(self) -> list[Change]:
        return computed(self._updates, 1.0)

    @cached_property
    def slope(self) -> float:
        """Derivative, at 0, of the objective by the factor of :meth:`along`."""
        return sum(change.slope() for change in self._step)

    def along(self, factor: float, *, no_grad: bool = False) -> Trial:
        """Try the step with all its lengths multiplied by a factor."""
        changes = self._step if factor == 1 else computed(self._updates, factor)
        return Trial(self._value(changes, no_grad), changes, factor)

    @property
    def turned_slope(self) -> float:
        """Derivative, at 0, of the objective by the angle of :meth:`turned`."""
        return self._turn(0.0).slope()

    def turned(self, angle: float, *, no_grad: bool = False) -> Trial:
        """Try the point with the one coordinate of the step turned by an angle, in radians.

        Raises
        ------
        ValueError
            If the step is not along one coordinate that is a rotation.
        """
        changes = [self._turn(angle)]
        return Trial(self._value(changes, no_grad), changes)

    def _turn(self, angle: float) -> Change:
        turns = [update.turn for update in self._updates]
        if len(turns) == 1 and turns[0] is not None:
            with exact_products():
                return turns[0](self._updates[0].derivatives, angle)
        raise ValueError(
            "a line search by angles turns one coordinate: one parameter with a gradient, a point of a "
            "manifold whose coordinates are rotations (OrthogonalGroup, Stiefel, Sphere, …), a selection of "
            "one coordinate (Uniform(), Cyclic(), GaussSouthwell()), and no scaling; this step moves "
            f"{len(turns)} parameters, {turns.count(None)} of them otherwise. Armijo() takes any step"
        )

    def _value(self, changes: list[Change], no_grad: bool) -> float:
        if any(change.refused for change in changes):
            return math.inf
        try:
            with exact_products():  # and not around the closure, whose products are the user's
                for change in changes:
                    change.move()
            value = self._objective(not no_grad)
        finally:
            for x, start in zip(self._points, self._start, strict=True):
                x.copy_(start)
        return value if math.isfinite(value) else math.inf
