"""Recurrent networks with orthogonal or unitary recurrent matrices."""

from . import tasks
from .checkpoint import CheckpointError
from .initialization import (
    INITIALIZATIONS,
    UNITARY_INITIALIZATIONS,
    haar,
    henaff_cayley,
    henaff_expm,
    identity,
    phases,
)
from .layer import OrthogonalRNN
from .model import SequenceModel
from .modrelu import ModReLU
from .training import DivergenceError, InterruptedTraining, Trainer, evaluate
from .unitary import UnitaryRNN

__all__ = [
    "INITIALIZATIONS",
    "UNITARY_INITIALIZATIONS",
    "CheckpointError",
    "DivergenceError",
    "InterruptedTraining",
    "ModReLU",
    "OrthogonalRNN",
    "SequenceModel",
    "Trainer",
    "UnitaryRNN",
    "evaluate",
    "haar",
    "henaff_cayley",
    "henaff_expm",
    "identity",
    "phases",
    "tasks",
]
