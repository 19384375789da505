r"""
Fewer variables: a sparse principal component
=============================================

The first principal component of the breast-cancer data mixes all ten measurements of a cell's nucleus. One
that uses three or four of them explains less of the variance, but tells more. Such a loading
:math:`x`, :math:`\lVert x\rVert = 1`, comes from a penalty on its entries,

.. math:: f(x) = -x^\top C x + \lambda \sum_i \sqrt{x_i^2 + \varepsilon^2},

where :math:`C` is the correlation matrix. A coordinate of :class:`~givens.manifolds.Sphere` rotates two
entries of :math:`x`: it moves weight from one measurement to another, and leaves the rest alone.
"""

from itertools import combinations

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from sklearn.datasets import load_breast_cancer

from givens.manifolds import Sphere
from givens.optim import SRCD, Block

names = [name.removeprefix("mean ") for name in load_breast_cancer().feature_names[:10]]
C = torch.tensor(load_breast_cancer().data[:, :10]).T.corrcoef()
leading = torch.linalg.eigh(C).eigenvectors[:, -1]

# %%
# All penalties at once: one parameter holds a loading for each, and every loading gets the five steepest
# coordinates of its own. They start at the dense component.

penalty = torch.linspace(0, 4.4, 56, dtype=torch.float64)
x = ManifoldParameter(leading.repeat(56, 1), manifold=Sphere())
optimizer = SRCD([x], lr=0.01, selection=Block(size=5))
for _ in range(600):
    optimizer.zero_grad()
    smooth_norm = (x.square() + 0.05**2).sqrt().sum(-1)
    cost = -(x @ C * x).sum(-1) + penalty * smooth_norm
    cost.sum().backward()
    optimizer.step()

# %%
# A loading says which measurements to keep. The most that these can explain is the largest eigenvalue of
# their part of :math:`C`. With ten of them all 1,023 choices can be tried: that is the known answer. The
# simplest method, to keep the largest entries of the dense component, falls short of it.


def explained(kept):
    """Largest share of the variance that a unit loading on some measurements explains."""
    kept = list(kept)
    return float(torch.linalg.eigvalsh(C[kept][:, kept])[-1]) / 10


choices = {tuple(row.nonzero().flatten().tolist()) for row in x.detach().abs() > 0.1}
choice = {len(kept): kept for kept in sorted(choices, key=explained)}  # the best of each size
sizes = sorted(choice)
found = [explained(choice[k]) for k in sizes]
known = [max(map(explained, combinations(range(10), k))) for k in sizes]
largest = leading.abs().argsort(descending=True).tolist()
truncated = [explained(largest[:k]) for k in sizes]

print("variance explained by k measurements")
print("  k   SRCD  best possible  largest entries")
for k, *row in zip(sizes, found, known, truncated, strict=True):
    print(f"{k:3}  {row[0]:.1%}  {row[1]:13.1%}  {row[2]:15.1%}")
print("the four:", ", ".join(names[i] for i in choice[4]))

# %%

plt.style.use("seaborn-v0_8-colorblind")
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
ax.plot(sizes, [100 * y for y in known], color="0.6", linewidth=6, label="best of all choices")
ax.plot(sizes, [100 * y for y in found], "o-", zorder=3, label="SRCD on the sphere")
ax.plot(sizes, [100 * y for y in truncated], "s--", label="largest entries of the dense component")
ax.set(xlabel="measurements used", ylabel="variance explained (%)", xticks=sizes)
ax.legend(frameon=False)
ax.grid(color="0.9")
plt.show()
