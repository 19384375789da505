"""Euclidean space, with its translations as coordinates."""

from __future__ import annotations

import math

import geoopt
import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .blocks import All, CoordinateBlock, Coordinates
from .embedded import EmbeddedMetric
from .parts import unravel

__all__ = ["Euclidean"]


class Euclidean(EmbeddedMetric, geoopt.Euclidean):
    """Euclidean space ℝⁿ: coordinate i is the translation of entry i, and its axis is that entry.

    :class:`givens.optim.SRCD` on it is the coordinate descent of the textbooks. Its directions are an
    orthonormal basis. Points are float32 or float64 and finite.

    Parameters
    ----------
    ndim : int
        Number of trailing dimensions that make up one point, whose entries are numbered in row-major
        order; the leading ones are a batch.
    """

    def __init__(self, ndim: int = 1) -> None:
        if ndim < 1:
            raise ValueError(f"ndim={ndim}: a point of Euclidean space has at least one dimension")
        super().__init__(ndim=ndim)

    # Points and tangent vectors

    def random(
        self,
        *size: int,
        mean: float | Tensor = 0.0,
        std: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points whose entries are normally distributed.

        Parameters
        ----------
        *size : int
            Shape ``(..., *point)``.
        mean, std : float or Tensor
            Of the entries; a tensor must broadcast to `size`.
        dtype, device, generator
            As in :func:`torch.randn`.
        """
        shape, dtype = self._checked_size(*size, dtype=dtype)
        x = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        return ManifoldTensor((x * std + mean).to(dtype), manifold=self)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Every vector is tangent: `u` itself, with the batch of `x`."""
        return u.expand(torch.broadcast_shapes(x.shape, u.shape))

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Products of entries, for geoopt's adaptive optimizers."""
        return self.proju(x, u * (u if v is None else v))

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """‖x − y‖, whose gradient at x = y is taken for 0."""
        return torch.linalg.vector_norm(x - y, dim=self._dims, keepdim=keepdim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport: `v` itself, with the batch of the points."""
        return v.expand(torch.broadcast_shapes(x.shape, y.shape, v.shape))

    # Coordinates

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
        self._check_pair(x, egrad, "egrad")
        self.check_block(x, block)
        if isinstance(block, All):
            return egrad.flatten(-self.ndim).clone()
        return egrad[self._entries(x, block)]

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Add the times to the entries, in place: O(k)."""
        self._check_move(x, block, t)
        if isinstance(block, All):
            point = x.shape[x.dim() - self.ndim :]
            return x.add_(t.expand(*t.shape[:-1], self.num_axes(x)).unflatten(-1, point))
        entries = self._entries(x, block)
        t = t.to(x.dtype).expand(entries[-1].shape)
        return x.index_put_(entries, t, accumulate=True)  # numbers that occur twice add up

    def _entries(self, x: Tensor, block: CoordinateBlock) -> tuple[Tensor, ...]:
        """Where the coordinates of a block are, along each dimension of `x`: its strides do not matter."""
        if not isinstance(block, Coordinates):
            raise NotImplementedError(
                "a coordinate of Euclidean space has one axis, so groups of axes hold no coordinates; "
                "use Coordinates or All"
            )
        batch, point = x.shape[: x.dim() - self.ndim], x.shape[x.dim() - self.ndim :]
        index = block.index.expand(*batch, block.index.shape[-1])
        rows = (
            torch.arange(n, device=x.device).view(-1, *(1,) * (len(batch) - axis))
            for axis, n in enumerate(batch)
        )
        return (*rows, *unravel(index, point))

    # Checks

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in self.dtypes:
            return False, f"it is {x.dtype}; {self.name} works in {self._dtype_names}"
        if bool(x.detach().isfinite().all()):
            return True, None
        return False, "it has entries that are NaN or infinite"

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if bool(u.detach().isfinite().all()):
            return True, None
        return False, "it has entries that are NaN or infinite"
