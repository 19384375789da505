"""Diagnostics of a cost, a gradient, a retraction or coordinates of one's own: the slope of an error.

Along a curve y(t) that leaves x with the velocity u, Taylor's theorem says
f(y(t)) = f(x) + t⟨grad f(x), u⟩ + O(t²). On logarithmic scales the error of the first-order model falls
with slope 2 if the gradient is right, and in the end with slope 1 if it is not (Boumal, *An
Introduction to Optimization on Smooth Manifolds*, 2023, section 4.8).

Where "in the end" is, rounding decides. Its size is measured, not assumed: the sixth differences of
values at neighbouring points are those of the rounding alone, whatever the smooth function is
(Moré and Wild, *Estimating computational noise*, 2011). The slope is read in the lowest decade of t in
which the error stands clear of it, which is where a small mistake shows best.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from geoopt.manifolds import Manifold
from torch import Tensor

from ...extras import extra
from ..base import CoordinateManifold
from ..blocks import Coordinates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Diagnosis", "check_gradient", "check_move", "check_retraction"]

Cost = Callable[[Tensor], "Tensor | float"]
Gradient = Callable[[Tensor], Tensor]
M = TypeVar("M", bound=Manifold)

_EPS = torch.finfo(torch.float64).eps
# How far above its rounding an error must be to be read, and by how much a slope may be missed.
_CLEAR = 100
_SLACK = 0.25
# The precision at which two derivatives count as the same, and as too coarse to be compared.
_SAME = 1e-4
_COARSE = 1e-2


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """What a check has found; true if all is right.

    ``print`` says it in words, :meth:`plot` draws it, and ``assert check_gradient(…)`` makes a test
    of it.

    Attributes
    ----------
    subject : str
        The check and the manifold.
    steps : Tensor
        The times t, ascending, shape ``(n,)``.
    errors : Tensor
        Errors at these times, one row for every curve: shape ``(c, n)``.
    floors : Tensor
        Below these the errors are rounding, shape ``(c,)``.
    windows : tuple of slice or None
        The times at which the slope of every curve was read; None where rounding is all there is.
    slopes : tuple of float
        Slope of every curve; infinite where rounding is all there is.
    labels : tuple of str
        What the curves are.
    expected : float
        The slope that they must have at least.
    ok : bool
        Whether all is right.
    explanation : str
        What is right or wrong, and what to look at.
    """

    subject: str
    steps: Tensor
    errors: Tensor
    floors: Tensor
    windows: tuple[slice | None, ...]
    slopes: tuple[float, ...]
    labels: tuple[str, ...]
    expected: float
    ok: bool
    explanation: str

    @property
    def slope(self) -> float:
        """The smallest of the slopes."""
        return min(self.slopes)

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        verdict = "right" if self.ok else "WRONG"
        return f"{self.subject}: {verdict}\n    " + self.explanation.replace("\n", "\n    ")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw errors against t, with what is read of them (thick) and the expected slope (dashed).

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure of pyplot's.

        Returns
        -------
        matplotlib.axes.Axes
            `ax`.

        Raises
        ------
        ModuleNotFoundError
            When matplotlib is not installed (extra ``cli``).
        """
        with extra("cli"):
            import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(5.6, 4.0), layout="constrained")
        t = self.steps.numpy()
        shown = self.errors.clamp(min=float(self.floors.min()) * 1e-4).numpy()
        colors = plt.get_cmap("viridis")(torch.linspace(0, 0.85, len(shown)).numpy())
        legend = 1 < len(shown) <= 6
        for row, window, label, color in zip(shown, self.windows, self.labels, colors, strict=True):
            ax.loglog(t, row, ".-", color=color, lw=0.8, ms=3, label=label if legend else None)
            if window is not None:
                ax.loglog(t[window], row[window], color=color, lw=3, solid_capstyle="round")
        floor = float(self.floors.min())
        ax.axhspan(0, floor, color="0.93", zorder=0, label="rounding")
        worst = self.slopes.index(self.slope)
        window = self.windows[worst]
        top = t[-1], max(float(shown[worst][-1]), floor)
        if window is not None:
            top = t[window][0], float(shown[worst][window][0])
        model = top[1] * (t / top[0]) ** self.expected
        inside = (model >= floor * 1e-2) & (model <= shown[torch.tensor(shown).isfinite()].max())
        ax.loglog(t[inside], model[inside], "k--", lw=1, label=f"slope {self.expected:g}")
        ax.set_xlabel("step t")
        ax.set_ylabel("error" if len(shown) > 1 else self.labels[0])
        ax.set_title(f"{self.subject}: {'right' if self.ok else 'WRONG'}", fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize="small")
        return ax


