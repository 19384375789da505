"""The kinds of block a step moves along.

A selection names the coordinates of a step by returning one of these. The *type* tells a manifold
which arithmetic applies, so nothing has to be read back from an accelerator to choose it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = ["All", "CoordinateBlock", "Coordinates", "Groups", "once"]

T = TypeVar("T")


@dataclass(frozen=True)
class Coordinates:
    """Coordinates given by their numbers.

    Parameters
    ----------
    index : Tensor
        int64 numbers, shape ``(..., k)``; the leading dimensions are those of the batch of points
        (or broadcast to them). Derivatives and times have the same shape.
    disjoint : bool
        Whether no two of the coordinates share an axis, by construction. Then they commute and the
        move is a product of elementary ones; otherwise it is one dense exponential.
    """

    index: Tensor
    disjoint: bool
    _known: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Groups:
    """Disjoint groups of axes; the block is every coordinate inside a group.

    Parameters
    ----------
    axes : Tensor
        int64 axes, shape ``(..., n, r)``: n groups of r axes, ascending inside a group. Derivatives
        and times are skew matrices of shape ``(..., n, r, r)`` whose entry (a, b), a < b, belongs
        to the coordinate of the axes a and b of the group; on complex geometries skew-Hermitian ones,
        in which an entry belongs to several. A matching is r = 2.
    """

    axes: Tensor
    _known: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class All:
    """Every coordinate; derivatives and times have shape ``(..., D)``, in the order of the numbers."""


CoordinateBlock: TypeAlias = Coordinates | Groups | All


def once(block: Coordinates | Groups, key: tuple[Hashable, ...], make: Callable[[], T]) -> T:
    """What `make` returns, made once for a block: a step asks for its derivatives, then moves along it.

    Made again when something has written to the numbers.
    """
    numbers = block.index if isinstance(block, Coordinates) else block.axes
    if torch.compiler.is_compiling():  # a compiler finds out itself
        return make()
    if numbers.is_inference():  # which does not count what is written to it
        return make()
    key = (*key, numbers._version)
    if key not in block._known:
        block._known[key] = make()
    known: T = block._known[key]
    return known
