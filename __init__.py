"""Optimization on manifolds by coordinate moves."""

from . import manifolds, optim, rnn

__version__ = "0.1.0"
__all__ = ["manifolds", "optim", "rnn"]
