"""How far out hyperbolic space can be computed with: errors of distances, logarithms and moves.

Points at a distance r from the origin, k = 1, n = 4, against arithmetic with 80 digits. Of 20 samples the
largest error of the distance of two points that are 1 apart, of geoopt's distance of the same points in
float64, of Exp(Log), and of 50 moves there and back, beside ε·x_0, the width of a point.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import geoopt
import mpmath
import torch
from report import output_option, show_machine, show_table, write_json
from torch import Tensor

from givens.manifolds import Coordinates, Lorentz

N, SAMPLES, MOVES = 4, 20, 50
DISTANCES = {torch.float32: (5, 9, 13, 17), torch.float64: (9, 17, 29, 37)}
SPACE = Lorentz()
GEOOPT = geoopt.Lorentz(k=torch.tensor(1.0, dtype=torch.float64))


def true_distance(x: Tensor, y: Tensor) -> float:
    """Distance of the points with these n last entries, to 80 digits."""
    with mpmath.workdps(80):
        a, b = ([mpmath.mpf(v) for v in p[1:].tolist()] for p in (x, y))
        heights = [mpmath.sqrt(1 + mpmath.fsum(v * v for v in p)) for p in (a, b)]
        product = heights[0] * heights[1] - mpmath.fsum(map(mpmath.fmul, a, b))
        return float(mpmath.acosh(product)) if product > 1 else 0.0


def sample(r: float, dtype: torch.dtype, generator: torch.Generator) -> dict[str, float]:
    """Errors at one point in a random direction."""
    ray = torch.randn(N, dtype=torch.float64, generator=generator)
    spatial = ray / ray.norm() * math.sinh(r)
    x = SPACE.projx(SPACE.projx(torch.cat([spatial.new_zeros(1), spatial])).to(dtype))
    wide = x.double()
    u = torch.randn(N + 1, dtype=torch.float64, generator=generator)
    u = SPACE.proju(wide, u)
    y = SPACE.projx(SPACE.expmap(wide, u / SPACE.norm(wide, u)).to(dtype))
    expected = true_distance(x, y)

    moved = x.clone()
    index = torch.randint(N * (N + 1) // 2, (MOVES,), generator=generator)
    times = 0.3 * torch.randn(MOVES, dtype=torch.float64, generator=generator)
    way = list(zip(index.split(1), times.split(1), strict=True))
    for i, t in way + [(i, -t) for i, t in reversed(way)]:
        SPACE.move_(moved, Coordinates(i, disjoint=True), t)
    return {
        "distance": abs(float(SPACE.dist(x, y)) - expected),
        "geoopt's": abs(float(GEOOPT.dist(wide, y.double())) - expected),
        "Exp(Log)": true_distance(SPACE.expmap(x, SPACE.logmap(x, y)), y),
        "moves": true_distance(moved, x),
    }


@click.command(help=__doc__)
@output_option
def main(output: Path) -> None:  # noqa: D103
    show_machine()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for dtype, distances in DISTANCES.items():
        for r in distances:
            samples = [sample(r, dtype, generator) for _ in range(SAMPLES)]
            worst = {
                name: float(torch.tensor([s[name] for s in samples]).max())  # NaN is the largest
                for name in samples[0]
            }
            width = torch.finfo(dtype).eps * math.cosh(r)
            rows.append({"type": str(dtype)[6:], "r": str(r), **worst, "width": width})
    show_table(
        "Largest errors",
        list(rows[0]),
        [[v if isinstance(v, str) else f"{v:.0e}" for v in row.values()] for row in rows],
    )
    write_json(output / "lorentz.json", {"rows": rows})


if __name__ == "__main__":
    main()
