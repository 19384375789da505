"""The laws of a manifold with coordinates, which :mod:`givens.manifolds.testing` checks.

A law is a function of a :class:`~givens.manifolds.testing.Case`, which draws points, vectors, blocks
and times, and compares. Its name is the function's, its docstring says what holds, and the decorator
what it usually means if it does not. A law of your own takes as little::

    @law("The curvature is not that of the metric.", precise=True)
    def curvature_is_constant(case):
        '''What holds, in a sentence.'''
        x = case.point()
        case.close(actual, expected, "what is compared", *tensors_that_set_the_scale)

A method that raises ``NotImplementedError`` takes its law away and breaks none.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import geoopt
import torch
from torch import Tensor

from ..base import CoordinateManifold
from ..blocks import All, CoordinateBlock, Coordinates, Groups
from .case import Case, DoesNotApply, Found, largest, plain

__all__ = ["LAWS", "Law", "law"]

KINDS = ("disjoint", "overlapping", "groups", "all")
_NARROW = (torch.float32, torch.complex64)


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes
    ----------
    name : str
        Its name.
    statement : str
        What holds.
    hint : str
        What it usually means if it does not.
    each : tuple
        The kinds of block that it is checked for one by one, or (None,).
    precise : bool
        Whether it takes finite differences, and so the most precise type.
    batched : bool
        Whether it is about batches, and so not about a single point.
    check : callable
        The law as a function of a :class:`Case`.
    """

    name: str
    statement: str
    hint: str
    each: tuple[str | None, ...]
    precise: bool
    batched: bool
    check: Callable[[Case], None]


LAWS: dict[str, Law] = {}
"""The laws by their names, in the order in which they are checked: what is simple comes first."""


