"""From the derivatives of a block to the times for which its coordinates are followed."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..manifolds import All, CoordinateBlock, CoordinateManifold, Coordinates, Groups
from .moments import Moments
from .scaling import Scaling

__all__ = ["Store", "nothing", "scaled", "times"]

# Puts what a scaling remembers of a step into the state: everywhere, or where a mask that broadcasts to
# the derivatives says so.
Store: TypeAlias = Callable[[Tensor | None], None]


def times(
    derivatives: Tensor,
    scale: Tensor,
    lr: float | Tensor,
    scaling: Scaling | None,
    *,
    manifold: CoordinateManifold,
    x: Tensor,
    block: CoordinateBlock,
    numbers: Tensor | None,
    state: MutableMapping[str, Any],
    step: int | Tensor,
) -> tuple[Tensor, Store]:
    """Return t_i = lr · ⟨grad f, f_i⟩/s_i, or what a scaling makes of it.

    A scaling sees the derivatives along unit directions, ⟨grad f, f_i⟩/√s_i, and what it returns is
    followed along unit directions, so that it does not matter how long the f_i are.

    Parameters
    ----------
    derivatives, scale : Tensor
        Derivatives of the block, and the manifold's step scale s_i.
    lr : float or Tensor
        Stepsize, with its sign.
    scaling : Scaling, optional
        The adaptive rule.
    manifold, x, block
        What the derivatives belong to.
    numbers : Tensor, optional
        For `Groups` and a scaling: the manifold's ``group_coordinates``.
    state : dict
        Memory of the scaling; changed by `store` alone.
    step : int or Tensor
        Number of steps that came before.

    Returns
    -------
    t : Tensor
        The shape of `derivatives`; 0 where the scale is 0, a coordinate that cannot move the point; NaN
        or infinite where the step, or what the scaling would remember of it, overflows.
    store : callable
        Puts into the state what the scaling remembers.
    """
    if scaling is None:
        return torch.where(scale > 0, lr * derivatives / scale, 0.0), nothing
    root = scale.sqrt()
    unit = torch.where(root > 0, derivatives / root, 0.0)
    batch = x.shape[: x.dim() - manifold.ndim]
    num_axes, total = manifold.num_axes(x), manifold.num_coordinates(x)
    values = unit
    if isinstance(block, All):
        index = torch.arange(total, device=x.device).expand(*batch, total)
    elif isinstance(block, Coordinates):
        index = block.index.expand(unit.shape)
    else:
        assert numbers is not None
        grouped = manifold.group_values(x, unit)
        values = grouped.flatten(-2)
        index = numbers.flatten(-2).expand(values.shape)
    moments = Moments(
        state,
        values,
        total,
        index=None if isinstance(block, All) else index,
        axes=lambda: manifold.axes(x, index),
        num_axes=num_axes,
        step=step,
    )
    direction = _direction(scaling, values, moments)

    def store(admitted: Tensor | None) -> None:
        if admitted is not None and isinstance(block, Groups):  # a group's matrix as its values
            admitted = admitted.squeeze(-1).expand(grouped.shape).flatten(-2)
        moments.store(admitted)

    if isinstance(block, Groups):
        direction = manifold.group_matrices(x, direction.view(grouped.shape), unit.shape[-1])
    return torch.where(root > 0, lr * direction / root, 0.0), store


def scaled(
    grad: Tensor,
    scaling: Scaling,
    *,
    state: MutableMapping[str, Any],
    step: int | Tensor,
) -> tuple[Tensor, Store]:
    """Return the direction of a parameter without a manifold, every entry a coordinate of its own.

    Of a complex one, real and imaginary parts, as in torch. With it comes, as in :func:`times`, what
    puts into the state what the scaling remembers.
    """
    if grad.is_complex():
        real = torch.view_as_real(grad.resolve_conj())
        direction, store = scaled(real, scaling, state=state, step=step)
        return torch.view_as_complex(direction), store
    flat = grad.reshape(-1)
    entries = torch.arange(flat.numel(), device=grad.device)
    moments = Moments(
        state,
        flat,
        flat.numel(),
        axes=lambda: entries.unsqueeze(-1),
        num_axes=flat.numel(),
        step=step,
    )
    return _direction(scaling, flat, moments).view(grad.shape), moments.store


def _direction(scaling: Scaling, derivatives: Tensor, moments: Moments) -> Tensor:
    """What a scaling makes of derivatives; NaN where it would remember what is not finite."""
    direction = scaling.scale(derivatives, moments)
    if direction.shape != derivatives.shape:
        raise ValueError(
            f"{scaling} returned a direction of shape {tuple(direction.shape)} for derivatives of shape "
            f"{tuple(derivatives.shape)}; it must have their shape"
        )
    return torch.where(moments.finite, direction, torch.nan)


def nothing(admitted: Tensor | None) -> None:
    """Store nothing: without a scaling nothing is remembered."""
