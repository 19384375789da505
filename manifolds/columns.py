"""Columns of matrices in any memory layout: taking some of them, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["CACHE", "PANEL", "column_index", "panels", "put_", "take", "take_groups"]

# Entries that a pass over gradients and points may hold at a time: bounds the memory of a large
# block or of a ranking of all coordinates, and is large enough for matrix products to run at speed.
PANEL = 2**21

# On a CPU, entries that stay in a core's cache from one operation to the next.
CACHE = 2**17


def column_index(x: Tensor, index: Tensor) -> Tensor:
    """The index `(..., k)` as gather and scatter along the columns of `x` want it, without a copy."""
    return index.unsqueeze(-2).expand(*x.shape[:-1], index.shape[-1])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Columns ``(..., k)`` of x, as ``(..., m, k)``."""
    if _contiguous_columns(x):
        if x.dim() == 2:
            return x.mT.index_select(-2, index).mT
        return x.mT.gather(-2, _row_index(x, index)).mT
    if x.dim() == 2:
        return x.index_select(-1, index)
    return x.gather(-1, column_index(x, index))


def take_groups(x: Tensor, axes: Tensor) -> Tensor:
    """Groups of columns ``(..., n, r)`` of x, as ``(..., n, m, r)``."""
    axes = axes.expand(*x.shape[:-2], *axes.shape[-2:])
    return take(x, axes.flatten(-2)).unflatten(-1, axes.shape[-2:]).transpose(-3, -2)


def put_(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Write ``(..., m, k)`` values to the columns ``(..., k)`` of x, none twice, in place."""
    if torch.compiler.is_compiling() and x.dim() == 2:
        x[:, index] = values  # which a compiler leaves in place
    elif _contiguous_columns(x):
        if x.dim() == 2:
            x.mT.index_copy_(-2, index, values.mT)
        else:
            x.mT.scatter_(-2, _row_index(x, index), values.mT)
    else:
        x.scatter_(-1, column_index(x, index), values)
    return x


def panels(x: Tensor, n: int, r: int = 1) -> Iterator[tuple[slice, slice]]:
    """Cut a pass over n groups of r columns of x into panels, slices of its rows and of the groups.

    A CPU is fastest when what it has read once stays in the cache until it is written; so a panel is
    some rows of a row-major matrix, and some columns of a column-major one. On an accelerator
    panels only bound the memory.
    """
    *batch, m, _ = x.shape
    # More is done with every number of a group, so that larger panels, which start threads less often,
    # cost nothing.
    cache = CACHE if r == 1 else 4 * CACHE
    size = (cache if x.device.type == "cpu" else PANEL) // max(1, torch.Size(batch).numel())
    if m * n * r <= size:
        yield slice(None), slice(None)
    elif _contiguous_columns(x):
        width = max(1, size // (m * r))
        for first in range(0, n, width):
            yield slice(None), slice(first, first + width)
    else:
        height = max(1, size // (n * r))
        for first in range(0, m, height):
            yield slice(first, first + height), slice(None)


def _contiguous_columns(x: Tensor) -> bool:
    # What is compiled follows the strides anyway; asking for them, it fails where they may change.
    return not torch.compiler.is_compiling() and x.stride(-2) < x.stride(-1)


def _row_index(x: Tensor, index: Tensor) -> Tensor:
    """The index ``(..., k)`` as gather and scatter along the rows of ``x.mT`` want it."""
    return index.unsqueeze(-1).expand(*x.shape[:-2], index.shape[-1], x.shape[-2])
