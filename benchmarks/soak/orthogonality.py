"""Distance from the orthogonal group over long runs: every selection, every scaling, d from 2 to 1024.

A row is a batch of points with one gradient each, so that it meets all kinds of them: random ones; the
same one again and again; one that turns the same two columns by the same angle at every step; one and
its opposite in turns; and one that is 0 but for three columns. The learning rate changes every
thousand steps (from d = 64 on every ten, for there are fewer), from angles that are lost in rounding to
those of many turns. max |WᵀW − I| is computed in float64 at its worst moments, after the steps that
come before a restoration, and besides as often as a quarter of the time allows. The signs of the
determinants are compared at the end of every turn; as long as WᵀW is near I none can change.

Rows take turns until each has done its steps or the time is over. The results so far are printed after
every round, and written every minute. Rows of the set "long" do a million steps in one go; "wide" has
every selection with every scaling, "large" has large matrices, "float64" that type.

With --resume the rows go on where the last run with the same --output left them.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from geoopt import ManifoldParameter
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))

from report import console, output_option, show_machine, show_table, write_json

from givens.manifolds import OrthogonalGroup
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    AxisRMSProp,
    Block,
    Capture,
    Cyclic,
    GaussSouthwell,
    Grouping,
    Growing,
    Matching,
    Momentum,
    RMSProp,
    Scaling,
    Selection,
    Uniform,
)
from givens.rnn.atomic import atomic_write

METHODS: dict[str, Selection | None] = {
    "Uniform()": Uniform(),
    "Cyclic()": Cyclic(),
    "GaussSouthwell()": GaussSouthwell(),
    "Block(fraction=0.05)": Block(fraction=0.05),
    "Block(size=1, disjoint=True)": Block(size=1, disjoint=True),
    "Matching('random')": Matching("random"),
    "Matching('round-robin')": Matching("round-robin"),
    "Matching(rounds=4)": Matching(rounds=4),
    "Matching('greedy')": Matching("greedy"),
    "Grouping(4, 'random')": Grouping(4, "random"),
    "Grouping(4, 'round-robin')": Grouping(4, "round-robin"),
    "Grouping(4, 'greedy')": Grouping(4, "greedy"),
    "Growing(every=1000)": Growing(every=1000),
    "Capture()": Capture(),
    "SRGD": None,
}
SCALINGS = (None, Momentum(), RMSProp(), Adam(), AxisRMSProp())
KINDS = ("random", "constant", "pair", "alternating", "sparse")
RATES = (1e-5, 1.0, 1e-7, 1000.0, 1e-3, 10.0, 1e-6, 0.1)
LIMITS = {torch.float32: 1e-6, torch.float64: 1e-13}
SETS = {"long": 120.0, "wide": 5.0, "large": 5.0, "float64": 3.0}  # and the seconds of a turn


class Timed(OrthogonalGroup):
    """The orthogonal group; it measures what restorations take."""

    seconds = 0.0

    def restore_(self, x: Tensor) -> Tensor:
        """Restore the points."""
        start = time.perf_counter()
        super().restore_(x)
        self.seconds += time.perf_counter() - start
        return x


@dataclass
class Result:
    """What is known of a row."""

    set: str
    method: str
    scaling: str
    d: int
    dtype: str
    points: int
    wanted: int
    steps: int = 0
    worst: float = 0.0
    worst_step: int = 0
    worst_kind: str = ""
    seconds: float = 0.0
    restoring: float = 0.0
    determinants_kept: bool = True


class Row:
    """A batch of points, their gradients and their optimizer, made when its first turn comes.

    Parameters
    ----------
    set : str
        The set that the row belongs to.
    method : str
        Name of the selection, or SRGD.
    scaling : Scaling, optional
        The adaptive rule.
    d, dtype
        Size and type of the points.
    steps : int
        How many steps are wanted.
    kinds : sequence of str
        Kinds of gradients, a point each.
    """

    def __init__(
        self,
        set: str,
        method: str,
        scaling: Scaling | None,
        d: int,
        steps: int,
        *,
        kinds: tuple[str, ...] = KINDS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.selection, self.scaling, self.kinds = METHODS[method], scaling, kinds
        self.size, self.dtype = (len(kinds), d, d), dtype
        self.turn = SETS[set]
        name = str(dtype).removeprefix("torch.")
        self.result = Result(set, method, str(scaling), d, name, len(kinds), steps)
        self.group: Timed | None = None

    def _make(self) -> None:
        self.group = Timed()
        self.generator = torch.Generator().manual_seed(0)
        x = self.group.random(*self.size, dtype=self.dtype, generator=self.generator)
        self.p = ManifoldParameter(x, manifold=self.group)
        self.x = self.p.detach().as_subclass(Tensor)
        self.signs = torch.linalg.slogdet(self.x).sign
        if self.selection is None:
            self.optimizer = SRGD([self.p], RATES[0], scaling=self.scaling)
        else:
            self.optimizer = SRCD([self.p], RATES[0], self.selection, self.scaling)
        self.period = self.group.restore_period(self.p)
        self.gradients = self._gradients()
        self.identity = torch.eye(self.size[-1], dtype=torch.float64)

    def _gradients(self) -> Iterator[None]:
        """Write the gradient of the next step to the parameter, for ever."""
        g = torch.randn(self.size, dtype=self.dtype, generator=self.generator)
        self.p.grad = g
        place = {kind: i for i, kind in enumerate(self.kinds)}
        if "sparse" in place:
            g[place["sparse"], :, 3:] = 0
        noise: list[Tensor | None] = [None]
        if "random" in place:
            random = g[place["random"]]
            count = max(3, min(257, 2**18 // random.numel()))
            noise = [*torch.randn(count, *random.shape, dtype=self.dtype, generator=self.generator)]
        if "pair" in place:
            g[place["pair"]] = 0
            pair, other = g[place["pair"], :, 0], self.x[place["pair"], :, 1]
        opposite = g[place["alternating"]] if "alternating" in place else None
        while True:
            for drawn in noise:
                if drawn is not None:
                    random.copy_(drawn)
                if "pair" in place:
                    pair.copy_(other)
                if opposite is not None:
                    opposite.neg_()
                yield

    @property
    def name(self) -> str:
        """What tells it from the other rows."""
        r = self.result
        return f"{r.set} {r.method} {r.scaling} {r.d} {r.dtype}"

    @property
    def waits(self) -> bool:
        """Whether there are steps to do."""
        return self.result.steps < self.result.wanted

    def run(self, end: float) -> None:
        """Do the steps of a turn, which is over at `end` at the latest, and look at the determinants."""
        if time.perf_counter() >= end:
            return
        if self.group is None:
            self._make()
        result, optimizer, state = self.result, self.optimizer, self.optimizer.state[self.p]
        restored = self.group.seconds
        watching = 0.0
        start = time.perf_counter()
        end = min(end, start + self.turn)
        before, chunk = 0, 1
        while self.waits and (now := time.perf_counter()) < end:
            # Looking at a large matrix takes as long as thousands of steps along one coordinate.
            chunk = chunk * 2 if watching > (now - start) / 4 else max(1, chunk // 2)
            for _ in range(min(chunk, result.wanted - result.steps)):
                rate = RATES[result.steps // (1000 if self.size[-1] < 64 else 10) % len(RATES)]
                optimizer.param_groups[0]["lr"] = rate
                next(self.gradients)
                optimizer.step()
                result.steps += 1
                moved = state["moved"]
                # A step of the size of the last one would bring the restoration.
                if moved > 0 and 2 * moved - before >= self.period:
                    watching += self.look()
                before = moved
            watching += self.look()
        result.seconds += time.perf_counter() - start - watching
        result.restoring += self.group.seconds - restored
        signs = torch.linalg.slogdet(self.x).sign
        result.determinants_kept &= bool((signs == self.signs).all())

    def state(self) -> dict[str, Any]:
        """Return all that a later run needs to go on with the row; nothing before the first turn."""
        if self.group is None:
            return {}
        return {
            "result": asdict(self.result),
            "x": self.x,
            "signs": self.signs,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with the row that :meth:`state` described; the same code makes the same bits."""
        if not state:
            return
        self._make()
        self.x.copy_(state["x"])
        self.signs = state["signs"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.result = Result(**state["result"] | {"wanted": self.result.wanted})
        for _ in range(self.result.steps):
            next(self.gradients)

    def look(self) -> float:
        """Compare with the worst so far; return the time that this took."""
        start = time.perf_counter()
        w = self.x.double()
        defect = (w.mT @ w).sub_(self.identity).abs_().amax((-2, -1))
        worst, point = map(float, defect.nan_to_num_(nan=torch.inf).max(0))
        if worst > self.result.worst:
            self.result.worst = worst
            self.result.worst_step = self.result.steps
            self.result.worst_kind = self.kinds[int(point)]
        return time.perf_counter() - start


def rows(steps: int) -> Iterator[Row]:
    """Make the grid; the wide rows do 5 × 1/20 of the steps of a long one, counted by points."""
    for i, method in enumerate(METHODS):  # every selection and every scaling at least once
        # In a batch Capture takes as many coordinates as the neediest point: here one.
        kinds = ("pair",) if method == "Capture()" else KINDS
        yield Row("long", method, SCALINGS[i % len(SCALINGS)], 6, steps, kinds=kinds)
    for i, method in enumerate(METHODS):
        for j, scaling in enumerate(SCALINGS):
            d = (5, 2, 16, 8, 3)[(i + j) % 5]
            d = max(d, 4) if isinstance(METHODS[method], Grouping) else d
            yield Row("wide", method, scaling, d, steps // 20)
        for d in (64, 190, 1024):
            kinds = KINDS if d < 1024 else KINDS[1:3]
            yield Row("large", method, None, d, steps, kinds=kinds)
        for d in (5, 64, 1024):
            kinds = KINDS if d < 1024 else KINDS[1:3]
            yield Row("float64", method, None, d, steps, kinds=kinds, dtype=torch.float64)


@click.command(help=__doc__)
@click.option("--steps", default=1_000_000, show_default=True, help="Steps of a long row.")
@click.option("--seconds", default=4500.0, show_default=True, help="Time for all rows.")
@click.option("--sets", default=",".join(SETS), show_default=True, help="Sets of rows.")
@click.option("--only", default="", help="Rows with a method that this regular expression finds.")
@click.option("--largest", default=1024, show_default=True, help="Largest d.")
@click.option("--resume", is_flag=True, help="Go on with the rows of the last run.")
@output_option
def main(  # noqa: D103
    steps: int, seconds: float, sets: str, only: str, largest: int, resume: bool, output: Path
) -> None:
    show_machine()
    end = time.perf_counter() + seconds
    grid = [
        row
        for row in rows(steps)
        if row.result.set in sets.split(",")
        and re.search(only, row.result.method)
        and row.result.d <= largest
    ]
    states = output / "orthogonality.pt"
    if resume:
        if not states.exists():
            raise click.BadParameter(f"there is no {states} to go on from", param_hint="--resume")
        known = torch.load(states)
        for row in grid:
            row.load_state(known.get(row.name, {}))
    results = [row.result for row in grid]
    saved = time.perf_counter()

    def save() -> None:
        write_json(output / "orthogonality.json", {"rows": [asdict(r) for r in results]})
        with atomic_write(states) as file:
            torch.save({row.name: row.state() for row in grid}, file)

    while time.perf_counter() < end and (waiting := [row for row in grid if row.waits]):
        for row in waiting:
            row.run(end)
            if time.perf_counter() > saved + 60:
                save()
                saved = time.perf_counter()
        _show(results)
    save()
    bad = [r for r in results if r.worst > _limit(r) or not r.determinants_kept]
    console.print(f"{len(bad)} of {len(results)} rows broke a promise")


def _limit(result: Result) -> float:
    return LIMITS[getattr(torch, result.dtype)]


def _show(results: list[Result]) -> None:
    columns = [
        "",
        "scaling",
        "d",
        "type",
        "points",
        "steps",
        "largest",
        "at",
        "with",
        "µs/step",
        "restoring",
        "",
    ]
    for name in SETS:
        done = [r for r in results if r.set == name and r.steps]
        if done:
            show_table(
                name,
                columns,
                [
                    [
                        r.method,
                        r.scaling.partition("(")[0],
                        str(r.d),
                        r.dtype,
                        str(r.points),
                        str(r.steps),
                        f"{r.worst:.1e}",
                        str(r.worst_step),
                        r.worst_kind,
                        f"{r.seconds / r.steps * 1e6:.0f}",
                        f"{r.restoring / r.seconds:.0%}",
                        "" if r.worst <= _limit(r) and r.determinants_kept else "broken",
                    ]
                    for r in done
                ],
            )


if __name__ == "__main__":
    main()
