r"""
Distances that were not measured
================================

Thirty ships and twenty-four stations on a coast: every station measures how far away it hears a ship, and
two pairs in five do not hear each other. The table of squared distances :math:`D_{ij} = \lVert a_i\rVert^2
- 2a_i^\top b_j + \lVert b_j\rVert^2` has rank four, in the plane, wherever they all are, and that is enough
to fill it in:

.. math:: \min\; \tfrac12\sum_{(i,j)\text{ measured}} \bigl((USV^\top)_{ij} - D_{ij}\bigr)^2
          \quad\text{over}\quad U^\top U = I,\; V^\top V = I,\; S \in \mathbb{R}^{4\times4}.

Matrices of rank four are a :class:`~givens.manifolds.Product`: of two points of
:class:`~givens.manifolds.Stiefel` and a small matrix without a constraint. A change of U changes the table in
proportion to S. So that a unit of each factor is worth about as much, the first and the last are
:class:`~givens.manifolds.Scaled`, by a number of the size of S.
"""

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter

from givens.manifolds import Euclidean, Product, Scaled, Stiefel
from givens.optim import SRCD, Block, Momentum

# %%
# Positions in a square, in units of its side.

torch.manual_seed(0)
ships, stations = torch.rand(30, 2, dtype=torch.float64), torch.rand(24, 2, dtype=torch.float64)
known = torch.cdist(ships, stations).square()
measured = torch.rand(30, 24) < 0.6

# %%
# The start is the singular value decomposition of the table with zeros where nothing was measured, which a
# factor makes up for.

U, s, Vt = torch.linalg.svd(torch.where(measured, known, 0.0) / measured.double().mean())
U, S, V = U[:, :4], torch.diag(s[:4]), Vt[:4].T
start = U @ S @ V.T

columns = Scaled(Stiefel("canonical"), 5.0)
rank_four = Product((columns, (30, 4)), (Euclidean(2), (4, 4)), (columns, (24, 4)))
x = ManifoldParameter(rank_four.pack_point(U, S, V), manifold=rank_four)

# %%
# Every step moves along the steepest 30 % of the coordinates: rotations of two rows of U or of V, and entries
# of S.

optimizer = SRCD([x], lr=0.3, selection=Block(fraction=0.3), scaling=Momentum(0.9))
for _ in range(1000):
    optimizer.zero_grad()
    U, S, V = rank_four.unpack_tensor(x)
    cost = (U @ S @ V.T - known)[measured].square().sum() / 2
    cost.backward()
    optimizer.step()
found = (U @ S @ V.T).detach()

# %%
# Nothing else was used of the distances that are known here.

print("largest error of a squared distance that was not measured")
for name, table in (("start", start), ("rank four", found)):
    print(f"  {name:10} {(table - known)[~measured].abs().max():.1e}")

# %%

plt.style.use("seaborn-v0_8-colorblind")
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
ax.plot([0, 1.1], [0, 1.1], color="0.7", linewidth=1)
for name, table, style in (("start", start, "x"), ("rank four", found, "o")):
    distance = table[~measured].clamp(min=0).sqrt()
    ax.plot(known[~measured].sqrt(), distance, style, markersize=4, label=name)
ax.set(xlabel="distance that was not measured", ylabel="as it was filled in")
ax.legend(frameon=False)
ax.grid(color="0.9")
plt.show()