def law(
    hint: str,
    *,
    each: tuple[str | None, ...] = (None,),
    precise: bool = False,
    batched: bool = False,
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Make a function a law: its name with spaces is the law's, its docstring says what holds.

    Parameters
    ----------
    hint : str
        What it usually means if the law is broken.
    each : tuple of str, optional
        Kinds of block to check it for: "disjoint", "overlapping", "groups", "all".
    precise : bool
        Whether to check it in the most precise type only, because it takes finite differences.
    batched : bool
        Whether to check it on batches only.
    """

    def add(check: Callable[[Case], None]) -> Callable[[Case], None]:
        name, statement = check.__name__.replace("_", " "), " ".join((check.__doc__ or "").split())
        LAWS[name] = Law(name, statement, hint, each, precise, batched, check)
        return check

    return add


# Points


@law("The last step loses digits: compute in float64 and round once, or repair the result.")
def random_and_origin_are_points(case: Case) -> None:
    """What random and origin give are points, to the last digits of their type; origin always the same."""
    for name in ("random", "origin"):
        make = getattr(case.manifold, name)
        x = make(*case.shape, dtype=case.dtype, device=case.setting.device)
        case.on_manifold(x, name, case.last_digits(x))
    again = make(*case.shape, dtype=case.dtype, device=case.setting.device)
    case.require(torch.equal(plain(x), plain(again)), "two calls of origin differ")


@law("projx leaves out a part of the definition: a norm, a sign, a determinant.")
def projx_lands_on_the_manifold(case: Case) -> None:
    """The projection projx takes any tensor to a point, to the last digits of its type."""
    x = case.manifold.projx(case.size * case.noise())
    case.on_manifold(x, "projx of noise", case.last_digits(x))


@law("projx changes points that need no correction.")
def projx_leaves_points_alone(case: Case) -> None:
    """For a point x, projx(x) = x."""
    x = case.point()
    case.close(case.manifold.projx(x), x, "projx of a point, and the point")


@law("check_point_on_manifold accepts everything, or leaves out a part of the definition.")
def the_check_of_points_rejects_others(case: Case) -> None:
    """A tensor that projx has to move far is no point."""
    noise, off = case.noise(), 0
    for y in (case.point() + 0.1 * noise, 2 * case.point(), 3 * noise, -noise.abs().to(noise)):
        distance = largest(case.manifold.projx(y) - y)
        if distance > 1e-2 * (1 + largest(y)):
            off += 1
            case.require(
                not case.manifold.check_point_on_manifold(y),
                f"projx moves a tensor by {distance:.1e}, and the check calls it a point",
            )
    if not off:
        raise DoesNotApply("every tensor is a point")


# Tangent vectors


@law("proju misses a part of the tangent space's definition, or the check does.")
def proju_is_tangent(case: Case) -> None:
    """The projection proju takes any tensor to a tangent vector, which the check confirms."""
    x, a = case.point(), case.size * case.noise()
    case.on_tangent(x, case.manifold.proju(x, a), "proju of noise", a)


@law("proju is no projection: a factor (often 1/2) is wrong, or something is taken away twice.")
def proju_is_idempotent(case: Case) -> None:
    """For a tangent vector u, proju(x, u) = u."""
    x = case.point()
    u = case.manifold.proju(x, case.size * case.noise())
    case.close(case.manifold.proju(x, u), u, "proju of a tangent vector, and the vector", x)


@law("proju lands in the tangent space, but along the wrong complement.")
def proju_is_orthogonal(case: Case) -> None:
    """What proju takes away is orthogonal to tangent vectors, in the metric or the ambient space."""
    x, a = case.point(), case.noise()
    u, away = case.vector(x), a - case.manifold.proju(x, a)
    product = case.dot(away, u)
    if largest(product) > case.tolerance(x, a, u):
        product = case.manifold.inner(x, away, u)
    case.close(product, torch.zeros_like(product), "⟨a − proju(a), u⟩, and 0", x, a, u)


@law("check_vector_on_tangent accepts everything, or leaves out a part of the definition.")
def the_check_of_vectors_rejects_others(case: Case) -> None:
    """A vector that proju has to change much is not tangent."""
    x, a = case.point(), case.noise()
    away = largest(a - case.manifold.proju(x, a))
    if away <= 1e-2:
        raise DoesNotApply("every vector is tangent")
    case.require(
        not case.manifold.check_vector_on_tangent(x, a, ok_point=True),
        f"proju changes a vector by {away:.1e}, and the check calls it tangent",
    )


@law("inner mixes its arguments up, or is not linear in one of them.")
def inner_is_symmetric_and_bilinear(case: Case) -> None:
    """⟨u, v⟩ = ⟨v, u⟩, ⟨u + c·w, v⟩ = ⟨u, v⟩ + c·⟨w, v⟩, and v = u is the default."""
    x, inner = case.point(), case.manifold.inner
    u, v, w = case.vector(x), case.vector(x), case.vector(x)
    case.close(inner(x, u, v), inner(x, v, u), "⟨u, v⟩ and ⟨v, u⟩", x, u, v)
    apart = inner(x, u, v) + 0.7 * inner(x, w, v)
    case.close(inner(x, u + 0.7 * w, v), apart, "⟨u + 0.7·w, v⟩ and its terms", x, u, v, w)
    case.close(inner(x, u), inner(x, u, u), "inner(x, u) and inner(x, u, u)", x, u)


@law("A sign or a weight of the metric is wrong.")
def inner_is_positive(case: Case) -> None:
    """⟨u, u⟩ is real, and positive for a tangent vector that is not 0."""
    x = case.point()
    square = case.manifold.inner(x, case.manifold.proju(x, case.noise()))
    case.require(not square.is_complex(), f"⟨u, u⟩ is {square.dtype}; the metric is real")
    case.require(bool((square > 0).all()), f"⟨u, u⟩ is {float(square.min()):.1e}")


@law("norm was overridden without inner, or keepdim is not passed on.")
def norm_is_the_root_of_inner(case: Case) -> None:
    """‖u‖² = ⟨u, u⟩, one for each point; keepdim keeps the dimensions of a point, as ones."""
    x = case.point()
    u = case.vector(x)
    inner, norm = case.manifold.inner(x, u), case.manifold.norm(x, u)
    case.close(norm.square(), inner, "norm² and inner", x, u)
    case.require(inner.shape == case.batch, f"inner has shape {tuple(inner.shape)}")
    for name, value in (("inner", inner), ("norm", norm)):
        kept = getattr(case.manifold, name)(x, u, keepdim=True)
        case.close(kept, case.per_point(value), f"{name} with keepdim and without", x, u)


# Gradients


@law("egrad2rgrad must undo the metric: ⟨grad f, u⟩ is the derivative of f along u.")
def the_gradient_represents_the_differential(case: Case) -> None:
    """⟨egrad2rgrad(x, g), u⟩ is Re⟨g, u⟩ of the ambient space, for tangent u; and it is tangent."""
    x = case.point()
    g, u = case.egrad(x), case.vector(x)
    grad = case.manifold.egrad2rgrad(x, g.clone())
    case.on_tangent(x, grad, "egrad2rgrad", g)
    inner = case.manifold.inner(x, grad, u)
    case.close(inner, case.dot(g, u), "⟨grad f, u⟩ and Re⟨egrad, u⟩", x, g, u, grad)


@law(
    "egrad2rgrad and inner belong to different metrics, or expmap leaves in another direction.",
    precise=True,
)
def the_gradient_is_the_slope_along_exp(case: Case) -> None:
    """⟨grad f, u⟩ is the derivative of f(Exp_x(tu)) at t = 0."""
    x = case.point()
    g, u = case.egrad(x), case.vector(x)
    slope = case.slope(lambda t: case.cost(case.manifold.expmap(x, t * u)))
    inner, limit = (
        case.manifold.inner(x, case.manifold.egrad2rgrad(x, g.clone()), u),
        case.rough(x, g, u),
    )
    case.close(slope, inner, "the slope of f along Exp, and ⟨grad f, u⟩", tolerance=limit)


# Exponential, logarithm, distance


@law("The formula of expmap leaves the manifold; in float32 it may need a last repair.")
def exp_stays_on_the_manifold(case: Case) -> None:
    """Exp_x(u) is a point."""
    x = case.point()
    case.on_manifold(case.manifold.expmap(x, case.vector(x)), "expmap")


@law("A term that is 1 at u = 0 is missing, or 0/0 is not taken care of.")
def exp_of_zero_is_the_point(case: Case) -> None:
    """Exp_x(0) = x, and retr_x(0) = x."""
    x = case.point()
    for name in ("expmap", "retr"):
        y = getattr(case.manifold, name)(x, torch.zeros_like(x))
        case.same_point(y, x, f"{name} of 0, and the point")


@law("u has a wrong factor in expmap.", precise=True)
def exp_starts_with_velocity_u(case: Case) -> None:
    """The velocity of Exp_x(tu) at t = 0 is u."""
    x = case.point()
    u = case.vector(x)
    velocity = case.slope(lambda t: case.manifold.expmap(x, t * u))
    case.close(velocity, u, "the velocity of Exp, and u", tolerance=case.rough(x, u))


@law("expmap is a retraction, or the exponential of another metric.", precise=True)
def exp_goes_on_from_where_it_is(case: Case) -> None:
    """Exp_x((s + t)u) = Exp_y(tv) with y = Exp_x(su) and v the velocity there; and ‖v‖ = ‖u‖."""
    x, exp = case.point(), case.manifold.expmap
    u = case.vector(x)
    y, v = exp(x, 0.6 * u), case.slope(lambda t: exp(x, (0.6 + t) * u))
    limit = case.rough(x, y, u, v)
    case.on_tangent(y, v, "the velocity", tolerance=limit)
    before, after = case.manifold.inner(x, u), case.manifold.inner(y, v)
    case.close(after, before, "⟨v, v⟩ on the way, and ⟨u, u⟩", tolerance=limit)
    two = exp(y, 0.5 * case.manifold.proju(y, v))
    case.close(two, exp(x, 1.1 * u), "Exp in two stages, and in one", tolerance=limit)


@law("expmap is the exponential of another metric: its curves are not the shortest.", precise=True)
def exp_obeys_the_lemma_of_gauss(case: Case) -> None:
    """⟨dExp(u), dExp(w)⟩ = ⟨u, w⟩ with the derivatives at u, which makes its curves geodesics."""
    x, exp = case.point(), case.manifold.expmap
    u, w = case.vector(x), case.vector(x, 1.0)
    y = exp(x, u)
    along = case.manifold.proju(y, case.slope(lambda t: exp(x, (1 + t) * u)))
    aside = case.manifold.proju(y, case.slope(lambda t: exp(x, u + t * w)))
    there, here = case.manifold.inner(y, along, aside), case.manifold.inner(x, u, w)
    limit = case.rough(x, y, u, along, aside)
    case.close(there, here, "⟨dExp(u), dExp(w)⟩, and ⟨u, w⟩", tolerance=limit)


@law("The formula of retr leaves the manifold, or does not start in the direction u.", precise=True)
def retr_is_exp_to_first_order(case: Case) -> None:
    """Of a retraction, retr_x(u) is a point, and the velocity of retr_x(tu) at t = 0 is u."""
    x = case.point()
    u = case.vector(x)
    case.on_manifold(case.manifold.retr(x, u), "retr")
    velocity = case.slope(lambda t: case.manifold.retr(x, t * u))
    if case.quotient:
        velocity = case.manifold.proju(x, velocity)
    case.close(velocity, u, "the velocity of retr, and u", tolerance=case.rough(x, u))


@law("logmap is not the inverse of expmap, or loses digits where the points are close.")
def log_inverts_exp(case: Case) -> None:
    """Log_x(Exp_x(u)) = u for short u, and it is tangent."""
    x, u, y = case.nearby()
    log = case.manifold.logmap(x, y)
    case.on_tangent(x, log, "logmap", y)
    case.close(log, u, "Log(Exp(u)), and u", x)


@law("logmap is not the inverse of expmap.")
def exp_inverts_log(case: Case) -> None:
    """Exp_x(Log_x(y)) = y for y near x, and Log_x(x) = 0."""
    x, _, y = case.nearby()
    z = case.manifold.expmap(x, case.manifold.logmap(x, y))
    case.same_point(z, y, "Exp(Log(y)), and y", x)
    case.close(case.manifold.logmap(x, x), torch.zeros_like(x), "Log of the point itself, and 0", x)


@law("dist belongs to another metric than inner, or loses digits where the points are close.")
def dist_is_the_length_of_the_geodesic(case: Case) -> None:
    """dist(x, Exp_x(u)) = ‖u‖ for short u; dist2 is its square; keepdim keeps dimensions as ones."""
    x, u, y = case.nearby()
    dist = case.manifold.dist(x, y)
    case.close(dist, case.manifold.norm(x, u), "dist(x, Exp(u)), and ‖u‖", x)
    case.close(case.manifold.dist2(x, y), dist.square(), "dist2 and dist²", x)
    kept = case.manifold.dist(x, y, keepdim=True)
    case.close(kept, case.per_point(dist), "dist with keepdim and without", x)


@law("dist treats its arguments differently, or rounding makes a point distant from itself.")
def dist_is_a_distance(case: Case) -> None:
    """dist(x, y) = dist(y, x), dist(x, x) = 0, and dist(x, z) ≤ dist(x, y) + dist(y, z)."""
    (x, _, y), dist = case.nearby(), case.manifold.dist
    z = case.manifold.expmap(y, case.vector(y, 0.2))
    zero = torch.zeros_like(dist(x, x))
    case.close(dist(x, y), dist(y, x), "dist(x, y) and dist(y, x)", x)
    case.close(dist(x, x), zero, "dist(x, x) and 0", x)
    excess = (dist(x, z) - dist(x, y) - dist(y, z)).clamp(min=0)
    case.close(excess, zero, "dist(x, z) − dist(x, y) − dist(y, z), and 0", x)


@law("logmap and dist come from different formulas, one of which is off.")
def dist_is_the_norm_of_log(case: Case) -> None:
    """dist(x, y) = ‖Log_x(y)‖."""
    x, _, y = case.nearby()
    length = case.manifold.norm(x, case.manifold.logmap(x, y))
    case.close(case.manifold.dist(x, y), length, "dist(x, y) and ‖Log_x(y)‖", x)


# Transport


@law("transp must end with a vector that is tangent at the new point.")
def transport_lands_in_the_tangent_space(case: Case) -> None:
    """The vector transp(x, y, v) is tangent at y, linear in v, and v where y = x."""
    (x, _, y), transp = case.nearby(), case.manifold.transp
    v, w = case.vector(x), case.vector(x)
    case.on_tangent(y, transp(x, y, v), "transp", v)
    case.close(transp(x, x, v), v, "transp to the point itself, and the vector", x)
    apart = transp(x, y, v) - 2 * transp(x, y, w)
    case.close(transp(x, y, v - 2 * w), apart, "transp of v − 2w, and of its terms", x, v, w)


@law("One of them was overridden without the others; their defaults use transp, not one another.")
def moving_and_transporting_at_once_agree(case: Case) -> None:
    """What expmap_transp does, expmap and transp_follow_expmap do; so for retr."""
    x = case.point()
    u, v = case.vector(x), case.vector(x)
    for way in ("expmap", "retr"):
        y, there = getattr(case.manifold, f"{way}_transp")(x, u, v)
        case.close(
            y, getattr(case.manifold, way)(x, u), f"the point of {way}_transp, and {way}", x, u
        )
        follow = getattr(case.manifold, f"transp_follow_{way}")(x, u, v)
        case.on_tangent(y, follow, f"transp_follow_{way}", v)
        what = f"the vector of {way}_transp, and transp_follow_{way}"
        case.close(there, follow, what, x, u, v)


@law(
    "transp_follow_expmap is overridden, and so claims to be parallel transport; if not, skip this.",
    precise=True,
)
def parallel_transport_is_parallel(case: Case) -> None:
    """Where overridden, transp_follow_expmap is Levi-Civita's: it keeps inner products, takes u to the
    velocity, and is the derivative of Exp to first order.
    """  # noqa: D205
    own = type(case.manifold).transp_follow_expmap
    if own is geoopt.manifolds.Manifold.transp_follow_expmap:
        raise DoesNotApply("transp_follow_expmap is left at its default, by transp")
    x, exp, follow = case.point(), case.manifold.expmap, case.manifold.transp_follow_expmap
    u, v, w = case.vector(x), case.vector(x), case.vector(x)
    y = exp(x, u)
    u_y, v_y, w_y = (follow(x, u, vector) for vector in (u, v, w))
    before, after = case.manifold.inner(x, v, w), case.manifold.inner(y, v_y, w_y)
    case.close(after, before, "⟨v, w⟩ after transport, and before", x, y, v, w)
    velocity, limit = case.slope(lambda t: exp(x, (1 + t) * u)), case.rough(x, y, u, v)
    case.close(u_y, velocity, "u after transport, and the velocity", tolerance=limit)
    # In normal coordinates the symbols of Christoffel are 0 at x.
    change = case.slope(lambda t: follow(x, t * u, v))
    normal = case.slope(lambda t: case.slope(lambda s: exp(x, t * u + s * v)))
    change, normal = (case.manifold.proju(x, vector) for vector in (change, normal))
    case.close(change, normal, "how v begins to change, and how dExp(v) does", tolerance=10 * limit)


# Coordinates


@law("axes answers in another shape, or does not fit num_axes and num_coordinates.")
def axes_are_one_or_two_that_exist(case: Case) -> None:
    """The axes of coordinates are int64 numbers below num_axes, one or two each, in any batch."""
    x = case.point()
    total, axes = case.manifold.num_coordinates(x), case.manifold.num_axes(x)
    for name, count in (("num_coordinates", total), ("num_axes", axes)):
        case.require(isinstance(count, int) and count > 0, f"{name} is {count!r}")
    turned = case.manifold.axes(x, torch.arange(total, device=x.device))
    case.require(turned.dtype == torch.int64, f"axes are {turned.dtype}")
    shape = tuple(turned.shape)
    case.require(
        shape in {(total, 1), (total, 2)}, f"axes of {total} coordinates have shape {shape}"
    )
    low, high = int(turned.min()), int(turned.max())
    case.require(low >= 0 and high < axes, f"axes are {low} to {high}, and there are {axes}")
    some = case.integers(total, *case.batch, 3)
    case.close(case.manifold.axes(x, some), turned[some], "axes of a batch, and one by one")


@law("direction leaves out a term, or the dimensions of the batch.")
def directions_are_tangent(case: Case) -> None:
    """The directions are tangent vectors, shape (*batch, k, *point), each as it is alone."""
    x, at = case.point(), len(case.batch)
    index = case.integers(case.manifold.num_coordinates(x), *case.batch, 3)
    case.tell("coordinates", index)
    shape = (*case.batch, 3, *case.setting.shape)
    f = case.manifold.direction(x, index)
    case.kept(f, "direction", shape)
    for i, one in enumerate(f.unbind(at)):
        case.on_tangent(x, one, f"direction {i}")
        alone = case.manifold.direction(x, index[..., [i]]).squeeze(at)
        case.close(one, alone, "a direction among others, and alone", x)
    shared = case.manifold.direction(x, index.flatten()[:3])
    case.kept(shared, "direction of numbers without a batch", shape)


@law("A coordinate is missing, or is there twice: steps cannot go everywhere.", precise=True)
def directions_span_the_tangent_space(case: Case) -> None:
    """The rank of the directions is the dimension of the tangent space."""
    frame, _ = case.frame()
    rank = int(torch.linalg.matrix_rank(frame, rtol=1e-8))
    dimension, count = frame.shape
    case.require(
        rank == dimension, f"{count} directions have rank {rank}; the dimension is {dimension}"
    )


@law("frame_bounds is not what the directions have: state it, or define step_scale.", precise=True)
def frame_bounds_hold(case: Case) -> None:
    """A‖ξ‖² ≤ Σ⟨ξ, f_i⟩² ≤ B‖ξ‖² for tangent ξ, with frame_bounds = (A, B)."""
    if case.manifold.frame_bounds is None:
        raise DoesNotApply("frame_bounds is None")
    (low, high), (frame, x) = case.manifold.frame_bounds, case.frame()
    values = torch.linalg.eigvalsh(frame @ frame.mT)
    least, most, slack = float(values.min()), float(values.max()), case.tolerance(frame, x)
    case.require(
        low - slack <= least and most <= high + slack,
        f"Σ⟨ξ, f_i⟩² is {least:.6g} to {most:.6g} times ‖ξ‖²; frame_bounds are ({low:g}, {high:g})",
    )


@law(
    "step_scale divides derivatives: it has their shape, or one that broadcasts to it.", each=KINDS
)
def step_scales_are_positive(case: Case) -> None:
    """The step scales are real, finite and not negative, and broadcast to the derivatives."""
    x = case.point()
    block = case.block(x)
    scale = case.manifold.step_scale(x, block)
    shape = case.manifold.derivatives(x, case.egrad(x), block).shape
    case.require(
        torch.broadcast_shapes(scale.shape, shape) == shape,
        f"step_scale has shape {tuple(scale.shape)}, the derivatives {tuple(shape)}",
    )
    case.require(not scale.is_complex(), f"step_scale is {scale.dtype}")
    case.require(bool(((scale >= 0) & scale.isfinite()).all()), f"step_scale is {scale.tolist()}")


@law(
    "step_scale is too small: a step along all coordinates is longer than the gradient step.",
    precise=True,
)
def scaled_directions_obey_bessel(case: Case) -> None:
    """Σ⟨ξ, f_i⟩²/s_i ≤ ‖ξ‖² for tangent ξ, with the step scales s_i."""
    frame, x = case.frame()
    scale = case.manifold.step_scale(x, case.every(x))
    case.require(bool((scale > 0).any()), "all step scales are 0")
    scaled = torch.where(scale > 0, frame / scale.sqrt(), 0.0)
    most = float(torch.linalg.eigvalsh(scaled @ scaled.mT).max())
    limit = 1 + case.tolerance(frame, x)
    case.require(most <= limit, f"Σ⟨ξ, f_i⟩²/s_i is up to {most:.6g} times ‖ξ‖²")


# Derivatives


def _numbers(case: Case, x: Tensor, block: CoordinateBlock) -> Tensor:
    return block.index if isinstance(block, Coordinates) else case.every(x).index


@law("A kind of block may be refused, but every selection needs single coordinates.")
def single_coordinates_are_not_refused(case: Case) -> None:
    """Derivatives, step scales and moves exist for Coordinates(index, disjoint=True)."""
    x = case.point()
    one = case.one(x)
    try:
        derivatives = case.manifold.derivatives(x, case.egrad(x), one)
        case.manifold.step_scale(x, one)
        case.manifold.move_(x, one, torch.zeros_like(derivatives))
    except NotImplementedError as error:
        raise Found(f"NotImplementedError: {error}") from None


@law(
    "derivatives does not fit direction: often a factor, a sign, or the metric comes in twice.",
    each=("disjoint", "overlapping", "all"),
)
def derivatives_are_products_with_directions(case: Case) -> None:
    """Derivatives are ⟨grad f, f_i⟩ in the metric and Re⟨egrad, f_i⟩ in the ambient space; real."""
    x = case.point()
    g, block = case.egrad(x), case.block(x)
    actual = case.manifold.derivatives(x, g, block)
    case.require(actual.dtype == case.dtype.to_real(), f"derivatives are {actual.dtype}")
    grad = case.manifold.egrad2rgrad(x, g.clone())
    f = case.manifold.direction(x, _numbers(case, x, block))
    each = f.unbind(len(case.batch))
    ambient = torch.stack([case.dot(g, one) for one in each], -1)
    metric = torch.stack([case.manifold.inner(x, grad, one) for one in each], -1)
    case.close(actual, ambient, "derivatives and Re⟨egrad, f_i⟩", x, g, f)
    case.close(actual, metric, "derivatives and ⟨grad f, f_i⟩", x, g, f, grad)


@law("derivatives or move_ has a wrong factor or sign.", each=KINDS, precise=True)
def derivatives_are_slopes_along_moves(case: Case) -> None:
    """The derivative of f(move(x, block, s·t)) at s = 0 is Σ t_i·∂_i f, for groups Re tr(TᴴD)/2."""
    case.size = min(case.size, 1.0)  # the differences are those of a slow motion
    x = case.point()
    g, block = case.egrad(x), case.block(x)
    derivatives, t = case.manifold.derivatives(x, g, block), case.times(x, block)
    shapes = tuple(derivatives.shape), tuple(t.shape)
    case.require(
        shapes[0] == shapes[1],
        f"derivatives have shape {shapes[0]}; the block prescribes {shapes[1]}",
    )
    expected = (derivatives.conj() * t).real.flatten(len(case.batch)).sum(-1)
    expected = expected / 2 if isinstance(block, Groups) else expected
    slope = case.slope(lambda s: case.cost(case.manifold.move(x, block, s * t)))
    case.close(
        slope, expected, "the slope along the move, and Σ t·∂f", tolerance=case.rough(x, g, t)
    )


@law("derivatives must be linear in egrad: averages over data and devices rest on it.", each=KINDS)
def derivatives_are_linear(case: Case) -> None:
    """The derivatives of g + c·h are those of g plus c times those of h."""
    x = case.point()
    g, h, block = case.noise(), case.noise(), case.block(x)
    of_g, of_h, together = (case.manifold.derivatives(x, e, block) for e in (g, h, g - 1.5 * h))
    case.close(together, of_g - 1.5 * of_h, "derivatives of g − 1.5·h, and of its terms", x, g, h)


@law("The kinds of block number the coordinates differently.")
def all_is_every_coordinate(case: Case) -> None:
    """All() is Coordinates of every number, in order: derivatives, step scales and moves."""
    x, manifold = case.point(), case.manifold
    g, every = case.egrad(x), case.every(x)
    actual, expected = (manifold.derivatives(x, g, block) for block in (All(), every))
    case.close(actual, expected, "derivatives of All(), and of every number", x, g)
    actual, expected = (
        manifold.step_scale(x, block).expand(every.index.shape) for block in (All(), every)
    )
    case.close(actual, expected, "step scales of All(), and of every number", x)
    if every.index.shape[-1] > 1:
        t = case.times(x, All())
        actual, expected = (manifold.move(x, block, t) for block in (All(), every))
        case.same_point(actual, expected, "moves of All(), and of every number", t)


@law("Entry (a, b) of a group's matrix belongs to the coordinate of the group's axes a and b.")
def groups_hold_the_coordinates_of_their_axes(case: Case) -> None:
    """A group's derivatives D are skew-Hermitian, and D_ab, a < b, is that of the coordinate that turns
    the axes a and b; of the first two such coordinates, as real and imaginary part, where it is complex.
    """  # noqa: D205
    case.kind = "groups"
    x = case.point()
    block, g = case.block(x), case.egrad(x)
    assert isinstance(block, Groups)
    skew = case.manifold.derivatives(x, g, block)
    case.close(skew, -skew.mH, "a group's derivatives, and minus their adjoint", x, g)
    every = case.every(x)
    single = case.manifold.derivatives(x, g, every)
    axes = case.manifold.axes(x, torch.arange(every.index.shape[-1], device=x.device))
    for at in product(*map(range, case.batch)):
        for members, entries in zip(block.axes[at], skew[at], strict=True):
            for a, b in torch.combinations(torch.arange(len(members))).tolist():
                pair = members[[a, b]]
                own = single[at][(axes.sort(-1).values == pair).all(-1)]
                own = torch.complex(*own[:2]) if entries.is_complex() else own[:1].sum()
                what = f"the entry of the axes {pair.tolist()}, and its coordinate"
                case.close(entries[a, b], own, what, x, g)


@law("group_coordinates, group_values and group_matrices put coordinates in different places.")
def the_coordinates_of_a_group_have_their_axes_in_it(case: Case) -> None:
    """The numbers of group_coordinates are those of the coordinates that turn axes of the group only, in
    real geometries in the order of the pairs of its places; group_values takes the group's derivatives
    to theirs, and group_matrices takes them back.
    """  # noqa: D205
    case.kind = "groups"
    x, manifold = case.point(), case.manifold
    block, g = case.block(x), case.egrad(x)
    assert isinstance(block, Groups)
    numbers = manifold.group_coordinates(x, block)
    axes = manifold.axes(x, torch.arange(manifold.num_coordinates(x), device=x.device))
    for members, found in zip(block.axes.flatten(0, -2), numbers.flatten(0, -2), strict=True):
        inside = torch.isin(axes, members).all(-1).nonzero().flatten()
        what = f"the numbers for the axes {members.tolist()}, and those that axes says"
        case.close(found.sort().values, inside, what)
        if not x.is_complex():
            pairs = members[torch.triu_indices(len(members), len(members), 1, device=x.device)].mT
            case.close(
                axes[found], pairs, f"the axes of the numbers {found.tolist()}, and the pairs"
            )
    matrices = manifold.derivatives(x, g, block)
    values = manifold.group_values(x, matrices)
    single = manifold.derivatives(x, g, Coordinates(numbers.flatten(-2), disjoint=False))
    case.close(values, single.view_as(numbers), "group_values, and derivatives by numbers", x, g)
    back = manifold.group_matrices(x, values, block.axes.shape[-1])
    case.close(back, matrices, "group_matrices of group_values, and the matrices", x, g)


@law("steepest was overridden, and ranks by something else than |∂_i f|/√s_i.")
def steepest_is_the_head_of_a_sorted_list(case: Case) -> None:
    """The steepest are the k largest |∂_i f|/√s_i, largest first, none twice, with their derivatives."""
    x = case.point()
    g, every = case.egrad(x), case.every(x)
    k = 1 + int(case.integers(every.index.shape[-1], 1))
    case.tell("k", k)
    index, derivatives = case.manifold.steepest(x, g, k)
    case.require(index.dtype == torch.int64, f"the numbers are {index.dtype}")
    of_all = case.manifold.derivatives(x, g, every)
    scale = case.manifold.step_scale(x, every).expand(of_all.shape)
    slope = torch.where(scale > 0, of_all.abs() / scale.sqrt(), 0.0)
    largest_slopes = slope.sort(-1, descending=True).values[..., :k]
    case.close(slope.gather(-1, index), largest_slopes, "their slopes, and the largest", x, g)
    case.close(derivatives, of_all.gather(-1, index), "their derivatives, by both ways", x, g)
    case.require(
        bool((index.sort(-1).values.diff(dim=-1) > 0).all()), "a coordinate is there twice"
    )


@law(
    "coupling was overridden, and is not √(Σ ⟨grad f, f_i⟩²/s_i) over the coordinates of two axes."
)
def coupling_is_made_of_derivatives(case: Case) -> None:
    """How strongly a gradient couples two axes is what the derivatives along their coordinates say."""
    x = case.point()
    g = case.egrad(x)
    off = ~torch.eye(case.manifold.num_axes(x), dtype=torch.bool, device=x.device)
    weight = torch.where(off, case.manifold.coupling(x, g), 0.0)
    general = torch.where(off, CoordinateManifold.coupling(case.manifold, x, g), 0.0)
    case.close(weight, general, "the coupling, and that made of derivatives", x, g)
    case.close(weight, weight.mT, "the coupling, and its transpose", x, g)


# Moves


@law("The motion leaves the manifold; a coordinate must be a group of its symmetries.", each=KINDS)
def moves_stay_on_the_manifold(case: Case) -> None:
    """A moved point is a point."""
    x = case.point()
    block = case.block(x)
    case.on_manifold(case.manifold.move(x, block, case.times(x, block)), "a moved point")


@law("direction and move_ disagree in a factor or a sign.", precise=True)
def directions_are_velocities_of_moves(case: Case) -> None:
    """The velocity of move(x, i, t) at t = 0 is f_i."""
    x = case.point()
    one = case.one(x)
    unit = torch.ones(one.index.shape, dtype=case.dtype.to_real(), device=x.device)
    velocity = case.slope(lambda t: case.manifold.move(x, one, t * unit))
    if case.quotient:
        velocity = case.manifold.proju(x, velocity)
    f = case.manifold.direction(x, one.index).squeeze(len(case.batch))
    case.close(velocity, f, "the velocity of a move, and direction", tolerance=case.rough(x))


@law("A coordinate must be a one-parameter group.", each=("disjoint", "groups"))
def moves_form_a_group(case: Case) -> None:
    """To move for the times s and then for t is to move for s + t."""
    x = case.point()
    block = case.block(x)
    t, move = case.times(x, block), case.manifold.move
    in_two, in_one = move(move(x, block, 0.6 * t), block, 0.7 * t), move(x, block, 1.3 * t)
    case.close(in_two, in_one, "move(s) then move(t), and move(s + t)", t)


@law(
    "A coordinate must be a one-parameter group, with the inverse −t.", each=("disjoint", "groups")
)
def moves_are_undone(case: Case) -> None:
    """To move for −t takes a move for t back, and to move for 0 does nothing."""
    x = case.point()
    block = case.block(x)
    t, move = case.times(x, block), case.manifold.move
    moved = move(x, block, t)
    case.close(move(moved, block, -t), x, "move(t) then move(−t), and the point", moved, t)
    case.close(move(x, block, 0 * t), x, "move(0), and the point")


@law("period is not the time of one turn; where coordinates have no common one, it is None.")
def motions_come_round_after_a_period(case: Case) -> None:
    """Along a coordinate x(t) = c + a·cos(2πt/T) + b·sin(2πt/T), T being the period."""
    period = case.manifold.period
    if period is None:
        raise DoesNotApply("period is None")
    x = case.point()
    one = case.one(x)

    def after(turns: float) -> Tensor:
        t = torch.full(one.index.shape, turns * period, dtype=torch.float64, device=x.device)
        return case.manifold.move(x, one, t)

    c, a, b = (x + after(0.5)) / 2, (x - after(0.5)) / 2, (after(0.25) - after(0.75)) / 2
    for turns in (1.0, 0.75, 0.15):
        angle = 2 * math.pi * turns
        expected = c + math.cos(angle) * a + math.sin(angle) * b
        case.close(after(turns), expected, f"{turns} turns, and the sum of cosine and sine", x)


@law("points run away along a coordinate; only where they cannot is the manifold compact.")
def points_of_a_compact_manifold_stay_near(case: Case) -> None:
    """However long a motion, entries stay of the size that they had."""
    if not case.manifold.compact:
        raise DoesNotApply("the manifold is not compact")
    x = case.point()
    one = case.one(x)
    t = torch.full(one.index.shape, 1e6, dtype=torch.float64, device=x.device)
    y = case.manifold.move(x, one, t)
    case.require(
        bool((y.abs().amax() <= 1e3 * x.abs().amax().clamp(min=1.0)).all()),
        f"after a time of 1e6 the largest entry of a point is {float(y.abs().amax()):.1e}",
    )


@law("axes does not name all that a coordinate turns: without a common axis, they must commute.")
def disjoint_moves_commute(case: Case) -> None:
    """A disjoint block is its coordinates one after the other, in any order."""
    case.kind = "disjoint"
    x = case.point()
    block = case.block(x)
    assert isinstance(block, Coordinates)
    t = case.times(x, block)
    together = case.manifold.move(x, block, t)
    for order in (range(t.shape[-1]), reversed(range(t.shape[-1]))):
        y = x.clone()
        for i in order:
            case.manifold.move_(y, Coordinates(block.index[..., [i]], disjoint=True), t[..., [i]])
        case.close(y, together, "coordinates one after the other, and at once", x, t)


@law(
    "Coordinates that share axes must follow Exp, not their motions in some order.",
    each=("overlapping", "all"),
)
def overlapping_moves_follow_exp(case: Case) -> None:
    """A block that may share axes moves to Exp_x(Σ t_i·f_i)."""
    x = case.point()
    block = case.block(x)
    index, t = _numbers(case, x, block), case.times(x, block)
    if index.shape[-1] == 1:
        raise DoesNotApply("there is one coordinate")
    f = case.manifold.direction(x, index).unbind(len(case.batch))
    u = torch.stack([case.per_point(s) * one for s, one in zip(t.unbind(-1), f, strict=True)]).sum(
        0
    )
    expected = case.manifold.expmap(x, u)
    case.same_point(case.manifold.move(x, block, t), expected, "the move, and Exp(Σ t·f)", u, x)


def _layouts(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Copies of a tensor in different memory layouts."""
    yield "contiguous memory", x.clone(memory_format=torch.contiguous_format)
    if x.dim() > 1:
        yield (
            "transposed memory",
            x.movedim(-1, 0).clone(memory_format=torch.contiguous_format).movedim(0, -1),
        )
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan)
    wide[..., ::2] = x
    yield "memory with gaps", wide[..., ::2]


