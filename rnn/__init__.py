"""Recurrent networks with orthogonal recurrent matrices."""

from .initialization import INITIALIZATIONS, haar, henaff_cayley, henaff_expm, identity
from .layer import OrthogonalRNN
from .modrelu import ModReLU

__all__ = [
    "INITIALIZATIONS",
    "ModReLU",
    "OrthogonalRNN",
    "haar",
    "henaff_cayley",
    "henaff_expm",
    "identity",
]
