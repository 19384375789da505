"""The recurrence h_t = φ(u_t + h_{t−1} Wᵀ) of a simple recurrent network, forward and backward.

:func:`recurrence_reference` states it; :func:`recurrence` computes the same faster and in less
memory; :func:`recurrence_`, its in-place form, is what the layer runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .backend import kernels_for
from .modrelu import modrelu

__all__ = ["NONLINEARITIES", "recurrence", "recurrence_", "recurrence_reference"]

#: The nonlinearities φ that the recurrence knows.
NONLINEARITIES = ("modrelu", "relu", "tanh", "identity")

#: Those of them that a complex state can have, and why the others make no sense for it.
COMPLEX_NONLINEARITIES = ("modrelu", "identity")
_NOT_COMPLEX = {
    "relu": "no complex number is greater than another",
    "tanh": "it has poles at i(π/2 + kπ)",
}


def check_nonlinearity(nonlinearity: str, *, is_complex: bool) -> None:
    """Raise a ValueError unless there is such a nonlinearity for real, or complex, states."""
    names = COMPLEX_NONLINEARITIES if is_complex else NONLINEARITIES
    if nonlinearity in names:
        return
    choice = f"choose one of {', '.join(names)}"
    if nonlinearity in NONLINEARITIES:
        raise ValueError(
            f"{nonlinearity!r} is not for complex states ({_NOT_COMPLEX[nonlinearity]}); {choice}"
        )
    raise ValueError(f"unknown nonlinearity {nonlinearity!r}; {choice}")


def recurrence_reference(
    input: Tensor,
    weight: Tensor,
    hx: Tensor,
    bias: Tensor | None = None,
    nonlinearity: str = "modrelu",
) -> Tensor:
    """Run the recurrence as a plain loop, differentiated by autograd.

    The readable statement of what :func:`recurrence` computes, with the same parameters, result
    and errors. It can be differentiated any number of times.
    """
    _check(input, weight, hx, bias, nonlinearity)
    h, states = hx, []
    for u in input:
        z = u + h @ weight.t()
        if bias is not None:  # modReLU, the only one that has it
            h = modrelu(z, bias)
        elif nonlinearity == "relu":
            h = torch.relu(z)
        elif nonlinearity == "tanh":
            h = torch.tanh(z)
        else:
            h = z
        states.append(h)
    return torch.stack(states)


def recurrence(
    input: Tensor,
    weight: Tensor,
    hx: Tensor,
    bias: Tensor | None = None,
    nonlinearity: str = "modrelu",
) -> Tensor:
    r"""Run the recurrence h_t = φ(u_t + h_{t−1} Wᵀ) over a sequence, t = 1, …, T.

    Parameters
    ----------
    input : Tensor
        What enters from outside at each step, u, shape (T, B, d), T ≥ 1, real or complex: in a
        recurrent layer W_in x_t, plus a bias if there is one.
    weight : Tensor
        Recurrent matrix W, shape (d, d). It may be any matrix.
    hx : Tensor
        State h_0 before the first step, shape (B, d).
    bias : Tensor, optional
        The bias of modReLU, shape (d,), always real; for the other nonlinearities None.
    nonlinearity : {"modrelu", "relu", "tanh", "identity"}
        The function φ; of a complex state modReLU or the identity.

    Returns
    -------
    Tensor
        All states h_1, …, h_T, shape (T, B, d), contiguous.

    Raises
    ------
    ValueError
        If shapes or devices do not fit together, the sequence is empty, the nonlinearity is
        unknown or not for complex states, or a bias is missing or has no place.
    TypeError
        If the tensors are not floating-point or complex, or not of one dtype.

    Notes
    -----
    2·T·B·d² flops forward, four times that for complex numbers, and twice that backward. Beside its
    result the forward pass keeps nothing for the backward pass: φ′ is read off the states. For
    modReLU their sign or phase shows whether a unit is active and which way it points; a complex
    one stretches changes across its direction by k = ``|h|/|z|``, with ``|z| = |h| − b``. Where b > 0
    and z comes near 0, k grows without limit, and has a relative error of about ε·k: no more than
    what the rounding of z itself does to it, where z is a sum of numbers that are not small beside b.
    It ends at 1/ε. The backward pass adds one tensor of the result's size, the derivatives with
    respect to u. The gradient of W is one product over all T·B rows.

    Gradients of complex tensors are torch's, ∂L/∂Re + i·∂L/∂Im of a real loss L.

    It can be differentiated once. Asking for a second derivative raises an error; use
    :func:`recurrence_reference` for that.
    """
    return recurrence_(
        input.clone(memory_format=torch.contiguous_format), weight, hx, bias, nonlinearity
    )


def recurrence_(
    input: Tensor,
    weight: Tensor,
    hx: Tensor,
    bias: Tensor | None = None,
    nonlinearity: str = "modrelu",
) -> Tensor:
    """Run :func:`recurrence` in place: the states overwrite `input`, which is also returned.

    It spares a tensor of T·B·d entries where `input` is not needed again. As with every in-place
    operation of torch, `input` must not be a leaf that requires a gradient, nor a tensor that an
    earlier operation has saved for its own backward pass. It must be contiguous, or a ValueError
    is raised. A call that raises for its arguments leaves `input` as it was.
    """
    _check(input, weight, hx, bias, nonlinearity)
    if not input.is_contiguous():
        raise ValueError(
            "recurrence_ needs a contiguous input to write to, got one with strides "
            f"{input.stride()}; call recurrence, which takes any"
        )
    output: Tensor = _Recurrence.apply(input, weight, hx, bias, nonlinearity)
    return output


class _Recurrence(torch.autograd.Function):
    # Both passes start from a filled tensor and add the product in place. Handing addmm a fresh
    # tensor for its result costs more: its memory is then mapped page by page, by one thread.

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, hx: Tensor, bias: Tensor | None, nonlinearity: str
    ) -> Tensor:
        if (kernels := kernels_for(input)) is not None:
            kernels.forward_(input, weight, hx, bias, nonlinearity)
            return input
        sign = torch.empty(hx.shape, dtype=hx.dtype, device=hx.device)
        h = hx
        for z in input.unbind():
            z.addmm_(h, weight.t())
            if bias is not None and z.is_complex():  # modReLU
                _complex_modrelu_(z, bias)
            elif bias is not None:
                torch.sign(z, out=sign)
                z.abs_().add_(bias).relu_().mul_(sign)
            elif nonlinearity == "relu":
                z.relu_()
            elif nonlinearity == "tanh":
                z.tanh_()
            h = z
        return input

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, hx, bias, ctx.nonlinearity = inputs
        ctx.mark_dirty(output)
        # The derivative of a real modReLU does not depend on its bias.
        ctx.save_for_backward(weight, hx, output, bias if output.is_complex() else None)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, hx, output, bias = ctx.saved_tensors
        with torch.no_grad():
            grads = _gradients(
                grad_output, weight, hx, output, bias, ctx.nonlinearity, ctx.needs_input_grad
            )
        if torch.is_grad_enabled():  # create_graph=True
            sources = (grad_output, weight, hx, output)
            grads = [None if g is None else _OnlyOnce.apply(g, *sources) for g in grads]
        return (*grads, None)


def _gradients(
    grad_output: Tensor,
    weight: Tensor,
    hx: Tensor,
    output: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Return the gradients of input, weight, hx and bias; all but the first only if needed."""
    _, need_weight, need_hx, need_bias, _ = needed

    conjugate = weight.conj().resolve_conj()
    if (kernels := kernels_for(output)) is not None:
        grad_z, bias_rows = kernels.backward(
            grad_output, weight, output, nonlinearity, bias=need_bias
        )
    else:
        grad_z, bias_rows = _backward(
            grad_output, conjugate, output, bias, nonlinearity, need_bias=need_bias
        )

    grad_weight = None
    if need_weight:
        d = weight.shape[-1]
        grad_weight = torch.zeros_like(weight)
        # The conjugate of dzᵀ h̄: BLAS has a product for dzᴴ h.
        grad_weight.addmm_(grad_z[1:].view(-1, d).mH, output[:-1].view(-1, d))
        grad_weight.addmm_(grad_z[0].mH, hx)
        grad_weight = torch.conj_physical(grad_weight)
    return [
        grad_z,
        grad_weight,
        grad_z[0] @ conjugate if need_hx else None,
        None if bias_rows is None else bias_rows.sum(0),
    ]


