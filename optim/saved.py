"""Saved states of optimizers: what stands for a strategy object, and whether a state fits."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..manifolds import CoordinateManifold
from .parameters import manifold_of

__all__ = ["STRATEGIES", "checked_groups", "describe"]

# The options of a group that are strategy objects: a saved state holds their text.
STRATEGIES = {"selection", "scaling", "line_search"}


def describe(selection: object) -> str:
    """Text that identifies a strategy and its settings: no memory addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(selection))


def checked_groups(state_dict: dict[str, Any], optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the groups of a saved state, with the optimizer's own strategies in place of their text.

    Raises
    ------
    ValueError
        If the state is that of other groups, options, strategies or shapes.
    """
    groups = state_dict["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(
            f"the state has {len(groups)} parameter groups, this optimizer {len(optimizer.param_groups)}"
        )
    checked = []
    for saved, own in zip(groups, optimizer.param_groups, strict=True):
        # torch adds "differentiable" to the defaults when it loads.
        missing = sorted(set(optimizer.defaults) - {"differentiable"} - set(saved))
        if missing:
            raise ValueError(
                f"the state is not one of {type(optimizer).__name__}: its parameter groups lack {missing}"
            )
        group = dict(saved)
        for name in STRATEGIES & own.keys():
            if saved[name] != describe(own[name]):
                raise ValueError(
                    f"the state was saved with {name}={saved[name]}, this optimizer has "
                    f"{describe(own[name])}; build it with the same {name}"
                )
            group[name] = own[name]
        checked.append(group)
        for key, p in zip(saved["params"], own["params"], strict=False):
            for name, value in state_dict["state"].get(key, {}).items():
                expected = _shape(p, name)
                if isinstance(value, Tensor) and value.shape != expected:
                    raise ValueError(
                        f"{name} of parameter {key} has shape {tuple(value.shape)} in the state; "
                        f"for this parameter it is {tuple(expected)}"
                    )
    return checked


def _shape(p: Tensor, name: str) -> tuple[int, ...]:
    """Shape of a tensor in the state of a parameter."""
    manifold = manifold_of(p)
    if name == "momentum_buffer":
        return p.shape
    if name == "step":
        return ()
    if not isinstance(manifold, CoordinateManifold):
        return (p.numel() * (2 if p.is_complex() else 1),)
    per_axis = name.startswith("axis_")
    size = manifold.num_axes(p) if per_axis else manifold.num_coordinates(p)
    return (*p.shape[: p.dim() - manifold.ndim], size)