def check_gradient(
    manifold: Manifold,
    cost: Cost,
    x: Tensor,
    *,
    egrad: Gradient | None = None,
    rgrad: Gradient | None = None,
    steps: Tensor | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Check the gradient of a cost: the error of its linear model must fall with slope 2.

    The model is f(x) + t⟨grad f, u⟩ along Exp_x(tu), for a random unit vector u. The gradient is
    autograd's, or the function to be checked. It must also be tangent.

    Parameters
    ----------
    manifold : Manifold
        Any manifold of givens or geoopt. A copy in float64 is used; the retraction takes the place of an
        exponential that is not implemented.
    cost : callable
        Takes points to a real scalar; over a batch of points it is their common cost. It is called
        with float64 (complex128) points, so what it multiplies them with must be float64, too:
        ``model.double()``.
    x : Tensor
        Points, real or complex. In lower precision they are converted, and projected on the
        manifold.
    egrad, rgrad : callable, optional
        Takes points to their Euclidean or to their Riemannian gradient, instead of autograd; one of
        the two. A complex Euclidean gradient is PyTorch's, ∂f/∂Re x + i·∂f/∂Im x.
    steps : Tensor, optional
        Times t; by default 41 of them from 1e-8 to 1.
    seed : int
        Seed of u. torch's global random state is left alone.

    Returns
    -------
    Diagnosis
        True if the slope is 2 (or nothing but rounding is left of the error) and the gradient is tangent.
        Otherwise its text says what the gradient looks like: a factor, a sign, a Riemannian gradient
        where a Euclidean one is expected.

    Raises
    ------
    ValueError
        If `x` is off the manifold, or the cost is no finite real scalar or, with autograd, does not
        depend on `x`.

    Notes
    -----
    The errors at t and −t are taken, and the larger of the two counts. About 100 evaluations of the cost.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import OrthogonalGroup
    >>> from givens.manifolds.testing import check_gradient
    >>> manifold = OrthogonalGroup()
    >>> a = torch.arange(9.0, dtype=torch.float64).reshape(3, 3)
    >>> def cost(x):
    ...     return (a * x).sum()
    >>> check_gradient(manifold, cost, torch.eye(3), egrad=lambda x: 2 * a)
    check_gradient on OrthogonalGroup: WRONG
        The error falls with slope 1.00, not 2, for t from 1.0e-08 to 1.0e-07: the gradient is wrong.
        It is 2 times the gradient of the cost: look for a factor or a mean.
    """
    if egrad is not None and rgrad is not None:
        raise ValueError("egrad and rgrad are both given; pass the one that is to be checked")
    manifold, x = _prepare(manifold, x)
    t = _steps(steps)
    generator = _generator(seed)

    source, function = "autograd", egrad or rgrad
    if function is None:
        given = _autograd(cost, x)
    else:
        source = "egrad" if egrad else "rgrad"
        given = function(x).detach().as_subclass(Tensor)
        if given.shape != x.shape or given.dtype != x.dtype:
            raise ValueError(
                f"{source} returned {given.dtype} of shape {tuple(given.shape)}; expected those of x, "
                f"{x.dtype} and {tuple(x.shape)}"
            )
    gradient = given if rgrad else manifold.egrad2rgrad(x, given)
    tangent, reason = _is_tangent(manifold, x, gradient)
    u = _unit_tangent(manifold, x, generator)
    size = max(_size(given), math.sqrt(abs(_inner(manifold, x, gradient, gradient))))
    curve = _cost_curve(
        lambda s: _value(cost, _follow(manifold, x, s * u)),
        t,
        _inner(manifold, x, gradient, u),
        size=size,
        label="|f(Exp(tu)) − f(x) − t⟨grad f, u⟩|",
    )
    lines = [curve.reading(2.0, "the gradient")]
    if not curve.right(2.0) and curve.window is not None and curve.slope >= 0.5:
        lines += _explain_gradient(
            manifold, cost, x, given, gradient, source, generator, curve.floor, float(t[-1])
        )
    if not tangent:
        lines.append(
            f"The gradient is not tangent: {reason}. "
            + (
                "Did you return the Euclidean gradient? Pass it as egrad=."
                if rgrad
                else f"Look at {manifold.name}.egrad2rgrad."
            )
        )
    elif curve.right(2.0):
        lines.append("The gradient is tangent.")
    return _diagnosis("check_gradient", manifold, t, [curve], 2.0, lines, ok=tangent)


def check_move(
    manifold: CoordinateManifold,
    x: Tensor,
    cost: Cost | None = None,
    *,
    count: int = 8,
    steps: Tensor | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Check that `move_`, `direction` and `derivatives` of a geometry belong together.

    Along random coordinates i, two errors must fall with slope 2: of the motion,
    ‖move(x, i, t) − Exp_x(t·f_i)‖ (nothing but rounding where motions are geodesics, as on O(d)),
    and of the cost, f(move(x, i, t)) − f(x) − t·derivative_i.

    Parameters
    ----------
    manifold : CoordinateManifold
        The geometry.
    x : Tensor
        Points, as for :func:`check_gradient`. All points of a batch are moved along the same coordinate.
    cost : callable, optional
        A differentiable function of points to a real scalar; by default Re⟨a, x⟩ with a random a.
    count : int
        How many coordinates are drawn; all of them where there are no more.
    steps, seed
        As for :func:`check_gradient`.

    Returns
    -------
    Diagnosis
        Its text says which of the methods disagrees with the other two, and along which
        coordinates.

    Raises
    ------
    TypeError
        If the manifold has no coordinates.
    ValueError
        If `x` is off the manifold, or the cost is no finite real scalar or does not depend on `x`.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import OrthogonalGroup
    >>> from givens.manifolds.testing import check_move
    >>> check_move(OrthogonalGroup(), torch.eye(3))
    check_move on OrthogonalGroup: right
        motion: Nothing but rounding is left of the error.
        cost: The error falls with slope 2.00, as it should.
    """
    if not isinstance(manifold, CoordinateManifold):
        raise TypeError(f"{manifold} has no coordinates; check_move needs a CoordinateManifold")
    manifold, x = _prepare(manifold, x)
    t = _steps(steps)
    generator = _generator(seed)
    if cost is None:
        weight = _normal(x, generator)

        def cost(y: Tensor) -> Tensor:
            return (weight.conj() * y).sum().real

    egrad = _autograd(cost, x)
    rgrad = manifold.egrad2rgrad(x, egrad)
    total = manifold.num_coordinates(x)
    numbers = torch.randperm(total, generator=generator)[:count].sort().values.tolist()

    motions, costs = [], []
    complaints: dict[str, list[int]] = {}
    for number in numbers:
        index = torch.full(
            (*x.shape[: x.dim() - manifold.ndim], 1), number, dtype=torch.int64, device=x.device
        )
        along = _Along(manifold, x, Coordinates(index, disjoint=True))
        derivative = float(manifold.derivatives(x, egrad, along.block).sum())
        motions.append(along.motion(t, f"motion, {number}"))
        costs.append(
            _cost_curve(
                lambda s, along=along: _value(cost, along.move(s)),  # type: ignore[misc]
                t,
                derivative,
                size=_size(egrad) * max(1.0, _size(along.f)),
                label=f"cost, {number}",
            )
        )
        complaint = along.complaint(
            motions[-1], costs[-1], derivative, _inner(manifold, x, rgrad, along.f)
        )
        if complaint:
            complaints.setdefault(complaint, []).append(number)

    lines = [
        f"{of}: {min(curves, key=_Curve.badness).reading(2.0, what)}"
        for of, what, curves in (
            ("motion", "move_ or direction", motions),
            ("cost", "move_ or derivatives", costs),
        )
    ]
    for complaint, where in complaints.items():
        many = "coordinates" if len(where) > 1 else "coordinate"
        lines.append(
            f"{many} {', '.join(map(str, where))} ({len(where)} of {len(numbers)} tried): {complaint}"
        )
    curves = [curve for pair in zip(motions, costs, strict=True) for curve in pair]
    return _diagnosis("check_move", manifold, t, curves, 2.0, lines, ok=not complaints)


def check_retraction(
    manifold: Manifold, x: Tensor, *, order: int = 1, steps: Tensor | None = None, seed: int = 0
) -> Diagnosis:
    """Check that `retr` agrees with the exponential to an order: ‖Retr_x(tu) − Exp_x(tu)‖ = O(t^(order+1)).

    Parameters
    ----------
    manifold : Manifold
        Any manifold of givens or geoopt with an exponential.
    x : Tensor
        Points, as for :func:`check_gradient`.
    order : int
        1 for every retraction, 2 for those of second order.
    steps, seed
        As for :func:`check_gradient`.

    Returns
    -------
    Diagnosis
        True if the slope is order + 1 at least and `retr` stays on the manifold.

    Raises
    ------
    ValueError
        If `x` is off the manifold or `order` is less than 1.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import OrthogonalGroup
    >>> from givens.manifolds.testing import check_retraction
    >>> bool(check_retraction(OrthogonalGroup("cayley"), torch.eye(4), order=2))
    True
    """
    if order < 1:
        raise ValueError(f"order={order}: a retraction has order 1 at least")
    manifold, x = _prepare(manifold, x)
    t = _steps(steps)
    u = _unit_tangent(manifold, x, _generator(seed))
    ends = [(manifold.retr(x, s * u), manifold.expmap(x, s * u)) for s in t.tolist()]
    curve = _point_curve("‖Retr(tu) − Exp(tu)‖", manifold, t, ends, x, u)
    lines = [curve.reading(order + 1.0, "the retraction")]
    off = [
        (s, reason)
        for s, (retracted, _) in zip(t.tolist(), ends, strict=True)
        for ok, reason in [manifold.check_point_on_manifold(retracted, explain=True)]
        if not ok
    ]
    if off:
        lines.append(f"It leaves the manifold, first at t = {off[0][0]:.1e}: {off[0][1]}.")
    return _diagnosis("check_retraction", manifold, t, [curve], order + 1.0, lines, ok=not off)


# Curves and their slopes


@dataclass(frozen=True)
class _Curve:
    """Errors along a curve, and the slope that is read of them."""

    label: str
    steps: Tensor
    errors: Tensor
    floor: float
    window: slice | None
    slope: float
    coarse: bool  # whether rounding hides the error

    @classmethod
    def read(
        cls, label: str, steps: Tensor, errors: Tensor, floor: float, *, size: float
    ) -> _Curve:
        """Read the slope; `size` is that of a first-order term at t = 1, to know a coarse floor by."""
        window = _window(steps, errors, floor)
        if window is not None:
            return cls(label, steps, errors, floor, window, _slope(steps, errors, window), False)
        finite = steps[errors.isfinite()]
        largest = float(finite[-1]) if len(finite) else 0.0
        coarse = floor > 0 and floor > _COARSE * largest * size
        return cls(label, steps, errors, floor, None, math.inf, coarse)

    def right(self, expected: float) -> bool:
        return not self.coarse and self.slope >= expected - _SLACK

    def badness(self) -> float:
        """What sorts the curve that there is most to say about first."""
        return -math.inf if self.coarse else self.slope

    def reading(self, expected: float, what: str) -> str:
        """Say what the slope means, in a sentence."""
        if self.coarse:
            return (
                f"Values at neighbouring points scatter by {self.floor / _CLEAR:.0e}, too much to tell. "
                "Is the function deterministic (dropout, a random batch), computed in float64, and free "
                "of a large constant? Do the steps suit its scale?"
            )
        if self.window is None:
            return "Nothing but rounding is left of the error."
        if self.right(expected):
            return f"The error falls with slope {self.slope:.2f}, as it should."
        first, last = (float(self.steps[at]) for at in (self.window.start, self.window.stop - 1))
        if self.slope < 0.5:
            return (
                f"The error does not fall with t (slope {self.slope:.2f}, not {expected:g}, for t from "
                f"{first:.1e} to {last:.1e}): as t goes to 0 the curve does not start where it should."
            )
        return (
            f"The error falls with slope {self.slope:.2f}, not {expected:g}, for t from {first:.1e} "
            f"to {last:.1e}: {what} is wrong."
        )


def _window(steps: Tensor, errors: Tensor, floor: float) -> slice | None:
    """The lowest decade of steps in which all errors are clear of rounding, or what there is of one."""
    clear = (errors.isfinite() & (errors > floor)).tolist()
    runs, start = [], 0
    for is_clear, run in itertools.groupby(clear):
        stop = start + len(list(run))
        if is_clear and stop - start >= 4:
            runs.append((start, stop))
        start = stop
    for start, stop in runs:
        end = int(torch.searchsorted(steps, 10.001 * steps[start]))
        if end <= stop and float(steps[end - 1] / steps[start]) > 5:
            return slice(start, end)
    return slice(*max(runs, key=lambda run: run[1] - run[0])) if runs else None


def _slope(steps: Tensor, errors: Tensor, window: slice) -> float:
    """Median slope of all pairs of points (Theil and Sen): a zero of the error does not disturb it."""
    t, e = steps[window].log(), errors[window].log()
    first, second = torch.triu_indices(len(t), len(t), 1)
    return float(((e[second] - e[first]) / (t[second] - t[first])).median())


def _cost_curve(
    f: Callable[[float], float], steps: Tensor, derivative: float, *, size: float, label: str
) -> _Curve:
    """Errors of the model f(0) + t·derivative of a function of t, and how much of them is rounding.

    Of the errors at t and −t the larger: terms of different order then add, and do not cancel where
    they are equally large.
    """
    start = f(0.0)
    if not math.isfinite(start):
        raise ValueError(f"the cost is {start} at x; expected a finite number")
    errors = [max(abs(f(s) - start - s * derivative) for s in (t, -t)) for t in steps.tolist()]
    largest = float(steps[-1])
    # The widest spacing: a cost may move in steps, as float32 does. Narrower, where it is not smooth there.
    for spacing in (1e-4, 1e-6, 1e-8):
        noise = _noise(_doubles([f(spacing * largest * n) for n in range(-6, 7)]))
        if noise <= 1e-6 * abs(start):
            break
    floor = _CLEAR * max(noise, _EPS * (abs(start) + size * largest))
    return _Curve.read(label, steps, _doubles(errors), floor, size=size or abs(start))


def _point_curve(
    label: str,
    manifold: Manifold,
    steps: Tensor,
    ends: Iterable[tuple[Tensor, Tensor]],
    x: Tensor,
    u: Tensor,
) -> _Curve:
    """Distances between points and those where they should be.

    Of their difference the tangent part: representatives of one point of a quotient manifold differ by
    a vertical vector, which does not count.
    """
    errors = [_size(manifold.proju(exact, point - exact)) for point, exact in ends]
    return _Curve.read(label, steps, _doubles(errors), _point_floor(x, u), size=max(1.0, _size(u)))


def _noise(values: Tensor) -> float:
    """Standard deviation of the rounding in values of a smooth function at equally spaced points."""
    order = 6
    variance = values.diff(n=order).square().mean() * (
        math.factorial(order) ** 2 / math.factorial(2 * order)
    )
    return float(variance.sqrt().nan_to_num(0.0, posinf=0.0))


# What is wrong


def _explain_gradient(
    manifold: Manifold,
    cost: Cost,
    x: Tensor,
    given: Tensor,
    gradient: Tensor,
    source: str,
    generator: torch.Generator,
    floor: float,
    scale: float,
) -> list[str]:
    """Compare a wrong gradient with the differences of the cost along a few directions."""
    directions = [_unit_tangent(manifold, x, generator) for _ in range(4)]
    h = scale * max(1e-5, (floor / _CLEAR) ** (1 / 3))
    true = _doubles(
        [
            (_value(cost, _follow(manifold, x, h * u)) - _value(cost, _follow(manifold, x, -h * u)))
            / (2 * h)
            for u in directions
        ]
    )

    def derivatives(g: Tensor) -> Tensor:
        return _doubles([_inner(manifold, x, g, u) for u in directions])

    if source == "autograd":
        return [
            "autograd computed it. Does the cost detach a part of x (.data, .item(), numpy), or vary "
            "over lengths below the smallest step (then pass steps=)? If the manifold is yours, look at "
            f"{manifold.name}.egrad2rgrad, inner and expmap."
        ]
    claimed = derivatives(gradient)
    ratio = _ratio(claimed, true)
    off = _size(claimed - true) / (_size(true) or 1.0)
    if off <= 10 * _SAME:
        return [
            f"Still it agrees with finite differences to {off:.0e}: it is computed in float32, or a small "
            "term is missing or wrong."
        ]

    def riemannian(g: Tensor) -> Tensor:
        return manifold.egrad2rgrad(x, g) if source == "egrad" else g

    others: list[tuple[Tensor, str]] = []
    if source == "rgrad":
        text = "It is the Euclidean gradient, where rgrad= expects the Riemannian: pass egrad=."
        others.append((manifold.egrad2rgrad(x, given), text))
    elif _is_tangent(manifold, x, given)[0]:
        text = "It is the Riemannian gradient, where egrad= expects the Euclidean: pass rgrad=."
        others.append((given, text))
    if x.is_complex():
        text = "Its complex conjugate is right: the gradient is ∂f/∂Re x + i·∂f/∂Im x."
        others.append((riemannian(given.conj().resolve_conj()), text))
    if x.dim() >= 2 and x.shape[-1] == x.shape[-2]:
        others.append((riemannian(given.mT), "Its transpose is right."))
    for other, text in others:
        if _agree(derivatives(other), true):
            return [text]
    if ratio is None:
        return [
            "No factor explains it: a term is missing or wrong.",
            f"Without {source}= autograd computes the gradient: compare.",
        ]
    if ratio == 0:
        return ["It is zero, and the cost changes."]
    if abs(ratio + 1) < _SAME:
        return ["It is minus the gradient of the cost: the sign is wrong."]
    return [f"It is {ratio:.4g} times the gradient of the cost: look for a factor or a mean."]


class _Along:
    """One coordinate: its motion, direction and derivative, and which of them disagree."""

    def __init__(self, manifold: CoordinateManifold, x: Tensor, block: Coordinates) -> None:
        self.manifold, self.x, self.block = manifold, x, block
        self.f = manifold.direction(x, block.index).squeeze(-manifold.ndim - 1)

    def move(self, t: float) -> Tensor:
        times = torch.full(self.block.index.shape, t, dtype=torch.float64, device=self.x.device)
        return self.manifold.move(self.x, self.block, times)

    def motion(self, steps: Tensor, label: str) -> _Curve:
        ends = [(self.move(t), _follow(self.manifold, self.x, t * self.f)) for t in steps.tolist()]
        return _point_curve(label, self.manifold, steps, ends, self.x, self.f)

    def complaint(self, motion: _Curve, cost: _Curve, derivative: float, product: float) -> str:
        """Say who is wrong: of move_, direction and derivatives two that agree outvote the third."""
        f, name = self.f, self.manifold.name
        floor = _point_floor(self.x, f)
        if _size(self.move(0.0) - self.x) > floor:
            return "move_ with t = 0 does not leave x where it is."
        ok, reason = self.manifold.check_point_on_manifold(self.move(1e-2), explain=True)
        if not ok:
            return f"move_ leaves the manifold: {reason}."
        ok, reason = _is_tangent(self.manifold, self.x, f)
        if not ok:
            return f"direction is not tangent: {reason}; look at {name}.direction."
        if motion.right(2.0) and cost.right(2.0):
            return ""
        if cost.coarse or motion.coarse:
            return "rounding hides the error."
        h = 1e-5 * float(motion.steps[-1])
        velocity = self.manifold.proju(self.x, (self.move(h) - self.move(-h)) / (2 * h))
        follows = _agree(velocity, f)
        agree = abs(derivative - product) <= _SAME * (abs(product) + cost.floor)
        if follows and not motion.right(2.0):
            return (
                f"move_ starts with the velocity f_i, but expmap does not: look at {name}.expmap."
            )
        if follows and not agree:
            return (
                "derivatives is wrong: move_ and direction agree with each other, not with it."
                + (f" It is {derivative / product:.4g} times what it should be." if product else "")
            )
        if follows:
            return "the cost does not have the derivative that autograd says."
        ratio = _ratio(velocity, f)
        if agree:
            return (
                "move_ is wrong: direction and derivatives agree with each other, not with it."
                + (
                    f" It goes {ratio:.4g} times as fast as direction: look at its angle (on O(d) it "
                    "is t/√2)."
                    if ratio is not None
                    else " Look at its axes and signs."
                )
            )
        if cost.right(2.0):
            return (
                "direction is wrong: move_ and derivatives agree with each other, not with it."
                + (f" It is {1 / ratio:.4g} times the velocity of move_." if ratio else "")
            )
        return "move_, direction and derivatives disagree with each other, all three."


def _ratio(a: Tensor, b: Tensor) -> float | None:
    """The real number r with a = r·b, if there is one."""
    square = float((b.conj() * b).sum().real)
    if not square:
        return None
    ratio = float((b.conj() * a).sum().real) / square
    if _size(a) <= _SAME * _size(b):
        return 0.0
    return ratio if _size(a - ratio * b) <= 10 * _SAME * _size(a) else None


def _agree(a: Tensor, b: Tensor) -> bool:
    return _size(a - b) <= _SAME * _size(b)


# Points, vectors, values


def _prepare(manifold: M, x: Tensor) -> tuple[M, Tensor]:
    """Copies of manifold and points in double precision."""
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"x is {x.dtype}; expected real or complex floating-point numbers")
    manifold = copy.deepcopy(manifold).double()
    wide = torch.complex128 if x.is_complex() else torch.float64
    point = x.detach().as_subclass(Tensor)
    with torch.no_grad():
        point = point.clone() if x.dtype == wide else manifold.projx(point.to(wide))
        point = point.as_subclass(Tensor)
        ok, reason = manifold.check_point_on_manifold(point, explain=True)
    if not ok:
        raise ValueError(f"x is no point of {manifold}: {reason}")
    return manifold, point


