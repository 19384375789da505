"""Whether a recurrence goes to kernels or to the plain loop."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ..manifolds import backend

__all__ = ["kernels_for"]

_logger = logging.getLogger(__name__)


def kernels_for(input: Tensor) -> ModuleType | None:
    """Return the module of kernels, if it takes a sequence of shape (T, B, d), else None.

    It takes float32 on a GPU, and no call that torch compiles: with few units the whole sequence in one
    launch, with more a launch for each step. Why another sequence on a GPU goes to the loop is logged
    once, at level INFO.
    """
    if not backend.on_gpu(input) or torch.compiler.is_compiling():
        return None
    kernels = backend.load("givens.rnn.kernels")
    if kernels is None:
        return _refuse("Triton is not installed")
    if input.dtype != torch.float32:
        return _refuse(f"the kernels work in float32, not in {input.dtype}")
    if input.shape[-1] > kernels.LARGEST:
        return backend.load("givens.rnn.tiled_kernels")
    return kernels


@cache
def _refuse(reason: str) -> None:
    _logger.info("the recurrence runs as a loop of calls, which is slower: %s", reason)
