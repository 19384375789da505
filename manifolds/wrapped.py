"""Manifolds made of another one."""

from __future__ import annotations

from typing import Any

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .base import CoordinateManifold
from .blocks import Groups

__all__ = ["Wrapped"]


class Wrapped(CoordinateManifold):
    """What a manifold made of a base takes from it as it is: points, vectors, maps, groups of axes.

    Parameters
    ----------
    manifold : CoordinateManifold
        The base.

    Attributes
    ----------
    base : CoordinateManifold
        As given.
    """

    def __init__(self, manifold: CoordinateManifold) -> None:
        if not isinstance(manifold, CoordinateManifold):
            raise TypeError(
                f"{type(self).__name__} takes a manifold with coordinates, not {manifold!r}; "
                "those of geoopt have none"
            )
        super().__init__()
        self.base = manifold
        self.name = f"{type(self).__name__}({manifold.name})"
        self.ndim = manifold.ndim
        self.reversible = manifold.reversible
        self.dtypes = manifold.dtypes
        self.period = manifold.period
        self.compact = manifold.compact

    # Points and tangent vectors

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Random points of the base, which also takes the other arguments."""
        x = self.base.random(*size, dtype=dtype, device=device, **kwargs)
        return ManifoldTensor(x, manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> Tensor:
        """Origin of the base."""
        x = self.base.origin(*size, dtype=dtype, device=device, seed=seed)
        return ManifoldTensor(x, manifold=self)

    def projx(self, x: Tensor) -> Tensor:
        """Projection of the base."""
        return self.base.projx(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Projection of the base."""
        return self.base.proju(x, u)

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exponential of the base."""
        return self.base.expmap(x, u)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Logarithm of the base."""
        return self.base.logmap(x, y)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Retraction of the base."""
        return self.base.retr(x, u)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Transport of the base."""
        return self.base.transp(x, y, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Transport of the base along its exponential."""
        return self.base.transp_follow_expmap(x, u, v)

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Transport of the base along its retraction."""
        return self.base.transp_follow_retr(x, u, v)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exponential and transport of the base."""
        return self.base.expmap_transp(x, u, v)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Retraction and transport of the base."""
        return self.base.retr_transp(x, u, v)

    # Coordinates

    def group_values(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Return the derivatives that the base finds in the matrices of groups."""
        return self.base.group_values(x, matrices)

    def group_matrices(self, x: Tensor, values: Tensor, r: int) -> Tensor:
        """Return the matrices of groups, as the base makes them."""
        return self.base.group_matrices(x, values, r)

    def restore_(self, x: Tensor) -> Tensor:
        """Restore as the base does, in place."""
        return self.base.restore_(x)

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        return self.base._check_shape(shape, name)

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        return self.base._check_point_on_manifold(x, atol=atol, rtol=rtol)

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        return self.base._check_vector_on_tangent(x, u, atol=atol, rtol=rtol)

    def group_coordinates(self, x: Tensor, block: Groups) -> Tensor:
        """Return the numbers that the base gives."""
        return self.base.group_coordinates(x, block)
