"""A wrapper for debugging that checks every point and vector on its way in and out of a manifold."""

from __future__ import annotations

import abc
import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from geoopt import ManifoldTensor
from geoopt.manifolds import Manifold
from torch import Tensor

from ..base import CoordinateManifold
from ..blocks import All, CoordinateBlock, Coordinates, Groups

__all__ = ["Validating"]

# What every method takes, in order, and what it gives. The words are the checks of _Call, below; a word
# after @ says where a vector is tangent: at the argument x, at y, or where the map of x and u ends.
_LAWS = {
    # geoopt's
    "retr": "point tangent@x -> point",
    "expmap": "point tangent@x -> point",
    "logmap": "point point -> tangent@x",
    "transp": "point point tangent@x -> tangent@y",
    "transp_follow_retr": "point tangent@x tangent@x -> tangent@retr",
    "transp_follow_expmap": "point tangent@x tangent@x -> tangent@expmap",
    "retr_transp": "point tangent@x tangent@x -> point tangent@result",
    "expmap_transp": "point tangent@x tangent@x -> point tangent@result",
    "inner": "point tangent@x tangent@x -> product",
    "component_inner": "point tangent@x tangent@x -> finite",
    "norm": "point tangent@x -> length",
    "dist": "point point -> length",
    "dist2": "point point -> length",
    "proju": "point ambient -> tangent@x",
    "egrad2rgrad": "point ambient -> tangent@x",
    "projx": "ambient -> point",
    "random": "-> point",
    "origin": "-> point",
    # those of coordinates
    "axes": "point index -> axes",
    "direction": "point index -> tangents",
    "group_coordinates": "point block -> grouped",
    "step_scale": "point block -> scales",
    "derivatives": "point ambient block -> derivatives",
    "steepest": "point ambient count -> numbers derivatives",
    "candidates": "point ambient count dtype -> numbers",
    "coupling": "point ambient -> weights",
    "move": "point block times -> point",
    "move_": "point block times -> point",
    "descend_": "point ambient block rule -> point",
    "gradient": "point ambient -> ambient",
    "follow": "point ambient -> point",
    "follow_low_rank": "point factor@-2 factor@-1 -> point",
    "restore_": "ambient -> point",
}


_NOUNS = {
    "tangent": "vector",
    "ambient": "tensor",
    "index": "tensor",
    "tangents": "tensor of directions",
    "times": "tensor of times",
    "derivatives": "tensor of derivatives",
    "scales": "tensor of step scales",
    "numbers": "tensor of coordinates",
    "grouped": "tensor of coordinates",
    "axes": "tensor of axes",
    "product": "number",
    "length": "number",
    "finite": "number",
    "count": "number",
    "weights": "tensor of weights",
}


