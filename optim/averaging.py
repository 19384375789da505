"""Averages of models whose parameters live on manifolds."""

from __future__ import annotations

import torch
from geoopt.manifolds import Manifold
from torch import Tensor, nn
from torch.optim import swa_utils

from ..manifolds import CoordinateManifold
from .parameters import manifold_of

__all__ = ["AveragedModel"]


class AveragedModel(swa_utils.AveragedModel):
    r"""Torch's ``AveragedModel``, whose averages of points stay on their manifolds.

    The mean of two orthogonal matrices is not orthogonal. A new point x therefore enters the average a
    along the geodesic that joins them, a ← Exp_a(w · Log_a(x)): with w = 1/(n + 1) the average of
    equal weights (Tripuraneni, Flammarion, Bach and Jordan, 2018), with w = 1 − decay the
    exponential moving average. Where a manifold has no logarithm (a Stiefel manifold with
    1 < p < n), the average is formed in the surrounding space and projected, which agrees to second
    order in the distance of x from a on manifolds whose projection is the nearest point. Parameters
    without a manifold are torch's to the last bit, and so are buffers.

    Parameters
    ----------
    model, device, avg_fn, multi_avg_fn, use_buffers
        As in :class:`torch.optim.swa_utils.AveragedModel`. The averaging function must be a weighted
        mean of its two arguments, as those of ``swa_utils`` are: on a manifold it is applied in the tangent
        space of the average, where that is 0.

    Raises
    ------
    ValueError
        By ``update_parameters``, where no geodesic joins the points: on O(d), where their determinants
        differ. Nothing has been changed then.

    Notes
    -----
    A logarithm and an exponential for every manifold parameter: on O(d) a few d×d decompositions, which
    cost more than a step, so that averaging every so many steps is cheaper than every step.

    An averaging function alone cannot do this, because torch hands it plain tensors: with torch's own
    ``AveragedModel`` the averages leave their manifolds.

    Examples
    --------
    >>> from torch.optim.swa_utils import get_ema_multi_avg_fn
    >>> from givens.manifolds import OrthogonalGroup, constrain
    >>> from givens.optim import AveragedModel
    >>> model = constrain(torch.nn.Linear(8, 8), "weight", OrthogonalGroup())
    >>> averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    >>> averaged.update_parameters(model)  # after a step of the optimizer
    """

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Let the parameters of a model enter the average; on the first call, copy them."""
        points = []
        if self.n_averaged > 0:
            for averaged, current in zip(self.module.parameters(), model.parameters(), strict=True):
                manifold = manifold_of(averaged)
                if manifold is not None:
                    x = current.detach().to(averaged.device)
                    points.append((averaged, self._mean(manifold, averaged.detach(), x)))
        super().update_parameters(model)
        for averaged, point in points:
            averaged.copy_(point)

    def _mean(self, manifold: Manifold, a: Tensor, x: Tensor) -> Tensor:
        """Average a point x into the average a."""
        try:
            u = manifold.logmap(a, x)
        except NotImplementedError:
            return manifold.projx(self._weighted(a, x))
        mean = manifold.expmap(a, self._weighted(torch.zeros_like(u), u))
        if isinstance(manifold, CoordinateManifold):
            return manifold.restore_(mean)
        return manifold.projx(mean)

    def _weighted(self, averaged: Tensor, current: Tensor) -> Tensor:
        """Apply the averaging function."""
        n = self.n_averaged.to(averaged.device)
        if self.multi_avg_fn is None:
            return (self.avg_fn or swa_utils.get_swa_avg_fn())(averaged, current, n)
        mean = averaged.clone()
        self.multi_avg_fn([mean], [current], n)
        return mean
