"""Optimizers, and the strategy objects that choose the coordinates of a step."""

from .gradient import GradientView
from .random import Randomness
from .selection import Block, Cyclic, GaussSouthwell, Rule, Selection, Uniform
from .srcd import SRCD
from .srgd import SRGD

__all__ = [
    "SRCD",
    "SRGD",
    "Block",
    "Cyclic",
    "GaussSouthwell",
    "GradientView",
    "Randomness",
    "Rule",
    "Selection",
    "Uniform",
]
