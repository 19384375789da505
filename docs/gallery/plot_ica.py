r"""
Unmixing photographs: independent component analysis
====================================================

Four photographs were mixed: every pixel of a mixture is a weighted sum of that pixel in the four.
Neither the photographs nor the weights are known. What gives them away is that a sum of independent
signals is closer to a Gaussian than the signals are.

Once the mixtures are made uncorrelated and of unit variance, only an orthogonal matrix :math:`W \in
O(4)` is missing: the one whose outputs :math:`y = W^\top z` are the least Gaussian. A measure is the
size of their fourth cumulants (kurtosis), which a Gaussian does not have:

.. math:: f(W) = -\sum_i \bigl|\mathbb{E}[y_i^4] - 3\bigr|.

Comon (1994) minimizes such functions by rotating one pair of outputs after the other, as Jacobi did for
eigenvalues. That is coordinate descent on :class:`~givens.manifolds.OrthogonalGroup`, whose coordinates
are the pairs of columns of :math:`W`.
"""

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_sample_images
from sklearn.decomposition import FastICA

from givens.manifolds import OrthogonalGroup
from givens.optim import SRCD, GaussSouthwell

# %%
# Four crops of scikit-learn's two photographs, in grey, and four mixtures of them. One image is one row.

torch.manual_seed(0)
china, flower = (torch.tensor(image).double().mean(-1) for image in load_sample_images().images)
corners = [(china, 140, 120), (china, 140, 420), (flower, 80, 180), (flower, 240, 240)]
photos = torch.stack([image[a : a + 160, b : b + 160].flatten() for image, a, b in corners])
mixtures = torch.randn(4, 4, dtype=torch.float64) @ photos

# %%
# Whiten: take away the mean, and make the covariance the identity.

variances, directions = torch.linalg.eigh(mixtures.cov())
z = (directions / variances.sqrt()).T @ (mixtures - mixtures.mean(1, keepdim=True))

# %%
# Rotate. Every step turns the one pair of columns along which the cost falls fastest.

W = ManifoldParameter(OrthogonalGroup().random(4, 4, dtype=torch.float64))
optimizer = SRCD([W], lr=0.1, selection=GaussSouthwell())
for _ in range(150):
    optimizer.zero_grad()
    cost = -((W.T @ z).pow(4).mean(1) - 3).abs().sum()
    cost.backward()
    optimizer.step()

# %%
# The photographs come back in any order and with any sign. Each is matched with the output that it is most
# correlated with, and scikit-learn's FastICA, which maximizes the same cumulants by fixed-point
# iterations on the whole matrix, is asked for its answer.


def match(outputs):
    """Outputs in the order and with the signs of the photographs, and their correlations."""
    correlation = torch.cat([photos, outputs]).corrcoef()[:4, 4:]
    order = linear_sum_assignment(-correlation.abs())[1]
    best = correlation[range(4), order]
    return outputs[order] * best.sign()[:, None], best.abs()


unmixed, found = match((W.T @ z).detach())
fast_ica = FastICA(whiten="unit-variance", fun="cube", tol=1e-6, random_state=0)
known = match(torch.from_numpy(fast_ica.fit_transform(mixtures.T.numpy()).T))[1]
print("correlation with the photographs")
print("  SRCD   ", *(f"{r:.4f}" for r in found))
print("  FastICA", *(f"{r:.4f}" for r in known))

# %%
# What remains is the photographs' own doing: they are not quite independent.

figure, axes = plt.subplots(3, 4, figsize=(8, 6.4), layout="constrained")
names = ("photographs", "mixtures", "unmixed")
for row, name, images in zip(axes, names, (photos, mixtures, unmixed), strict=True):
    for ax, image in zip(row, images, strict=True):
        ax.imshow(image.view(160, 160).numpy(), cmap="gray")
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=14)
plt.show()
