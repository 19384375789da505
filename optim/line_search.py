"""Line searches: how much of a step is taken, where a closure evaluates the objective.

A line search is an object with one method, :meth:`LineSearch.search`. Like the selections and the
scalings, those that are here hold their settings and nothing else: the factor that the last step took
lives in the optimizer's state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from .line import Line, Trial
from .trigonometric import minimize

__all__ = ["Armijo", "LineSearch", "Trigonometric"]


@runtime_checkable
class LineSearch(Protocol):
    """Anything that decides how much of a step is taken, with ``step(closure)``.

    The closure is called once with gradients where the step begins, and then at every trial point. Between
    calls only the parameters of the optimizer change, so it should be deterministic: one batch a step, no
    dropout. After each trial, and when anything raises, parameters are as they were, to the bit; the
    gradients that a step leaves behind are those of its beginning.

    In a distributed run the mean of the processes' losses decides, the same for all, where the
    optimizer has a `process_group`, under plain DDP too. Without one each process decides by what its own
    closure returns, and they drift apart unless that is the same number everywhere.

    Examples
    --------
    A search of one's own: the best of a few stepsizes.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Best:
    ...     factors: tuple[float, ...] = (0.1, 0.3, 1.0)
    ...
    ...     def search(self, line):
    ...         trials = [line.along(factor) for factor in self.factors]
    ...         best = min(trials, key=lambda trial: trial.value)
    ...         return best if best.value < line.value else None
    >>> import torch
    >>> from givens.optim import SRGD
    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = SRGD([w], lr=1.0, line_search=Best())
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = w.square().sum()
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure).item(), round(w.item(), 6)
    (9.0, 1.2)
    """

    def search(self, line: Line) -> Trial | None:
        """Try points on the line, and return the trial to take, or None to stay."""
        ...


@dataclass(frozen=True)
class Armijo:
    """Backtracking until the objective falls enough (Armijo, 1966; Nocedal & Wright, Algorithm 3.1).

    The stepsize is `lr` times the first factor s of s_0, s_0·q, s_0·q², … (q is `shrink`) with

        f(x(s)) ≤ f(x(0)) + decrease · s · f′(0),

    where x(s) is the point that the step reaches with s times its lengths, in all parameters together,
    and f′(0) the derivative of s ↦ f(x(s)). The first step begins with s_0 = 1, and no other with more, so
    that `lr` is the longest stepsize. A value that is NaN or infinite, or a step that overflows, counts as
    too long.

    Parameters
    ----------
    decrease : float
        c of the condition, in (0, 1).
    shrink : float
        By how much a step that is too long is shortened, in (0, 1).
    growth : float
        s_0 is `growth` times the factor that the last step took, 1 at most. With 2, and ½ for `shrink`, a
        step takes about two trials however large `lr` is. At least 1; ``math.inf`` begins with 1 always.
    trials : int
        After so many the point stays where it is.
    no_grad : bool
        Whether the closure is called under :class:`torch.no_grad` at trial points, which saves the
        backward passes. It must leave them out then: ``if torch.is_grad_enabled(): loss.backward()``.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Notes
    -----
    The condition can be met where the direction descends: along the derivatives themselves, or those that
    :class:`RMSProp` and :class:`AxisRMSProp` scale. :class:`Momentum` and :class:`Adam` follow the past,
    which may ascend. The point stays then, and what they remember takes in the new derivatives; the same
    happens near a minimum, where the fall is below the rounding of the objective.
    """

    decrease: float = 1e-4
    shrink: float = 0.5
    growth: float = 2.0
    trials: int = 30
    no_grad: bool = False

    def __post_init__(self) -> None:
        for name in ("decrease", "shrink"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{self}: {name} must be in (0, 1)")
        if not self.growth >= 1:
            raise ValueError(f"{self}: growth must be 1 or more")
        if not isinstance(self.trials, int) or self.trials < 1:
            raise ValueError(f"{self}: trials must be a whole number, at least 1")

    def search(self, line: Line) -> Trial | None:
        """Shorten the step until the objective falls enough."""
        slope = line.slope
        if not slope < 0:
            return None
        factor = min(1.0, self.growth * line.last)
        for _ in range(self.trials):
            trial = line.along(factor, no_grad=self.no_grad)
            if trial.value <= line.value + self.decrease * factor * slope:
                return trial
            factor *= self.shrink
        return None


@dataclass(frozen=True)
class Trigonometric:
    """The global minimum along one rotation, for an objective that is a polynomial in the point.

    When one coordinate of a point turns by the angle φ, its entries are affine functions of cos φ and
    sin φ. So a polynomial of degree m in them is a trigonometric polynomial of degree m in φ: its values
    at 2m equispaced angles, one of which is the starting point, and its derivative there determine it, and
    its minimum is among the roots of a polynomial of degree 2m. Along the coordinates of O(d) this is
    the coordinate minimization of Shalit & Chechik (2014); for the sum of the squares off the diagonal of
    WᵀAW (degree 4) with :class:`Cyclic` it is Jacobi's eigenvalue algorithm (1846), and converges
    as that does, quadratically in sweeps. Neither `lr` nor the sign of the derivative matters.

    Parameters
    ----------
    degree : int
        Degree m of the objective: 1 for ⟨G, W⟩ (Procrustes), 2 for quadratic ones (PCA, Brockett),
        4 for the squares off a diagonal and for kurtoses.
    no_grad : bool
        As for :class:`Armijo`.

    Raises
    ------
    ValueError
        If `degree` is out of range; at the step, if it is not one rotation: one parameter with a gradient,
        on a manifold with a ``period``, one coordinate, no scaling; or if the objective is no such
        polynomial.
    FloatingPointError
        At the step, if the objective is NaN or infinite somewhere on the way.

    Notes
    -----
    A step costs the closure's one evaluation with gradients and 2m trials; the last of them, at the minimum,
    shows whether the objective is what `degree` says. Of several minima that are equal but for rounding,
    the nearest is taken.
    """

    degree: int = 2
    no_grad: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or self.degree < 1:
            raise ValueError(f"{self}: degree must be a whole number, at least 1")

    def search(self, line: Line) -> Trial | None:
        """Determine the polynomial, and turn to its minimum."""
        m = self.degree
        values = [line.value]
        for k in range(1, 2 * m):
            values.append(line.turned(k * math.pi / m, no_grad=self.no_grad).value)
        slope = line.turned_slope
        if not all(map(math.isfinite, values)):
            raise FloatingPointError(
                f"{self}: the objective is NaN or infinite at an angle of the coordinate; parameters and "
                "state are unchanged. Armijo() shortens a step until it is finite"
            )
        scale = max(map(abs, values))
        angle, gain = minimize(values, slope, noise=8 * line.precision * scale)
        if angle == 0:
            return None
        trial = line.turned(angle, no_grad=self.no_grad)
        expected = line.value + gain
        if not abs(trial.value - expected) <= math.sqrt(line.precision) * scale:
            raise ValueError(
                f"{self}: turned by {angle:.3g} radians the objective is {trial.value:.9g}, where the "
                f"trigonometric polynomial of degree {m} through its other values is {expected:.9g}; "
                "parameters and state are unchanged. Give the degree of the objective as a polynomial in "
                "the entries of the point, let the closure be deterministic, or take Armijo()"
            )
        return trial
