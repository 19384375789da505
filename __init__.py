"""Optimization on manifolds by coordinate moves."""

import warnings

import torch  # noqa: F401 - outside the block below: the filters that it sets are to stay

with warnings.catch_warnings():
    # geoopt calls it when it is imported, and who imports givens can do nothing about it.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from . import manifolds, optim, rnn

__version__ = "0.1.0"
__all__ = ["manifolds", "optim", "rnn"]
