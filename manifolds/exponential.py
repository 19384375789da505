"""The matrix exponential, less the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["expm1"]

# Matrices up to this size run a fixed number of squarings on an accelerator, so that the host need
# not wait to learn their norm; in larger ones the wait is nothing beside the squarings it saves.
_SMALL = 64
_MOST_SQUARINGS = 14

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


def expm1(a: Tensor) -> Tensor:
    """Matrix exponential of a skew-symmetric or skew-Hermitian matrix, less the identity: expm(a) − I.

    Scaling and squaring on F = expm − I, as F ← 2F + F². Leaving the identity out keeps a small
    exponential accurate relative to its distance from I: ``x + x @ expm1(a)`` rounds every entry of
    `x` once, where ``x @ matrix_exp(a)`` loses the low digits of the diagonal at every step.

    Parameters
    ----------
    a : Tensor
        Skew-symmetric or skew-Hermitian matrices, shape ``(..., r, r)``, real or complex. On an
        accelerator the 2-norm of matrices with r <= 64 is limited to about 2¹⁴·θ radians (θ = 0.6 in
        float32 and complex64, 0.05 in float64 and complex128); there the function does not wait for
        the device.

    Returns
    -------
    Tensor
        The shape of `a`. At most 3 products of r×r matrices and one for every doubling of the norm
        above θ; 1 or 2 products where the host can see that the norm is small.
    """
    # ‖a‖₂ is at most the largest row sum, and ‖a‖_F: over √2, for the singular values of a real skew
    # matrix come in pairs.
    row_sum = a.detach().abs().sum(-1).amax(-1)
    frobenius = torch.linalg.matrix_norm(a.detach()) / (1 if a.is_complex() else math.sqrt(2))
    norm = torch.minimum(row_sum, frobenius)
    if a.device.type == "cpu" or a.shape[-1] > _SMALL:
        # A matrix that is not finite has no say in how the others of its batch are computed.
        finite = norm.nan_to_num(nan=0.0, posinf=0.0)
        largest = finite.max().item() if norm.numel() else 0.0
        if largest <= _radius(2, a.dtype):
            return a + a @ a / 2
        if largest <= _radius(4, a.dtype):
            square = a @ a
            return a + square / 2 + square @ (a / 6 + square / 24)
        most = max(0, math.ceil(math.log2(largest / _radius(8, a.dtype))))
    else:
        most = _MOST_SQUARINGS
    halvings = torch.log2(norm / _radius(8, a.dtype)).ceil().clamp(0, most)
    halvings = halvings[..., None, None]
    f = _taylor8(a * torch.exp2(-halvings))
    for n in range(most):
        f = torch.where(n < halvings, 2 * f + f @ f, f)
    return f


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
