"""Selections that deal the axes into disjoint groups: matchings are groups of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..manifolds import All, CoordinateBlock, Groups
from ..manifolds.pairs import round_robin
from .gradient import GradientView
from .rounds import Rounds
from .selection import Cyclic, GaussSouthwell, Rule, Uniform, first_disjoint

__all__ = ["Grouping", "Matching"]

# The orders, and what ranks the coordinates where not every two axes have one.
_RULES: dict[str, Rule] = {
    "random": Uniform(),
    "round-robin": Cyclic(),
    "greedy": GaussSouthwell(),
}


@dataclass(frozen=True)
class Grouping:
    """The axes dealt into groups of `size`; every coordinate inside a group moves.

    Between one pair of axes and all of them: groups of 2 are a matching, one group of all d axes is the
    whole gradient. On O(d) a step costs 2·r·d² flops for the derivatives and 4·r·d² for the move,
    by batched exponentials of r×r matrices. The d mod r axes that fill no group rest.

    Parameters
    ----------
    size : int
        Number r of axes in a group, at least 2; at most the number of axes, at the step.
    order : {"random", "round-robin", "greedy"}
        How they are dealt. ``"random"``: uniformly, afresh at every step. ``"round-robin"``: by a tournament
        of half groups, so that in the course of the steps every two axes meet. ``"greedy"``: axes
        that are coupled strongly, by ``|⟨grad f, f_i⟩|/√s_i``, come together; this reads all
        derivatives.

    Raises
    ------
    ValueError
        If `size` or `order` is out of range; at the step, if there are fewer axes.
    NotImplementedError
        At the step, on a geometry in which not every two axes have a coordinate.
    """

    size: int
    order: str = "random"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 2:
            raise ValueError(f"{self}: size must be a whole number, at least 2")
        _check_order(self, self.order)

    def select(self, view: GradientView) -> Groups:
        """Deal the axes."""
        d, r = view.num_axes, self.size
        if not view.manifold.every_pair:
            raise NotImplementedError(
                f"{self}: on {view.manifold.name} not every two axes have a coordinate; use Matching() or "
                "Block(size=…, disjoint=True)"
            )
        if d < r:
            raise ValueError(
                f"{self} needs {r} axes; a point of shape {tuple(view.x.shape)} has {d}"
            )
        n = d // r
        if self.order == "random":
            axes = view.random.distinct(d, n * r, *view.batch).unflatten(-1, (n, r))
        elif self.order == "round-robin":
            axes = _tournament(d, r, view.step, view.x.device).expand(*view.batch, n, r)
        else:
            axes = _greedy_groups(_coupling(view), r)
        return Groups(axes.sort(-1).values)


@dataclass(frozen=True)
class Matching:
    """⌊d/2⌋ disjoint pairs of axes: on O(d) so many rotations, O(d²) a step; or several such rounds.

    Parameters
    ----------
    order : {"random", "round-robin", "greedy"}
        Which pairs. ``"random"``: a uniformly random matching, afresh at every step, O(d log d) to draw.
        ``"round-robin"``: the rounds of a tournament, in which every two axes meet once in d − 1 rounds
        (d where d is odd). ``"greedy"``: the pair of largest ``|⟨grad f, f_i⟩|/√s_i`` first, then the
        largest that shares no axis with it, and so on, which gets at least half of the largest sum
        that a matching can have; this reads all derivatives.
    rounds : int
        How many matchings a step follows, one after the other, by the derivatives where it begins:
        O(rounds·d²). No pair is in two of them: there are at most d − 1 (d for odd d), and then every
        coordinate moves. At random they are rounds of one tournament whose axes are dealt at random, and
        each of them is a uniformly random matching.

    Raises
    ------
    ValueError
        If `order` is unknown, `rounds` is out of range, or there are several greedy ones: of the pairs that
        the heaviest matching leaves there may be no other whole one. At the step, if there are fewer rounds.
    NotImplementedError
        At the step, with several rounds on a geometry in which not every two axes have a coordinate.

    Notes
    -----
    On a geometry in which not every two axes have a coordinate, such as a product, it is as many
    disjoint coordinates as there are, from a random ranking, from one that moves on by one a step, or
    from the greedy one: all coordinates are ranked then.

    On an accelerator the greedy choice does not wait for the device. It runs a number of rounds that is
    logarithmic in d, which for weights in no particular order is enough; axes that are left then are
    paired as they come.
    """

    order: str = "random"
    rounds: int = 1

    def __post_init__(self) -> None:
        _check_order(self, self.order)
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"{self}: rounds must be a whole number, at least 1")
        if self.rounds > 1 and self.order == "greedy":
            raise ValueError(
                f"{self}: what the heaviest matching leaves may hold no whole one. Take one round, "
                'Grouping(size, "greedy"), or another order'
            )

    def select(self, view: GradientView) -> CoordinateBlock | Rounds:
        """Pair the axes."""
        if not view.manifold.every_pair:
            if self.rounds > 1:
                raise NotImplementedError(
                    f"{self}: on {view.manifold.name} not every two axes have a coordinate; use Matching()"
                )
            rule = _RULES[self.order]
            return first_disjoint(view, rule.choose(view, view.num_coordinates), view.num_disjoint)
        d, m = view.num_axes, self.rounds
        if m > d - 1 + d % 2:
            raise ValueError(
                f"{self}: a tournament of the {d} axes of a point of shape {tuple(view.x.shape)} has "
                f"{d - 1 + d % 2} rounds"
            )
        if self.order == "greedy":
            pairs = greedy_matching(_coupling(view)).unsqueeze(-3)
        elif self.order == "random" and m == 1:
            dealt = view.random.distinct(d, d // 2 * 2, *view.batch)
            pairs = dealt.unflatten(-1, (1, d // 2, 2))
        elif self.order == "random":
            dealt = view.random.distinct(d, d, *view.batch)
            pairs = dealt[..., round_robin(d, torch.arange(m, device=view.x.device))]
        else:
            rounds = torch.arange(m, device=view.x.device) + m * view.step
            pairs = round_robin(d, rounds).expand(*view.batch, m, d // 2, 2)
        pairs = pairs.sort(-1).values
        return Groups(pairs.squeeze(-3)) if m == 1 else Rounds(pairs)


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
    place = torch.arange(d, device=weight.device)
    weight = weight.nan_to_num(nan=torch.inf)
    weight.diagonal(dim1=-2, dim2=-1).fill_(-1.0)
    partner = torch.full(weight.shape[:-1], -1, dtype=torch.int64, device=weight.device)
    rounds = d // 2 if weight.device.type == "cpu" else 4 * d.bit_length()
    free = partner < 0
    for _ in range(rounds):
        # The first of equal ones is that of the first edge, by (smaller end, larger end), at both ends.
        candidate = weight.argmax(-1)
        mutual = candidate.gather(-1, candidate) == place
        # What weighs nothing is paired in order below: sparse weights take few rounds.
        mutual &= free & (weight.gather(-1, candidate.unsqueeze(-1)).squeeze(-1) > 0)
        if weight.device.type == "cpu" and not bool(mutual.any()):
            break
        partner = torch.where(mutual, candidate, partner)
        free = partner < 0
        weight.masked_fill_(mutual.unsqueeze(-2), -1.0)
    # Each pair by its smaller end; what is left is paired in order, the last of an odd d rests.
    first = torch.where(~free & (place < partner), place, d)
    matched = first.sort(-1).values[..., : d // 2]
    ends = torch.stack([matched, partner.gather(-1, matched.clamp(max=d - 1))], -1)
    rest = torch.where(free, place, d).sort(-1).values[..., : d // 2 * 2].unflatten(-1, (-1, 2))
    empty = matched == d
    order = (empty.long().cumsum(-1) - 1).clamp(min=0).unsqueeze(-1).expand_as(ends)
    return torch.where(empty.unsqueeze(-1), rest.gather(-2, order), ends)


def _greedy_groups(weight: Tensor, r: int) -> Tensor:
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


def _tournament(d: int, r: int, step: int, device: torch.device) -> Tensor:
    """Groups made of two half groups each, which play a tournament, shape ``(⌊d/r⌋, r)``.

    For odd r each group takes one axis more of those that are left. After a whole tournament all axes
    move on by one, so that others rest.
    """
    n, half = d // r, r // 2
    rounds = max(1, 2 * n - 1)
    shift = step // rounds
    axes = (torch.arange(d, device=device) + shift) % d
    halves = axes[: 2 * n * half].unflatten(-1, (2 * n, half))
    pairs = round_robin(2 * n, torch.tensor([step % rounds], device=device))[0]
    groups = halves[pairs].flatten(-2)
    if r % 2:
        groups = torch.cat([groups, axes[2 * n * half :][:n].unsqueeze(-1)], -1)
    return groups


def _coupling(view: GradientView) -> Tensor:
    """Weight of every two axes: the root of Σ ⟨grad f, f_i⟩²/s_i over the coordinates that turn both."""
    d, total = view.num_axes, view.num_coordinates
    scale = view.manifold.step_scale(view.x, All())
    square = view.derivatives(All()).square() / scale
    square = torch.where(scale > 0, square, 0.0)
    first, second = view.manifold.axes(view.x, torch.arange(total, device=view.x.device)).unbind(-1)
    weight = square.new_zeros(*view.batch, d * d)
    for place in (first * d + second, second * d + first):
        weight.scatter_add_(-1, place.expand(square.shape), square)
    return weight.unflatten(-1, (d, d)).sqrt()


def _check_order(selection: object, order: str) -> None:
    if order not in _RULES:
        raise ValueError(f"{selection}: order must be one of {', '.join(_RULES)}")
