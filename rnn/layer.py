"""A recurrent layer with an orthogonal recurrent matrix."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from geoopt import ManifoldParameter
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from ..manifolds import OrthogonalGroup, refuse_assign
from .initialization import INITIALIZATIONS, Initialization
from .recurrence import NONLINEARITIES, recurrence_

__all__ = ["OrthogonalRNN"]


class OrthogonalRNN(nn.Module):
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

    ``load_state_dict`` copies values as usual; with ``assign=True`` it would replace the manifold
    parameter by a plain one, and raises a RuntimeError.

    Examples
    --------
    >>> rnn = OrthogonalRNN(10, 20)
    >>> output, h_n = rnn(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([1, 3, 20]))
    """

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
        init: str | Initialization = "henaff-cayley",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_integer("input_size", input_size, 1)
        _check_integer("hidden_size", hidden_size, 2)
        _check_integer("num_layers", num_layers, 1)
        for name, flag in (("bias", bias), ("batch_first", batch_first)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be a bool, got {flag!r}")
        if nonlinearity not in NONLINEARITIES:
            raise ValueError(
                f"unknown nonlinearity {nonlinearity!r}; choose one of {', '.join(NONLINEARITIES)}"
            )
        if nonlinearity == "modrelu" and not bias:
            raise ValueError(
                "modReLU without its bias is the identity; "
                "pass bias=True, or nonlinearity='identity' if that is what you want"
            )
        if bidirectional:
            raise NotImplementedError(
                "bidirectional=True is not supported; run a second OrthogonalRNN on the reversed "
                "sequence, input.flip(0)"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability between 0 and 1, got {dropout}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout acts between layers: with num_layers=1, dropout={dropout} does nothing",
                stacklevel=2,
            )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        if isinstance(init, str):
            if init not in INITIALIZATIONS:
                raise ValueError(
                    f"unknown init {init!r}; choose one of {', '.join(INITIALIZATIONS)}, "
                    "or pass a function"
                )
        elif not callable(init):
            raise TypeError(f"init must be a name or a function, got {init!r}")

        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.nonlinearity = nonlinearity
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.init = init

        place: dict[str, Any] = {"device": device, "dtype": dtype}
        manifold = OrthogonalGroup()
        for k in range(num_layers):
            fan_in = input_size if k == 0 else hidden_size
            start = manifold.origin(hidden_size, hidden_size, **place)
            self.register_parameter(
                f"weight_ih_l{k}", nn.Parameter(torch.empty(hidden_size, fan_in, **place))
            )
            self.register_parameter(f"weight_hh_l{k}", ManifoldParameter(start, manifold=manifold))
            if bias:
                kind = "modrelu" if nonlinearity == "modrelu" else "ih"
                self.register_parameter(
                    f"bias_{kind}_l{k}", nn.Parameter(torch.empty(hidden_size, **place))
                )
            refuse_assign(self, f"weight_hh_l{k}")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place, from torch's global random numbers.

        Raises
        ------
        ValueError
            If `init` gives a matrix that is not d×d and orthogonal.
        TypeError
            If a recurrent weight has been replaced by a plain parameter.

        Either way nothing has changed.
        """
        layers = [self._parameters_of(k) for k in range(self.num_layers)]
        starts = [self._recurrent_start(weight_hh) for _, weight_hh, _, _ in layers]
        for (weight_ih, weight_hh, bias_ih, bias_modrelu), start in zip(
            layers, starts, strict=True
        ):
            nn.init.kaiming_normal_(weight_ih, nonlinearity="relu")
            weight_hh.copy_(start)
            if bias_ih is not None:
                nn.init.zeros_(bias_ih)
            if bias_modrelu is not None:
                nn.init.uniform_(bias_modrelu, -0.01, 0.01)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the network over a sequence, or a batch of them.

        Parameters
        ----------
        input : Tensor
            Shape (L, N, input_size) for L elements and a batch of N sequences,
            (N, L, input_size) if `batch_first`, or (L, input_size) for one sequence.
        hx : Tensor, optional
            Initial state of each layer, shape (num_layers, N, d), or (num_layers, d) for one
            sequence. Zeros if left out.

        Returns
        -------
        output : Tensor
            States of the last layer, shaped as `input` with d features.
        h_n : Tensor
            Final state of each layer, shaped as `hx`.

        Raises
        ------
        ValueError
            If a shape or a device does not fit.
        TypeError
            If `input` is a ``PackedSequence``, if dtypes do not fit, or if a recurrent weight has
            been replaced by a plain parameter.
        """
        layers = [self._parameters_of(k) for k in range(self.num_layers)]
        weight_ih, weight_hh, _, _ = layers[0]
        self._check_input(input, weight_ih.dtype)
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        states = self._initial_states(hx, x.shape[1], batched, weight_hh)

        final_states = []
        for k, (weight_ih, weight_hh, bias_ih, bias_modrelu) in enumerate(layers):
            if k > 0 and self.dropout > 0:
                x = functional.dropout(x, self.dropout, self.training)
            # Fresh memory, which the recurrence may overwrite with the states. The bias is added
            # apart from the product because with it `linear` would return a view.
            u = functional.linear(x, weight_ih).to(weight_hh.dtype)
            if bias_ih is not None:
                u += bias_ih
            x = recurrence_(u, weight_hh, states[k], bias_modrelu, self.nonlinearity)
            final_states.append(x[-1])
        h_n = torch.stack(final_states)

        if not batched:
            return x.squeeze(1), h_n.squeeze(1)
        return x.transpose(0, 1) if self.batch_first else x, h_n

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the module's ``repr``."""
        defaults = {
            "num_layers": 1,
            "nonlinearity": "modrelu",
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "init": "henaff-cayley",
        }
        options = [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        return ", ".join([str(self.input_size), str(self.hidden_size), *options])

    def _parameters_of(self, k: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return weight_ih, weight_hh, bias_ih and bias_modrelu of layer k."""
        weight_hh = getattr(self, f"weight_hh_l{k}")
        # A plain tensor passes: torch.func.functional_call puts such in a parameter's place.
        if isinstance(weight_hh, nn.Parameter) and not isinstance(weight_hh, ManifoldParameter):
            raise TypeError(
                f"weight_hh_l{k} has been replaced by a plain {type(weight_hh).__name__}, which "
                "would not stay orthogonal in training; make it a geoopt.ManifoldParameter on "
                "OrthogonalGroup(), or copy values into the old one under torch.no_grad()"
            )
        return (
            getattr(self, f"weight_ih_l{k}"),
            weight_hh,
            getattr(self, f"bias_ih_l{k}", None),
            getattr(self, f"bias_modrelu_l{k}", None),
        )

    def _recurrent_start(self, weight: Tensor) -> Tensor:
        d = self.hidden_size
        init = INITIALIZATIONS[self.init] if isinstance(self.init, str) else self.init
        start = init(d, dtype=weight.dtype, device=weight.device)
        if start.shape != (d, d):
            raise ValueError(f"init must return shape ({d}, {d}), got {tuple(start.shape)}")
        orthogonal, reason = OrthogonalGroup().check_point_on_manifold(start, explain=True)
        if not orthogonal:
            raise ValueError(f"init must return an orthogonal matrix: {reason}")
        return start

    def _check_input(self, input: Tensor, dtype: torch.dtype) -> None:
        if isinstance(input, PackedSequence):
            raise TypeError(
                "PackedSequence is not supported; pass the padded tensor "
                "(torch.nn.utils.rnn.pad_packed_sequence) and mask the loss"
            )
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            order = "N, L" if self.batch_first else "L, N"
            raise ValueError(
                f"input must have shape ({order}, {self.input_size}), or (L, {self.input_size}) "
                f"for one sequence, got {tuple(input.shape)}"
            )
        if input.dtype != dtype and not torch.is_autocast_enabled(input.device.type):
            raise TypeError(
                f"input has dtype {input.dtype} but the parameters have {dtype}; "
                f"convert the input with .to({dtype})"
            )

    def _initial_states(
        self, hx: Tensor | None, batch: int, batched: bool, weight: Tensor
    ) -> Tensor:
        """Return the initial states in their batched shape, (num_layers, N, d)."""
        shape = (self.num_layers, batch, self.hidden_size)
        if hx is None:
            return torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        expected = shape if batched else (self.num_layers, self.hidden_size)
        if hx.shape != expected:
            raise ValueError(
                f"hx must have shape {expected} to go with an input that is "
                f"{'' if batched else 'not '}batched, got {tuple(hx.shape)}"
            )
        return hx if batched else hx.unsqueeze(1)


def _check_integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