@law("A method assumes contiguous memory, or writes into what it was given.", each=KINDS)
def moves_work_in_any_memory_and_change_nothing_else(case: Case) -> None:
    """The call move_ changes and returns x, whatever its strides; move and derivatives change nothing."""
    x, manifold = case.point(), case.manifold
    block, g = case.block(x), case.egrad(x)
    t = case.times(x, block)
    kept = [tensor.clone() for tensor in (x, g, t)]
    moved, derivatives = manifold.move(x, block, t), manifold.derivatives(x, g, block)
    for name, before, after in zip(("x", "egrad", "t"), kept, (x, g, t), strict=True):
        case.require(torch.equal(before, after), f"move or derivatives has changed {name}")
    case.kept(moved, "a moved point")
    for memory, y in _layouts(x):
        actual = manifold.derivatives(y, g, block)
        case.close(actual, derivatives, f"derivatives in {memory}, and elsewhere", x, g)
        case.require(manifold.move_(y, block, t) is y, "move_ returns another tensor than x")
        case.close(y, moved, f"move_ in {memory}, and move", t)


@law(
    "Check before the first write; check_block checks a block, and expand checks times.", each=KINDS
)
def bad_blocks_are_refused_and_change_nothing(case: Case) -> None:
    """Numbers out of range or not int64, axes twice and times that do not fit: an error, and x stays."""
    x = case.point()
    block, g = case.block(x), case.egrad(x)
    t, kept = case.times(x, block), x.clone()
    case.manifold.derivatives(x, g, block)  # a kind that is refused altogether is no bad block

    def refuse(what: str, name: str, *args: Any) -> None:
        try:
            getattr(case.manifold, name)(x, *args)
        except (IndexError, TypeError, ValueError, RuntimeError):
            case.require(torch.equal(x, kept), f"{name} changes x before it refuses {what}")
        else:
            raise Found(f"{name} accepts {what}")

    longer = torch.cat([t, t[..., :1], t[..., :1]], -1)
    refuse(f"times of shape {tuple(longer.shape)} for {tuple(t.shape)}", "move_", block, longer)
    if isinstance(block, All):
        return
    total = case.manifold.num_coordinates(x)
    if isinstance(block, Groups):
        numbers, total = block.axes, case.manifold.num_axes(x)
    else:
        numbers = block.index
    bad = {"numbers of 32 bits": numbers.int()}
    if x.device.type == "cpu":  # elsewhere a look at the numbers would wait for the device
        bad[f"the number {total} of {total}"] = _with_last(numbers, total)
        bad["the number -1"] = _with_last(numbers.flip(-1), -1).flip(-1)
        if case.kind == "disjoint" and numbers.shape[-1] > 1:
            bad["a number twice in a disjoint block"] = _with_last(numbers, numbers[..., :1])
    for what, changed in bad.items():
        other = (
            Groups(changed) if isinstance(block, Groups) else Coordinates(changed, block.disjoint)
        )
        refuse(what, "derivatives", g, other)
        refuse(what, "move_", other, t)


