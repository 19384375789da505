"""A recurrent layer with a unitary recurrent matrix and complex states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..manifolds import UnitaryGroup
from .base import IsometricRNN
from .initialization import UNITARY_INITIALIZATIONS, Initialization

__all__ = ["UnitaryRNN"]


class UnitaryRNN(IsometricRNN):
    r"""Simple (Elman) recurrent network of complex numbers, its recurrent matrices unitary.

    Each layer computes, for every element of the sequence,

        h_t = φ(W_ih x_t + b_ih + W_hh h_{t−1}),    W_hhᴴ W_hh = I,

    with complex h_t, W_ih and W_hh. It is what Arjovsky, Shah and Bengio (2016) introduced, with any
    unitary W_hh instead of a product of special ones. Constructor, shapes and parameter names are
    those of :class:`~givens.rnn.OrthogonalRNN`.

    Parameters
    ----------
    input_size : int
        Number of features of an element x_t.
    hidden_size : int
        Number d ≥ 2 of complex features of the state h_t.
    num_layers : int
        Layers stacked on each other; each but the first reads the states of the one below.
    nonlinearity : {"modrelu", "identity"}
        The function φ. The other ones of ``OrthogonalRNN`` are refused: relu needs an order, which
        complex numbers do not have, and tanh has poles in the complex plane.
    bias : bool
        Whether a layer has a bias. modReLU cannot do without: it would be the identity.
    batch_first : bool
        Whether batched inputs and outputs have shape (N, L, H) instead of (L, N, H).
    dropout : float
        Probability with which, in training mode, an output of any layer but the last is zeroed, its
        real and imaginary part together.
    bidirectional : bool
        Only False is supported.
    init : str or callable
        Where the recurrent matrices start: a name in
        :data:`~givens.rnn.initialization.UNITARY_INITIALIZATIONS`, or a function of the same
        signature.
    device, dtype
        Where and in what precision to make the parameters: `dtype` is that of the states and the
        matrices, torch.complex64 or torch.complex128. Without it the precision is that of
        ``torch.get_default_dtype()``.

    Attributes
    ----------
    weight_ih_l{k} : nn.Parameter
        W_ih of layer k, complex, shape (d, input_size), and (d, d) for k > 0. Starts He normal:
        real and imaginary part share the variance.
    weight_hh_l{k} : geoopt.ManifoldParameter
        W_hh of layer k, complex, shape (d, d), a point of :class:`~givens.manifolds.UnitaryGroup`.
        An optimizer that does not know manifolds takes it off the group; use those of
        :mod:`givens.optim` or of geoopt.
    bias_modrelu_l{k} : nn.Parameter
        The bias b inside ``modReLU(z) = z/|z|·relu(|z| + b)``, real, shape (d,), starts from
        U[-0.01, 0.01]. A modReLU layer has no b_ih.
    bias_ih_l{k} : nn.Parameter
        b_ih for the identity, complex, shape (d,), starts at 0.

    Raises
    ------
    ValueError
        If a size, the dropout, the nonlinearity or the name of `init` is out of range, if a
        modReLU layer is asked for without bias, or if `init` does not give unitary matrices.
    TypeError
        If an argument has the wrong type.
    NotImplementedError
        If `bidirectional` is True.

    Notes
    -----
    The input may be real or complex, of the precision of the layer; states and output are complex.
    A loss or a readout wants real features: ``torch.view_as_real(output).flatten(-2)`` has 2d of
    them, real and imaginary part of each entry side by side, which is what
    :class:`~givens.rnn.SequenceModel` reads.

    ``float()``, ``double()`` and ``to(dtype)`` change the precision: complex parameters stay
    complex and the bias of modReLU stays real, whether a real or a complex type is named.

    What is supported and what is refused is as in ``OrthogonalRNN``. Cost and memory of a layer are
    those of :func:`~givens.rnn.recurrence.recurrence_`: for the same d, four times the arithmetic
    and twice the memory of real numbers.

    Examples
    --------
    >>> rnn = UnitaryRNN(10, 20)
    >>> output, h_n = rnn(torch.randn(5, 3, 10))
    >>> output.shape, output.dtype
    (torch.Size([5, 3, 20]), torch.complex64)
    """

    _group = UnitaryGroup
    _a_matrix = "a unitary matrix"
    _initializations = UNITARY_INITIALIZATIONS
    default_init = "phases"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "modrelu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        init: str | Initialization = default_init,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            init=init,
            device=device,
            dtype=dtype,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # torch would make the complex parameters real in .to(torch.float64), the real ones complex
        # in .to(torch.complex128), and leave the complex ones as they are in .double().
        def convert(parameter: Tensor) -> Tensor:
            is_complex = parameter.is_complex()
            converted = fn(torch.view_as_real(parameter) if is_complex else parameter)
            converted = converted.real if converted.is_complex() else converted
            return torch.view_as_complex(converted.contiguous()) if is_complex else converted

        return super()._apply(convert, recurse)
