"""Record the calls of torch that a function makes, and make them again: a CUDA graph on a CPU."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from givens.manifolds import backend

# What waits for a device, or brings numbers of the host there: no graph can record it.
FORBIDDEN = {
    "_linalg_check_errors",
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "unique",
    "_unique2",
}


class Recording(TorchDispatchMode):
    """The calls made inside, with the very tensors that they read and wrote.

    Of what has been made by the host nothing is kept but numbers of Python, as in a graph.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._patch = monkeypatch
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __enter__(self) -> "Recording":
        self._patch.setattr(backend, "captured", lambda x: True)
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._patch.setattr(backend, "captured", lambda x: False)

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        name = call.overloadpacket.__name__
        if name in FORBIDDEN:
            raise RuntimeError(f"{name} cannot be recorded")
        out = call(*args, **(kwargs or {}))
        self.calls.append((call, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Make the calls again: what they made anew then, they write to the same memory."""
        for call, args, kwargs, before in self.calls:
            for old, new in zip(
                tree_leaves(before), tree_leaves(call(*args, **kwargs)), strict=True
            ):
                if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)
