"""Averages that belong to coordinates: the memory of an adaptive step."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["Moments"]


class Moments:
    """The averages of the coordinates that a step moves along, and of no others.

    Left-invariant directions travel with the point, so an average of the derivatives along one of them
    means the same thing at every step, and needs no transport. Averages live in the optimizer's
    state, one number a coordinate; a step reads and writes those of its block. To be made once a
    step: making it counts the visit.

    Parameters
    ----------
    state : dict
        Where the tensors live; changed.
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
    step : int
        Number of steps that came before.
    admitted : Tensor, optional
        Where the memory may change; elsewhere it stays as it is. Broadcasts to `derivatives`.

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
        step: int = 0,
        admitted: Tensor | None = None,
    ) -> None:
        self._state = state
        self._like = derivatives
        self._total = total
        self._index = index
        self._axes = axes
        self._num_axes = num_axes
        self._step = step
        self._admitted = admitted

    @cached_property
    def visits(self) -> Tensor:
        """How often each coordinate has been selected, this time included; int32."""
        visits = self.read("visits", torch.int32) + 1
        self.write("visits", visits)
        return visits

    @cached_property
    def elapsed(self) -> Tensor:
        """Steps of the optimizer since each coordinate was selected last; int64, since 0 at first."""
        last = self.read("last_step", torch.int64)
        self.write("last_step", torch.full_like(last, self._step))
        return self._step - last

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return what is kept under a name for the coordinates of the step; 0 at first."""
        kept = self._kept(name, self._total, dtype)
        return kept.clone() if self._index is None else kept.gather(-1, self._index)

    def write(self, name: str, value: Tensor) -> None:
        """Keep a value, of the shape of the derivatives, under a name that :meth:`read` has made."""
        if self._admitted is not None:
            value = torch.where(self._admitted, value, self.read(name, value.dtype))
        kept = self._state[name]
        if self._index is None:
            kept.copy_(value)
        else:
            kept.scatter_(-1, self._index, value)

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
        mask = torch.ones_like(value) if self._admitted is None else self._admitted.to(value.dtype)
        share = torch.where(mask > 0, value, 0.0)

        def gathered(x: Tensor) -> Tensor:
            zeros = value.new_zeros(*value.shape[:-1], self._num_axes)
            return zeros.scatter_add_(-1, flat, x.expand_as(value).repeat_interleave(a, -1))

        count = gathered(mask)
        mean = gathered(share) / count.clamp(min=1)
        # The prefix tells a saved state that these are numbers of axes.
        average = self._kept(f"axis_{name}", self._num_axes, None)
        weight = self._kept(f"axis_{name}_weight", self._num_axes, None)
        visited = count > 0
        average.copy_(torch.where(visited, decay * average + (1 - decay) * mean, average))
        weight.copy_(torch.where(visited, decay * weight + (1 - decay), weight))
        known = weight > 0
        corrected = torch.where(known, average / weight, 0.0)
        overall = corrected.sum(-1, keepdim=True) / known.sum(-1, keepdim=True)
        return corrected.gather(-1, flat).unflatten(-1, axes.shape[-2:]), overall

    def _kept(self, name: str, size: int, dtype: torch.dtype | None) -> Tensor:
        kept = self._state.get(name)
        if kept is None:
            kept = self._like.new_zeros(*self._like.shape[:-1], size)
        # A model may be converted while it is trained.
        self._state[name] = kept.to(self._like.device, dtype or self._like.dtype)
        return self._state[name]
