r"""
Principal components, in order
==============================

The principal components of a data set span the subspace of largest variance. Any orthonormal basis of
it explains as much, and a cost that sees only the subspace cannot tell the components from each other.
Brockett's cost (1991) can: it gives the columns of :math:`x` different weights,

.. math:: f(x) = -\operatorname{tr}(x^\top C x N), \qquad N = \operatorname{diag}(3, 2, 1), \qquad
          x^\top x = I,

and its minimum is at the first eigenvectors of the correlation matrix :math:`C`, the first one first.
Here a wine is described by 13 chemical measurements. A coordinate of :class:`~givens.manifolds.Stiefel`
rotates two rows of :math:`x`, that is, two of the measurements in all the components.
"""

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from sklearn.datasets import load_wine

from givens.manifolds import Stiefel
from givens.optim import SRCD, Matching

torch.manual_seed(0)
wine = load_wine()
z = torch.tensor(wine.data)
z = (z - z.mean(0)) / z.std(0)
C = z.T.cov()
eigenvalues, eigenvectors = (a.flip(-1) for a in torch.linalg.eigh(C))  # the largest first

# %%
# Every step rotates six pairs of the 13 rows: the steepest one, the steepest of those that share no row
# with it, and so on.

N = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
x = ManifoldParameter(Stiefel().random(13, 3, dtype=torch.float64))
optimizer = SRCD([x], lr=0.2, selection=Matching("greedy"))
angles = []
for _ in range(500):
    optimizer.zero_grad()
    cost = -(C @ x * x * N).sum()
    cost.backward()
    optimizer.step()
    y, v = x.detach(), eigenvectors[:, :3]
    sines = (y - v * (v * y).sum(0)).norm(dim=0)
    angles.append(sines.arcsin().rad2deg())

# %%
# The variances of the components are the eigenvalues.

found = (C @ x * x).sum(0).detach()
known = eigenvalues[:3]
print("variance of the components")
print("  SRCD      ", *(f"{v:.6f}" for v in found))
print("  eigenvalue", *(f"{v:.6f}" for v in known))

# %%

plt.style.use("seaborn-v0_8-colorblind")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for i, style in enumerate(("-", "--", ":")):
    left.semilogy(torch.stack(angles)[:, i], style, linewidth=2, label=f"component {i + 1}")
left.set(xlabel="step", ylabel="angle to the eigenvector (°)")
left.legend(frameon=False)
scores = (z @ x).detach().numpy()
for cultivar, marker in enumerate("o^s"):
    chosen = wine.target == cultivar
    right.scatter(*scores[chosen, :2].T, s=24, marker=marker, label=f"cultivar {cultivar + 1}")
right.set(xlabel="component 1", ylabel="component 2", aspect="equal")
right.legend(frameon=False)
for ax in (left, right):
    ax.grid(color="0.9")
plt.show()
