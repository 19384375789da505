"""The special orthogonal group: rotations."""

from __future__ import annotations

import torch
from torch import Tensor

from .orthogonal import OrthogonalGroup
from .orthonormal import nearest_orthonormal

__all__ = ["SpecialOrthogonalGroup"]


class SpecialOrthogonalGroup(OrthogonalGroup):
    r"""The rotation group SO(d) = {W ∈ ℝ^{d×d} : WᵀW = I, det W = 1}, a component of O(d).

    Tangent vectors, coordinates and maps are those of :class:`OrthogonalGroup`. A move never leaves the
    component, and any two points are joined by a geodesic, so :meth:`logmap` always finds one. A batch
    of shape ``(N, d, d)`` is N points, each with coordinates of its own; as one point of SO(d)ᴺ it belongs
    to :class:`Power`.

    The lengths of SO(3): a rotation by the angle φ is at the distance √2·φ from the identity, as the
    metric is tr(ξᵀζ).

    Parameters
    ----------
    retraction : {"exponential", "cayley", "qr", "polar", "givens"}
        What :meth:`retr` does; see :mod:`givens.manifolds.retractions`.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import SpecialOrthogonalGroup
    >>> manifold = SpecialOrthogonalGroup()
    >>> x = manifold.projx(torch.diag(torch.tensor([1.0, 2.0, -0.5])))
    >>> x.diagonal().tolist()
    [1.0, 1.0, 1.0]
    """

    name = "SpecialOrthogonalGroup"

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        det: int | None = 1,
    ) -> Tensor:
        """Rotations from the Haar measure.

        Parameters
        ----------
        *size : int
            Shape ``(..., d, d)``.
        dtype, device, generator
            As in :func:`torch.randn`.
        det : {1}
            There is no choice; the argument is that of :meth:`OrthogonalGroup.random`.

        Returns
        -------
        ManifoldTensor
            Orthogonal to the last digit.
        """
        if det != 1:
            raise ValueError(
                f"det={det!r}: rotations have determinant 1; OrthogonalGroup has the others"
            )
        return super().random(*size, dtype=dtype, device=device, generator=generator, det=1)

    def projx(self, x: Tensor) -> Tensor:
        """Nearest rotation (Kabsch, 1978; Umeyama, 1991): UDVᵀ for x = UΣVᵀ, D = diag(1, …, 1, det UVᵀ).

        Where the polar factor is a reflection, the least singular direction is flipped. If the two least
        singular values are equal then, several rotations are nearest, and one of them is returned.
        """
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        return nearest_orthonormal(x, special=True)

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        ok, reason = super()._check_point_on_manifold(x, atol=atol, rtol=rtol)
        if not ok or bool((torch.linalg.det(x.detach()) > 0).all()):
            return ok, reason
        return False, (
            "its determinant is −1: a reflection, not a rotation; change the sign of one column, or take "
            f"{self.name}().projx(x), the nearest rotation, or OrthogonalGroup, which has both"
        )
