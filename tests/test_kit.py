"""A test of the tests: a copy of a manifold that breaks one law is caught by that law."""

import math
import pickle
import subprocess
import sys
import traceback

import geoopt
import pytest
import torch

from givens.manifolds import (
    All,
    Coordinates,
    Euclidean,
    Groups,
    Lorentz,
    OrthogonalGroup,
    Sphere,
    Stiefel,
    SymmetricPositiveDefinite,
    UnitaryGroup,
)
from givens.manifolds.testing import LAWS, LawBroken, check_manifold, law
from givens.manifolds.testing.laws import KINDS


def oblique(self, x, u):
    """Project along another vector than x."""
    along = x + 0.3 * x.roll(1, -1)
    return u - along * ((x * u).sum(-1, keepdim=True) / (x * along).sum(-1, keepdim=True))


def naive_exp(self, x, u):
    """Whose branch that is not taken has no derivative at 0."""
    norm = u.norm(dim=-1, keepdim=True)
    y = norm.cos() * x + norm.sin() * u / norm
    return torch.where(norm > 0, y, x)


def corner(x, y):
    """A zero whose derivative at x = y is none."""
    return 0 * (x - y).square().sum(-1, keepdim=True).sqrt()


def one_after_the_other(self, x, block, t):
    """Follow the motions where the exponential is due."""
    if isinstance(block, Groups):
        return Sphere.move_(self, x, block, t)
    index = torch.arange(t.shape[-1]) if isinstance(block, All) else block.index
    for i in range(t.shape[-1]):
        Sphere.move_(self, x, Coordinates(index[..., [i]], True), t[..., [i]])
    return x


def out_of_place(self, x, block, t):
    """Lose what it writes where memory is not contiguous."""
    return Sphere.move_(self, x.contiguous(), block, t)


def strict_batch(self, x, block, t):
    """Want a block for every point."""
    if isinstance(block, Coordinates) and block.index.dim() != x.dim():
        raise ValueError("the block has no batch")
    return Sphere.move_(self, x, block, t)


def refuse(self, *args, **options):
    raise NotImplementedError("not today")


def rounded(x):
    return x.bfloat16().to(x.dtype) if x.dtype == torch.float32 else x


# The base, the shape of its points, and what is wrong, method by method.
SPHERE = Sphere, (5,)
GROUP = OrthogonalGroup, (3, 3)
STIEFEL = Stiefel, (4, 2)


def of(base, name, wrap):
    """Replace a method by what `wrap` makes of its result and arguments."""
    method = getattr(base[0], name)
    return base, {name: lambda self, *a, **k: wrap(method(self, *a, **k), *a)}


def before(base, name, wrap):
    """Replace a method by itself with other arguments."""
    method = getattr(base[0], name)
    return base, {name: lambda self, *a, **k: method(self, *wrap(*a), **k)}