def _steps(steps: Tensor | None) -> Tensor:
    if steps is None:
        return torch.logspace(-8, 0, 41, dtype=torch.float64)
    steps = torch.as_tensor(steps, dtype=torch.float64).cpu()
    if steps.dim() != 1 or len(steps) < 8 or not bool((steps > 0).all() & (steps.diff() > 0).all()):
        raise ValueError("steps: expected at least 8 positive numbers in ascending order")
    return steps


def _doubles(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _value(cost: Cost, x: Tensor) -> float:
    return float(_scalar(cost(x)))


def _scalar(value: Tensor | float) -> Tensor:
    value = torch.as_tensor(value)
    if value.numel() != 1 or value.is_complex():
        raise ValueError(
            f"the cost returned {value.dtype} of shape {tuple(value.shape)}; expected a real scalar "
            "(the sum over a batch of points)"
        )
    return value


def _autograd(cost: Cost, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.clone().requires_grad_()
        value = _scalar(cost(y))
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.squeeze(), y, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "autograd finds no way from x to the cost: it is detached or not computed by torch. "
            "Pass the gradient as egrad="
        )
    return gradient.detach()


def _follow(manifold: Manifold, x: Tensor, u: Tensor) -> Tensor:
    """Exp_x(u), or the retraction where there is no exponential."""
    try:
        return manifold.expmap(x, u)
    except NotImplementedError:
        return manifold.retr(x, u)


def _generator(seed: int) -> torch.Generator:
    # Not the seed itself: the points may come from it, and a sphere's point has no part that is tangent.
    return torch.Generator().manual_seed((seed + 1) * 0x9E3779B1 % 2**32)


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)


