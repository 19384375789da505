"""Draw what the diagnostics see: right and wrong gradients, right and wrong moves.

The cost is the mean square of XA − B on O(6), in float64.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from givens.manifolds import CoordinateBlock, OrthogonalGroup, Stiefel
from givens.manifolds.testing import check_gradient, check_move
from givens.rnn.atomic import atomic_write


class AsPrinted(OrthogonalGroup):
    """O(d) with the angle of the paper's equation (12) as it is printed, without 1/√2."""

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Turn by the wrong angle."""
        return super().move_(x, block, math.sqrt(2) * t)


@click.command(help=__doc__)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parents[1] / "docs" / "images" / "diagnostics.png",
    help="The picture.  [default: docs/images/diagnostics.png]",
)
def main(output: Path) -> None:  # noqa: D103
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    a, b = normal(6, 6), normal(6, 6)
    group, stiefel = OrthogonalGroup(), Stiefel()
    x = group.random(6, 6, dtype=torch.float64, generator=generator)
    y = stiefel.random(6, 2, dtype=torch.float64, generator=generator)

    def cost(x: Tensor) -> Tensor:
        return (a @ x - b[:, : x.shape[-1]]).square().mean()

    def egrad(x: Tensor) -> Tensor:
        return 2 * a.mT @ (a @ x - b) / x.numel()

    found: dict[str, Any] = {
        "autograd": check_gradient(group, cost, x),
        "a factor 2 is missing": check_gradient(group, cost, x, egrad=lambda x: egrad(x) / 2),
        "a part of 10⁻⁵ is missing": check_gradient(
            group, cost, x, egrad=lambda x: egrad(x) + 1e-5 * b
        ),
        "motions and costs on O(6)": check_move(group, x, cost, count=2),
        "motions and costs on Stiefel(6, 2)": check_move(stiefel, y, cost, count=2),
        "O(6) without the angle's 1/√2": check_move(AsPrinted(), x, cost, count=2),
    }
    figure = Figure(figsize=(10.5, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (title, diagnosis) in zip(figure.subplots(2, 3).flat, found.items(), strict=True):
        print(title, diagnosis, sep="\n", end="\n\n")
        diagnosis.plot(ax)
        ax.set_title(f"{title}: {'right' if diagnosis else 'WRONG'}", fontsize="medium")
    with atomic_write(output) as file:
        figure.savefig(file, format="png")


if __name__ == "__main__":
    main()
