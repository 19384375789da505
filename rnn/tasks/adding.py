"""The adding problem."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .task import Batch, batch_seed, require_at_least

TOLERANCE = 0.04


class AddingProblem:
    """Add the two marked numbers of a long sequence.

    Each step has two inputs: a number, uniform in [0, 1), and a mark, which is 1 at one step of the
    first half and at one step of the second half, and 0 elsewhere. The target, asked for after the
    last step, is the sum of the two marked numbers; the loss is the mean squared error. The problem
    is that of Hochreiter & Schmidhuber, *Long short-term memory*, 1997, with the marks placed as in
    Arjovsky, Shah & Bengio, *Unitary evolution recurrent neural networks*, 2016.

    The baseline is that of the best constant answer, 1: the variance of the sum, 2 · 1/12 = 1/6.

    Parameters
    ----------
    length : int
        Steps of a sequence, at least 2.
    batch_size : int
        Sequences in a batch.
    seed : int
        Not negative. Batch n is a function of the seed and n.
    device, dtype
        Of the input and the target. The random numbers are the same on every device.

    Notes
    -----
    ``task[n]`` has shapes ``(length, batch_size, 2)`` and ``(batch_size, 1)``. `metrics` gives
    ``within 0.04``, the share of the answers that are off by less than 0.04.
    """

    input_size = 2
    output_size = 1
    readout: Literal["every", "last"] = "last"
    baseline = 1 / 6
    baseline_name = "always answering 1"

    def __init__(
        self,
        length: int = 100,
        batch_size: int = 128,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_at_least(2, length=length)
        require_at_least(1, batch_size=batch_size)
        require_at_least(0, seed=seed)
        self.name = f"adding problem, {length} steps"
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device or "cpu")
        self.dtype = dtype or torch.get_default_dtype()

    def __getitem__(self, n: int, /) -> Batch:
        """Return batch number n: numbers and marks, and the sums."""
        random = np.random.default_rng(batch_seed(self.seed, n))
        sequences = np.arange(self.batch_size)
        half = self.length // 2
        numbers = random.random((self.length, self.batch_size))
        first = random.integers(0, half, self.batch_size)
        second = random.integers(half, self.length, self.batch_size)
        marks = np.zeros_like(numbers)
        marks[first, sequences] = 1
        marks[second, sequences] = 1
        sums = numbers[first, sequences] + numbers[second, sequences]
        input = torch.from_numpy(np.stack((numbers, marks), axis=-1))
        target = torch.from_numpy(sums[:, None])
        return input.to(self.device, self.dtype), target.to(self.device, self.dtype)

    def loss(self, output: Tensor, target: Tensor, /) -> Tensor:
        """Return the mean squared error."""
        return mse_loss(output, target)

    def metrics(self, output: Tensor, target: Tensor, /) -> dict[str, Tensor]:
        """Return ``within 0.04``: the share of the answers that are off by less than that."""
        return {f"within {TOLERANCE}": ((output - target).abs() < TOLERANCE).float().mean()}
