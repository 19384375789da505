"""What geometries have in common whose points are matrices with orthonormal columns."""

from __future__ import annotations

from torch import Tensor

from .embedded import EmbeddedMetric
from .orthonormal import defect, nearest_orthonormal, orthonormalize_
from .retractions import ChosenRetraction

__all__ = ["OrthonormalMatrices"]


class OrthonormalMatrices(ChosenRetraction, EmbeddedMetric):
    """Matrices x with xᴴx = I: the nearest one, the repair, and the checks.

    A vector u is tangent where xᴴu + uᴴx = 0, if a subclass does not say otherwise.
    """

    ndim = 2
    compact = True

    def projx(self, x: Tensor) -> Tensor:
        """Nearest point: the polar factor, by a singular value decomposition."""
        self._assert_check_shape(x.shape, "x")
        self._assert_dtype(x.dtype)
        return nearest_orthonormal(x)

    def restore_(self, x: Tensor) -> Tensor:
        """One Newton–Schulz step x ← x − x(xᴴx − I)/2, in place: two products, quadratic convergence."""
        return orthonormalize_(x)

    def _normal(self, x: Tensor, u: Tensor) -> Tensor:
        """The square matrix that vanishes for tangent vectors."""
        a = x.mH @ u
        return a + a.mH

    def _tangency(self, x: Tensor) -> str:
        """How messages write that matrix."""
        return f"x{_adjoint(x)}u + u{_adjoint(x)}x"

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in self.dtypes:
            return False, f"it is {x.dtype}; {self.name} works in {self._dtype_names}"
        error = defect(x)
        if error <= atol + rtol:
            return True, None
        return False, (
            f"max |x{_adjoint(x)}x − I| is {error:.1e}, allowed {atol + rtol:.1e}; "
            f"{self.name}().projx(x) gives the nearest point"
        )

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        x, u = x.detach(), u.detach()
        error = self._normal(x, u).abs().amax((-2, -1))
        allowed = atol + rtol * u.abs().amax((-2, -1))
        if bool((error.isfinite() & (error <= allowed)).all()):
            return True, None
        return False, (
            f"max |{self._tangency(x)}| is {float(error.max()):.1e}; "
            f"{self.name}().proju(x, u) gives the nearest tangent vector"
        )


def _adjoint(x: Tensor) -> str:
    """How messages write the adjoint: a real one is the transpose."""
    return "ᴴ" if x.is_complex() else "ᵀ"
