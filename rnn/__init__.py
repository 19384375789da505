"""Recurrent networks with orthogonal recurrent matrices."""

from . import tasks
from .checkpoint import CheckpointError
from .initialization import INITIALIZATIONS, haar, henaff_cayley, henaff_expm, identity
from .layer import OrthogonalRNN
from .model import SequenceModel
from .modrelu import ModReLU
from .training import DivergenceError, InterruptedTraining, Trainer, evaluate

__all__ = [
    "INITIALIZATIONS",
    "CheckpointError",
    "DivergenceError",
    "InterruptedTraining",
    "ModReLU",
    "OrthogonalRNN",
    "SequenceModel",
    "Trainer",
    "evaluate",
    "haar",
    "henaff_cayley",
    "henaff_expm",
    "identity",
    "tasks",
]