def _with_last(numbers: Tensor, last: Tensor | int) -> Tensor:
    changed = numbers.clone()
    changed[..., -1:] = last
    return changed


# Batches


def _maps(case: Case) -> Iterator[tuple[str, Callable[..., Tensor], tuple[Tensor, ...]]]:
    """The maps of points and vectors that are there, with arguments."""
    x, _, y = case.nearby()
    u, v = case.vector(x), case.vector(x)
    for names, args in (
        ("projx", (x + 0.01 * u,)),
        ("proju egrad2rgrad norm expmap retr", (x, u)),
        ("inner transp_follow_expmap", (x, u, v)),
        ("transp", (x, y, v)),
        ("logmap dist", (x, y)),
    ):
        for name in names.split():
            method = getattr(case.manifold, name)
            try:
                method(*args)
            except NotImplementedError:
                continue
            yield name, method, args


@law("A formula mixes the points of a batch, or sums over too many dimensions.", batched=True)
def maps_of_a_batch_are_a_loop(case: Case) -> None:
    """Every map of a batch is that of its points, one by one."""
    for name, method, args in _maps(case):
        together = method(*args)
        for at in product(*map(range, case.batch)):
            alone = method(*(arg[at] for arg in args))
            case.close(together[at], alone, f"{name} of a batch, and of point {at} alone", *args)


