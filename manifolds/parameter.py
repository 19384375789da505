"""Parameters that live on a manifold."""

from __future__ import annotations

from typing import Any

import torch
from geoopt import ManifoldParameter
from geoopt.manifolds import Manifold
from torch import nn

__all__ = ["constrain", "refuse_assign"]


def constrain(module: nn.Module, name: str, manifold: Manifold) -> nn.Module:
    """Turn a parameter of a module into one that lives on a manifold.

    The parameter becomes a :class:`geoopt.ManifoldParameter` that starts at the point nearest to its
    present value; an optimizer of :mod:`givens.optim` or geoopt then keeps it on the manifold. Build
    the optimizer afterwards.

    Parameters
    ----------
    module : nn.Module
        The module, changed in place.
    name : str
        Name of its parameter.
    manifold : Manifold
        A manifold of givens or geoopt.

    Returns
    -------
    nn.Module
        `module`.

    Raises
    ------
    AttributeError
        If the module itself has no such parameter.
    ValueError, TypeError
        If the parameter's shape or type does not fit the manifold.

    Examples
    --------
    >>> from givens.manifolds import OrthogonalGroup, constrain
    >>> layer = constrain(torch.nn.Linear(8, 8), "weight", OrthogonalGroup())
    """
    value = module._parameters.get(name)
    if value is None:
        raise AttributeError(
            f"{type(module).__name__} has no parameter {name!r}; it has {[*module._parameters]}"
        )
    manifold.assert_check_point(value)
    with torch.no_grad():
        point = manifold.projx(value.detach())
        manifold.assert_check_point_on_manifold(point)
    module.register_parameter(
        name, ManifoldParameter(point, manifold=manifold, requires_grad=value.requires_grad)
    )
    refuse_assign(module, name)
    return module


def refuse_assign(module: nn.Module, name: str) -> None:
    """Let ``module.load_state_dict(..., assign=True)`` raise instead of replacing a manifold parameter.

    With ``assign=True`` torch puts a plain ``nn.Parameter`` in its place: the constraint would be
    gone without a word, and an optimizer that holds the old parameter would train nothing.

    Parameters
    ----------
    module : nn.Module
        The module that holds the parameter.
    name : str
        The parameter's name in it.
    """
    module.register_load_state_dict_pre_hook(_RefuseAssign(name))


class _RefuseAssign:
    """The hook of :func:`refuse_assign`: a class, not a closure, so that the module can be pickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self,
        module: nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *_: object,
    ) -> None:
        given = state_dict.get(prefix + self.name)
        if not local_metadata.get("assign_to_params_buffers", False) or given is None:
            return
        if not isinstance(given, ManifoldParameter):
            raise RuntimeError(
                f"load_state_dict(assign=True) would replace the manifold parameter "
                f"{prefix + self.name!r} by a plain one, which no optimizer keeps on its manifold; "
                "use assign=False, which copies the values"
            )
