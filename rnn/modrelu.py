"""The modReLU nonlinearity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ModReLU", "modrelu"]


def modrelu(z: Tensor, bias: Tensor) -> Tensor:
    """Shift the magnitude of every entry, keep its sign or phase: ``z/|z|·relu(|z| + b)``.

    The function is odd and, for complex `z`, commutes with every change of phase. A positive bias
    makes it jump at 0, where it takes the value in the middle, modReLU(0) = 0; its derivatives there,
    of any order, are taken as 0. With a zero bias it is the identity.

    Parameters
    ----------
    z : Tensor
        Pre-activation, real or complex, shape (..., d).
    bias : Tensor
        One real bias b for each of the d units, shape (d,), or any shape that broadcasts with `z`.

    Returns
    -------
    Tensor
        The shape of `z` and `bias` broadcast together.

    Notes
    -----
    Introduced for unitary networks by Arjovsky, Shah and Bengio (2016); the nonlinearity of the
    paper's experiments (section 5.2).
    """
    if not z.is_complex():
        return torch.sign(z) * torch.relu(torch.abs(z) + bias)
    # At 0, and with torch's formulas also where |z| is a subnormal number, z/|z| or a derivative of
    # it is not finite: something else is computed and differentiated there.
    origin = torch.abs(z) <= torch.finfo(z.dtype).tiny
    z = torch.where(origin, 1, z)
    return torch.where(origin, 0, torch.sgn(z) * torch.relu(torch.abs(z) + bias))


class ModReLU(nn.Module):
    """The activation ``z/|z|·relu(|z| + b)`` with a trainable bias for every unit.

    It takes real and complex input; the bias is real.

    Parameters
    ----------
    hidden_size : int
        Number d of units, the last dimension of the input.
    device, dtype
        Where and in what precision to make the bias, as in every torch module: a real type.

    Attributes
    ----------
    bias : nn.Parameter
        Shape (d,); drawn from U[-0.01, 0.01], as in the paper (section 5.2).

    Examples
    --------
    >>> activation = ModReLU(3)
    >>> _ = torch.nn.init.constant_(activation.bias, -1.0)
    >>> activation(torch.tensor([-3.0, 0.5, 2.0])).tolist()
    [-2.0, 0.0, 1.0]
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the bias anew from U[-0.01, 0.01]."""
        nn.init.uniform_(self.bias, -0.01, 0.01)

    def forward(self, z: Tensor) -> Tensor:
        """Apply the activation to `z`, shape (..., d)."""
        return modrelu(z, self.bias)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the module's ``repr``."""
        return f"{self.hidden_size}"
