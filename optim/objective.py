"""What a line search lets fall: the number that a closure returns."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .replicas import Replicas

__all__ = ["Objective"]


class Objective:
    """The loss of a closure, with the sign that makes it fall.

    Parameters
    ----------
    closure : callable
        Evaluates the model and returns the loss.
    maximize : bool
        Whether the loss is to rise.
    replicas : Replicas, optional
        The processes over which losses are averaged.
    device : torch.device
        Where they are.
    """

    def __init__(
        self,
        closure: Callable[[], Any],
        *,
        maximize: bool,
        replicas: Replicas | None,
        device: torch.device,
    ) -> None:
        self._closure = closure
        self._sign = -1.0 if maximize else 1.0
        self._replicas = replicas
        self._device = device

    def __call__(self, grad: bool) -> float:
        """Evaluate the closure at the current points, with gradients or without."""
        with torch.set_grad_enabled(grad):
            return self.of(self._closure())

    def of(self, loss: Any) -> float:
        """Return what falls, for what the closure has returned.

        Raises
        ------
        TypeError
            If that is no real number.
        """
        if isinstance(loss, Tensor):
            loss = loss.detach()
            real = loss.numel() == 1 and not loss.is_complex()
        else:
            real = isinstance(loss, Real)
        if not real:
            raise TypeError(
                f"the closure returns {loss!r}, where a line search needs the loss, one real number"
            )
        value = self._sign * float(loss)
        if self._replicas is None:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self._device)
        return float(self._replicas.average(shared))
