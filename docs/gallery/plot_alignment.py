r"""
Two surveys of a mountain: robust alignment
===========================================

The same points of a terrain were surveyed twice, in two systems of coordinates, as :math:`p_i` and
:math:`q_i`. A rotation :math:`R` and a translation :math:`t` take one into the other, and Kabsch's
formula gives those of least squares. But every third point was matched with a wrong one, and least
squares tries to please them, too. A cost that grows slowly with the residual lets them go:

.. math:: f(R, t) = \frac{c^2}{2L^2}\,\operatorname{mean}_i \log\Bigl(1 +
          \frac{\lVert q_i - R p_i - t\rVert^2}{c^2}\Bigr).

The motions are a :class:`~givens.manifolds.Product` of rotations, in radians, and of
:class:`~givens.manifolds.Euclidean` space, in kilometres. A radian moves a point of the terrain by many
kilometres. :class:`~givens.manifolds.Scaled` measures translations in units of the terrain's size
:math:`L`, so that one stepsize suits both.
"""

import matplotlib.pyplot as plt
import torch
from geoopt import ManifoldParameter
from matplotlib.cbook import get_sample_data
from scipy.spatial.transform import Rotation

from givens.manifolds import Euclidean, Product, Scaled, SpecialOrthogonalGroup
from givens.optim import SRCD, Block

# %%
# Three hundred points of a digital elevation model that comes with matplotlib, in kilometres, about 30 km
# across. The second survey has errors of 10 m, and every third match is bad: it leads to some point in the
# northern part.

torch.manual_seed(0)
elevation = torch.tensor(get_sample_data("jacksboro_fault_dem.npz")["elevation"]).double() / 1000
row, column = torch.randint(344, (300,)), torch.randint(403, (300,))
east, north = 0.0743 * (column - 201), 0.0926 * (172 - row)
p = torch.stack([east, north, elevation[row, column]], 1)
L = p.norm(dim=1).square().mean().sqrt()

turn = torch.tensor(Rotation.from_euler("zyx", [40, 5, -10], degrees=True).as_matrix())
q = p @ turn.T + torch.tensor([3.0, -2.0, 0.15]) + 0.01 * torch.randn(300, 3)
bad, good = torch.arange(300).split([100, 200])
northern = good[north[good] > 5]
q[bad] = q[northern[torch.randint(len(northern), (100,))]]


def kabsch(p, q):
    """Rotation and translation of least squares."""
    R = Rotation.align_vectors((q - q.mean(0)).numpy(), (p - p.mean(0)).numpy())[0]
    R = torch.tensor(R.as_matrix())
    return R, q.mean(0) - R @ p.mean(0)


# %%
# The known answer is the motion of least squares for the 200 good matches. The method does not know
# which they are: it starts at that of all matches, and lets the width :math:`c` shrink from 10 km to 30
# m. Every step moves along the three translations and turns about one axis.

R_good, t_good = kabsch(p[good], q[good])


def error(R, t):
    """Root mean square distance, in metres, between the points moved by (R, t) and by the known motion."""
    return 1000 * (p @ (R - R_good).T + t - t_good).square().sum(1).mean().sqrt()


def align(scale):
    """The motion, and its error at every step."""
    motions = Product((SpecialOrthogonalGroup(), (3, 3)), (Scaled(Euclidean(), scale), (3,)))
    x = ManifoldParameter(motions.pack_point(*kabsch(p, q)), manifold=motions)
    optimizer = SRCD([x], lr=0.5, selection=Block(size=4, disjoint=True))
    errors = []
    for step in range(300):
        R, t = motions.unpack_tensor(x)
        errors.append(error(R, t).detach())
        c = max(0.03, 10 * 0.97**step)
        squares = (q - p @ R.T - t).square().sum(1)
        cost = (squares / c**2).log1p().mean() * c**2 / (2 * L**2)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    return motions.unpack_tensor(x.detach()), errors


(R, t), scaled = align(1 / L)
_, unscaled = align(1.0)

# %%
# The motion as six numbers: a rotation vector in radians, and the translation in kilometres.


def numbers(R, t):
    """Rotation vector and translation, in one vector."""
    return torch.cat([torch.tensor(Rotation.from_matrix(R.numpy()).as_rotvec()), t])


found, known = numbers(R, t), numbers(R_good, t_good)
print("SRCD  ", *(f"{v:8.4f}" for v in found))
print("Kabsch", *(f"{v:8.4f}" for v in known))
print(f"error: least squares of all matches {scaled[0]:.0f} m, SRCD {scaled[-1]:.2f} m")

# %%

plt.style.use("seaborn-v0_8-colorblind")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
left.imshow(elevation.numpy(), cmap="gray", vmin=-0.8, extent=(-15, 15, -15.9, 16))
outlier = (q - p @ R.T - t).norm(dim=1) > 0.1
left.plot(east[~outlier], north[~outlier], "o", markersize=4, label="good match")
left.plot(east[outlier], north[outlier], "X", color="C2", label="bad match")
left.set(xlabel="east (km)", ylabel="north (km)")
left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
right.semilogy(unscaled, "--", label="translations in kilometres")
right.semilogy(scaled, label="translations in units of L")
right.set(xlabel="step", ylabel="error of the motion (m)")
right.legend(frameon=False)
right.grid(color="0.9")
plt.show()
