"""Stochastic Riemannian gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import geoopt
import torch
from torch import Tensor

from ..manifolds import All
from .base import ManifoldOptimizer, Update, manifold_of

__all__ = ["SRGD"]

_UNCONSTRAINED = geoopt.Euclidean()


class SRGD(ManifoldOptimizer):
    """Stochastic Riemannian gradient descent: the paper's Algorithm 1 (Bonnabel, 2013).

    Moves a :class:`geoopt.ManifoldParameter` along its whole Riemannian gradient,
    X ← Exp_X(−lr · grad f(X)), on any manifold of givens or geoopt. A parameter without a manifold
    gets stochastic gradient descent, as in :class:`torch.optim.SGD`.

    Parameters
    ----------
    params : iterable
        Parameters, or parameter groups.
    lr : float
        Stepsize, 0 or more.
    momentum : float
        Momentum, in [0, 1). The buffer is a tangent vector, carried along by the manifold's transport.
    dampening, weight_decay, nesterov
        As in :class:`torch.optim.SGD`. (On the orthogonal group weight decay does nothing: the norm of
        a point is constant.)
    maximize : bool
        Ascend instead of descend.
    map : {"expmap", "retr"}
        Which of the manifold's maps takes the step: the exponential as in the paper, or the retraction.
        With ``"retr"`` and without momentum the steps are those of ``geoopt.optim.RiemannianSGD``.
    strict : bool
        On an accelerator: check every derivative before the step, which waits for the device.

    Raises
    ------
    ValueError
        If an option is out of range or a parameter does not lie on its manifold.

    Notes
    -----
    On O(d) a step costs O(d³): the gradient's projection, a matrix exponential, a product; every
    eighth step the point is put back on the manifold, which costs two products more.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        map: str = "expmap",
        strict: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "map": map,
        }
        super().__init__(params, defaults, strict=strict)

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError if the options of a group are out of range."""
        super()._check_options(group)
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum={group['momentum']}: expected a number in [0, 1)")
        if not 0 <= group["weight_decay"] < float("inf"):
            raise ValueError(f"weight_decay={group['weight_decay']}: expected 0 or more")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov=True needs a momentum above 0 and dampening=0")
        if group["map"] not in ("expmap", "retr"):
            raise ValueError(f"map={group['map']!r}: expected 'expmap' or 'retr'")

    def _prepare(self, number: int, group: dict[str, Any], p: Tensor, grad: Tensor) -> Update:
        """Compute the Riemannian gradient."""
        manifold = manifold_of(p) or _UNCONSTRAINED
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"]:
            grad = grad.add(p, alpha=group["weight_decay"])
        rgrad = manifold.egrad2rgrad(p, grad)

        def update() -> None:
            state = self.state[p]
            velocity = rgrad
            buffer = state.get("momentum_buffer")
            if group["momentum"]:
                if buffer is None:
                    buffer = rgrad.clone()
                else:
                    buffer = group["momentum"] * buffer + (1 - group["dampening"]) * rgrad
                velocity = rgrad + group["momentum"] * buffer if group["nesterov"] else buffer
            u = -group["lr"] * velocity
            if not group["momentum"]:
                new = getattr(manifold, group["map"])(p, u)
            else:
                new, buffer = getattr(manifold, f"{group['map']}_transp")(p, u, buffer)
            if not self._checked_by_host(group, p):
                admitted = self._guard.admit(rgrad).all()
                new = torch.where(admitted, new, p)
                if buffer is not None:
                    buffer = torch.where(admitted, buffer, state.get("momentum_buffer", 0.0))
            p.copy_(new)
            if group["momentum"]:
                state["momentum_buffer"] = buffer
            self._restore(group, p, manifold, All())

        return (rgrad if self._checked_by_host(group, p) else None), update
