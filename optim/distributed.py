"""Data-parallel training: numbers instead of matrices over the wire.

Derivatives are linear in the gradient, so the average of the processes' derivatives is the derivative
by the averaged gradient. Where the choice of coordinates does not depend on the gradient, the processes
need to agree on k numbers, not on a whole matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from ..manifolds.shards import is_sharded, local
from .parameters import manifold_of
from .replicas import Replicas

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["clip_grad_norm_", "leave_out_of_ddp"]

Module = TypeVar("Module", bound=nn.Module)


def leave_out_of_ddp(module: Module, process_group: ProcessGroup | None = None) -> Module:
    """Keep the gradients of manifold parameters out of ``DistributedDataParallel``'s averaging.

    To be called before the module is wrapped; the optimizer of these parameters is then built with
    ``process_group=…``, and averages what it reads of their gradients. As DDP does for its own
    parameters, this copies the values of the group's first process to all.

    Parameters
    ----------
    module : nn.Module
        The module that will be wrapped.
    process_group : ProcessGroup, optional
        The processes of the run; by default all.

    Returns
    -------
    nn.Module
        `module`.

    Raises
    ------
    ValueError
        If the module has no parameter on a manifold, or is a wrapper already.

    Examples
    --------
    In every process, after ``torch.distributed.init_process_group``:

    >>> from torch.nn.parallel import DistributedDataParallel
    >>> from givens.optim import SRCD, Matching
    >>> def wrap(model, rotations, others):
    ...     ddp = DistributedDataParallel(leave_out_of_ddp(model))
    ...     world = torch.distributed.group.WORLD
    ...     srcd = SRCD(rotations, lr=0.1, selection=Matching(), process_group=world)
    ...     return ddp, srcd, torch.optim.Adam(others)
    """
    if isinstance(module, DistributedDataParallel):
        raise ValueError(
            "the module is wrapped already; call leave_out_of_ddp before, on the module itself"
        )
    left_out = {
        name: p
        for name, p in module.named_parameters(remove_duplicate=False)
        if manifold_of(p) is not None
    }
    if not left_out:
        raise ValueError(
            f"{type(module).__name__} has no parameter on a manifold, so there is nothing to leave out"
        )
    for p in dict.fromkeys(left_out.values()):
        value = p.detach().contiguous()
        # Not every backend knows complex numbers.
        real = torch.view_as_real(value) if value.is_complex() else value
        dist.broadcast(real, group=process_group, group_src=0)
        p.data.copy_(value)
    before = getattr(module, "_ddp_params_and_buffers_to_ignore", [])
    # DDP looks for the name of a parameter of the module itself with a dot before it, and without.
    names = [name for fqn in left_out for name in ((fqn,) if "." in fqn else (fqn, f".{fqn}"))]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        module, list(dict.fromkeys([*before, *names]))
    )
    return module


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[Tensor],
    max_norm: float,
    *,
    process_group: ProcessGroup,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Clip gradients by one factor in all processes, where those of manifold parameters are local.

    ``torch.nn.utils.clip_grad_norm_`` would find another norm in every process, and the replicas of all
    parameters would drift apart without a word. For the manifold parameters the norm here takes the
    root mean square, over the processes, of their own gradients' norm: one number on the wire, and by
    Jensen's inequality no less than the norm of the averaged gradient, which no process has.

    Parameters
    ----------
    parameters : iterable of Tensor
        All parameters: those on manifolds, with each process's own gradients; others, with gradients
        that are the same everywhere (as DDP leaves them); and sharded ones (``DTensor``).
    max_norm : float
        The largest norm of all gradients together.
    process_group : ProcessGroup
        That of the optimizer of the manifold parameters.
    error_if_nonfinite : bool
        Whether to raise if the norm is NaN or infinite.

    Returns
    -------
    Tensor
        The norm before clipping, a scalar of type float64, the same in all processes.

    Raises
    ------
    RuntimeError
        If `error_if_nonfinite` and the norm is not finite: in all processes, and nothing is changed.
    """
    gradients: dict[str, list[Tensor]] = {"own": [], "replicated": [], "sharded": []}
    for p in parameters:
        if p.grad is not None:
            own = "replicated" if manifold_of(p) is None else "own"
            gradients["sharded" if is_sharded(p) else own].append(p.grad)
    every = [local(grad) for kind in gradients.values() for grad in kind]
    device = every[0].device if every else torch.device("cpu")

    norms = []
    for kind, grads in gradients.items():
        norm = get_total_norm(grads)
        norm = norm.full_tensor() if is_sharded(norm) else norm  # type: ignore[attr-defined]
        norm = norm.to(device, torch.float64)  # whose squares do not overflow
        if kind == "own":
            norm = Replicas(process_group).average(norm.square()).sqrt()
        norms.append(norm)
    total = torch.linalg.vector_norm(torch.stack(norms))
    if error_if_nonfinite and not bool(total.isfinite()):
        raise RuntimeError(
            f"the norm of the gradients is {float(total)}, and they cannot be clipped by it; skip this step, "
            "or look for the operation with torch.autograd.set_detect_anomaly"
        )
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for grad in every:
        grad.mul_(factor.to(grad.device, grad.real.dtype if grad.is_complex() else grad.dtype))
    return total
