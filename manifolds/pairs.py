"""Pairs of axes and their numbers.

The pairs (j, l), 0 <= j < l < d, are numbered along the rows of the strict upper triangle, which is
the order of the paper (below its equation (4)), less one:
(0, 1), (0, 2), …, (0, d − 1), (1, 2), …, (d − 2, d − 1). Where single axes count, too, they come after
the pairs, as (0, 0), …, (d − 1, d − 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["entry_to_number", "number_to_entry", "number_to_pair", "pair_to_number", "round_robin"]


def pair_to_number(j: Tensor, l: Tensor, d: int) -> Tensor:
    """Number of the pair (j, l).

    Parameters
    ----------
    j, l : Tensor
        int64 axes with 0 <= j < l < d, of the same shape.
    d : int
        Number of axes.

    Returns
    -------
    Tensor
        i = j·d − j(j + 1)/2 + (l − j − 1), the shape of `j`.
    """
    return (j * (2 * d - 3 - j) >> 1) + l - 1


def number_to_pair(index: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Pair (j, l) with the number `index`; the inverse of :func:`pair_to_number`.

    Exact for every d up to 65,536: the row j is the floor of a root whose discriminant is an integer
    below 2³⁵. At the start of a row it is a perfect square, so float64 takes the root exactly;
    elsewhere the value is farther than 10⁻⁵ from the next integer, far above float64's rounding.

    Parameters
    ----------
    index : Tensor
        int64 numbers in [0, d(d − 1)/2), any shape.
    d : int
        Number of axes.

    Returns
    -------
    tuple of Tensor
        j and l, of the shape of `index`.
    """
    b = 2 * d - 1
    j = ((b - (b * b - 8 * index).double().sqrt()) / 2).long()
    return j, index + 1 - (j * (2 * d - 3 - j) >> 1)


def entry_to_number(j: Tensor, l: Tensor, d: int) -> Tensor:
    """Number of the pair (j, l) or, for j = l, of the single axis, d(d − 1)/2 + j.

    Parameters
    ----------
    j, l : Tensor
        int64 axes with 0 <= j <= l < d, of the same shape.
    d : int
        Number of axes.

    Returns
    -------
    Tensor
        Numbers in [0, d(d + 1)/2), the shape of `j`.
    """
    return torch.where(j == l, d * (d - 1) // 2 + j, pair_to_number(j, l, d))


def number_to_entry(index: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Pair, or single axis twice, with the number `index`; the inverse of :func:`entry_to_number`.

    Parameters
    ----------
    index : Tensor
        int64 numbers in [0, d(d + 1)/2), any shape.
    d : int
        Number of axes.

    Returns
    -------
    tuple of Tensor
        j and l, j <= l, of the shape of `index`.
    """
    pairs = d * (d - 1) // 2
    single = index >= pairs
    j, l = number_to_pair(torch.where(single, 0, index), d)
    return torch.where(single, index - pairs, j), torch.where(single, index - pairs, l)


def round_robin(
    d: int, rounds: Tensor | None = None, *, device: torch.device | None = None
) -> Tensor:
    """Tournament of d axes: every pair meets once, in rounds of disjoint pairs (circle method).

    Parameters
    ----------
    d : int
        Number of axes, at least 2.
    rounds : Tensor, optional
        int64 numbers of the rounds that are wanted, shape ``(m,)``, taken modulo the number of rounds: d − 1
        for even d, d (in each of which one axis rests) for odd d. By default all of them in order.
    device : torch.device, optional
        Where the result lives, if `rounds` is not given.

    Returns
    -------
    Tensor
        int64 pairs (j, l), j < l, of shape ``(m, ⌊d/2⌋, 2)``.
    """
    n = d + d % 2  # odd d: one axis more, whose opponent rests
    if rounds is None:
        rounds = torch.arange(n - 1, device=device)
    rounds = (rounds % (n - 1)).unsqueeze(-1)
    offset = torch.arange(1, n // 2, device=rounds.device)
    first = (rounds + offset) % (n - 1)
    second = (rounds - offset) % (n - 1)
    if n == d:
        first = torch.cat([rounds, first], dim=-1)
        second = torch.cat([torch.full_like(rounds, n - 1), second], dim=-1)
    return torch.stack([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)
