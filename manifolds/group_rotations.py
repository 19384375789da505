"""Rotations of disjoint groups of columns: the arithmetic of a derivative and of a move."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .backend import kernels_for
from .columns import panels, put_, take_groups

__all__ = ["group_slopes", "turn_groups_"]


def group_slopes(x: Tensor, g: Tensor, axes: Tensor) -> Tensor:
    """Return XᵀG − GᵀX for groups of columns X of `x` and G of `g`: how a function with the gradient g rises.

    Parameters
    ----------
    x, g : Tensor
        Shape ``(..., m, d)``.
    axes : Tensor
        int64 columns, shape ``(..., n, r)`` with the leading dimensions of `x`.

    Returns
    -------
    Tensor
        Skew, shape ``(..., n, r, r)``. Costs 2·n·r²·m flops, in panels of bounded memory.
    """
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return _group_slopes_opaquely(x, g, axes)
    if (kernels := kernels_for(x, g, group=axes.shape[-1])) is not None:
        return cast(Tensor, kernels.group_slopes(x, g, axes))
    n, r = axes.shape[-2:]
    a = x.new_zeros(*axes.shape, r)
    for rows, groups in panels(x, n, r):
        part = axes[..., groups, :]
        columns = take_groups(x[..., rows, :], part)
        a[..., groups, :, :] += columns.mT @ take_groups(g[..., rows, :], part)
    return a - a.mT


def turn_groups_(x: Tensor, axes: Tensor, increments: Tensor) -> Tensor:
    """Turn groups of columns, X ← X + X·E, in place.

    Parameters
    ----------
    x : Tensor
        Shape ``(..., m, d)``, any strides; changed in place.
    axes : Tensor
        int64 columns, shape ``(..., n, r)`` with the leading dimensions of `x`; none twice.
    increments : Tensor
        E, what the turns differ from I by, shape ``(..., n, r, r)``.

    Returns
    -------
    Tensor
        `x`. Costs 2·n·r²·m flops.
    """
    if torch.compiler.is_compiling():
        _turn_groups_opaquely_(x, axes, increments)
        return x
    if (kernels := kernels_for(x, group=axes.shape[-1])) is not None:
        kernels.turn_groups_(x, axes, increments)
        return x
    for rows, groups in panels(x, *axes.shape[-2:]):
        part = axes[..., groups, :]
        columns = take_groups(x[..., rows, :], part)
        columns = columns + columns @ increments[..., groups, :, :]
        put_(x[..., rows, :], part.flatten(-2), columns.transpose(-3, -2).flatten(-2))
    return x


# A compiler is to leave both as they are: of panels it would make one long program.


@torch.library.custom_op(
    "givens::group_slopes", mutates_args=(), schema="(Tensor x, Tensor g, Tensor axes) -> Tensor"
)
def _group_slopes_opaquely(x: Tensor, g: Tensor, axes: Tensor) -> Tensor:
    return group_slopes(x, g, axes)


@_group_slopes_opaquely.register_fake
def _(x: Tensor, g: Tensor, axes: Tensor) -> Tensor:
    return x.new_empty(*axes.shape, axes.shape[-1])


@torch.library.custom_op(
    "givens::turn_groups_",
    mutates_args={"x"},
    schema="(Tensor(a!) x, Tensor axes, Tensor increments) -> ()",
)
def _turn_groups_opaquely_(x: Tensor, axes: Tensor, increments: Tensor) -> None:
    turn_groups_(x, axes, increments)
