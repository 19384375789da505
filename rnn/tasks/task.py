"""What a task is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

Batch: TypeAlias = tuple[Tensor, Tensor]


class Task(Protocol):
    """A sequence of batches with a loss, metrics, and a baseline to hold the loss against.

    ``task[n]`` is batch number n, a pure function of the task's seed and of n: so a run that is
    resumed sees the batches that an unbroken one would have seen, without any state to save.
    There is no last batch: ``for input, target in task`` never ends.

    Batches are sequence-first, as `torch.nn.RNN` has them, on the device and in the dtype of the
    model.

    Attributes
    ----------
    name : str
        A short name, for titles and tables.
    input_size, output_size : int
        Features of one step of the input and of the model's output.
    readout : {"every", "last"}
        Whether the loss reads the output at every step, shape ``(steps, batch, output_size)``,
        or after the last one, shape ``(batch, output_size)``.
    baseline : float
        A loss that needs no memory of the sequence: what a model must get under to have learnt.
    baseline_name : str
        What the baseline is the loss of.

    Examples
    --------
    Any object with these attributes is a task. *Which symbol came first?*, in a few lines:

    >>> import math, torch
    >>> import torch.nn.functional as F
    >>> class First:
    ...     name, input_size, output_size, readout = "first symbol", 4, 4, "last"
    ...     baseline, baseline_name = math.log(4), "guessing"
    ...
    ...     def __getitem__(self, n):
    ...         symbols = torch.randint(4, (50, 16), generator=torch.Generator().manual_seed(n))
    ...         return F.one_hot(symbols, 4).float(), symbols[0]
    ...
    ...     def loss(self, output, target):
    ...         return F.cross_entropy(output, target)
    ...
    ...     def metrics(self, output, target):
    ...         return {"accuracy": (output.argmax(-1) == target).float().mean()}
    >>> input, target = First()[0]
    >>> input.shape, target.shape
    (torch.Size([50, 16, 4]), torch.Size([16]))
    """

    @property
    def name(self) -> str: ...  # noqa: D102 (documented above)
    @property
    def input_size(self) -> int: ...  # noqa: D102
    @property
    def output_size(self) -> int: ...  # noqa: D102
    @property
    def readout(self) -> Literal["every", "last"]: ...  # noqa: D102
    @property
    def baseline(self) -> float: ...  # noqa: D102
    @property
    def baseline_name(self) -> str: ...  # noqa: D102

    def __getitem__(self, n: int, /) -> Batch:
        """Return batch number n, counted from 0: the input and the target."""
        ...

    def loss(self, output: Tensor, target: Tensor, /) -> Tensor:
        """Return the mean loss over a batch, a differentiable scalar."""
        ...

    def metrics(self, output: Tensor, target: Tensor, /) -> dict[str, Tensor]:
        """Return named means over a batch (scalars), such as an accuracy."""
        ...


@runtime_checkable
class HeldOut(Protocol):
    """A task with data that training never sees.

    A task that draws fresh batches for ever does not need it: there every batch is unseen until
    it has been trained on.
    """

    def held_out(self) -> Iterable[Batch]:
        """Return the held-out data, as batches."""
        ...


def require_at_least(minimum: int, **sizes: int) -> None:
    """Refuse sizes under `minimum`, naming the first.

    Raises
    ------
    ValueError
        When a size is too small.
    """
    for name, size in sizes.items():
        if size < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {size}")


def batch_seed(seed: int, n: int) -> tuple[int, int]:
    """Return the seed of batch n, for `numpy.random.default_rng`, which mixes the two numbers.

    Raises
    ------
    IndexError
        When n is negative: there is no last batch to count from.
    """
    if n < 0:
        raise IndexError(f"batches are numbered from 0, got {n}")
    return seed, n
