"""Trigonometric polynomials: found from their values, and minimized."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["minimize"]


def minimize(values: Sequence[float], slope: float, *, noise: float = 0.0) -> tuple[float, float]:
    """Minimize the trigonometric polynomial f of degree m that takes given values.

    Parameters
    ----------
    values : sequence of float
        f(kπ/m) for k = 0, …, 2m − 1. They leave open the coefficient of sin mφ, which is 0 there.
    slope : float
        f′(0), which determines it.
    noise : float
        Minima whose values differ by no more count as equal.

    Returns
    -------
    angle, gain : float
        The minimum nearest to 0, in [−π, π], and f(angle) − f(0), without the cancellation of the
        difference. Both are 0 where f is constant.

    Notes
    -----
    With z = e^{iφ}, z^m f′(φ) is a polynomial of degree 2m, whose roots are the eigenvalues of its companion
    matrix: O(m³). The angle of every root is tried; those of roots off the unit circle are no minima. Where
    the highest coefficients are rounding alone, roots lose digits, which Newton's method brings back.
    As f′(0) is what was given, the minimum of an f that is nearly minimal at 0 has the precision
    of f′(0), and not its square root.
    """
    m = len(values) // 2
    k = np.arange(1, m + 1)
    spectrum = np.fft.rfft(np.asarray(values, dtype=float))[1:] / m
    spectrum[-1] /= 2
    a, b = spectrum.real, -spectrum.imag
    b[-1] = (slope - (k[:-1] * b[:-1]).sum()) / m
    largest = max(np.abs(a).max(), np.abs(b).max())
    if not largest > 0:
        return 0.0, 0.0
    a, b = a / largest, b / largest

    positive = k * (b + 1j * a) / 2  # of z, z², …, z^m in f′
    positive[np.abs(positive) < np.finfo(float).eps] = 0.0
    roots = np.roots([*positive[::-1], 0.0, *positive.conj()])
    phi = np.angle(roots[roots != 0])
    if len(phi) == 0:
        return 0.0, 0.0

    def of(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        turns = np.multiply.outer(angles, k)
        sine, cosine = np.sin(turns), np.cos(turns)
        gain = sine @ b - 2 * np.sin(turns / 2) ** 2 @ a
        return gain, cosine @ (k * b) - sine @ (k * a), -sine @ (k**2 * b) - cosine @ (k**2 * a)

    for _ in range(3):
        _, first, second = of(phi)
        with np.errstate(divide="ignore", invalid="ignore"):
            better = phi - first / second
        better = np.where(np.isfinite(better), better, phi)
        phi = np.where(np.abs(of(better)[1]) < np.abs(first), better, phi)
    phi = np.where(np.abs(phi) > math.pi, phi - np.copysign(2 * math.pi, phi), phi)
    gain = of(phi)[0]
    lowest = float(gain.min())
    # Not above the start, which a maximum is.
    equal = gain <= min(lowest + noise / largest, max(lowest, 0.0))
    best = np.flatnonzero(equal)[np.abs(phi[equal]).argmin()]
    return float(phi[best]), float(gain[best]) * float(largest)
