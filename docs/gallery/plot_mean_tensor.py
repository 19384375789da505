r"""
The mean of diffusion tensors
=============================

Diffusion MRI measures in every small volume of the brain how water spreads there: a symmetric positive
definite matrix, long in the direction of the nerve fibres. To smooth such an image, or to compare
patients, one averages these matrices, and the arithmetic mean does harm: where fibres fan out, it is
round and as large as if there were more water than anywhere (Arsigny, Fillard, Pennec and Ayache, 2006).

The Fréchet mean in the affine-invariant metric,

.. math:: \min_{x}\; \frac{1}{2N}\sum_i d(x, C_i)^2, \qquad
          d(x, y) = \lVert\log(x^{-1/2} y\, x^{-1/2})\rVert_F,

does not swell: its determinant is the geometric mean of the determinants. It is a point of
:class:`~givens.manifolds.SymmetricPositiveDefinite`. A coordinate adds a multiple of a column of the Cholesky
factor to another, or stretches one.
"""

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from scipy.spatial.transform import Rotation

from givens.manifolds import SymmetricPositiveDefinite
from givens.optim import SRCD, GaussSouthwell

# %%
# Forty tensors of fibres that fan out by 60° to either side, in units of 10⁻³ mm²/s, with errors.

torch.manual_seed(0)
N = 40
fan = Rotation.from_euler("z", torch.linspace(-60, 60, N).unsqueeze(1).numpy(), degrees=True)
errors = 0.15 * torch.randn(N, 3, 3, dtype=torch.float64)
half = torch.tensor(fan.as_matrix()) @ torch.diag(torch.tensor([1.7, 0.3, 0.3]).double().sqrt())
C = half @ torch.linalg.matrix_exp(errors + errors.mT) @ half.mT

# %%
# From the arithmetic mean, along the steepest of the six coordinates.

manifold = SymmetricPositiveDefinite()
arithmetic = C.mean(0)
x = ManifoldParameter(arithmetic.clone(), manifold=manifold)
optimizer = SRCD([x], lr=0.5, selection=GaussSouthwell())
for _ in range(80):
    optimizer.zero_grad()
    cost = manifold.dist2(x.expand_as(C), C).mean() / 2
    cost.backward()
    optimizer.step()
found = x.detach()

# %%
# For comparison, Karcher's fixed point: at the mean the logarithms of all tensors add up to 0. Square
# roots and logarithms are those of eigenvalues.


def function(f, a):
    values, vectors = torch.linalg.eigh(a)
    return vectors * f(values).unsqueeze(-2) @ vectors.mT


known = arithmetic
for _ in range(30):
    root = function(torch.sqrt, known)
    inverse = torch.linalg.inv(root)
    logarithms = function(torch.log, inverse @ C @ inverse)
    known = root @ function(torch.exp, logarithms.mean(0)) @ root

print(f"largest difference of an entry: {(found - known).abs().max():.1e}")
print("determinant")
for name, value in (
    ("geometric mean of all", torch.linalg.det(C).log().mean().exp()),
    ("Fréchet mean", torch.linalg.det(found)),
    ("arithmetic mean", torch.linalg.det(arithmetic)),
):
    print(f"  {name:22} {value:.3f}")

# %%
# How far water spreads, seen from above, in a millisecond: ellipses at one standard deviation.

plt.style.use("seaborn-v0_8-colorblind")
figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
angle = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
circle = torch.stack([angle.cos(), angle.sin()])
for sample in C[::3]:
    ax.plot(*function(torch.sqrt, 2 * sample[:2, :2]) @ circle, color="0.8", linewidth=1)
for name, mean, style in (("arithmetic mean", arithmetic, "--"), ("Fréchet mean", found, "-")):
    ax.plot(*function(torch.sqrt, 2 * mean[:2, :2]) @ circle, style, linewidth=2.5, label=name)
ax.set(xlabel="µm", ylabel="µm", aspect="equal")
ax.legend(frameon=False)
ax.grid(color="0.9")
plt.show()
