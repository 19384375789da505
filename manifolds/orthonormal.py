"""Matrices with orthonormal columns, real or complex: factors, random ones, distance, repair."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "defect",
    "nearest_orthonormal",
    "orthonormalize_",
    "polar_factor",
    "qr_factor",
    "random_orthonormal",
]


def qr_factor(m: Tensor) -> Tensor:
    """Factor Q of m = QR with a real, positive diagonal of R, which makes it unique.

    Shape ``(..., n, p)``, n >= p; a real or complex `m` of full rank.
    """
    q, r = torch.linalg.qr(m)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    phase = torch.where(diagonal == 0, 1.0, diagonal.detach().sgn())
    return q * phase.unsqueeze(-2)


def nearest_orthonormal(m: Tensor, *, special: bool = False) -> Tensor:
    """:func:`polar_factor`, orthonormal to the last digit; gradients pass as those of the factor."""
    x = polar_factor(m, special=special)
    # The last digits have no derivative of their own.
    return x + (orthonormalize_(x.detach().clone()) - x.detach())


def polar_factor(m: Tensor, *, special: bool = False) -> Tensor:
    """Matrix with orthonormal columns nearest to `m` in Frobenius norm: UVᴴ for m = UΣVᴴ.

    Its derivative is U((C − Cᴴ)/(σ_i + σ_j))Vᴴ with C = Uᴴ·dm·V, and for tall matrices also
    (I − UUᴴ)·dm·VΣ⁻¹Vᴴ. Those of U and V alone are infinite where singular values meet, as those of
    I + A do, in pairs, for every skew A.

    Parameters
    ----------
    m : Tensor
        Real or complex, shape ``(..., n, p)``, n >= p.
    special : bool
        For real square matrices: the nearest rotation, of determinant 1 (Kabsch, 1978; Umeyama, 1991).
        Where UVᵀ is a reflection the least singular direction is flipped; the derivative is the
        same with the sign of σ_p changed.

    Returns
    -------
    Tensor
        The shape of `m`. Where two singular values add up to nothing, several matrices are nearest: one
        of them is returned, and the infinite derivative is bounded.
    """
    u, s, vh = torch.linalg.svd(m.detach(), full_matrices=False)
    if special:
        sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(m.dtype).unsqueeze(-1)
        last = torch.arange(s.shape[-1], device=m.device) == s.shape[-1] - 1
        sign = torch.where(last, sign, 1.0)
        u, s = u * sign.unsqueeze(-2), s * sign
    numbers = torch.finfo(s.dtype)
    least = numbers.eps * s[..., :1] + numbers.tiny
    b = m @ vh.mH
    c = u.mH @ b
    # b is UΣ and c is Σ: what is added is 0, but for its derivative.
    sums = torch.maximum(s.unsqueeze(-1) + s.unsqueeze(-2), least.unsqueeze(-1))
    slope = u @ ((c - c.mH) / sums)
    if m.shape[-2] > m.shape[-1]:
        slope = slope + (b - u @ c) / torch.maximum(s, least).unsqueeze(-2)
    slope = slope @ vh
    return u @ vh + (slope - slope.detach())


def random_orthonormal(
    *shape: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Matrices with orthonormal columns, uniformly distributed, shape ``(..., n, p)``, n >= p.

    From the QR factorization of a Gaussian matrix, signs fixed (Mezzadri, 2007), in float64, so
    that a float32 matrix is orthonormal to its last digit.
    """
    wide = torch.complex128 if dtype.is_complex else torch.float64
    m = torch.randn(shape, dtype=wide, device=device, generator=generator)
    return qr_factor(m).to(dtype)


def orthonormalize_(x: Tensor) -> Tensor:
    """Put nearly orthonormal columns right, in place: one Newton–Schulz step x ← x − x(xᴴx − I)/2.

    Shape ``(..., n, p)``; 4np² flops, quadratic convergence. The diagonal of xᴴx − I is taken in
    float64, which costs O(np): in float32 its sums round near 1, and that would be most of the error left.
    """
    gram = x.mH @ x
    parts = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.unsqueeze(-1)
    norm = torch.linalg.vector_norm(parts, dim=(-3, -1), dtype=torch.float64)
    gram.diagonal(dim1=-2, dim2=-1).copy_(norm.square() - 1)
    return x.sub_(x @ gram, alpha=0.5)


def defect(x: Tensor) -> float:
    """Largest entry of ``|xᴴx − I|`` in a batch of matrices, shape ``(..., n, p)``; read by the host."""
    gram = x.detach().mH @ x.detach()
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return float(gram.abs().max()) if gram.numel() else 0.0
