"""Counter-based randomness: a choice is a pure function of (seed, step, parameter number).

The state of a selection is then two integers, the same on every rank of a distributed run, and
nothing of torch's global random state is touched.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Randomness"]

_MASK = 2**64 - 1
# The finalizer of SplitMix64 (Steele, Lea & Flood, 2014): shifts, and odd multipliers.
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31

# Up to so many numbers a CPU is faster in Python than with tensors.
_FEW = 8

# Up to so many candidates for every number that is drawn, sorting them all is faster.
_SORTED = 16


class Randomness:
    """Random numbers of one step of one parameter.

    Parameters
    ----------
    seed, step, number : int
        The key: equal keys give equal numbers, on every device. `step` may be an int64 tensor of no
        dimensions there: then what is drawn follows what it holds when a recorded step is replayed.
    device : torch.device
        Where the numbers are made.
    batch, first : torch.Size, int
        If the points for which they are made are part of a larger batch: the shape of the part, and
        where it begins in the first dimension. Tensors whose shape begins with `batch` are then the part
        of what would be made for the whole.
    """

    def __init__(
        self,
        seed: int,
        step: int | Tensor,
        number: int,
        device: torch.device,
        batch: tuple[int, ...] = (),
        first: int = 0,
    ) -> None:
        self._key: int | Tensor = 0  # below 2⁶⁴, or the same bits as int64
        for part in (seed, step, number):
            self._advance(part)
        self._device = device
        self._batch = batch
        self._before = first * math.prod(batch[1:])  # points that come before

    def integers(self, high: int, *size: int) -> Tensor:
        """Independent integers, uniform in [0, high), as an int64 tensor of shape `size`.

        Their bias is below high/2⁶³.
        """
        count = math.prod(size)
        first = self._first(size)
        if count <= _FEW and self._device.type == "cpu" and isinstance(self._key, int):
            self._advance()
            keys = range(first + self._key, first + self._key + count)
            drawn = [(_mix(key * _GOLDEN & _MASK) & (2**63 - 1)) % high for key in keys]
            return torch.tensor(drawn, dtype=torch.int64).view(size)
        return (self._fresh(size) & (2**63 - 1)) % high

    def reals(self, *size: int, dtype: torch.dtype) -> Tensor:
        """Independent numbers, uniform over 2²⁵ values in (−1, 1), of mean 0, as a tensor of shape `size`."""
        return ((self._fresh(size) >> 39).to(dtype) + 0.5) / 2**24

    def distinct(self, high: int, k: int, *batch: int) -> Tensor:
        """Draw k distinct integers of [0, high) in random order, shape ``(*batch, k)``.

        Where k is a good part of `high`, all of them in the order of random 63-bit keys,
        O(high log high). Otherwise the images of 0, …, k − 1 under a random permutation, evaluated at these
        places only: the swap-or-not shuffle of Hoang, Morris & Rogaway (2012), O(k log high), no table.
        """
        if high <= _SORTED * k:
            return self.integers(2**63 - 1, *batch, high).argsort(-1)[..., :k]
        x = torch.arange(k, device=self._device).expand(*batch, k)
        # Every round about halves what is left of the bias: 18 are the least that hides it.
        for _ in range(6 * max(3, (high - 1).bit_length())):
            partner = (self.integers(high, *batch, 1) - x) % high
            self._advance()
            coin = torch.maximum(x, partner)
            if batch:
                before = self._before if batch == self._batch else 0
                row = torch.arange(before, before + math.prod(batch), device=self._device)
                coin = coin + row.view(*batch, 1) * high
            x = torch.where(self._bits(coin) < 0, partner, x)
        return x

    def _advance(self, by: int | Tensor = 0) -> None:
        if isinstance(self._key, int) and isinstance(by, int):
            self._key = _mix((self._key + by + _GOLDEN) & _MASK)
        else:
            self._key = _mix_tensor(_as_int64(by) + _as_int64(self._key) + _signed(_GOLDEN))

    def _first(self, size: tuple[int, ...]) -> int:
        """How many of the numbers of the whole batch come before those of its part, of shape `size`."""
        if self._before and size[: len(self._batch)] == self._batch:
            return self._before * math.prod(size[len(self._batch) :])
        return 0

    def _fresh(self, size: tuple[int, ...]) -> Tensor:
        """64 random bits for each place of a tensor of shape `size`, by a new key."""
        self._advance()
        first = self._first(size)
        numbers = torch.arange(first, first + math.prod(size), device=self._device)
        return self._bits(numbers).view(size)

    def _bits(self, numbers: Tensor) -> Tensor:
        """64 random bits for each number, as int64."""
        return _mix_tensor((numbers + _as_int64(self._key)) * _signed(_GOLDEN))


def _mix(z: int) -> int:
    for shift, factor in _ROUNDS:
        z = ((z ^ (z >> shift)) * factor) & _MASK
    return z ^ (z >> _LAST_SHIFT)


def _mix_tensor(z: Tensor) -> Tensor:
    """Apply :func:`_mix` to int64 tensors, which wrap around as unsigned integers do."""
    for shift, factor in _ROUNDS:
        z = (z ^ _shift(z, shift)) * _signed(factor)
    return z ^ _shift(z, _LAST_SHIFT)


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical right shift: int64 shifts copy the sign."""
    return (z >> by) & (2 ** (64 - by) - 1)


def _as_int64(z: int | Tensor) -> Any:
    """A number as int64 has it, whatever is added to it later."""
    return _signed(z & _MASK) if isinstance(z, int) else z


def _signed(z: int) -> int:
    return z - 2**64 if z >= 2**63 else z
