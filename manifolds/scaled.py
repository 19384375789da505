"""A manifold with its metric multiplied by a constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import CoordinateManifold
from .blocks import CoordinateBlock
from .wrapped import Wrapped

__all__ = ["Scaled"]


class Scaled(Wrapped):
    r"""A manifold whose lengths are s times as long: ⟨ξ, ζ⟩ₛ = s²⟨ξ, ζ⟩.

    Points, tangent vectors, geodesics, coordinates and moves are those of the base. Norms and
    distances grow by s, and gradients shrink by s²: ⟨gradₛ f, ξ⟩ₛ = Df(x)[ξ]. So a step of the same
    stepsize is s² times shorter, which is what the class is for: in a
    :class:`~givens.manifolds.Product` it balances factors of different units.

    ``geoopt.Scaled`` differs: it takes vectors for lengths, so that its ``expmap(x, u)`` leaves `x`
    with the velocity u/s, and it scales neither ``inner`` nor ``egrad2rgrad``.

    Parameters
    ----------
    manifold : CoordinateManifold
        The base.
    scale : float or Tensor
        s > 0. A number becomes a tensor of torch's default type, a floating-point tensor keeps its own.
    learnable : bool
        Whether log s is a parameter of the module, through which gradients of norms, inner products
        and distances flow.

    Attributes
    ----------
    base : CoordinateManifold
        As given.

    Examples
    --------
    A rigid motion: a rotation, in radians, and a translation, in millimetres, one of which is as
    far as 0.01 radians. So a gradient step moves both at rates that suit them:

    >>> import torch
    >>> from givens.manifolds import Euclidean, OrthogonalGroup, Product, Scaled
    >>> motions = Product((OrthogonalGroup(), (3, 3)), (Scaled(Euclidean(), 0.01), (3,)))
    >>> x = motions.pack_point(torch.eye(3), torch.zeros(3))
    >>> y = motions.pack_point(torch.eye(3), torch.tensor([0.0, 30.0, 40.0]))
    >>> round(float(motions.dist(x, y)), 6)
    0.5
    """

    def __init__(
        self, manifold: CoordinateManifold, scale: float | Tensor = 1.0, learnable: bool = False
    ) -> None:
        scale = torch.as_tensor(scale).detach().clone()
        if not scale.is_floating_point():
            scale = scale.to(torch.get_default_dtype())
        if scale.dim() > 0 or not bool(scale.isfinite() & (scale > 0)):
            raise ValueError(f"scale={scale}: expected one finite number above 0")
        super().__init__(manifold)
        self.every_pair = manifold.every_pair
        # The names of geoopt's, for its saved states.
        if learnable:
            self.register_buffer("_scale", None)
            self.register_parameter("_log_scale", nn.Parameter(scale.log()))
        else:
            self.register_buffer("_scale", scale)
            self.register_buffer("_log_scale", None)

    @property
    def scale(self) -> Tensor:
        """s, a tensor without dimensions."""
        return self._log_scale.exp() if self._scale is None else self._scale

    @property
    def log_scale(self) -> Tensor:
        """Log s."""
        return self._scale.log() if self._log_scale is None else self._log_scale

    @property
    def device(self) -> torch.device | None:
        """Device of the base: the scale goes with every one."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the base: the scale goes with every one."""
        return self.base.dtype

    def extra_repr(self) -> str:
        """Show the scale."""
        return f"scale={float(self.scale.detach()):g}"

    # Metric

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient: that of the base, divided by s²."""
        return self._times(self.base.egrad2rgrad(x, u), -2)

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """Inner product of the base, times s²; v = u by default."""
        return self._times(self.base.inner(x, u, v, keepdim=keepdim), 2)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """That of the base, times s², for geoopt's adaptive optimizers."""
        return self._times(self.base.component_inner(x, u, v), 2)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """Norm in the base, times s."""
        return self._times(self.base.norm(x, u, keepdim=keepdim), 1)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Distance in the base, times s."""
        return self._times(self.base.dist(x, y, keepdim=keepdim), 1)

    # Coordinates

    @property
    def frame_bounds(self) -> tuple[float, float] | None:  # type: ignore[override]
        """Those of the base, times s²: the directions are the same vectors, s times as long."""
        if self.base.frame_bounds is None:
            return None
        square = float(self.scale.detach()) ** 2
        return square * self.base.frame_bounds[0], square * self.base.frame_bounds[1]

    def num_axes(self, x: Tensor) -> int:
        """Number of axes of the base."""
        return self.base.num_axes(x)

    def num_coordinates(self, x: Tensor) -> int:
        """Number of coordinates of the base."""
        return self.base.num_coordinates(x)

    def num_disjoint(self, x: Tensor) -> int:
        """Number of disjoint coordinates of the base."""
        return self.base.num_disjoint(x)

    def axes(self, x: Tensor, index: Tensor) -> Tensor:
        """Axes of the base."""
        return self.base.axes(x, index)

    def direction(self, x: Tensor, index: Tensor) -> Tensor:
        """Directions of the base."""
        return self.base.direction(x, index)

    def derivatives(self, x: Tensor, egrad: Tensor, block: CoordinateBlock) -> Tensor:
        """Derivatives of the base: Df(x)[f_i] needs no metric."""
        return self.base.derivatives(x, egrad, block)

    def move_(self, x: Tensor, block: CoordinateBlock, t: Tensor) -> Tensor:
        """Move as the base does."""
        return self.base.move_(x, block, t)

    def step_scale(self, x: Tensor, block: CoordinateBlock) -> Tensor:
        """Return the step scales of the base, times s²."""
        return self._times(self.base.step_scale(x, block), 2)

    def steepest(self, x: Tensor, egrad: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the steepest of the base: all slopes shrink by s."""
        return self.base.steepest(x, egrad, k)

    def candidates(self, x: Tensor, egrad: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        """Return the candidates of the base."""
        return self.base.candidates(x, egrad, k, dtype)

    def coupling(self, x: Tensor, egrad: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return the coupling of the base, over s."""
        return self._times(self.base.coupling(x, egrad, dtype=dtype), -1)

    def descend_(
        self,
        x: Tensor,
        egrad: Tensor,
        block: CoordinateBlock,
        rule: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Step as the base does, with s² times its step scales."""
        return self.base.descend_(x, egrad, block, lambda f, scale: rule(f, self._times(scale, 2)))

    @property
    def low_rank_maps(self) -> frozenset[str]:  # type: ignore[override]
        """Those of the base."""
        return self.base.low_rank_maps

    def follow_low_rank(
        self, x: Tensor, left: Tensor, right: Tensor, *, map: str = "expmap"
    ) -> Tensor:
        """Step as the base does, along a gradient divided by s²."""
        return self.base.follow_low_rank(x, left, self._times(right, -2), map=map)

    def restore_period(self, x: Tensor) -> int:
        """Period of the base."""
        return self.base.restore_period(x)

    def check_block(self, x: Tensor, block: CoordinateBlock) -> None:
        """Check as the base does."""
        self.base.check_block(x, block)

    def _times(self, value: Tensor, power: int) -> Tensor:
        """Return `value` times a power of s, taken in the precision of `value`."""
        return value * self.scale.to(value.real.dtype) ** power