BROKEN = {
    "random and origin are points": [
        of(SPHERE, "random", lambda y, *a: y * (1 + 1e-5)),
        of(SPHERE, "origin", lambda y, *a: y.double()),
        (SPHERE, {"origin": lambda self, *size, **k: self.random(*size, **k)}),
    ],
    "projx lands on the manifold": [of(SPHERE, "projx", lambda y, *a: 1.001 * y)],
    "projx leaves points alone": [of(SPHERE, "projx", lambda y, *a: -y)],
    "the check of points rejects others": [
        (SPHERE, {"_check_point_on_manifold": lambda *a, **k: (True, None)})
    ],
    "proju is tangent": [(SPHERE, {"proju": lambda self, x, u: u})],
    "proju is idempotent": [of(SPHERE, "proju", lambda y, *a: 0.9 * y)],
    "proju is orthogonal": [(SPHERE, {"proju": oblique})],
    "the check of vectors rejects others": [
        (SPHERE, {"_check_vector_on_tangent": lambda *a, **k: (True, None)})
    ],
    "inner is symmetric and bilinear": [
        (
            SPHERE,
            {
                "inner": lambda self, x, u, v=None, *, keepdim=False: (
                    u * (u if v is None else v + 0.1 * v.roll(1, -1))
                ).sum(-1, keepdim=keepdim)
            },
        ),
        of(SPHERE, "inner", lambda y, *a: y.abs()),
    ],
    "inner is positive": [of(SPHERE, "inner", lambda y, *a: -y)],
    "norm is the root of inner": [
        of(SPHERE, "norm", lambda y, *a: y.square()),
        (SPHERE, {"norm": lambda self, x, u, *, keepdim=False: u.norm(dim=-1)}),
    ],
    "the gradient represents the differential": [of(SPHERE, "egrad2rgrad", lambda y, *a: 2 * y)],
    "the gradient is the slope along exp": [before(SPHERE, "expmap", lambda x, u: (x, 2 * u))],
    "exp stays on the manifold": [(SPHERE, {"expmap": lambda self, x, u: x + u})],
    "exp of zero is the point": [
        of(SPHERE, "expmap", lambda y, *a: -y),
        of(SPHERE, "retr", lambda y, *a: y * math.nan),
    ],
    "exp starts with velocity u": [before(SPHERE, "expmap", lambda x, u: (x, 2 * u))],
    "exp goes on from where it is": [(SPHERE, {"expmap": Sphere.retr})],
    # The geodesics of the canonical metric have constant speed in the Euclidean one, too.
    "exp obeys the lemma of gauss": [
        (STIEFEL, {"expmap": lambda self, x, u: Stiefel("canonical").expmap(x, u)})
    ],
    "retr is exp to first order": [
        before(SPHERE, "retr", lambda x, u: (x, 0.5 * u)),
        (SPHERE, {"retr": lambda self, x, u: x + u}),
    ],
    "log inverts exp": [(SPHERE, {"logmap": lambda self, x, y: self.proju(x, y - x)})],
    "exp inverts log": [of(SPHERE, "logmap", lambda y, *a: 0.9 * y)],
    "dist is the length of the geodesic": [
        (
            SPHERE,
            {
                "dist": lambda self, x, y, *, keepdim=False: (x - y).norm(dim=-1, keepdim=keepdim),
            },
        ),
        of(SPHERE, "dist2", lambda y, *a: y.sqrt()),
    ],
    "dist is a distance": [
        of(SPHERE, "dist", lambda y, *a: y + 0.1),
        of(SPHERE, "dist", lambda y, *a: y * a[0].abs().amax(-1).reshape_as(y)),
        of(SPHERE, "dist", lambda y, *a: y.square()),
    ],
    "dist is the norm of log": [of(SPHERE, "dist", lambda y, *a: 2 * y)],
    "transport lands in the tangent space": [
        (SPHERE, {"transp": lambda self, x, y, v: v}),
        of(SPHERE, "transp", lambda y, *a: -y),
        of(SPHERE, "transp", lambda y, *a: y.abs() - a[1] * (a[1] * y.abs()).sum(-1, keepdim=True)),
    ],
    "moving and transporting at once agree": [
        of(SPHERE, "expmap_transp", lambda y, *a: (y[0], -y[1])),
        of(SPHERE, "retr_transp", lambda y, *a: (y[1], y[1])),
    ],
    "parallel transport is parallel": [
        (SPHERE, {"transp_follow_expmap": lambda self, x, u, v: self.proju(self.expmap(x, u), v)}),
        # Left translation is an isometry and takes the velocity along.
        (
            GROUP,
            {
                "transp_follow_expmap": lambda self, x, u, v: self.transp(x, self.expmap(x, u), v),
            },
        ),
    ],
    "axes are one or two that exist": [
        of(SPHERE, "axes", lambda y, *a: y + 1),
        of(SPHERE, "axes", lambda y, *a: y.int()),
        of(SPHERE, "axes", lambda y, *a: torch.cat([y, y], -1)),
        of(SPHERE, "num_axes", lambda y, *a: torch.tensor(y)),
    ],
    "directions are tangent": [
        of(SPHERE, "direction", lambda y, *a: y + a[0].unsqueeze(-2)),
        of(SPHERE, "direction", lambda y, *a: y.flip(-2)),
    ],
    "directions span the tangent space": [(SPHERE, {"num_coordinates": lambda self, x: 3})],
    "frame bounds hold": [
        (SPHERE, {"frame_bounds": (1.5, 2.0)}),
        (SPHERE, {"frame_bounds": (0, 0.9)}),
    ],
    "step scales are positive": [
        of(SPHERE, "step_scale", lambda y, *a: -y),
        of(SPHERE, "step_scale", lambda y, *a: y.expand(7)),
        of(SPHERE, "step_scale", lambda y, *a: y / 0),
    ],
    "scaled directions obey bessel": [of(SPHERE, "step_scale", lambda y, *a: 0.5 * y)],
    "single coordinates are not refused": [(SPHERE, {"move_": refuse})],
    "derivatives are products with directions": [
        of(SPHERE, "derivatives", lambda y, *a: 2 * y),
        of(SPHERE, "derivatives", lambda y, *a: y.to(torch.complex128)),
    ],
    "derivatives are slopes along moves": [
        of(SPHERE, "derivatives", lambda y, *a: -y),
        before(SPHERE, "move_", lambda x, block, t: (x, block, 2 * t)),
        of(SPHERE, "derivatives", lambda y, *a: y / 2 if isinstance(a[2], Groups) else y),
    ],
    "derivatives are linear": [of(SPHERE, "derivatives", lambda y, *a: y.abs())],
    "all is every coordinate": [
        of(SPHERE, "derivatives", lambda y, *a: y.flip(-1) if isinstance(a[2], All) else y),
        of(SPHERE, "step_scale", lambda y, *a: 2 * y if isinstance(a[1], All) else y),
        before(
            SPHERE,
            "move_",
            lambda x, block, t: (x, block, t * (2 - isinstance(block, Coordinates))),
        ),
    ],
    "groups hold the coordinates of their axes": [
        of(SPHERE, "derivatives", lambda y, *a: 2 * y if isinstance(a[2], Groups) else y),
        of(SPHERE, "derivatives", lambda y, *a: y.triu() if isinstance(a[2], Groups) else y),
    ],
    "the coordinates of a group have their axes in it": [
        of(SPHERE, "group_coordinates", lambda y, *a: y.flip(-1)),
        of(SPHERE, "group_coordinates", lambda y, *a: y[..., :1]),
        of(SPHERE, "group_values", lambda y, *a: -y),
        of(SPHERE, "group_matrices", lambda y, *a: 2 * y),
        of((UnitaryGroup, (3, 3)), "group_coordinates", lambda y, *a: (y + 1) % 9),
        of((UnitaryGroup, (3, 3)), "group_coordinates", lambda y, *a: y.flip(-1)),
    ],
    "steepest is the head of a sorted list": [
        of(SPHERE, "steepest", lambda y, *a: (y[0].flip(-1), y[1].flip(-1))),
        of(SPHERE, "steepest", lambda y, *a: (y[0], y[1].abs())),
        of(SPHERE, "steepest", lambda y, *a: (y[0][..., :1].expand_as(y[0]), y[1])),
    ],
    "coupling is made of derivatives": [
        of(SPHERE, "coupling", lambda y, *a: 2 * y),
        of(SPHERE, "coupling", lambda y, *a: y.triu()),
    ],
    "moves stay on the manifold": [of(SPHERE, "move_", lambda y, *a: y.mul_(1.01))],
    "directions are velocities of moves": [
        before(SPHERE, "move_", lambda x, block, t: (x, block, -t)),
    ],
    "motions come round after a period": [
        (SPHERE, {"period": math.pi}),
        (SPHERE, {"period": 4 * math.pi}),
        ((Euclidean, (3,)), {"period": 1.0}),
        ((Lorentz, (4,)), {"period": 2 * math.pi}),
        ((UnitaryGroup, (3, 3)), {"period": 2 * math.pi}),
    ],
    "points of a compact manifold stay near": [
        ((Euclidean, (3,)), {"compact": True}),
        ((Lorentz, (4,)), {"compact": True}),
        ((SymmetricPositiveDefinite, (3, 3)), {"compact": True}),
    ],
    "moves form a group": [before(SPHERE, "move_", lambda x, block, t: (x, block, t.sin()))],
    "moves are undone": [
        before(SPHERE, "move_", lambda x, block, t: (x, block, t + t**2)),
        before(SPHERE, "move_", lambda x, block, t: (x, block, t + 0.1)),
    ],
    "disjoint moves commute": [
        before(SPHERE, "move_", lambda x, block, t: (x, block, t / t.shape[-1])),
        # An axis that a coordinate turns and does not name.
        (
            SPHERE,
            {
                "move_": lambda self, x, block, t: Sphere.move_(
                    self,
                    Sphere.move_(self, x, block, t),
                    Coordinates(torch.tensor([0]), True),
                    t[..., :1],
                )
            },
        ),
    ],
    "overlapping moves follow exp": [(SPHERE, {"move_": one_after_the_other})],
    "moves work in any memory and change nothing else": [
        (SPHERE, {"move_": out_of_place}),
        of(SPHERE, "derivatives", lambda y, *a: (a[1].mul_(2), y)[1]),
        of(SPHERE, "move_", lambda y, *a: (a[2].mul_(2), y)[1]),
        (SPHERE, {"move": lambda self, x, block, t: self.move_(x, block, t)}),
        of(SPHERE, "move_", lambda y, *a: y.clone()),
    ],
    "bad blocks are refused and change nothing": [
        (SPHERE, {"check_block": lambda self, x, block: None}),
        before(SPHERE, "move_", lambda x, *a: (x.mul_(2), *a)),
        before(SPHERE, "move_", lambda x, block, t: (x, block, t[..., : -2 or None])),
    ],
    "maps of a batch are a loop": [
        (
            SPHERE,
            {"projx": lambda self, x: x / x.norm() * math.sqrt(x.shape[:-1].numel())},
        ),
        of(SPHERE, "logmap", lambda y, *a: y.flip(0) if y.dim() > 1 else y),
    ],
    "blocks of a batch are a loop": [
        of(SPHERE, "derivatives", lambda y, *a: y.flip(0)),
        of(SPHERE, "step_scale", lambda y, *a: y * len(a[0])),
        of(SPHERE, "move_", lambda y, *a: y.copy_(y.flip(0))),
    ],
    "one block serves a batch": [(SPHERE, {"move_": strict_batch})],
    "descend is its three verbs": [
        of(SPHERE, "descend_", lambda y, *a: y.neg_()),
        of(SPHERE, "descend_", lambda y, *a: y.clone()),
    ],
    "follow takes the gradients steps": [
        of(SPHERE, "gradient", lambda y, *a: 1.01 * y),
        of(SPHERE, "follow", lambda y, *a: -y),
    ],
    "low rank steps are steps": [
        of(GROUP, "follow_low_rank", lambda y, *a: -y),
        before(STIEFEL, "follow_low_rank", lambda x, left, right: (x, left, 1.01 * right)),
    ],
    "restore repairs": [
        of(SPHERE, "restore_", lambda y, *a: y.neg_()),
        (SPHERE, {"restore_": lambda self, x: x}),
        of(SPHERE, "restore_", lambda y, *a: y.clone()),
        (SPHERE, {"restore_period": lambda self, x: 0}),
    ],
    "float32 follows float64": [
        before(SPHERE, "expmap", lambda x, u: (x, rounded(u))),
        of(SPHERE, "proju", lambda y, *a: y.double()),
    ],
    "blocks in float32 follow float64": [
        of(SPHERE, "derivatives", lambda y, *a: rounded(y)),
        before(SPHERE, "move_", lambda x, block, t: (x, block, rounded(t))),
    ],
    "gradients flow through proju": [of(SPHERE, "proju", lambda y, *a: y.detach())],
    "gradients flow through expmap": [before(SPHERE, "expmap", lambda x, u: (x.detach(), u))],
    "gradients flow through logmap": [before(SPHERE, "logmap", lambda x, y: (x, y.detach()))],
    "gradients flow through dist": [before(SPHERE, "dist", lambda x, y: (x.detach(), y))],
    "expmap has a gradient at zero": [(SPHERE, {"expmap": naive_exp})],
    "logmap has a gradient at the point": [of(SPHERE, "logmap", lambda y, *a: y + corner(*a))],
    "dist has a gradient at the point": [
        of(SPHERE, "dist", lambda y, *a: y + corner(*a).reshape_as(y))
    ],
    "a copy acts alike": [(SPHERE, {"extra_repr": lambda self: hex(id(self))})],
}


