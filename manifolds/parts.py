"""Points that are made of parts: entries, the copies of a power, the factors of a product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .blocks import All, Coordinates, Groups

if TYPE_CHECKING:
    from .base import CoordinateManifold

__all__ = ["by_count", "items_of", "merge_couplings", "merge_steepest", "same_kind", "unravel"]


def by_count(part: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Deal items to the parts they belong to, parts with equally many items together.

    So items that are spread unevenly come in full tables, one for every number of items that a part
    has. Read by the host, which on an accelerator waits.

    Parameters
    ----------
    part : Tensor
        int64 number of the part of each item, shape ``(n,)``, in any order.

    Yields
    ------
    parts, places : Tensor
        Numbers of m parts that have c items each, shape ``(m,)``, and the places of these items in
        `part`, in their order there, shape ``(m, c)``.
    """
    order = part.argsort(stable=True)
    parts, counts = part[order].unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    for count in counts.unique().tolist():
        chosen = counts == count
        place = first[chosen].unsqueeze(-1) + torch.arange(count, device=part.device)
        yield parts[chosen], order[place]


def merge_steepest(
    index: Tensor, derivatives: Tensor, scale: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the k steepest of candidates: the largest ``|⟨grad f, f_i⟩|/√s_i``, NaN first.

    Parameters
    ----------
    index, derivatives, scale : Tensor
        Numbers of the candidates, the derivatives along them, shape ``(*batch, n)``, and their step
        scales, broadcastable to it.
    k : int
        How many, at most n.

    Returns
    -------
    index, derivatives : Tensor
        Shape ``(*batch, k)``, steepest first.
    """
    slope = torch.where(scale > 0, derivatives.abs() / scale.sqrt(), 0.0)
    best = slope.topk(k, dim=-1).indices
    return index.gather(-1, best), derivatives.gather(-1, best)


def merge_couplings(manifold: CoordinateManifold, x: Tensor, derivatives: Tensor) -> Tensor:
    """Return how strongly every two axes are coupled: √(Σ ⟨grad f, f_i⟩²/s_i) over their coordinates.

    Parameters
    ----------
    manifold : CoordinateManifold
        The geometry.
    x, derivatives : Tensor
        Points, and the derivatives along all coordinates, shape ``(*batch, D)``.

    Returns
    -------
    Tensor
        Shape ``(*batch, d, d)`` for d axes.
    """
    d, scale = manifold.num_axes(x), manifold.step_scale(x, All())
    axes = manifold.axes(x, torch.arange(derivatives.shape[-1], device=x.device))
    square = torch.where(scale > 0, derivatives.square() / scale, 0.0)
    first, second = axes[..., 0], axes[..., -1]  # of a coordinate of one axis the same
    weight = square.new_zeros(*square.shape[:-1], d * d)
    for place in (first * d + second, second * d + first):
        weight.scatter_add_(-1, place.expand(square.shape), square)
    return weight.unflatten(-1, (d, d)).sqrt()


def items_of(
    batch: tuple[int, ...], block: Coordinates | Groups
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the coordinates or groups of a block, with a batch, and that of the derivatives of one."""
    if isinstance(block, Coordinates):
        return (*batch, block.index.shape[-1]), ()
    n, r = block.axes.shape[-2:]
    return (*batch, n), (r, r)


def same_kind(block: Coordinates | Groups, numbers: Tensor) -> Coordinates | Groups:
    """Block of the kind of another, with other coordinates or axes."""
    if isinstance(block, Coordinates):
        return Coordinates(numbers, block.disjoint)
    return Groups(numbers)


def unravel(number: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Index of the entry with a number, in row-major order.

    ``torch.unravel_index``, except that it does not wait for an accelerator.
    """
    index: list[Tensor] = []
    for n in reversed(shape):
        index.append(number % n)
        number = number // n
    return tuple(reversed(index))
