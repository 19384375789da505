"""How many moves a step counts for, on the way to the next restoration of a point."""

from __future__ import annotations

import math

from ..manifolds import CoordinateBlock, Coordinates, Groups

__all__ = ["low_rank_moves", "moves"]

# How many steps there are between restorations at most, where a step costs products of whole points
# anyway. A dense one rounds every entry of a point, and its own factor, where the angles are large.
# One that ranks all coordinates comes back to the same few pairs of axes, or groups of them, where
# angles are rounded in the same direction again and again.
_DENSE_STEPS = 2
_RANKED_GROUPS_STEPS = 4
_RANKED_STEPS = 8
# Of as many products as a point has columns, at which restoration costs a twelfth of what it is spread over.
_LOW_RANK_STEPS = 4


def moves(block: CoordinateBlock, period: int, *, ranked: bool = False) -> int:
    """Return the number of moves of one coordinate that a step along a block counts for.

    A group of r axes, r > 2, counts as r² of them. What costs as much as a product of whole points counts for
    more than it moves: a dense step, and one that looked at all derivatives.

    Parameters
    ----------
    block : CoordinateBlock
        What was moved.
    period : int
        The manifold's ``restore_period``: after so many moves restoration is due.
    ranked : bool
        Whether the derivatives along all coordinates were looked at.

    Returns
    -------
    int
        At most half a period, from shapes alone.
    """
    dense = math.ceil(period / _DENSE_STEPS)
    if isinstance(block, Groups):
        n, r = block.axes.shape[-2:]
        size = n if r == 2 else n * r * r
        steps = _RANKED_STEPS if r == 2 else _RANKED_GROUPS_STEPS
    elif isinstance(block, Coordinates) and (block.disjoint or block.index.shape[-1] == 1):
        size, steps = block.index.shape[-1], _RANKED_STEPS
    else:
        return dense
    return min(max(size, math.ceil(period / steps)) if ranked else size, dense)


def low_rank_moves(k: int, width: int, period: int) -> int:
    """Return the number of moves of one coordinate that a step along a gradient of rank k counts for.

    So many that restoration is due after 4p/k steps, p = `width` being the number of columns of a point,
    and after √p/2 at the latest: the same gradient again and again rounds the entries, of the order of
    1/√p, in the same direction every time.
    """
    steps = max(_DENSE_STEPS, min(_LOW_RANK_STEPS * width // k, math.isqrt(width) // 2))
    return math.ceil(period / steps)
