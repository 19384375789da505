"""Selections: which coordinates a step of SRCD moves along.

A selection is an object with one method, :meth:`Selection.select`. Those that are here hold their
settings and nothing else (step counts and seeds belong to the optimizer), so they can be shared,
compared, copied and printed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..manifolds import CoordinateBlock, Coordinates
from .gradient import GradientView
from .greedy import first_disjoint, heaviest_disjoint
from .rounds import Rounds

__all__ = ["Block", "Cyclic", "GaussSouthwell", "Rule", "Selection", "Uniform"]


@runtime_checkable
class Selection(Protocol):
    """Anything that chooses the block of a step."""

    def select(self, view: GradientView) -> CoordinateBlock | Rounds:
        """Choose a block from what the view shows; read from it no more than needed."""
        ...


@runtime_checkable
class Rule(Protocol):
    """Anything that puts coordinates in an order, of which :class:`Block` takes the first."""

    def choose(self, view: GradientView, k: int) -> Tensor:
        """Return the numbers of k distinct coordinates, first choice first, shape ``(*batch, k)``."""
        ...


class _One:
    """Selection of the one coordinate that a rule puts first."""

    def select(self: Rule, view: GradientView) -> CoordinateBlock:
        """Choose one coordinate."""
        return Coordinates(self.choose(view, 1), disjoint=True)


@dataclass(frozen=True)
class Uniform(_One):
    """One coordinate, uniformly at random: the paper's SRCD-U, for which its Theorem 1 holds.

    Reads one partial derivative, so a step costs what one move costs: O(d) on the orthogonal group.
    """

    def choose(self, view: GradientView, k: int) -> Tensor:
        """Draw k distinct coordinates."""
        if k == 1:
            return view.random.integers(view.num_coordinates, *view.batch, 1)
        return view.random.distinct(view.num_coordinates, k, *view.batch)


@dataclass(frozen=True)
class Cyclic(_One):
    """One coordinate after the other, in the order of their numbers."""

    def choose(self, view: GradientView, k: int) -> Tensor:
        """Take the next k coordinates."""
        total = view.num_coordinates
        # All of them, for a disjoint block to choose from: the first choice moves on by one a step.
        first = view.step * (k if k < total else 1) % total
        index = (torch.arange(k, device=view.x.device) + first) % total
        return index.expand(*view.batch, k)


@dataclass(frozen=True)
class GaussSouthwell(_One):
    """The coordinate of the largest partial derivative: the paper's SRCD-GS, its equation (14).

    Where directions are not of norm 1 the derivative is taken along the unit vector. Reads all
    derivatives: one d×d product on the orthogonal group.

    Parameters
    ----------
    dtype : torch.dtype, optional
        Type in which all coordinates are ranked, such as ``torch.bfloat16``, where products in it are faster.
        More than are wanted are taken from that ranking, and the steepest of them chosen by derivatives
        in the parameter's own type, which the step follows. On O(d), Stiefel and the sphere.

    Raises
    ------
    TypeError
        If `dtype` is no floating-point type.
    NotImplementedError
        At the step, on a geometry that ranks in the type of its points only.
    """

    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_ranking(self, self.dtype)

    def choose(self, view: GradientView, k: int) -> Tensor:
        """Rank the coordinates by the size of their derivatives."""
        return view.steepest(k, self.dtype)


@dataclass(frozen=True)
class Block:
    """Several coordinates a step: the first ones of a rule's order.

    With the defaults, and ``fraction=0.005``, this is the paper's block variant.

    Parameters
    ----------
    size : int, optional
        How many coordinates (of every point of a batch).
    fraction : float, optional
        How many, as a share of all D coordinates, rounded; at least one. Give this or `size`.
    rule : Rule
        :class:`GaussSouthwell` (default), :class:`Uniform` or :class:`Cyclic`.
    disjoint : bool
        Whether to pass over coordinates that share an axis with one chosen before. Then all moves
        commute, and on the orthogonal group a step is `size` rotations, O(size·d). Without it, the
        exact exponential of a block whose pairs share columns is a dense d×d one, O(d³): the same
        order as SRGD, however small the block. A disjoint block has at most ⌊d/2⌋ pairs. Where every
        two axes have one coordinate, that by :class:`GaussSouthwell` is the beginning of
        ``Matching("greedy")``. Else all coordinates are ranked to choose it, and an accelerator is
        waited for.

    Raises
    ------
    ValueError
        If neither or both of `size` and `fraction` are given or one is out of range; at the step, if
        the parameter has fewer coordinates (or disjoint ones) than the block wants.
    """

    size: int | None = None
    fraction: float | None = None
    rule: Rule = field(default_factory=GaussSouthwell)
    disjoint: bool = False

    def __post_init__(self) -> None:
        if (self.size is None) == (self.fraction is None):
            raise ValueError(
                f"Block(size={self.size}, fraction={self.fraction}): give one of the two, "
                "size=… coordinates or fraction=… of all"
            )
        if self.size is not None and not (isinstance(self.size, int) and self.size >= 1):
            raise ValueError(f"Block(size={self.size}): expected a whole number, at least one")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"Block(fraction={self.fraction}): expected a share in (0, 1]")
        if isinstance(self.rule, type) or not isinstance(self.rule, Rule):
            raise TypeError(
                f"Block(rule={self.rule!r}): expected an object with a method choose(view, k), "
                "such as GaussSouthwell(), Uniform() or Cyclic()"
            )

    def select(self, view: GradientView) -> CoordinateBlock:
        """Choose the block."""
        total = view.num_coordinates
        if self.size is not None:
            k = self.size
        else:
            assert self.fraction is not None
            k = max(1, round(self.fraction * total))
        if k > total:
            raise ValueError(
                f"{self} wants {k} coordinates; a point of shape "
                f"{tuple(view.x.shape)} has {total} on {view.manifold.name}"
            )
        if not self.disjoint:
            return Coordinates(self.rule.choose(view, k), disjoint=k == 1)
        if k > view.num_disjoint:
            raise ValueError(
                f"{self} wants {k} disjoint coordinates; a point of shape {tuple(view.x.shape)} on "
                f"{view.manifold.name} has {view.num_disjoint}"
            )
        if isinstance(self.rule, GaussSouthwell) and view.one_coordinate_a_pair:
            return heaviest_disjoint(view, k, self.rule.dtype)
        view.check_read(self)
        return first_disjoint(view, self.rule.choose(view, total), k)


def check_ranking(selection: object, dtype: torch.dtype | None) -> None:
    """Raise a TypeError unless coordinates can be ranked in a type."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"{selection}: dtype must be a floating-point type, such as torch.bfloat16")
