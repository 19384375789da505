"""Parameters that live on a manifold."""

from __future__ import annotations

import geoopt
from geoopt import ManifoldParameter
from geoopt.manifolds import Manifold
from torch import Tensor, no_grad
from torch.nn import Module, Parameter

from .shards import check_sharding, is_sharded, local

__all__ = ["constrain", "keep_manifold"]


def constrain(module: Module, name: str, manifold: Manifold) -> Module:
    """Turn a parameter of a module into one that lives on a manifold.

    The parameter becomes a :class:`geoopt.ManifoldParameter` that starts at the point nearest to its
    present value; an optimizer of :mod:`givens.optim` or geoopt then keeps it on the manifold, and
    the module guards it as :func:`keep_manifold` says. Build the optimizer afterwards.

    A batch of points that is sharded over processes, as ``torch.distributed.fsdp.fully_shard`` leaves it,
    is changed in place: it stays the ``DTensor`` that it is, and every process keeps its own points on
    the manifold. Sharding loses the manifold, so call this after it.

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
        If the parameter's shape or type does not fit the manifold, or sharding cuts its points apart.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import OrthogonalGroup, constrain
    >>> layer = constrain(torch.nn.Linear(8, 8), "weight", OrthogonalGroup())
    """
    value = _parameter(module, name)
    if is_sharded(value):
        check_sharding(value, manifold.ndim)
    part = local(value.detach())
    manifold.assert_check_point(part)
    with no_grad():
        point = manifold.projx(part)
        if not point.is_meta:
            manifold.assert_check_point_on_manifold(point)
    if is_sharded(value):  # in place: whoever shards it holds on to the parameter
        part.copy_(point)
        value.manifold = manifold  # type: ignore[attr-defined]
    else:
        module.register_parameter(
            name, ManifoldParameter(point, manifold=manifold, requires_grad=value.requires_grad)
        )
    keep_manifold(module, name)
    return module


def keep_manifold(module: Module, name: str) -> None:
    """Guard a manifold parameter of a module against torch's ways of losing the manifold.

    Torch puts a plain ``nn.Parameter`` in its place in ``load_state_dict(assign=True)``, in
    ``to_empty`` and whenever a module moves between the meta device and another, and, once
    ``torch.__future__`` is told to swap or overwrite parameters, in every conversion. The constraint would
    be gone without a word, and the optimizer would do plain gradient descent. From now on

    - ``load_state_dict``, with and without `assign`, makes it a manifold parameter again, also where it
      was lost before (what is loaded is torch's business: an optimizer refuses values off the
      manifold at its next step);
    - a forward pass with a plain parameter, as sharding (``fully_shard``) leaves it, or without a parameter,
      as ``FullyShardedDataParallel`` leaves it, raises TypeError. (A plain tensor, as ``torch.func``
      puts there, passes; so does what was gathered from a sharded parameter that has the manifold.)

    :func:`constrain` and the layers of :mod:`givens.rnn` call this themselves.

    Parameters
    ----------
    module : nn.Module
        The module that holds the parameter.
    name : str
        The parameter's name in it.

    Raises
    ------
    AttributeError
        If the module itself has no such parameter.
    TypeError
        If it is neither a :class:`geoopt.ManifoldParameter` nor a ``DTensor`` with a manifold.
    """
    parameter = _parameter(module, name)
    sharded = is_sharded(parameter) and hasattr(parameter, "manifold")
    if not isinstance(parameter, ManifoldParameter) and not sharded:
        raise TypeError(
            f"{name!r} is a plain {type(parameter).__name__}; expected a geoopt.ManifoldParameter, "
            "as constrain() makes it"
        )
    if "_manifolds" not in module.__dict__:
        module._manifolds = {}  # type: ignore[assignment]
        module._sharded = {}  # type: ignore[assignment]
        module.register_load_state_dict_post_hook(_after_loading)
        module.register_forward_pre_hook(_before_forward)
    _manifolds(module)[name] = parameter.manifold  # type: ignore[attr-defined]
    if sharded:
        _sharded(module)[name] = parameter


def _parameter(module: Module, name: str) -> Parameter:
    parameter = module._parameters.get(name)
    if parameter is None:
        raise AttributeError(
            f"{type(module).__name__} has no parameter {name!r}; it has {[*module._parameters]}"
        )
    return parameter


def _manifolds(module: Module) -> dict[str, Manifold]:
    """Manifolds of the guarded parameters of a module; an attribute, so that copies have it too."""
    manifolds: dict[str, Manifold] = module.__dict__["_manifolds"]
    return manifolds


def _sharded(module: Module) -> dict[str, Parameter]:
    """Return those that are sharded: in a forward pass the module has what was gathered from them."""
    sharded: dict[str, Parameter] = module.__dict__["_sharded"]
    return sharded


def _lost(module: Module) -> list[tuple[str, Parameter, Manifold]]:
    """Guarded parameters that are on no manifold any more."""
    lost = []
    for name, manifold in _manifolds(module).items():
        parameter = module._parameters.get(name)
        sharded = _sharded(module).get(name)
        if sharded is not None and parameter is not None and not is_sharded(parameter):
            parameter = sharded  # which has been gathered for a forward pass
        # A plain tensor is one of functional_call's; geoopt.Euclidean what type(p)(data) comes to.
        if isinstance(parameter, Parameter) and type(manifold) is not geoopt.Euclidean:
            now = getattr(parameter, "manifold", None)
            if now is None or type(now) is geoopt.Euclidean:
                lost.append((name, parameter, manifold))
    return lost


def _put_back(module: Module) -> None:
    """Make the parameters manifold parameters again, in place: torch's swap keeps their identity too."""
    for name, parameter, manifold in _lost(module):
        if type(parameter) in (Parameter, ManifoldParameter):
            parameter.__class__ = ManifoldParameter
            parameter.manifold = manifold  # type: ignore[attr-defined]
        elif name in _sharded(module):
            parameter.manifold = manifold  # type: ignore[attr-defined]
            _sharded(module)[name] = parameter


# The hooks: functions of the module, not closures, so that it can be copied and pickled.


def _after_loading(module: Module, incompatible_keys: object) -> None:
    _put_back(module)


def _before_forward(module: Module, args: object) -> None:
    for name, _, manifold in _lost(module):
        raise TypeError(
            f"{name} of {type(module).__name__} has been replaced by a plain parameter, which would not "
            f"stay on {manifold} in training; call constrain() again (after fully_shard, if "
            "that took it, or leave it out by ignored_params), or load_state_dict, and build the optimizer "
            "afterwards"
        )
    for name, manifold in _manifolds(module).items():
        taken = name not in module._parameters and isinstance(module.__dict__.get(name), Tensor)
        renamed = any(isinstance(p, ManifoldParameter) for p in module._parameters.values())
        if taken and not renamed and not module.__dict__.get("_is_replica"):  # of nn.DataParallel
            raise TypeError(
                f"{name} of {type(module).__name__} is no parameter any more: FullyShardedDataParallel, or "
                f"a hook, puts a tensor in its place, and training would not keep it on {manifold}; leave it "
                "out by ignored_states, or shard by torch.distributed.fsdp.fully_shard"
            )
