"""A recurrent layer with an orthogonal recurrent matrix."""

from __future__ import annotations

import torch

from ..manifolds import OrthogonalGroup
from .base import IsometricRNN
from .initialization import INITIALIZATIONS, Initialization

__all__ = ["OrthogonalRNN"]


class OrthogonalRNN(IsometricRNN):
    r"""Simple (Elman) recurrent network whose recurrent matrices lie on the orthogonal group.

    Each layer computes, for every element of the sequence,

        h_t = φ(W_ih x_t + b_ih + W_hh h_{t−1}),    W_hhᵀ W_hh = I,

    equation (17) of the paper. Constructor, shapes and parameter names are those of
    :class:`torch.nn.RNN`.

    Parameters
    ----------
    input_size : int
        Number of features of an element x_t.
    hidden_size : int
        Number d ≥ 2 of features of the state h_t.
    num_layers : int
        Layers stacked on each other; each but the first reads the states of the one below.
    nonlinearity : {"modrelu", "relu", "tanh", "identity"}
        The function φ.
    bias : bool
        Whether a layer has a bias. modReLU cannot do without: it would be the identity.
    batch_first : bool
        Whether batched inputs and outputs have shape (N, L, H) instead of (L, N, H).
    dropout : float
        Probability with which, in training mode, an output of any layer but the last is zeroed.
    bidirectional : bool
        Only False is supported.
    init : str or callable
        Where the recurrent matrices start: a name in
        :data:`~givens.rnn.initialization.INITIALIZATIONS`, or a function of the same signature.
    device, dtype
        Where and in what precision to make the parameters: torch.float32 or torch.float64.

    Attributes
    ----------
    weight_ih_l{k} : nn.Parameter
        W_ih of layer k, shape (d, input_size), and (d, d) for k > 0. Starts He normal.
    weight_hh_l{k} : geoopt.ManifoldParameter
        W_hh of layer k, shape (d, d), a point of :class:`~givens.manifolds.OrthogonalGroup`.
        An optimizer that does not know manifolds takes it off the group; use those of
        :mod:`givens.optim` or of geoopt.
    bias_modrelu_l{k} : nn.Parameter
        The bias inside modReLU, shape (d,), starts from U[-0.01, 0.01]. As in the paper, a
        modReLU layer has no b_ih.
    bias_ih_l{k} : nn.Parameter
        b_ih for the other nonlinearities, shape (d,), starts at 0. The second bias of
        ``torch.nn.RNN``, ``bias_hh_l{k}``, only ever enters as a sum with this one; there is none.

    Raises
    ------
    ValueError
        If a size, the dropout, the nonlinearity or the name of `init` is out of range, if a
        modReLU layer is asked for without bias, or if `init` does not give orthogonal matrices.
    TypeError
        If an argument has the wrong type.
    NotImplementedError
        If `bidirectional` is True.

    Notes
    -----
    Supported: any number of layers, dropout between them, batched and unbatched input, initial
    states, autocast (the recurrence itself stays in the precision of its matrix). Not supported,
    and refused: a second direction, ``PackedSequence`` (pad, and mask the loss), projections
    (``proj_size``), differentiating twice.

    Cost and memory of a layer are those of :func:`~givens.rnn.recurrence.recurrence_`.

    ``load_state_dict``, with and without ``assign=True``, leaves the recurrent matrices manifold parameters
    (:func:`~givens.manifolds.keep_manifold`).

    Examples
    --------
    >>> rnn = OrthogonalRNN(10, 20)
    >>> output, h_n = rnn(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """

    _group = OrthogonalGroup
    _a_matrix = "an orthogonal matrix"
    _initializations = INITIALIZATIONS
    default_init = "henaff-cayley"

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
