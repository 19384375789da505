"""From the derivatives of a block to the times for which its coordinates are followed."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from ..manifolds import All, CoordinateBlock, CoordinateManifold, Coordinates, Groups
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
    numbers: Tensor | None,
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
    numbers : Tensor, optional
        For `Groups` and a scaling: the manifold's ``group_coordinates``.
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
    values, allowed = unit, admitted
    if isinstance(block, All):
        index = torch.arange(total, device=x.device).expand(*batch, total)
    elif isinstance(block, Coordinates):
        index = block.index.expand(unit.shape)
    else:
        assert numbers is not None
        grouped = manifold.group_values(x, unit)
        values = grouped.flatten(-2)
        index = numbers.flatten(-2).expand(values.shape)
        if admitted is not None:
            allowed = admitted.squeeze(-1).expand(grouped.shape).flatten(-2)
    moments = Moments(
        state,
        values,
        total,
        index=None if isinstance(block, All) else index,
        axes=lambda: manifold.axes(x, index),
        num_axes=num_axes,
        step=step,
        admitted=allowed,
    )
    direction = scaling.scale(values, moments)
    if isinstance(block, Groups):
        direction = manifold.group_matrices(x, direction.view(grouped.shape), unit.shape[-1])
    return torch.where(root > 0, lr * direction / root, 0.0)


def scaled(
    grad: Tensor,
    scaling: Scaling,
    *,
    state: MutableMapping[str, Any],
    step: int,
    admitted: Tensor | None = None,
) -> Tensor:
    """Return the direction of a parameter without a manifold, every entry a coordinate of its own.

    Of a complex one, real and imaginary parts, as in torch.
    """
    if grad.is_complex():
        real = torch.view_as_real(grad.resolve_conj())
        real = scaled(real, scaling, state=state, step=step, admitted=admitted)
        return torch.view_as_complex(real)
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
