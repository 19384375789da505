"""Triton kernels that run a step of a recurrence in one launch, spread over the card: for any size.

Where W does not fit into one multiprocessor (:mod:`.kernels`), a step is a product of all rows of the batch
with it, cut into tiles, and the nonlinearity of a tile is taken before it is written. In a CUDA graph the
launches cost the host nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..manifolds.backend import rounds_products
from .kernels import CODES, phi, through_phi

__all__ = ["backward", "forward_"]

# Rows of the batch and units of a tile, and terms of the product that it adds at a time.
_ROWS, _UNITS, _TERMS = 32, 32, 32


def forward_(z: Tensor, weight: Tensor, hx: Tensor, bias: Tensor | None, nonlinearity: str) -> None:
    """Turn what enters at each step into the states h_t = φ(u_t + h_{t−1} Wᵀ), in place.

    Takes what :func:`.kernels.forward_` takes, with any number of units. 2·T·B·d² flops in T launches, with
    operands rounded to TF32 where ``torch.set_float32_matmul_precision`` allows it.
    """
    _, batch, d = z.shape
    if not z.numel():
        return
    b = hx if bias is None else bias
    h = hx
    for step in z.unbind():
        _forward_kernel[_tiles(batch, d)](
            *(step, h, weight, b, batch, d, *h.stride(), *weight.stride()),
            0 if bias is None else b.stride(0),
            PHI=CODES[nonlinearity],
            BIAS=bias is not None,
            **_options(),
        )
        h = step


def backward(
    grad_output: Tensor, weight: Tensor, output: Tensor, nonlinearity: str, *, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the derivatives by z_t = u_t + h_{t−1} Wᵀ, and those by the bias in every row.

    Takes and returns what :func:`.kernels.backward` does, with any number of units.
    """
    _, batch, d = output.shape
    grad_z = torch.empty_like(output)
    rows = torch.zeros(batch, d, dtype=output.dtype, device=output.device) if bias else None
    if not output.numel():
        return grad_z, rows
    later = torch.zeros(batch, d, dtype=output.dtype, device=output.device)
    steps = zip(grad_output.unbind(), output.unbind(), grad_z.unbind(), strict=True)
    for g, h, dz in reversed([*steps]):
        _backward_kernel[_tiles(batch, d)](
            *(dz, later, weight, g, h, h if rows is None else rows, batch, d),
            *(*weight.stride(), *g.stride()),
            PHI=CODES[nonlinearity],
            BIAS=bias,
            **_options(),
        )
        later = dz
    return grad_z, rows


def _tiles(batch: int, d: int) -> tuple[int, int]:
    return triton.cdiv(batch, _ROWS), triton.cdiv(d, _UNITS)


def _options() -> dict[str, Any]:
    return {
        "PRECISION": "tf32" if rounds_products() else "ieee",
        "ROWS": _ROWS,
        "UNITS": _UNITS,
        "TERMS": _TERMS,
        "num_warps": 4,
    }


@triton.jit
def _product(
    a, w, rows, units, batch, d, ab, ad, wk, wu,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """Σ_k a[row, k]·w[k, unit] for the rows and units of a tile."""
    total = tl.zeros((ROWS, UNITS), tl.float32)
    for first in range(0, d, TERMS):
        k = first + tl.arange(0, TERMS)
        left = tl.load(
            a + rows[:, None] * ab + k[None, :] * ad,
            (rows < batch)[:, None] & (k < d)[None, :],
            0.0,
        )
        right = tl.load(
            w + k[:, None] * wk + units[None, :] * wu, (k < d)[:, None] & (units < d)[None, :], 0.0
        )
        total += tl.dot(left, right, input_precision=PRECISION)
    return total


@triton.jit
def _forward_kernel(
    z, h, weight, bias, batch, d, hb, hd, wr, wc, bd,
    PHI: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS).to(tl.int64)
    inside = (rows < batch)[:, None] & (units < d)[None, :]
    place = z + rows[:, None] * d + units[None, :]
    u = tl.load(place, inside, 0.0)
    b = tl.zeros((UNITS,), tl.float32)
    if BIAS:
        b = tl.load(bias + units * bd, units < d, 0.0)
    # The rows of W are the units that it writes to.
    u += _product(h, weight, rows, units, batch, d, hb, hd, wc, wr, PRECISION, ROWS, UNITS, TERMS)
    tl.store(place, phi(u, b[None, :], PHI), inside)


@triton.jit
def _backward_kernel(
    dz, later, weight, g, h, bias_rows, batch, d, wr, wc, gb, gd,
    PHI: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    units = tl.program_id(1) * UNITS + tl.arange(0, UNITS).to(tl.int64)
    inside = (rows < batch)[:, None] & (units < d)[None, :]
    place = rows[:, None] * d + units[None, :]
    gradient = tl.load(g + rows[:, None] * gb + units[None, :] * gd, inside, 0.0)
    state = tl.load(h + place, inside, 0.0)
    gradient += _product(
        later, weight, rows, units, batch, d, d, 1, wr, wc, PRECISION, ROWS, UNITS, TERMS
    )
    through, by_bias = through_phi(gradient, state, PHI)
    tl.store(dz + place, through, inside)
    if BIAS:
        total = tl.load(bias_rows + place, inside, 0.0)
        tl.store(bias_rows + place, total + by_bias, inside)
