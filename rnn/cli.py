"""The command line ``givens``."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from geoopt import ManifoldParameter
from geoopt.manifolds import Manifold

from .. import __version__, manifolds
from .atomic import atomic_write
from .checkpoint import CheckpointError, load_checkpoint
from .experiment import (
    DTYPES,
    OPTIMIZERS,
    OTHER_OPTIMIZERS,
    RULES,
    SELECTIONS,
    TASKS,
    make_model,
    make_optimizers,
    make_task,
    set_rates,
)
from .extras import extra
from .initialization import INITIALIZATIONS
from .plotting import plot_losses
from .recurrence import NONLINEARITIES
from .training import DivergenceError, InterruptedTraining, Trainer

try:
    with extra("cli"):
        import click
        from rich.console import Console
        from rich.table import Table
except ModuleNotFoundError as missing:
    raise SystemExit(f"givens: error: {missing}") from None

# What a resumed run may do differently from its beginning.
CHANGEABLE = {"iterations", "lr", "other_lr", "device"}
# What is about this call of the command, and not about the run.
CONTROLS = {"run_dir", "resume", "overwrite", "tensorboard", "checkpoint_every"}
RUN_FILES = ("checkpoint.pt", "metrics.jsonl", "metrics.csv", "config.json", "loss.png")

Command = TypeVar("Command", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the name of the program; by default ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit status: 0; 1 for a failure, 2 for a wrong call, 130 after Ctrl-C. Failures are one
        line on the standard error.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return givens.main(arguments, prog_name="givens", standalone_mode=False) or 0
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return _fail(error.format_message() + hint, 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        return _fail(about + (error.strerror or str(error)), 1)
    except (CheckpointError, DivergenceError, ModuleNotFoundError) as error:
        return _fail(str(error), 1)


def _fail(message: str, status: int) -> int:
    click.echo("givens: error: " + " ".join(message.split()), err=True)
    return status


class _Device(click.ParamType):
    """A device that torch can use."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            torch.empty(0, device=value)
        except Exception as error:
            reason = str(error).splitlines()[0]
            self.fail(f"torch cannot use the device {value!r}: {reason}", param, ctx)
        return value


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="givens")
@click.pass_context
def givens(ctx: click.Context) -> None:
    """Train orthogonal recurrent networks by coordinate descent.

    The recurrent matrix W stays orthogonal because it only ever turns: along a few planes
    (SRCD, O(d) a plane), or along the whole Riemannian gradient (SRGD, O(d³)).

    \b
    Examples
      givens train copying                      about a minute on two cores
      givens train copying --optimizer frozen   the control: W stays as it was drawn
      givens plot runs/* -o curves.png          both loss curves, and the baseline
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@givens.group(invoke_without_command=True)
@click.pass_context
def train(ctx: click.Context) -> None:
    """Train on a task, with checkpoints, logs and a picture in a run folder.

    \b
    Ctrl-C finishes the step and saves; to go on, to the same numbers:
      givens train copying --run-dir runs/mine --resume
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def training_options(
    *, iterations: int, hidden_size: int, evaluate_every: int | None = None
) -> Callable[[Command], Command]:
    """Add the options that every task has, with the defaults that suit this one."""
    positive = click.IntRange(min=1)
    rate = click.FloatRange(min=0)
    options = [
        click.option(
            "--optimizer",
            type=click.Choice(OPTIMIZERS),
            default="srcd",
            help="How W moves. srcd: along one or a few coordinates, each a plane rotation. "
            "srgd: along the whole Riemannian gradient, an exponential of O(d³). "
            "frozen: not at all, the control that the others have to beat.",
        ),
        click.option(
            "--selection",
            type=click.Choice(SELECTIONS),
            default="block",
            help="(srcd) Which coordinates. uniform: one at random, O(d). cyclic: one after the "
            "other, O(d). gauss-southwell: the steepest one, which needs all derivatives, a "
            "product of O(d³). block: several of the steepest.",
        ),
        click.option(
            "--block-fraction",
            type=click.FloatRange(0, 1, min_open=True),
            help="(block) Share of the d(d − 1)/2 coordinates that a step moves.  [default: 0.005]",
        ),
        click.option("--block-size", type=positive, help="(block) The same, as a number."),
        click.option(
            "--block-rule",
            type=click.Choice(list(RULES)),
            default="gauss-southwell",
            help="(block) The steepest ones, or any.",
        ),
        click.option(
            "--disjoint/--overlapping",
            default=False,
            help="(block) Only coordinates without a common column: rotations of O(d) each. "
            "Overlapping ones need a dense exponential, O(d³).",
        ),
        click.option("--lr", type=rate, default=0.1, help="Stepsize of W."),
        click.option("--momentum", type=rate, default=0.0, help="(srgd) Momentum."),
        click.option(
            "--other-optimizer",
            type=click.Choice(list(OTHER_OPTIMIZERS)),
            default="rmsprop",
            help="For all parameters but W. The paper has sgd.",
        ),
        click.option("--other-lr", type=rate, default=1e-3, help="Its learning rate."),
        click.option(
            "--hidden-size",
            type=click.IntRange(min=2),
            default=hidden_size,
            help="d, the size of W. A step of the network costs O(batch · d²).",
        ),
        click.option(
            "--init",
            type=click.Choice(list(INITIALIZATIONS)),
            default="henaff-cayley",
            help="How W is drawn. The paper has henaff-cayley, expRNN henaff-expm.",
        ),
        click.option(
            "--nonlinearity",
            type=click.Choice(list(NONLINEARITIES)),
            default="modrelu",
            help="Of the recurrence.",
        ),
        click.option(
            "--iterations", type=positive, default=iterations, help="Steps to train, in all."
        ),
        click.option("--batch-size", type=positive, default=128, help="Sequences in a batch."),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            help="Of the data, the initialization and the selection.",
        ),
        click.option("--device", type=_Device(), default="cpu", help="Such as cpu or cuda:0."),
        click.option(
            "--dtype", type=click.Choice(list(DTYPES)), default="float32", help="Precision."
        ),
        click.option(
            "--run-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="Folder of the run.  [default: runs/TASK-OPTIMIZER-SELECTION]",
        ),
        click.option(
            "--resume",
            is_flag=True,
            help="Go on from the checkpoint in the folder, with the settings of the run; only "
            "--iterations, --lr, --other-lr and --device can be changed.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace the run in the folder."),
        click.option("--log-every", type=positive, default=10, help="Steps between two records."),
        click.option(
            "--checkpoint-every", type=positive, default=200, help="Steps between two checkpoints."
        ),
        click.option(
            "--evaluate-every",
            type=positive,
            default=evaluate_every,
            help="Steps between two evaluations on unseen data; there is always one at the end.",
        ),
        click.option(
            "--tensorboard", is_flag=True, help="Also write TensorBoard events to the run folder."
        ),
    ]

    def add(command: Command) -> Command:
        for option in reversed(options):
            option.show_default = True
            command = option(command)
        return command

    return add