@law(
    "A formula mixes the points of a batch, or uses one point's block for all.",
    each=KINDS,
    batched=True,
)
def blocks_of_a_batch_are_a_loop(case: Case) -> None:
    """Derivatives, step scales and moves of a batch are those of its points, each with its block."""
    x, manifold = case.point(), case.manifold
    block, g = case.block(x), case.egrad(x)
    t = case.times(x, block)
    derivatives, moved = manifold.derivatives(x, g, block), manifold.move(x, block, t)
    scales = manifold.step_scale(x, block).expand(t.shape)
    for at in product(*map(range, case.batch)):
        own, y = block, x[at]
        if isinstance(block, Coordinates):
            own = Coordinates(block.index[at], block.disjoint)
        elif isinstance(block, Groups):
            own = Groups(block.axes[at])
        of = f"in the batch and for point {at} alone"
        case.close(derivatives[at], manifold.derivatives(y, g[at], own), f"derivatives {of}", x, g)
        case.close(moved[at], manifold.move(y, own, t[at]), f"the move {of}", t)
        scale = manifold.step_scale(y, own).expand(t[at].shape)
        case.close(scales[at], scale, f"step scales {of}", x)


@law(
    "Expand a block to the batch of the points.",
    each=("disjoint", "overlapping", "groups"),
    batched=True,
)
def one_block_serves_a_batch(case: Case) -> None:
    """A block without dimensions of a batch goes for every point."""
    batch, case.batch = case.batch, ()
    single = case.point()
    block = case.block(single)
    t, case.batch = case.times(single, block), batch
    x, manifold = case.point(), case.manifold
    g = case.egrad(x)
    derivatives, moved = manifold.derivatives(x, g, block), manifold.move(x, block, t)
    for at in product(*map(range, batch)):
        of = f"in the batch and for point {at} alone"
        alone = manifold.derivatives(x[at], g[at], block)
        case.close(derivatives[at], alone, f"derivatives {of}", x, g)
        case.close(moved[at], manifold.move(x[at], block, t), f"the move {of}", t)


