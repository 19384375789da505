"""What the recurrent layers share: everything but the kind of numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from geoopt import ManifoldParameter
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from ..manifolds import CoordinateManifold, keep_manifold
from .initialization import Initialization
from .recurrence import check_nonlinearity, recurrence_

__all__ = ["IsometricRNN"]


class IsometricRNN(nn.Module):
    """Simple (Elman) recurrent network whose recurrent matrices keep the norm of the state.

    A subclass says on which group the matrices lie, and with it whether all numbers are real or
    complex; for constructor, parameters and shapes see :class:`~givens.rnn.OrthogonalRNN`.
    """

    _group: ClassVar[type[CoordinateManifold]]
    _a_matrix: ClassVar[str]
    _initializations: ClassVar[Mapping[str, Initialization]]
    default_init: ClassVar[str]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        nonlinearity: str,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        *,
        init: str | Initialization,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        _check_integer("input_size", input_size, 1)
        _check_integer("hidden_size", hidden_size, 2)
        _check_integer("num_layers", num_layers, 1)
        for name, flag in (("bias", bias), ("batch_first", batch_first)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be a bool, got {flag!r}")
        is_complex = self._group.dtypes[0].is_complex
        check_nonlinearity(nonlinearity, is_complex=is_complex)
        if nonlinearity == "modrelu" and not bias:
            raise ValueError(
                "modReLU without its bias is the identity; "
                "pass bias=True, or nonlinearity='identity' if that is what you want"
            )
        if bidirectional:
            raise NotImplementedError(
                f"bidirectional=True is not supported; run a second {type(self).__name__} on the "
                "reversed sequence, input.flip(0)"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability between 0 and 1, got {dropout}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout acts between layers: with num_layers=1, dropout={dropout} does nothing",
                stacklevel=3,
            )
        if dtype is None:
            dtype = torch.get_default_dtype()
            dtype = dtype.to_complex() if is_complex else dtype
        if dtype not in self._group.dtypes:
            names = " or ".join(map(str, self._group.dtypes))
            raise TypeError(f"dtype must be {names}, got {dtype}")
        if isinstance(init, str):
            if init not in self._initializations:
                raise ValueError(
                    f"unknown init {init!r}; choose one of {', '.join(self._initializations)}, "
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
        manifold = self._group()
        for k in range(num_layers):
            fan_in = input_size if k == 0 else hidden_size
            start = manifold.origin(hidden_size, hidden_size, **place)
            self.register_parameter(
                f"weight_ih_l{k}", nn.Parameter(torch.empty(hidden_size, fan_in, **place))
            )
            self.register_parameter(f"weight_hh_l{k}", ManifoldParameter(start, manifold=manifold))
            if nonlinearity == "modrelu":
                start = torch.empty(hidden_size, device=device, dtype=dtype.to_real())
                self.register_parameter(f"bias_modrelu_l{k}", nn.Parameter(start))
            elif bias:
                start = torch.empty(hidden_size, **place)
                self.register_parameter(f"bias_ih_l{k}", nn.Parameter(start))
            keep_manifold(self, f"weight_hh_l{k}")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place, from torch's global random numbers.

        Raises
        ------
        ValueError
            If `init` gives a matrix that is not d×d or not on the group.
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
                x = _dropout(x, self.dropout, self.training)
            # Fresh memory, which the recurrence may overwrite with the states. The bias is added
            # apart from the product because with it `linear` would return a view.
            u = _linear(x, weight_ih)
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
            "init": self.default_init,
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
                f"would not stay {self._a_matrix} in training; make it a geoopt.ManifoldParameter "
                f"on {self._group.__name__}(), or copy values into the old one under torch.no_grad()"
            )
        return (
            getattr(self, f"weight_ih_l{k}"),
            weight_hh,
            getattr(self, f"bias_ih_l{k}", None),
            getattr(self, f"bias_modrelu_l{k}", None),
        )

    def _recurrent_start(self, weight: Tensor) -> Tensor:
        d = self.hidden_size
        init = self._initializations[self.init] if isinstance(self.init, str) else self.init
        start = init(d, dtype=weight.dtype, device=weight.device)
        if start.shape != (d, d):
            raise ValueError(f"init must return shape ({d}, {d}), got {tuple(start.shape)}")
        fits, reason = self._group().check_point_on_manifold(start, explain=True)
        if not fits:
            raise ValueError(f"init must return {self._a_matrix}: {reason}")
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
        # A complex layer reads real input too.
        expected = dtype if input.is_complex() else dtype.to_real()
        if input.dtype != expected and not torch.is_autocast_enabled(input.device.type):
            raise TypeError(
                f"input has dtype {input.dtype} but the parameters have {dtype}; "
                f"convert the input with .to({expected})"
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


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x Wᵀ in the precision of W, in fresh memory; under autocast it is computed in less."""
    if weight.is_complex() and not x.is_complex():
        # Half the work of complex numbers.
        parts = (functional.linear(x, part) for part in (weight.real, weight.imag))
        return torch.complex(*(part.to(weight.dtype.to_real()) for part in parts))
    return functional.linear(x, weight).to(weight.dtype)


def _dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Zero entries, complex ones as a whole."""
    if not x.is_complex():
        return functional.dropout(x, probability, training)
    kept = torch.ones(x.shape, dtype=x.dtype.to_real(), device=x.device)
    return x * functional.dropout(kept, probability, training)


def _check_integer(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
