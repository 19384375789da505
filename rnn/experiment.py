"""From settings, as plain data, to a task, a model and its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from geoopt import ManifoldParameter

from ..optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, Uniform
from .layer import OrthogonalRNN
from .model import SequenceModel
from .tasks import AddingProblem, CopyingMemory, PixelDigits, Task
from .unitary import UnitaryRNN

Settings = Mapping[str, Any]

# The largest recurrent matrix: up to it the numbers of coordinates are exact.
MAX_HIDDEN_SIZE = 65_536

TASKS: Mapping[str, Callable[..., Task]] = {
    "copying": CopyingMemory,
    "adding": AddingProblem,
    "digits": PixelDigits,
}
TASK_SETTINGS = ("length", "letters", "permuted", "batch_size", "seed")
LAYERS: Mapping[str, type[OrthogonalRNN] | type[UnitaryRNN]] = {
    "orthogonal": OrthogonalRNN,
    "unitary": UnitaryRNN,
}
OPTIMIZERS = ("srcd", "srgd", "frozen")
RULES: Mapping[str, Callable[[], Any]] = {"uniform": Uniform, "gauss-southwell": GaussSouthwell}
SELECTIONS = ("uniform", "cyclic", "gauss-southwell", "block")
OTHER_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def make_task(settings: Settings) -> Task:
    """Make the task ``settings["task"]``, out of those settings that it has."""
    sizes = {name: settings[name] for name in TASK_SETTINGS if name in settings}
    return TASKS[settings["task"]](
        **sizes, device=settings["device"], dtype=DTYPES[settings["dtype"]]
    )


def make_model(settings: Settings, task: Task) -> SequenceModel:
    """Make an orthogonal or unitary RNN with a readout that fits the task."""
    dtype = DTYPES[settings["dtype"]]
    rnn = LAYERS[settings["rnn"]](
        task.input_size,
        settings["hidden_size"],
        nonlinearity=settings["nonlinearity"],
        init=settings["init"],
        device=settings["device"],
        dtype=dtype.to_complex() if settings["rnn"] == "unitary" else dtype,
    )
    return SequenceModel(rnn, task.output_size, task.readout)


def make_optimizers(settings: Settings, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Make one optimizer for the recurrent matrices, unless they are frozen, and one for the rest.

    Frozen matrices ask for no gradient from here on.
    """
    on_manifold = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    optimizers = [OTHER_OPTIMIZERS[settings["other_optimizer"]](others, lr=settings["other_lr"])]
    if settings["optimizer"] == "frozen":
        for parameter in on_manifold:
            parameter.requires_grad_(False)
    elif settings["optimizer"] == "srgd":
        optimizers.insert(0, SRGD(on_manifold, settings["lr"], momentum=settings["momentum"]))
    else:
        selection = make_selection(settings)
        optimizers.insert(0, SRCD(on_manifold, settings["lr"], selection, seed=settings["seed"]))
    return optimizers


def make_selection(settings: Settings) -> Any:
    """Make the rule that chooses coordinates."""
    if settings["selection"] == "cyclic":
        return Cyclic()
    if settings["selection"] == "block":
        return Block(
            size=settings["block_size"],
            fraction=settings["block_fraction"],
            rule=RULES[settings["block_rule"]](),
            disjoint=settings["disjoint"],
        )
    return RULES[settings["selection"]]()


def least_memory(settings: Settings) -> int:
    """Return the bytes that a step needs at least.

    They are for W, its gradient and a product, and for the states of a batch and their derivatives.
    """
    length = {
        "copying": lambda: settings["length"] + 2 * settings["letters"],
        "adding": lambda: settings["length"],
        "digits": lambda: 64,
    }[settings["task"]]()
    dtype = DTYPES[settings["dtype"]]
    number = (dtype.to_complex() if settings["rnn"] == "unitary" else dtype).itemsize
    d = settings["hidden_size"]
    return int(number * d * (3 * d + 2 * length * settings["batch_size"]))


def set_rates(settings: Settings, optimizers: list[torch.optim.Optimizer]) -> None:
    """Give the optimizers of `make_optimizers` the learning rates of the settings."""
    rates = [settings["lr"], settings["other_lr"]][-len(optimizers) :]
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
