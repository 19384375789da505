"""Which implementation a call goes to: by where its tensors are, and whether it is being recorded."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

__all__ = [
    "captured",
    "exact_products",
    "kernels_for",
    "load",
    "on_gpu",
    "readable",
    "recorded",
    "rounds_products",
]

# Matrices that one launch takes: the limit of CUDA's second and third dimension of a grid.
_LARGEST_BATCH = 65_535

# Holds something while the user's leave to round products is switched off.
_switched_off: list[bool] = []


def kernels_for(*matrices: Tensor, group: int = 2) -> ModuleType | None:
    """Return the module of kernels, if all `matrices` are such that it takes them, else None.

    It takes float32 and float64 on a GPU, of which no gradient is recorded, with strides that make one
    dimension of the leading ones, and up to 65,535 matrices; and groups of columns up to a size, in
    float32: older releases of Triton have no product of float64 matrices.
    """
    x = matrices[0]
    if not on_gpu(x) or x.dtype not in (torch.float32, torch.float64):
        return None
    if torch.is_grad_enabled() and any(matrix.requires_grad for matrix in matrices):
        return None
    if math.prod(x.shape[:-2]) > _LARGEST_BATCH:
        return None
    if torch.compiler.is_compiling() or not all(map(_one_batch, matrices)):
        return None
    kernels = load("givens.manifolds.kernels")
    if kernels is None or (group > 2 and x.dtype != torch.float32):
        return None
    return kernels if group <= kernels.LARGEST_GROUP else None


def on_gpu(x: Tensor) -> bool:
    """Whether kernels can run where a tensor is; tests replace it to run them in Triton's interpreter."""
    return x.is_cuda


def readable(x: Tensor) -> bool:
    """Whether the host may look at a tensor's numbers, and choose by them what it does.

    On a CPU, unless the calls are recorded to be repeated with other numbers. On an accelerator it would
    have to wait.
    """
    return x.device.type == "cpu" and not recorded(x)


def recorded(x: Tensor) -> bool:
    """Whether calls are recorded, by ``torch.compile`` or in a CUDA graph."""
    return torch.compiler.is_compiling() or captured(x)


def captured(x: Tensor) -> bool:
    """Whether a CUDA graph records the calls; tests replace it to record them on a CPU."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def rounds_products() -> bool:
    """Whether float32 products may be rounded to TF32 on a GPU: what the user allows torch."""
    if _switched_off:
        return True
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)


@contextmanager
def exact_products() -> Iterator[None]:
    """Let torch multiply in float32 inside, whatever the user allows.

    A product that puts a point back on its manifold would take it off again by TF32's rounding, which is a
    thousand times as large as what is to be taken away. Kernels ask :func:`rounds_products`, as ever.
    """
    if _switched_off or torch.compiler.is_compiling() or not rounds_products():
        yield
        return
    _switched_off.append(True)
    matmul = torch.backends.cuda.matmul
    newer = hasattr(matmul, "fp32_precision")
    before = "tf32" if newer else torch.get_float32_matmul_precision()
    try:
        if newer:
            matmul.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        _switched_off.pop()
        if not newer:
            torch.set_float32_matmul_precision(before)
        else:
            matmul.fp32_precision = "none"  # as of all products; unless that is not what it was
            if matmul.fp32_precision != before:
                matmul.fp32_precision = before


@cache
def load(kernels: str) -> ModuleType | None:
    """Import a module of kernels; None without Triton, which comes with torch where that has CUDA."""
    try:
        return importlib.import_module(kernels)
    except ImportError:
        return None


def _one_batch(x: Tensor) -> bool:
    """Whether the leading dimensions can be viewed as one."""
    sizes, strides = x.shape[:-2], x.stride()[:-2]
    outer = zip(strides, strides[1:], sizes[1:], strict=False)
    return all(stride == inner * size for stride, inner, size in outer)
