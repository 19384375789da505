"""Optimizers, and the strategy objects that choose and scale the coordinates of a step."""

from .averaging import AveragedModel
from .gradient import GradientView
from .grouping import Grouping, Matching
from .growing import Capture, Growing
from .line import Line, Trial
from .line_search import Armijo, LineSearch, Trigonometric
from .moments import Moments
from .random import Randomness
from .rounds import Rounds
from .scaling import Adam, AxisRMSProp, Momentum, RMSProp, Scaling
from .schedule import RobbinsMonroLR
from .selection import Block, Cyclic, GaussSouthwell, Rule, Selection, Uniform
from .srcd import SRCD
from .srgd import SRGD

__all__ = [
    "SRCD",
    "SRGD",
    "Adam",
    "Armijo",
    "AveragedModel",
    "AxisRMSProp",
    "Block",
    "Capture",
    "Cyclic",
    "GaussSouthwell",
    "GradientView",
    "Grouping",
    "Growing",
    "Line",
    "LineSearch",
    "Matching",
    "Moments",
    "Momentum",
    "RMSProp",
    "Randomness",
    "RobbinsMonroLR",
    "Rounds",
    "Rule",
    "Scaling",
    "Selection",
    "Trial",
    "Trigonometric",
    "Uniform",
]
