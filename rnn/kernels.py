"""Triton kernels that run a whole recurrence in one launch, forward and backward.

One program takes one row of the batch from the first step to the last (or back). It keeps W in registers, so
that a step reads nothing but what enters from outside, and hands its state from thread to thread through
shared memory. They compute what :mod:`.recurrence` states, in float32. Triton compiles a kernel when it is
first called, without a compiler on the machine.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["CODES", "LARGEST", "backward", "forward_", "phi", "through_phi"]

#: Largest state whose W one core (65,536 registers) holds, the last quarter of it in its cache.
LARGEST = 256

# Columns of W in a tile where there are several: three of 256×64 are 96 registers in each of 512 threads.
_TILE = 64

_MODRELU, _RELU, _TANH, _IDENTITY = (tl.constexpr(i) for i in range(4))
CODES = {"modrelu": 0, "relu": 1, "tanh": 2, "identity": 3}


def forward_(z: Tensor, weight: Tensor, hx: Tensor, bias: Tensor | None, nonlinearity: str) -> None:
    """Turn what enters at each step into the states h_t = φ(u_t + h_{t−1} Wᵀ), in place.

    Parameters
    ----------
    z : Tensor
        u before and h after, shape (T, B, d), contiguous, d <= 256; float32, like all others.
    weight, hx, bias
        W, shape (d, d); h_0, shape (B, d); the bias of modReLU, shape (d,), or None: any strides.
    nonlinearity : str
        One of :data:`~givens.rnn.recurrence.NONLINEARITIES`.

    Notes
    -----
    2·T·B·d² flops. Reads and writes T·B·d numbers each, and W once for every row of the batch.
    """
    steps, batch, d = z.shape
    if z.numel():
        matrix = weight.mT.contiguous()
        _forward_kernel[(batch,)](
            *(z, matrix, hx, hx if bias is None else bias, steps, d, batch * d),
            *(*hx.stride(), 0 if bias is None else bias.stride(0)),
            PHI=CODES[nonlinearity],
            **_sizes(d),
        )


def backward(
    grad_output: Tensor, weight: Tensor, output: Tensor, nonlinearity: str, *, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the derivatives by z_t = u_t + h_{t−1} Wᵀ, and those by the bias in every row.

    Parameters
    ----------
    grad_output : Tensor
        Derivatives by the states, shape (T, B, d), any strides; float32, like all others.
    weight, output
        W, shape (d, d), any strides; the states, shape (T, B, d), contiguous.
    nonlinearity : str
        One of :data:`~givens.rnn.recurrence.NONLINEARITIES`.
    bias : bool
        Whether the derivatives by the bias are wanted.

    Returns
    -------
    grad_z : Tensor
        dz_t = φ′(z_t)·(g_t + dz_{t+1} W), shape (T, B, d), contiguous.
    bias_rows : Tensor or None
        Shape (B, d): the derivatives by the bias of modReLU, one row for each of the batch.
    """
    steps, batch, d = output.shape
    grad_z = torch.empty_like(output)
    rows = torch.zeros(batch, d, dtype=output.dtype, device=output.device) if bias else None
    if output.numel():
        matrix = weight.contiguous()
        _backward_kernel[(batch,)](
            *(grad_output[-1], matrix, output[-1], grad_z[-1], output if rows is None else rows),
            *(steps, d, batch * d, *grad_output.stride()),
            PHI=CODES[nonlinearity],
            BIAS=bias,
            **_sizes(d),
        )
    return grad_z, rows