def _backward(
    grad_output: Tensor,
    conjugate: Tensor,
    output: Tensor,
    bias: Tensor | None,
    nonlinearity: str,
    *,
    need_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the derivatives by z_t = u_t + h_{t−1} Wᵀ, and those by the bias in every row.

    dz_t = φ′(z_t)·(g_t + dz_{t+1} W̄), from the last step to the first.
    """
    grad_z = grad_output.clone(memory_format=torch.contiguous_format)
    factor = torch.empty_like(output[0])
    bias_rows = torch.zeros_like(factor, dtype=output.dtype.to_real()) if need_bias else None
    later = torch.zeros_like(factor)
    for dz, h in zip(reversed(grad_z.unbind()), reversed(output.unbind()), strict=True):
        dz.addmm_(later, conjugate)
        if bias is not None:
            _complex_modrelu_backward_(dz, h, bias, bias_rows)
        elif nonlinearity == "modrelu":
            # h = s(|z| + b) where the unit is active and 0 elsewhere, so that s = sign(h) tells
            # both: ∂h/∂b = s, ∂h/∂z = s².
            torch.sign(h, out=factor)
            dz.mul_(factor)
            if bias_rows is not None:
                bias_rows.add_(dz)
            dz.mul_(factor)
        elif nonlinearity == "relu":
            dz.mul_(torch.sign(h, out=factor))
        elif nonlinearity == "tanh":
            dz.addcmul_(dz, torch.mul(h, h, out=factor), value=-1)
        later = dz
    return grad_z, bias_rows


def _complex_modrelu_(z: Tensor, bias: Tensor) -> None:
    magnitude = torch.abs(z)
    parts = torch.view_as_real(z)
    parts.div_(_divisor(magnitude))
    parts.mul_(magnitude.add_(bias).relu_().unsqueeze(-1))


def _complex_modrelu_backward_(
    grad: Tensor, h: Tensor, bias: Tensor, bias_rows: Tensor | None
) -> None:
    """Turn the gradient of h = modReLU(z) into that of z, in place; add that of b to `bias_rows`.

    With s = z/|z| and dz = s·(dρ + i dτ), the change of an active unit is
    dh = s·(dρ + db + i k dτ), k = |h|/|z|. So the gradient s·(α + iβ) of h becomes s·(α + i k β),
    and that of b is α. Where h = 0, s and k are 0.
    """
    magnitude = torch.abs(h)
    direction = torch.view_as_complex(torch.view_as_real(h) / _divisor(magnitude))
    # |z|, or what can be told of it where it is lost in the rounding of |h|.
    limits = torch.finfo(magnitude.dtype)
    before = (magnitude - bias).clamp_min_(limits.tiny)
    torch.maximum(before, magnitude * limits.eps, out=before)
    turned = direction.conj() * grad
    if bias_rows is not None:
        bias_rows.add_(turned.real)
    turned.imag.mul_(magnitude.div_(before))
    torch.mul(direction, turned, out=grad)


def _divisor(magnitude: Tensor) -> Tensor:
    """Return what to divide both parts of a complex number by, so that the direction of 0 is 0."""
    tiny = torch.finfo(magnitude.dtype).tiny
    return functional.threshold(magnitude, tiny, torch.inf).unsqueeze(-1)


class _OnlyOnce(torch.autograd.Function):
    """The identity on a gradient, with what it depends on as further inputs.

    torch's `once_differentiable` would let a second derivative through in silence, as zero, where
    the incoming gradient is a constant.
    """

    @staticmethod
    def forward(gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        raise RuntimeError(
            "the recurrence can be differentiated once only; for second derivatives use "
            "givens.rnn.recurrence.recurrence_reference"
        )


def _check(
    input: Tensor, weight: Tensor, hx: Tensor, bias: Tensor | None, nonlinearity: str
) -> None:
    check_nonlinearity(nonlinearity, is_complex=input.is_complex())
    if nonlinearity == "modrelu" and bias is None:
        raise ValueError("modReLU needs its bias, a tensor of shape (d,); got None")
    if nonlinearity != "modrelu" and bias is not None:
        raise ValueError(f"only modReLU has a bias of its own: add that of {nonlinearity} to input")
    if input.dim() != 3 or input.shape[0] == 0:
        raise ValueError(
            f"input must have shape (T, B, d) with at least one step, got {tuple(input.shape)}"
        )
    _, batch, d = input.shape
    tensors: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "weight": (weight, (d, d)),
        "hx": (hx, (batch, d)),
    }
    if bias is not None:
        tensors["bias"] = (bias, (d,))
    if not (input.is_floating_point() or input.is_complex()):
        raise TypeError(f"input must be floating-point or complex, got {input.dtype}")
    for name, (tensor, shape) in tensors.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} to go with an input of shape "
                f"{tuple(input.shape)}, got {tuple(tensor.shape)}"
            )
        expected = input.dtype.to_real() if name == "bias" else input.dtype
        if tensor.dtype != expected:
            raise TypeError(
                f"{name} has dtype {tensor.dtype} but input has {input.dtype}"
                f"{'' if expected == input.dtype else f', which a {expected} bias goes with'}; "
                "convert one of them with .to(dtype)"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"{name} is on {tensor.device} but input is on {input.device}; "
                "move one of them with .to(device)"
            )
