"""Selections that deal the axes into disjoint groups: matchings are groups of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..manifolds import CoordinateBlock, Groups
from ..manifolds.pairs import round_robin
from .gradient import GradientView
from .greedy import first_disjoint, greedy_groups, greedy_matching
from .rounds import Rounds
from .selection import Cyclic, GaussSouthwell, Rule, Uniform, check_ranking

__all__ = ["Grouping", "Matching"]

_ORDERS = ("random", "round-robin", "greedy")


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
    dtype : torch.dtype, optional
        Of ``"greedy"``: the type in which they are read, as in :class:`GaussSouthwell`. Those that the step
        follows are computed in the parameter's own.

    Raises
    ------
    ValueError
        If `size` or `order` is out of range, or a `dtype` has no use; at the step, if there are fewer axes.
    TypeError
        If `dtype` is no floating-point type.
    NotImplementedError
        At the step, on a geometry in which not every two axes have a coordinate, or with a `dtype` on one
        that reads its derivatives in the type of its points only.
    """

    size: int
    order: str = "random"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 2:
            raise ValueError(f"{self}: size must be a whole number, at least 2")
        _check_order(self, self.order, self.dtype)

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
            axes = greedy_groups(view.coupling(self.dtype), r)
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
    dtype : torch.dtype, optional
        Of ``"greedy"``: the type in which all derivatives are read, as in :class:`GaussSouthwell`.

    Raises
    ------
    ValueError
        If `order` is unknown, `rounds` is out of range, a `dtype` has no use, or there are several greedy
        rounds: of the pairs that the heaviest matching leaves there may be no other whole one. At the step,
        if there are fewer rounds.
    TypeError
        If `dtype` is no floating-point type.
    NotImplementedError
        At the step, with several rounds on a geometry in which not every two axes have a coordinate, or
        with a `dtype` on one that reads its derivatives in the type of its points only.

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
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        _check_order(self, self.order, self.dtype)
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
            view.check_read(self)
            rules: tuple[Rule, ...] = (Uniform(), Cyclic(), GaussSouthwell(self.dtype))
            rule = rules[_ORDERS.index(self.order)]
            return first_disjoint(view, rule.choose(view, view.num_coordinates), view.num_disjoint)
        d, m = view.num_axes, self.rounds
        if m > d - 1 + d % 2:
            raise ValueError(
                f"{self}: a tournament of the {d} axes of a point of shape {tuple(view.x.shape)} has "
                f"{d - 1 + d % 2} rounds"
            )
        if self.order == "greedy":
            pairs = greedy_matching(view.coupling(self.dtype)).unsqueeze(-3)
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


def _tournament(d: int, r: int, step: int | Tensor, device: torch.device) -> Tensor:
    """Groups made of two half groups each, which play a tournament, shape ``(⌊d/r⌋, r)``.

    For odd r each group takes one axis more of those that are left. After a whole tournament all axes
    move on by one, so that others rest.
    """
    n, half = d // r, r // 2
    rounds = max(1, 2 * n - 1)
    shift = step // rounds
    axes = (torch.arange(d, device=device) + shift) % d
    halves = axes[: 2 * n * half].unflatten(-1, (2 * n, half))
    pairs = round_robin(2 * n, torch.arange(1, device=device) + step % rounds)[0]
    groups = halves[pairs].flatten(-2)
    if r % 2:
        groups = torch.cat([groups, axes[2 * n * half :][:n].unsqueeze(-1)], -1)
    return groups


def _check_order(selection: object, order: str, dtype: torch.dtype | None) -> None:
    if order not in _ORDERS:
        raise ValueError(f"{selection}: order must be one of {', '.join(_ORDERS)}")
    if dtype is not None and order != "greedy":
        raise ValueError(f'{selection}: only the order "greedy" ranks, so leave out dtype')
    check_ranking(selection, dtype)
