"""What an optimizer asks of a parameter: its manifold, gradient, name, and whether something wrote to it."""

from __future__ import annotations

from typing import Any

import geoopt
from geoopt.manifolds import Manifold
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..manifolds import CoordinateManifold
from ..manifolds.shards import is_sharded, local

__all__ = ["local_gradient", "manifold_of", "mark", "name_of"]


def manifold_of(p: Tensor) -> Manifold | None:
    """Manifold of a parameter; None for a parameter without a constraint."""
    manifold = getattr(p, "manifold", None)
    if isinstance(manifold, CoordinateManifold):
        return manifold
    return None if isinstance(manifold, geoopt.Euclidean) else manifold


def local_gradient(p: Tensor) -> Tensor:
    """Return the gradient of this process's part of a parameter."""
    assert p.grad is not None
    if is_sharded(p) and p.grad.placements != p.placements:  # type: ignore[attr-defined]
        return local(p.grad.redistribute(p.device_mesh, p.placements))  # type: ignore[attr-defined]
    return local(p.grad)


def mark(p: Tensor) -> tuple[object, ...]:
    """What changes when a point is written to or replaced; read on the host, O(1)."""
    manifold = manifold_of(p)
    if manifold is None:
        return (None,)
    x = local(p)
    # A weak reference to the memory, not its address, which another tensor may get.
    memory = StorageWeakRef(x.untyped_storage()), x.storage_offset()
    return manifold, None if p.is_inference() else p._version, memory, p.dtype


def name_of(number: int, group: dict[str, Any], p: Tensor) -> str:
    """How messages name a parameter."""
    names = group.get("param_names")
    name = f"{names[[q is p for q in group['params']].index(True)]!r}" if names else f"{number}"
    return f"parameter {name} of shape {tuple(p.shape)}"
