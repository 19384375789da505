"""What a selection sees of a gradient."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..manifolds import CoordinateBlock, CoordinateManifold, Coordinates
from .random import Randomness

__all__ = ["GradientView"]


class GradientView:
    """Lazy view of the gradient of one parameter: a selection pays for what it looks at.

    Parameters
    ----------
    manifold : CoordinateManifold
        The geometry.
    x, egrad : Tensor
        The parameter and its Euclidean gradient.
    seed, step, number : int
        Key of the randomness; `step` counts the updates of this parameter, from 0.

    Attributes
    ----------
    manifold, x, egrad, step
        As given.
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
        step: int = 0,
        number: int = 0,
    ) -> None:
        self.manifold = manifold
        self.x = x
        self.egrad = egrad
        self.step = step
        self._key = (seed, step, number)
        self._ranked: tuple[Tensor, Tensor] | None = None

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

    @cached_property
    def random(self) -> Randomness:  # noqa: D102
        return Randomness(*self._key, device=self.x.device)

    @property
    def ranked(self) -> bool:
        """Whether all coordinates have been ranked."""
        return self._ranked is not None

    def derivatives(self, block: CoordinateBlock) -> Tensor:
        """Partial derivatives of a block, in the shape that the block prescribes."""
        if self._ranked and isinstance(block, Coordinates) and block.index is self._ranked[0]:
            return self._ranked[1]  # the ranking has computed them
        return self.manifold.derivatives(self.x, self.egrad, block)

    def steepest(self, k: int) -> Tensor:
        """Numbers of the k coordinates along which the function falls fastest, shape ``(*batch, k)``."""
        self._ranked = self.manifold.steepest(self.x, self.egrad, k)
        return self._ranked[0]