# Steps


@law("descend_ was overridden, and is not its three parts.", each=KINDS)
def descend_is_its_three_verbs(case: Case) -> None:
    """The step descend_ moves for rule(derivatives, step_scale), in place, and returns x."""
    x = case.point()
    block, g = case.block(x), case.egrad(x)

    def rule(derivatives: Tensor, scale: Tensor) -> Tensor:
        return torch.where(scale > 0, -0.1 * derivatives / scale, 0.0)

    derivatives = case.manifold.derivatives(x, g, block)
    t = rule(derivatives, case.manifold.step_scale(x, block))
    expected = case.manifold.move(x, block, t)
    case.require(case.manifold.descend_(x, g, block, rule) is x, "descend_ returns another tensor")
    case.close(x, expected, "descend_, and the three verbs", t, g)


@law("gradient or follow was overridden, and is not egrad2rgrad and the maps.")
def follow_takes_the_gradients_steps(case: Case) -> None:
    """A step of follow along gradient ends where expmap and retr end along egrad2rgrad."""
    x = case.point()
    g = case.egrad(x)
    v, rgrad = (f(x, g.clone()) for f in (case.manifold.gradient, case.manifold.egrad2rgrad))
    for name in ("expmap", "retr"):
        step = -0.1 / (1 + float(rgrad.abs().max()))
        expected = getattr(case.manifold, name)(x, step * rgrad)
        case.close(case.manifold.follow(x, step * v, map=name), expected, f"follow, and {name}", g)


