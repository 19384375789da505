"""Greedy choices: what is best first, then the best of what shares no axis with it, and so on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..manifolds import Coordinates, Groups
from ..manifolds.backend import readable
from ..manifolds.columns import take
from .gradient import GradientView

__all__ = ["first_disjoint", "greedy_groups", "greedy_matching", "heaviest_disjoint"]


def heaviest_disjoint(view: GradientView, k: int, dtype: torch.dtype | None) -> Coordinates:
    """Return the k coordinates with which the greedy matching of all axes begins, steepest first.

    What :func:`first_disjoint` finds in the ranking by steepness, without the ranking: of a geometry in which
    every two axes have one coordinate.
    """
    weight = view.coupling(dtype)
    pairs = greedy_matching(weight).sort(-1).values
    first, second = pairs.unbind(-1)
    size = weight.flatten(-2).gather(-1, first * weight.shape[-1] + second)
    size = size.nan_to_num(nan=torch.inf)
    index = view.manifold.group_coordinates(view.x, Groups(pairs)).squeeze(-1)
    index, order = index.sort(-1)  # of equally heavy ones the first
    place = size.gather(-1, order).sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return Coordinates(index.gather(-1, place), disjoint=True)


def first_disjoint(view: GradientView, ranking: Tensor, k: int) -> Coordinates:
    """Go through a ranking of all coordinates, and take the first k that share no axis."""
    place = _first_disjoint(view.manifold.axes(view.x, ranking), view.num_axes, k)
    return Coordinates(ranking.gather(-1, place), disjoint=True)


def _first_disjoint(axes: Tensor, num_axes: int, k: int) -> Tensor:
    """Go through a ranking and take what shares no axis with what was taken before.

    Parameters
    ----------
    axes : Tensor
        Axes of the ranked coordinates, shape ``(*batch, m, a)``.
    num_axes, k : int
        Number of axes, and how many to return.

    Returns
    -------
    Tensor
        Places in the ranking of the first k that are taken, ascending, shape ``(*batch, k)``.

    Notes
    -----
    Instead of one after the other, every round takes all candidates that come first on each of their
    axes; what it takes is what the sequential pass takes. About log m rounds of O(m) for a random
    ranking.
    """
    batch, (m, a) = axes.shape[:-2], axes.shape[-2:]
    place = torch.arange(m, device=axes.device).expand(*batch, m)
    flat = axes.flatten(-2)
    taken = torch.zeros(*batch, m, dtype=torch.bool, device=axes.device)
    alive = ~taken
    while True:
        candidate = torch.where(alive, place, m)
        # What is taken before the first candidate stays the beginning of the result.
        settled = taken & (place < candidate.amin(-1, keepdim=True))
        if bool((settled.sum(-1) >= k).all()):
            break
        if not bool(alive.any()):
            raise ValueError(
                f"there are not {k} coordinates that share none of the {num_axes} axes in every point: "
                "the manifold's num_disjoint promises too many"
            )
        first = torch.full((*batch, num_axes), m, device=axes.device).scatter_reduce(
            -1, flat, candidate.repeat_interleave(a, -1), "amin"
        )
        new = alive & (first.gather(-1, flat).unflatten(-1, (m, a)) == place.unsqueeze(-1)).all(-1)
        used = torch.zeros(*batch, num_axes, dtype=torch.int8, device=axes.device).scatter_reduce(
            -1, flat, new.to(torch.int8).repeat_interleave(a, -1), "amax"
        )
        taken |= new
        alive &= (used.gather(-1, flat).unflatten(-1, (m, a)) == 0).all(-1)
    return torch.where(taken, place, m).topk(k, dim=-1, largest=False, sorted=True).indices


def greedy_matching(weight: Tensor) -> Tensor:
    """Match the rows of a symmetric weight matrix, heaviest edge first.

    Every round matches the edges that are the heaviest at both of their ends, which are edges that the
    sequential algorithm takes, too (Preis, 1999).

    Parameters
    ----------
    weight : Tensor
        Symmetric, 0 or more, shape ``(*batch, d, d)``; the diagonal is ignored.

    Returns
    -------
    Tensor
        int64 pairs, shape ``(*batch, ⌊d/2⌋, 2)``. On the CPU their weight is at least half of the
        largest possible; on an accelerator the number of rounds is fixed.
    """
    d = weight.shape[-1]
    looks = readable(weight)
    weight = weight.nan_to_num(nan=torch.inf)
    weight.diagonal(dim1=-2, dim2=-1).fill_(-1.0)
    axis = torch.arange(d, device=weight.device).expand(weight.shape[:-1])  # that of a row
    partner = torch.full_like(axis, -1)
    free = partner < 0
    for _ in range(d // 2 if looks else 4 * d.bit_length()):
        # The first of equal ones is that of the first edge, by (smaller end, larger end), at both ends.
        candidate = weight.argmax(-1)
        mutual = candidate.gather(-1, candidate) == torch.arange(
            weight.shape[-1], device=axis.device
        )
        # What weighs nothing is paired in order below: sparse weights take few rounds.
        mutual &= free & (weight.gather(-1, candidate.unsqueeze(-1)).squeeze(-1) > 0)
        if looks and not bool(mutual.any()):
            break
        free = free & ~mutual
        found = torch.where(mutual, axis.gather(-1, candidate), partner.gather(-1, axis))
        partner = partner.scatter(-1, axis, found)
        weight.masked_fill_(mutual.unsqueeze(-2), -1.0)
        # Who looks goes on with the rows that are free, in their order: about half of them.
        left = int(free.sum(-1).amax()) if looks and free.numel() else d
        if left < 2:
            break
        if 2 * left <= weight.shape[-1]:
            kept = (~free).long().sort(dim=-1, stable=True).indices[..., :left]
            axis, free = axis.gather(-1, kept), free.gather(-1, kept)
            weight = take(take(weight.mT, kept).mT, kept)
    place = torch.arange(d, device=weight.device)
    free = partner < 0
    # Each pair by its smaller end; what is left is paired in order, the last of an odd d rests.
    first = torch.where(~free & (place < partner), place, d)
    matched = first.sort(-1).values[..., : d // 2]
    ends = torch.stack([matched, partner.gather(-1, matched.clamp(max=d - 1))], -1)
    rest = torch.where(free, place, d).sort(-1).values[..., : d // 2 * 2].unflatten(-1, (-1, 2))
    empty = matched == d
    order = (empty.long().cumsum(-1) - 1).clamp(min=0).unsqueeze(-1).expand_as(ends)
    return torch.where(empty.unsqueeze(-1), rest.gather(-2, order), ends)


def greedy_groups(weight: Tensor, r: int) -> Tensor:
    """Groups of r strongly coupled axes: clusters matched with clusters, then filled up.

    Greedy matchings of axes, then of pairs, then of fours, make clusters of the largest power of two in
    r; the ⌊d/r⌋ of them that are heaviest inside stay, and grow by the axes that are coupled to them most,
    one after the other.
    """
    d = weight.shape[-1]
    n = d // r
    place = torch.arange(d, device=weight.device)
    weight = weight.nan_to_num(nan=torch.inf).masked_fill(place == place.unsqueeze(-1), 0.0)
    groups = place.unsqueeze(-1).expand(*weight.shape[:-1], 1)
    between = weight
    while 2 * groups.shape[-1] <= r:
        pairs = greedy_matching(between)
        member = pairs.unsqueeze(-1).expand(*pairs.shape, groups.shape[-1])
        groups = groups.unsqueeze(-3).expand(*pairs.shape[:-1], *groups.shape[-2:])
        groups = groups.gather(-2, member).flatten(-2)
        for _ in range(2):  # the rows of both clusters of a pair add up, and the columns do
            ends = pairs.unsqueeze(-2).expand(*pairs.shape[:-1], between.shape[-1], 2)
            first, second = ends.unbind(-1)
            between = (between.gather(-2, first) + between.gather(-2, second)).mT
    heaviest = between.diagonal(dim1=-2, dim2=-1).topk(n, dim=-1).indices
    groups = groups.gather(-2, heaviest.unsqueeze(-1).expand(*heaviest.shape, groups.shape[-1]))
    taken = torch.zeros(weight.shape[:-1], dtype=torch.bool, device=weight.device)
    taken = taken.scatter(-1, groups.flatten(-2), True)
    for _ in range(r - groups.shape[-1]):
        chosen = []
        for group in groups.unbind(-2):
            coupled = weight.gather(-2, group.unsqueeze(-1).expand(*group.shape, d)).sum(-2)
            axis = coupled.masked_fill(taken, -1.0).argmax(-1, keepdim=True)
            taken = taken.scatter(-1, axis, True)
            chosen.append(axis)
        groups = torch.cat([groups, torch.stack(chosen, -2)], -1)
    return groups