class Validating(Manifold):
    """A manifold that checks every point and tangent vector on its way in and out; for debugging.

    It wraps a manifold and behaves as it, with the same numbers to the last bit. Around every method it
    checks that points lie on the manifold, that vectors are tangent where they should be, that shapes,
    types and devices go together and are kept, that everything is finite, that the numbers of a
    block exist and its axes are as disjoint as it claims (on accelerators, too, where the manifolds
    themselves do not look), that derivatives and times have the shape that their block prescribes, and
    that a method changes what it should change and nothing else. The error names the method and
    the argument or result, and says what to do.

    Wrapping a :class:`~givens.manifolds.CoordinateManifold` gives one, which
    :class:`givens.optim.SRCD` takes.

    Parameters
    ----------
    manifold : Manifold
        A manifold of givens or geoopt. The wrapper's attribute of that name.
    atol, rtol : float, optional
        Tolerances of the manifold's checks. By default the square root of the precision of a
        point: 3.5e-4 in float32, 1.5e-8 in float64. A tangent vector with entries above 1 is scaled down to
        them before it is checked.

    Raises
    ------
    TypeError
        From its methods, where an argument has a wrong type or dtype.
    ValueError, IndexError
        From its methods, where an argument is off the manifold, not tangent, not finite, of a wrong
        shape or on another device; where a block names a coordinate that does not exist.
    RuntimeError
        From its methods, where a *result* is wrong: then the fault is in the manifold.

    Notes
    -----
    The checks read values, so every call waits for an accelerator; they cost a few products of points a
    call. A method that works in place copies the point first, and where it fails or its result is
    wrong the point is put back: memory and time of one copy. Methods without a line in the table at the
    top of the module are passed on unchecked, and so are those whose name begins with ``check_``
    and what the wrapped manifold calls of itself.

    Examples
    --------
    >>> import torch
    >>> from givens.manifolds import OrthogonalGroup
    >>> from givens.manifolds.testing import Validating
    >>> manifold = Validating(OrthogonalGroup())
    >>> x = torch.eye(3)
    >>> manifold.expmap(x, 0.01 * torch.ones(3, 3))
    Traceback (most recent call last):
        ...
    ValueError: the vector u given to expmap is not tangent at x: max ... is 2.0e-02; ...
    """

    manifold: Manifold

    def __new__(cls, manifold: Manifold | None = None, **_: Any) -> Validating:
        """Wrap a CoordinateManifold as one; unpickling calls without arguments."""
        if cls is Validating and isinstance(manifold, CoordinateManifold):
            cls = _ValidatingCoordinates
        return super().__new__(cls)

    def __init__(
        self, manifold: Manifold, *, atol: float | None = None, rtol: float | None = None
    ) -> None:
        if not isinstance(manifold, Manifold):
            raise TypeError(f"{manifold!r} is no manifold; expected one of givens or geoopt")
        super().__init__()
        self.manifold = manifold
        self.atol = atol
        self.rtol = rtol

    def __repr__(self) -> str:
        return f"Validating({self.manifold!r})"

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not self.manifold, which a half-built copy does not have yet.
            manifold = self.__dict__.get("_modules", {}).get("manifold")
            if manifold is None:
                raise
            return getattr(manifold, name)


class _ValidatingCoordinates(Validating, CoordinateManifold):
    """A validating manifold with coordinates."""


# The checks