@train.command()
@training_options(iterations=1500, hidden_size=128)
@click.option("--length", type=click.IntRange(min=1), default=100, help="L, steps to remember.")
@click.option("--letters", type=click.IntRange(min=1), default=10, help="K, letters to remember.")
@click.pass_context
def copying(ctx: click.Context, **options: Any) -> None:
    """Remember K letters over L steps, then write them down.

    The baseline, K ln 8 / (L + 2K), knows all but the letters; recall is the share of the letters
    that are right.

    \b
    Examples
      givens train copying
      givens train copying --optimizer srgd --lr 0.01
      givens train copying --selection gauss-southwell --lr 0.003
      givens train copying --length 1000 --hidden-size 190   the size of the paper
    """
    _train(ctx, options)


@train.command()
@training_options(iterations=2000, hidden_size=128)
@click.option("--length", type=click.IntRange(min=2), default=100, help="Steps of a sequence.")
@click.pass_context
def adding(ctx: click.Context, **options: Any) -> None:
    """Add the two marked numbers of a sequence.

    The baseline, a mean squared error of 1/6, is that of always answering 1.

    \b
    Example
      givens train adding --length 50 --iterations 3000
    """
    _train(ctx, options)


@train.command()
@training_options(iterations=2000, hidden_size=128, evaluate_every=100)
@click.option(
    "--permuted/--in-order", default=False, help="Whether the pixels come in a fixed random order."
)
@click.pass_context
def digits(ctx: click.Context, **options: Any) -> None:
    """Read a handwritten digit pixel by pixel, then name it.

    1,437 pictures of 8 × 8 pixels to train on and 360 to test on, from scikit-learn. The baseline,
    ln 10, is that of guessing, with an accuracy of 10 %.

    \b
    Example
      givens train digits --permuted
    """
    _train(ctx, options)