class WithLambda(Sphere):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.factor = lambda: 1.0


class Forgetful(Sphere):
    """Comes back from a pickle as another."""

    def extra_repr(self):
        return getattr(self, "note", "as new")

    def __reduce__(self):
        return Forgetful, ()


def found(name, manifold, shape):
    """The error of a law."""
    with pytest.raises(LawBroken) as caught:
        check_manifold(manifold, shape, laws=[name])
    assert caught.value.law == name
    return caught.value


def test_every_law_has_a_copy_that_breaks_it():
    assert {*BROKEN, "a pickled manifold acts alike"} == {*LAWS}


@pytest.mark.parametrize(
    ("law", "way"), [(law, way) for law, ways in BROKEN.items() for way in range(len(ways))]
)
def test_a_broken_law_is_caught(law, way):
    (base, shape), wrong = BROKEN[law][way]
    broken = type("Broken", (base,), wrong)
    text = str(found(law, broken(), shape))
    assert f"breaks a law: {law}" in text
    assert LAWS[law].hint in text
    assert LAWS[law].statement in text
    assert f"points of shape {shape}" in text
    assert "seed" in text


@pytest.mark.parametrize("law", ["moves form a group", "proju is idempotent"])
def test_what_is_not_broken_holds(law):
    report = check_manifold(Sphere(), (5,), laws=[law], max_examples=50)
    assert not report.skipped
    assert {name.split(" (")[0] for name in report.checked} == {law}


