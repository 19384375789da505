"""The principal logarithm of orthogonal and unitary matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["logarithm"]


def logarithm(q: Tensor, *, traceless: bool = False) -> Tensor:
    """Shortest skew-Hermitian A with expm(A) = q.

    The square root R of q whose eigenvalues have angles of at most a quarter turn is the polar factor
    of I + q; its Cayley transform (R + I)⁻¹(R − I) is i·tan(θ/4) for the angles θ of q, which is
    well conditioned up to a half turn and gives the angles and their eigenvectors at once. One singular
    value decomposition, one solve, one Hermitian eigendecomposition, whatever angles repeat.

    Parameters
    ----------
    q : Tensor
        Orthogonal matrices of determinant 1, or unitary matrices; shape ``(..., d, d)``.
    traceless : bool
        For unitary matrices of determinant 1: the shortest A whose trace is 0. Where the angles, in
        (−π, π], add up to 2πk, the k farthest ones go the other way round.

    Returns
    -------
    Tensor
        The shape and type of `q`. Exact first derivatives flow through it, also where angles repeat. At a
        half turn (or, for `traceless`, where the k-th angle and the next one coincide) there are
        several shortest A, of which one is returned, and the infinite derivatives are taken for 0. Angles
        next to a half turn, up to the square root of the precision, may come out on the other side of it.
    """
    angle, v = _spectrum(q.detach())
    if traceless:
        # R leaves open what is what among angles next to a half turn, some of which may go round.
        angle, v = torch.linalg.eigh(-1j * _newton(q.detach(), angle, v))
        turns = torch.round(angle.sum(-1, keepdim=True) / (2 * math.pi))
        place = torch.arange(q.shape[-1], device=q.device)
        last, first = place >= q.shape[-1] - turns, place < -turns
        angle = angle + 2 * math.pi * (first.to(angle.dtype) - last.to(angle.dtype))
    log = _newton(q, angle, v)
    return log if q.is_complex() else log.real


def _spectrum(q: Tensor) -> tuple[Tensor, Tensor]:
    """Angles θ in [−π, π], ascending, and eigenvectors of q: those of the Cayley transform of its root."""
    r = _square_root(q)
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    tangent = -1j * torch.linalg.solve(r + identity, r - identity)
    tangent, v = torch.linalg.eigh((tangent + tangent.mH) / 2)
    return 4 * torch.arctan(tangent), v


def _newton(q: Tensor, angle: Tensor, v: Tensor) -> Tensor:
    """A Newton step from A = i·v·diag(angle)·vᴴ to the logarithm of q: A + dexp_A⁻¹(expm(−A)q − I).

    With the spectrum of q the step is 0 but for rounding, which it takes away, and for its derivative,
    which is that of the logarithm. In the basis v, dexp_A⁻¹ multiplies an entry by z/(1 − e⁻ᶻ), where z is
    i times the difference of two angles (Higham, 2008).
    """
    rest = torch.exp(-1j * angle).unsqueeze(-1) * (v.mH @ q.to(v.dtype) @ v)
    gap = (angle.unsqueeze(-1) - angle.unsqueeze(-2)) / 2
    sine = torch.sin(gap)
    flat = sine.abs() < math.sqrt(torch.finfo(q.dtype).eps)
    ratio = torch.where(flat, (gap.abs() < 1).to(gap.dtype), gap / torch.where(flat, 1.0, sine))
    step = ratio * torch.exp(1j * gap) * (rest - rest.mH) / 2
    log = v @ (torch.diag_embed(1j * angle) + step) @ v.mH
    return (log - log.mH) / 2


def _square_root(q: Tensor) -> Tensor:
    """Square root with angles of at most π/2: the polar factor of I + q.

    Where q is −1, I + q is 0 and leaves the factor free: there it is the number i for a unitary
    matrix, and for an orthogonal one a quarter turn in the planes of consecutive singular vectors.
    """
    d = q.shape[-1]
    u, s, vh = torch.linalg.svd(q + torch.eye(d, dtype=q.dtype, device=q.device))
    free = s < math.sqrt(torch.finfo(q.dtype).eps)
    if q.is_complex():
        return torch.where(free.unsqueeze(-2), 1j * vh.mH, u) @ vh
    odd = d % 2  # an eigenvalue 1 of q, the largest of I + q, has no partner
    first, second = vh.mT[..., odd:].unflatten(-1, (d // 2, 2)).unbind(-1)
    quarter_turn = torch.stack([second, -first], -1).flatten(-2)
    free = free[..., odd::2].repeat_interleave(2, -1).unsqueeze(-2)
    return torch.cat([u[..., :odd], torch.where(free, quarter_turn, u[..., odd:])], -1) @ vh
