"""From the derivatives of a block to the times for which its coordinates are followed."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from ..manifolds import All, CoordinateBlock, CoordinateManifold, Coordinates
from .moments import Moments
from .scaling import Scaling

__all__ = ["scaled", "times"]


def times(
    derivatives: Tensor,
    scale: Tensor,
    lr: float | Tensor,
    scaling: Scaling | None,
    *,
    manifold: CoordinateManifold,
    x: Tensor,
    block: CoordinateBlock,
    state: MutableMapping[str, Any],
    step: int,
    admitted: Tensor | None = None,
) -> Tensor:
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
    state : dict
        Memory of the scaling; changed.
    step : int
        Number of steps that came before.
    admitted : Tensor, optional
        Where the memory may change, broadcastable to `derivatives`.

    Returns
    -------
    Tensor
        The shape of `derivatives`; 0 where the scale is 0, a coordinate that cannot move the point.
    """
    if scaling is None:
        return torch.where(scale > 0, lr * derivatives / scale, 0.0)
    root = scale.sqrt()
    unit = torch.where(root > 0, derivatives / root, 0.0)
    batch = x.shape[: x.dim() - manifold.ndim]
    num_axes, total = manifold.num_axes(x), manifold.num_coordinates(x)
    if isinstance(block, All):
        every = torch.arange(total, device=x.device).expand(*batch, total)
        moments = Moments(
            state,
            unit,
            total,
            axes=lambda: manifold.axes(x, every),
            num_axes=num_axes,
            step=step,
            admitted=admitted,
        )
        direction = scaling.scale(unit, moments)
    else:
        if isinstance(block, Coordinates):
            index = block.index.expand(unit.shape)
            values, allowed = unit, admitted
        else:
            # The entries above the diagonal stand for the coordinates.
            index = manifold.group_coordinates(x, block).flatten(-2)
            r = unit.shape[-1]
            j, l = torch.triu_indices(r, r, offset=1, device=x.device)
            values = unit[..., j, l].flatten(-2)
            index = index.expand(values.shape)
            allowed = None
            if admitted is not None:
                allowed = admitted.expand(unit.shape)[..., j, l].flatten(-2)
        moments = Moments(
            state,
            values,
            total,
            index=index,
            axes=lambda: manifold.axes(x, index),
            num_axes=num_axes,
            step=step,
            admitted=allowed,
        )
        direction = scaling.scale(values, moments)
        if not isinstance(block, Coordinates):
            upper = torch.zeros_like(unit)
            upper[..., j, l] = direction.unflatten(-1, (unit.shape[-3], -1))
            direction = upper - upper.mT
    return torch.where(root > 0, lr * direction / root, 0.0)


def scaled(
    grad: Tensor,
    scaling: Scaling,
    *,
    state: MutableMapping[str, Any],
    step: int,
    admitted: Tensor | None = None,
) -> Tensor:
    """Return the direction of a parameter without a manifold, every entry a coordinate of its own."""
    flat = grad.reshape(-1)
    entries = torch.arange(flat.numel(), device=grad.device)
    moments = Moments(
        state,
        flat,
        flat.numel(),
        axes=lambda: entries.unsqueeze(-1),
        num_axes=flat.numel(),
        step=step,
        admitted=admitted,
    )
    return scaling.scale(flat, moments).view(grad.shape)
