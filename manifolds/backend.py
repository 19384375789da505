"""Which implementation a call goes to: plain torch, or kernels where there are some for its tensors."""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["kernels_for"]

# Matrices that one launch takes: the limit of CUDA's second and third dimension of a grid.
_LARGEST_BATCH = 65_535


def kernels_for(*matrices: Tensor, group: int = 2) -> ModuleType | None:
    """Return the module of kernels, if all `matrices` are such that it takes them, else None.

    It takes float32 and float64 on a GPU, of which no gradient is recorded, with strides that make one
    dimension of the leading ones, and up to 65,535 matrices; and groups of columns up to a size.
    """
    x = matrices[0]
    if not _on_gpu(x) or x.dtype not in (torch.float32, torch.float64):
        return None
    if torch.is_grad_enabled() and any(matrix.requires_grad for matrix in matrices):
        return None
    if math.prod(x.shape[:-2]) > _LARGEST_BATCH:
        return None
    if torch.compiler.is_compiling() or not all(map(_one_batch, matrices)):
        return None
    kernels = _kernels()
    return None if kernels is None or group > kernels.LARGEST_GROUP else kernels


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _one_batch(x: Tensor) -> bool:
    """Whether the leading dimensions can be viewed as one."""
    sizes, strides = x.shape[:-2], x.stride()[:-2]
    outer = zip(strides, strides[1:], sizes[1:], strict=False)
    return all(stride == inner * size for stride, inner, size in outer)


@cache
def _kernels() -> ModuleType | None:
    try:
        from . import kernels
    except ImportError:  # no Triton: it comes with torch where that has CUDA
        return None
    return kernels
