"""Several rounds of disjoint groups in one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..manifolds import CoordinateBlock, CoordinateManifold, Groups

__all__ = ["Rounds", "derivatives", "group_coordinates", "move_", "step_scale", "together"]


@dataclass(frozen=True)
class Rounds:
    """Groups of axes that a step moves round after round, by the derivatives where it begins.

    Groups of one round are disjoint; those of different rounds share axes, and no two axes should
    meet twice in a step.

    Parameters
    ----------
    axes : Tensor
        int64 axes, shape ``(..., m, n, r)``: m rounds of n groups of r axes, ascending inside a group.
        Derivatives are those of m·n groups, in this order.
    """

    axes: Tensor

    def __iter__(self) -> Iterator[Groups]:
        return map(Groups, self.axes.unbind(-3))


def together(block: CoordinateBlock | Rounds) -> CoordinateBlock:
    """Return the block with its rounds side by side: what shapes and numbers are those of."""
    return Groups(block.axes.flatten(-3, -2)) if isinstance(block, Rounds) else block


def derivatives(
    manifold: CoordinateManifold, x: Tensor, egrad: Tensor, block: CoordinateBlock | Rounds
) -> Tensor:
    """Return the partial derivatives of a block, or of the rounds of one, all of them at x."""
    if isinstance(block, Rounds):
        return torch.cat([manifold.derivatives(x, egrad, groups) for groups in block], -3)
    return manifold.derivatives(x, egrad, block)


def step_scale(manifold: CoordinateManifold, x: Tensor, block: CoordinateBlock | Rounds) -> Tensor:
    """Return the step scale of a block, or those of the rounds of one."""
    if isinstance(block, Rounds):
        n, r = block.axes.shape[-2:]
        scales = [manifold.step_scale(x, groups) for groups in block]
        return torch.cat([scale.expand(*scale.shape[:-3], n, r, r) for scale in scales], -3)
    return manifold.step_scale(x, block)


def group_coordinates(manifold: CoordinateManifold, x: Tensor, block: Groups | Rounds) -> Tensor:
    """Return the numbers of the coordinates inside groups, or inside those of all rounds."""
    if isinstance(block, Rounds):
        return torch.cat([manifold.group_coordinates(x, groups) for groups in block], -2)
    return manifold.group_coordinates(x, block)


def move_(
    manifold: CoordinateManifold, x: Tensor, block: CoordinateBlock | Rounds, t: Tensor
) -> Tensor:
    """Follow a block for the times t, or its rounds one after the other, in place."""
    if not isinstance(block, Rounds):
        return manifold.move_(x, block, t)
    for groups, times in zip(block, t.split(block.axes.shape[-2], -3), strict=True):
        manifold.move_(x, groups, times)
    return x
