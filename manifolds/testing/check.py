"""The check of a manifold: all laws, on inputs that Hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import CoordinateManifold
from .case import Case, DoesNotApply, Found, Setting
from .laws import LAWS, Law

__all__ = ["LawBroken", "Report", "check_manifold"]


class LawBroken(AssertionError):  # noqa: N818
    """A manifold breaks one of the laws; the message says which, for what input, and by how much.

    Attributes
    ----------
    law : str
        Name of the law.
    """

    def __init__(self, law: str, message: str) -> None:
        super().__init__(message)
        self.law = law


@dataclass(frozen=True)
class Report:
    """What :func:`check_manifold` has checked; print it.

    Attributes
    ----------
    manifold : str
        The manifold, as it prints itself.
    shape : tuple of int
        Shape of its points.
    checked : tuple of str
        The laws that hold, those of blocks once for every kind of block.
    skipped : dict
        The laws that were not checked, with the reason.
    """

    manifold: str
    shape: tuple[int, ...]
    checked: tuple[str, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        hold = "1 law holds" if len(self.checked) == 1 else f"{len(self.checked)} laws hold"
        lines = [f"{self.manifold}, points of shape {self.shape}: {hold}"]
        for reason in dict.fromkeys(self.skipped.values()):
            names = [name for name, why in self.skipped.items() if why == reason]
            lines += [f"  not checked, because {reason}:", *(f"    {name}" for name in names)]
        return "\n".join(lines)


def check_manifold(
    manifold: CoordinateManifold,
    shape: Sequence[int],
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    batches: Sequence[tuple[int, ...]] = ((), (3,), (2, 1)),
    device: torch.device | str = "cpu",
    cost: Callable[[Tensor], Tensor] | None = None,
    max_examples: int = 10,
    laws: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> Report:
    """Check every law of a manifold with coordinates on random inputs.

    Parameters
    ----------
    manifold : CoordinateManifold
        The geometry.
    shape : sequence of int
        Shape of one point. A small one is as good as a large one, and faster: all of its coordinates
        and a basis of the ambient space are looked at.
    dtypes : sequence of torch.dtype, optional
        Types of points; by default those that the manifold says it works in. Laws about velocities
        and slopes are checked by finite differences, in the most precise of them.
    batches : sequence of tuple of int
        Batch shapes to draw from, the simplest first.
    device : torch.device or str
        Where the points are.
    cost : callable, optional
        A smooth function of points, from ``(*batch, *shape)`` to ``(*batch)``. By default it is a random
        one of the ambient space. Where a point has many representatives, as on a Grassmann manifold,
        give one that does not depend on the representative. Then points count as equal if they agree
        in it, before and after random moves, and so do velocities if their projections agree.
    max_examples : int
        Inputs for every law, and for every kind of block where the law is about blocks.
    laws, skip : sequence of str, optional
        Names of the laws to check, and of those to leave out; :data:`LAWS` has them all.

    Returns
    -------
    Report
        The laws that hold, and those that were not checked with the reason: for example that a
        method raises ``NotImplementedError``.

    Raises
    ------
    LawBroken
        For the first law that does not hold. The same call finds the same input again.
    ImportError
        Without Hypothesis.
    TypeError
        If the manifold has no coordinates.
    ValueError
        If `shape` is not that of a point, or there is no law of a name.

    Examples
    --------
    >>> from givens.manifolds import OrthogonalGroup
    >>> from givens.manifolds.testing import check_manifold
    >>> print(check_manifold(OrthogonalGroup(), (3, 3), laws=["moves form a group"]))
    OrthogonalGroup manifold, points of shape (3, 3): 2 laws hold
    """
    if not isinstance(manifold, CoordinateManifold):
        raise TypeError(
            f"{manifold!r} has no coordinates; check_manifold needs a CoordinateManifold"
        )
    shape = tuple(shape)
    if len(shape) != manifold.ndim:
        raise ValueError(
            f"a point of {manifold} has {manifold.ndim} dimensions, the shape {shape} has "
            f"{len(shape)}; batch dimensions go into batches=…"
        )
    fits, reason = manifold.check_point(torch.empty(shape, device="meta"), explain=True)
    if not fits:
        raise ValueError(f"{shape} is no shape of a point: {reason}")
    for name in [*(laws or ()), *skip]:
        if name not in LAWS:
            raise ValueError(f"there is no law {name!r}; choose from {[*LAWS]}")
    setting = Setting(
        manifold,
        shape,
        tuple(dtypes or manifold.dtypes),
        tuple(batches),
        torch.device(device),
        cost,
        max_examples,
    )
    checked: list[str] = []
    skipped: dict[str, str] = {}
    for name in LAWS if laws is None else laws:
        for kind in LAWS[name].each:
            label = name if kind is None else f"{name} ({kind} blocks)"
            reason = "left out by skip=" if name in skip else _run(setting, LAWS[name], kind)
            if reason is None:
                checked.append(label)
            else:
                skipped[label] = reason
    return Report(str(manifold), shape, tuple(checked), skipped)


def _run(setting: Setting, law: Law, kind: str | None) -> str | None:
    """Check a law; return why there was nothing to check, if there was nothing."""
    try:
        import hypothesis
        from hypothesis import strategies as st
    except ImportError as error:
        raise ImportError(
            "check_manifold draws its inputs with Hypothesis: pip install 'givens[test]'"
        ) from error

    dtypes, batches = setting.dtypes, setting.batches
    if law.precise:
        dtypes = (setting.widest,)
        if torch.finfo(setting.widest).eps > 1e-12:
            return "finite differences need float64"
    if law.batched:
        batches = tuple(batch for batch in batches if batch)
        if not batches:
            return "no shape of a batch is given"
    reasons: list[str] = []
    passed = 0

    # Always the same inputs; derandomize=True would read and parse this file for every law.
    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=setting.max_examples,
        database=None,
        deadline=None,
        verbosity=hypothesis.Verbosity.quiet,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        dtype=st.sampled_from(dtypes),
        batch=st.sampled_from(batches),
        size=st.sampled_from([1.0, 0.1, 1e-3, 3.0]),
        seed=st.integers(0, 2**32 - 1),
    )
    def attempt(dtype: torch.dtype, batch: tuple[int, ...], size: float, seed: int) -> None:
        nonlocal passed
        case = Case(setting, dtype, batch, size, seed, kind)
        cause = None
        try:
            # Random points come from the global generator.
            devices = [setting.device] if setting.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                torch.default_generator.manual_seed(seed)
                if devices:
                    torch.cuda.manual_seed(seed)
                law.check(case)
        except (DoesNotApply, NotImplementedError) as why:
            reasons.append(_reason(why))
            return
        except Found as found:
            message = str(found)
        except Exception as error:
            # Its traceback begins at the law: what is above is this machinery.
            inner = error.__traceback__.tb_next if error.__traceback__ else None
            cause, message = error.with_traceback(inner), f"{type(error).__name__}: {error}"
        else:
            passed += 1
            return
        raise LawBroken(law.name, _explain(law, case, message)) from cause

    try:
        attempt()
    except LawBroken as broken:
        # A new one, without the trace of how it was found.
        raise LawBroken(broken.law, str(broken)) from broken.__cause__
    return None if passed or not reasons else reasons[0]


def _reason(why: Exception) -> str:
    """Why a law does not apply: in its own words, or that a method is not there."""
    if str(why):
        return str(why)
    trace = why.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_name if trace else 'a method'} is not implemented"


def _explain(law: Law, case: Case, message: str) -> str:
    shape = case.setting.shape
    blocks = "" if case.kind is None else f" ({case.kind} blocks)"
    story = "".join(
        f"\n           {name} {' '.join(str(value).split())}" for name, value in case.story.items()
    )
    return (
        f"{case.manifold} breaks a law: {law.name}{blocks}\n"
        f"  law:     {law.statement}\n"
        f"  found:   {message}\n"
        f"  usually: {law.hint}\n"
        f"  input:   points of shape {shape}, batch {case.batch}, {case.dtype}, "
        f"size {case.size:g}, seed {case.seed}{story}\n"
        f"  again:   check_manifold(…, {shape}, laws=[{law.name!r}])"
    )
