"""The copying-memory task."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from .task import Batch, batch_seed, require_at_least

LETTERS = 8
BLANK = 0
START = LETTERS + 1


class CopyingMemory:
    r"""Remember K letters over L steps, then write them down.

    The input is K random letters, L blanks, the start symbol and K − 1 blanks more; the target is
    L + K blanks and then the K letters:

    .. code-block:: text

        input   a₁ … a_K  _ … … … _  start  _ … _
        target  _ … … … … … … … … _  a₁  a₂ … a_K
                 (K)      (L blanks)       (K)

    Letters, blank and start symbol are one-hot: 10 inputs, for an alphabet of 8 letters. The output
    has 9 classes, blank and letters. (The text of Massart & Abrol, section 4, speaks of an
    alphabet of 9; this is the task of the code which they took it from, expRNN's: 8 letters, and
    the blank as the ninth class.)

    The baseline is the best that can be done without a memory of the letters: the blanks known,
    because their place is, and each letter guessed, K ln 8 / (L + 2K).

    Parameters
    ----------
    length : int
        L, the steps over which to remember.
    letters : int
        K, the letters to remember.
    batch_size : int
        Sequences in a batch.
    seed : int
        Not negative. Batch n is a function of the seed and n.
    device, dtype
        Of the input. The random letters are the same on every device.

    Notes
    -----
    ``task[n]`` has shapes ``(L + 2K, batch_size, 10)``, and ``(L + 2K, batch_size)`` with entries
    of 0 (blank) to 8. `metrics` gives ``recall``, the share of the K letters that are right.
    """

    input_size = LETTERS + 2
    output_size = LETTERS + 1
    readout: Literal["every", "last"] = "every"
    baseline_name = "no memory"

    def __init__(
        self,
        length: int = 100,
        letters: int = 10,
        batch_size: int = 128,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_at_least(1, length=length, letters=letters, batch_size=batch_size)
        require_at_least(0, seed=seed)
        self.name = f"copying memory, L = {length}, K = {letters}"
        self.length = length
        self.letters = letters
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device or "cpu")
        self.dtype = dtype or torch.get_default_dtype()
        self.baseline = letters * math.log(LETTERS) / (length + 2 * letters)

    def __getitem__(self, n: int, /) -> Batch:
        """Return batch number n: one-hot inputs and target classes."""
        random = np.random.default_rng(batch_seed(self.seed, n))
        drawn = random.integers(1, LETTERS + 1, size=(self.letters, self.batch_size))
        letters = torch.from_numpy(drawn).to(self.device)
        steps = self.length + 2 * self.letters
        symbols = letters.new_full((steps, self.batch_size), BLANK)
        target = symbols.clone()
        symbols[: self.letters] = letters
        symbols[self.length + self.letters] = START
        target[-self.letters :] = letters
        # The whole one-hot input, not an index into the weights: the backward of indexing is slow.
        return one_hot(symbols, self.input_size).to(self.dtype), target

    def loss(self, output: Tensor, target: Tensor, /) -> Tensor:
        """Return the cross-entropy, the mean over all steps, blanks included."""
        return cross_entropy(output.flatten(0, 1), target.flatten())

    def metrics(self, output: Tensor, target: Tensor, /) -> dict[str, Tensor]:
        """Return ``recall``: the share of the letters (blanks left out) that are right."""
        right = output[-self.letters :].argmax(-1) == target[-self.letters :]
        return {"recall": right.float().mean()}
