"""What the tests go through: selections and scalings of every kind, and the optimizers that they make."""

from dataclasses import dataclass
from typing import Any

from givens.manifolds import All, CoordinateBlock
from givens.optim import (
    SRCD,
    SRGD,
    Adam,
    AxisRMSProp,
    Block,
    Capture,
    Cyclic,
    GaussSouthwell,
    GradientView,
    Grouping,
    Growing,
    Matching,
    Momentum,
    RMSProp,
    Scaling,
    Selection,
    Uniform,
)
from givens.optim.base import ManifoldOptimizer


@dataclass(frozen=True)
class Everything:
    """A user's selection: all coordinates, after a look at the gradient itself."""

    def select(self, view: GradientView) -> CoordinateBlock:
        assert view.egrad.shape == view.x.shape
        return All()


SELECTIONS: dict[str, Selection] = {
    "uniform": Uniform(),
    "cyclic": Cyclic(),
    "gauss-southwell": GaussSouthwell(),
    "block": Block(size=2),
    "uniform block": Block(size=2, rule=Uniform()),
    "disjoint block": Block(size=2, disjoint=True),
    "random matching": Matching("random"),
    "round-robin matching": Matching("round-robin"),
    "greedy matching": Matching("greedy"),
    "rounds": Matching(rounds=2),
    "random groups": Grouping(3, "random"),
    "round-robin groups": Grouping(3, "round-robin"),
    "greedy groups": Grouping(3, "greedy"),
    "growing": Growing(every=3),
    "capture": Capture(),
    "everything": Everything(),
}
SCALINGS: dict[str, Scaling | None] = {
    "none": None,
    "momentum": Momentum(),
    "rmsprop": RMSProp(),
    "adam": Adam(),
    "amsgrad": Adam(amsgrad=True),
    "adam by steps": Adam(clock="steps"),
    "axis-rmsprop": AxisRMSProp(),
}
METHODS: dict[str, Selection | None] = {**SELECTIONS, "srgd": None}


def build(
    params: Any, lr: float, method: str, scaling: str = "none", **options: Any
) -> ManifoldOptimizer:
    """The optimizer of two names."""
    selection = METHODS[method]
    if selection is None:
        return SRGD(params, lr, scaling=SCALINGS[scaling], **options)
    return SRCD(params, lr, selection, SCALINGS[scaling], **options)
