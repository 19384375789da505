"""Geometry: points, tangent vectors, coordinates, and the moves along them."""

from .base import CoordinateManifold
from .blocks import All, CoordinateBlock, Coordinates, Groups
from .euclidean import Euclidean
from .grassmann import Grassmann
from .lorentz import Lorentz
from .oblique import Oblique
from .orthogonal import OrthogonalGroup
from .parameter import constrain, keep_manifold
from .power import Power
from .product import Product
from .rotation_coordinates import RotationCoordinates
from .scaled import Scaled
from .spd import SymmetricPositiveDefinite
from .special_orthogonal import SpecialOrthogonalGroup
from .sphere import Sphere
from .stiefel import Stiefel
from .symplectic import Symplectic
from .unitary import SpecialUnitaryGroup, UnitaryGroup

__all__ = [
    "All",
    "CoordinateBlock",
    "CoordinateManifold",
    "Coordinates",
    "Euclidean",
    "Grassmann",
    "Groups",
    "Lorentz",
    "Oblique",
    "OrthogonalGroup",
    "Power",
    "Product",
    "RotationCoordinates",
    "Scaled",
    "SpecialOrthogonalGroup",
    "SpecialUnitaryGroup",
    "Sphere",
    "Stiefel",
    "SymmetricPositiveDefinite",
    "Symplectic",
    "UnitaryGroup",
    "constrain",
    "keep_manifold",
]
