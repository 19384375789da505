"""Functions of an angle that are analytic in its square: on the sphere and in hyperbolic space."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SMALL", "angle_over_sine", "cos_and_sinc", "cosh_and_sinhc"]

# Below this square of an angle (or of its sine) power series replace quotients of the form 0/0: with
# _TERMS terms they are exact in float64, and so are their first derivatives.
SMALL = 1e-2
_TERMS = 8


def cos_and_sinc(square: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sin(φ)/φ of the angle φ >= 0 with this square."""
    small = square < SMALL
    cosine, sinc = _series(torch.where(small, square, 0.0))
    angle = torch.where(small, 1.0, square).sqrt()
    return torch.where(small, cosine, angle.cos()), torch.where(small, sinc, angle.sin() / angle)


def cosh_and_sinhc(square: Tensor) -> tuple[Tensor, Tensor]:
    """Hyperbolic cosine and sinh(φ)/φ of the number φ >= 0 with this square."""
    small = square < SMALL
    cosine, sinc = _series(torch.where(small, -square, 0.0))
    angle = torch.where(small, 1.0, square).sqrt()
    return torch.where(small, cosine, angle.cosh()), torch.where(small, sinc, angle.sinh() / angle)


def angle_over_sine(square: Tensor) -> Tensor:
    """θ/sin θ of a small angle, as a power series in sin²(θ/2): arcsin(z)/(z√(1 − z²)) in z².

    Of an imaginary one, θ/sinh θ, for −sinh²(θ/2).
    """
    ratio = torch.ones_like(square)
    for n in range(_TERMS - 1, 0, -1):
        ratio = 1 + 2 * n / (2 * n + 1) * square * ratio
    return ratio


def _series(square: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sin(φ)/φ as power series in φ²."""
    cosine, sinc = torch.ones_like(square), torch.ones_like(square)
    for n in range(_TERMS - 1, 0, -1):
        cosine = 1 - square / (2 * n * (2 * n - 1)) * cosine
        sinc = 1 - square / (2 * n * (2 * n + 1)) * sinc
    return cosine, sinc
