r"""
A dominant subspace from a stream
=================================

The four directions along which scikit-learn's digits vary most, from 32 digits at a time. What is
looked for is a subspace, not a basis of it: a point of :class:`~givens.manifolds.Grassmann`, given by
any 64×4 matrix :math:`x` with orthonormal columns that span it. The cost is the variance that the
subspace misses,

.. math:: f(x) = \mathbb{E}\,\lVert z - x x^\top z\rVert^2,

and a coordinate rotates two rows of :math:`x`, that is, two of the 64 pixels.

A gradient from 32 digits is noisy. With a constant stepsize the iterates come near the subspace and
then stray around it. With stepsizes that satisfy the conditions of Robbins and Monro (1951),
:math:`\sum\alpha_k = \infty` and :math:`\sum\alpha_k^2 < \infty`, they converge.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import ConstantLR

from givens.manifolds import Grassmann
from givens.optim import SRCD, Grouping, RobbinsMonroLR

z = torch.tensor(load_digits().data)
z = z - z.mean(0)
z = z / z.square().sum(1).mean().sqrt()  # the total variance is 1
eigenvalues, eigenvectors = torch.linalg.eigh(z.T @ z / len(z))
dominant = eigenvectors[:, -4:]

# %%
# The pixels are dealt into groups of eight by a tournament, in which every two of them meet. A step
# turns all pairs inside the groups, an eighth of all coordinates.

manifold = Grassmann()


def follow_stream(schedule):
    """Run SRCD with a schedule of its stepsize; return the subspace and its distances to the true one."""
    torch.manual_seed(0)
    x = ManifoldParameter(manifold.random(64, 4, dtype=torch.float64))
    optimizer = SRCD([x], lr=5.0, selection=Grouping(8, "round-robin"))
    scheduler = schedule(optimizer)
    distances = []
    for _ in range(1200):
        batch = z[torch.randint(len(z), (32,))]
        optimizer.zero_grad()
        missed = (batch - batch @ x @ x.T).square().sum(1).mean()
        missed.backward()
        optimizer.step()
        scheduler.step()
        distances.append(manifold.dist(x.detach(), dominant))
    return x.detach(), torch.stack(distances).rad2deg()


_, constant = follow_stream(partial(ConstantLR, factor=1.0))
x, decreasing = follow_stream(partial(RobbinsMonroLR, delay=150))

# %%
# The variance that the subspace holds is at most the sum of the four largest eigenvalues.

found = (z @ x).square().sum(1).mean()
known = eigenvalues[-4:].sum()
print(f"share of the variance: {found:.4f}; at most {known:.4f}")
print(f"distance at the end: {decreasing[-1]:.1f}°; with a constant stepsize {constant[-1]:.1f}°")

# %%
# The distance is the root of the sum of the squared principal angles between the subspaces.

plt.style.use("seaborn-v0_8-colorblind")
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
steps = torch.arange(1, len(constant) + 1)
ax.loglog(steps, constant, "--", label="constant stepsize")
ax.loglog(steps, decreasing, label="Robbins–Monro stepsizes")
ax.set(xlabel="step", ylabel="distance to the dominant subspace (°)", yticks=[5, 10, 20, 50, 100])
ax.yaxis.set_major_formatter("{x:.0f}")
ax.yaxis.set_minor_formatter("")
ax.legend(frameon=False)
ax.grid(color="0.9")
plt.show()
