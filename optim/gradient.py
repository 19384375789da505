"""What a selection sees of a gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..manifolds import All, CoordinateBlock, CoordinateManifold, Coordinates
from ..manifolds.parts import merge_couplings, merge_steepest
from .random import Randomness
from .rounds import Rounds, derivatives

__all__ = ["GradientView"]

# Candidates beyond twice of what is wanted: in bfloat16 an order is wrong by half a percent or so.
_SPARE = 14


class GradientView:
    """Lazy view of the gradient of one parameter: a selection pays for what it looks at.

    Parameters
    ----------
    manifold : CoordinateManifold
        The geometry.
    x, egrad : Tensor
        The parameter and its Euclidean gradient.
    seed, step, number : int
        Key of the randomness; `step` counts the updates of this parameter, from 0. Where the step may be
        recorded, to be repeated later, it is an int64 tensor of no dimensions.
    first : int
        Of a batch that is sharded over processes: its number in the first dimension at which this
        process's part begins. Every point gets the same random numbers, wherever it is.
    average : callable, optional
        Averages a tensor over the processes of a distributed run, where `egrad` is the gradient of this
        one's share of the batch. What a selection looks at is averaged as it looks: all processes see
        the same and choose the same.

    Attributes
    ----------
    manifold, x, step
        As given.
    egrad : Tensor
        The gradient, averaged over the processes.
    batch : torch.Size
        Leading dimensions of the parameter: every point of the batch gets its own block.
    num_axes, num_coordinates, num_disjoint : int
        Of one point: axes, coordinates, and how many coordinates without a common axis there are.
    random : Randomness
        Random numbers that depend on (seed, step, parameter number) alone.
    """

    def __init__(
        self,
        manifold: CoordinateManifold,
        x: Tensor,
        egrad: Tensor,
        *,
        seed: int = 0,
        step: int | Tensor = 0,
        number: int = 0,
        first: int = 0,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.manifold = manifold
        self.x = x
        self.step = step
        self._egrad = egrad
        self._average = average
        self._key = (seed, step, number)
        self._first = first
        self._random: Randomness | None = None
        self._ranked: tuple[Tensor, Tensor] | None = None
        self._all_read = False

    @property
    def batch(self) -> torch.Size:  # noqa: D102 - an attribute, documented with the class
        return self.x.shape[: self.x.dim() - self.manifold.ndim]

    @property
    def num_axes(self) -> int:  # noqa: D102
        return self.manifold.num_axes(self.x)

    @property
    def num_coordinates(self) -> int:  # noqa: D102
        return self.manifold.num_coordinates(self.x)

    @property
    def num_disjoint(self) -> int:  # noqa: D102
        return self.manifold.num_disjoint(self.x)

    @property
    def egrad(self) -> Tensor:  # noqa: D102
        if self._average is not None:
            self._egrad = self._average(self._egrad)
            self._average = None
        return self._egrad

    def check_read(self, selection: object) -> None:
        """Raise a TypeError where a selection is about to let a number that it reads decide on sizes.

        A step that may be recorded does the same calls whenever it is repeated.
        """
        if isinstance(self.step, Tensor):
            raise TypeError(
                f"{selection} reads numbers to know what it does next on {self.manifold.name}, which a step "
                "with capturable=True cannot; use capturable=False, or another selection"
            )

    @property
    def random(self) -> Randomness:  # noqa: D102
        if self._random is None:
            self._random = Randomness(
                *self._key, device=self.x.device, batch=self.batch, first=self._first
            )
        return self._random

    @property
    def one_coordinate_a_pair(self) -> bool:
        """Whether every two axes have a coordinate, and no more than one."""
        d = self.num_axes
        return self.manifold.every_pair and self.num_coordinates == d * (d - 1) // 2

    @property
    def ranked(self) -> bool:
        """Whether the derivatives along all coordinates have been looked at."""
        return self._all_read or self._ranked is not None

    def derivatives(self, block: CoordinateBlock | Rounds) -> Tensor:
        """Partial derivatives of a block, in the shape that the block prescribes."""
        own = self.own_derivatives(block)
        return own if self._average is None else self._average(own)

    @property
    def shared(self) -> bool:
        """Whether :meth:`own_derivatives` are those of all processes."""
        return self._average is None

    def own_derivatives(self, block: CoordinateBlock | Rounds) -> Tensor:
        """Partial derivatives by this process's gradient, or by that of all where a look has averaged it."""
        if self._ranked and isinstance(block, Coordinates) and block.index is self._ranked[0]:
            return self._ranked[1]  # the ranking has computed them
        self._all_read |= isinstance(block, All)
        return derivatives(self.manifold, self.x, self._egrad, block)

    def steepest(self, k: int, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers of the k coordinates along which the function falls fastest, shape ``(*batch, k)``.

        With a `dtype`, which the geometry must support, candidates are found by products of that type, and
        the k steepest of these by the exact derivatives.
        """
        if dtype is None:
            self._ranked = self.manifold.steepest(self.x, self.egrad, k)
        else:
            count = min(2 * k + _SPARE, self.num_coordinates)
            index = self.manifold.candidates(self.x, self.egrad, count, dtype)
            block = Coordinates(index, disjoint=False)
            slopes = self.manifold.derivatives(self.x, self.egrad, block)
            scale = self.manifold.step_scale(self.x, block)
            self._ranked = merge_steepest(index, slopes, scale, k)
        return self._ranked[0]

    def coupling(self, dtype: torch.dtype | None = None) -> Tensor:
        """How strongly every two axes are coupled, shape ``(*batch, d, d)``; reads all derivatives."""
        self._all_read = True
        if self.shared or dtype is not None:
            return self.manifold.coupling(self.x, self.egrad, dtype=dtype)
        # The derivatives are half of a gradient, or less, to send.
        return merge_couplings(self.manifold, self.x, self.derivatives(All()))
