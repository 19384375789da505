"""A training loop: any model, any optimizers, any task."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import filelock
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..optim.base import ManifoldOptimizer
from .atomic import also_name, atomic_write, remove_leftovers
from .checkpoint import (
    CheckpointError,
    load_checkpoint,
    mention_previous,
    plain,
    previous_checkpoint,
    save_checkpoint,
)
from .logs import (
    JSONLinesLog,
    MetricsError,
    MetricsLog,
    TensorBoardLog,
    is_number,
    read_metrics,
    summary_writer,
    write_csv,
)
from .progress import ProgressBar
from .tasks import Batch, HeldOut, Task

# Batches of a task without held-out data that an evaluation takes.
FRESH_BATCHES = 8


class DivergenceError(FloatingPointError):
    """Training stopped: a loss or a derivative is not finite.

    Attributes
    ----------
    step : int
        The step at which it happened.
    checkpoint : Path
        The last good checkpoint.
    """

    def __init__(self, reason: str, step: int, checkpoint: Path, saved: int | None) -> None:
        super().__init__(f"stopped at step {step}: {reason}; {_last_good(checkpoint, saved)}")
        self.step = step
        self.checkpoint = checkpoint


class InterruptedTraining(KeyboardInterrupt):
    """Training stopped on request (Ctrl-C, SIGTERM), after a step was finished and saved.

    Attributes
    ----------
    step : int
        The steps that were done.
    checkpoint : Path
        Where to resume from.
    signal : int
        Which signal asked for it; by convention a program then exits with 128 and this number.
    """

    def __init__(self, step: int, checkpoint: Path, signal: int) -> None:
        super().__init__(f"interrupted after {step} steps; saved to {checkpoint}")
        self.step = step
        self.checkpoint = checkpoint
        self.signal = signal


class Trainer:
    """Train a model on a task, with logs and checkpoints in a folder.

    Step s computes the loss on batch s, after s updates, and then makes one update more. The folder
    gets

    - ``config.json``: the task, its baseline, and `config`;
    - ``metrics.jsonl``: every `log_every` steps the loss and the metrics of that step's batch
      and the seconds spent; where the model was evaluated, ``test loss`` and ``test …`` too;
    - ``metrics.csv``: the same as a table, written at the end;
    - ``checkpoint.pt``: the last good state, replaced every `checkpoint_every` steps;
    - ``checkpoint.previous.pt``: the one before it;
    - ``.lock``: empty; locked by the process that is training here.

    A checkpoint of step s is written only when the loss on batch s is finite, so a state that has
    diverged does not replace a good one. On a CPU a run that is stopped and resumed makes the same
    numbers, bit for bit, as one that is not, provided that the task's batches are functions of
    their number (see `Task`).

    Parameters
    ----------
    model : nn.Module
        Maps a batch's input to what the task's loss takes.
    optimizers : torch.optim.Optimizer or sequence of them
        All step after every backward pass, in order. Those that need a closure (LBFGS) are not
        supported. A parameter that belongs to none of them keeps its value.
    task : Task
        Batches, loss, metrics and baseline.
    run_dir : path
        The folder; made when it is missing.
    schedulers : sequence of learning-rate schedulers
        Each steps once an iteration; `ReduceLROnPlateau` is given the loss.
    config : mapping, optional
        The settings of the run, as JSON can write them: stored in the folder and in the checkpoint.
    log_every, checkpoint_every : int
        Steps between two records, and between two checkpoints.
    evaluate_every : int, optional
        Steps between two evaluations (see `evaluate`). There is always one at the end.
    tensorboard : bool
        Also write TensorBoard events, to ``run_dir/tensorboard`` (extra ``tensorboard``).
    progress : bool
        Show a progress bar (extra ``cli``).

    Attributes
    ----------
    step : int
        Updates made so far.
    seconds : float
        Time spent in `train` so far, that of a run which was resumed included.

    Examples
    --------
    >>> import tempfile, torch
    >>> from givens.rnn import SequenceModel, Trainer
    >>> from givens.rnn.tasks import AddingProblem
    >>> task = AddingProblem(length=10, batch_size=16)
    >>> model = SequenceModel(torch.nn.RNN(task.input_size, 8), task.output_size, task.readout)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = Trainer(model, optimizer, task, tempfile.mkdtemp(), progress=False)
    >>> sorted(trainer.train(20))
    ['test loss', 'test within 0.04']
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        task: Task,
        run_dir: str | Path,
        *,
        schedulers: Sequence[LRScheduler] = (),
        config: Mapping[str, Any] | None = None,
        log_every: int = 10,
        checkpoint_every: int = 200,
        evaluate_every: int | None = None,
        tensorboard: bool = False,
        progress: bool = True,
    ) -> None:
        for name, every in (("log_every", log_every), ("checkpoint_every", checkpoint_every)):
            if every < 1:
                raise ValueError(f"{name} must be at least 1, got {every}")
        if evaluate_every is not None and evaluate_every < 1:
            raise ValueError(f"evaluate_every must be None or at least 1, got {evaluate_every}")
        self.model = model
        self.optimizers = (
            [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else list(optimizers)
        )
        self.task = task
        self.run_dir = Path(run_dir)
        self.schedulers = list(schedulers)
        self.config = dict(config or {})
        self.log_every = log_every
        self.checkpoint_every = checkpoint_every
        self.evaluate_every = evaluate_every
        self.tensorboard = tensorboard
        self.progress = progress
        self.step = 0
        self.seconds = 0.0
        self._saved: int | None = None  # the step of the checkpoint in the folder, if it is ours
        self._resumed: Path | None = None  # the file that was resumed from, until training begins
        self._signal: int | None = None  # the one that has asked for an end

    @property
    def checkpoint_path(self) -> Path:
        """The file of the last good state."""
        return self.run_dir / "checkpoint.pt"

    @property
    def previous_checkpoint_path(self) -> Path:
        """The file of the good state before the last."""
        return previous_checkpoint(self.checkpoint_path)

    @property
    def metrics_path(self) -> Path:
        """The file of the records."""
        return self.run_dir / "metrics.jsonl"

    @property
    def table_path(self) -> Path:
        """The file of the records as a table."""
        return self.run_dir / "metrics.csv"

    @property
    def config_path(self) -> Path:
        """The file of the settings."""
        return self.run_dir / "config.json"

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on, as plain data on the CPU."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "config": plain(self.config, "config"),
            "model": plain(self.model.state_dict(), "model"),
            "optimizers": _states(self.optimizers, "optimizers"),
            "schedulers": _states(self.schedulers, "schedulers"),
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the configuration is not touched.

        Raises
        ------
        CheckpointError
            When the state does not fit the model, the optimizers or the schedulers. Everything is
            then as it was.
        """
        ours = self.state_dict()
        try:
            self._load(state)
        except Exception as error:  # a state of something else can be wrong in any way
            self._load(ours)
            reason = f"it lacks {error}" if isinstance(error, KeyError) else _one_line(error)
            raise CheckpointError(f"the state is of another run: {reason}") from error

    def _load(self, state: Mapping[str, Any]) -> None:
        for name, kind in (("step", int), ("seconds", float)):
            if not isinstance(state[name], kind):
                raise TypeError(f"its {name} is {state[name]!r}")
        stepping: dict[str, Sequence[Any]] = {
            "optimizers": self.optimizers,
            "schedulers": self.schedulers,
        }
        for name, parts in stepping.items():
            ours = [type(part).__name__ for part in parts]
            theirs = [saved["class"] for saved in state[name]]
            if ours != theirs:
                raise ValueError(f"its {name} are {theirs}, those of this run {ours}")
        for name in ("step", "seconds"):
            if not is_number(state[name]) or not 0 <= state[name] < math.inf:
                raise ValueError(f"its {name} is {state[name]!r}")
        model = self.model.state_dict()
        for name, value in state["model"].items():  # torch would convert it without a word
            own = model.get(name)
            if isinstance(own, Tensor) and own.dtype != value.dtype:
                raise ValueError(f"its {name} is {value.dtype}, that of this run {own.dtype}")
        self.model.load_state_dict(state["model"])
        for name, parts in stepping.items():
            for part, saved in zip(parts, state[name], strict=True):
                part.load_state_dict(deepcopy(saved["state"]))  # torch keeps parts of what it gets
        torch.set_rng_state(state["random"]["cpu"])
        if 0 < len(state["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random"]["cuda"])
        self.step = state["step"]
        self.seconds = state["seconds"]

    def resume(self, checkpoint: Literal["last", "previous"] = "last") -> None:
        """Go back to a checkpoint in the folder.

        Parameters
        ----------
        checkpoint : {"last", "previous"}
            ``checkpoint.pt``, or the one before it; when training goes on from that, it takes the
            place of the last.

        Raises
        ------
        CheckpointError
            When it is missing, damaged, or of another run; nothing has changed then.
        """
        paths = {"last": self.checkpoint_path, "previous": self.previous_checkpoint_path}
        if checkpoint not in paths:
            raise ValueError(f"checkpoint must be 'last' or 'previous', got {checkpoint!r}")
        path = paths[checkpoint]
        state = load_checkpoint(path)
        try:
            self.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(
                f"{path} cannot be resumed: {error}{mention_previous(path)}"
            ) from error
        self._saved = self.step
        self._resumed = path

    def train(self, steps: int, *, overwrite: bool = False) -> dict[str, float]:
        """Train until `steps` updates have been made in all, and evaluate.

        Ctrl-C finishes the step, saves a checkpoint and raises; a second one stops at once, and
        leaves the last checkpoint. SIGTERM, which schedulers send before they kill, does the same
        as the first, unless the program has a handler of its own for it.

        Parameters
        ----------
        steps : int
            The total number of updates, those before a resumption included.
        overwrite : bool
            Whether to replace another run in the folder.

        Returns
        -------
        dict
            The result of `evaluate` at the end, its names preceded by ``test``.

        Raises
        ------
        BlockingIOError
            When another process is training in the folder.
        DivergenceError
            When a loss is NaN or infinite, or an optimizer meets such a derivative.
        InterruptedTraining
            After Ctrl-C or SIGTERM.
        FileExistsError
            When the folder holds another run, and `overwrite` is False.
        MetricsError
            When a run is resumed whose ``metrics.jsonl`` is damaged.
        OSError
            When the folder cannot be written to.
        ValueError
            When more than `steps` updates have been made already.
        """
        if steps < self.step:
            raise ValueError(f"{self.step} steps are done, so the total cannot be {steps}")
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise NotADirectoryError(f"{self.run_dir} is a file, not a folder for a run")
        bar = None
        if self.progress:
            title = f"{self.task.name} → {self.run_dir}"
            bar = ProgressBar(title, self.step, steps, self.task.baseline)
        if self.tensorboard:
            summary_writer()  # when it is missing, nothing is written
        with ExitStack() as stack:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(self._alone())
            new = self._saved is None
            if new:
                self._begin(overwrite)
            elif self._resumed == self.previous_checkpoint_path:
                also_name(self._resumed, self.checkpoint_path)
            self._resumed = None
            logs: list[MetricsLog] = []
            if self.tensorboard:
                logs.append(TensorBoardLog(self.run_dir / "tensorboard", self.step))
                stack.enter_context(closing(logs[-1]))
            logs.append(JSONLinesLog(self.metrics_path, 0 if new else self.step))
            stack.enter_context(closing(logs[-1]))
            self._write_config()
            stack.enter_context(self._writing_table())
            if bar is not None:
                stack.enter_context(bar)
            stack.enter_context(self._finishing_steps())
            self.model.train()
            return self._loop(steps, logs, bar)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the folder; the system gives the lock back when the process is killed."""
        lock = filelock.FileLock(self.run_dir / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise BlockingIOError(
                f"another process is training in {self.run_dir}: wait for it, stop it, or choose "
                "another folder"
            ) from None
        try:
            for path in (
                self.checkpoint_path,
                self.previous_checkpoint_path,
                self.metrics_path,
                self.config_path,
                self.table_path,
            ):
                remove_leftovers(path)
            yield
        finally:
            lock.release()

    def _begin(self, overwrite: bool) -> None:
        """Make room for a new run."""
        checkpoints = [self.checkpoint_path, self.previous_checkpoint_path]
        # A run that was killed before its first checkpoint has nothing to lose.
        started = self.metrics_path.exists() and self.metrics_path.stat().st_size > 0
        if not overwrite and (started or any(path.exists() for path in checkpoints)):
            raise FileExistsError(
                f"{self.run_dir} holds a run already: resume it, overwrite it, or choose another "
                "folder"
            )
        for path in checkpoints:
            path.unlink(missing_ok=True)

    def _loop(
        self, steps: int, logs: Sequence[MetricsLog], bar: ProgressBar | None
    ) -> dict[str, float]:
        started = time.perf_counter() - self.seconds
        # Losses stay on the model's device until they are logged, so that no step waits for a GPU.
        unchecked: list[tuple[int, Tensor]] = []
        for step in range(self.step, steps):
            stopping = self._signal  # asked for now: a later request waits for the next step
            saving = step != self._saved and (
                stopping is not None or step % self.checkpoint_every == 0
            )
            logging = step % self.log_every == 0
            evaluating = self.evaluate_every is not None and step % self.evaluate_every == 0

            state = self.state_dict() if saving else {}
            input, target = self.task[step]
            output = self.model(input)
            loss = self.task.loss(output, target)
            unchecked.append((step, loss.detach()))
            if saving or logging:
                self._check(unchecked)
            if saving:
                self._save(state, logs)
            if stopping is not None:
                raise InterruptedTraining(step, self.checkpoint_path, stopping)

            record = self._measure(loss, output, target) if logging else {}
            if evaluating:
                record |= self._evaluate()
            if bar is not None:
                bar.update(step, record)
            self._write(logs, record, started)

            self._update(loss, unchecked)
            self.seconds = time.perf_counter() - started
            self.step = step + 1

        self._check(unchecked)
        state = self.state_dict()
        results = self._evaluate()
        if self.step != self._saved:
            self._save(state, logs)
        if bar is not None:
            bar.update(steps, results)
        self._write(logs, results, started)
        return results

    def _update(self, loss: Tensor, unchecked: list[tuple[int, Tensor]]) -> None:
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        try:
            for optimizer in self.optimizers:
                optimizer.step()
        except FloatingPointError as error:
            self._check(unchecked)  # a loss that is not finite is the better explanation
            raise self._divergence(self.step, _one_line(error)) from error
        for scheduler in self.schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(float(loss.detach()))
            else:
                scheduler.step()

    def _measure(self, loss: Tensor, output: Tensor, target: Tensor) -> dict[str, float]:
        with torch.no_grad():
            metrics = self.task.metrics(output, target)
        return {
            "loss": float(loss.detach()),
            **{name: float(value) for name, value in metrics.items()},
        }

    def _evaluate(self) -> dict[str, float]:
        """Evaluate on the held-out data, or on batches that training has not come to."""
        if isinstance(self.task, HeldOut):
            batches = self.task.held_out()
        else:
            batches = (self.task[n] for n in range(self.step, self.step + FRESH_BATCHES))
        results = evaluate(self.model, self.task, batches)
        if not math.isfinite(results["loss"]):
            raise self._divergence(self.step, f"the test loss is {results['loss']}")
        return {f"test {name}": value for name, value in results.items()}

    def _check(self, unchecked: list[tuple[int, Tensor]]) -> None:
        """Raise at the first loss that is not finite, and forget the others; then ask the optimizers.

        On an accelerator they put off telling of derivatives that are not finite.
        """
        if unchecked:
            losses = torch.stack([loss for _, loss in unchecked]).tolist()
            for (step, _), loss in zip(unchecked, losses, strict=True):
                if not math.isfinite(loss):
                    raise self._divergence(step, f"the loss is {loss}")
            unchecked.clear()
        try:
            for optimizer in self.optimizers:
                if isinstance(optimizer, ManifoldOptimizer):
                    optimizer.check_finite()
        except FloatingPointError as error:
            raise self._divergence(self.step, _one_line(error)) from error

    def _divergence(self, step: int, reason: str) -> DivergenceError:
        return DivergenceError(reason, step, self.checkpoint_path, self._saved)

    def _save(self, state: dict[str, Any], logs: Sequence[MetricsLog]) -> None:
        with self._naming_checkpoint():
            for log in logs:
                log.sync()
            save_checkpoint(self.checkpoint_path, state)
        self._saved = state["step"]

    def _write(self, logs: Sequence[MetricsLog], numbers: dict[str, float], started: float) -> None:
        if numbers:
            seconds = round(time.perf_counter() - started, 3)
            with self._naming_checkpoint():
                for log in logs:
                    log.write({"step": self.step, **numbers, "seconds": seconds})

    @contextmanager
    def _naming_checkpoint(self) -> Iterator[None]:
        """Let the error of a write that failed say where to go on from."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno,
                f"{reason}; {_last_good(self.checkpoint_path, self._saved)}",
                error.filename or str(self.checkpoint_path),
            ) from error

    def _write_config(self) -> None:
        config = {
            "task": self.task.name,
            "baseline": self.task.baseline,
            "baseline_name": self.task.baseline_name,
            "config": self.config,
        }
        with atomic_write(self.config_path) as file:
            file.write(json.dumps(config, indent=2).encode() + b"\n")

    @contextmanager
    def _writing_table(self) -> Iterator[None]:
        """Write the table at the end; when training fails, that is the error to be told."""
        try:
            yield
        except BaseException:
            with suppress(OSError, MetricsError):
                self._write_table()
            raise
        self._write_table()

    def _write_table(self) -> None:
        write_csv(self.table_path, read_metrics(self.metrics_path))

    @contextmanager
    def _finishing_steps(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM ask for an end, and a second Ctrl-C interrupt as usual.

        SIGTERM may come twice, from a scheduler and from a launcher, and stays a request.
        """
        self._signal = None
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        owner = os.getpid()
        previous = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            previous[signal.SIGTERM] = signal.SIG_DFL

        def finish(number: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:  # a forked worker, which has to die of it
                signal.signal(number, previous[signal.Signals(number)])
                signal.raise_signal(number)
                return
            self._signal = number
            if number == signal.SIGINT:
                signal.signal(number, previous[signal.SIGINT])

        for number in previous:
            signal.signal(number, finish)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def evaluate(model: nn.Module, task: Task, batches: Iterable[Batch]) -> dict[str, float]:
    """Return the loss and the metrics of a model, the mean over batches, in evaluation mode.

    Parameters
    ----------
    model : nn.Module
        Left in the mode that it was in.
    task : Task
        Whose loss and metrics.
    batches : iterable of (input, target)
        Each counts the same, whatever its size.

    Returns
    -------
    dict
        ``loss`` and the names of ``task.metrics``.
    """
    training = model.training
    model.eval()
    rows: list[dict[str, Tensor]] = []
    try:
        with torch.no_grad():
            for input, target in batches:
                output = model(input)
                rows.append({"loss": task.loss(output, target), **task.metrics(output, target)})
    finally:
        model.train(training)
    if not rows:
        raise ValueError("there is no batch to evaluate on")
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}


def _last_good(checkpoint: Path, saved: int | None) -> str:
    if saved is None:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {checkpoint}, of step {saved}"


def _states(parts: Sequence[Any], name: str) -> list[dict[str, Any]]:
    return [
        {"class": type(part).__name__, "state": plain(part.state_dict(), f"{name}[{i}]")}
        for i, part in enumerate(parts)
    ]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
