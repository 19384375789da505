"""Selections that add coordinates as the optimization goes on, which the paper leaves for later."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ..manifolds import All, CoordinateBlock, Coordinates
from .gradient import GradientView
from .selection import Block, GaussSouthwell, Rule

__all__ = ["Capture", "Growing"]


@dataclass(frozen=True)
class Growing:
    """A block that grows with the steps: ``first * factor ** (step // every)`` coordinates.

    Parameters
    ----------
    first : int
        How many coordinates at the start.
    factor : float
        By how much the block grows at a time, above 1.
    every : int
        After how many steps it grows.
    last : int, optional
        Where it stops growing; by default at all coordinates, or at as many disjoint ones as there are.
    rule, disjoint
        As for :class:`Block`.

    Raises
    ------
    ValueError, TypeError
        If a setting is out of range; at the step, if that is capturable.
    """

    first: int = 1
    factor: float = 2.0
    every: int = 100
    last: int | None = None
    rule: Rule = field(default_factory=GaussSouthwell)
    disjoint: bool = False

    def __post_init__(self) -> None:
        Block(size=self.first, rule=self.rule, disjoint=self.disjoint)  # checks them
        if not 1 < self.factor < math.inf:
            raise ValueError(f"{self}: factor must be a number above 1")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"{self}: every must be a whole number of steps, at least 1")
        if self.last is not None and not (isinstance(self.last, int) and self.last >= self.first):
            raise ValueError(f"{self}: last must be a whole number, at least first")

    def select(self, view: GradientView) -> CoordinateBlock:
        """Choose the block."""
        view.check_read(self)
        most = view.num_coordinates
        if self.disjoint:
            most = view.num_disjoint
        if self.last is not None:
            most = min(most, self.last)
        # In logarithms, because the power overflows in the end.
        grown = math.log(self.first) + view.step // self.every * math.log(self.factor)
        size = most if grown > math.log(most) else int(math.exp(grown) * (1 + 1e-12))
        return Block(size=min(size, most), rule=self.rule, disjoint=self.disjoint).select(view)


@dataclass(frozen=True)
class Capture:
    """The fewest coordinates that hold a share of the gradient's norm.

    A block of this kind is small while the gradient is sparse, as the paper finds it at the start of its
    experiment, and grows when the gradient spreads. Reads all derivatives; how many coordinates a step
    moves depends on them, so an accelerator is waited for. In a batch all points get as many as the
    neediest one.

    Parameters
    ----------
    share : float
        Share of the norm √Σ⟨grad f, f_i⟩²/s_i, in (0, 1].

    Raises
    ------
    ValueError
        If `share` is out of range.
    TypeError
        At the step, if that is capturable.
    """

    share: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"{self}: share must be in (0, 1]")

    def select(self, view: GradientView) -> CoordinateBlock:
        """Choose the block."""
        view.check_read(self)
        scale = view.manifold.step_scale(view.x, All())
        energy = view.derivatives(All()).double().square() / scale
        energy = torch.where(scale > 0, energy, 0.0).nan_to_num(nan=torch.inf)
        order = energy.argsort(-1, descending=True)
        held = energy.gather(-1, order).cumsum(-1)
        missing = held < self.share**2 * held[..., -1:] * (1 - 1e-12)
        size = 1 + int(missing.sum(-1).amax())
        return Coordinates(order[..., : min(size, order.shape[-1])], disjoint=size == 1)
