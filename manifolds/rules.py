"""The rule of a plain gradient step, in a form that a kernel can evaluate itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["GradientRule"]


@dataclass(frozen=True)
class GradientRule:
    """Times t_i = rate · ⟨grad f, f_i⟩/s_i, and none where they are not finite or too long.

    What ``descend_`` takes. Called, it is the rule in plain torch; a kernel that reads derivatives may
    instead compute the same from these numbers.

    Attributes
    ----------
    rate : float or Tensor
        Stepsize with its sign; a tensor has one element.
    limit : float
        A coordinate stays where it is unless its time is below this.
    stopped : Tensor
        One bool on the device of the points: set where a coordinate stays for that reason. While it
        is set nothing moves.
    evaluate : callable
        The rule as a function of derivatives and step scales.
    """

    rate: float | Tensor
    limit: float
    stopped: Tensor
    evaluate: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, derivatives: Tensor, scale: Tensor) -> Tensor:
        """Return the times."""
        return self.evaluate(derivatives, scale)