def test_what_cannot_be_pickled_is_caught():
    name = "a pickled manifold acts alike"
    error = found(name, WithLambda(), (5,))
    assert isinstance(error.__cause__, (pickle.PicklingError, AttributeError))
    forgetful = Forgetful()
    forgetful.note = "changed"
    assert "it prints as" in str(found(name, forgetful, (5,)))

    class Local(Sphere):
        pass

    report = check_manifold(Local(), (5,), laws=[name])
    assert "no module has" in report.skipped[name]


def broken_move():
    return type("Broken", (Sphere,), {"move_": BROKEN["moves form a group"][0][1]["move_"]})()


def test_the_message_names_the_input_by_the_simplest_one():
    error = found("moves form a group", broken_move(), (5,))
    text = str(error)
    for words in (
        "Sphere manifold breaks a law: moves form a group (disjoint blocks)",
        "move(s) then move(t), and move(s + t): they differ by ",
        "allowed is ",
        "A coordinate must be a one-parameter group.",
        "points of shape (5,), batch (), torch.float32, size 1, seed 0",
        "block Coordinates(index=tensor([",
        "times tensor([",
        "check_manifold(…, (5,), laws=['moves form a group'])",
    ):
        assert words in text, words
    again = found("moves form a group", broken_move(), (5,))
    assert str(again) == text