@law(
    "follow_low_rank takes another step than follow, or knows a map that low_rank_maps leaves out."
)
def low_rank_steps_are_steps(case: Case) -> None:
    """Along a gradient left · rightᴴ follow_low_rank ends where follow does, by every one of its maps."""
    x = case.point()
    if not case.manifold.low_rank_maps:
        raise DoesNotApply("low_rank_maps is empty")
    g, k = case.egrad(x), 1 + case.seed % x.shape[-1]
    left = torch.linalg.qr(g[..., :k]).Q
    right = g.mH @ left
    v = case.manifold.gradient(x, left @ right.mH)
    for name in ("expmap", "retr"):
        if name not in case.manifold.low_rank_maps:
            continue
        step = -case.size / (1 + float(v.abs().max()))
        expected = case.manifold.follow(x, step * v, map=name)
        found = case.manifold.follow_low_rank(x, left, step * right, map=name)
        case.close(found, expected, f"follow_low_rank, and follow by {name}", step * v)


@law("restore_ moves points that are good, makes others worse, or is not in place.")
def restore_repairs(case: Case) -> None:
    """A call of restore_ takes most of a small error away, in place, and leaves points alone."""
    x = case.point()
    period = case.manifold.restore_period(x)
    case.require(isinstance(period, int) and period >= 1, f"restore_period is {period!r}")
    case.close(case.manifold.restore_(x.clone()), x, "restore_ of a point, and the point")
    y = x + 1e-3 * case.noise()
    before, kept = largest(case.manifold.projx(y) - y), y.clone()
    case.require(case.manifold.restore_(y) is y, "restore_ returns another tensor than x")
    if before <= 1e-4:
        raise DoesNotApply("every tensor nearby is a point")
    if type(case.manifold).restore_ is CoordinateManifold.restore_:
        raise DoesNotApply("restore_ is left at its default, which does nothing")
    after, change = largest(case.manifold.projx(y) - y), largest(y - kept)
    limit = 0.1 * before + case.tolerance(x)
    case.require(
        after <= limit, f"a point off by {before:.1e} is off by {after:.1e} after restore_"
    )
    case.require(change <= 10 * before, f"a point off by {before:.1e} is moved by {change:.1e}")


# Types


