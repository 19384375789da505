"""Floating-point operations of what torch calls: how many a step takes, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def _batch(x: Tensor) -> int:
    return math.prod(x.shape[:-2])


def _qr(x: Tensor, *_: Any, **__: Any) -> float:
    """R, then Q by the same reflections: 2·(2mn² − 2n³/3)."""
    m, n = max(x.shape[-2:]), min(x.shape[-2:])
    return _batch(x) * (4 * m * n**2 - 4 * n**3 / 3)


def _cubic(factor: float) -> Callable[..., float]:
    def flops(x: Tensor, *_: Any, **__: Any) -> float:
        return factor * _batch(x) * x.shape[-1] ** 3

    return flops


def _solve(a: Tensor, b: Tensor, *_: Any, **__: Any) -> float:
    n, k = a.shape[-1], b.shape[-1] if b.dim() > 1 else 1
    return _batch(a) * (2 * n**3 / 3 + 2 * n**2 * k)


def _triangular(a: Tensor, b: Tensor, *_: Any, **__: Any) -> float:
    return _batch(a) * a.shape[-1] ** 2 * min(b.shape[-2:])


def _svd(x: Tensor, *_: Any, **__: Any) -> float:
    m, n = max(x.shape[-2:]), min(x.shape[-2:])
    return _batch(x) * (4 * m * n**2 + 22 * n**3)


# Golub and Van Loan, Matrix Computations, 4th edition; exponentials as 8 products, a usual number of them.
FACTORIZATIONS: dict[Any, Callable[..., float]] = {
    aten.linalg_qr.default: _qr,
    aten.linalg_cholesky_ex.default: _cubic(1 / 3),
    aten.linalg_eigh.default: _cubic(9),
    aten._linalg_eigh.default: _cubic(9),
    aten.linalg_eig.default: _cubic(25),
    aten.linalg_inv_ex.default: _cubic(2),
    aten.cholesky_inverse.default: _cubic(2 / 3),
    aten._linalg_solve_ex.default: _solve,
    aten.linalg_lu_factor_ex.default: _cubic(2 / 3),
    aten.linalg_solve_triangular.default: _triangular,
    aten.triangular_solve.default: lambda b, a, *_, **__: _triangular(a, b),
    aten.cholesky_solve.default: lambda b, a, *_, **__: 2 * _triangular(a, b),
    aten._linalg_svd.default: _svd,
    aten.linalg_matrix_exp.default: _cubic(16),
}
# What moves numbers and computes none.
FREE = {
    aten.clone.default,
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten.gather.default,
    aten.index_select.default,
    aten.cat.default,
    aten.stack.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.randperm.default,
    aten.sort.default,
}


class CountFlops(TorchDispatchMode):
    """Counts the flops of all calls inside it.

    Products by torch's own formulas, factorizations by those of the textbook, and one flop for every
    entry of what another operation reads or writes, whichever is more; views and copies are free.

    Attributes
    ----------
    total : float
        The sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **kwargs, out_val=out)
        elif func in FACTORIZATIONS:
            self.total += FACTORIZATIONS[func](*args, **kwargs)
        elif func not in FREE and not func.is_view:
            results = out if isinstance(out, tuple | list) else (out,)
            sizes = [x.numel() for x in (*args, *results) if isinstance(x, Tensor)]
            self.total += max(sizes, default=0)
        return out