def _train(ctx: click.Context, options: dict[str, Any]) -> None:
    task_name = str(ctx.info_name)
    given = {
        name
        for name in options
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    settings = {name: value for name, value in options.items() if name not in CONTROLS}
    settings["task"] = task_name
    run_dir: Path = options["run_dir"] or _default_run_dir(settings)

    if options["resume"]:
        if options["overwrite"]:
            raise click.UsageError("--resume and --overwrite exclude each other", ctx)
        settings = _resumed_settings(ctx, run_dir, settings, given)
    else:
        _check_settings(ctx, settings, given)
        if not options["overwrite"] and any((run_dir / name).exists() for name in RUN_FILES):
            raise click.UsageError(
                f"{run_dir} holds a run already: choose another --run-dir, or --resume it, or "
                "--overwrite it",
                ctx,
            )

    torch.manual_seed(settings["seed"])
    try:
        task = make_task(settings)
        model = make_model(settings, task)
        optimizers = make_optimizers(settings, model)
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from error
    trainer = Trainer(
        model,
        optimizers,
        task,
        run_dir,
        config=settings,
        log_every=settings["log_every"],
        checkpoint_every=options["checkpoint_every"],
        evaluate_every=settings["evaluate_every"],
        tensorboard=options["tensorboard"],
    )
    if options["resume"]:
        trainer.resume()
        set_rates(settings, optimizers)
    else:
        for name in RUN_FILES:
            (run_dir / name).unlink(missing_ok=True)
    if settings["iterations"] < trainer.step:
        raise click.UsageError(
            f"{run_dir} is at step {trainer.step} already: --iterations is the total", ctx
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(run_dir / "config.json") as file:
        description = {
            "title": task.name,
            "baseline": task.baseline,
            "baseline_name": task.baseline_name,
            "settings": settings,
        }
        file.write(json.dumps(description, indent=2).encode() + b"\n")

    try:
        results = trainer.train(settings["iterations"])
    except InterruptedTraining as stop:
        click.echo(
            f"givens: interrupted after {stop.step} steps, and saved; to go on: "
            f"givens train {task_name} --run-dir {run_dir} --resume",
            err=True,
        )
        ctx.exit(130)
    plot_losses([run_dir], run_dir / "loss.png")
    Console().print(_results(trainer, model, results))


def _default_run_dir(settings: dict[str, Any]) -> Path:
    parts = [settings["task"], settings["optimizer"]]
    if settings["optimizer"] == "srcd":
        parts.append(settings["selection"])
    return Path("runs", "-".join(parts))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_settings(ctx: click.Context, settings: dict[str, Any], given: set[str]) -> None:
    """Refuse options that would have no effect, and complete those of a block."""
    needs = {
        "selection": ("optimizer", "srcd"),
        "momentum": ("optimizer", "srgd"),
        **dict.fromkeys(
            ("block_fraction", "block_size", "block_rule", "disjoint"), ("selection", "block")
        ),
    }
    for name, (other, value) in needs.items():
        if name in given and settings[other] != value:
            raise click.UsageError(
                f"{_flag(name)} is for {_flag(other)} {value}, not for {settings[other]}", ctx
            )
    if "lr" in given and settings["optimizer"] == "frozen":
        raise click.UsageError("--lr is the stepsize of W, which --optimizer frozen keeps", ctx)
    if {"block_size", "block_fraction"} <= given:
        raise click.UsageError("give one of --block-size and --block-fraction, not both", ctx)
    if settings["block_size"] is not None:
        settings["block_fraction"] = None


def _resumed_settings(
    ctx: click.Context, run_dir: Path, settings: dict[str, Any], given: set[str]
) -> dict[str, Any]:
    """Return the settings of the run in a folder, with the changes that are allowed."""
    saved: dict[str, Any] = load_checkpoint(run_dir / "checkpoint.pt")["config"]
    if set(saved) != set(settings):
        raise click.UsageError(
            f"{run_dir} holds a run of {saved.get('task', 'something else')}, not of "
            f"{settings['task']}",
            ctx,
        )
    changed = {
        name: settings[name] for name in given & set(settings) if settings[name] != saved[name]
    }
    for name in sorted(set(changed) - CHANGEABLE):
        raise click.UsageError(
            f"{run_dir} was started with {_flag(name)} {saved[name]}, which --resume cannot "
            f"change to {changed[name]}",
            ctx,
        )
    return {**saved, **changed}


def _results(trainer: Trainer, model: torch.nn.Module, results: dict[str, float]) -> Table:
    task = trainer.task
    table = Table(title=f"{task.name}: after {trainer.step} steps", title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.items():
        table.add_row(name, f"{value:.4g}")
    table.add_row(f"baseline ({task.baseline_name})", f"{task.baseline:.4g}")
    table.add_row("test loss / baseline", f"{results['test loss'] / task.baseline:.4g}")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, ManifoldParameter):
            W = parameter.detach().double()
            error = (W.mT @ W - torch.eye(len(W), dtype=W.dtype, device=W.device)).abs().max()
            table.add_row(f"max |WᵀW − I| of {name}", f"{error:.1e}")
    table.add_row("seconds", f"{trainer.seconds:.1f}")
    table.add_section()
    for name in RUN_FILES:
        table.add_row(name.partition(".")[0], str(trainer.run_dir / name))
    return table


@givens.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("loss.png"),
    show_default=True,
    help="The picture: .png, .pdf, .svg …",
)
def plot(runs: tuple[Path, ...], output: Path) -> None:
    """Draw the loss curves of runs, beside the baseline.

    A RUN is the folder that a training has filled.

    \b
    Example
      givens plot runs/copying-frozen runs/copying-srcd-block -o curves.png
    """
    try:
        plot_losses(runs, output)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}")


@givens.command()
def info() -> None:
    """Show versions, devices, and what there is to choose from."""
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [
        f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())
    ]
    geometries = [
        name
        for name in manifolds.__all__
        if isinstance(kind := getattr(manifolds, name), type)
        and issubclass(kind, Manifold)
        and kind is not manifolds.CoordinateManifold
    ]
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    for name, values in {
        "givens": [__version__],
        "python": [platform.python_version()],
        **{name: [version(name)] for name in ("torch", "geoopt", "numpy", "scipy")},
        "devices": devices,
        "tasks": TASKS,
        "optimizers": OPTIMIZERS,
        "selections": SELECTIONS,
        "initializations": INITIALIZATIONS,
        "nonlinearities": NONLINEARITIES,
        "manifolds": geometries,
    }.items():
        table.add_row(name, ", ".join(values))
    Console().print(table)
