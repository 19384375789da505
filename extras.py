"""Optional dependencies: imported where they are used, with an error that says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which extra of the package to install when an import inside this context fails.

    Parameters
    ----------
    name : str
        The extra that brings the imported modules, as in ``pip install 'givens[name]'``.

    Raises
    ------
    ModuleNotFoundError
        When an imported module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: pip install 'givens[{name}]'", name=error.name
        ) from error
