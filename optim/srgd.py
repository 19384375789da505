"""Stochastic Riemannian gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import geoopt
import torch
from geoopt.manifolds import Manifold
from torch import Tensor

from ..manifolds import All, CoordinateManifold
from ..manifolds.shards import first_point, local
from .base import ManifoldOptimizer, inner
from .line_search import LineSearch
from .parameters import manifold_of
from .random import Randomness
from .restoration import low_rank_moves, moves
from .scaling import Scaling
from .shards import ParameterState
from .sketch import sketch
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
    rank : int, optional
        Rank of the gradients of manifold parameters, or more, where that is known to be less than half
        their size: for the weight of a linear layer, the number of vectors that it has read, of all
        processes. The steps are the same, but cost O(rank·np) instead of O(np²) for an n×p matrix. A
        gradient of a higher rank is followed in part, a random one at every step. For matrices with
        orthonormal columns; with "retr" for the retraction "cayley".
    seed : int
        Seed of the random numbers that `rank` takes, which are a function of (seed, step, parameter number)
        alone.
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
        `scaling` or no steps of low rank for `rank`, or the search is to be along a sharded parameter, or
        that is to be `capturable`.

    Notes
    -----
    On O(d) a step costs O(d³): the gradient's projection, a matrix exponential, a product; every
    second step the point is put back on the manifold, which costs two products more. With `rank` it costs
    O(rank·d²): with the retraction "cayley" seven products of a d×d and a d×rank matrix and a factorization
    of d×rank; and the point is put back after 4d/rank steps, or √d/2 if that is less.
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
        rank: int | None = None,
        seed: int = 0,
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
            "rank": rank,
            "seed": seed,
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
        self._check_rank(group)

    @staticmethod
    def _check_rank(group: dict[str, Any]) -> None:
        """Raise ValueError or TypeError if `rank` is out of range, or meets what it does not go with."""
        rank = group["rank"]
        if rank is None:
            return
        if not isinstance(rank, int):
            raise TypeError(f"rank={rank!r}: expected an integer")
        if rank < 1:
            raise ValueError(f"rank={rank}: expected 1 or more")
        for name in ("momentum", "weight_decay", "scaling"):
            if group[name]:
                raise ValueError(
                    f"rank={rank} and {name}={group[name]}: what that adds to a gradient is not of low rank; "
                    "leave out one of the two"
                )

    def _check_parameter(self, group: dict[str, Any], p: Tensor) -> None:
        """Raise ValueError or TypeError if a parameter cannot be optimized."""
        manifold = manifold_of(p)
        if group["scaling"] is not None and not isinstance(manifold, CoordinateManifold | None):
            raise TypeError(
                f"{manifold} has no coordinates for scaling={group['scaling']} to act on; use a manifold "
                "of givens.manifolds, or momentum"
            )
        rank = group["rank"]
        known: frozenset[str] = getattr(manifold, "low_rank_maps", frozenset())
        if rank is not None and manifold is not None and group["map"] not in known:
            instead = " or ".join(f"map={name!r}" for name in sorted(known))
            raise TypeError(
                f"{manifold} has no steps of low rank by map={group['map']!r}, which rank={rank} asks for: "
                f"leave it out, or take {instead or 'a manifold of orthonormal columns'}"
            )
        super()._check_parameter(group, p)

    def _counts(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether the steps of a parameter are counted: sketches are drawn by their number."""
        sketched = group["rank"] is not None and manifold_of(p) is not None
        return sketched or super()._counts(group, p)

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
        manifold = manifold_of(p)
        if isinstance(manifold, CoordinateManifold) and not group["momentum"]:
            return self._prepare_gradient(number, group, p, grad, manifold)
        return self._prepare_tangent(group, p, grad, manifold or _UNCONSTRAINED)

    def _prepare_gradient(
        self,
        number: int,
        group: dict[str, Any],
        p: Tensor,
        grad: Tensor,
        manifold: CoordinateManifold,
    ) -> Update:
        """Prepare a step without momentum, for which nobody needs a tangent vector."""
        x = local(p)
        by_host = self._checked_by_host(group, p)
        left = step = None
        if group["rank"] is None:
            gradient = manifold.gradient(x, grad)
        else:
            step = self._steps(p)
            key, first = (group["seed"], step, number), first_point(p)[0]
            random = Randomness(*key, device=x.device, batch=x.shape[:-2], first=first)
            left, gradient = sketch(grad, group["rank"], random)

        def compute(_: Tensor | None, factor: float) -> Change:
            v, map = -(factor * group["lr"]) * gradient, group["map"]
            if left is None:
                new = manifold.follow(x, v, map=map)
            else:
                new = manifold.follow_low_rank(x, left, v, map=map)

            def move() -> None:
                # Factors that are not finite lead nowhere else, and have not the shape of a point.
                read = gradient if left is None else new
                admitted = None if by_host else self._guard.admit(read, new).all()
                x.copy_(new if admitted is None else torch.where(admitted, new, x))

            def keep() -> None:
                if step is not None:
                    self._count_step(p, step)

            def restore() -> None:
                period = manifold.restore_period(x)
                if left is None:
                    made = moves(All(), period)
                else:
                    made = low_rank_moves(left.shape[-1], x.shape[-1], period)
                self._restore(group, p, manifold, made)

            def slope() -> float:
                egrad = grad if left is None else left @ gradient.mH
                return -factor * float(group["lr"]) * inner(grad, manifold.egrad2rgrad(x, egrad))

            return Change(move, keep, restore, new if by_host else None, slope=slope)

        return Update(compute, gradient if by_host else None)

    def _prepare_tangent(
        self, group: dict[str, Any], p: Tensor, grad: Tensor, manifold: Manifold
    ) -> Update:
        """Prepare a step along a tangent vector, with momentum or on any manifold of geoopt."""
        x, state = local(p), ParameterState(self.state, p)
        by_host = self._checked_by_host(group, p)
        rgrad = manifold.egrad2rgrad(x, grad)

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
            if not group["momentum"]:
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
                if isinstance(manifold, CoordinateManifold):
                    made = moves(All(), manifold.restore_period(x))
                    self._restore(group, p, manifold, made)

            def slope() -> float:
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
