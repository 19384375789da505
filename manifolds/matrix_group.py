"""What the orthogonal, the unitary and their special groups have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from geoopt import ManifoldTensor
from torch import Tensor

from .embedded import EmbeddedMetric
from .exponential import expm1
from .logarithm import logarithm
from .orthonormal_matrices import OrthonormalMatrices
from .retractions import RETRACTIONS, exponential

__all__ = ["MatrixGroup"]


class MatrixGroup(OrthonormalMatrices):
    """A group of orthogonal or unitary d×d matrices, with the metric ⟨ξ, ζ⟩ = Re tr(ξᴴζ).

    A tangent vector at x is xΩ with Ω in the group's Lie algebra of skew matrices, Ω = −Ωᴴ. The metric is
    invariant from both sides, so geodesics are x·expm(tΩ) (Edelman, Arias and Smith, 1998; Abrudan,
    Eriksson and Koivunen, 2008), and whatever is here is written in terms of Ω = xᴴu. A subclass adds
    random points and coordinates, and, where its Lie algebra is not that of all skew matrices, a
    projection on it.

    Points have shape ``(..., d, d)``.

    Parameters
    ----------
    retraction : str
        What :meth:`retr` does: a name in :attr:`retractions`.

    Attributes
    ----------
    retractions : mapping
        The retractions of the group; see :mod:`givens.manifolds.retractions`.
    least_size : int
        The least d.
    """

    reversible = True
    retractions: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = RETRACTIONS
    least_size = 2

    # Points and tangent vectors

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Identity matrices of shape ``(..., d, d)``; `seed` is ignored."""
        shape, dtype = self._checked_size(*size, dtype=dtype)
        identity = torch.eye(shape[-1], dtype=dtype, device=device)
        return ManifoldTensor(identity.expand(shape).clone(), manifold=self)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection on the tangent space: x(xᴴu − uᴴx)/2, the paper's equation (7)."""
        return x @ self._algebra(x.mH @ u)

    # Maps

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """Exp_x(u) = x·expm(xᴴu), the paper's equation (10)."""
        return exponential(x, self._algebra(x.mH @ u))

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """Log_x(y): the shortest tangent vector u with Exp_x(u) = y.

        It is x times the principal logarithm of xᴴy, by one singular value decomposition and one
        Hermitian eigendecomposition. The cut locus is an eigenvalue −1 of xᴴy, where there are several
        shortest vectors, and one of them is returned.
        """
        return x @ self._log(x, y)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Geodesic distance ‖Log_x(y)‖."""
        return torch.linalg.matrix_norm(self._log(x, y), keepdim=keepdim)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The retraction that the constructor names."""
        return self._retract(x, self._algebra(x.mH @ u))

    def gradient(self, x: Tensor, egrad: Tensor) -> Tensor:
        """Return the matrix A of the Lie algebra with grad f = xA: one product of d×d matrices.

        In a subclass with projections or maps of its own, the tangent vector.
        """
        return self._algebra(x.mH @ egrad) if self._trivialized else super().gradient(x, egrad)

    def follow(self, x: Tensor, v: Tensor, *, map: str = "expmap") -> Tensor:
        """Return x·expm(v), or the retraction's approximation of it, for v of :meth:`gradient`."""
        if self._trivialized and map == "expmap":
            return exponential(x, v)
        if self._trivialized and map == "retr":
            return self._retract(x, v)
        return super().follow(x, v, map=map)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Left translation y(xᴴv): an isometry, though not Levi-Civita's parallel transport."""
        return y @ (x.mH @ v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Levi-Civita's parallel transport along Exp_x(tu) to t = 1.

        For u = xA and v = xΩ it is x e^{A/2} Ω e^{A/2}.
        """
        return self._transported(x, u, v)[1]

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Exp_x(u), and v transported along it as Levi-Civita does, from one exponential, of u/2."""
        if not self._inherits(MatrixGroup.expmap, MatrixGroup.transp_follow_expmap):
            return self.expmap(x, u), self.transp_follow_expmap(x, u, v)
        half, moved = self._transported(x, u, v)
        return x + x @ (2 * half + half @ half), moved

    # Checks

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) >= 2 and shape[-1] == shape[-2] and shape[-1] >= self.least_size:
            return True, None
        return False, (
            f"'{name}' has shape {tuple(shape)}; {self.name} expects (..., d, d) with "
            f"d >= {self.least_size}"
        )

    # Parts

    @property
    def _trivialized(self) -> bool:
        """Whether tangent vectors can be left out on the way from a gradient to the next point."""
        return self._inherits(
            MatrixGroup.proju, MatrixGroup.expmap, MatrixGroup.retr, EmbeddedMetric.egrad2rgrad
        )

    @property
    def _knows_low_rank(self) -> bool:
        return self._trivialized and self._inherits(MatrixGroup._algebra)

    def _low_rank_factors(self, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left, right / 2  # x·skew(xᴴ left rightᴴ)·xᴴ

    def _transported(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """e^{A/2} − I for u = xA, and v transported along Exp_x(tu)."""
        half = expm1(self._algebra(x.mH @ u) / 2)
        omega = self._algebra(x.mH @ v)
        omega = omega + half @ omega
        return half, x @ (omega + omega @ half)

    def _retract(self, x: Tensor, a: Tensor) -> Tensor:
        """The retraction that the constructor names, of the vector xa."""
        return self.retractions[self.retraction](x, a)

    def _algebra(self, a: Tensor) -> Tensor:
        """The matrix of the Lie algebra nearest to `a`: its skew part."""
        half = a / 2  # first, for the difference of large numbers may overflow
        return half - half.mH

    def _log(self, x: Tensor, y: Tensor) -> Tensor:
        """The matrix A of the Lie algebra with y = x·expm(A)."""
        return logarithm(x.mH @ y)
