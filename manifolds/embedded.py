"""Geometries with the metric of the space around them."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import CoordinateManifold

__all__ = ["EmbeddedMetric"]


class EmbeddedMetric(CoordinateManifold):
    """A geometry whose points are arrays, with the metric ⟨u, v⟩ = Re Σ ū·v over their entries.

    The Riemannian gradient is then the projection of the Euclidean one on the tangent space.
    """

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient: the projection of the Euclidean one."""
        return self.proju(x, u)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """⟨u, v⟩ = Re Σ ū·v, one for every point; `keepdim` keeps its dimensions as 1; v = u by default."""
        product = u.conj() * (u if v is None else v)
        return self._for_points(x, product.real.sum(self._dims, keepdim=keepdim), keepdim)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """‖u‖ = √⟨u, u⟩, whose gradient at u = 0 is taken for 0."""
        norm = torch.linalg.vector_norm(u, dim=self._dims, keepdim=keepdim)
        return self._for_points(x, norm, keepdim)

    def _for_points(self, x: Tensor, value: Tensor, keepdim: bool) -> Tensor:
        """Numbers of points, with the batch of `x`."""
        batch = (*x.shape[: x.dim() - self.ndim], *(1,) * self.ndim * keepdim)
        return value.expand(torch.broadcast_shapes(batch, value.shape))

    @property
    def _dims(self) -> tuple[int, ...]:
        """The dimensions of a point."""
        return tuple(range(-self.ndim, 0))
