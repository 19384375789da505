"""The commands ``givens train …``: their options, and what they do with them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
from click.core import ParameterSource
from geoopt import ManifoldParameter
from rich.console import Console
from rich.table import Table

from .checkpoint import CheckpointError, load_checkpoint, previous_checkpoint
from .experiment import (
    DTYPES,
    LAYERS,
    MAX_HIDDEN_SIZE,
    OPTIMIZERS,
    OTHER_OPTIMIZERS,
    RULES,
    SELECTIONS,
    least_memory,
    make_model,
    make_optimizers,
    make_task,
    set_rates,
)
from .initialization import UNITARY_INITIALIZATIONS
from .plotting import plot_losses
from .recurrence import COMPLEX_NONLINEARITIES, NONLINEARITIES
from .training import InterruptedTraining, Trainer

# Options of one call of the command; all others are settings of the run, and kept with it.
CONTROLS = {"run_dir", "resume", "overwrite", "checkpoint_every", "tensorboard"}
# Settings that a resumed run may change.
CHANGEABLE = {"iterations", "lr", "other_lr", "device"}
# Settings that have no effect unless others have a certain value.
NEEDS = {
    "selection": {"optimizer": "srcd"},
    "momentum": {"optimizer": "srgd"},
    "block_fraction": {"optimizer": "srcd", "selection": "block"},
    "block_size": {"optimizer": "srcd", "selection": "block"},
    "block_rule": {"optimizer": "srcd", "selection": "block"},
    "disjoint": {"optimizer": "srcd", "selection": "block"},
}

# Limits that no sensible call comes near: beyond them float32 and int64 overflow.
MAX_RATE = 1e30
MAX_COUNT = 2**31 - 1

Settings: TypeAlias = dict[str, Any]
Command: TypeAlias = Callable[..., Any]


def usable_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return the name of a device, after trying it."""
    try:
        torch.empty(0, device=value)
    except Exception as error:  # torch raises many kinds, an AssertionError among them
        reason = str(error).splitlines()[0]
        raise click.BadParameter(f"torch cannot use {value!r}: {reason}", ctx, param) from error
    return value


