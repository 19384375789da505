"""The command line ``givens``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from geoopt.manifolds import Manifold

from .. import __version__, manifolds
from ..extras import extra
from .checkpoint import CheckpointError
from .experiment import LAYERS, OPTIMIZERS, SELECTIONS, TASKS
from .initialization import UNITARY_INITIALIZATIONS
from .logs import MetricsError
from .plotting import plot_losses
from .recurrence import NONLINEARITIES
from .training import DivergenceError

try:
    with extra("cli"):
        import click
        from rich.console import Console
        from rich.table import Table

        from .train_command import PathType, train
except ModuleNotFoundError as missing:
    raise SystemExit(f"givens: error: {missing}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the name of the program; by default ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit status: 0; 1 for a failure, 2 for a wrong call, 130 after Ctrl-C, 143 after
        SIGTERM. Failures are one line on the standard error.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return givens.main(arguments, prog_name="givens", standalone_mode=False) or 0
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return _fail(error.format_message().rstrip(".") + hint, 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        return _fail(about + (error.strerror or str(error)), 1)
    except (CheckpointError, DivergenceError, MetricsError, ModuleNotFoundError) as error:
        return _fail(str(error), 1)


def _fail(message: str, status: int) -> int:
    click.echo("givens: error: " + " ".join(message.split()), err=True)
    return status


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
    Examples:
      givens train copying                      about a minute on two cores
      givens train copying --optimizer frozen   the control: W stays as it was drawn
      givens plot runs/* -o curves.png          both loss curves, and the baseline
    """,
)
@click.version_option(__version__, prog_name="givens")
@click.pass_context
def givens(ctx: click.Context) -> None:
    """Train orthogonal and unitary recurrent networks by coordinate descent.

    The recurrent matrix W, of size d × d, stays orthogonal, or unitary, because it only ever turns: in
    a few planes (SRCD, O(d) each), or along the whole Riemannian gradient (SRGD, O(d³)).
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


givens.add_command(train)


@givens.command(
    epilog="""\b
    Example:
      givens plot runs/copying-frozen runs/copying-srcd-block -o curves.png
    """
)
@click.argument("runs", nargs=-1, required=True, type=PathType(), metavar="RUN...")
@click.option(
    "-o",
    "--output",
    type=PathType(dir_okay=False),
    default=Path("loss.png"),
    show_default=True,
    help="The picture; its ending says the format: .png, .pdf, .svg.",
)
def plot(runs: tuple[Path, ...], output: Path) -> None:
    """Draw the loss curves of runs, beside the baseline.

    A RUN is the folder that a training has filled, or is filling.
    """
    try:
        plot_losses(runs, output)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(output)


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
        "torch": [str(torch.__version__)],  # says which build, too
        **{name: [version(name)] for name in ("geoopt", "numpy", "scipy")},
        "devices": devices,
        "tasks": TASKS,
        "layers": LAYERS,
        "optimizers": OPTIMIZERS,
        "selections": SELECTIONS,
        "initializations": UNITARY_INITIALIZATIONS,
        "nonlinearities": NONLINEARITIES,
        "manifolds": geometries,
    }.items():
        table.add_row(name, ", ".join(values))
    Console().print(table)
