"""A kit that proves a geometry right: every law of a manifold with coordinates, on random inputs.

:func:`check_manifold` tries the laws of :mod:`givens.manifolds.testing.laws` on inputs that Hypothesis draws
and shrinks. It says in plain words which law is broken, for which input, by how much, and what that
usually means. It is for the manifolds of this package and for anybody's own, in pytest and without. It
needs Hypothesis: ``pip install 'givens[test]'``.

:func:`check_gradient`, :func:`check_move` and :func:`check_retraction` are for a cost or a map of one's
own: they read the slope of an error, and draw it. :class:`Validating` wraps a manifold and checks
every point and vector on its way in and out.
"""

from .case import Case
from .check import LawBroken, Report, check_manifold
from .diagnostics import Diagnosis, check_gradient, check_move, check_retraction
from .laws import LAWS, Law, law
from .validating import Validating

__all__ = [
    "LAWS",
    "Case",
    "Diagnosis",
    "Law",
    "LawBroken",
    "Report",
    "Validating",
    "check_gradient",
    "check_manifold",
    "check_move",
    "check_retraction",
    "law",
]
