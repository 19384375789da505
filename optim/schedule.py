"""Schedules of the stepsize."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["RobbinsMonroLR"]


class RobbinsMonroLR(LRScheduler):
    r"""Stepsizes α_k = α_0 / (1 + k/delay)^power, whose sum is infinite and whose squares have a finite one.

    With ½ < power ≤ 1 these are the conditions of Robbins and Monro (1951), Σα_k = ∞ and Σα_k² < ∞,
    under which the paper's Theorem 1 holds: steps that never end, and noise that averages out. The
    squares add up to at most α_0²(1 + delay/(2·power − 1)).

    Parameters
    ----------
    optimizer : Optimizer
        Any of torch's or givens's; α_0 is the `lr` of each of its groups.
    delay : float
        Number of calls of :meth:`step` after which α has fallen to α_0/2^power; until about then it is
        nearly constant. Above 0.
    power : float
        How fast it falls in the end, as k^−power: in (1/2, 1].
    last_epoch : int
        As in torch's schedulers.

    Raises
    ------
    ValueError
        If `delay` or `power` is out of range. The optimizer is unchanged then.

    Notes
    -----
    Power 1 is the fastest where the function is strongly convex and α_0·delay is large enough for its
    curvature, and slower by a power of k where it is not; a smaller power needs no such knowledge (Bach and
    Moulines, 2011).

    Every α_k is computed from k alone, without the error of a product of many factors. So in a
    ``SequentialLR`` k begins where its own part does, and in a ``ChainedScheduler`` the rate is replaced and
    not multiplied.

    Examples
    --------
    >>> import torch
    >>> from givens.optim import SRGD, RobbinsMonroLR
    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = SRGD([w], lr=0.3)
    >>> scheduler = RobbinsMonroLR(optimizer, delay=100)
    >>> for _ in range(200):
    ...     optimizer.step()
    ...     scheduler.step()
    >>> round(scheduler.get_last_lr()[0], 12)
    0.1
    """

    def __init__(
        self, optimizer: Optimizer, delay: float, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        if not 0 < delay < math.inf:
            raise ValueError(f"delay={delay}: expected a finite number of steps above 0")
        if not 0.5 < power <= 1:
            raise ValueError(
                f"power={power}: expected a number in (1/2, 1]; with 1/2 or less the squares of the "
                "stepsizes have no finite sum, with more than 1 the stepsizes have one"
            )
        self.delay = delay
        self.power = power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the stepsize of every group."""
        factor = (1 + self.last_epoch / self.delay) ** -self.power
        return [lr * factor for lr in self.base_lrs]
