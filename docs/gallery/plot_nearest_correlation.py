r"""
The nearest correlation matrix
==============================

When values are missing from a table, each correlation is estimated from the rows in which both values
are there. Every number is sound by itself, and yet together they may be impossible: the matrix
:math:`A` has negative eigenvalues, and whatever is built on it, such as a regression or a simulation,
fails. The remedy is the nearest correlation matrix (Higham, 2002), the solution of

.. math:: \min\; \lVert C - A\rVert_F^2 \quad\text{over}\quad C \succeq 0,\; \operatorname{diag} C = 1.

A correlation matrix is the matrix of inner products of unit vectors, :math:`C = X^\top X`. So the
constraints are one: the columns of :math:`X` are unit vectors, a point of
:class:`~givens.manifolds.Oblique`. A coordinate turns one of these vectors in the plane of two axes.
"""

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from sklearn.datasets import load_breast_cancer

from givens.manifolds import Oblique
from givens.optim import SRCD, Block

# %%
# Thirty measurements of sixty patients, of which two in five are lost, and the correlations of every
# two of them over the patients who have both.

torch.manual_seed(0)
table = torch.tensor(load_breast_cancer().data[:60])
table = (table - table.mean(0)) / table.std(0)
present = (torch.rand(60, 30) > 0.4).double()
table = table * present
both = present.T @ present
mean = table.T @ present / both  # [i, j]: mean of i over the patients who also have j
variance = table.square().T @ present / both - mean.square()
A = (table.T @ table / both - mean * mean.T) / (variance * variance.T).sqrt()

# %%
# Twenty dimensions are more than the thirty unit vectors will need. Every step turns along a quarter of all
# coordinates, the steepest ones.

X = ManifoldParameter(Oblique().random(20, 30, dtype=torch.float64))
optimizer = SRCD([X], lr=0.1, selection=Block(fraction=0.25))
for _ in range(600):
    optimizer.zero_grad()
    cost = (X.T @ X - A).square().sum() / 4
    cost.backward()
    optimizer.step()
found = (X.T @ X).detach()

# %%
# Higham's algorithm projects on the positive semidefinite matrices and on those with a unit diagonal in
# turn, with Dykstra's correction. The problem is convex in :math:`C`, and this is its one solution.

known, correction = A, torch.zeros_like(A)
for _ in range(200):
    values, vectors = torch.linalg.eigh(known - correction)
    nearest = vectors * values.clamp(min=0) @ vectors.T
    correction += nearest - known
    known = nearest.clone().fill_diagonal_(1)

print(f"smallest eigenvalue of A: {torch.linalg.eigvalsh(A)[0]:.4f}")
print(f"distance from A: SRCD {(found - A).norm():.4f}, Higham {(known - A).norm():.4f}")
print(f"largest difference of an entry: {(found - known).abs().max():.4f}")

# %%
# The negative eigenvalues have become zeros; the result is singular, as the nearest one always is.

plt.style.use("seaborn-v0_8-colorblind")
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for name, matrix, style in (
    ("estimated pair by pair", A, "s"),
    ("nearest correlation matrix, SRCD", found, "o"),
    ("nearest correlation matrix, Higham", known, "k+"),
):
    ax.plot(range(1, 21), torch.linalg.eigvalsh(matrix)[:20], style, label=name)
ax.axhline(0, color="0.6", linewidth=1, zorder=0)
ax.set(xlabel="number of the eigenvalue", ylabel="eigenvalue, the 20 smallest of 30")
ax.set_xticks(range(2, 21, 2))
ax.legend(frameon=False)
ax.grid(color="0.9")
plt.show()
