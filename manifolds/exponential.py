"""The matrix exponential, less the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .backend import readable, recorded

__all__ = ["expm1"]

# Matrices up to this size run a fixed number of squarings on an accelerator, so that the host need
# not wait to learn their norm; in larger ones the wait is nothing beside the squarings it saves, unless
# calls are recorded and the host cannot wait.
_SMALL = 64
_MOST_SQUARINGS = 14

# A squaring doubles what is missing to orthogonality: so many of them make it at most 128 times as
# large, of which one Newton–Schulz step leaves nothing, even in float32.
_UNCORRECTED = 7

# Degree 8 in three products: Bader, Blanes and Casas (2019), the paper's reference [37].
_ROOT = math.sqrt(177)
_X3 = 2 / 3
_X1 = _X3 * (1 + _ROOT) / 88
_X2 = _X3 * (1 + _ROOT) / 352
_X4 = (-271 + 29 * _ROOT) / (315 * _X3)
_X5 = 11 * (-1 + _ROOT) / (1260 * _X3)
_X6 = 11 * (-9 + _ROOT) / (5040 * _X3)
_X7 = (89 - _ROOT) / (5040 * _X3**2)
_Y2 = (857 - 58 * _ROOT) / 630


def expm1(a: Tensor, *, skew: bool = True) -> Tensor:
    """Matrix exponential of a skew-symmetric or skew-Hermitian matrix, less the identity: expm(a) − I.

    Scaling and squaring on F = expm − I, as F ← 2F + F². Leaving the identity out keeps a small
    exponential accurate relative to its distance from I: ``x + x @ expm1(a)`` rounds every entry of
    `x` once, where ``x @ matrix_exp(a)`` loses the low digits of the diagonal at every step. After
    squarings I + F is put back on the group, so that it is orthogonal (unitary) to the last digits
    whatever the angles.

    Parameters
    ----------
    a : Tensor
        Skew-symmetric or skew-Hermitian matrices, shape ``(..., r, r)``, real or complex. On an
        accelerator the 2-norm of matrices with r <= 64, and of all where calls are recorded, is limited
        to about 2¹⁴·θ radians (θ = 0.6 in float32 and complex64, 0.05 in float64 and complex128); there
        the function does not wait for the device. Elsewhere it is limited to θ/ε, where no digit of an
        angle is left. A matrix of a larger norm is scaled down.
    skew : bool
        False for a matrix that is skew in another basis only, whose exponential is left as it is.

    Returns
    -------
    Tensor
        The shape of `a`. At most 3 products of r×r matrices, one for every doubling of the norm above θ,
        and 2 for every seven of these begun; 1 or 2 products where the host can see that the norm is
        small.
    """
    # ‖a‖₂ is at most the largest row sum, and ‖a‖_F: over √2, for the singular values of a real skew
    # matrix come in pairs.
    row_sum = a.detach().abs().sum(-1).amax(-1)
    frobenius = torch.linalg.matrix_norm(a.detach()) / (1 if a.is_complex() else math.sqrt(2))
    norm = torch.minimum(row_sum, frobenius)
    if readable(a) or (a.shape[-1] > _SMALL and not recorded(a)):
        # A matrix that is not finite has no say in how the others of its batch are computed.
        finite = norm.nan_to_num(nan=0.0, posinf=0.0)
        largest = finite.max().item() if norm.numel() else 0.0
        if largest <= _radius(2, a.dtype):
            return a + a @ a / 2
        if largest <= _radius(4, a.dtype):
            square = a @ a
            return a + square / 2 + square @ (a / 6 + square / 24)
        digits = -math.frexp(torch.finfo(a.dtype).eps)[1]
        halvings = math.ceil(math.log2(largest) - math.log2(_radius(8, a.dtype)))
        most = min(max(0, halvings), digits)
    else:
        most = _MOST_SQUARINGS
    norm = norm[..., None, None]
    times = torch.log2(norm / _radius(8, a.dtype)).ceil().clamp(min=0)
    shrink = torch.where(times > most, _radius(8, a.dtype) / norm, torch.exp2(-times))
    f = _taylor8(a * shrink)
    for n in range(most):
        f = torch.where(n < times, 2 * f + f @ f, f)
        if skew and (most - 1 - n) % _UNCORRECTED == 0:
            f = torch.where(times > 0, _corrected(f), f)
    return f


def _corrected(f: Tensor) -> Tensor:
    """F after one Newton–Schulz step of Q = I + F, which takes away last digits, and no derivative.

    The diagonal of QᴴQ − I is taken in float64, as by ``orthonormalize_``, and from F, so that a small F
    keeps its digits.
    """
    q = f.detach().clone()
    diagonal = q.diagonal(dim1=-2, dim2=-1)
    wide = torch.promote_types(f.dtype, torch.float64)
    square = torch.linalg.vector_norm(q, dim=-2, dtype=wide).square() + 2 * diagonal.to(wide).real
    diagonal.add_(1)
    gram = q.mH @ q
    gram.diagonal(dim1=-2, dim2=-1).copy_(square)
    return f - q @ gram / 2


def _radius(degree: int, dtype: torch.dtype) -> float:
    """Norm up to which the Taylor polynomial of a degree is exact to half a unit in the last place."""
    half_ulp = torch.finfo(dtype).eps / 2
    return float((math.factorial(degree + 1) * half_ulp) ** (1 / degree))


def _taylor8(a: Tensor) -> Tensor:
    """Σ aᵏ/k! for k = 1…8."""
    a2 = a @ a
    a4 = a2 @ (_X1 * a + _X2 * a2)
    tail = _X5 * a + _X6 * a2 + _X7 * a4
    tail.diagonal(dim1=-2, dim2=-1).add_(_X4)
    return a + _Y2 * a2 + (_X3 * a2 + a4) @ tail