def rate(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Return a learning rate, which is not negative and no float32 overflows at."""
    if not 0 <= value <= MAX_RATE:
        raise click.BadParameter(f"{value} is not a number from 0 to {MAX_RATE:g}", ctx, param)
    return value


class PathType(click.Path):
    """A path that can be named and shown: not empty, and without what no file system or screen takes."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or fail."""
        text = os.fspath(value)
        if not text:
            self.fail("the path is empty", param, ctx)
        if "\0" in text or not text.isprintable():
            self.fail(f"{text!a} has characters that cannot be shown", param, ctx)
        return super().convert(value, param, ctx)


@click.group(
    invoke_without_command=True,
    epilog="""\b
    Ctrl-C or SIGTERM finishes the step and saves. To go on, to the same numbers:
      givens train copying --run-dir runs/mine --resume
    """,
)
@click.pass_context
def train(ctx: click.Context) -> None:
    """Train on a task, with checkpoints, logs and a picture in a run folder."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def training_options(
    *, iterations: int, lr: float = 1e-3, evaluate_every: int | None = None
) -> Callable[[Command], Command]:
    """Add the options that every task has, with the defaults that suit this one."""
    positive = click.IntRange(1, MAX_COUNT)
    options = [
        click.option(
            "--rnn",
            type=click.Choice(list(LAYERS)),
            default="orthogonal",
            help="The recurrent matrix W. unitary: complex, as is the state; the readout sees real and "
            "imaginary parts.",
        ),
        click.option(
            "--optimizer",
            type=click.Choice(OPTIMIZERS),
            default="srcd",
            help="How W moves. srcd: along one or several coordinates, each a rotation of two columns, "
            "O(d). srgd: along the whole Riemannian gradient, an exponential of O(d³). "
            "frozen: not at all, the control that the others have to beat.",
        ),
        click.option(
            "--selection",
            type=click.Choice(SELECTIONS),
            default="block",
            help="(srcd) Which coordinates. uniform: one at random, O(d). cyclic: one after the "
            "other, O(d). gauss-southwell: the steepest one; to find it takes all derivatives, a "
            "product of O(d³). block: several of the steepest.",
        ),
        click.option(
            "--block-fraction",
            type=click.FloatRange(0, 1, min_open=True),
            default=0.005,
            help="(block) Share of the d(d − 1)/2 coordinates (unitary: d²) that a step moves.",
        ),
        click.option(
            "--block-size", type=positive, help="(block) Their number, instead of the share."
        ),
        click.option(
            "--block-rule",
            type=click.Choice(list(RULES)),
            default="gauss-southwell",
            help="(block) The steepest ones, or any.",
        ),
        click.option(
            "--disjoint/--overlapping",
            default=False,
            help="(block) Whether to take only coordinates without a common column, d/2 at most: "
            "rotations of O(d) each. Overlapping ones take a dense exponential, O(d³).",
        ),
        click.option("--lr", type=float, callback=rate, default=lr, help="Stepsize of W."),
        click.option(
            "--momentum",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.0,
            help="(srgd) Momentum.",
        ),
        click.option(
            "--other-optimizer",
            type=click.Choice(list(OTHER_OPTIMIZERS)),
            default="rmsprop",
            help="For all parameters but W. The paper has sgd.",
        ),
        click.option("--other-lr", type=float, callback=rate, default=3e-3, help="Its stepsize."),
        click.option(
            "--hidden-size",
            type=click.IntRange(2, MAX_HIDDEN_SIZE),
            default=128,
            help="d. A step of the recurrence costs O(batch size · d²).",
        ),
        click.option(
            "--init",
            type=click.Choice(list(UNITARY_INITIALIZATIONS)),
            show_default=", or if unitary ".join(layer.default_init for layer in LAYERS.values()),
            help="How W is drawn. The paper has henaff-cayley, expRNN henaff-expm. phases are for a "
            "unitary W only.",
        ),
        click.option(
            "--nonlinearity",
            type=click.Choice(NONLINEARITIES),
            default="modrelu",
            help="Of the recurrence. For a unitary W: " + ", ".join(COMPLEX_NONLINEARITIES) + ".",
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
        click.option(
            "--device", callback=usable_device, default="cpu", help="Such as cpu or cuda:0."
        ),
        click.option(
            "--dtype", type=click.Choice(list(DTYPES)), default="float32", help="Precision."
        ),
        click.option(
            "--run-dir",
            type=PathType(),
            help="Folder of the run.  [default: runs/TASK-OPTIMIZER-SELECTION, or with a unitary W "
            "runs/TASK-unitary-OPTIMIZER-SELECTION]",
        ),
        click.option(
            "--resume",
            type=click.Choice(["last", "previous"]),
            is_flag=False,
            flag_value="last",
            help="Go on from the last checkpoint in the folder, or from the one before it, with the "
            "settings of the run; of these only --iterations, --lr, --other-lr and --device can be "
            "changed.  [without a value: last]",
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
            help="Steps between two evaluations on unseen data. There is always one at the end.",
        ),
        click.option(
            "--tensorboard", is_flag=True, help="Also write TensorBoard events to the folder."
        ),
    ]

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@train.command(
    context_settings={"show_default": True},
    epilog="""\b
    Examples:
      givens train copying
      givens train copying --optimizer frozen
      givens train copying --selection gauss-southwell --lr 0.003
      givens train copying --length 1000 --hidden-size 190   the size in the paper
    """,
)
@click.option(
    "--length", type=click.IntRange(1, MAX_COUNT), default=100, help="L, steps to remember."
)
@click.option(
    "--letters", type=click.IntRange(1, MAX_COUNT), default=10, help="K, letters to remember."
)
@training_options(iterations=800)
@click.pass_context
def copying(ctx: click.Context, /, **options: Any) -> None:
    """Remember K letters over L steps, then write them down.

    The baseline, K ln 8 / (L + 2K), is that of knowing all but the letters. Recall is the share of
    the letters that are right.
    """
    run(ctx, options)


@train.command(
    context_settings={"show_default": True},
    epilog="""\b
    Examples:
      givens train adding
      givens train adding --optimizer srgd --momentum 0.9
    """,
)
@click.option(
    "--length", type=click.IntRange(2, MAX_COUNT), default=50, help="Steps of a sequence."
)
@training_options(iterations=3000, lr=0.03)
@click.pass_context
def adding(ctx: click.Context, /, **options: Any) -> None:
    """Add the two marked numbers of a sequence.

    The baseline, a mean squared error of 1/6, is that of always answering 1.
    """
    run(ctx, options)


@train.command(
    context_settings={"show_default": True},
    epilog="""\b
    Example:
      givens train digits --permuted
    """,
)
@click.option(
    "--permuted/--in-order", default=False, help="Whether the pixels come in a fixed random order."
)
@training_options(iterations=1000, evaluate_every=100)
@click.pass_context
def digits(ctx: click.Context, /, **options: Any) -> None:
    """Read a handwritten digit pixel by pixel, then name it.

    1,437 pictures of 8 × 8 pixels to train on and 360 to test on, from scikit-learn. The baseline,
    ln 10, is that of guessing, with an accuracy of 0.1.
    """
    run(ctx, options)


def run(ctx: click.Context, options: dict[str, Any]) -> None:
    """Train as the options say, from the start or from a checkpoint, and show the results."""
    settings = {name: value for name, value in options.items() if name not in CONTROLS}
    settings["task"] = ctx.info_name
    run_dir = options["run_dir"] or default_run_dir(settings)
    given = {
        name for name in settings if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other", ctx)
    if options["resume"]:
        settings = resumed_settings(ctx, run_dir, options["resume"], settings, given)
    else:
        check_settings(ctx, settings, given)
    check_memory(ctx, settings)

    torch.manual_seed(settings["seed"])
    try:
        task = make_task(settings)
        model = make_model(settings, task)
        check_block(ctx, settings, model)
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
        trainer.resume(options["resume"])
        set_rates(settings, optimizers)
    if settings["iterations"] < trainer.step:
        raise click.UsageError(
            f"{run_dir} is at step {trainer.step} already, and --iterations counts from the start",
            ctx,
        )
    try:
        results = trainer.train(settings["iterations"], overwrite=options["overwrite"])
    except FileExistsError as error:
        raise click.UsageError(
            f"{run_dir} holds a run already: --resume or --overwrite it, or choose another "
            "--run-dir",
            ctx,
        ) from error
    except InterruptedTraining as stop:
        if stop.step > 0:  # before that there is no loss to draw
            draw(run_dir)
        click.echo(
            f"givens: interrupted after {stop.step} steps, and saved; to go on: "
            f"givens train {ctx.info_name} --run-dir {run_dir} --resume",
            err=True,
        )
        ctx.exit(128 + stop.signal)
    draw(run_dir)
    Console().print(table_of_results(trainer, results))


def default_run_dir(settings: Settings) -> Path:
    """Name a folder after the task, the layer where it is not orthogonal, and the optimizer."""
    parts = [settings["task"], settings["optimizer"]]
    if settings["rnn"] != "orthogonal":
        parts.insert(1, settings["rnn"])
    if settings["optimizer"] == "srcd":
        parts.append(settings["selection"])
    return Path("runs", "-".join(parts))


def check_settings(ctx: click.Context, settings: Settings, given: set[str]) -> None:
    """Refuse settings that would have no effect, and settle those that depend on others."""
    for name in [name for name in NEEDS if name in given]:
        for other, value in NEEDS[name].items():
            if settings[other] != value:
                raise click.UsageError(
                    f"{flag(name)} is for {flag(other)} {value}, not for {settings[other]}", ctx
                )
    if settings["optimizer"] == "frozen" and "lr" in given:
        raise click.UsageError("--lr is the stepsize of W, which stays where it is", ctx)
    if settings["block_size"] is not None:
        if "block_fraction" in given:
            raise click.UsageError("give --block-fraction or --block-size, not both", ctx)
        settings["block_fraction"] = None
    if settings["init"] is None:
        settings["init"] = LAYERS[settings["rnn"]].default_init


def check_memory(ctx: click.Context, settings: Settings) -> None:
    """Refuse sizes for which the device has not the memory, before it is asked for."""
    device = torch.device(settings["device"])
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[1]
    elif device.type == "cpu" and hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    needed = least_memory(settings)
    if needed > there:
        raise click.UsageError(
            f"training would take {needed / 2**30:,.0f} GiB of memory or more, and {device} has "
            f"{there / 2**30:,.0f} GiB; lower --hidden-size, --batch-size or the length",
            ctx,
        )


def check_block(ctx: click.Context, settings: Settings, model: torch.nn.Module) -> None:
    """Refuse a block that is larger than the recurrent matrix has coordinates."""
    if settings["optimizer"] != "srcd" or settings["selection"] != "block":
        return
    d = settings["hidden_size"]
    (W,) = (p for p in model.parameters() if isinstance(p, ManifoldParameter))
    total = W.manifold.num_coordinates(W)
    size = settings["block_size"] or max(1, round(settings["block_fraction"] * total))
    most = d // 2 if settings["disjoint"] else total
    if size > most:
        raise click.UsageError(
            f"a block of {size} coordinates is too large: with --hidden-size {d} there are "
            f"{most}{' disjoint ones' if settings['disjoint'] else ''}; lower --block-size",
            ctx,
        )


def resumed_settings(
    ctx: click.Context, run_dir: Path, resume: str, settings: Settings, given: set[str]
) -> Settings:
    """Return the settings of the run in a folder, with the changes that are allowed."""
    checkpoint = run_dir / "checkpoint.pt"
    if resume == "previous":
        checkpoint = previous_checkpoint(checkpoint)
    saved = load_checkpoint(checkpoint).get("config")
    if (
        not isinstance(saved, dict)
        or set(saved) != set(settings)
        or saved["task"] != settings["task"]
    ):
        raise click.UsageError(
            f"{run_dir} does not hold a run of givens train {settings['task']}", ctx
        )
    for param in ctx.command.params:
        if param.name in saved and param.name not in given:
            check_saved(ctx, param, saved[param.name], checkpoint)
    changed = {name: settings[name] for name in sorted(given) if settings[name] != saved[name]}
    for name, value in changed.items():
        if name not in CHANGEABLE:
            raise click.UsageError(
                f"{run_dir} was started with {flag(name)} {saved[name]}, which --resume cannot "
                f"change to {value}",
                ctx,
            )
    return {**saved, **changed}


def check_saved(ctx: click.Context, param: click.Parameter, value: Any, checkpoint: Path) -> None:
    """Hold a setting from a checkpoint to what the command line would accept."""
    reason = "not of its type"
    try:
        accepted = param.type_cast_value(ctx, value)
        if param.callback is not None:
            accepted = param.callback(ctx, param, accepted)
        if type(accepted) is type(value):
            return
    except click.BadParameter as error:
        reason = error.message
    except (
        AttributeError,
        TypeError,
        ValueError,
        OverflowError,
    ):  # click's, for other types than text
        pass
    raise CheckpointError(
        f"{checkpoint} cannot be resumed: its {flag(str(param.name))} is {value!r}, {reason}"
    )


def draw(run_dir: Path) -> None:
    """Draw the losses of a run, if there are any: what a run has learned does not depend on it."""
    try:
        plot_losses([run_dir], run_dir / "loss.png")
    except ValueError as error:
        click.echo(f"givens: no picture was drawn: {error}", err=True)


def flag(name: str) -> str:
    """Return the option of a setting."""
    return "--" + name.replace("_", "-")


def table_of_results(trainer: Trainer, results: dict[str, float]) -> Table:
    """Set results, the baseline, orthogonality, cost and files in a table."""
    task = trainer.task
    table = Table(title=f"{task.name}, {trainer.step} steps", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in results.items():
        table.add_row(name, f"{value:.4g}")
    table.add_row(f"baseline: {task.baseline_name}", f"{task.baseline:.4g}")
    table.add_row("test loss / baseline", f"{results['test loss'] / task.baseline:.4g}")
    for parameter in trainer.model.parameters():
        if isinstance(parameter, ManifoldParameter):
            W = parameter.detach()
            W = W.to(torch.promote_types(W.dtype, torch.float64))
            error = (W.mH @ W - torch.eye(len(W), dtype=W.dtype, device=W.device)).abs().max()
            table.add_row(f"max |W{'ᴴ' if W.is_complex() else 'ᵀ'}W − I|", f"{error:.1e}")
    table.add_row("time", f"{trainer.seconds:.1f} s")
    table.add_section()
    for kind, name in {
        "picture": "loss.png",
        "metrics": "metrics.jsonl",
        "checkpoint": "checkpoint.pt",
    }.items():
        table.add_row(kind, str(trainer.run_dir / name))
    return table
