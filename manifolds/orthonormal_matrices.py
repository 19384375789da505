"""What geometries have in common whose points are matrices with orthonormal columns."""

from __future__ import annotations

from torch import Tensor

from .embedded import EmbeddedMetric
from .low_rank import LOW_RANK_TURNS
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

    @property
    def low_rank_maps(self) -> frozenset[str]:  # type: ignore[override]
        """The exponential, and the retraction if it is that or the Cayley transform."""
        if not self._knows_low_rank:
            return frozenset()
        return frozenset({"expmap", *(["retr"] if self.retraction in LOW_RANK_TURNS else [])})

    def follow_low_rank(
        self, x: Tensor, left: Tensor, right: Tensor, *, map: str = "expmap"
    ) -> Tensor:
        """Return the exponential, or the Cayley transform, along a gradient left · rightᴴ, O(npk)."""
        if map not in self.low_rank_maps:
            return super().follow_low_rank(x, left, right, map=map)
        turn = LOW_RANK_TURNS["exponential" if map == "expmap" else self.retraction]
        return turn(x, *self._low_rank_factors(x, left, right))

    @property
    def _knows_low_rank(self) -> bool:
        """Whether :meth:`_low_rank_factors` is right for the class, whose maps may be its own."""
        return False

    def _low_rank_factors(self, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Factors q and r of the generator of a step (``low_rank.py``): Lx is the gradient's vector."""
        raise NotImplementedError

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
