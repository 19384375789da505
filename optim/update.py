"""What an optimizer prepares, computes and then makes: the update of one parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from ..manifolds.backend import exact_products
from .finite import largest

__all__ = ["Change", "Update", "computed"]


def _nothing() -> None:
    pass


@dataclass
class Change:
    """The change of one parameter and its state, computed and not yet made.

    Nothing that can fail is left to making it.

    Attributes
    ----------
    move : callable
        Moves the parameter.
    keep : callable
        Changes the state.
    restore : callable
        Takes rounding away, where that is due after a move.
    made : Tensor, optional
        The times or the new value, which the host checks; None where a device does, as it moves.
    limit : float
        What their absolute values must stay below.
    slope : callable
        Returns the derivative of what the optimizer lets fall, by a factor of the whole change; for a
        line search, where the host checks.
    """

    move: Callable[[], None]
    keep: Callable[[], None]
    restore: Callable[[], None] = _nothing
    made: Tensor | None = None
    limit: float = math.inf
    slope: Callable[[], float] = lambda: math.nan

    @property
    def refused(self) -> int:
        """Number of places in which what the host checks is too large, or not a number."""
        if self.made is None or largest(self.made) < self.limit:
            return 0
        return int((~(self.made.abs() < self.limit)).sum())


@dataclass
class Update:
    """The prepared update of one parameter.

    Attributes
    ----------
    compute : callable
        Computes it, given the derivatives, and a factor of its lengths; changes nothing.
    derivatives : Tensor, optional
        The derivatives that it reads; None where a device reads them as it moves.
    own : bool
        Whether they are this process's alone, to be averaged over all.
    turn : callable, optional
        Computes, given the derivatives and an angle in radians, the rotation of the one coordinate that the
        update moves along, whose slope is then by the angle; None where there is no such coordinate.
    """

    compute: Callable[[Tensor | None, float], Change]
    derivatives: Tensor | None = None
    own: bool = False
    turn: Callable[[Tensor | None, float], Change] | None = None


def computed(updates: Iterable[Update], factor: float) -> list[Change]:
    """Compute updates, with all their lengths multiplied by a factor."""
    with exact_products():
        return [update.compute(update.derivatives, factor) for update in updates]