class _Call:
    """One call of a method: its arguments are checked in their order, then its results."""

    def __init__(self, wrapper: Validating, method: str, arguments: dict[str, Any]) -> None:
        self.wrapper = wrapper
        self.manifold: Any = wrapper.manifold
        self.method = method
        self.keepdim = bool(arguments.get("keepdim", False))
        self.role = ""
        self.fault = False  # whether it came out
        self.points: list[Tensor] = []
        self.vectors: list[Tensor] = []
        self.first: Tensor | None = None  # the tensor with which all others must go
        self.shape = torch.Size()  # of points and vectors, broadcast
        self.block: CoordinateBlock = All()

    @torch.no_grad()
    def check_argument(self, name: str, value: Any, law: str) -> None:
        """Raise unless an argument is what its word in the table says."""
        named = _noun(law) if _noun(law) == name else f"{_noun(law)} {name}"
        self.role, self.fault = f"the {named} given to {self.method}", False
        self._check(law, value)

    @torch.no_grad()
    def check_result(self, result: Any) -> None:
        """Raise unless the results are what the table says."""
        gives = _LAWS[self.method].split("->")[1].split()
        results = result if len(gives) > 1 else (result,)
        who = f"{type(self.manifold).__name__}.{self.method} returned"
        self.role, self.fault = f"what {who}", True
        if not isinstance(results, tuple) or len(results) != len(gives):
            self._fail(TypeError, f"is a {type(result).__name__}; expected {len(gives)} tensors")
        for law, value in zip(gives, results, strict=True):
            self.role, self.fault = f"the {_noun(law)} that {who}", True
            self._check(law, value)

    def apart(self, run: Callable[[], Any], tensors: list[Tensor]) -> Any:
        """Run a method that must leave its arguments alone."""
        versions = [_version(tensor) for tensor in tensors]
        result = run()
        self.role, self.fault = f"a tensor given to {self.method}", True
        if versions != [_version(tensor) for tensor in tensors]:
            self._fail(ValueError, "was changed in place by it")
        self.check_result(result)
        return result

    def in_place(self, run: Callable[[], Any], tensors: list[Tensor]) -> Any:
        """Run a method that changes its first argument, and undo that where something is wrong."""
        x, *others = tensors
        saved = x.detach().clone()
        try:
            result = self.apart(run, others)
            if result is not x:
                self.role, self.fault = f"what {self.method} returned", True
                self._fail(ValueError, "is not x; a method that works in place returns x itself")
        except BaseException:
            x.detach().copy_(saved)
            raise
        return result

    def checked(
        self, rule: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The rule of descend_, with checks of what it is given and of what it returns."""

        def checked_rule(derivatives: Tensor, scales: Tensor) -> Tensor:
            with torch.no_grad():
                who = f"that {type(self.manifold).__name__}.{self.method} gave to the rule"
                for law, value in (("derivatives", derivatives), ("scales", scales)):
                    self.role, self.fault = f"the {_noun(law)} {who}", True
                    self._check(law, value)
                times = rule(derivatives, scales)
                self.role, self.fault = (
                    f"the {_noun('times')} that the rule of {self.method} returned",
                    False,
                )
                self._check("times", times)
            return times

        return checked_rule

    def _check(self, law: str, value: Any) -> None:
        word, _, at = law.partition("@")
        check = getattr(self, f"_{word}")
        check(value, at) if at else check(value)

    def _fail(self, error: type[Exception], text: str) -> NoReturn:
        """Raise: the caller's error on the way in, the manifold's on the way out."""
        if self.fault:
            raise RuntimeError(
                f"{self.role} {text}. What it was given has passed its checks: look for the mistake in "
                f"{type(self.manifold).__name__}.{self.method}, or for tolerances that are too small"
            )
        raise error(f"{self.role} {text}")

    # The words of the table

    def _ambient(self, u: Any) -> None:
        """A finite tensor in the space around the manifold, that goes with the others."""
        self._tensor(u)
        if not (u.is_floating_point() or u.is_complex()):
            self._fail(TypeError, f"is {u.dtype}; expected floating-point numbers")
        if self.first is None:
            self._judge("has a wrong shape: ", self.manifold.check_point(u, explain=True))
            self.first, self.shape = u, u.shape
        else:
            self._type(u, self.first.dtype)
            point = self.first.shape[self.first.dim() - self.manifold.ndim :]
            try:
                shape = torch.broadcast_shapes(u.shape, self.shape)
            except RuntimeError:
                shape = torch.Size()
            trailing = u.shape[max(0, u.dim() - self.manifold.ndim) :]
            # A result has the shape of all arguments together; among these a batch may broadcast.
            if trailing != point or not shape or (self.fault and u.shape != self.shape):
                self._fail(
                    ValueError,
                    f"has shape {tuple(u.shape)}; expected {tuple(self.shape)}, the shape of points",
                )
            self.shape = shape
        self._finite(u)

    def _point(self, x: Any) -> None:
        self._ambient(x)
        atol, rtol = self._tolerances(x)
        self._judge(
            f"is not on {self.manifold.name}: ",
            self.manifold.check_point_on_manifold(x.detach(), explain=True, atol=atol, rtol=rtol),
        )
        self.points.append(x)

    def _tangent(self, u: Any, at: str) -> None:
        self._ambient(u)
        x, where = self._base(at)
        shape = torch.broadcast_shapes(x.shape, u.shape)
        self._judge_tangent(x.expand(shape), u.expand(shape), where)
        self.vectors.append(u)

    def _factor(self, value: Any, at: str) -> None:
        """A factor of a gradient, with a row for every entry of a point along a dimension."""
        x = self.points[0]
        self._finite(value)
        self._type(value, x.dtype)
        expected = (*x.shape[:-2], x.shape[int(at)], *value.shape[-1:])
        self._shape(value, expected)
        if at != "-2":
            return
        error = (value.mH @ value - torch.eye(value.shape[-1]).to(value)).abs().amax()
        if not bool(error <= sum(self._tolerances(x))):
            self._fail(
                ValueError, f"has no orthonormal columns: max |qᴴq − I| is {float(error):.1e}"
            )

    def _tangents(self, f: Any) -> None:
        """Directions: tangent vectors at x, one for every number."""
        x, index = self.points[0], self._index_of_block()
        self._tensor(f)
        self._type(f, x.dtype)
        split = x.dim() - self.manifold.ndim
        self._shape(f, (*x.shape[:split], index.shape[-1], *x.shape[split:]))
        self._finite(f)
        self._judge_tangent(x.unsqueeze(split).expand(f.shape), f, "x")

    def _finite(self, value: Any) -> None:
        self._tensor(value)
        bad = int((~value.isfinite()).sum())
        if bad:
            self._fail(
                ValueError, f"holds {bad} of {value.numel()} entries that are NaN or infinite"
            )

    def _product(self, value: Any) -> None:
        """A finite number for every point."""
        self._finite(value)
        self._number_a_point(value)

    def _length(self, value: Any) -> None:
        """A number from 0 to infinity (between two components) for every point."""
        self._tensor(value)
        self._number_a_point(value)
        if not bool((value >= 0).all()):
            self._fail(ValueError, "is negative or NaN")

    def _index(self, index: Any) -> None:
        self._block(Coordinates(index, disjoint=False))

    def _numbers(self, index: Any) -> None:
        """The k steepest coordinates, no two the same."""
        self._index(index)
        k = index.shape[-1]
        ascending = index.sort(-1).values
        if bool((ascending[..., 1:] == ascending[..., :-1]).any()):
            self._fail(ValueError, "names a coordinate twice")
        self._shape(index, (*self._batch(), k))

    def _grouped(self, index: Any) -> None:
        """The coordinates inside the groups of a block."""
        axes = cast(Groups, self.block).axes
        r = axes.shape[-1]
        self._tensor(index)
        pairs = index.shape[-1:] if self.points[0].is_complex() else (r * (r - 1) // 2,)
        self._shape(index, (*axes.shape[:-1], *pairs))
        self._index(index.flatten(-2))

    def _axes(self, axes: Any) -> None:
        self._tensor(axes)
        self._type(axes, torch.int64)
        index = self._index_of_block()
        two = axes.shape[-1] if axes.dim() and axes.shape[-1] in (1, 2) else 2
        self._shape(axes, (*index.shape, two))
        n = self.manifold.num_axes(self.points[0])
        if bool(((axes < 0) | (axes >= n)).any()):
            self._fail(
                IndexError, f"names an axis that does not exist: there are {n}, numbered from 0"
            )

    def _block(self, block: Any) -> None:
        """A block whose numbers exist, and are disjoint where it says so, on any device."""
        if not isinstance(block, CoordinateBlock):
            self._fail(
                TypeError, f"is a {type(block).__name__}; expected Coordinates, Groups or All"
            )
        x = self.points[0]
        for part in _tensors(block):
            self._type(part, torch.int64)
            trailing = 1 if isinstance(block, Coordinates) else 2
            batch = part.shape[: part.dim() - trailing]
            if part.dim() < trailing or not _broadcasts(batch, self._batch()):
                self._fail(
                    ValueError,
                    f"holds numbers of shape {tuple(part.shape)}, for points of the batch "
                    f"{tuple(self._batch())}",
                )
        try:
            if isinstance(block, Coordinates):
                self.manifold.check_block(x, Coordinates(block.index.cpu(), block.disjoint))
            elif isinstance(block, Groups):
                self.manifold.check_block(x, Groups(block.axes.cpu()))
        except (ValueError, IndexError) as error:
            self._fail(type(error), f"is wrong: {error}")
        self.block = block

    def _times(self, t: Any) -> None:
        """Finite real numbers that broadcast to the shape of the block."""
        self._tensor(t)
        if t.dtype not in (torch.float32, torch.float64, self.points[0].dtype):
            self._fail(TypeError, f"is {t.dtype}; expected float32 or float64")
        if not _broadcasts(t.shape, self._block_shape()):
            self._fail(
                ValueError,
                f"has shape {tuple(t.shape)}; expected one that broadcasts to {self._block_shape()}",
            )
        self._device(t)
        self._finite(t)
        self._skew(t)

    def _derivatives(self, derivatives: Any) -> None:
        self._tensor(derivatives)
        dtype = self.points[0].dtype
        self._type(derivatives, dtype if derivatives.is_complex() else dtype.to_real())
        self._shape(derivatives, self._block_shape())
        self._finite(derivatives)
        self._skew(derivatives)

    def _scales(self, scales: Any) -> None:
        self._finite(scales)
        if not _broadcasts(scales.shape, self._block_shape()):
            self._fail(
                ValueError,
                f"has shape {tuple(scales.shape)}; expected one that broadcasts to "
                f"{self._block_shape()}",
            )
        if bool((scales < 0).any()):
            self._fail(ValueError, "is negative")

    def _count(self, k: Any) -> None:
        total = self.manifold.num_coordinates(self.points[0])
        if not isinstance(k, int) or not 1 <= k <= total:
            self._fail(ValueError, f"is {k!r}; expected an integer from 1 to {total}")

    def _dtype(self, dtype: Any) -> None:
        if not isinstance(dtype, torch.dtype):
            self._fail(TypeError, f"is a {type(dtype).__name__}; expected a torch.dtype")

    def _weights(self, weight: Any) -> None:
        """A symmetric matrix of numbers from 0 on; its diagonal has no meaning."""
        self._tensor(weight)
        d = self.manifold.num_axes(self.points[0])
        self._shape(weight, (*self._batch(), d, d))
        off = weight - torch.diag_embed(weight.diagonal(dim1=-2, dim2=-1))
        if not bool((off >= 0).all()) or not torch.equal(off, off.mT):
            self._fail(ValueError, "is not symmetric, or negative or NaN somewhere")

    def _rule(self, rule: Any) -> None:
        if not callable(rule):
            self._fail(TypeError, f"is a {type(rule).__name__}; expected a function")

    # Their parts

    def _tensor(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            self._fail(TypeError, f"is a {type(value).__name__}; expected a tensor")

    def _type(self, value: Tensor, dtype: torch.dtype) -> None:
        if value.dtype != dtype:
            self._fail(TypeError, f"is {value.dtype}; expected {dtype}")
        self._device(value)

    def _device(self, value: Tensor) -> None:
        if self.first is not None and value.device != self.first.device:
            self._fail(ValueError, f"lives on {value.device}; expected {self.first.device}")

    def _shape(self, value: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(value.shape) != tuple(expected):
            self._fail(ValueError, f"has shape {tuple(value.shape)}; expected {tuple(expected)}")

    def _judge(self, what: str, verdict: tuple[bool, str | None]) -> None:
        ok, reason = verdict
        if not ok:
            self._fail(ValueError, f"{what}{reason}")

    def _judge_tangent(self, x: Tensor, u: Tensor, where: str) -> None:
        x, u = x.detach(), u.detach()
        if self.manifold.ndim and u.numel():
            # A tangent space is linear, so that large vectors can be checked relative to their size.
            trailing = tuple(range(-self.manifold.ndim, 0))
            u = u / u.abs().amax(trailing, keepdim=True).clamp(min=1)
        atol, rtol = self._tolerances(x)
        verdict = self.manifold.check_vector_on_tangent(
            x, u, ok_point=True, explain=True, atol=atol, rtol=rtol
        )
        self._judge(f"is not tangent at {where}: ", verdict)

    def _skew(self, value: Tensor) -> None:
        """Derivatives and times of groups are skew matrices."""
        if not isinstance(self.block, Groups) or value.dim() < 2 or not value.numel():
            return
        error, largest = float((value + value.mH).abs().max()), float(value.abs().max())
        atol, rtol = self._tolerances(value)
        if error > atol + rtol * largest:
            self._fail(ValueError, f"is no batch of skew matrices: max |t + tᵀ| is {error:.1e}")

    def _number_a_point(self, value: Tensor) -> None:
        batch = self.shape[: len(self.shape) - self.manifold.ndim]
        self._shape(value, (*batch, *(1,) * self.manifold.ndim) if self.keepdim else batch)

    def _batch(self) -> torch.Size:
        x = self.points[0]
        return x.shape[: x.dim() - self.manifold.ndim]

    def _index_of_block(self) -> Tensor:
        return cast(Coordinates, self.block).index

    def _block_shape(self) -> tuple[int, ...]:
        """The shape of derivatives that the block prescribes."""
        if isinstance(self.block, Coordinates):
            return (*self._batch(), self.block.index.shape[-1])
        if isinstance(self.block, Groups):
            return (*self._batch(), *self.block.axes.shape[-2:], self.block.axes.shape[-1])
        return (*self._batch(), self.manifold.num_coordinates(self.points[0]))

    def _base(self, at: str) -> tuple[Tensor, str]:
        """The point at which a vector must be tangent, and what it is called."""
        if at in ("x", "y"):
            return self.points["xy".index(at)], at
        if at == "result":
            return self.points[-1], "the point returned"
        x, u = self.points[0], self.vectors[0]
        return getattr(self.manifold, at)(x, u), f"{at}(x, u)"

    def _tolerances(self, x: Tensor) -> tuple[float, float]:
        half = torch.finfo(x.dtype).eps ** 0.5
        atol, rtol = self.wrapper.atol, self.wrapper.rtol
        return half if atol is None else atol, half if rtol is None else rtol


def _noun(law: str) -> str:
    """What to call a value in an error."""
    word = law.partition("@")[0]
    return _NOUNS.get(word, word)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of an argument."""
    parts = (value, getattr(value, "index", None), getattr(value, "axes", None))
    return [part for part in parts if isinstance(part, Tensor)]


def _version(tensor: Tensor) -> int:
    """How often a tensor has been changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False)
    )


# The methods


def _validated(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The method `name` between the checks of what it takes and gives."""
    takes = _LAWS[name].split("->")[0].split()

    @functools.wraps(original, updated=())  # not its __dict__, which says that it is abstract
    def method(self: Validating, *args: Any, **kwargs: Any) -> Any:
        inner = getattr(self.manifold, name)
        signature = inspect.signature(inner)
        if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()) and takes:
            signature = inspect.signature(getattr(self, name))
        bound = signature.bind(*args, **kwargs)
        # By position, since geoopt calls a vector u in one manifold and v in another.
        given = {
            argument: law
            for argument, law in zip(signature.parameters, takes, strict=False)
            if bound.arguments.get(argument) is not None
        }
        call = _Call(self, name, bound.arguments)
        for argument, law in given.items():
            call.check_argument(argument, bound.arguments[argument], law)
            if law == "rule":
                bound.arguments[argument] = call.checked(bound.arguments[argument])
        tensors = [part for argument in given for part in _tensors(bound.arguments[argument])]

        def run() -> Any:
            return inner(*bound.args, **bound.kwargs)

        result = call.in_place(run, tensors) if name.endswith("_") else call.apart(run, tensors)
        for part in result if isinstance(result, tuple) else (result,):
            if isinstance(part, ManifoldTensor) and part.manifold is self.manifold:
                part.manifold = self
        return result

    return method


def _passed_on(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The method `name` of the wrapped manifold."""

    @functools.wraps(original, updated=())
    def method(self: Validating, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.manifold, name)(*args, **kwargs)

    return method


def _install(cls: type, base: type) -> None:
    """Give `cls` what `base` defines, methods and attributes, from the wrapped manifold."""
    for name, member in vars(base).items():
        if name.startswith("__") or name in vars(cls) or name in ("forward", "extra_repr"):
            continue
        if inspect.isfunction(member):
            setattr(cls, name, (_validated if name in _LAWS else _passed_on)(name, member))
        elif not name.startswith("_"):
            setattr(cls, name, property(operator.attrgetter(f"manifold.{name}")))
    abc.update_abstractmethods(cls)


_install(Validating, Manifold)
_install(_ValidatingCoordinates, CoordinateManifold)
