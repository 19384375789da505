"""The memory of parameters that are sharded over processes: each steps with the points that it holds."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

from ..manifolds.shards import is_sharded, local

__all__ = ["ParameterState", "add_over_shards"]


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
