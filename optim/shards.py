"""Parameters that are sharded over processes: each steps with the points that it holds."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["ParameterState", "check_sharding", "first_point", "is_sharded", "local"]


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
    """Return the number in the first dimension at which this process's part begins, and its length."""
    first, length = 0, p.shape[0]
    mesh = p.device_mesh  # type: ignore[attr-defined]
    placements = p.placements  # type: ignore[attr-defined]
    for size, rank, placement in zip(mesh.shape, mesh.get_coordinate(), placements, strict=True):
        if placement.is_shard():
            chunk = -(-length // size)
            start = min(rank * chunk, length)
            first, length = first + start, min(chunk, length - start)
    return first, length


class ParameterState(MutableMapping[str, Any]):
    """The memory of one parameter, which begins with the first thing that is kept.

    Of a sharded parameter the tensors are read and written as this process's parts, and kept as
    ``DTensor`` with the parameter's sharding, so that a checkpoint knows what they are parts of.

    Parameters
    ----------
    states : mapping
        The optimizer's ``state``.
    p : Tensor
        The parameter.
    """

    def __init__(self, states: MutableMapping[Tensor, Any], p: Tensor) -> None:
        self._states = states
        self._p = p

    def __getitem__(self, name: str) -> Any:
        if self._p not in self._states:  # a look at a defaultdict would make it
            raise KeyError(name)
        value = self._states[self._p][name]
        return local(value) if isinstance(value, Tensor) else value

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and is_sharded(self._p):
            value = _sharded_like(value, self._p)
        self._states[self._p][name] = value

    def __delitem__(self, name: str) -> None:
        del self._states[self._p][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states.get(self._p, ()))

    def __len__(self) -> int:
        return len(self._states.get(self._p, ()))


def _sharded_like(value: Tensor, p: Tensor) -> Tensor:
    """Return a ``DTensor`` of which `value` is this process's part, sharded as `p` is."""
    from torch.distributed.tensor import DTensor

    shape = torch.Size([p.shape[0], *value.shape[1:]])
    return DTensor.from_local(
        value,
        p.device_mesh,  # type: ignore[attr-defined]
        p.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def add_over_shards(counts: list[int], parameters: list[Tensor]) -> list[int]:
    """Add up what each process counts in its parts of sharded parameters, in one message a mesh."""
    totals = list(counts)
    meshes: dict[Any, list[int]] = {}
    for i, p in enumerate(parameters):
        if is_sharded(p):
            meshes.setdefault(p.device_mesh, []).append(i)  # type: ignore[attr-defined]
    for mesh, members in meshes.items():
        sums = torch.tensor([counts[i] for i in members], device=mesh.device_type)
        for group in mesh.get_all_groups():
            torch.distributed.all_reduce(sums, group=group)
        for i, total in zip(members, sums.tolist(), strict=True):
            totals[i] = total
    return totals
