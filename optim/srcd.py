"""Stochastic Riemannian coordinate descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..manifolds import CoordinateManifold
from ..manifolds.shards import first_point, local
from .base import ManifoldOptimizer
from .gradient import GradientView
from .line_search import LineSearch
from .parameters import manifold_of
from .scaling import Scaling
from .selection import Selection, Uniform
from .update import Update

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["SRCD"]


class SRCD(ManifoldOptimizer):
    """Stochastic Riemannian coordinate descent: the paper's Algorithm 2.

    Moves a :class:`geoopt.ManifoldParameter` along the coordinates that a selection chooses, for the
    times t_i = −lr · ⟨grad f, f_i⟩/s_i, where s_i is the manifold's ``step_scale``. On O(d) it is 1,
    and a coordinate is a rotation of two columns, so that a step along one costs O(d). A parameter
    without a manifold gets stochastic gradient descent, as in the paper.

    Parameters
    ----------
    params : iterable
        Parameters, or parameter groups, each of which may have its own `lr` and `selection`.
    lr : float
        Stepsize, 0 or more.
    selection : Selection
        Which coordinates a step moves along: :class:`Uniform` (default), :class:`Cyclic`,
        :class:`GaussSouthwell`, :class:`Block`, :class:`Matching`, :class:`Grouping`,
        :class:`Growing`, :class:`Capture`, or any object with a method ``select(view)``.
    scaling : Scaling, optional
        How far it moves along each: :class:`Momentum`, :class:`RMSProp`, :class:`Adam`,
        :class:`AxisRMSProp`, or any object with a method ``scale(derivatives, moments)``. On a
        parameter without a manifold they are torch's own. By default the derivatives themselves.
    line_search : LineSearch, optional
        How much of a step is taken: :class:`Armijo`, :class:`Trigonometric`, or any object with a method
        ``search(line)``, for ``step(closure)``. Without one the stepsize is `lr`.
    maximize : bool
        Ascend instead of descend.
    seed : int
        Seed of the selection's random choices, which are a function of (seed, step, parameter number)
        alone: the same on every rank of a distributed run.
    strict : bool
        On an accelerator: check every derivative before the step, which waits for the device.
    capturable : bool
        Whether steps may be recorded, in a CUDA graph, to be repeated. The number of the step is then
        on the device; what is not finite stops it as on an accelerator; and rounding is taken away by
        :meth:`restore`, which is to be called after every step, or every few.
    process_group : ProcessGroup, optional
        The processes of a data-parallel run, where the gradients of manifold parameters are each process's
        own (:func:`givens.optim.distributed.leave_out_of_ddp`): a step averages what it reads
        of them, the derivatives along the selected coordinates, or the whole gradient where the selection
        looks at all of it. By default gradients are taken to be the same everywhere, as DDP leaves them.

    Raises
    ------
    ValueError
        If an option is out of range, a parameter does not lie on its manifold, or `capturable` meets
        `strict`, a line search or an `lr` on another device.
    TypeError
        If a manifold has no coordinates (geoopt's have none), `selection` is no selection, `scaling` no
        scaling or `line_search` no line search, or it is to search along a sharded parameter, or that is
        to be `capturable`.

    Notes
    -----
    Rounding is taken away after as many coordinate moves as a manifold's ``restore_period`` says, on
    O(d) after d²/2, which is 8d flops a move (a group of r axes, r > 2, counts as r² of them); where a
    step reads the derivatives along all coordinates, after 8 steps (4 with groups), and where it is a
    dense exponential, after 2.

    Examples
    --------
    >>> import torch
    >>> from geoopt import ManifoldParameter
    >>> from givens.manifolds import OrthogonalGroup
    >>> from givens.optim import SRCD, Cyclic
    >>> manifold = OrthogonalGroup()
    >>> target = manifold.random(4, 4, det=1)
    >>> w = ManifoldParameter(torch.eye(4), manifold=manifold)
    >>> optimizer = SRCD([w], lr=0.5, selection=Cyclic())
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     loss = (w - target).square().sum()
    ...     loss.backward()
    ...     loss = optimizer.step()
    >>> bool((w - target).abs().max() < 1e-3)
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        selection: Selection | None = None,
        scaling: Scaling | None = None,
        *,
        line_search: LineSearch | None = None,
        maximize: bool = False,
        seed: int = 0,
        strict: bool = False,
        capturable: bool = False,
        process_group: ProcessGroup | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "selection": Uniform() if selection is None else selection,
            "scaling": scaling,
            "line_search": line_search,
            "maximize": maximize,
            "seed": seed,
        }
        super().__init__(
            params, defaults, strict=strict, capturable=capturable, process_group=process_group
        )

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError or TypeError if the options of a group are out of range."""
        super()._check_options(group)
        if isinstance(group["selection"], type) or not isinstance(group["selection"], Selection):
            raise TypeError(
                f"selection={group['selection']!r}: expected an object with a method select(view), "
                "such as Uniform() or Block(fraction=0.005)"
            )

    def _check_parameter(self, group: dict[str, Any], p: Tensor) -> None:
        """Raise ValueError or TypeError if a parameter cannot be optimized."""
        manifold = manifold_of(p)
        if manifold is not None and not isinstance(manifold, CoordinateManifold):
            raise TypeError(
                f"{manifold} has no coordinates, which SRCD needs; use a manifold of givens.manifolds, "
                "or SRGD, which takes any"
            )
        super()._check_parameter(group, p)

    def _counts(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether the steps of a parameter are counted: selections ask for their number."""
        return manifold_of(p) is not None or super()._counts(group, p)

    def _prepare(self, number: int, group: dict[str, Any], p: Tensor, grad: Tensor) -> Update:
        """Select the block, and compute its derivatives."""
        manifold = manifold_of(p)
        lr = group["lr"] if group["maximize"] else -group["lr"]
        if manifold is None:
            return self._prepare_unconstrained(group, p, grad, lr)

        view = GradientView(
            manifold,
            local(p),
            grad,
            seed=group["seed"],
            step=self._steps(p),
            number=number,
            first=first_point(p)[0],
            average=self._replicas.average if self._averages(p) and self._replicas else None,
        )
        block = group["selection"].select(view)
        return self._prepare_block(
            group,
            p,
            view.egrad if view.shared else grad,
            manifold,
            block,
            lr,
            lambda: view.own_derivatives(block),
            own=not view.shared,
            ranked=view.ranked,
        )