def test_the_user_sees_nothing_of_the_machinery():
    error = found("moves form a group", broken_move(), (5,))
    shown = "".join(traceback.format_exception(error))
    assert "hypothesis" not in shown.lower()
    assert error.__cause__ is None
    assert len(traceback.extract_tb(error.__traceback__)) < 6


def test_an_error_of_the_manifold_is_a_broken_law_and_the_cause():
    def move_(self, x, block, t):
        return 1 / 0

    error = found("moves form a group", type("Broken", (Sphere,), {"move_": move_})(), (5,))
    assert "ZeroDivisionError: division by zero" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)
    shown = "".join(traceback.format_exception(error))
    assert "return 1 / 0" in shown
    assert "hypothesis" not in shown.lower()


def test_a_law_broken_for_one_kind_of_block_names_the_kind():
    method = Sphere.derivatives

    def derivatives(self, x, egrad, block):
        y = method(self, x, egrad, block)
        return y + 1 if isinstance(block, Groups) else y

    broken = type("Broken", (Sphere,), {"derivatives": derivatives})()
    text = str(found("derivatives are linear", broken, (5,)))
    assert "(groups blocks)" in text
    assert "block Groups(axes=" in text


def test_optional_methods_may_be_missing():
    missing = dict.fromkeys(
        ["logmap", "dist", "transp", "transp_follow_expmap", "transp_follow_retr"], refuse
    )
    missing |= dict.fromkeys(["expmap_transp", "retr_transp", "random", "origin"], refuse)

    def derivatives(self, x, egrad, block):
        if isinstance(block, Groups):
            raise NotImplementedError("no groups")
        return Sphere.derivatives(self, x, egrad, block)

    plain = type("Plain", (Sphere,), {**missing, "derivatives": derivatives})()
    report = check_manifold(plain, (4,), max_examples=3)
    for name in ("log inverts exp", "dist is a distance", "random and origin are points"):
        assert report.skipped[name] == "not today"
    assert report.skipped["derivatives are linear (groups blocks)"] == "no groups"
    for name in ("exp starts with velocity u", "moves form a group (disjoint blocks)"):
        assert name in report.checked
    text = str(report)
    assert text.startswith(
        f"Sphere manifold, points of shape (4,): {len(report.checked)} laws hold"
    )
    assert "not checked, because not today:\n    random and origin are points\n" in text
    # geoopt's own say nothing: then it is the method's name.
    silent = type("Silent", (Sphere,), {"logmap": lambda self, x, y: _silent()})()
    report = check_manifold(silent, (4,), laws=["log inverts exp"])
    assert report.skipped == {"log inverts exp": "_silent is not implemented"}


