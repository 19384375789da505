"""Euclidean space, with its translations as coordinates."""

from __future__ import annotations

import math

import geoopt
import torch
from torch import Tensor

from .base import CoordinateManifold
from .blocks import All, CoordinateBlock, Coordinates

__all__ = ["Euclidean"]


class Euclidean(CoordinateManifold, geoopt.Euclidean):
    """Euclidean space ℝⁿ: coordinate i is the translation of entry i, and its axis is that entry.

    :class:`givens.optim.SRCD` on it is the coordinate descent of the textbooks.

    Parameters
    ----------
    ndim : int
        Number of trailing dimensions that make up one point, whose entries are numbered in row-major
        order; the leading ones are a batch. geoopt's ``Euclidean`` supplies everything else.
    """

    def __init__(self, ndim: int = 1) -> None:
        if ndim < 1:
            raise ValueError(f"ndim={ndim}: a point of Euclidean space has at least one dimension")
        super().__init__(ndim=ndim)

    def num_axes(self, x: Tensor) -> int:
        """Return n, the number of entries of a point."""
        return math.prod(x.shape[x.dim() - self.ndim :])

    def num_coordinates(self, x: Tensor) -> int:
        """Return n."""
        return self.num_axes(x)

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the entries themselves: shape ``(..., k, 1)``."""
        return index.unsqueeze(-1)

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the unit vectors e_i, shape ``(*batch, k, *point)``."""
        batch, point = x.shape[: x.dim() - self.ndim], x.shape[x.dim() - self.ndim :]
        unit = torch.nn.functional.one_hot(index, self.num_axes(x)).to(x.dtype)
        return unit.unflatten(-1, point).expand(*batch, index.shape[-1], *point)

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the entries of the gradient: O(k)."""
        self.check_block(x, block)
        flat = egrad.flatten(-self.ndim)
        if isinstance(block, All):
            return flat.clone()
        return flat.gather(-1, self._entries(x, block))

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Add the times to the entries, in place: O(k)."""
        self.check_block(x, block)
        point = x.shape[x.dim() - self.ndim :]
        if isinstance(block, All):
            return x.add_(t.unflatten(-1, point))
        entries = self._entries(x, block)
        # Along the dimensions of a point, so that strides do not matter; numbers that occur twice add up.
        where = torch.unravel_index(entries, point)
        batch = (
            torch.arange(n, device=x.device).view(-1, *(1,) * (entries.dim() - 1 - axis))
            for axis, n in enumerate(entries.shape[:-1])
        )
        return x.index_put_((*batch, *where), t.expand(entries.shape), accumulate=True)

    def _entries(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        if not isinstance(block, Coordinates):
            raise NotImplementedError(
                "a coordinate of Euclidean space has one axis, so groups of axes hold no coordinates; "
                "use Coordinates or All"
            )
        return block.index.expand(*x.shape[: x.dim() - self.ndim], block.index.shape[-1])
