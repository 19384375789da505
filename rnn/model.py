"""A recurrent layer with a linear readout."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class SequenceModel(nn.Module):
    """A recurrent layer and a linear map from its hidden state to the output.

    The readout weight is He normal and its bias 0 (Massart & Abrol, section 4); the recurrent layer
    is initialized by itself, and starts from h(0) = 0.

    A complex state of d entries is read as 2d real features, the real and the imaginary part of each
    entry side by side: ``torch.view_as_real(h).flatten(-2)``. The output is real.

    Parameters
    ----------
    rnn : nn.Module
        A recurrent layer of one direction: `OrthogonalRNN`, `UnitaryRNN`, or `torch.nn.RNN`, ``GRU``,
        ``LSTM``.
    output_size : int
        Features of the output.
    readout : {"every", "last"}
        Read the hidden state out at every step, or after the last one only.
    """

    def __init__(
        self, rnn: nn.Module, output_size: int, readout: Literal["every", "last"] = "every"
    ) -> None:
        super().__init__()
        if readout not in ("every", "last"):
            raise ValueError(f"readout must be 'every' or 'last', got {readout!r}")
        weight = next(rnn.parameters())
        self.rnn = rnn
        self.linear = nn.Linear(
            int(rnn.hidden_size) * (2 if weight.is_complex() else 1),  # type: ignore[arg-type]
            output_size,
            device=weight.device,
            dtype=weight.dtype.to_real(),
        )
        self.readout = readout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the readout anew; the recurrent layer is left alone."""
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        nn.init.zeros_(self.linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(steps, batch, input_size)`` to ``(steps, batch, output_size)``.

        With ``readout="last"`` the output has shape ``(batch, output_size)``. A layer with
        ``batch_first=True`` has batch and steps the other way round.
        """
        hidden: Tensor
        hidden, _ = self.rnn(input)
        if self.readout == "last":
            hidden = hidden[:, -1] if self.rnn.batch_first else hidden[-1]
        if hidden.is_complex():
            hidden = torch.view_as_real(hidden).flatten(-2)
        output: Tensor = self.linear(hidden)
        return output