def _silent():
    raise NotImplementedError


def test_every_law_is_checked_or_reported_for_every_kind_of_block():
    report = check_manifold(Euclidean(), (3,), max_examples=1)
    labels = {*report.checked, *report.skipped}
    expected = {
        name if kind is None else f"{name} ({kind} blocks)"
        for name, one in LAWS.items()
        for kind in one.each
    }
    assert labels == expected
    assert len(report.checked) + len(report.skipped) == len(expected)
    assert {kind for one in LAWS.values() for kind in one.each} == {None, *KINDS}


def test_laws_can_be_chosen_and_left_out():
    name = "moves form a group"
    report = check_manifold(Sphere(), (4,), laws=[name, "inner is positive"], skip=[name])
    assert report.checked == ("inner is positive",)
    assert set(report.skipped.values()) == {"left out by skip="}
    with pytest.raises(ValueError, match="there is no law 'gravity'; choose from"):
        check_manifold(Sphere(), (4,), skip=["gravity"])


def test_batch_dimensions_are_no_part_of_the_shape():
    with pytest.raises(ValueError, match=r"has 1 dimensions, the shape \(2, 4\) has 2"):
        check_manifold(Sphere(), (2, 4))


def test_what_is_no_geometry_or_no_shape_of_it_is_refused_before_any_law():
    with pytest.raises(ValueError, match=r"no shape of a point: .*\(\.\.\., d, d\)"):
        check_manifold(OrthogonalGroup(), (3, 4))
    with pytest.raises(TypeError, match="has no coordinates"):
        check_manifold(geoopt.Sphere(), (3,))


def test_types_and_batches_are_those_that_are_asked_for():
    seen = set()

    class Watched(Sphere):
        def derivatives(self, x, egrad, block):
            seen.add((x.dtype, tuple(x.shape)))
            return super().derivatives(x, egrad, block)

    name = "derivatives are linear"
    check_manifold(Watched(), (4,), laws=[name], dtypes=[torch.float32], batches=[(2,)])
    assert seen == {(torch.float32, (2, 4))}
    report = check_manifold(
        Watched(), (4,), dtypes=[torch.float32], laws=["exp starts with velocity u"]
    )
    assert list(report.skipped.values()) == ["finite differences need float64"]
    report = check_manifold(Watched(), (4,), batches=[()], laws=["maps of a batch are a loop"])
    assert list(report.skipped.values()) == ["no shape of a batch is given"]


def test_more_examples_are_more_examples():
    calls = []
    probe = type("Probe", (Sphere,), {"proju": lambda *a: (calls.append(1), Sphere.proju(*a))[1]})()
    for count in (5, 40):
        calls.clear()
        check_manifold(probe, (4,), laws=["proju is tangent"], max_examples=count)
        assert len(calls) == count


def test_a_check_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    check_manifold(Sphere(), (4,), laws=["exp stays on the manifold"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_law_that_is_added_is_checked():
    @law("The curvature is not that of the unit sphere.", precise=True)
    def the_radius_is_one(case):
        """‖x‖ = 1."""
        x = case.point()
        case.close(x.norm(dim=-1), torch.ones(case.batch, dtype=x.dtype), "‖x‖, and 1")

    try:
        name = "the radius is one"
        assert check_manifold(Sphere(), (4,), laws=[name]).checked == (name,)
        assert "The curvature" in str(found(name, Euclidean(), (4,)))
    finally:
        del LAWS["the radius is one"]


def test_it_says_what_to_install_without_hypothesis():
    code = """
import sys
sys.modules["hypothesis"] = None
from givens.manifolds import Sphere
from givens.manifolds.testing import check_manifold
try:
    check_manifold(Sphere(), (4,))
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'givens[test]'" in out.stdout