def _sizes(d: int) -> dict[str, Any]:
    """How the units are laid out: all of W in one tile up to 128, in three or four above."""
    units = max(16, triton.next_power_of_2(d))
    tiles = 1 if units < LARGEST else triton.cdiv(d, _TILE)
    return {"UNITS": units, "TILES": tiles, "num_warps": max(1, min(16, units * units // 2048))}


@triton.jit
def _tile(w, d, FIRST: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr):
    """All rows and some columns of a column-major d×d matrix; 0 where there are none.

    Threads lie along what is contiguous: here they get rows, so that the sum over a row needs few of them.
    """
    row = tl.arange(0, UNITS)[:, None]
    column = FIRST + tl.arange(0, WIDTH)[None, :]
    return tl.load(w + row + column * d, (row < d) & (column < d), 0.0)


@triton.jit
def _tiles(w, d, UNITS: tl.constexpr, TILES: tl.constexpr):
    """What of a matrix stays in registers: all of it as one tile, or the first three quarters."""
    WIDTH: tl.constexpr = UNITS if TILES == 1 else UNITS // 4
    w0 = _tile(w, d, 0, UNITS, WIDTH)
    w1 = w0
    w2 = w0
    if TILES > 1:
        w1 = _tile(w, d, WIDTH, UNITS, WIDTH)
        w2 = _tile(w, d, 2 * WIDTH, UNITS, WIDTH)
    return w0, w1, w2


@triton.jit
def _halves(h, UNITS: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(h, (2, UNITS // 2)), (1, 0)))


@triton.jit
def _times(h, w0, w1, w2, w, d, UNITS: tl.constexpr, TILES: tl.constexpr):
    """Σ_c W[r, c]·h[c] for all rows r."""
    if TILES == 1:
        products = w0 * h[None, :]
    else:
        low, high = _halves(h, UNITS)
        first, second = _halves(low, UNITS // 2)
        third, fourth = _halves(high, UNITS // 2)
        products = w0 * first[None, :] + w1 * second[None, :] + w2 * third[None, :]
        if TILES == 4:
            # There are no registers for it: it comes from the cache at every step.
            last = _tile(w, d, 3 * UNITS // 4, UNITS, UNITS // 4)
            products += last * fourth[None, :]
    return tl.sum(products, 1)


@triton.jit
def _tanh(z):
    small = z * z
    # The Taylor polynomial, where 1 − e^(−2|z|) would cancel.
    series = z + z * small * (-1 / 3 + small * (2 / 15 + small * (-17 / 315 + small * (62 / 2835))))
    e = tl.exp(-2 * tl.abs(z))
    far = (1 - e) / (1 + e)
    return tl.where(tl.abs(z) < 0.3, series, tl.where(z < 0, -far, far))


@triton.jit
def phi(z, b, PHI: tl.constexpr):
    """The nonlinearity, with modReLU's bias."""
    if PHI == _MODRELU:
        size = tl.maximum(tl.abs(z) + b, 0.0)
        h = tl.where(z > 0, size, tl.where(z < 0, -size, 0.0 * z))
    elif PHI == _RELU:
        h = tl.where(z > 0, z, 0.0 * z)
    elif PHI == _TANH:
        h = _tanh(z)
    else:
        h = z
    return h


@triton.jit
def through_phi(gradient, h, PHI: tl.constexpr):
    """Derivatives by z, and by modReLU's bias, from those by a state h = φ(z)."""
    dz = gradient
    by_bias = gradient
    if PHI == _MODRELU:
        # The sign of a state tells whether its unit is active, and which way it points.
        by_bias = tl.where(h > 0, gradient, tl.where(h < 0, -gradient, 0.0 * gradient))
        dz = tl.where(h < 0, -by_bias, by_bias)
    elif PHI == _RELU:
        dz = tl.where(h > 0, gradient, 0.0 * gradient)
    elif PHI == _TANH:
        dz = gradient - gradient * h * h
    return dz, by_bias


@triton.jit
def _forward_kernel(
    z, weight, hx, bias, steps, d, stride, hb, hd, bd,
    PHI: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, UNITS)
    inside = unit < d
    w0, w1, w2 = _tiles(weight, d, UNITS, TILES)
    b = tl.zeros((UNITS,), tl.float32)
    if PHI == _MODRELU:
        b = tl.load(bias + unit * bd, inside, 0.0)
    h = tl.load(hx + row * hb + unit * hd, inside, 0.0)
    place = z + row * d + unit
    u = tl.load(place, inside, 0.0)
    for t in range(steps):
        # The next step's input is on its way while this one computes.
        later = tl.load(place + stride, unit < tl.where(t + 1 < steps, d, 0), 0.0)
        u += _times(h, w0, w1, w2, weight, d, UNITS, TILES)
        h = phi(u, b, PHI)
        tl.store(place, h, inside)
        u = later
        place += stride


@triton.jit
def _backward_kernel(
    g, weight, output, grad_z, bias_rows, steps, d, stride, gt, gb, gd,
    PHI: tl.constexpr, BIAS: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    # g, output and grad_z point to the last step.
    row = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, UNITS)
    inside = unit < d
    # A row-major W is a column-major Wᵀ, which is the matrix of dz ↦ dz W.
    w0, w1, w2 = _tiles(weight, d, UNITS, TILES)
    total = tl.zeros((UNITS,), tl.float32)
    dz = tl.zeros((UNITS,), tl.float32)
    place = row * d + unit
    g_place = g + row * gb + unit * gd
    gradient = tl.load(g_place, inside, 0.0)
    h = tl.load(output + place, inside, 0.0)
    for t in range(steps):
        more = unit < tl.where(t + 1 < steps, d, 0)
        g_place -= gt
        earlier = tl.load(g_place, more, 0.0)
        h_earlier = tl.load(output + place - stride, more, 0.0)
        dz = gradient + _times(dz, w0, w1, w2, weight, d, UNITS, TILES)
        dz, by_bias = through_phi(dz, h, PHI)
        total += by_bias
        tl.store(grad_z + place, dz, inside)
        gradient = earlier
        h = h_earlier
        place -= stride
    if BIAS:
        tl.store(bias_rows + row * d + unit, total, inside)
