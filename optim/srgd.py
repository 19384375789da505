"""Stochastic Riemannian gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import geoopt
import torch
from torch import Tensor

from ..manifolds import All, CoordinateManifold
from ..manifolds.shards import local
from .base import ManifoldOptimizer, inner
from .line_search import LineSearch
from .parameters import manifold_of
from .scaling import Scaling
from .shards import ParameterState
from .update import Change, Update

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

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
    scaling : Scaling, optional
        An adaptive rule in place of `momentum`: :class:`Momentum`, :class:`RMSProp`, :class:`Adam`,
        … Acts on the derivatives along all coordinates, so it needs a manifold that has coordinates
        (those of givens), and memory for as many numbers.
    line_search : LineSearch, optional
        How much of a step is taken: :class:`Armijo`, for ``step(closure)``. Without one the stepsize is `lr`.
    map : {"expmap", "retr"}
        Which of the manifold's maps takes the step: the exponential as in the paper, or the retraction.
        With ``"retr"`` and without momentum the steps are those of ``geoopt.optim.RiemannianSGD``.
    strict : bool
        On an accelerator: check every derivative before the step, which waits for the device.
    capturable : bool
        Whether steps may be recorded, in a CUDA graph, to be repeated. The number of the step is then
        on the device; what is not finite stops it as on an accelerator; and rounding is taken away by
        :meth:`restore`, which is to be called after every step, or every few.
    process_group : ProcessGroup, optional
        The processes of a data-parallel run, where the gradients of manifold parameters are each process's
        own (:func:`givens.optim.distributed.leave_out_of_ddp`): a step averages them, or with
        `scaling` the derivatives along all coordinates. By default gradients are taken to be the same
        everywhere, as DDP leaves them.

    Raises
    ------
    ValueError
        If an option is out of range, a parameter does not lie on its manifold, or `capturable` meets
        `strict`, a line search or an `lr` on another device.
    TypeError
        If `scaling` is no scaling or `line_search` no line search, a manifold has no coordinates for
        `scaling`, or the search is to be along a sharded parameter, or that is to be `capturable`.

    Notes
    -----
    On O(d) a step costs O(d³): the gradient's projection, a matrix exponential, a product; every
    second step the point is put back on the manifold, which costs two products more.
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
        scaling: Scaling | None = None,
        line_search: LineSearch | None = None,
        map: str = "expmap",
        strict: bool = False,
        capturable: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "scaling": scaling,
            "line_search": line_search,
            "map": map,
        }
        super().__init__(
            params, defaults, strict=strict, capturable=capturable, process_group=process_group
        )

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError if the options of a group are out of range."""
        super()._check_options(group)
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum={group['momentum']}: expected a number in [0, 1)")
        if not 0 <= group["weight_decay"] < float("inf"):
            raise ValueError(f"weight_decay={group['weight_decay']}: expected 0 or more")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov=True needs a momentum above 0 and dampening=0")
        if group["scaling"] is not None and (group["momentum"] or group["map"] != "expmap"):
            raise ValueError(
                f"scaling={group['scaling']} steps along all coordinates, by the exponential: leave out "
                "momentum (there is scaling=Momentum(…)) and map"
            )
        if group["line_search"] is not None and group["weight_decay"]:
            raise ValueError(
                f"line_search={group['line_search']} compares what the closure returns, of which "
                "weight_decay is no part: add the penalty to the loss"
            )
        if group["map"] not in ("expmap", "retr"):
            raise ValueError(f"map={group['map']!r}: expected 'expmap' or 'retr'")

    def _check_parameter(self, group: dict[str, Any], p: Tensor) -> None:
        """Raise ValueError or TypeError if a parameter cannot be optimized."""
        manifold = manifold_of(p)
        if group["scaling"] is not None and not isinstance(manifold, CoordinateManifold | None):
            raise TypeError(
                f"{manifold} has no coordinates for scaling={group['scaling']} to act on; use a manifold "
                "of givens.manifolds, or momentum"
            )
        super()._check_parameter(group, p)

    def _prepare(self, number: int, group: dict[str, Any], p: Tensor, grad: Tensor) -> Update:
        """Compute the Riemannian gradient."""
        if self._averages(p) and self._replicas is not None and group["scaling"] is None:
            grad = self._replicas.average(grad)
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"]:
            grad = grad.add(local(p), alpha=group["weight_decay"])
        if group["scaling"] is not None:
            return self._prepare_scaled(group, p, grad)
        manifold = manifold_of(p) or _UNCONSTRAINED
        x, state = local(p), ParameterState(self.state, p)
        by_host = self._checked_by_host(group, p)
        # Without momentum no tangent vector is needed, where a manifold can do without.
        direct = isinstance(manifold, CoordinateManifold) and not group["momentum"]
        rgrad = (manifold.gradient if direct else manifold.egrad2rgrad)(x, grad)

        def compute(_: Tensor | None, factor: float) -> Change:
            velocity = rgrad
            buffer = kept = state.get("momentum_buffer")
            if group["momentum"]:
                if kept is None:
                    buffer = rgrad.clone()
                else:
                    buffer = group["momentum"] * kept + (1 - group["dampening"]) * rgrad
                velocity = rgrad + group["momentum"] * buffer if group["nesterov"] else buffer
            u = -(factor * group["lr"]) * velocity
            if direct:
                new = manifold.follow(x, u, map=group["map"])
            elif not group["momentum"]:
                new = getattr(manifold, group["map"])(x, u)
            else:
                new, buffer = getattr(manifold, f"{group['map']}_transp")(x, u, buffer)
                new = torch.where(buffer.isfinite(), new, torch.nan)

            def move() -> None:
                nonlocal new, buffer
                if not by_host:
                    admitted = self._guard.admit(rgrad, new).all()
                    new = torch.where(admitted, new, x)
                    if buffer is not None:
                        buffer = torch.where(admitted, buffer, 0.0 if kept is None else kept)
                x.copy_(new)

            def keep() -> None:
                if buffer is not None and kept is not None and self._capturable:
                    kept.copy_(buffer)  # in place: a recorded step knows no other
                elif buffer is not None:
                    state["momentum_buffer"] = buffer

            def restore() -> None:
                self._restore(group, p, manifold, All())

            def slope() -> float:
                if direct:
                    tangent = manifold.egrad2rgrad(x, grad)
                    return -factor * float(group["lr"]) * inner(grad, tangent)
                return inner(grad, u)

            return Change(move, keep, restore, new if by_host else None, slope=slope)

        return Update(compute, rgrad if by_host else None)

    def _prepare_scaled(self, group: dict[str, Any], p: Tensor, grad: Tensor) -> Update:
        """Compute the derivatives along all coordinates."""
        manifold = manifold_of(p)
        if manifold is None:
            return self._prepare_unconstrained(group, p, grad, -group["lr"])
        assert isinstance(manifold, CoordinateManifold)  # _check_parameter has seen to it
        every = All()
        return self._prepare_block(
            group,
            p,
            grad,
            manifold,
            every,
            -group["lr"],
            lambda: manifold.derivatives(local(p), grad, every),
            own=self._averages(p),
        )
