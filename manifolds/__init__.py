"""Geometry: points, tangent vectors, coordinates, and the moves along them."""

from .base import CoordinateManifold
from .blocks import All, CoordinateBlock, Coordinates, Groups
from .euclidean import Euclidean
from .orthogonal import OrthogonalGroup
from .parameter import constrain, refuse_assign

__all__ = [
    "All",
    "CoordinateBlock",
    "CoordinateManifold",
    "Coordinates",
    "Euclidean",
    "Groups",
    "OrthogonalGroup",
    "constrain",
    "refuse_assign",
]
