"""Parameters that are sharded over processes (``DTensor``): whole points, consecutive ones in each."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_sharding", "first_point", "is_sharded", "local"]


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, by its habits: the import takes a second."""
    return hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory; all of it if it is no ``DTensor``."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def check_sharding(p: Tensor, ndim: int) -> None:
    """Raise ValueError unless a ``DTensor`` holds whole points, consecutive ones in every process.

    Parameters
    ----------
    p : DTensor
        The parameter, shape ``(batch, …)``.
    ndim : int
        How many dimensions a point has.
    """
    placements = p.placements  # type: ignore[attr-defined]
    whole = all(placement.is_replicate() or placement.is_shard(0) for placement in placements)
    split = any(placement.is_shard() for placement in placements)
    if not whole or (split and p.dim() <= ndim) or first_point(p)[1] != local(p).shape[0]:
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} is sharded by {tuple(placements)}, which cuts its points "
            "apart: only a batch of points can be sharded, over its first dimension. Leave others out, "
            "for example by fully_shard(model, ignored_params=…)"
        )


def first_point(p: Tensor) -> tuple[int, int]:
    """Return the number in the first dimension at which this process's part begins, and its length.

    0 and all of it for a tensor that is not sharded.
    """
    first, length = 0, p.shape[:1].numel()
    if not is_sharded(p):
        return first, length
    mesh = p.device_mesh  # type: ignore[attr-defined]
    placements = p.placements  # type: ignore[attr-defined]
    for size, rank, placement in zip(mesh.shape, mesh.get_coordinate(), placements, strict=True):
        if placement.is_shard():
            chunk = -(-length // size)
            start = min(rank * chunk, length)
            first, length = first + start, min(chunk, length - start)
    return first, length
