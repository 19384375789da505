"""A progress bar that shows whether the model learns."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from ..extras import extra


class ProgressBar:
    """Steps, loss beside the baseline, metrics and speed, on the standard error.

    Parameters
    ----------
    title : str
        What is being trained.
    step, steps : int
        Where it starts, and where it ends.
    baseline : float
        The loss to compare with.

    Raises
    ------
    ModuleNotFoundError
        When rich is not installed (extra ``cli``).
    """

    def __init__(self, title: str, step: int, steps: int, baseline: float) -> None:
        with extra("cli"):
            from rich import progress
            from rich.console import Console
        self._progress = progress.Progress(
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            expand=True,
        )
        self._title = title
        self._baseline = baseline
        self._start = step
        self._numbers: dict[str, float] = {}
        self._task = self._progress.add_task(
            title, total=steps, completed=step, numbers="", speed=""
        )

    def __enter__(self) -> ProgressBar:
        self._progress.console.print(self._title, highlight=False)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def update(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show the step that was reached and, where there are new ones, the numbers.

        Parameters
        ----------
        step : int
            Steps done.
        numbers : mapping
            Losses and metrics by name; empty where none were measured.
        """
        self._numbers.update(numbers)
        # A line is short: what was measured on unseen data stands for the same on the batch.
        shown = [
            f"{name} {value:.3g}"
            for name, value in self._numbers.items()
            if name != "test loss" and (name == "loss" or f"test {name}" not in self._numbers)
        ]
        shown.insert(1, f"(baseline {self._baseline:.3g})")
        elapsed = self._progress.tasks[0].elapsed
        self._progress.update(
            self._task,
            completed=step,
            numbers=" ".join(shown),
            speed=f"{(step - self._start) / elapsed:.3g}/s" if elapsed else "",
        )
