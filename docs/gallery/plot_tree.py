r"""
A tree in the hyperbolic plane
==============================

A binary tree has twice as many nodes at every level, and where a circle grows by 0.7 in radius, the
hyperbolic plane has twice as much room. The Euclidean plane has not: however the tree is drawn there,
leaves that are far apart in it come to lie side by side. Here 63 nodes are placed so that their distances
are those in the tree,

.. math:: \min\; \sum_{i<j} \left(\frac{d(x_i, x_j)}{\ell\, d_{ij}} - 1\right)^2,

where :math:`d_{ij}` counts edges and :math:`\ell` is the length of one: once with points of
:class:`~givens.manifolds.Lorentz` and :math:`\ell = \ln 2`, and once with points of the Euclidean plane,
where the length does not matter. A coordinate rotates a point about the origin, or boosts it along an
axis.
"""

import math

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter

from givens.manifolds import Euclidean, Lorentz
from givens.optim import SRCD, Uniform

# %%
# Nodes are numbered as in a heap, where the parent of i is (i − 1)/2. The paths of two nodes to the root tell
# how far apart they are. The usual drawing, small and a little shaken, is where both start.

paths = []
for node in range(63):
    path = [node]
    while path[-1]:
        path.append((path[-1] - 1) // 2)
    paths.append(set(path))
tree = torch.tensor([[len(a ^ b) for b in paths] for a in paths], dtype=torch.float64)
i, j = torch.triu_indices(63, 63, offset=1)
level = tree[0]
angle = 2 * math.pi * (torch.arange(1.5, 64) / 2**level - 1)
torch.manual_seed(0)
drawing = 0.1 * level * torch.stack([angle.cos(), angle.sin()])
drawing += 0.02 * torch.randn_like(drawing)

# %%
# Every node is a point of the batch, and moves along one of its coordinates, at random: of three in the
# hyperbolic plane, of two in the Euclidean one.


def embed(manifold, start, length, lr):
    """Place the nodes; return them, and by what share each distance is off."""
    x = ManifoldParameter(start.clone(), manifold=manifold)
    optimizer = SRCD([x], lr=lr, selection=Uniform())
    for _ in range(800):
        optimizer.zero_grad()
        off = manifold.dist(x[i], x[j]) / (length * tree[i, j]) - 1
        off.square().sum().backward()
        optimizer.step()
    x = x.detach()
    return x, (manifold.dist(x[i], x[j]) / (length * tree[i, j]) - 1).abs()


hyperbolic = Lorentz()
start = hyperbolic.projx(torch.cat([torch.ones(1, 63), drawing]).T)
curved, curved_off = embed(hyperbolic, start, math.log(2), lr=0.1)
flat, flat_off = embed(Euclidean(1), drawing.T, 1.0, lr=0.03)
print("a distance is off by  on average  at most")
print(f"  hyperbolic plane    {curved_off.mean():9.1%} {curved_off.max():8.1%}")
print(f"  Euclidean plane     {flat_off.mean():9.1%} {flat_off.max():8.1%}")
found, known = curved_off.mean(), 0.0

# %%
# The hyperbolic plane as Poincaré's disc, in which the same length is drawn smaller and smaller towards the
# boundary. Edges are geodesics.


def edges(manifold, x):
    """Points along the edges, shape (62, 20, …)."""
    ends, t = x[1:], torch.linspace(0, 1, 20).double()
    parents = x[(torch.arange(1, 63) - 1) // 2]
    if isinstance(manifold, Euclidean):
        return parents[:, None] + t[:, None] * (ends - parents)[:, None]
    u = manifold.logmap(parents, ends)
    return manifold.expmap(parents[:, None].expand(62, 20, 3), t[:, None] * u[:, None])


def disc(x):
    """Poincaré's disc."""
    return x[..., 1:] / (1 + x[..., :1])


plt.style.use("seaborn-v0_8-colorblind")
figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.2), layout="constrained")
axes[0].add_patch(plt.Circle((0, 0), 1, fill=False, color="0.6"))
for ax, name, nodes, lines in (
    (axes[0], "hyperbolic", disc(curved), disc(edges(hyperbolic, curved))),
    (axes[1], "Euclidean", flat, edges(Euclidean(1), flat)),
):
    for line in lines:
        ax.plot(*line.T, color="C0", linewidth=1)
    ax.scatter(*nodes.T, c=level, s=14, zorder=3)
    ax.set(title=name, aspect="equal")
    ax.axis("off")
plt.show()
