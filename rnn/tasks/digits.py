"""Pixel-by-pixel digits: real data that comes with scikit-learn."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...extras import extra
from .task import Batch, batch_seed, require_at_least

CLASSES = 10
# The split and the permutation belong to the task, not to a run: they must not follow its seed.
SPLIT_SEED = 0
PERMUTATION_SEED = 0


class PixelDigits:
    """Read an 8 × 8 picture of a handwritten digit one pixel at a time, then say which it is.

    The 1,797 pictures of scikit-learn's `load_digits` (grey levels from 0 to 1), split once and for
    all into 1,437 to train on and 360 to test on, each class in the same proportion. A sequence is
    the 64 pixels row by row or, with `permuted`, in one fixed random order, which moves what was
    near far apart. The loss is the cross-entropy.

    The baseline is that of saying each class with the same probability, ln 10 (accuracy 0.1). The
    classes are balanced to about a percent: knowing their frequencies gains less than 0.001.

    Parameters
    ----------
    permuted : bool
        Whether the pixels come in the fixed random order.
    batch_size : int
        Pictures in a batch, at most 1,437.
    seed : int
        Not negative. The order of the pictures in an epoch is a function of the seed and the epoch.
    device, dtype
        Of the input.

    Raises
    ------
    ModuleNotFoundError
        When scikit-learn is not installed (extra ``cli``).

    Notes
    -----
    ``task[n]`` has shapes ``(64, batch_size, 1)`` and ``(batch_size,)``. An epoch is the training
    pictures in a new order, cut into whole batches; those that do not fill one wait for the next
    epoch. `metrics` gives ``accuracy``.
    """

    name = "pixel-by-pixel digits"
    input_size = 1
    output_size = CLASSES
    readout: Literal["every", "last"] = "last"
    baseline = math.log(CLASSES)
    baseline_name = "guessing"

    def __init__(
        self,
        permuted: bool = False,
        batch_size: int = 128,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with extra("cli"):
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, seed=seed)
        pixels, digits = load_digits(return_X_y=True)
        pixels = pixels / pixels.max()
        if permuted:
            pixels = pixels[:, np.random.default_rng(PERMUTATION_SEED).permutation(pixels.shape[1])]
            self.name = "pixel-by-pixel digits, permuted"
        parts = train_test_split(
            pixels, digits, test_size=0.2, stratify=digits, random_state=SPLIT_SEED
        )
        self._train_pixels, self._test_pixels = (
            torch.from_numpy(part).to(device, dtype or torch.get_default_dtype())
            for part in parts[:2]
        )
        self._train_digits, self._test_digits = (
            torch.from_numpy(part).to(device) for part in parts[2:]
        )
        if batch_size > len(self._train_digits):
            raise ValueError(
                f"batch_size must be at most {len(self._train_digits)}, the number of training "
                f"pictures, got {batch_size}"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.permuted = permuted

    def __getitem__(self, n: int, /) -> Batch:
        """Return batch number n: pixels and digits."""
        count = len(self._train_digits)
        epoch, position = divmod(n, count // self.batch_size)
        order = np.random.default_rng(batch_seed(self.seed, epoch)).permutation(count)
        start = position * self.batch_size
        chosen = torch.from_numpy(order[start : start + self.batch_size])
        chosen = chosen.to(self._train_digits.device)
        return _sequences(self._train_pixels[chosen]), self._train_digits[chosen]

    def held_out(self) -> list[Batch]:
        """Return the test pictures, as one batch."""
        return [(_sequences(self._test_pixels), self._test_digits)]

    def loss(self, output: Tensor, target: Tensor, /) -> Tensor:
        """Return the cross-entropy."""
        return cross_entropy(output, target)

    def metrics(self, output: Tensor, target: Tensor, /) -> dict[str, Tensor]:
        """Return ``accuracy``: the share of the digits that are right."""
        return {"accuracy": (output.argmax(-1) == target).float().mean()}


def _sequences(pixels: Tensor) -> Tensor:
    """Turn pictures, shape (batch, 64), into sequences of one feature, shape (64, batch, 1)."""
    return pixels.T.contiguous().unsqueeze(-1)
