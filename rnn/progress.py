"""A progress bar that shows whether the model learns."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from .extras import extra


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
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            expand=True,
        )
        self._baseline = baseline
        self._start = step
        self._numbers = ""
        self._task = self._progress.add_task(title, total=steps, completed=step, numbers="")

    def __enter__(self) -> ProgressBar:
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
        if numbers:
            shown = [f"{name} {value:.3g}" for name, value in numbers.items()]
            shown.insert(1, f"(baseline {self._baseline:.3g})")
            self._numbers = "  ".join(shown)
        elapsed = self._progress.tasks[0].elapsed
        speed = f"{(step - self._start) / elapsed:.3g} steps/s" if elapsed else ""
        self._progress.update(self._task, completed=step, numbers=f"{self._numbers}  {speed}")