def _to_narrow(case: Case) -> torch.dtype:
    """Let the case be of a type of 32 bits; return that of 64 bits."""
    narrow = [dtype for dtype in case.setting.dtypes if dtype in _NARROW]
    if not narrow or case.setting.widest in _NARROW:
        raise DoesNotApply("there is one type only")
    case.dtype = narrow[0]
    return torch.complex128 if case.dtype.is_complex else torch.float64


@law("An intermediate result is rounded, or a constant is of the wrong type.")
def float32_follows_float64(case: Case) -> None:
    """Maps in a type of 32 bits are those in 64 bits, rounded, and keep their type."""
    wide = _to_narrow(case)
    for name, method, args in _maps(case):
        single, double = method(*args), method(*(arg.to(wide) for arg in args))
        expected = case.dtype.to_real() if name in ("inner", "norm", "dist") else case.dtype
        case.require(
            single.dtype == expected, f"{name} gives {single.dtype} at points in {case.dtype}"
        )
        case.close(single, double, f"{name} in 32 and in 64 bits", *args)


@law("An intermediate result is rounded, or a constant is of the wrong type.", each=KINDS)
def blocks_in_float32_follow_float64(case: Case) -> None:
    """Derivatives and moves in 32 bits are those in 64 bits, rounded; times may have 64 bits, too."""
    wide = _to_narrow(case)
    x, manifold = case.point(), case.manifold
    block, g = case.block(x), case.egrad(x)
    t = case.times(x, block)
    t64 = t.to(torch.promote_types(t.dtype, torch.float64))
    single = manifold.derivatives(x, g, block)
    double = manifold.derivatives(x.to(wide), g.to(wide), block)
    case.close(single, double, "derivatives in 32 and in 64 bits", x, g)
    double = manifold.move(x.to(wide), block, t64)
    for times in (t, t64):
        moved = manifold.move(x, block, times)
        case.kept(moved, "a moved point")
        case.close(moved, double, f"a move in 32 bits for times in {times.dtype}, and in 64", x, t)


# Autograd


def _differentiable(case: Case, f: Callable[[Tensor], Tensor], x: Tensor, what: str) -> None:
    """Let the gradient of f by autograd be its slope along the manifold."""
    y, v = x.clone().requires_grad_(), case.vector(x, 1.0)
    value = f(y)
    weight = case.noise(*value.shape, dtype=value.dtype) if value.dim() else value.detach() ** 0

    def total(value: Tensor) -> Tensor:
        return (weight.conj() * value).real.sum()

    gradient = torch.zeros_like(x)
    if value.requires_grad:
        (flown,) = torch.autograd.grad(total(value), y, allow_unused=True)
        gradient = gradient if flown is None else flown
    slope = case.slope(lambda t: total(f(case.manifold.expmap(x, t * v))))
    limit = case.rough(x, gradient, value, slope)
    by_autograd = case.dot(gradient, v).sum()
    case.close(by_autograd, slope, f"the gradient of {what}, and its slope", tolerance=limit)


_CUT = "Something cuts the graph (detach, data, a write in place), or a derivative is wrong."


@law(_CUT, precise=True)
def gradients_flow_through_proju(case: Case) -> None:
    """By autograd, proju has its derivative along the manifold."""
    x, a = case.point(), case.noise()
    _differentiable(case, lambda y: case.manifold.proju(y, a), x, "proju by the point")


@law(_CUT, precise=True)
def gradients_flow_through_expmap(case: Case) -> None:
    """By autograd, expmap has its derivatives by the point and by the vector."""
    x, exp, proju = case.point(), case.manifold.expmap, case.manifold.proju
    a = case.vector(x)
    _differentiable(case, lambda y: exp(y, proju(y, a)), x, "expmap by the point")
    u, w, weight = a.clone().requires_grad_(), case.vector(x, 1.0), case.noise()
    (gradient,) = torch.autograd.grad(case.dot(weight, exp(x, u)).sum(), u)
    slope, along = case.slope(lambda t: case.dot(weight, exp(x, a + t * w))), case.dot(gradient, w)
    limit = case.rough(x, a, gradient, slope)
    case.close(along, slope, "the gradient of expmap by the vector, and its slope", tolerance=limit)


@law(_CUT, precise=True)
def gradients_flow_through_logmap(case: Case) -> None:
    """By autograd, logmap has its derivatives by both points."""
    (x, _, y), log = case.nearby(), case.manifold.logmap
    _differentiable(case, lambda z: log(z, y), x, "logmap by the first point")
    _differentiable(case, lambda z: log(x, z), y, "logmap by the second point")


@law(_CUT, precise=True)
def gradients_flow_through_dist(case: Case) -> None:
    """By autograd, dist has its derivatives by both points."""
    case.size = 1.0  # not near 0, where a distance has a corner
    (x, _, y), dist = case.nearby(), case.manifold.dist
    _differentiable(case, lambda z: dist(z, y), x, "dist by the first point")
    _differentiable(case, lambda z: dist(x, z), y, "dist by the second point")


def _finite_gradients(case: Case, name: str, *args: Tensor) -> None:
    leaves = [arg.clone().requires_grad_() for arg in args]
    value = getattr(case.manifold, name)(*leaves)
    weight = case.noise(*value.shape, 1, dtype=value.dtype).squeeze(-1)
    gradients = torch.autograd.grad((weight.conj() * value).real.sum(), leaves, allow_unused=True)
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
    case.require(finite, f"a gradient of {name} there is not finite")


_CORNER = "A norm or an angle is differentiated at 0 (0/0, √0, arccos 1): guard what where hides."


@law(_CORNER)
def expmap_has_a_gradient_at_zero(case: Case) -> None:
    """The gradients of expmap are finite at u = 0."""
    x = case.point()
    _finite_gradients(case, "expmap", x, torch.zeros_like(x))


@law(_CORNER)
def logmap_has_a_gradient_at_the_point(case: Case) -> None:
    """The gradients of logmap are finite at y = x."""
    x = case.point()
    _finite_gradients(case, "logmap", x, x)


@law(_CORNER)
def dist_has_a_gradient_at_the_point(case: Case) -> None:
    """The gradients of dist are finite at y = x."""
    x = case.point()
    _finite_gradients(case, "dist", x, x)


# The object


def _acts_alike(case: Case, other: Any) -> None:
    x = case.point()
    u = case.vector(x)
    case.require(repr(other) == repr(case.manifold), f"it prints as {other!r}")
    case.close(other.expmap(x, u), case.manifold.expmap(x, u), "expmap of both", u)


@law("Something that cannot be copied is kept in an attribute, or repr shows an address.")
def a_copy_acts_alike(case: Case) -> None:
    """A deep copy of the manifold prints as it does, and does as it does."""
    _acts_alike(case, copy.deepcopy(case.manifold))


@law("Something that cannot be pickled, as a lambda or a generator, is kept in an attribute.")
def a_pickled_manifold_acts_alike(case: Case) -> None:
    """A manifold comes back from a pickle as it was: checkpoints and processes need that."""
    kind = type(case.manifold)
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not kind:
        raise DoesNotApply(f"no module has {kind.__qualname__}, as pickle wants it")
    _acts_alike(case, pickle.loads(pickle.dumps(case.manifold)))
