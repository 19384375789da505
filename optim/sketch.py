"""Factors of a matrix of low rank, by a random sketch."""

from __future__ import annotations

import torch
from torch import Tensor

from .random import Randomness

__all__ = ["sketch"]

# Columns beyond the rank: with none, the least singular value of the random matrix costs k digits.
_MORE = 8


def sketch(matrix: Tensor, rank: int, random: Randomness) -> tuple[Tensor, Tensor]:
    """Factor a matrix of low rank: left · rightᴴ (Halko, Martinsson and Tropp, 2011, algorithm 4.1).

    Parameters
    ----------
    matrix : Tensor
        Shape ``(..., n, p)``.
    rank : int
        Its rank, or more. Of a matrix with a larger one the product is the projection on a random
        subspace of its columns' span, in which the large singular values have the larger part.
    random : Randomness
        What the sketch is drawn with.

    Returns
    -------
    left, right : Tensor
        Shapes ``(..., n, k)``, with orthonormal columns, and ``(..., p, k)``, for k = rank + 8 and no more
        than n and p. Costs 4npk flops and a factorization of n×k.
    """
    k = min(rank + _MORE, *matrix.shape[-2:])
    mixed = random.reals(*matrix.shape[:-2], matrix.shape[-1], k, dtype=matrix.real.dtype)
    left = torch.linalg.qr(matrix @ mixed.to(matrix.dtype)).Q
    return left, matrix.mH @ left
