"""Averages that belong to coordinates: the memory of an adaptive step."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Moments"]


class Moments:
    """The averages of the coordinates that a step moves along, and of no others.

    Left-invariant directions travel with the point, so an average of the derivatives along one of them
    means the same thing at every step, and needs no transport. Averages live in the optimizer's
    state, one number a coordinate; a step reads and writes those of its block. To be made once a
    step. What the step writes it reads back, but the state has it only after :meth:`store`: before
    that the optimizer looks whether everything is finite.

    Parameters
    ----------
    state : dict
        Where the tensors live; changed by :meth:`store` alone.
    derivatives : Tensor
        Those of the step, shape ``(*batch, k)``: gives shape, type and device.
    total : int
        D, the number of coordinates.
    index : Tensor, optional
        Numbers of the coordinates, shape ``(*batch, k)``, none twice; by default all of them, in order.
    axes : callable, optional
        Returns their axes, shape ``(*batch, k, a)``, numbered below `num_axes`; called if needed.
    num_axes : int
        Number of axes.
    step : int or Tensor
        Number of steps that came before; a tensor of no dimensions where the step may be recorded.

    Nothing is kept that is not asked for: the counts, too, begin with the first look at them.
    """

    def __init__(
        self,
        state: MutableMapping[str, Any],
        derivatives: Tensor,
        total: int,
        *,
        index: Tensor | None = None,
        axes: Callable[[], Tensor] | None = None,
        num_axes: int = 0,
        step: int | Tensor = 0,
    ) -> None:
        self._state = state
        self._like = derivatives
        self._total = total
        self._index = index
        self._axes = axes
        self._num_axes = num_axes
        self._step = step
        self._visits: Tensor | None = None
        self._elapsed: Tensor | None = None
        self._written: dict[str, Tensor] = {}
        self._written_of_axes: dict[str, Tensor] = {}

    @property
    def visits(self) -> Tensor:
        """How often each coordinate has been selected, this time included; int32."""
        if self._visits is None:
            self._visits = self.read("visits", torch.int32) + 1
            self.write("visits", self._visits)
        return self._visits

    @property
    def elapsed(self) -> Tensor:
        """Steps of the optimizer since each coordinate was selected last; int64, since 0 at first."""
        if self._elapsed is None:
            last = self.read("last_step", torch.int64)
            self.write("last_step", torch.zeros_like(last) + self._step)
            self._elapsed = self._step - last
        return self._elapsed

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return what is kept under a name for the coordinates of the step; 0 at first."""
        if name in self._written:
            return self._written[name].clone()
        return self._stored(name, dtype)

    def write(self, name: str, value: Tensor) -> None:
        """Keep a value, of the shape of the derivatives, under a name."""
        self._written[name] = value

    @property
    def finite(self) -> Tensor:
        """Where all that has been written is finite; broadcasts to the derivatives.

        The averages of axes are of a whole point: its coordinates are finite together.
        """
        finite = torch.ones((), dtype=torch.bool, device=self._like.device)
        for value in self._written.values():
            finite = finite & value.isfinite()
        for value in self._written_of_axes.values():
            finite = finite & value.isfinite().all(-1, keepdim=True)
        return finite

    def store(self, admitted: Tensor | None = None) -> None:
        """Put into the state what has been written.

        Parameters
        ----------
        admitted : Tensor, optional
            Where the state may change; elsewhere it stays as it is. Broadcasts to the derivatives. The
            averages of axes change where all coordinates of a point are admitted.
        """
        for name, value in self._written.items():
            if admitted is not None:
                value = torch.where(admitted, value, self._stored(name, value.dtype))
            kept = self._kept(name, self._total, value.dtype)
            if self._index is None:
                kept.copy_(value)
            elif torch.compiler.is_compiling() and kept.dim() == 1:
                kept[self._index] = value  # which a compiler leaves in place
            else:
                kept.scatter_(-1, self._index, value)
        for name, value in self._written_of_axes.items():
            kept = self._kept(name, self._num_axes, value.dtype)
            if admitted is None:
                kept.copy_(value)
            else:
                kept.copy_(torch.where(admitted.all(-1, keepdim=True), value, kept))

    def average(
        self, name: str, value: Tensor, decay: float, clock: str = "visits"
    ) -> tuple[Tensor, Tensor]:
        """Take a value into the exponential average of a name.

        Parameters
        ----------
        name : str
            The average's name.
        value : Tensor
            What this visit contributes, of the shape of the derivatives.
        decay : float
            Weight β of the past, in [0, 1).
        clock : {"visits", "steps"}
            Whether the past fades with the visits of the coordinate (β a visit), or with the steps of the
            optimizer (β^Δ after Δ steps).

        Returns
        -------
        average, weight : Tensor
            Σ (1 − β) β^age · value over the visits, and Σ (1 − β) β^age: their quotient is the
            weighted mean.
        """
        if clock == "visits":
            new = decay * self.read(name) + (1 - decay) * value
            self.write(name, new)
            return new, 1 - decay ** self.visits.to(value.dtype)
        fade = decay ** self.elapsed.to(value.dtype)
        new = fade * self.read(name) + (1 - decay) * value
        weight = fade * self.read(f"{name}_weight") + (1 - decay)
        self.write(name, new)
        self.write(f"{name}_weight", weight)
        return new, weight

    def axis_average(self, name: str, value: Tensor, decay: float) -> tuple[Tensor, Tensor]:
        """Take values into one average for every axis, O(number of axes) in memory.

        An axis takes in the mean of the values of those coordinates of the step that turn it, and its
        past fades by β at each step in which there is one.

        Returns
        -------
        means : Tensor
            Mean of each axis over its visits, for the axes of the coordinates, shape ``(*batch, k, a)``.
        overall : Tensor
            Mean over all axes that have been visited, shape ``(*batch, 1)``.
        """
        assert self._axes is not None
        axes = self._axes()
        a = axes.shape[-1]
        flat = axes.flatten(-2)

        def gathered(x: Tensor) -> Tensor:
            zeros = value.new_zeros(*value.shape[:-1], self._num_axes)
            return zeros.scatter_add_(-1, flat, x.expand_as(value).repeat_interleave(a, -1))

        count = gathered(torch.ones_like(value))
        mean = gathered(value) / count.clamp(min=1)
        zeros = torch.zeros_like(count)
        # The prefix tells a saved state that these are numbers of axes.
        names = f"axis_{name}", f"axis_{name}_weight"
        average, weight = (self._state.get(own, zeros).to(value) for own in names)
        visited = count > 0
        average = torch.where(visited, decay * average + (1 - decay) * mean, average)
        weight = torch.where(visited, decay * weight + (1 - decay), weight)
        self._written_of_axes.update(zip(names, (average, weight), strict=True))
        known = weight > 0
        corrected = torch.where(known, average / weight, 0.0)
        overall = corrected.sum(-1, keepdim=True) / known.sum(-1, keepdim=True)
        return corrected.gather(-1, flat).unflatten(-1, axes.shape[-2:]), overall

    def _stored(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """Copy of what the state has for the coordinates of the step."""
        if name not in self._state:
            return torch.zeros_like(self._like, dtype=dtype)
        # A model may be converted while it is trained.
        kept = self._state[name].to(self._like.device)
        stored = kept.clone() if self._index is None else kept.gather(-1, self._index)
        return stored.to(dtype or self._like.dtype)

    def _kept(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """Tensor of the state that has room for all coordinates, or all axes."""
        if name not in self._state:
            self._state[name] = torch.zeros(
                *self._like.shape[:-1], size, dtype=dtype, device=self._like.device
            )
        self._state[name] = self._state[name].to(self._like.device, dtype)
        kept: Tensor = self._state[name]
        return kept
