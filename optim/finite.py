"""Derivatives that are not finite: found before anything is changed, without waiting for a device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..manifolds.backend import readable, recorded
from .times import Store

__all__ = ["FiniteGuard", "largest", "longest", "raise_not_finite", "raise_overflow"]


def longest(dtype: torch.dtype) -> float:
    """Time up to which a move is admitted: ε√max, 2e12 in float32 and complex64, 3e138 in float64.

    Sums of many squares of such times do not overflow.
    """
    limits = torch.finfo(dtype)
    return float(limits.eps * limits.max**0.5)


def largest(x: Tensor) -> float:
    """Largest absolute value, on the host: one pass, and NaN where there is one; 0 of nothing."""
    return float(torch.linalg.vector_norm(x.detach(), math.inf)) if x.numel() else 0.0


def raise_not_finite(bad: int, of: int, parameter: str) -> None:
    """Raise the error that every optimizer of this package raises for NaN or infinite derivatives."""
    raise FloatingPointError(
        f"{bad} of {of} derivatives that the step reads of {parameter} are NaN or infinite; "
        "parameters and state are unchanged. Look for the operation with torch.autograd.set_detect_anomaly, "
        "clip or skip such a gradient, or lower the learning rate"
    )


def raise_overflow(bad: int, made: Tensor, parameter: str) -> None:
    """Raise the error for finite derivatives of which a step makes numbers that are not, or too large."""
    raise FloatingPointError(
        f"the step of {parameter} overflows {str(made.dtype).removeprefix('torch.')} in {bad} of "
        f"{made.numel()} places: its derivatives are finite, but not their squares, or not what the "
        "learning rate makes of them; parameters and state are unchanged. Clip the gradient, lower the "
        "learning rate, or use float64"
    )


class FiniteGuard:
    """Stops steps on an accelerator at derivatives that are not finite, without a synchronization.

    A derivative that is not finite, or whose step is not, becomes a move of zero and sets a flag on the
    device; while the flag is set every later move is zero too. The host learns of it through an
    asynchronous copy, which :meth:`poll` looks at without waiting and :meth:`check` waits for.
    """

    def __init__(self) -> None:
        self._flags: dict[torch.device, Tensor] = {}
        self._copies: dict[torch.device, tuple[Tensor, torch.cuda.Event]] = {}

    def admit(
        self, derivatives: Tensor, step: Tensor, limit: float = math.inf, *, grouped: bool = False
    ) -> Tensor:
        """Return where to move: a mask that broadcasts to `derivatives`.

        With `grouped` the last two dimensions, a group's skew matrix, are admitted together or not.
        """
        flag = self.flag(derivatives.device)
        finite = derivatives.isfinite() & (step.abs() < limit)
        if grouped:
            finite = finite.all(-1, keepdim=True).all(-2, keepdim=True)
        admitted = finite & ~flag
        flag |= ~finite.all()
        return admitted

    def flag(self, device: torch.device) -> Tensor:
        """Return whether moves on a device are stopped: one bool there, changed in place."""
        if device not in self._flags:
            self._flags[device] = torch.zeros((), dtype=torch.bool, device=device)
        return self._flags[device]

    def guard(
        self, rule: Callable[[Tensor, Tensor], tuple[Tensor, Store]], *, grouped: bool = False
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `rule` with the times of all that is not admitted set to zero, and nothing stored of it."""

        def guarded(derivatives: Tensor, scale: Tensor) -> Tensor:
            t, store = rule(derivatives, scale)
            admitted = self.admit(derivatives, t, longest(t.dtype), grouped=grouped)
            store(admitted)
            return torch.where(admitted, t, 0.0)

        return guarded

    def publish(self) -> None:
        """Start copying the flags to the host; to be called at the end of a step."""
        for device, flag in self._flags.items():
            if device.type != "cuda" or recorded(flag):
                continue
            if device not in self._copies:
                copy = torch.zeros((), dtype=torch.bool, pin_memory=True)
                self._copies[device] = (copy, torch.cuda.Event())
            copy, event = self._copies[device]
            copy.copy_(flag, non_blocking=True)
            event.record(torch.cuda.current_stream(device))

    def poll(self) -> None:
        """Raise if the host has already learned of a flag; never waits."""
        known = [flag for flag in self._flags.values() if readable(flag)]
        for device, (copy, event) in self._copies.items():
            if not recorded(self._flags[device]) and event.query():
                known.append(copy)
        if any(map(bool, known)):
            self.check()

    def check(self) -> None:
        """Wait for the devices, and raise if a flag is set; clears it."""
        raised = [device for device, flag in self._flags.items() if bool(flag)]
        for flag in self._flags.values():
            flag.zero_()  # in place: recorded steps look at this one
        self._copies.clear()
        if raised:
            raise FloatingPointError(
                f"a step on {', '.join(map(str, raised))} read derivatives that are NaN or infinite, or too "
                "large for a step: their coordinates and all later steps were left out. Build the "
                "optimizer with strict=True to learn which parameter it was, at the price of waiting "
                "for the device at every step"
            )
