"""The processes of a data-parallel run that hold the same parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # torch may have been built without it
    from torch.distributed import ProcessGroup

__all__ = ["Replicas", "digest"]


class Replicas:
    """A process group whose members take the same steps with the parameters that each of them holds.

    Every method is collective: all members call it, in the same order.

    Parameters
    ----------
    group : ProcessGroup
        The processes.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group

    def average(self, x: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, the same bits in all of them."""
        return self.average_all([x])[0]

    def average_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the means of several tensors, with one message for every type and device."""
        averages: list[Tensor] = list(tensors)
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i, x in enumerate(tensors):
            kinds.setdefault((x.dtype, x.device), []).append(i)
        for members in kinds.values():
            # Of complex tensors the real and the imaginary parts: not every backend knows complex ones.
            real = [
                torch.view_as_real(x) if x.is_complex() else x
                for x in (tensors[i] for i in members)
            ]
            flat = torch.cat([x.reshape(-1) for x in real])
            dist.all_reduce(flat, group=self._group)
            flat /= self._group.size()
            for i, x, mean in zip(
                members, real, flat.split([x.numel() for x in real]), strict=True
            ):
                mean = mean.view(x.shape)
                averages[i] = torch.view_as_complex(mean) if tensors[i].is_complex() else mean
        return averages

    def compare(self, description: dict[str, str]) -> None:
        """Raise RuntimeError in all processes if their descriptions differ, and say in what."""
        gathered: list[Any] = [None] * self._group.size()
        dist.all_gather_object(gathered, description, group=self._group)
        first = gathered[0]
        for rank, other in enumerate(gathered):
            for name in dict.fromkeys([*first, *other]):
                if first.get(name) != other.get(name):
                    raise RuntimeError(
                        f"the processes would drift apart: {name} is {first.get(name, 'missing')} on rank 0 "
                        f"of the process group and {other.get(name, 'missing')} on rank {rank}; build "
                        "model and optimizer alike, load the same state everywhere, and broadcast the "
                        "parameters from one process"
                    )


def digest(x: Tensor) -> str:
    """Return a text that two tensors share if they have the same type, shape and bits."""
    values = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    content = values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{x.dtype} {tuple(x.shape)} {hashlib.blake2b(content, digest_size=8).hexdigest()}"
