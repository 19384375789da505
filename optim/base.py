"""What SRGD and SRCD have in common: a torch optimizer's habits, checks, and staying on the manifold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..manifolds import CoordinateBlock, CoordinateManifold, Coordinates, Groups
from ..manifolds.backend import exact_products, readable, recorded
from ..manifolds.rules import GradientRule
from ..manifolds.shards import check_sharding, is_sharded, local
from .finite import FiniteGuard, largest, longest, raise_not_finite, raise_overflow
from .line import Line
from .line_search import LineSearch
from .objective import Objective
from .parameters import local_gradient, manifold_of, mark, name_of
from .replicas import Replicas, digest
from .restoration import moves
from .rounds import Rounds, group_coordinates, move_, step_scale, together
from .saved import STRATEGIES, checked_groups, describe
from .scaling import Scaling
from .shards import ParameterState, add_over_shards
from .times import Store, nothing, scaled, times
from .update import Change, Update, computed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ManifoldOptimizer"]

# Whether this torch's compiler follows a step; that of 2.6 fails at it, those in between were not tried.
_COMPILES = torch.__version__ >= "2.13"


class ManifoldOptimizer(Optimizer):
    """A step is all or nothing: every update is prepared, computed and checked, then all are made.

    After they are prepared, the processes of a distributed run average the derivatives.

    Subclasses say how the update of one parameter is prepared.

    Parameters
    ----------
    params : iterable
        Parameters, or dictionaries of parameter groups, as for every torch optimizer.
    defaults : dict
        Default options of a group.
    strict : bool
        On an accelerator, whether to wait for the device at every step to know that no derivative is NaN
        or infinite before anything is changed. (On a CPU this is always so.)
    capturable : bool
        Whether steps may be recorded in a CUDA graph: what they count is then on the device, and
        :meth:`restore` takes rounding away.
    process_group : ProcessGroup, optional
        The processes over which the derivatives of manifold parameters are averaged. By default their
        gradients are taken to be the same in all processes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        strict: bool,
        capturable: bool,
        process_group: ProcessGroup | None,
    ) -> None:
        self._guard = FiniteGuard()
        # Not an option of groups: those torch.compile takes for capturable, without a word.
        self._capturable = capturable
        self._warm = False
        self._replicas = None if process_group is None else Replicas(process_group)
        self._compared = False
        self._marks: dict[Tensor, tuple[object, ...]] = {}
        super().__init__(params, {**defaults, "strict": strict})

    def __getstate__(self) -> dict[str, Any]:
        if self._replicas is not None:
            raise TypeError(
                f"this {type(self).__name__} belongs to a process group, so it cannot be copied or pickled; "
                "build another one and load this one's state_dict()"
            )
        return {**super().__getstate__(), "_capturable": self._capturable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called to load a state, too.
        super().__setstate__(state)
        self._guard = FiniteGuard()
        self._warm = False
        self._replicas = getattr(self, "_replicas", None)
        self._compared = False
        self._marks = getattr(self, "_marks", {})

    def _prepare(self, number: int, group: dict[str, Any], p: Tensor, grad: Tensor) -> Update:
        """Prepare the update of one parameter without changing anything."""
        raise NotImplementedError

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError or TypeError if the options of a group are out of range."""
        scaling = group["scaling"]
        if scaling is not None and (isinstance(scaling, type) or not isinstance(scaling, Scaling)):
            raise TypeError(
                f"scaling={scaling!r}: expected an object with a method scale(derivatives, moments), such "
                "as Adam() or RMSProp()"
            )
        if not isinstance(group["seed"], int):
            raise TypeError(f"seed={group['seed']!r}: expected an integer")
        search = group["line_search"]
        if search is not None and (isinstance(search, type) or not isinstance(search, LineSearch)):
            raise TypeError(
                f"line_search={search!r}: expected an object with a method search(line), such as Armijo() or "
                "Trigonometric()"
            )
        if search != self.param_groups[0]["line_search"]:
            raise ValueError(
                f"line_search={search} in one group and {self.param_groups[0]['line_search']} in another: "
                "all parameters share one search"
            )
        if self._capturable:
            for name, what in (("strict", "waits for the device"), ("line_search", "reads losses")):
                if group[name]:
                    raise ValueError(
                        f"capturable=True and {name}={group[name]}: a step that {what} cannot be recorded"
                    )
        lr = group["lr"]
        if isinstance(lr, Tensor) and not readable(lr):
            return
        if not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"lr={float(lr)}: expected a finite learning rate, 0 or more")

    def _check_parameter(self, group: dict[str, Any], p: Tensor) -> None:
        """Raise ValueError or TypeError if a parameter cannot be optimized with a group's options."""
        manifold = manifold_of(p)
        if is_sharded(p) and self._capturable:
            raise TypeError(
                f"the sharded parameter of shape {tuple(p.shape)} cannot have capturable=True: the processes "
                "agree on the host on what is finite"
            )
        if self._capturable and isinstance(group["lr"], Tensor) and group["lr"].device != p.device:
            raise ValueError(
                f"lr is a tensor on {group['lr'].device} and a parameter of shape {tuple(p.shape)} on "
                f"{p.device}: a step that is recorded there would never see it change; put it there"
            )
        if manifold is None:
            if is_sharded(p):
                raise TypeError(
                    f"the sharded parameter of shape {tuple(p.shape)} has no manifold: sharding loses it. "
                    "Call givens.manifolds.constrain after fully_shard; or give a parameter without a "
                    "constraint to an optimizer of torch.optim"
                )
            return
        if is_sharded(p):
            check_sharding(p, manifold.ndim)
            if group["line_search"] is not None:
                raise TypeError(
                    f"the sharded parameter of shape {tuple(p.shape)} cannot have line_search="
                    f"{group['line_search']}: no process has the whole step. Give a schedule of lr instead"
                )
        ok, reason = manifold.check_point_on_manifold(local(p.detach()), explain=True)
        if not ok:
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)}, {p.dtype}, is no point of {manifold}: {reason}"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, after checking its options and that its points lie on their manifolds."""
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            self._check_options(group)
            for p in group["params"]:
                self._check_parameter(group, p)
        except Exception:
            self.param_groups.pop()
            raise
        for p in group["params"]:
            self._marks[p] = mark(p)
            if self._capturable and self._counts(group, p):
                # Now: of a tensor that a compiled step makes, its compiler takes the value for known, and
                # overflows where random numbers are made of it.
                ParameterState(self.state, p)["step"] = self._steps(p)
        self._compared = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model, with gradients, and returns the loss. With `line_search` it is needed,
            and called again at every trial point.

        Returns
        -------
        The closure's loss, or None.

        Raises
        ------
        FloatingPointError
            If a derivative that the step reads is NaN or infinite, or the step overflows: a time is longer
            than ε√max of the parameter's type, a new value or an average that a scaling keeps is not
            finite. On a CPU, and with ``strict=True``, nothing has been changed then; otherwise see
            :meth:`check_finite`. With `line_search` also if the loss is NaN or infinite where the step
            begins; nothing has been changed.
        TypeError
            With `line_search`, if there is no closure, or it returns no number. With `capturable`, if a
            selection reads numbers to know what it does next. Nothing has been changed.
        RuntimeError
            If a gradient is sparse, or a parameter has lost its manifold; or, with a process group, if a
            manifold parameter has no gradient, or, at the first step, if the processes differ (see
            :meth:`check_replicas`); or in a CUDA graph, without `capturable` or as the first step of all.
            Nothing has been changed.
        ValueError
            If something else has written values into a parameter that are no point of its manifold, or
            `line_search` cannot take this step. Nothing has been changed.
        """
        self._check_capture()
        if torch.compiler.is_compiling() and not (self._capturable and _COMPILES):
            # What counts on the host would be compiled anew at every step.
            return torch.compiler.disable(self._step)(closure)
        return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        """Do one step, whoever calls."""
        search = self.param_groups[0]["line_search"]
        if search is not None:
            self._check_searchable(search, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._guard.poll()
        if self._replicas is not None:
            self._check_gradients()
            if not self._compared:
                self.check_replicas()
        parameters, updates = [], []
        for number, group, p in self._parameters():
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"the gradient of {name_of(number, group, p)} has layout {p.grad.layout}; "
                    f"{type(self).__name__} needs a dense one (sparse=False in an embedding)"
                )
            self._check_written(number, group, p)
            parameters.append((number, group, p))
            updates.append(self._prepare(number, group, p, local_gradient(p)))
        self._average(updates)
        self._check_finite(parameters, updates)
        if search is not None and closure is not None:
            self._search(search, closure, loss, parameters, updates)
        else:
            changes = computed(updates, 1.0)
            self._check_overflow(parameters, changes)
            self._make(parameters, changes)
        self._guard.publish()
        self._warm = True
        return loss

    @torch.no_grad()
    def restore(self, steps: int = 1) -> None:
        """Take rounding away where that is due; after every capturable step, or every few.

        Without ``capturable=True`` steps do this themselves, and there is nothing to do. Where one is
        repeated by a CUDA graph nobody on the host knows of it, so that it has to be said. Not to be
        recorded itself. Also raises what :meth:`check_finite` would raise, if that is known without waiting.

        Parameters
        ----------
        steps : int
            How many steps there have been since the last call.

        Raises
        ------
        ValueError
            If `steps` is below 0.
        RuntimeError
            In a CUDA graph.
        FloatingPointError
            If a step met a NaN or infinity.
        """
        if steps < 0:
            raise ValueError(f"steps={steps}: expected 0 or more")
        if torch.compiler.is_compiling():
            torch.compiler.disable(self.restore)(steps)
            return
        if self._captured():
            raise RuntimeError(
                "restore() counts on the host, where a graph does not: call it after the replay"
            )
        self._guard.publish()
        self._guard.poll()
        if not self._capturable:
            return
        for _, group, p in self._parameters():
            manifold, state = manifold_of(p), ParameterState(self.state, p)
            if isinstance(manifold, CoordinateManifold) and "moves" in state:
                with exact_products():
                    self._count(group, p, manifold, steps * state["moves"])
                self._marks[p] = mark(p)

    def _captured(self) -> bool:
        """Whether a CUDA graph records what is called now."""
        first = next((p for group in self.param_groups for p in group["params"]), None)
        return not torch.compiler.is_compiling() and first is not None and recorded(first)

    def _check_capture(self) -> None:
        """Raise before a step is recorded that would not be repeated as it is meant."""
        if not self._captured():
            return
        if not self._capturable:
            raise RuntimeError(
                f"this {type(self).__name__} counts its steps on the host, where a graph does not; build it "
                "with capturable=True"
            )
        if not self._warm:
            raise RuntimeError(
                f"the first step of this {type(self).__name__} is being recorded, and would begin anew at "
                "every replay: do some steps before (on a side stream, as for every CUDA graph)"
            )

    def _make(
        self,
        parameters: list[tuple[int, dict[str, Any], Tensor]],
        changes: list[Change],
        *,
        moving: bool = True,
    ) -> None:
        """Make changes, or, of points that stay, those of the state alone."""
        with exact_products():
            for (_, _, p), change in zip(parameters, changes, strict=True):
                if moving:
                    change.move()
                change.keep()
                if moving:
                    change.restore()
                if not torch.compiler.is_compiling():
                    self._marks[p] = mark(p)

    def _check_searchable(self, search: LineSearch, closure: Callable[[], Any] | None) -> None:
        """Raise before a line search, which needs a closure and one objective."""
        if closure is None:
            raise TypeError(
                f"line_search={search} evaluates the objective at several points: call step(closure) with a "
                "function that clears the gradients, computes the loss, calls its backward() and returns it"
            )
        if len({bool(group["maximize"]) for group in self.param_groups}) > 1:
            raise ValueError(
                "a line search needs one objective: maximize is True in one group and False in another"
            )

    def _search(
        self,
        search: LineSearch,
        closure: Callable[[], Any],
        loss: Any,
        parameters: list[tuple[int, dict[str, Any], Tensor]],
        updates: list[Update],
    ) -> None:
        """Take as much of a step as a line search says."""
        maximize = bool(self.param_groups[0]["maximize"])
        objective = Objective(
            closure,
            maximize=maximize,
            replicas=self._replicas,
            device=self.param_groups[0]["params"][0].device,
        )
        value = objective.of(loss)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the closure returns {-value if maximize else value} where the step begins, so {search} "
                "has nothing to compare with; parameters and state are unchanged"
            )

        every = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in every]
        line = Line(
            [p for _, _, p in parameters],
            updates,
            objective,
            value=value,
            last=self.param_groups[0].get("factor", 1.0),
        )
        try:
            # What a closure clears or adds up at a trial point is not what the step reads.
            for p in every:
                p.grad = None
            trial = search.search(line)
        finally:
            for p, gradient in zip(every, gradients, strict=True):
                p.grad = gradient
            for _, _, p in parameters:
                self._marks[p] = mark(p)
        changes = computed(updates, 0.0) if trial is None else trial.changes
        self._check_overflow(parameters, changes)
        self._make(parameters, changes, moving=trial is not None)
        if trial is not None and trial.factor is not None:
            for group in self.param_groups:
                group["factor"] = trial.factor

    def _check_written(self, number: int, group: dict[str, Any], p: Tensor) -> None:
        """Check a parameter again if something else has written to it since the last step."""
        if torch.compiler.is_compiling():
            return
        known, now = self._marks.get(p), mark(p)
        if now == known:
            return
        if known is not None and known[0] is not None and now[0] is None:
            raise RuntimeError(
                f"{name_of(number, group, p)} was on {known[0]} when the optimizer met it and is a plain "
                "one now: converting a module with swapped parameters (torch.__future__) does that. "
                "Convert first, then constrain and build the optimizer"
            )
        try:
            self._check_parameter(group, p)
        except ValueError as error:
            raise ValueError(
                f"{name_of(number, group, p)} was written to since the last step. {error}"
            ) from error
        self._marks[p] = now

    def check_finite(self) -> None:
        """Wait for accelerators, and raise FloatingPointError if a step on one met a NaN or infinity.

        Without ``strict=True`` a step on an accelerator does not wait to look at its derivatives: a
        coordinate whose derivative is not finite, or too large for a step, stays where it is, and so does
        everything in the steps that follow, until a step or this method finds out. This clears the mark.
        """
        self._guard.check()

    def _check_finite(
        self, parameters: list[tuple[int, dict[str, Any], Tensor]], updates: list[Update]
    ) -> None:
        """Raise FloatingPointError, in all processes, if derivatives that the host checks are not finite."""
        counts = []
        for (_, group, p), update in zip(parameters, updates, strict=True):
            read = update.derivatives
            if read is None or not self._checked_by_host(group, p) or math.isfinite(largest(read)):
                counts.append(0)
            else:
                counts.append(int((~read.isfinite()).sum()))
        counts = add_over_shards(counts, [p for _, _, p in parameters])
        for count, (number, group, p), update in zip(counts, parameters, updates, strict=True):
            if count and update.derivatives is not None:
                raise_not_finite(count, update.derivatives.numel(), name_of(number, group, p))

    def _check_overflow(
        self, parameters: list[tuple[int, dict[str, Any], Tensor]], changes: list[Change]
    ) -> None:
        """Raise FloatingPointError, in all processes, if a change that the host checks overflows."""
        counts = add_over_shards(
            [change.refused for change in changes], [p for _, _, p in parameters]
        )
        for count, (number, group, p), change in zip(counts, parameters, changes, strict=True):
            if count and change.made is not None:
                raise_overflow(count, change.made, name_of(number, group, p))

    def check_replicas(self) -> None:
        """Raise if the processes of the process group hold different parameters, options or state.

        Called at the first step, and at the first one after a state was loaded or a group was added; it
        may be called at any time, by all processes. Sends a digest of every tensor, O(size) to compute.

        Raises
        ------
        RuntimeError
            On all processes, naming what differs.
        """
        if self._replicas is not None:
            self._replicas.compare(self._fingerprint())
            self._compared = True

    def _fingerprint(self) -> dict[str, str]:
        """Describe all that the processes have to agree on."""
        description = {}
        for number, group, p in self._parameters():
            if is_sharded(p):
                continue
            name = name_of(number, group, p)
            description[f"the value of {name}"] = digest(p)
            for option, value in group.items():
                if option != "params":
                    value = value.tolist() if isinstance(value, Tensor) else value
                    description[f"{option} of {name}"] = describe(value)
            for key, value in self.state[p].items() if p in self.state else ():
                value = digest(value) if isinstance(value, Tensor) else repr(value)
                description[f"state {key!r} of {name}"] = value
        return description

    def _check_gradients(self) -> None:
        """Raise before any message where a process would be waited for in vain."""
        for number, group, p in self._parameters():
            if p.requires_grad and p.grad is None and self._averages(p):
                raise RuntimeError(
                    f"{name_of(number, group, p)} has no gradient in this process, and the others would "
                    "wait for it: with a process group every process needs one; let the loss depend on the "
                    "parameter, if by 0 * p.sum(), or freeze it everywhere by requires_grad_(False)"
                )

    def _averages(self, p: Tensor) -> bool:
        """Whether this optimizer averages over processes what it reads of a parameter's gradient.

        Who shards parameters averages their gradients.
        """
        return self._replicas is not None and manifold_of(p) is not None and not is_sharded(p)

    def _average(self, updates: list[Update]) -> None:
        """Average the derivatives that each process has of its own, in one message."""
        own = [update for update in updates if update.own]
        if self._replicas is not None and own:
            averages = self._replicas.average_all(
                [u.derivatives for u in own if u.derivatives is not None]
            )
            for update, average in zip(own, averages, strict=True):
                update.derivatives = average

    def _prepare_block(
        self,
        group: dict[str, Any],
        p: Tensor,
        grad: Tensor,
        manifold: CoordinateManifold,
        block: CoordinateBlock | Rounds,
        lr: float | Tensor,
        derivatives: Callable[[], Tensor],
        *,
        own: bool = False,
        ranked: bool = False,
    ) -> Update:
        """Prepare a step along a block of coordinates; `lr` has the sign of the step."""
        x, state = local(p), ParameterState(self.state, p)
        step = self._steps(p)
        by_host = self._checked_by_host(group, p)
        read = derivatives() if by_host or own else None
        numbers, joined = None, together(block)
        if group["scaling"] is not None and isinstance(block, Groups | Rounds):
            # Now, because a geometry may refuse, and nothing has been changed yet.
            numbers = group_coordinates(manifold, x, block)
        halved = own and isinstance(joined, Groups)  # half of a skew matrix says it all
        if read is not None and halved:
            read = manifold.group_values(x, read)

        def rule(derivatives: Tensor, scale: Tensor) -> tuple[Tensor, Store]:
            return times(
                derivatives,
                scale,
                lr,
                group["scaling"],
                manifold=manifold,
                x=x,
                block=joined,
                numbers=numbers,
                state=state,
                step=step,
            )

        guarded = self._guard.guard(rule, grouped=isinstance(joined, Groups))
        descent = guarded
        if not by_host and group["scaling"] is None:
            limit, flag = longest(x.dtype), self._guard.flag(x.device)
            descent = GradientRule(lr, limit, flag, guarded)

        def whole(read: Tensor) -> Tensor:
            if halved and isinstance(joined, Groups):
                return manifold.group_matrices(x, read, joined.axes.shape[-1])
            return read

        def count() -> None:
            self._count_step(p, step)

        def restore() -> None:
            made = moves(together(block), manifold.restore_period(x), ranked=ranked)
            self._restore(group, p, manifold, made)

        def unchecked(read: Tensor | None, _: float) -> Change:
            def descend() -> None:
                start = None if manifold.compact else x.clone()
                if read is None and not isinstance(block, Rounds):
                    manifold.descend_(x, grad, block, descent)
                else:
                    slopes = derivatives() if read is None else whole(read)
                    move_(manifold, x, block, guarded(slopes, step_scale(manifold, x, block)))
                if start is not None:
                    x.copy_(torch.where(self._guard.admit(x, x).all(), x, start))

            return Change(descend, count, restore)

        def follow(read: Tensor, t: Tensor, direction: Tensor, store: Store) -> Change:
            made, limit, end = t, longest(t.dtype), None
            if not manifold.compact and bool((t.abs() < limit).all()):
                # Times that are short enough may still take a point to where numbers end.
                made = end = move_(manifold, x.clone(), block, t)
                limit = math.inf

            def move() -> None:
                if end is None:
                    move_(manifold, x, block, t)
                else:
                    x.copy_(end)

            def keep() -> None:
                store(None)
                count()

            def slope() -> float:
                # The derivatives are those of what falls, or of what rises.
                downwards = math.copysign(1.0, -float(lr))
                first, second = whole(read), direction
                if isinstance(joined, Groups):
                    first, second = (manifold.group_values(x, m) for m in (first, second))
                return downwards * inner(first, second)

            return Change(move, keep, restore, made, limit, slope)

        def checked(read: Tensor | None, factor: float) -> Change:
            assert read is not None  # `derivatives` has been called
            t, store = rule(whole(read), step_scale(manifold, x, block))
            return follow(read, t if factor == 1 else factor * t, t, store)

        def turn(read: Tensor | None, angle: float) -> Change:
            assert read is not None
            assert manifold.period is not None
            radian = torch.full_like(read, manifold.period / (2 * math.pi), dtype=torch.float64)
            return follow(read, angle * radian, radian, nothing)

        alone = isinstance(block, Coordinates) and read is not None and read.numel() == 1
        turns = by_host and alone and manifold.period is not None and group["scaling"] is None
        return Update(checked if by_host else unchecked, read, own, turn if turns else None)

    def _prepare_unconstrained(
        self, group: dict[str, Any], p: Tensor, grad: Tensor, lr: float | Tensor
    ) -> Update:
        """Prepare the step of a parameter without a manifold; `lr` has the sign of the step."""
        by_host = self._checked_by_host(group, p)
        scaling = group["scaling"]
        x, state = local(p), ParameterState(self.state, p)

        def compute(_: Tensor | None, factor: float) -> Change:
            direction, store = grad, None
            if scaling is not None:
                step = self._steps(p)
                direction, store = scaled(grad, scaling, state=state, step=step)
            rate = factor * lr
            new = x + rate * direction if isinstance(rate, Tensor) else x.add(direction, alpha=rate)
            admitted = None

            def move() -> None:
                nonlocal admitted
                admitted = None if by_host else self._guard.admit(grad, new).all()
                x.copy_(new if admitted is None else torch.where(admitted, new, x))

            def keep() -> None:
                if store is not None:
                    store(admitted)
                    self._count_step(p, step)

            def slope() -> float:
                return -abs(float(lr)) * inner(grad, direction)

            return Change(move, keep, made=new if by_host else None, slope=slope)

        return Update(compute, grad if by_host else None)

    def _checked_by_host(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether the derivatives of a parameter are checked before anything is changed.

        Those of a sharded one always are: the processes have to agree. A line search waits for a device
        anyway. Of a capturable step the host knows nothing.
        """
        if self._capturable:
            return False
        waits = bool(group["strict"]) or group["line_search"] is not None
        return p.device.type == "cpu" or waits or is_sharded(p)

    def _counts(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether the steps of a parameter are counted."""
        return group["scaling"] is not None

    def _steps(self, p: Tensor) -> int | Tensor:
        """Return how many steps a parameter has had: a tensor where they may be recorded."""
        step = ParameterState(self.state, p).get("step", 0)
        if not self._capturable:
            return int(step)
        if not isinstance(step, Tensor):
            return torch.full((), step, dtype=torch.int64, device=p.device)
        return step.to(p.device)

    def _count_step(self, p: Tensor, step: int | Tensor) -> None:
        """Count a step; in place what is on the device."""
        ParameterState(self.state, p)["step"] = (
            step.add_(1) if isinstance(step, Tensor) else step + 1
        )

    def _restore(
        self, group: dict[str, Any], p: Tensor, manifold: CoordinateManifold, made: int
    ) -> None:
        """Keep a point on its manifold, after a step that counts for so many moves of one coordinate.

        Once there were so many that the cost, spread over them, is of the order of their own, the manifold
        takes rounding away. Counted on the host, from shapes.
        """
        if self._capturable:
            ParameterState(self.state, p)["moves"] = made  # of a step; `restore` counts the steps
        else:
            self._count(group, p, manifold, made)

    def _count(
        self, group: dict[str, Any], p: Tensor, manifold: CoordinateManifold, made: int
    ) -> None:
        """Count moves, and put the point back where there were enough of them."""
        x, state = local(p), ParameterState(self.state, p)
        state["moved"] = state.get("moved", 0) + made
        if state["moved"] >= manifold.restore_period(x):
            if self._checked_by_host(group, p):
                manifold.restore_(x)
            else:
                restored = manifold.restore_(x.clone())
                x.copy_(torch.where(self._guard.flag(x.device), x, restored))
            state["moved"] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data, which ``torch.load`` reads with its defaults."""
        state = super().state_dict()
        for group in state["param_groups"]:
            for name in STRATEGIES & group.keys():
                group[name] = describe(group[name])
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned.

        Raises
        ------
        ValueError
            If the state is another optimizer's, was saved with another selection, scaling or line search
            or for parameters of other shapes, or has an option out of range. Nothing is changed then.
        """
        groups = state_dict["param_groups"]
        loaded = checked_groups(state_dict, self)
        for group in loaded:
            self._check_options(group)
        strategies = [
            {name: group[name] for name in STRATEGIES & group.keys()} for group in self.param_groups
        ]
        super().load_state_dict({**state_dict, "param_groups": loaded})
        for saved, group, own in zip(groups, self.param_groups, strategies, strict=True):
            group.update(own)  # not torch's copies
            for key, p in zip(saved["params"], group["params"], strict=False):
                for name, value in state_dict["state"].get(key, {}).items():
                    if isinstance(value, Tensor):  # torch casts it to the parameter's type
                        self.state[p][name] = value.to(p.device, copy=True)
        self._compared = False

    def _parameters(self) -> Iterator[tuple[int, dict[str, Any], Tensor]]:
        number = 0
        for group in self.param_groups:
            self._check_options(group)
            for p in group["params"]:
                yield number, group, p
                number += 1


def inner(u: Tensor, v: Tensor) -> float:
    """Real inner product of two vectors."""
    wide = torch.promote_types(u.dtype, torch.float64)
    return float((u.to(wide).conj() * v).real.sum())