def _is_tangent(manifold: Manifold, x: Tensor, u: Tensor) -> tuple[bool, str | None]:
    """The manifold's own check of a vector, relative to its size."""
    unit = u / (_size(u) or 1.0)
    return manifold.check_vector_on_tangent(x, unit, explain=True, atol=1e-6, rtol=0)


def _unit_tangent(manifold: Manifold, x: Tensor, generator: torch.Generator) -> Tensor:
    noise = _normal(x, generator)
    u = manifold.proju(x, noise)
    if _size(u) <= 1e-8 * _size(noise):  # as on a sphere of dimension 0
        return torch.zeros_like(u)
    return u / math.sqrt(_inner(manifold, x, u, u))


def _inner(manifold: Manifold, x: Tensor, u: Tensor, v: Tensor) -> float:
    """⟨u, v⟩, summed over a batch."""
    # Without keepdim geoopt's Poincaré ball broadcasts a batch of n points to n×n products.
    return float(manifold.inner(x, u, v, keepdim=True).sum().real)


def _size(u: Tensor) -> float:
    return float(torch.linalg.vector_norm(u))


def _point_floor(x: Tensor, u: Tensor) -> float:
    """Rounding of a point that is computed in two ways, generously."""
    return 1e4 * _EPS * (_size(x) + _size(u))


def _diagnosis(
    check: str,
    manifold: Manifold,
    steps: Tensor,
    curves: Sequence[_Curve],
    expected: float,
    lines: Iterable[str],
    *,
    ok: bool,
) -> Diagnosis:
    return Diagnosis(
        subject=f"{check} on {manifold.name}",
        steps=steps,
        errors=torch.stack([curve.errors for curve in curves]),
        floors=_doubles([curve.floor for curve in curves]),
        windows=tuple(curve.window for curve in curves),
        slopes=tuple(curve.slope for curve in curves),
        labels=tuple(curve.label for curve in curves),
        expected=expected,
        ok=ok and all(curve.right(expected) for curve in curves),
        explanation="\n".join(lines),
    )
